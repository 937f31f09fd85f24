//! Entity tags, and reading what was just written.

use axum::http::{Method, StatusCode};
use domain::Role;
use serde_json::{Value, json};
use testing::http::{Answer, Client};
use testing::node::Node;
use testing::{Env, eventually};

/// One resource of each kind that has a version, with a command that changes it.
struct Resource {
    path: String,
    change: (&'static str, Value),
}

async fn resources(client: &Client, tenant: &str) -> Vec<Resource> {
    let made = async |uri: &str, body: Value| {
        let answer = client.post(uri, body).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{uri}: {}", answer.text);
        format!("{uri}/{}", answer.field("id"))
    };
    let resource = |path: String, command: &'static str, body: Value| Resource { path, change: (command, body) };
    let device = made("/v1/devices", json!({"serial": "A1", "model": "m"})).await;
    vec![
        resource(made("/v1/tickets", json!({"subject": "Help", "body": "x"})).await, "tag", json!({"tag": "a"})),
        resource(
            made("/v1/users", json!({"email": "u@example.com", "name": "U", "role": "user"})).await,
            "suspend",
            json!({"reason": "x"}),
        ),
        resource(made("/v1/roles", json!({"name": "R", "permissions": ["ticket:read"]})).await, "rename", json!({"name": "S"})),
        resource(
            made("/v1/api-keys", json!({"name": "k", "kind": "service", "scopes": ["ticket:read"]})).await,
            "rotate",
            json!({"grace_seconds": 60}),
        ),
        resource(made("/v1/outlets", json!({"name": "Vienna"})).await, "", json!({"name": "Linz"})),
        resource(format!("/v1/tenants/{tenant}"), "rename", json!({"name": "Other"})),
        resource(device.clone(), "tag", json!({"tag": "a"})),
        resource(device + "/twin", "", json!({"led": "on"})),
    ]
}

async fn change(client: &Client, resource: &Resource, tag: &str) -> Answer {
    let (command, body) = &resource.change;
    let (method, uri, media) = match (*command, resource.path.strip_suffix("/twin")) {
        (_, Some(device)) => (Method::PATCH, format!("{device}/desired-state"), "application/merge-patch+json"),
        ("", None) => (Method::PATCH, resource.path.clone(), "application/merge-patch+json"),
        (command, None) => (Method::POST, format!("{}/{command}", resource.path), "application/json"),
    };
    client.send(method, &uri, &[("if-match", tag), ("content-type", media)], body.to_string()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tag_that_was_read_of_each_resource_is_accepted_by_if_match_and_compared_as_the_rfc_says() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let platform = Client::new(&env, &node);
    let tenant = platform.provision("acme").await;
    let admin = platform.person(tenant, "org_admin", "boss@example.com").await.client;
    for resource in resources(&admin, &tenant.to_string()).await {
        let path = &resource.path;
        // A version that is not the first, by an event that is no part of the twin.
        if let Some(device) = path.strip_suffix("/twin") {
            assert_eq!(admin.post(&format!("{device}/accept"), json!({})).await.status, StatusCode::OK);
            node.settled().await;
        }
        let client = if path.starts_with("/v1/tenants") { &platform } else { &admin };
        let shown = client.get(path).await;
        assert_eq!(shown.status, StatusCode::OK, "{path}: {}", shown.text);
        let tag = shown.header("etag").to_owned();
        assert!(tag.starts_with('"'), "{path} has a strong tag: {tag}");
        for same in [tag.clone(), format!("W/{tag}"), format!("\"x\", W/{tag}"), "*".to_owned()] {
            let again = client.get_with(path, &[("if-none-match", &same)]).await;
            assert_eq!(
                (again.status, again.text.as_str(), again.header("etag")),
                (StatusCode::NOT_MODIFIED, "", tag.as_str()),
                "{path} {same}"
            );
        }
        for other in ["\"v0\"", "W/\"v1\"", "\"something\""] {
            assert_eq!(client.get_with(path, &[("if-none-match", other)]).await.status, StatusCode::OK, "{path} {other}");
        }
        assert_eq!(client.get_with(path, &[("if-none-match", "v1")]).await.field("code"), "request.bad_header", "{path}");
        for never in [format!("W/{tag}"), "\"something\"".to_owned(), "\"v999\"".to_owned()] {
            let refused = change(client, &resource, &never).await;
            assert_eq!(
                (refused.status, refused.field("code")),
                (StatusCode::PRECONDITION_FAILED, "request.version_mismatch"),
                "{path} {never}"
            );
        }
        let done = change(client, &resource, &format!("\"v999\", {tag}")).await;
        assert_eq!(done.status, StatusCode::OK, "{path} {tag}: {}", done.text);
        let stale = change(client, &resource, &tag).await;
        // What is already so has no version of its own to insist on.
        assert!(stale.status == StatusCode::PRECONDITION_FAILED || done.json["version"] == shown.json["version"], "{path}: {}", stale.text);
        let after = client.get_with(&format!("{path}?after={}", done.json["position"]), &[("if-none-match", &tag)]).await;
        assert_eq!(after.status, StatusCode::OK, "{path} changed");
        assert_ne!(after.header("etag"), tag, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_names_what_is_shown_to_whom_and_not_only_a_version() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let platform = Client::new(&env, &node);
    let tenant = platform.provision("acme").await;
    let named = platform.naming(tenant);
    platform.register(tenant, "org_admin", "boss@example.com").await;
    let ada = platform.person(tenant, "user", "ada@example.com").await;
    let agent = platform.person(tenant, "support_agent", "agent@example.com").await.client;
    let ticket = format!("/v1/tickets/{}", ada.client.post("/v1/tickets", json!({"subject": "Secret", "body": "x"})).await.field("id"));
    agent.post(&format!("{ticket}/tag"), json!({"tag": "internal"})).await;
    node.settled().await;
    // Who sees what.
    let (hers, theirs) = (ada.client.get(&ticket).await, agent.get(&ticket).await);
    assert_eq!(hers.json["version"], theirs.json["version"]);
    assert_ne!(hers.header("etag"), theirs.header("etag"));
    // When a key was last used, and when a device was last heard of.
    let made = named.post("/v1/api-keys", json!({"name": "k", "kind": "service", "scopes": ["ticket:read"]})).await;
    let key = format!("/v1/api-keys/{}", made.field("id"));
    let unused = named.get(&key).await.header("etag").to_owned();
    platform.with_token(Some(made.field("key").to_owned())).get("/v1/me").await;
    eventually("the use is noted", || async { (named.get(&key).await.json["last_used_at"].is_string()).then_some(()) }).await;
    assert_eq!(named.get_with(&key, &[("if-none-match", &unused)]).await.status, StatusCode::OK);
    let made = named.post("/v1/devices", json!({"serial": "A1", "model": "m"})).await;
    let device = format!("/v1/devices/{}", made.field("id"));
    named.post(&format!("{device}/accept"), json!({})).await;
    node.settled().await;
    let silent = named.get(&device).await.header("etag").to_owned();
    let itself = platform.with_token(Some(made.field("credential").to_owned()));
    assert_eq!(itself.post(&format!("{device}/heartbeat"), json!({})).await.status, StatusCode::NO_CONTENT);
    assert_eq!(named.get_with(&device, &[("if-none-match", &silent)]).await.status, StatusCode::OK);
    // After an erasure.
    let erased = named.post(&format!("/v1/users/{}/erase", ada.id), json!({})).await;
    assert_eq!(erased.status, StatusCode::OK, "{}", erased.text);
    node.settled().await;
    let after = agent.get_with(&ticket, &[("if-none-match", theirs.header("etag"))]).await;
    assert_eq!((after.status, &after.json["subject"]), (StatusCode::OK, &Value::Null), "{}", after.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_get_of_what_the_log_has_waits_for_the_read_model_and_a_position_beyond_the_log_is_refused_at_once() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let platform = Client::new(&env, &node);
    let tenant = platform.provision("acme").await;
    let admin = platform.acting(tenant, Role::OrgAdmin);
    let agent = platform.acting_as(&testing::id().to_string(), tenant, Role::SupportAgent);
    let stranger = platform.acting(platform.provision("other").await, Role::OrgAdmin);
    for n in 0..20 {
        let ticket = agent.post("/v1/tickets", json!({"subject": "Help", "body": "x"})).await;
        let path = ticket.header("location").to_owned();
        let thread = format!("{path}/thread");
        let (shown, thread, hidden) = tokio::join!(agent.get(&path), agent.get(&thread), stranger.get(&path));
        assert_eq!(
            (shown.status, thread.status, hidden.status),
            (StatusCode::OK, StatusCode::OK, StatusCode::NOT_FOUND),
            "{n}: {}",
            shown.text
        );
        let device = admin.post("/v1/devices", json!({"serial": format!("S{n}"), "model": "m"})).await.header("location").to_owned();
        for path in [device.clone(), format!("{device}/twin"), format!("{device}/commands"), format!("{device}/timeline")] {
            assert_eq!(admin.get(&path).await.status, StatusCode::OK, "{n}: {path}");
        }
        let outlet = admin.post("/v1/outlets", json!({"name": "Vienna"})).await.header("location").to_owned();
        assert_eq!(admin.get(&outlet).await.status, StatusCode::OK, "{n}");
        let provisioned =
            platform.post("/v1/tenants", json!({"slug": format!("tenant-{n}"), "name": "T"})).await.header("location").to_owned();
        assert_eq!(platform.get(&provisioned).await.status, StatusCode::OK, "{n}");
    }
    assert_eq!(agent.get(&format!("/v1/tickets/{}", testing::id())).await.status, StatusCode::NOT_FOUND);
    let head = node.store.head().await.unwrap().position;
    for list in [
        "/v1/tickets",
        "/v1/devices",
        "/v1/users",
        "/v1/roles",
        "/v1/api-keys",
        "/v1/outlets",
        "/v1/plans",
        "/v1/subscriptions",
        "/v1/entitlements",
        "/v1/invitations",
        "/v1/access-records",
        "/v1/tenants",
        "/v1/tickets/statistics",
        "/v1/quota/status",
        "/v1/quota/usage/daily?meter=messages",
    ] {
        let with = |after: &str| format!("{list}{}after={after}", if list.contains('?') { '&' } else { '?' });
        for beyond in ["-1", "999999999", "9223372036854775807", "99999999999999999999", "x", "1.5", ""] {
            let since = std::time::Instant::now();
            let refused = admin.get(&with(beyond)).await;
            assert_eq!(
                (refused.status, refused.field("code")),
                (StatusCode::BAD_REQUEST, "request.bad_query"),
                "{list} {beyond}: {}",
                refused.text
            );
            assert!(since.elapsed() < std::time::Duration::from_secs(1), "{list} {beyond} took {:?}", since.elapsed());
        }
        assert_eq!(admin.get(&with(&head.to_string())).await.status, StatusCode::OK, "{list}");
    }
}
