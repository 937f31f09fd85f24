//! Who is let in where: every operation × everybody, in one golden file.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use axum::http::StatusCode;
use chrono::TimeDelta;
use domain::{Clock as _, Role, TenantId};
use serde_json::{Value, json};
use testing::http::{Answer, Client, PASSWORD, Person};
use testing::node::Node;
use testing::{Env, eventually, id};

use crate::completeness::{Operation, operations};

/// Ids of things that exist in the tenant, by the tag of the operations on them.
type Things = BTreeMap<&'static str, String>;

/// Calls an operation with its example on an id. A version that nothing has keeps aggregates as they are.
async fn call(client: &Client, operation: &Operation, id: &str, mine: &str, tenant: Option<TenantId>) -> Answer {
    let content = operation.description["requestBody"]["content"].as_object().and_then(|content| content.iter().next());
    let (media, body) = match content {
        Some((media, _)) if media == "application/x-www-form-urlencoded" => (media.as_str(), "token=x".to_owned()),
        Some((media, content)) => {
            let mut body = content["example"].clone();
            // The example's own would say that there is something else with it already.
            if let Some(own) = body.get_mut("id") {
                *own = json!(testing::id());
            }
            (media.as_str(), body.to_string())
        }
        None => ("text/plain", String::new()),
    };
    let tenant = tenant.map(|tenant| tenant.to_string());
    let named = tenant.iter().map(|tenant| ("tenure-tenant", tenant.as_str()));
    let headers: Vec<_> = [("content-type", media), ("if-match", "\"v999999\"")].into_iter().chain(named).collect();
    let path = operation.path.replace("{id}", id).replace("{tenant}", mine).replace("{meter}", "messages");
    client.send(operation.method.clone(), &path, &headers, body).await
}

/// In one word.
fn word(answer: &Answer) -> &'static str {
    assert!(!answer.status.is_server_error(), "never a 500: {}", answer.text);
    match answer.status {
        StatusCode::UNAUTHORIZED => "401",
        StatusCode::FORBIDDEN => "403",
        StatusCode::NOT_FOUND => "404",
        _ => "yes",
    }
}

