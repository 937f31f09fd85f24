//! `/v1/tickets`, as agents and requesters see it.

use std::collections::BTreeSet;

use axum::http::{Method, StatusCode};
use domain::{Role, TenantId};
use serde_json::{Value, json};
use testing::http::Client;
use testing::node::Node;
use testing::{Env, id};
use uuid::Uuid;

/// A tenant with somebody who asks for help and somebody who works on tickets.
struct Desk {
    env: Env,
    node: Node,
    platform: Client,
    tenant: TenantId,
    ada: Client,
    ada_id: Uuid,
    agent: Client,
}

impl Desk {
    async fn new() -> Self {
        let env = Env::new().await;
        let node = Node::start(&env).await;
        let platform = Client::new(&env, &node);
        let tenant = platform.provision("acme").await;
        let ada_id = platform.register(tenant, "user", "requester@example.com").await;
        let ada = platform.acting_as(&ada_id.to_string(), tenant, Role::User);
        let agent = platform.acting_as(&id().to_string(), tenant, Role::SupportAgent);
        Self { env, node, platform, tenant, ada, ada_id, agent }
    }

    /// Ada with a new token, once the old one has expired.
    fn ada_again(&self) -> Client {
        self.platform.acting_as(&self.ada_id.to_string(), self.tenant, Role::User)
    }

    /// Somebody else of the tenant.
    fn other(&self, role: Role) -> Client {
        self.platform.acting_as(&id().to_string(), self.tenant, role)
    }

    async fn open(&self, by: &Client, subject: &str, body: &str) -> String {
        let answer = by.post("/v1/tickets", json!({"subject": subject, "body": body})).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
        answer.field("id").to_owned()
    }
}

async fn done(client: &Client, uri: &str, body: Value) -> i64 {
    let answer = client.post(uri, body).await;
    assert!(answer.status.is_success(), "{uri}: {}", answer.text);
    answer.json["version"].as_i64().unwrap()
}

