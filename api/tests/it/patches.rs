//! Merge patches (RFC 7396).

use std::collections::BTreeMap;

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use testing::Env;
use testing::http::Client;
use testing::node::Node;

use crate::completeness::operations;

/// What `null` does to each field of each patch: removes it, or is refused, since the field has to be there.
fn fields() -> BTreeMap<&'static str, Vec<(&'static str, Value, bool)>> {
    BTreeMap::from([
        (
            "update_profile",
            vec![("name", json!("Ada L."), false), ("locale", json!("en-GB"), true), ("time_zone", json!("Europe/Vienna"), true)],
        ),
        ("edit_ticket", vec![("subject", json!("Help"), false)]),
        (
            "update_outlet",
            vec![
                ("name", json!("Vienna"), false),
                ("phone", json!("+4312345678"), true),
                ("whatsapp", json!({"phone_number_id": "1", "account_id": "2", "secret_ref": "vault:x"}), true),
            ],
        ),
        ("update_settings", vec![("time_zone", json!("Europe/Vienna"), true), ("anything", json!(1), true)]),
        ("update_metadata", vec![("room", json!("3.14"), true)]),
        ("set_desired_state", vec![("led", json!("on"), true)]),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn null_removes_what_may_be_absent_and_the_description_says_which_fields_those_are() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let platform = Client::new(&env, &node);
    let tenant = platform.provision("acme").await;
    let admin = platform.person(tenant, "org_admin", "ada@example.com").await;
    let client = &admin.client;
    let id = async |uri: &str, body: Value| client.post(uri, body).await.field("id").to_owned();
    let device = id("/v1/devices", json!({"serial": "A1", "model": "m"})).await;
    client.post(&format!("/v1/devices/{device}/accept"), json!({})).await;
    let ticket = id("/v1/tickets", json!({"subject": "x", "body": "x"})).await;
    let outlet = id("/v1/outlets", json!({"name": "Linz"})).await;
    let ids = BTreeMap::from([
        ("update_profile", (admin.id.to_string(), "")),
        ("edit_ticket", (ticket, "")),
        ("update_outlet", (outlet, "")),
        ("update_settings", (tenant.to_string(), "settings")),
        ("update_metadata", (device.clone(), "metadata")),
        ("set_desired_state", (device, "desired")),
    ]);
    let document = serde_json::to_value(api::routes::openapi()).unwrap();
    let patches: BTreeMap<_, _> = operations().into_iter().filter(|(_, operation)| operation.method == Method::PATCH).collect();
    assert_eq!(patches.keys().map(String::as_str).collect::<Vec<_>>(), fields().keys().copied().collect::<Vec<_>>(), "every patch is here");
    for (name, operation) in patches {
        let (id, place) = &ids[name.as_str()];
        let uri = operation.path.replace("{id}", id);
        let shown = match *place {
            "desired" => uri.replace("/desired-state", "/twin"),
            "" => uri.clone(),
            place => uri.trim_end_matches(&format!("/{place}")).to_owned(),
        };
        let schema = operation.description["requestBody"]["content"]["application/merge-patch+json"]["schema"]["$ref"].as_str().unwrap();
        let schema = document.pointer(schema.trim_start_matches('#')).unwrap();
        let patch = async |body: Value| {
            client.send(Method::PATCH, &uri, &[("content-type", "application/merge-patch+json")], body.to_string()).await
        };
        for (field, value, removable) in &fields()[name.as_str()] {
            let set = patch(json!({*field: value})).await;
            assert_eq!(set.status, StatusCode::OK, "{name} {field}: {}", set.text);
            let removed = patch(json!({*field: null})).await;
            if *removable {
                assert_eq!(removed.status, StatusCode::OK, "{name} {field}: {}", removed.text);
                assert!(removed.json["version"].as_i64() > set.json["version"].as_i64(), "{name} {field}");
                let row = client.get(&format!("{shown}?after={}", removed.json["position"])).await.json;
                let at = if place.is_empty() { &row } else { &row[*place] };
                assert_eq!(at[*field], Value::Null, "{name} {field}: {row}");
                let again = patch(json!({*field: null})).await;
                assert_eq!(
                    (again.status, &again.json["version"]),
                    (StatusCode::OK, &removed.json["version"]),
                    "{name} {field} is gone already"
                );
            } else {
                let pointer = format!("/{field}");
                assert_eq!(
                    (removed.status, removed.json["errors"][0]["pointer"].as_str()),
                    (StatusCode::UNPROCESSABLE_ENTITY, Some(pointer.as_str())),
                    "{name} {field}"
                );
            }
            // A free object describes no field.
            if let Some(described) = schema["properties"].get(*field) {
                let takes_null = described["type"].as_array().is_some_and(|types| types.contains(&json!("null")))
                    || described["oneOf"].as_array().is_some_and(|any| any.contains(&json!({"type": "null"})));
                assert_eq!(takes_null, *removable, "{name} {field} is described as {described}");
                let says = described.to_string();
                assert!(says.contains(if *removable { "`null` removes it" } else { "cannot be `null`" }), "{name} {field}: {described}");
            }
        }
    }
    node.verified().await;
}