struct Everybody {
    names: Vec<&'static str>,
    clients: Vec<Client>,
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "first everybody, then everything")]
async fn every_endpoint_lets_in_whom_the_golden_file_says_and_tells_others_nothing() {
    let env = Env::new().await;
    let mut node = Node::start(&env).await;
    let address = testing::dns::NameServer::address();
    let _name_server = testing::dns::NameServer::start(address, &[]).await;
    node.dns = std::sync::Arc::new(outbound::dns::Dns::new(Some(address)).unwrap());
    let platform = Client::new(&env, &node);
    let tenant = platform.provision("acme").await;
    let other = platform.provision("other").await;
    let admin = platform.person(tenant, "org_admin", "boss@example.com").await;
    let person = async |role: &'static str, email: &str| platform.person(tenant, role, email).await.client;
    let (billing, agent, user, viewer) = (
        person("billing_admin", "billing@example.com").await,
        person("support_agent", "agent@example.com").await,
        person("user", "user@example.com").await,
        person("viewer", "viewer@example.com").await,
    );
    let nothing: Value = json!({"name": "Nothing", "permissions": []});
    let role = admin.client.post("/v1/roles", nothing).await.field("id").to_owned();
    let bare = platform.person(tenant, "user", "bare@example.com").await;
    admin.client.post(&format!("/v1/users/{}/change-role", bare.id), json!({"role": role})).await;
    let key = |name: &str, scopes: Value| json!({"name": name, "kind": "service", "scopes": scopes});
    let made = admin.client.post("/v1/api-keys", key("narrow", json!(["tenant:read"]))).await;
    let narrow = platform.with_token(Some(made.field("key").to_owned()));
    let gone = admin.client.post("/v1/api-keys", key("gone", json!(["ticket:read"]))).await;
    let revoked_key = platform.with_token(Some(gone.field("key").to_owned()));
    admin.client.post(&format!("/v1/api-keys/{}/revoke", gone.field("id")), json!({})).await;
    let ended = platform.login(tenant, "boss@example.com", PASSWORD).await.unwrap_or_else(|a| panic!("{}", a.text));
    ended.client.post("/v1/auth/logout", json!({})).await;
    let expired = platform.key.sign("x", tenant, Role::OrgAdmin, env.clock.now() - TimeDelta::hours(2), TimeDelta::hours(1)).unwrap();
    let stranger = platform.person(other, "org_admin", "eve@example.com").await;
    let root = platform.person(TenantId::SYSTEM, "super_admin", "root@example.com").await;

    let ticket = agent.post("/v1/tickets", json!({"subject": "x", "body": "x"})).await.field("id").to_owned();
    node.ship_plans().await;
    let subscription = platform.post_for(tenant, "/v1/subscriptions", json!({"plan": "growth"})).await.field("id").to_owned();
    let plan = platform.post("/v1/plans", crate::completeness::example("define_plan")).await.field("id").to_owned();
    let target = platform.register(tenant, "user", "target@example.com").await.to_string();
    let reservation = platform.post_for(tenant, "/v1/quota/reservations", json!({"meter": "messages"})).await.field("id").to_owned();
    let outlet = platform.post_for(tenant, "/v1/outlets", json!({"name": "x"})).await.field("id").to_owned();
    let device = platform.post_for(tenant, "/v1/devices", json!({"serial": "x", "model": "x"})).await;
    platform.post_for(tenant, &format!("/v1/devices/{}/accept", device.field("id")), json!({})).await;
    let itself = platform.with_token(Some(device.field("credential").to_owned()));
    let things: Things = [
        ("tenants", tenant.to_string()),
        ("tickets", ticket),
        ("users", target),
        ("roles", role),
        ("api_keys", made.field("id").to_owned()),
        ("deliveries", id().to_string()),
        ("plans", plan),
        ("subscriptions", subscription),
        ("usages", reservation),
        ("outlets", outlet),
        ("devices", device.field("id").to_owned()),
    ]
    .into();
    eventually("what was revoked has ended", || async {
        (revoked_key.get("/v1/me").await.status == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
    let everybody = Everybody {
        names: vec![
            "no token",
            "expired",
            "ended session",
            "revoked key",
            "key without scope",
            "a device (of itself)",
            "another tenant's admin",
            "no permission",
            "viewer",
            "user",
            "support_agent",
            "billing_admin",
            "org_admin",
            "super_admin",
        ],
        clients: vec![
            platform.with_token(None),
            platform.with_token(Some(expired)),
            ended.client,
            revoked_key,
            narrow,
            itself,
            stranger.client,
            bare.client,
            viewer,
            user,
            agent,
            billing,
            admin.client,
            root.client,
        ],
    };
    node.settled().await;
    let mut table = "# Who is let in where\n\nEvery operation × everybody, as a test has found it with things of the tenant `acme`: `yes`, or the status of the refusal. \"Yes\" is no promise that a \
                     rule will not refuse; `404` means that as far as the caller can see there is nothing. This file is made by the test: `UPDATE_GOLDEN=1` writes it anew.\n\n"
        .to_owned();
    writeln!(table, "| operation | {} |\n|---|{}", everybody.names.join(" | "), "---|".repeat(everybody.names.len())).unwrap();
    let mut rows = BTreeMap::new();
    for (name, operation) in operations() {
        let tag = operation.description["tags"][0].as_str().unwrap();
        let thing = things.get(tag).cloned().unwrap_or_default();
        let mut words = Vec::new();
        for (who, client) in everybody.names.iter().zip(&everybody.clients) {
            // Whoever logs out is let in again, so that the next operation finds them in.
            let client = if name == "logout" { again(&platform, tenant, who, client).await } else { client.clone() };
            // The platform acts for the tenant by naming it.
            let named = (*who == "super_admin" && !["tenants", "plans", "auth", "me"].contains(&tag)).then_some(tenant);
            let answer = call(&client, &operation, &thing, &tenant.to_string(), named).await;
            words.push(word(&answer));
            // Of another tenant's things nobody learns whether they exist; plans are there for everybody.
            if *who == "another tenant's admin" && tag != "plans" && operation.path.contains("{id}") {
                let nowhere = call(&client, &operation, &id().to_string(), &tenant.to_string(), None).await;
                assert_eq!(
                    (answer.status, answer.field("code"), answer.json["data"].clone()),
                    (nowhere.status, nowhere.field("code"), nowhere.json["data"].clone()),
                    "{name} tells of existence"
                );
            }
        }
        rows.insert((operation.path, operation.method.to_string()), words.join(" | "));
    }
    for ((path, method), words) in rows {
        writeln!(table, "| {method} `{path}` | {words} |").unwrap();
    }
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/AUTHORIZATION.md");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &table).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    for (was, is) in golden.lines().zip(table.lines()) {
        assert_eq!(was, is);
    }
    assert_eq!(golden, table);
}

/// Somebody's client, with a session that can be ended.
async fn again(platform: &Client, tenant: TenantId, who: &str, client: &Client) -> Client {
    let login =
        async |tenant, email: &str| -> Person { platform.login(tenant, email, PASSWORD).await.unwrap_or_else(|a| panic!("{}", a.text)) };
    match who {
        "no permission" => login(tenant, "bare@example.com").await.client,
        "viewer" => login(tenant, "viewer@example.com").await.client,
        "user" => login(tenant, "user@example.com").await.client,
        "support_agent" => login(tenant, "agent@example.com").await.client,
        "billing_admin" => login(tenant, "billing@example.com").await.client,
        "org_admin" => login(tenant, "boss@example.com").await.client,
        "super_admin" => login(TenantId::SYSTEM, "root@example.com").await.client,
        "another tenant's admin" => {
            let tenant = client.get("/v1/me").await.field("tenant_id").parse().unwrap();
            login(tenant, "eve@example.com").await.client
        }
        _ => client.clone(),
    }
}