fn ids(list: &Value) -> Vec<String> {
    list["data"].as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_goes_from_opening_through_work_to_closing() {
    let desk = Desk::new().await;
    let (ticket, other) = (desk.open(&desk.ada, "Help", "It is broken.").await, desk.open(&desk.ada, "More help", "Too.").await);
    let base = format!("/v1/tickets/{ticket}");
    let (comment, file) = (id(), id());
    let follower = desk.platform.register(desk.tenant, "support_agent", "grace@example.com").await;
    for (path, body, version) in [
        ("change-status", json!({"status": "open"}), 2),
        ("change-status", json!({"status": "open"}), 2),
        ("assign", json!({"assignee": follower}), 3),
        ("change-priority", json!({"priority": "urgent"}), 4),
        ("tag", json!({"tag": "billing"}), 5),
        ("comments", json!({"id": comment, "body": "Which one?\nThe blue one?"}), 6),
        ("comments", json!({"body": "Odd customer.", "visibility": "internal"}), 7),
        ("attach", json!({"id": file, "name": "log.txt", "size": 12, "sha256": "ab".repeat(32)}), 8),
        ("link", json!({"ticket": other, "relation": "duplicates"}), 9),
        ("add-follower", json!({"user": follower}), 10),
        ("change-status", json!({"status": "pending_customer"}), 11),
        ("resolve", json!({}), 12),
        ("reopen", json!({}), 13),
    ] {
        assert_eq!(done(&desk.agent, &format!("{base}/{path}"), body).await, version, "{path}");
    }
    let merge = [("content-type", "application/merge-patch+json")];
    let edited = desk.ada.send(Method::PATCH, &base, &merge, json!({"subject": "Help, please"}).to_string()).await;
    assert_eq!(edited.status, StatusCode::OK, "{}", edited.text);
    let removed = desk.ada.send(Method::PATCH, &base, &merge, r#"{"subject": null}"#).await;
    assert_eq!(
        (removed.status, &removed.json["errors"][0]["pointer"]),
        (StatusCode::UNPROCESSABLE_ENTITY, &json!("/subject")),
        "{}",
        removed.text
    );
    let shown = desk.agent.get(&format!("{base}?after={}", edited.header("tenure-position"))).await;
    assert!(shown.status == StatusCode::OK && shown.header("etag").starts_with("\"v14."), "{}", shown.text);
    let row = &shown.json;
    assert_eq!((&row["number"], &row["subject"], &row["status"]), (&json!(1), &json!("Help, please"), &json!("open")));
    assert_eq!((&row["priority"], &row["assignee_id"], &row["requester_id"]), (&json!("urgent"), &json!(follower), &json!(desk.ada_id)));
    assert_eq!((&row["tags"], &row["followers"]), (&json!(["billing"]), &json!([follower])));
    assert_eq!(row["links"], json!([{"ticket": other, "relation": "duplicates"}]));
    assert_eq!(row["attachments"][0]["name"], "log.txt");
    assert_eq!((&row["public_comments"], &row["internal_comments"]), (&json!(1), &json!(1)));
    assert!(row["first_response_at"].is_string() && row["resolved_at"].is_null());
    let same = desk.agent.send(Method::GET, &base, &[("if-none-match", shown.header("etag"))], "").await;
    assert_eq!((same.status, same.text.as_str()), (StatusCode::NOT_MODIFIED, ""));

    let thread = desk.agent.get(&format!("{base}/thread?sort=created_at&after={}", edited.header("tenure-position"))).await;
    let said: Vec<&str> = thread.json["data"].as_array().unwrap().iter().map(|entry| entry["body"].as_str().unwrap()).collect();
    assert_eq!(said, ["It is broken.", "Which one?\nThe blue one?", "Odd customer."]);
    let redacted = desk.agent.post(&format!("{base}/redact-comment"), json!({"comment": comment})).await;
    let thread = desk.ada.get(&format!("{base}/thread?after={}", redacted.header("tenure-position"))).await;
    let entry = thread.json["data"].as_array().unwrap().iter().find(|entry| entry["id"] == json!(comment)).unwrap();
    assert!(entry["body"].is_null() && entry["redacted_at"].is_string(), "{entry}");

    for path in ["untag", "detach", "unlink", "remove-follower", "unassign", "resolve", "close"] {
        let body = json!({"untag": {"tag": "billing"}, "detach": {"attachment": file}, "unlink": {"ticket": other}, "remove-follower": {"user": follower}});
        done(&desk.agent, &format!("{base}/{path}"), body[path].as_object().map_or(json!({}), |body| json!(body))).await;
    }
    let refused = desk.agent.post(&format!("{base}/reopen"), json!({})).await;
    assert_eq!((refused.status, refused.field("code")), (StatusCode::CONFLICT, "ticket.cannot_reopen_while_closed"));
    let nothing = desk.agent.post(&format!("/v1/tickets/{other}/link"), json!({"ticket": id()})).await;
    assert_eq!((nothing.status, nothing.field("code")), (StatusCode::UNPROCESSABLE_ENTITY, "ticket.nothing_to_link"));
    let spam = desk.agent.post(&format!("/v1/tickets/{other}/delete"), json!({})).await;
    let listed = desk.agent.get(&format!("/v1/tickets?after={}", spam.header("tenure-position"))).await;
    assert_eq!(ids(&listed.json), [ticket.as_str()], "spam is not listed");
    assert_eq!(ids(&desk.agent.get("/v1/tickets?status=deleted").await.json), [other]);
    let day = desk.agent.get(&format!("/v1/tickets/statistics?after={}", spam.header("tenure-position"))).await.json["data"][0].clone();
    let wanted = json!({"tenant_id": desk.tenant, "day": "2026-01-01", "opened": 2, "first_responses": 1, "resolved": 2, "reopened": 1, "closed": 1, "deleted": 1, "public_comments": 1, "internal_comments": 1});
    assert_eq!(day, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_tickets_opened_by_sixty_four_callers_are_numbered_1_to_500_each_once() {
    let desk = Desk::new().await;
    let next = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let callers: Vec<_> = (0..64)
        .map(|_| {
            let (client, next) = (desk.other(Role::User), next.clone());
            tokio::spawn(async move {
                while next.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < 500 {
                    let opened = client.post("/v1/tickets", json!({"subject": "Help", "body": "Now"})).await;
                    assert_eq!(opened.status, StatusCode::CREATED, "{}", opened.text);
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    desk.node.settled().await;
    let (mut uri, mut numbers) = ("/v1/tickets?limit=200&sort=number".to_owned(), Vec::new());
    loop {
        let page = desk.agent.get(&uri).await;
        numbers.extend(page.json["data"].as_array().unwrap().iter().map(|row| row["number"].as_i64().unwrap()));
        let Some(next) = page.header("link").strip_prefix('<').and_then(|l| l.strip_suffix(">; rel=\"next\"")) else { break };
        next.clone_into(&mut uri);
    }
    assert!(numbers.iter().copied().eq(1..=500), "{numbers:?}");
    // Another tenant counts for itself.
    let elsewhere = desk.platform.acting(desk.platform.provision("other").await, Role::User);
    let opened = elsewhere.post("/v1/tickets", json!({"subject": "Help", "body": "Now"})).await;
    let shown = elsewhere.get(&format!("/v1/tickets/{}?after={}", opened.field("id"), opened.header("tenure-position"))).await;
    assert_eq!(shown.json["number"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn internal_comments_are_in_no_answer_a_requester_can_get() {
    let desk = Desk::new().await;
    let ticket = desk.open(&desk.ada, "Help", "It is broken.").await;
    let base = format!("/v1/tickets/{ticket}");
    done(&desk.agent, &format!("{base}/comments"), json!({"body": "Have you tried turning it off?"})).await;
    desk.node.settled().await;
    let viewer = desk.other(Role::Viewer);
    let questions = [
        "/v1/tickets".to_owned(),
        "/v1/tickets?sort=-updated_at".to_owned(),
        "/v1/tickets?q=zanzibar".to_owned(),
        "/v1/tickets?q=zanzibar.pdf".to_owned(),
        base.clone(),
        format!("{base}/thread"),
        "/v1/tickets/statistics".to_owned(),
    ];
    let ask = |client: Client| {
        let questions = questions.clone();
        async move {
            let mut answers = Vec::new();
            for question in questions {
                let mut answer = client.get(&question).await.json;
                // One for each event, which is told in the interface's description.
                let version = |row: &mut Value| drop(row.as_object_mut().and_then(|row| row.remove("version")));
                version(&mut answer);
                answer["data"].as_array_mut().into_iter().flatten().for_each(version);
                answer.as_object_mut().map(|answer| answer.remove("request_id"));
                answers.push(answer);
            }
            answers
        }
    };
    let (before, seen_before) = (ask(desk.ada.clone()).await, ask(viewer.clone()).await);
    // Another day, for which the tokens of the first are too old.
    desk.env.clock.advance(chrono::TimeDelta::days(1));
    let (ada, viewer) = (desk.ada_again(), desk.other(Role::Viewer));
    let agent = desk.other(Role::SupportAgent);
    for (path, body) in [
        ("comments", json!({"body": "The zanzibar customer again.", "visibility": "internal"})),
        ("attach", json!({"name": "zanzibar.pdf", "size": 1, "sha256": "0".repeat(64), "visibility": "internal"})),
        ("tag", json!({"tag": "zanzibar"})),
        ("add-follower", json!({"user": desk.ada_id})),
    ] {
        done(&agent, &format!("{base}/{path}"), body).await;
    }
    desk.node.settled().await;
    assert_eq!(ask(ada.clone()).await, before, "for the requester nothing has happened");
    assert_eq!(ask(viewer.clone()).await, seen_before, "nor for somebody who only looks");
    // They may not even ask.
    assert_eq!(ada.get("/v1/tickets?tag=zanzibar").await.status, StatusCode::FORBIDDEN);
    assert_eq!(viewer.get("/v1/tickets?tag=zanzibar").await.status, StatusCode::FORBIDDEN);
    assert_eq!(ada.get("/v1/tickets/statistics").await.field("code"), "auth.forbidden");
    // And it is there.
    assert_eq!(ids(&agent.get("/v1/tickets?q=zanzibar").await.json), [ticket]);
    assert!(agent.get(&format!("{base}/thread")).await.text.contains("zanzibar"));
    assert_eq!(agent.get("/v1/tickets/statistics").await.json["data"][0]["internal_comments"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_somebody_else_shows_in_no_version_no_key_and_no_comments_id() {
    let desk = Desk::new().await;
    let ticket = desk.open(&desk.ada, "Help", "Now").await;
    let stranger = desk.other(Role::User);
    let comment = |body: &'static str| json!({"body": body});
    // Whoever may not see it does not learn its version.
    let guess = stranger.post_with(&format!("/v1/tickets/{ticket}/comments"), comment("x"), &[("if-match", "\"v999\"")]).await;
    assert_eq!((guess.status, guess.field("code")), (StatusCode::NOT_FOUND, "ticket.not_found"));
    let stale = desk.ada.post_with(&format!("/v1/tickets/{ticket}/comments"), comment("x"), &[("if-match", "\"v999\"")]).await;
    assert_eq!(stale.status, StatusCode::PRECONDITION_FAILED);
    // Two people with the same words under the same key do not get each other's answers.
    let same = json!({"subject": "Help", "body": "Now"});
    let key = [("idempotency-key", "1")];
    let first = desk.ada.post_with("/v1/tickets", same.clone(), &key).await;
    let second = stranger.post_with("/v1/tickets", same, &key).await;
    assert_eq!((first.status, second.field("code")), (StatusCode::CREATED, "request.idempotency_key_reused"));
    // The opening is no comment, and nothing takes its place.
    let over = desk.ada.post(&format!("/v1/tickets/{ticket}/comments"), json!({"id": ticket, "body": "Nothing."})).await;
    assert_eq!((over.status, over.field("code")), (StatusCode::CONFLICT, "ticket.part_exists"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_of_a_thread_and_of_the_statistics_gives_each_row_exactly_once() {
    let desk = Desk::new().await;
    let ticket = desk.open(&desk.ada, "Help", "0").await;
    let mut agent = desk.agent.clone();
    for n in 1..12 {
        desk.env.clock.advance(chrono::TimeDelta::days(1));
        agent = desk.other(Role::SupportAgent);
        done(&agent, &format!("/v1/tickets/{ticket}/comments"), json!({"body": n.to_string()})).await;
    }
    desk.node.settled().await;
    for (list, field) in [(format!("/v1/tickets/{ticket}/thread"), "body"), ("/v1/tickets/statistics".to_owned(), "day")] {
        let sort = if field == "day" { "day" } else { "created_at" };
        let mut both = Vec::new();
        for sort in [format!("-{sort}"), sort.to_owned()] {
            let (mut uri, mut seen) = (format!("{list}?limit=5&sort={sort}"), Vec::new());
            loop {
                let page = agent.get(&uri).await;
                seen.extend(page.json["data"].as_array().unwrap().iter().map(|row| row[field].as_str().unwrap().to_owned()));
                let Some(next) = page.header("link").strip_prefix('<').and_then(|l| l.strip_suffix(">; rel=\"next\"")) else { break };
                next.clone_into(&mut uri);
            }
            assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), 12, "{list} {sort}: {seen:?}");
            assert_eq!(seen.len(), 12, "{list} {sort}");
            both.push(seen);
        }
        both[0].reverse();
        assert_eq!(both[0], both[1], "{list}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requester_sees_and_changes_only_their_own_tickets_and_no_other_tenants() {
    let desk = Desk::new().await;
    let mine = desk.open(&desk.ada, "Mine", "x").await;
    let theirs = desk.open(&desk.other(Role::User), "Theirs", "y").await;
    desk.node.settled().await;
    assert_eq!(ids(&desk.ada.get("/v1/tickets").await.json), [mine.as_str()]);
    assert_eq!(ids(&desk.ada.get("/v1/tickets?q=theirs").await.json), [""; 0]);
    for uri in [format!("/v1/tickets/{theirs}"), format!("/v1/tickets/{theirs}/thread")] {
        assert_eq!(desk.ada.get(&uri).await.status, StatusCode::NOT_FOUND);
    }
    let answer = desk.ada.post(&format!("/v1/tickets/{theirs}/comments"), json!({"body": "Hello?"})).await;
    assert_eq!((answer.status, answer.field("code")), (StatusCode::NOT_FOUND, "ticket.not_found"));
    let secret = desk.ada.post(&format!("/v1/tickets/{mine}/comments"), json!({"body": "psst", "visibility": "internal"})).await;
    assert_eq!((secret.status, secret.field("code")), (StatusCode::FORBIDDEN, "ticket.agents_only"));
    assert_eq!(desk.ada.post(&format!("/v1/tickets/{mine}/assign"), json!({"assignee": id()})).await.field("code"), "auth.forbidden");
    assert_eq!(desk.other(Role::Viewer).post("/v1/tickets", json!({"subject": "a", "body": "b"})).await.status, StatusCode::FORBIDDEN);
    // Another tenant's agent.
    let stranger = desk.platform.acting(desk.platform.provision("other").await, Role::SupportAgent);
    desk.node.settled().await;
    assert_eq!(ids(&stranger.get("/v1/tickets").await.json), [""; 0]);
    assert_eq!(ids(&stranger.get("/v1/tickets?q=mine").await.json), [""; 0]);
    for uri in [format!("/v1/tickets/{mine}"), format!("/v1/tickets/{mine}/thread")] {
        assert_eq!(stranger.get(&uri).await.status, StatusCode::NOT_FOUND);
    }
    assert_eq!(stranger.post(&format!("/v1/tickets/{mine}/resolve"), json!({})).await.status, StatusCode::NOT_FOUND);
    let link = stranger.post("/v1/tickets", json!({"subject": "a", "body": "b"})).await;
    let link = stranger.post(&format!("/v1/tickets/{}/link", link.field("id")), json!({"ticket": mine})).await;
    assert_eq!(link.field("code"), "ticket.nothing_to_link");
}

#[tokio::test(flavor = "multi_thread")]
async fn tickets_are_found_by_every_filter_and_by_what_is_said_in_them() {
    let desk = Desk::new().await;
    let agent = &desk.agent;
    let assignee = desk.platform.register(desk.tenant, "agent", "grace@example.com").await;
    let first = desk.open(&desk.ada, "Invoice 2041", "The total is wrong, it says 99.").await;
    let second = agent
        .post("/v1/tickets", json!({"subject": "Printer", "body": "Paper jam", "priority": "high", "channel": "phone", "tags": ["hardware"], "requester": desk.ada_id}))
        .await;
    let second = second.field("id").to_owned();
    done(agent, &format!("/v1/tickets/{first}/assign"), json!({"assignee": assignee})).await;
    done(agent, &format!("/v1/tickets/{first}/change-status"), json!({"status": "open"})).await;
    done(agent, &format!("/v1/tickets/{second}/comments"), json!({"body": "Try the wrong tray."})).await;
    desk.node.settled().await;
    for (query, wanted) in [
        ("status=open", vec![&first]),
        ("status=new", vec![&second]),
        ("priority=high", vec![&second]),
        ("channel=phone", vec![&second]),
        ("tag=hardware", vec![&second]),
        ("number=1", vec![&first]),
        ("assignee=none", vec![&second]),
        (&format!("assignee={assignee}"), vec![&first]),
        (&format!("requester={}", desk.ada_id), vec![&second, &first]),
        (&format!("requester={}", id()), vec![]),
        ("created_from=2026-01-01T00:00:00Z&created_to=2026-01-02T00:00:00Z", vec![&second, &first]),
        ("created_to=2026-01-01T00:00:00Z", vec![]),
        ("q=INVOICE", vec![&first]),
        ("q=wrong", vec![&second, &first]),
        ("q=wrong%20-tray", vec![&first]),
        ("q=%22total%20is%20wrong%22", vec![&first]),
        ("q=%22wrong%20total%22", vec![]),
        ("q=tray%20or%20invoice", vec![&second, &first]),
        ("q=%20", vec![]),
        ("q=!", vec![]),
        (&format!("q={}", desk.tenant), vec![]),
        ("q='%20%26%20%7C%20%5C", vec![]),
    ] {
        let answer = agent.get(&format!("/v1/tickets?{query}")).await;
        assert_eq!(answer.status, StatusCode::OK, "{query}: {}", answer.text);
        assert_eq!(ids(&answer.json).iter().collect::<Vec<_>>(), wanted, "{query}");
    }
    for query in ["status=odd", "assignee=x", "number=x", "requester=x", "sort=subject", "created_from=x"] {
        assert_eq!(agent.get(&format!("/v1/tickets?{query}")).await.field("code"), "request.bad_query", "{query}");
    }
    for query in ["from=x", "to=2026-13-01", "from=-99999-01-01"] {
        assert_eq!(agent.get(&format!("/v1/tickets/statistics?{query}")).await.field("code"), "request.bad_query", "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_of_every_sort_gives_each_ticket_exactly_once_also_while_more_are_opened() {
    let desk = Desk::new().await;
    let mut made = BTreeSet::new();
    for n in 0..23 {
        let priority = ["low", "normal", "high", "urgent"][n * 7 % 4];
        let opened = desk.ada.post("/v1/tickets", json!({"subject": "x", "body": "y", "priority": priority})).await;
        made.insert(opened.field("id").to_owned());
        desk.env.clock.advance(chrono::TimeDelta::seconds(i64::try_from(n % 2).unwrap()));
    }
    desk.node.settled().await;
    for reader in [&desk.agent, &desk.ada] {
        for sort in ["-created_at", "created_at", "-updated_at", "updated_at", "-number", "number", "-priority", "priority"] {
            let (mut uri, mut seen) = (format!("/v1/tickets?limit=5&sort={sort}"), Vec::new());
            loop {
                let page = reader.get(&uri).await;
                assert_eq!(page.status, StatusCode::OK, "{uri}: {}", page.text);
                seen.extend(ids(&page.json));
                // Not for ever, or a list in ascending order would never end.
                if seen.len() < 20 {
                    desk.open(&desk.ada, "one more", "z").await;
                    desk.node.settled().await;
                }
                let Some(next) = page.header("link").strip_prefix('<').and_then(|l| l.strip_suffix(">; rel=\"next\"")) else { break };
                next.clone_into(&mut uri);
            }
            for id in &made {
                assert_eq!(seen.iter().filter(|seen| *seen == id).count(), 1, "{sort}");
            }
            let unique: BTreeSet<_> = seen.iter().collect();
            assert_eq!(unique.len(), seen.len(), "{sort}: a row twice");
        }
    }
    let page = desk.agent.get("/v1/tickets?limit=1").await;
    let cursor = page.json["next_cursor"].as_str().unwrap();
    let flip = |at: usize| {
        let mut bytes = cursor.to_owned().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        String::from_utf8(bytes).unwrap()
    };
    for tampered in [flip(0), flip(25), flip(cursor.len() - 2), cursor[..10].to_owned(), "x".into()] {
        let answer = desk.agent.get(&format!("/v1/tickets?limit=1&cursor={tampered}")).await;
        assert_eq!((answer.status, answer.field("code")), (StatusCode::BAD_REQUEST, "request.bad_cursor"), "{tampered}");
    }
    for other in ["sort=number", "status=new", "q=x"] {
        let answer = desk.agent.get(&format!("/v1/tickets?limit=1&{other}&cursor={cursor}")).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "a cursor fits no other list: {other}");
    }
    assert_eq!(desk.ada.get(&format!("/v1/tickets?limit=1&cursor={cursor}")).await.status, StatusCode::BAD_REQUEST, "nor somebody else's");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_deleted_tenants_tickets_said_is_gone_from_every_table_also_from_retired_generations() {
    use projections::rebuild::{Purpose, rebuild};
    use projections::support::ticket::Tickets;
    use projections::support::ticket_thread::Thread;
    let desk = Desk::new().await;
    let ticket = desk.open(&desk.ada, "Quetzalcoatl", "quetzalcoatl flew away").await;
    done(&desk.agent, &format!("/v1/tickets/{ticket}/attach"), json!({"name": "quetzalcoatl.png", "size": 1, "sha256": "0".repeat(64)}))
        .await;
    desk.node.settled().await;
    let pool = desk.env.database.pool(store::DbRole::Projector, 4);
    for built in [
        rebuild::<Tickets>(&desk.node.store, &pool, Purpose::Switch, None, &|_, _| {}).await.unwrap(),
        rebuild::<Thread>(&desk.node.store, &pool, Purpose::Switch, None, &|_, _| {}).await.unwrap(),
    ] {
        assert!(built.switched, "{built:?}");
    }
    let found = || async {
        let mut found = Vec::new();
        for table in ["tickets_v1_g1", "tickets_v1_g2", "ticket_thread_v1_g1", "ticket_thread_v1_g2"] {
            let count: i64 = sqlx::query_scalar(&format!("select count(*) from read.{table} t where t::text ilike '%quetzalcoatl%'"))
                .fetch_one(&desk.env.owner)
                .await
                .unwrap();
            found.push(count);
        }
        found
    };
    assert_eq!(found().await, [1, 1, 1, 1]);
    for path in ["complete-provisioning", "cancel", "delete"] {
        done(&desk.platform, &format!("/v1/tenants/{}/{path}", desk.tenant), json!({})).await;
    }
    desk.node.settled().await;
    assert_eq!(found().await, [0, 0, 0, 0]);
    let built = rebuild::<Tickets>(&desk.node.store, &pool, Purpose::Verify, None, &|_, _| {}).await.unwrap();
    assert_eq!(built.differences, Some(0), "rebuilt = live after an erasure, too: {:?}", built.samples);
}
