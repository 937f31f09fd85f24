//! Keys of programs.

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use chrono::TimeDelta;
use domain::Clock as _;
use serde_json::{Value, json};
use testing::http::{Answer, Client};
use testing::node::Node;
use testing::{Env, eventually};

async fn ended_within_a_second(client: &Client) {
    let since = Instant::now();
    eventually("the key opens nothing", || async { (client.get("/v1/me").await.status == StatusCode::UNAUTHORIZED).then_some(()) }).await;
    assert!(since.elapsed() < Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_shown_once_stored_hashed_may_what_its_scopes_say_and_ends_within_a_second_in_every_process() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let platform = Client::new(&env, &node);
    let tenant = platform.provision("acme").await;
    let ada = platform.person(tenant, "org_admin", "ada@example.com").await;
    let second = Node::start(&env).await;
    let elsewhere = Client::new(&env, &second);
    let create = async |key: &str, body: Value| ada.client.post_with("/v1/api-keys", body, &[("idempotency-key", key)]).await;
    let wanted = json!({"name": "export", "kind": "service", "scopes": ["ticket:read", "ticket:open"]});
    let made = create("k", wanted.clone()).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    let secret = made.field("key").to_owned();
    let again = create("k", wanted).await;
    assert_eq!(
        (again.status, &again.json["key"], &again.json["id"], again.header("idempotent-replayed")),
        (StatusCode::CREATED, &made.json["key"], &made.json["id"], "true")
    );
    let id = made.field("id");
    let shown = ada.client.get(&format!("/v1/api-keys/{id}?after={}", made.header("tenure-position"))).await;
    assert!(secret.starts_with(shown.field("prefix")) && !shown.text.contains(&secret[20..]), "{}", shown.text);
    let service = elsewhere.with_token(Some(secret.clone()));
    let me = service.get("/v1/me").await;
    assert_eq!(
        (me.field("api_key_id"), &me.json["permissions"], &me.json["role"]),
        (id, &json!(["ticket:open", "ticket:read"]), &Value::Null),
        "{}",
        me.text
    );
    let opened = service.post("/v1/tickets", json!({"subject": "by a program", "body": "x"})).await;
    assert_eq!(opened.status, StatusCode::CREATED, "{}", opened.text);
    assert_eq!(service.get("/v1/users").await.field("code"), "auth.forbidden");
    assert_eq!(service.get("/v1/me/sessions").await.field("code"), "auth.no_account");
    assert_eq!(
        service.post("/v1/api-keys", json!({"name": "x", "kind": "service", "scopes": ["ticket:read"]})).await.field("code"),
        "auth.forbidden"
    );
    // Not the secret, and not the hash of the whole key: the row has a hash that opens nothing.
    let hashes: Vec<String> = sqlx::query_scalar("select hash from ops.credentials").fetch_all(&env.owner).await.unwrap();
    assert!(hashes.iter().all(|hash| !secret.contains(hash.as_str())));
    for forged in [format!("{}A", &secret[..secret.len() - 1]), secret[..40].to_owned(), "tnr_".into(), "tnr_x.y".into()] {
        if forged != secret {
            assert_eq!(elsewhere.with_token(Some(forged)).get("/v1/me").await.status, StatusCode::UNAUTHORIZED);
        }
    }
    let used = eventually("its use is noted", || async {
        let list = ada.client.get("/v1/api-keys").await;
        list.json["data"][0]["last_used_at"].as_str().map(str::to_owned)
    });
    assert!(!used.await.is_empty());
    let before: i64 = node.store.head().await.unwrap().position;
    for _ in 0..50 {
        service.get("/v1/me").await;
    }
    assert_eq!(node.store.head().await.unwrap().position, before, "no event per call");
    // Another secret, with a grace time.
    let rotated = ada.client.post(&format!("/v1/api-keys/{id}/rotate"), json!({"grace_seconds": 60})).await;
    let new = elsewhere.with_token(Some(rotated.field("key").to_owned()));
    for client in [&service, &new] {
        assert_eq!(client.get("/v1/me").await.status, StatusCode::OK);
    }
    env.clock.advance(TimeDelta::seconds(60));
    ended_within_a_second(&service).await;
    assert_eq!(new.get("/v1/me").await.status, StatusCode::OK);
    assert_eq!(ada.client.post(&format!("/v1/api-keys/{id}/revoke"), json!({})).await.status, StatusCode::OK);
    ended_within_a_second(&new).await;
    // Its time passes by itself.
    let until = env.clock.now() + TimeDelta::minutes(5);
    let short = create("s", json!({"name": "short", "kind": "service", "scopes": ["ticket:read"], "expires_at": until})).await;
    let short = platform.with_token(Some(short.field("key").to_owned()));
    assert_eq!(short.get("/v1/me").await.status, StatusCode::OK);
    env.clock.advance(TimeDelta::minutes(5));
    assert_eq!(short.get("/v1/me").await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_personal_key_may_never_more_than_its_owner_and_ends_with_them() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let platform = Client::new(&env, &node);
    let tenant = platform.provision("acme").await;
    platform.register(tenant, "org_admin", "boss@example.com").await;
    let grace = platform.person(tenant, "support_agent", "grace@example.com").await;
    let eve = platform.person(tenant, "user", "eve@example.com").await;
    let create = async |scopes: Value| -> Answer {
        grace.client.post("/v1/api-keys", json!({"name": "mine", "kind": "personal", "scopes": scopes})).await
    };
    assert_eq!(create(json!(["user:invite"])).await.field("code"), "api_key.beyond_you");
    assert_eq!(create(json!(["tenant:create"])).await.field("code"), "api_key.no_such_scope");
    let service = grace.client.post("/v1/api-keys", json!({"name": "x", "kind": "service", "scopes": ["ticket:read"]})).await;
    assert_eq!(service.field("code"), "api_key.service");
    let made = create(json!(["ticket:work", "ticket:read", "ticket:read_all", "api_key:create"])).await;
    let id = made.field("id").to_owned();
    let key = platform.with_token(Some(made.field("key").to_owned()));
    let me = key.get("/v1/me").await;
    assert_eq!((me.field("actor"), me.field("role")), (grace.id.to_string().as_str(), "support_agent"));
    let another = key.post("/v1/api-keys", json!({"name": "x", "kind": "personal", "scopes": ["ticket:read"]})).await;
    assert_eq!(another.field("code"), "api_key.people_only", "a key makes no keys");
    node.settled().await;
    // Somebody else's key does not exist.
    for answer in [
        eve.client.get(&format!("/v1/api-keys/{id}")).await,
        eve.client.post(&format!("/v1/api-keys/{id}/revoke"), json!({})).await,
        eve.client.post(&format!("/v1/api-keys/{id}/rotate"), json!({})).await,
    ] {
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{}", answer.text);
    }
    assert_eq!(eve.client.get("/v1/api-keys").await.json["data"], json!([]));
    platform.post_for(tenant, &format!("/v1/users/{}/change-role", grace.id), json!({"role": "user"})).await;
    let since = Instant::now();
    eventually("less", || async {
        (key.get("/v1/me").await.json["permissions"] == json!(["api_key:create", "ticket:read"])).then_some(())
    })
    .await;
    assert!(since.elapsed() < Duration::from_secs(1));
    platform.post_for(tenant, &format!("/v1/users/{}/deactivate", grace.id), json!({})).await;
    ended_within_a_second(&key).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_id_in_two_tenants_is_two_keys_and_two_devices_neither_of_which_hides_the_other() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let platform = Client::new(&env, &node);
    let id = testing::id();
    let mut seen = Vec::new();
    for slug in ["acme", "other"] {
        let tenant = platform.provision(slug).await;
        let admin = platform.person(tenant, "org_admin", "ada@example.com").await.client;
        let key = admin.post("/v1/api-keys", json!({"id": id, "name": slug, "kind": "service", "scopes": ["tenant:read"]})).await;
        assert_eq!(key.status, StatusCode::CREATED, "{}", key.text);
        let device = admin.post("/v1/devices", json!({"id": id, "serial": "1", "model": "thermo-2"})).await;
        assert_eq!(device.status, StatusCode::CREATED, "{}", device.text);
        assert_eq!(admin.post(&format!("/v1/devices/{id}/accept"), json!({})).await.status, StatusCode::OK);
        let key = platform.with_token(Some(key.field("key").to_owned()));
        assert_eq!(key.get("/v1/me").await.status, StatusCode::OK);
        let itself = platform.with_token(Some(device.field("credential").to_owned()));
        eventually("it is let in", || async {
            (itself.post(&format!("/v1/devices/{id}/heartbeat"), json!({})).await.status == StatusCode::NO_CONTENT).then_some(())
        })
        .await;
        seen.push((tenant, admin));
    }
    for (tenant, admin) in &seen {
        eventually("its use is noted", || async {
            admin.get(&format!("/v1/api-keys/{id}")).await.json["last_used_at"].is_string().then_some(())
        })
        .await;
        assert!(admin.get(&format!("/v1/devices/{id}")).await.json["last_seen_at"].is_string());
        let rows: i64 = sqlx::query_scalar("select count(*) from ops.api_key_use where tenant_id = $1 and key_id = $2")
            .bind(tenant.0)
            .bind(id)
            .fetch_one(&env.owner)
            .await
            .unwrap();
        assert_eq!(rows, 1);
    }
    // One of them is revoked, and forgotten: the other's is not.
    assert_eq!(seen[1].1.post(&format!("/v1/api-keys/{id}/revoke"), json!({})).await.status, StatusCode::OK);
    env.clock.advance(TimeDelta::minutes(6));
    node.access(None).housekeep().await.unwrap();
    let left: Vec<uuid::Uuid> = sqlx::query_scalar("select tenant_id from ops.api_key_use").fetch_all(&env.owner).await.unwrap();
    assert_eq!(left, [seen[0].0.0]);
}
