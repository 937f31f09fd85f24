//! Who tried what.

use axum::http::StatusCode;
use domain::Role;
use serde_json::{Value, json};
use testing::http::{Client, PASSWORD};
use testing::node::Node;
use testing::{Env, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn logins_failures_lockouts_reuse_refusals_and_changes_are_found_by_actor_action_target_outcome_and_time_and_reading_is_recorded() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let platform = Client::new(&env, &node);
    let tenant = platform.provision("acme").await;
    let ada = platform.person(tenant, "org_admin", "ada@example.com").await;
    let eve = platform.person(tenant, "user", "eve@example.com").await;
    let (ada_id, eve_id) = (ada.id.to_string(), eve.id.to_string());
    assert_eq!(eve.client.get("/v1/access-records").await.field("code"), "auth.forbidden");
    assert!(platform.login(tenant, "nobody@example.com", PASSWORD).await.is_err());
    let refreshed = platform.with_token(None).post("/v1/auth/refresh", json!({"refresh_token": eve.refresh})).await;
    platform.with_token(None).post("/v1/auth/refresh", json!({"refresh_token": refreshed.field("refresh_token")})).await;
    platform.with_token(None).post("/v1/auth/refresh", json!({"refresh_token": eve.refresh})).await;
    for _ in 0..10 {
        assert!(platform.login(tenant, "eve@example.com", "wrong").await.is_err());
    }
    let role = ada.client.post("/v1/roles", json!({"name": "Dispatcher", "permissions": ["ticket:read"]})).await.field("id").to_owned();
    ada.client.post(&format!("/v1/users/{eve_id}/change-role"), json!({"role": role})).await;
    let key = ada
        .client
        .post("/v1/api-keys", json!({"name": "export", "kind": "service", "scopes": ["ticket:read"]}))
        .await
        .field("id")
        .to_owned();
    let refused = eventually("the refusal is recorded", || async {
        let position: Option<i64> =
            sqlx::query_scalar("select position from events where event_type = 'access_record.noted' and payload ->> 'action' = 'command'")
                .fetch_optional(&env.owner)
                .await
                .unwrap();
        position
    });
    refused.await;
    node.settled().await;
    let list = async |filter: &str| -> Vec<Value> {
        let answer = ada.client.get(&format!("/v1/access-records?limit=200&{filter}")).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        answer.json["data"].as_array().unwrap().clone()
    };
    let one = |rows: Vec<Value>| -> Value {
        assert_eq!(rows.len(), 1, "{rows:?}");
        rows[0].clone()
    };
    let refused = one(list("action=access.command").await);
    assert_eq!(
        (&refused["actor"], &refused["target"], &refused["outcome"], &refused["detail"]),
        (&json!(eve_id), &json!("GET /v1/access-records"), &json!("refused"), &json!({"code": "auth.forbidden"}))
    );
    assert_eq!(one(list("action=access.login").await)["outcome"], "refused");
    assert_eq!(one(list("action=access.refresh_token_reuse").await)["actor"], json!(eve_id));
    let changed = one(list("action=user.role_changed").await);
    assert_eq!(
        (&changed["actor"], &changed["target"], &changed["detail"]),
        (&json!(ada_id), &json!(eve_id), &json!({"from": "user", "to": role}))
    );
    assert_eq!(one(list(&format!("target={key}")).await)["action"], "api_key.created");
    assert_eq!(one(list("action=role.defined").await)["detail"]["name"], "Dispatcher");
    assert_eq!(one(list("action=user.login_attempts_limited").await)["target"], json!(eve_id));
    assert_eq!(list(&format!("action=user.login_failed&target={eve_id}&outcome=refused")).await.len(), 10);
    assert_eq!(list(&format!("action=user.logged_in&actor={eve_id}")).await.len(), 1);
    assert!(list("action=user.").await.len() > 12 && list("action=user.&outcome=refused").await.len() == 10);
    assert!(list("from=2026-01-02T00:00:00Z").await.is_empty() && list("to=2026-01-01T00:00:00Z").await.is_empty());
    // Reading is recorded: the list names everybody who has read it before.
    node.settled().await;
    let read = list("action=access.read_records").await;
    assert!(read.len() >= 10 && read.iter().all(|row| row["actor"] == json!(ada_id)), "{read:?}");
    // Another tenant's records are its own, and names and addresses are in none of them.
    let stranger = platform.acting(platform.provision("other").await, Role::OrgAdmin);
    assert_eq!(stranger.get("/v1/access-records?limit=200").await.json["data"], json!([]));
    assert!(!json!(list("").await).to_string().contains("example.com"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_anybody_can_cause_is_one_record_a_minute_and_address_and_what_somebody_known_causes_eleven_at_most() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let platform = Client::new(&env, &node);
    let tenant = platform.provision("acme").await;
    let viewer = platform.acting(tenant, Role::Viewer);
    let noted = async |action: &str| -> Vec<Value> {
        sqlx::query_scalar(
            "select payload from events where event_type = 'access_record.noted' and payload ->> 'action' = $1 order by position",
        )
        .bind(action)
        .fetch_all(&env.owner)
        .await
        .unwrap()
    };
    // A minute of refusals, and of logins of nobody from two addresses; one is an IPv6 network.
    for n in 0..30 {
        assert_eq!(viewer.get("/v1/users").await.status, StatusCode::FORBIDDEN);
        for address in ["192.0.2.1".to_owned(), format!("2001:db8::{n:x}")] {
            assert!(platform.from(&address).login(tenant, &format!("nobody{n}@example.com"), PASSWORD).await.is_err());
        }
    }
    eventually("the refusals were recorded", || async { (noted("command").await.len() >= 10).then_some(()) }).await;
    assert_eq!(noted("login").await.len(), 2, "the first of each address");
    platform.access.record_sums(false).await.unwrap();
    assert_eq!((noted("command").await.len(), noted("login").await.len()), (10, 2), "the minute is not over");
    env.clock.advance(chrono::TimeDelta::minutes(1));
    platform.access.record_sums(false).await.unwrap();
    let (commands, logins) = (noted("command").await, noted("login").await);
    assert_eq!((commands.len(), logins.len()), (11, 4));
    assert_eq!(commands[10]["count"], json!(20));
    let sources: std::collections::BTreeSet<_> = logins.iter().map(|login| login["source"].as_str().unwrap()).collect();
    assert_eq!(sources.len(), 2);
    assert!(logins[2..].iter().all(|login| login["count"] == json!(29)) && !json!(logins).to_string().contains("192.0.2"));
    // One more in the next minute is summed up with the rest of that minute; and so on for ever.
    for _ in 0..20 {
        assert!(platform.from("192.0.2.1").login(tenant, "nobody@example.com", PASSWORD).await.is_err());
    }
    env.clock.advance(chrono::TimeDelta::minutes(1));
    platform.access.record_sums(false).await.unwrap();
    platform.access.record_sums(true).await.unwrap();
    assert_eq!(noted("login").await.len(), 5);
}
