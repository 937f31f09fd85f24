//! People: registered, invited, managed, erased; all at once.

use axum::http::{Method, StatusCode};
use chrono::TimeDelta;
use domain::identity::user::User;
use domain::{Role, StreamId, TenantId};
use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream;
use serde_json::{Value, json};
use testing::Env;
use testing::http::{Answer, Client};
use testing::node::Node;
use uuid::Uuid;

use access::links::{self, Purpose};

async fn house() -> (Env, Node, Client, TenantId) {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let platform = Client::new(&env, &node);
    let tenant = platform.provision("acme").await;
    (env, node, platform, tenant)
}

/// What the link in a user's newest invitation ends with.
async fn invitation(node: &Node, platform: &Client, tenant: TenantId, user: Uuid) -> String {
    let stream = StreamId::new(tenant, user);
    let details = platform.access.details(stream).await.unwrap().unwrap();
    links::write(&node.store, Purpose::Invitation, stream, details.invitation.unwrap().token)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_address_registered_32_times_at_once_is_one_user() {
    let (_env, node, platform, tenant) = house().await;
    let admin = platform.acting(tenant, Role::OrgAdmin);
    let all = (0..32).map(|n| {
        let email = if n % 2 == 0 { "ada@example.com" } else { "ADA@Example.COM" };
        let path = if n % 3 == 0 { "/v1/invitations" } else { "/v1/users" };
        admin.post(path, json!({"email": email, "name": "Ada", "role": "user"}))
    });
    let made: Vec<_> = join_all(all).await;
    assert_eq!(made.iter().filter(|answer| answer.status == StatusCode::CREATED).count(), 1);
    // While the first request is being written the address is not taken yet, but a mail to it is counted already.
    let refused = |answer: &Answer| ["user.email_taken", "mail.pause"].contains(&answer.field("code"));
    assert!(made.iter().all(|answer| answer.status == StatusCode::CREATED || refused(answer)));
    let again = admin.post("/v1/users", json!({"email": "ada@example.com", "name": "Ada", "role": "user"})).await;
    assert_eq!((again.status, again.field("code")), (StatusCode::CONFLICT, "user.email_taken"));
    node.settled().await;
    assert_eq!(admin.get("/v1/users").await.json["data"].as_array().unwrap().len(), 1);
    // Gone, the address is free again; in another tenant it always was.
    let id = made.iter().find(|answer| answer.status == StatusCode::CREATED).unwrap().field("id").to_owned();
    assert_eq!(admin.post(&format!("/v1/users/{id}/delete"), json!({})).await.status, StatusCode::OK);
    platform.register(tenant, "user", "ada@example.com").await;
    platform.register(platform.provision("other").await, "user", "ada@example.com").await;
    assert_eq!(node.store.audit(&mut |_| {}).await.unwrap().findings, vec![]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_acceptances_of_one_invitation_are_one_user_with_one_password() {
    let (env, node, platform, tenant) = house().await;
    let admin = platform.acting(tenant, Role::OrgAdmin);
    let nobody = platform.with_token(None);
    for n in 0..8 {
        let email = format!("ada{n}@example.com");
        let user: Uuid = admin.post("/v1/invitations", json!({"email": email, "role": "user"})).await.field("id").parse().unwrap();
        let token = invitation(&node, &platform, tenant, user).await;
        let accept = |password: &'static str| {
            let body = json!({"token": token, "name": "Ada", "password": password});
            let nobody = nobody.clone();
            async move { (password, nobody.post("/v1/auth/accept-invitation", body).await) }
        };
        let passwords = ["violet kettle marmot 71 drift", "umbrella 9 tractor sings"];
        let (one, two) = tokio::join!(accept(passwords[0]), accept(passwords[1]));
        let (won, lost): (Vec<_>, Vec<_>) = [one, two].into_iter().partition(|(_, answer)| answer.status == StatusCode::OK);
        assert_eq!((won.len(), lost[0].1.field("code")), (1, "user.link_not_good"), "{}", lost[0].1.text);
        assert!(platform.login(tenant, &email, won[0].0).await.is_ok());
        assert!(platform.login(tenant, &email, lost[0].0).await.is_err());
    }
    let accepted: i64 = sqlx::query_scalar("select count(*) from events where event_type = 'user.invitation_accepted'")
        .fetch_one(&env.owner)
        .await
        .unwrap();
    let seats: i64 = sqlx::query_scalar("select value from counters where tenant_id = $1 and name = 'users'")
        .bind(tenant.0)
        .fetch_one(&env.owner)
        .await
        .unwrap();
    assert_eq!((accepted, seats), (8, 8));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_org_admins_demoting_each_other_at_once_leave_one_64_times_in_parallel() {
    let (env, node, platform, _) = house().await;
    let rounds = (0..64).map(|n| {
        let platform = platform.clone();
        async move {
            let tenant = platform.provision(&format!("round-{n}")).await;
            let (ada, grace) = (
                platform.register(tenant, "admin", "ada@example.com").await,
                platform.register(tenant, "admin", "grace@example.com").await,
            );
            let demote = |by: Uuid, whom: Uuid| {
                let admin = platform.acting_as(&by.to_string(), tenant, Role::OrgAdmin);
                async move { admin.post(&format!("/v1/users/{whom}/change-role"), json!({"role": "user"})).await }
            };
            let (one, two) = tokio::join!(demote(ada, grace), demote(grace, ada));
            let done = [&one, &two].iter().filter(|answer| answer.status == StatusCode::OK).count();
            let refused = [&one, &two].iter().filter(|answer| answer.field("code") == "user.last_admin").count();
            assert_eq!((done, refused), (1, 1), "{} {}", one.text, two.text);
            // The one who is left goes in no way.
            let left = if one.status == StatusCode::OK { ada } else { grace };
            for way in ["suspend", "deactivate", "delete", "erase"] {
                let answer = platform.post_for(tenant, &format!("/v1/users/{left}/{way}"), json!({"reason": "x"})).await;
                assert!(!answer.status.is_success(), "{way}: {}", answer.text);
            }
        }
    });
    join_all(rounds).await;
    let admins: Vec<i64> =
        sqlx::query_scalar("select value from counters where name = 'active_org_admins'").fetch_all(&env.owner).await.unwrap();
    assert_eq!(admins, vec![1; 64]);
    assert_eq!(node.store.audit(&mut |_| {}).await.unwrap().findings, vec![]);
}

#[tokio::test(flavor = "multi_thread")]
async fn seats_are_counted_and_a_ceiling_once_set_holds_under_64_registrations_at_once() {
    let (env, node, platform, tenant) = house().await;
    let admin = platform.acting(tenant, Role::OrgAdmin);
    let first = platform.register(tenant, "user", "first@example.com").await;
    // As a subscription will set it.
    let stream = StreamId::new(tenant, testing::id());
    let bound = store::NewEvent {
        event_id: testing::id(),
        event_type: "test.bound".into(),
        event_version: "1".into(),
        payload: json!({}),
        effects: vec![domain::Effect::Bound { counter: domain::identity::user::SEATS.into(), floor: None, ceiling: Some(4) }],
    };
    let append = store::Append {
        tenant,
        streams: vec![store::StreamAppend { aggregate: "test", stream, expected: store::Expected::Exact(0), events: vec![bound] }],
        preconditions: vec![],
        keys: vec![],
        metadata: store::Metadata {
            actor: testing::node::system(),
            command_id: testing::id(),
            correlation_id: testing::id(),
            causation_id: None,
            traceparent: None,
            erases: None,
        },
    };
    node.store.append(append).await.unwrap();
    let all = (0..64).map(|n| admin.post("/v1/users", json!({"email": format!("u{n}@example.com"), "name": "U", "role": "user"})));
    let answers = join_all(all).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == StatusCode::CREATED).count(), 3);
    assert!(answers.iter().all(|answer| answer.status == StatusCode::CREATED || answer.field("code") == "quota.exceeded"));
    // Who leaves gives the seat back, and needs one to come back.
    assert_eq!(admin.post(&format!("/v1/users/{first}/deactivate"), json!({})).await.status, StatusCode::OK);
    assert_eq!(
        admin.post("/v1/users", json!({"email": "next@example.com", "name": "N", "role": "user"})).await.status,
        StatusCode::CREATED
    );
    assert_eq!(admin.post(&format!("/v1/users/{first}/reactivate"), json!({})).await.field("code"), "quota.exceeded");
    let seats: i64 = sqlx::query_scalar("select value from counters where tenant_id = $1 and name = 'users'")
        .bind(tenant.0)
        .fetch_one(&env.owner)
        .await
        .unwrap();
    assert_eq!(seats, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invitation_is_resent_declined_revoked_and_expires_and_only_the_newest_link_is_good() {
    let (env, node, platform, tenant) = house().await;
    let admin = platform.acting(tenant, Role::OrgAdmin);
    let nobody = platform.with_token(None);
    let invite = async |email: &str| -> Uuid {
        let answer = admin.post("/v1/invitations", json!({"email": email, "role": "user", "expires_in_hours": 24})).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
        answer.field("id").parse().unwrap()
    };
    let accept = async |token: &str| {
        nobody.post("/v1/auth/accept-invitation", json!({"token": token, "name": "A", "password": "umbrella 9 tractor sings"})).await
    };
    let (resent, declined, revoked, expired) =
        (invite("a@example.com").await, invite("b@example.com").await, invite("c@example.com").await, invite("d@example.com").await);
    let old = invitation(&node, &platform, tenant, resent).await;
    env.clock.advance(TimeDelta::minutes(1));
    admin.post(&format!("/v1/users/{resent}/resend-invitation"), json!({})).await;
    assert_eq!(accept(&old).await.field("code"), "user.link_not_good");
    let new = invitation(&node, &platform, tenant, resent).await;
    // A link for one purpose is good for no other, and one changed character makes it nobody's.
    for path in ["verify-email", "reset-password"] {
        let answer = nobody
            .post(
                &format!("/v1/auth/{path}"),
                if path == "verify-email" { json!({"token": new}) } else { json!({"token": new, "password": "umbrella 9 tractor sings"}) },
            )
            .await;
        assert_eq!(answer.field("code"), "user.link_not_good");
    }
    assert_eq!(
        accept(&format!("{}{}{}", &new[..20], if &new[20..21] == "A" { "B" } else { "A" }, &new[21..])).await.field("code"),
        "user.link_not_good"
    );
    assert_eq!(accept(&new).await.status, StatusCode::OK);
    let token = invitation(&node, &platform, tenant, declined).await;
    assert_eq!(nobody.post("/v1/auth/decline-invitation", json!({"token": token})).await.status, StatusCode::OK);
    assert_eq!(accept(&token).await.field("code"), "user.link_not_good");
    let token = invitation(&node, &platform, tenant, revoked).await;
    assert_eq!(admin.post(&format!("/v1/users/{revoked}/revoke-invitation"), json!({})).await.status, StatusCode::OK);
    assert_eq!(accept(&token).await.field("code"), "user.link_not_good");
    let token = invitation(&node, &platform, tenant, expired).await;
    env.clock.advance(TimeDelta::hours(24));
    assert_eq!(accept(&token).await.field("code"), "user.link_not_good", "before the timer fires, too");
    node.timers().fire_due().await.unwrap();
    node.settled().await;
    let admin = platform.acting(tenant, Role::OrgAdmin);
    let answers: Vec<(String, String)> = admin.get("/v1/invitations?sort=created_at").await.json["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["email"].as_str().unwrap()[..1].to_owned(), row["answer"].as_str().unwrap().to_owned()))
        .collect();
    let expected = [("a", "accepted"), ("b", "declined"), ("c", "revoked"), ("d", "expired")];
    assert_eq!(answers, expected.map(|(email, answer)| (email.to_owned(), answer.to_owned())));
    // All addresses but that of the one who came are free.
    for email in ["b@example.com", "c@example.com", "d@example.com"] {
        assert_eq!(admin.post("/v1/invitations", json!({"email": email, "role": "user"})).await.status, StatusCode::CREATED);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erased_user_is_in_no_table_in_clear_and_the_log_stays_whole() {
    let (env, node, platform, tenant) = house().await;
    platform.register(tenant, "admin", "boss@example.com").await;
    let ada = platform.person(tenant, "user", "ada.lovelace@example.com").await;
    let merge = [("content-type", "application/merge-patch+json")];
    ada.client.send(Method::PATCH, &format!("/v1/users/{}", ada.id), &merge, json!({"name": "Ada Lovelace"}).to_string()).await;
    node.settled().await;
    let admin = platform.acting(tenant, Role::OrgAdmin);
    assert_eq!(admin.get("/v1/users?q=lovelace").await.json["data"].as_array().unwrap().len(), 1);
    assert_eq!(admin.post(&format!("/v1/users/{}/erase", ada.id), json!({})).await.status, StatusCode::OK);
    node.settled().await;
    testing::eventually("she is out", || async { (ada.client.get("/v1/me").await.status == StatusCode::UNAUTHORIZED).then_some(()) }).await;
    let tables: Vec<String> = sqlx::query_scalar(
        "select format('%I.%I', schemaname, tablename) from pg_tables where schemaname not in ('pg_catalog', 'information_schema')",
    )
    .fetch_all(&env.owner)
    .await
    .unwrap();
    for table in tables {
        let rows: Vec<String> = sqlx::query_scalar(&format!("select t::text from {table} t")).fetch_all(&env.owner).await.unwrap();
        assert!(!rows.iter().any(|row| row.to_lowercase().contains("lovelace")), "{table}");
    }
    let shown = admin.get(&format!("/v1/users/{}", ada.id)).await;
    assert_eq!((shown.field("status"), &shown.json["email"], &shown.json["name"]), ("deleted", &Value::Null, &Value::Null));
    assert_eq!(node.store.audit(&mut |_| {}).await.unwrap().findings, vec![]);
    assert!(node.store.reload::<User>(StreamId::new(tenant, ada.id)).await.unwrap().state.details().unwrap().email.known().is_none());
    platform.register(tenant, "user", "ada.lovelace@example.com").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_automatic_assignments_in_parallel_over_ten_agents_differ_by_one_at_most() {
    let (env, node, platform, tenant) = house().await;
    let agents: Vec<Uuid> = join_all((0..10).map(|n| {
        let platform = &platform;
        async move { platform.register(tenant, "agent", &format!("agent{n}@example.com")).await }
    }))
    .await;
    // Those who do not work on tickets, or not now.
    platform.register(tenant, "user", "user@example.com").await;
    let away = platform.register(tenant, "agent", "away@example.com").await;
    platform.post_for(tenant, &format!("/v1/users/{away}/suspend"), json!({"reason": "holiday"})).await;
    let agent = platform.acting(tenant, Role::SupportAgent);
    let open = (0..1000).map(|n| {
        let agent = agent.clone();
        async move { agent.post("/v1/tickets", json!({"subject": format!("{n}"), "body": "x"})).await.field("id").to_owned() }
    });
    let tickets = join_all(open).await;
    let assign = tickets.iter().map(|ticket| {
        let agent = &agent;
        async move { agent.post(&format!("/v1/tickets/{ticket}/auto-assign"), json!({})).await }
    });
    // As many at a time as are answered in time on a slow machine.
    let mut answers = stream::iter(assign).buffer_unordered(250);
    while let Some(answer) = answers.next().await {
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    }
    let loads = async || -> Vec<(String, i64)> {
        sqlx::query_as("select payload ->> 'to', count(*) from events where event_type = 'ticket.assigned' group by 1")
            .fetch_all(&env.owner)
            .await
            .unwrap()
    };
    let loads = loads().await;
    assert_eq!(loads.len(), 10);
    assert!(loads.iter().all(|(to, load)| *load == 100 && agents.contains(&to.parse().unwrap())), "{loads:?}");
    // Nobody is assigned who is suspended in this moment.
    let assigned = agent.post(&format!("/v1/tickets/{}/assign", tickets[0]), json!({"assignee": away})).await;
    assert_eq!(assigned.field("code"), "ticket.not_an_agent");
    assert_eq!(node.store.audit(&mut |_| {}).await.unwrap().findings, vec![]);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_suspended_at_the_moment_of_the_append_is_not_assigned() {
    let (env, node, platform, tenant) = house().await;
    let agent = platform.acting(tenant, Role::SupportAgent);
    for round in 0..20 {
        let grace = platform.register(tenant, "agent", &format!("grace{round}@example.com")).await;
        let ticket = agent.post("/v1/tickets", json!({"subject": "x", "body": "x"})).await.field("id").to_owned();
        let (assign, suspend) = (format!("/v1/tickets/{ticket}/assign"), format!("/v1/users/{grace}/suspend"));
        let (assigned, suspended) =
            tokio::join!(agent.post(&assign, json!({"assignee": grace})), platform.post_for(tenant, &suspend, json!({"reason": "x"})));
        assert_eq!(suspended.status, StatusCode::OK);
        // Both may be done, in this order only.
        if assigned.status == StatusCode::OK {
            assert!(assigned.json["position"].as_i64() < suspended.json["position"].as_i64());
        } else {
            assert_eq!(assigned.field("code"), "ticket.not_an_agent");
        }
    }
    drop((env, node));
}
