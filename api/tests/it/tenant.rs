//! `/v1/tenants`, as a client sees it.

use api::Limits;
use axum::http::{Method, StatusCode};
use domain::Role;
use serde_json::json;
use testing::http::Client;
use testing::node::Node;
use testing::{Env, id};

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_goes_from_creation_through_edits_to_deletion() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    node.ship_plans().await;
    let client = Client::new(&env, &node);
    let chosen = id();
    let made = client
        .post(
            "/v1/tenants",
            json!({"id": chosen, "slug": "acme", "name": "Acme", "plan": "growth", "owner": {"email": "ada@example.com", "name": "Ada"}}),
        )
        .await;
    assert_eq!(
        (made.status, made.header("location"), made.header("etag")),
        (StatusCode::CREATED, format!("/v1/tenants/{chosen}").as_str(), "\"v1\"")
    );
    assert_eq!((made.field("id"), made.header("tenure-position")), (chosen.to_string().as_str(), "4"), "after the three plans");
    let base = format!("/v1/tenants/{chosen}");
    for (path, body, version) in [
        ("complete-provisioning", json!({"trialing": true}), 2),
        ("rename", json!({"name": "Acme AG"}), 3),
        ("rename", json!({"name": "Acme AG"}), 3),
        ("change-slug", json!({"slug": "acme-ag"}), 4),
        ("set-llm-config", json!({"provider": "openai", "model": "gpt-4o", "secret_ref": "vault:llm/acme"}), 5),
        ("set-branding", json!({"primary_color": "#0A7CFF"}), 6),
        ("suspend", json!({"reason": "unpaid"}), 7),
        ("reactivate", json!({}), 8),
        ("freeze", json!({}), 9),
    ] {
        let done = client.post(&format!("{base}/{path}"), body).await;
        assert_eq!((done.status, done.json["version"].as_i64()), (StatusCode::OK, Some(version)), "{path}: {}", done.text);
    }
    let refused = client.post(&format!("{base}/rename"), json!({"name": "No"})).await;
    assert_eq!((refused.status, refused.field("code")), (StatusCode::CONFLICT, "tenant.cannot_rename_while_frozen"));
    client.post(&format!("{base}/reactivate"), json!({})).await;
    let merge = [("content-type", "application/merge-patch+json")];
    client.send(Method::PATCH, &format!("{base}/settings"), &merge, json!({"a": 1, "b": {"c": 2}}).to_string()).await;
    let done = client.send(Method::PATCH, &format!("{base}/settings"), &merge, json!({"a": null, "b": {"d": 3}}).to_string()).await;
    let shown = client.get(&format!("{base}?after={}", done.header("tenure-position"))).await;
    assert!(shown.status == StatusCode::OK && shown.header("etag").starts_with("\"v12."), "{}", shown.text);
    assert_eq!(shown.json["settings"], json!({"b": {"c": 2, "d": 3}}));
    assert_eq!((shown.field("slug"), &shown.json["aliases"], shown.field("status")), ("acme-ag", &json!(["acme"]), "active"));
    assert!(!shown.text.contains("ada@"), "personal data is not in the read model");
    let same = client.send(Method::GET, &base, &[("if-none-match", shown.header("etag"))], "").await;
    assert_eq!((same.status, same.text.as_str()), (StatusCode::NOT_MODIFIED, ""));
    client.post(&format!("{base}/deactivate"), json!({})).await;
    let gone = client.post(&format!("{base}/delete"), json!({})).await;
    assert_eq!(gone.status, StatusCode::OK);
    let listed = client.get(&format!("/v1/tenants?after={}", gone.header("tenure-position"))).await;
    assert_eq!(listed.json["data"], json!([]));
    let timeline = client.get(&format!("{base}/timeline?limit=200&after={}", gone.header("tenure-position"))).await;
    assert_eq!(timeline.json["data"].as_array().unwrap().len(), 14);
    assert_eq!(timeline.json["data"][0]["event"], "tenant.deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_with_after_right_after_a_command_always_sees_it() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let client = Client::new(&env, &node);
    let tenant = client.provision("acme").await;
    for n in 0..50 {
        let done = client.post(&format!("/v1/tenants/{tenant}/rename"), json!({"name": format!("n{n}")})).await;
        let shown = client.get(&format!("/v1/tenants/{tenant}?after={}", done.header("tenure-position"))).await;
        assert_eq!(shown.field("name"), format!("n{n}"), "{}", shown.text);
    }
    let early = client.get("/v1/tenants?after=1000000").await;
    assert_eq!((early.status, early.field("code")), (StatusCode::BAD_REQUEST, "request.bad_query"), "nobody can have been told of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_idempotency_key_from_32_connections_at_once_has_one_effect_and_one_answer() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let client = Client::new(&env, &node);
    let key = [("idempotency-key", "k-1")];
    let tasks: Vec<_> = (0..32)
        .map(|n| {
            let client = client.clone();
            // The same request, however it is written.
            let body = if n % 2 == 0 { r#"{"slug":"acme","name":"Acme"}"# } else { r#"{ "name": "Acme", "slug": "acme" }"# };
            tokio::spawn(
                async move { client.send(Method::POST, "/v1/tenants", &[key[0], ("content-type", "application/json")], body).await },
            )
        })
        .collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    assert!(
        answers
            .iter()
            .all(|a| a.status == StatusCode::CREATED && a.json == answers[0].json && a.header("location") == answers[0].header("location")),
        "{answers:#?}"
    );
    assert_eq!(answers.iter().filter(|a| a.header("idempotent-replayed") != "true").count(), 1);
    assert_eq!(node.store.head().await.unwrap().position, 1);
    let other = client.post_with("/v1/tenants", json!({"slug": "acme", "name": "Other"}), &key).await;
    assert_eq!((other.status, other.field("code")), (StatusCode::UNPROCESSABLE_ENTITY, "request.idempotency_key_reused"));
    // On another route the key is another key.
    let tenant = answers[0].field("id");
    let renamed = client.post_with(&format!("/v1/tenants/{tenant}/rename"), json!({"name": "Other"}), &key).await;
    assert_eq!((renamed.status, renamed.header("idempotent-replayed")), (StatusCode::OK, ""));
    // A retry after a lost answer, when everything has changed since.
    client.post(&format!("/v1/tenants/{tenant}/rename"), json!({"name": "Third"})).await;
    let again = client.post_with(&format!("/v1/tenants/{tenant}/rename"), json!({"name": "Other"}), &key).await;
    assert_eq!((&again.json, again.header("idempotent-replayed")), (&renamed.json, "true"));
}

#[tokio::test(flavor = "multi_thread")]
async fn if_match_with_another_version_is_412_and_tells_the_current_one() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let client = Client::new(&env, &node);
    let path = format!("/v1/tenants/{}/rename", client.provision("acme").await);
    let stale = client.post_with(&path, json!({"name": "Two"}), &[("if-match", "\"v7\"")]).await;
    assert_eq!((stale.status, stale.json["current_version"].as_i64()), (StatusCode::PRECONDITION_FAILED, Some(1)));
    let fresh = client.post_with(&path, json!({"name": "Two"}), &[("if-match", "\"v1\"")]).await;
    assert_eq!((fresh.status, fresh.header("etag")), (StatusCode::OK, "\"v2\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_tenants_id_in_any_path_body_filter_header_or_cursor_finds_nothing() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let platform = Client::new(&env, &node);
    let (mine, theirs) = (platform.provision("mine").await, platform.provision("theirs").await);
    platform.provision("third").await;
    node.settled().await;
    let me = platform.acting(mine, Role::OrgAdmin);
    assert_eq!(me.get(&format!("/v1/tenants/{mine}")).await.status, StatusCode::OK);
    let paths = ["rename", "change-slug", "set-branding", "cancel", "freeze", "delete"];
    for path in paths {
        let answer = me.post(&format!("/v1/tenants/{theirs}/{path}"), json!({"name": "x", "slug": "stolen"})).await;
        assert!(matches!(answer.status, StatusCode::NOT_FOUND | StatusCode::UNPROCESSABLE_ENTITY), "{path}: {}", answer.text);
    }
    assert_eq!(me.post(&format!("/v1/tenants/{theirs}/rename"), json!({"name": "x"})).await.status, StatusCode::NOT_FOUND);
    assert_eq!(me.get(&format!("/v1/tenants/{theirs}")).await.status, StatusCode::NOT_FOUND);
    assert_eq!(me.get(&format!("/v1/tenants/{theirs}/timeline")).await.status, StatusCode::NOT_FOUND);
    let named = [("tenure-tenant", mine.to_string())];
    let named = [(named[0].0, named[0].1.as_str())];
    assert_eq!(
        platform.post_with(&format!("/v1/tenants/{theirs}/rename"), json!({"name": "x"}), &named).await.status,
        StatusCode::NOT_FOUND
    );
    for filter in ["slug=theirs", "q=theirs"] {
        assert_eq!(me.get(&format!("/v1/tenants?{filter}")).await.json["data"], json!([]), "{filter}");
    }
    assert_eq!(me.get("/v1/tenants").await.json["data"].as_array().unwrap().len(), 1);
    assert_eq!(me.send(Method::GET, "/v1/tenants", &[("tenure-tenant", &theirs.to_string())], "").await.status, StatusCode::NOT_FOUND);
    // A cursor of the platform's own list, properly signed, still shows only one's own rows.
    let cursor = platform.get("/v1/tenants?limit=1").await.json["next_cursor"].as_str().unwrap().to_owned();
    let page = me.get(&format!("/v1/tenants?limit=1&cursor={cursor}")).await;
    assert!(page.json["data"].as_array().unwrap().iter().all(|row| row["id"] == mine.to_string()), "{}", page.text);
    // Making a tenant with somebody else's id is for the platform, and even then refused.
    assert_eq!(me.post("/v1/tenants", json!({"id": theirs, "slug": "stolen", "name": "x"})).await.status, StatusCode::FORBIDDEN);
    assert_eq!(
        platform.post("/v1/tenants", json!({"id": theirs, "slug": "stolen", "name": "x"})).await.field("code"),
        "tenant.already_exists"
    );
    let written: i64 =
        sqlx::query_scalar("select count(*) from events where aggregate_type <> 'access_record'").fetch_one(&env.owner).await.unwrap();
    assert_eq!(written, 3, "nothing was written but what was refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_super_admin_who_names_a_tenant_sees_that_tenant_only() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let platform = Client::new(&env, &node);
    let tenant = platform.provision("one").await;
    platform.provision("two").await;
    node.settled().await;
    assert_eq!(platform.get("/v1/tenants").await.json["data"].as_array().unwrap().len(), 2);
    let named = platform.send(Method::GET, "/v1/tenants", &[("tenure-tenant", &tenant.to_string())], "").await;
    assert_eq!(named.json["data"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_of_a_list_links_to_the_next_and_gives_each_row_once() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let client = Client::new(&env, &node);
    for n in 0..7 {
        client.provision(&format!("tenant-{n}")).await;
    }
    node.settled().await;
    let (mut uri, mut seen) = ("/v1/tenants?limit=3&sort=name".to_owned(), Vec::new());
    loop {
        let page = client.get(&uri).await;
        seen.extend(page.json["data"].as_array().unwrap().iter().map(|row| row["slug"].as_str().unwrap().to_owned()));
        let link = page.header("link");
        assert_eq!(link.is_empty(), page.json["next_cursor"].is_null());
        let Some(next) = link.strip_prefix('<').and_then(|l| l.strip_suffix(">; rel=\"next\"")) else { break };
        next.clone_into(&mut uri);
    }
    assert_eq!(seen, (0..7).map(|n| format!("tenant-{n}")).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn past_its_bounds_the_interface_answers_503_with_retry_after_and_loses_nothing() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let client = Client::with_limits(&env, &node, Limits { concurrent_requests: 2, ..Limits::default() });
    // Nothing is written while this is held, so requests pile up.
    let mut blocker = store::database::begin(&env.owner).await.unwrap();
    sqlx::query("select 1 from log_head for update").execute(&mut *blocker).await.unwrap();
    let tasks: Vec<_> = (0..20)
        .map(|n| {
            let client = client.clone();
            tokio::spawn(async move { client.post("/v1/tenants", json!({"slug": format!("tenant-{n}"), "name": "x"})).await })
        })
        .collect();
    let shed = testing::eventually("some are refused", || async { (tasks.iter().filter(|t| t.is_finished()).count() >= 18).then_some(()) });
    shed.await;
    assert_eq!(client.get("/livez").await.status, StatusCode::OK, "operators are never refused");
    blocker.rollback().await.unwrap();
    let mut made = 0;
    for task in tasks {
        let answer = task.await.unwrap();
        match answer.status {
            StatusCode::CREATED => made += 1,
            StatusCode::SERVICE_UNAVAILABLE => assert_eq!((answer.field("code"), answer.header("retry-after")), ("overloaded", "1")),
            other => panic!("{other}: {}", answer.text),
        }
    }
    assert_eq!(made, 2);
    assert_eq!(node.store.head().await.unwrap().position, 2, "what was refused is not there, what was acknowledged is");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_and_the_request_can_be_followed_into_the_log() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let client = Client::new(&env, &node);
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let made = client
        .post_with("/v1/tenants", json!({"slug": "acme", "name": "x"}), &[("traceparent", trace), ("x-request-id", "my-request")])
        .await;
    assert_eq!(made.header("x-request-id"), "my-request");
    let event = node.store.at(1).await.unwrap().unwrap();
    assert!(event.metadata.contains(trace) && event.metadata.contains("\"tester\""), "{}", event.metadata);
    assert!(!client.get("/v1/tenants").await.header("x-request-id").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_value_is_found_in_clear_in_no_table_and_no_message() {
    use futures::StreamExt as _;
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let client = Client::new(&env, &node);
    let owner = json!({"email": "ada.lovelace@example.com", "name": "Ada Lovelace"});
    client.post_with("/v1/tenants", json!({"slug": "acme", "name": "Acme", "owner": owner}), &[("idempotency-key", "k")]).await;
    node.settled().await;
    let found = |text: &str| text.to_lowercase().contains("lovelace");
    let tables: Vec<String> = sqlx::query_scalar(
        "select format('%I.%I', schemaname, tablename) from pg_tables where schemaname not in ('pg_catalog', 'information_schema')",
    )
    .fetch_all(&env.owner)
    .await
    .unwrap();
    assert!(tables.contains(&"read.tenants_v1_g1".to_owned()) && tables.contains(&"ops.idempotency_keys".to_owned()), "{tables:?}");
    for table in tables {
        let rows: Vec<String> = sqlx::query_scalar(&format!("select t::text from {table} t")).fetch_all(&env.owner).await.unwrap();
        assert!(!rows.iter().any(|row| found(row)), "{table}");
    }
    let consumer = async_nats::jetstream::consumer::pull::OrderedConfig::default();
    let mut messages = node.bus.stream().await.unwrap().create_consumer(consumer).await.unwrap().messages().await.unwrap();
    let message = messages.next().await.unwrap().unwrap();
    assert!(!found(&String::from_utf8_lossy(&message.payload)) && !found(&format!("{:?} {}", message.headers, message.subject)));
}
