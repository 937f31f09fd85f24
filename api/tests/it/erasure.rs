//! What is left beside the log of people and tenants that were erased.

use axum::http::StatusCode;
use serde_json::json;
use sqlx::PgPool;
use testing::http::{Client, PASSWORD};
use testing::node::Node;
use testing::{Env, eventually};
use uuid::Uuid;

/// How many rows each operational table has of a person: their sessions, password, mails, and the secrets and use of their keys.
async fn rows(owner: &PgPool, tenant: Uuid, user: Uuid, key: Uuid) -> [i64; 5] {
    let mut counts = [0; 5];
    for (count, table, column, id) in [
        (0, "sessions", "user_id", user),
        (1, "credentials", "owner_id", user),
        (2, "deliveries", "subject_id", user),
        (3, "credentials", "owner_id", key),
        (4, "api_key_use", "key_id", key),
    ] {
        counts[count] = sqlx::query_scalar(&format!("select count(*) from ops.{table} where tenant_id = $1 and {column} = $2"))
            .bind(tenant)
            .bind(id)
            .fetch_one(owner)
            .await
            .unwrap();
    }
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn operational_rows_of_a_person_go_with_their_key_and_those_of_others_with_the_same_id_stay() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let platform = Client::new(&env, &node);
    let (id, key) = (testing::id(), testing::id());
    let mut tenants = Vec::new();
    for slug in ["acme", "other"] {
        let tenant = platform.provision(slug).await;
        platform.register(tenant, "org_admin", "bob@example.com").await;
        let ada = json!({"id": id, "email": "ada@example.com", "name": "Ada", "role": "org_admin"});
        assert_eq!(platform.post_for(tenant, "/v1/users", ada).await.status, StatusCode::CREATED);
        let set = platform.post_for(tenant, &format!("/v1/users/{id}/set-password"), json!({"password": PASSWORD})).await;
        assert_eq!(set.status, StatusCode::OK, "{}", set.text);
        let login = json!({"tenant": slug, "email": "ada@example.com", "password": PASSWORD});
        let login = platform.with_token(None).post_with("/v1/auth/login", login, &[("user-agent", "Lovelace Browser")]).await;
        let ada = platform.with_token(Some(login.field("access_token").to_owned()));
        let made = ada.post("/v1/api-keys", json!({"id": key, "name": "k", "kind": "personal", "scopes": ["tenant:read"]})).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
        assert_eq!(platform.with_token(Some(made.field("key").to_owned())).get("/v1/me").await.status, StatusCode::OK);
        tenants.push(tenant);
    }
    node.settled().await;
    for tenant in &tenants {
        eventually("all is there", || async { (rows(&env.owner, tenant.0, id, key).await == [1, 1, 1, 1, 1]).then_some(()) }).await;
    }
    let tenant = tenants[0];
    assert_eq!(platform.post_for(tenant, &format!("/v1/users/{id}/delete"), json!({})).await.status, StatusCode::OK);
    let erased = platform.post_for(tenant, &format!("/v1/users/{id}/erase"), json!({})).await;
    assert_eq!(erased.status, StatusCode::OK, "{}", erased.text);
    // In the same transaction; what only the log knows to be theirs a moment later.
    assert_eq!(rows(&env.owner, tenant.0, id, key).await[..3], [0, 0, 0]);
    node.settled().await;
    assert_eq!(rows(&env.owner, tenant.0, id, key).await, [0; 5]);
    assert_eq!(rows(&env.owner, tenants[1].0, id, key).await, [1, 1, 1, 1, 1], "of another tenant's person with the same id");
    let agents: Vec<String> = sqlx::query_scalar("select s::text from ops.sessions s").fetch_all(&env.owner).await.unwrap();
    assert_eq!(agents.iter().filter(|row| row.contains("Lovelace Browser")).count(), 1, "{agents:?}");
    node.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_operational_is_left_of_a_tenant_that_was_deleted() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let platform = Client::new(&env, &node);
    let (tenant, other) = (platform.provision("acme").await, platform.provision("other").await);
    for tenant in [tenant, other] {
        let ada = platform.person(tenant, "org_admin", "ada@example.com").await.client;
        let key = ada.post("/v1/api-keys", json!({"name": "k", "kind": "service", "scopes": ["tenant:read"]})).await;
        platform.with_token(Some(key.field("key").to_owned())).get("/v1/me").await;
        let device = ada.post("/v1/devices", json!({"serial": "1", "model": "thermo-2"})).await;
        let path = format!("/v1/devices/{}", device.field("id"));
        ada.post(&format!("{path}/accept"), json!({})).await;
        let itself = platform.with_token(Some(device.field("credential").to_owned()));
        eventually("it is let in", || async {
            (itself.post(&format!("{path}/heartbeat"), json!({})).await.status == StatusCode::NO_CONTENT).then_some(())
        })
        .await;
    }
    node.settled().await;
    // Every operational table that says whose a row is; keys that were destroyed stay as such, and of idempotency keys only hashes are kept.
    let tables: Vec<String> = sqlx::query_scalar(
        "select table_name::text from information_schema.columns where table_schema = 'ops' and column_name = 'tenant_id'
           and table_name not in ('subject_keys', 'idempotency_keys', 'provider_events')",
    )
    .fetch_all(&env.owner)
    .await
    .unwrap();
    let count = async |tenant: Uuid| {
        let mut all = Vec::new();
        for table in &tables {
            let n: i64 = sqlx::query_scalar(&format!("select count(*) from ops.{table} where tenant_id = $1"))
                .bind(tenant)
                .fetch_one(&env.owner)
                .await
                .unwrap();
            all.push((table.as_str(), n));
        }
        all
    };
    eventually("the key's use is noted", || async { (count(tenant.0).await.iter().filter(|(_, n)| *n > 0).count() >= 5).then_some(()) })
        .await;
    let before = count(other.0).await;
    for (step, body) in [("complete-provisioning", json!({"trialing": true})), ("deactivate", json!({})), ("delete", json!({}))] {
        let answer = platform.post(&format!("/v1/tenants/{tenant}/{step}"), body).await;
        assert_eq!(answer.status, StatusCode::OK, "{step}: {}", answer.text);
    }
    node.settled().await;
    assert!(count(tenant.0).await.iter().all(|(_, n)| *n == 0), "{:?}", count(tenant.0).await);
    assert_eq!(count(other.0).await, before, "of others nothing was taken");
}
