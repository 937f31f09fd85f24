//! Requests that are sent again because their answer was lost.

use axum::http::StatusCode;
use domain::TenantId;
use serde_json::{Value, json};
use testing::Env;
use testing::http::{Answer, Client, PASSWORD, Person};
use testing::node::Node;

struct House {
    env: Env,
    platform: Client,
    tenant: TenantId,
    ada: Person,
    _node: Node,
}

impl House {
    async fn new() -> Self {
        let env = Env::new().await;
        let node = Node::start(&env).await;
        let platform = Client::new(&env, &node);
        let tenant = platform.provision("acme").await;
        let ada = platform.person(tenant, "org_admin", "ada@example.com").await;
        Self { env, platform, tenant, ada, _node: node }
    }

    async fn events(&self) -> i64 {
        sqlx::query_scalar("select count(*) from events").fetch_one(&self.env.owner).await.unwrap()
    }

    /// As if the process had been killed between doing it and keeping the answer.
    async fn cut_off(&self) {
        let done = sqlx::query("update ops.kept_answers set answer = null").execute(&self.env.owner).await.unwrap();
        assert!(done.rows_affected() > 0);
    }
}

async fn send(client: &Client, key: &str, uri: &str, body: &Value) -> Answer {
    client.post_with(uri, body.clone(), &[("idempotency-key", key)]).await
}

fn preregistration() -> Value {
    json!({"devices": [{"serial": "A1", "model": "m"}, {"serial": "A2", "model": "m"}]})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_with_a_secret_comes_again_with_the_secret_that_counts_even_if_the_process_was_killed_in_between() {
    let house = House::new().await;
    let client = &house.ada.client;
    let requests = [
        ("/v1/api-keys", json!({"name": "k", "kind": "service", "scopes": ["ticket:read"]}), "/key"),
        ("/v1/devices", json!({"serial": "B1", "model": "m"}), "/credential"),
        ("/v1/devices/preregister", preregistration(), "/data/0/claim_code"),
    ];
    for (uri, body, secret) in requests {
        // Many at once, of which one does it.
        let answers = futures::future::join_all((0..8).map(|_| send(client, "k", uri, &body))).await;
        let first = answers[0].json.pointer(secret).unwrap().as_str().unwrap().to_owned();
        for answer in &answers {
            assert!(answer.status.is_success(), "{uri}: {}", answer.text);
            assert_eq!(answer.json.pointer(secret).unwrap(), &json!(first), "{uri}");
        }
        let events = house.events().await;
        let again = send(client, "k", uri, &body).await;
        assert_eq!((again.header("idempotent-replayed"), again.json.pointer(secret).unwrap()), ("true", &json!(first)), "{uri}");
        house.cut_off().await;
        let after = send(client, "k", uri, &body).await;
        assert_eq!(after.json.pointer(secret).unwrap(), &json!(first), "{uri} after it was cut off: {}", after.text);
        assert_eq!(house.events().await, events, "{uri} is done once");
        // It is the one that counts.
        if uri == "/v1/devices/preregister" {
            let claim = json!({"claim_code": first});
            let nobody = house.platform.with_token(None);
            let claimed = send(&nobody, "c", "/v1/devices/claim", &claim).await;
            let again = send(&nobody, "c", "/v1/devices/claim", &claim).await;
            assert_eq!((claimed.status, &again.json, again.header("idempotent-replayed")), (StatusCode::OK, &claimed.json, "true"));
            assert_eq!(send(&nobody, "d", "/v1/devices/claim", &claim).await.field("code"), "device.no_such_claim");
        } else if secret == "/key" {
            assert_eq!(house.platform.with_token(Some(first.clone())).get("/v1/me").await.status, StatusCode::OK);
        }
        let kept: Vec<String> =
            sqlx::query_scalar("select encode(drawn, 'escape') || encode(answer, 'escape') from ops.kept_answers where answer is not null")
                .fetch_all(&house.env.owner)
                .await
                .unwrap();
        assert!(!kept.is_empty() && kept.iter().all(|text| !text.contains(&first[5..])), "{uri}: nothing is kept in clear");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_that_of_one_caller_and_one_request_and_is_free_again_when_it_was_refused() {
    let house = House::new().await;
    let eve = house.platform.person(house.tenant, "org_admin", "eve@example.com").await;
    let change = json!({"current_password": PASSWORD, "email": "ada.lovelace@example.com"});
    let wrong = json!({"current_password": "another", "email": "ada.lovelace@example.com"});
    let uri = "/v1/me/change-email";
    assert_eq!(send(&house.ada.client, "k", uri, &wrong).await.field("code"), "auth.wrong_password");
    let first = send(&house.ada.client, "k", uri, &change).await;
    assert_eq!((first.status, first.header("idempotent-replayed")), (StatusCode::NO_CONTENT, ""), "{}", first.text);
    let events = house.events().await;
    let again = send(&house.ada.client, "k", uri, &change).await;
    assert_eq!((again.status, again.header("idempotent-replayed")), (StatusCode::NO_CONTENT, "true"));
    assert_eq!(house.events().await, events);
    let other = json!({"current_password": PASSWORD, "email": "other@example.com"});
    let reused = send(&house.ada.client, "k", uri, &other).await;
    assert_eq!((reused.status, reused.field("code")), (StatusCode::UNPROCESSABLE_ENTITY, "request.idempotency_key_reused"));
    assert_eq!(send(&eve.client, "k", uri, &change).await.field("code"), "request.idempotency_key_reused", "of the tenant");
    // Strangers take nothing from each other.
    let nobody = house.platform.with_token(None);
    assert_eq!(send(&nobody, "k", "/v1/auth/verify-email", &json!({"token": "x"})).await.field("code"), "user.link_not_good");
    assert_eq!(send(&nobody, "k", "/v1/auth/verify-email", &json!({"token": "y"})).await.field("code"), "user.link_not_good");
    // A batch of usage gets its whole answer again, whatever became of the limits meanwhile.
    let batch = json!({"items": [{"id": "u1", "quantity": 2}, {"id": "u2", "quantity": 0}]});
    let first = send(&house.ada.client, "b", "/v1/quota/usage/messages", &batch).await;
    let again = send(&house.ada.client, "b", "/v1/quota/usage/messages", &batch).await;
    assert_eq!((&again.json, again.header("idempotent-replayed")), (&first.json, "true"));
    assert_eq!(again.header("tenure-position"), first.header("tenure-position"));
}
