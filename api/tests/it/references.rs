//! What tickets say of users, and what becomes of it when those are gone.

use axum::http::StatusCode;
use domain::Role;
use serde_json::{Value, json};
use testing::http::Client;
use testing::node::Node;
use testing::{Env, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_names_no_user_who_is_unknown_deleted_or_another_tenants() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let platform = Client::new(&env, &node);
    let tenant = platform.provision("acme").await;
    let agent = platform.acting(tenant, Role::SupportAgent);
    let elsewhere = platform.register(platform.provision("other").await, "support_agent", "eve@example.com").await;
    let gone = platform.register(tenant, "support_agent", "gone@example.com").await;
    platform.post_for(tenant, &format!("/v1/users/{gone}/delete"), json!({})).await;
    let here = platform.register(tenant, "support_agent", "ada@example.com").await;
    let open = async |requester: uuid::Uuid| agent.post("/v1/tickets", json!({"subject": "x", "body": "x", "requester": requester})).await;
    let ticket = open(here).await;
    assert_eq!(ticket.status, StatusCode::CREATED, "{}", ticket.text);
    let path = format!("/v1/tickets/{}", ticket.field("id"));
    for nobody in [testing::id(), elsewhere, gone] {
        assert_eq!(open(nobody).await.field("code"), "ticket.no_such_user");
        assert_eq!(agent.post(&format!("{path}/add-follower"), json!({"user": nobody})).await.field("code"), "ticket.no_such_user");
        assert_eq!(agent.post(&format!("{path}/assign"), json!({"assignee": nobody})).await.field("code"), "ticket.not_an_agent");
        let linked = agent.post(&format!("{path}/link"), json!({"ticket": nobody})).await;
        assert_eq!((linked.status, linked.field("code")), (StatusCode::UNPROCESSABLE_ENTITY, "ticket.nothing_to_link"));
    }
    assert_eq!(agent.post(&format!("{path}/add-follower"), json!({"user": here})).await.status, StatusCode::OK);
    // Whoever asked can be erased.
    platform.register(tenant, "org_admin", "boss@example.com").await;
    assert_eq!(platform.post_for(tenant, &format!("/v1/users/{here}/erase"), json!({})).await.status, StatusCode::OK);
    node.settled().await;
    assert_eq!(agent.get(&path).await.json["subject"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tickets_of_an_agent_who_is_deleted_or_deactivated_are_nobodys_and_can_be_assigned_anew() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    node.react().await;
    let platform = Client::new(&env, &node);
    let tenant = platform.provision("acme").await;
    let agent = platform.acting(tenant, Role::SupportAgent);
    platform.register(tenant, "org_admin", "boss@example.com").await;
    for (command, follows) in [("deactivate", true), ("delete", false), ("erase", false)] {
        let grace = platform.register(tenant, "support_agent", &format!("{command}@example.com")).await;
        let mut tickets = Vec::new();
        for n in 0..3 {
            let ticket = agent.post("/v1/tickets", json!({"subject": "x", "body": "x", "requester": grace})).await.field("id").to_owned();
            for (path, body) in [("assign", json!({"assignee": grace})), ("add-follower", json!({"user": grace}))] {
                assert_eq!(agent.post(&format!("/v1/tickets/{ticket}/{path}"), body).await.status, StatusCode::OK);
            }
            if n == 2 {
                agent.post(&format!("/v1/tickets/{ticket}/resolve"), json!({})).await;
                agent.post(&format!("/v1/tickets/{ticket}/close"), json!({})).await;
            }
            tickets.push(ticket);
        }
        let done = platform.post_for(tenant, &format!("/v1/users/{grace}/{command}"), json!({})).await;
        assert_eq!(done.status, StatusCode::OK, "{}", done.text);
        eventually(&format!("{command}: nobody works on them"), || async {
            let listed = agent.get(&format!("/v1/tickets?assignee={grace}")).await;
            (listed.json["data"] == json!([])).then_some(())
        })
        .await;
        node.settled().await;
        for ticket in &tickets {
            let row = agent.get(&format!("/v1/tickets/{ticket}")).await.json;
            assert_eq!(row["assignee_id"], Value::Null, "{command}");
            assert_eq!(row["followers"], if follows { json!([grace]) } else { json!([]) }, "{command}");
        }
        let free = agent.get("/v1/tickets?assignee=none&limit=200").await;
        let free: Vec<&str> = free.json["data"].as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap()).collect();
        assert!(tickets.iter().all(|ticket| free.contains(&ticket.as_str())), "{command}: {free:?}");
        let assigned = agent.post(&format!("/v1/tickets/{}/auto-assign", tickets[0]), json!({})).await;
        assert_eq!(assigned.status, StatusCode::OK, "{command}: {}", assigned.text);
        let shown = agent.get(&format!("/v1/tickets/{}?after={}", tickets[0], assigned.json["position"])).await;
        assert!(shown.json["assignee_id"].is_string() && shown.json["assignee_id"] != json!(grace), "{command}: {}", shown.text);
    }
    node.verified().await;
}
