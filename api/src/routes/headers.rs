//! Describes the headers that all operations of a kind have: they come from the extractors, so no route has to name them.

use serde_json::{Map, Value, json};
use utoipa::Modify;
use utoipa::openapi::OpenApi;

/// Fills in the headers.
pub(super) struct Headers;

impl Modify for Headers {
    fn modify(&self, openapi: &mut OpenApi) {
        let Ok(mut document) = serde_json::to_value(&*openapi) else { return };
        for (_, operations) in document["paths"].as_object_mut().into_iter().flatten().filter(|(path, _)| path.starts_with("/v1/")) {
            for (method, operation) in operations.as_object_mut().into_iter().flatten() {
                describe(method, operation);
            }
        }
        if let Ok(filled) = serde_json::from_value(document) {
            *openapi = filled;
        }
    }
}

/// Operations that take no `Idempotency-Key`, each with the reason.
pub const UNREPEATABLE: [(&str, &str); 11] = [
    ("login", "each login is a session of its own; one whose answer was lost ends by itself"),
    ("refresh", "a refresh token is itself good once, and asked again within 10 s it gets the same answer"),
    ("logout", "ends the session of the token that it is sent with; what is ended stays so"),
    ("switch_tenant", "each switch is a session of its own"),
    ("revoke", "what is ended stays so (RFC 7009)"),
    ("introspect", "asks"),
    ("check_permissions", "asks"),
    ("preview_change", "asks"),
    ("request_password_reset", "within 10 minutes no second link is sent, and the answer is always the same"),
    ("send_heartbeat", "nothing of it stands in the log"),
    ("take_in_provider_event", "the provider's own id of the event counts once"),
];

fn describe(method: &str, operation: &mut Value) {
    let query = method == "get";
    let id = operation["operationId"].as_str().unwrap_or_default().trim_start_matches("admin_").to_owned();
    let repeatable = !query && !UNREPEATABLE.iter().any(|(name, _)| *name == id);
    // What has to do with secrets, with one's own session and with others' servers is neither an aggregate's command nor a list: it has no version.
    let many = ["record_usage", "check_quota", "get_quota_status", "preregister_devices", "claim_device", "send_heartbeat"];
    let apart = matches!(operation["tags"][0].as_str(), Some("auth" | "me" | "deliveries" | "providers"))
        || id.ends_with("_sessions")
        || matches!(id.as_str(), "preview_change" | "set_up_payment")
        || many.contains(&id.as_str());
    let (mut asks, mut answers) = (vec![], vec![]);
    if repeatable {
        asks.push(("Idempotency-Key", "The same key and request get the first answer again, for at least 35 days."));
        answers.push(("Idempotent-Replayed", "`true` when this is the first answer again."));
    }
    if !apart {
        versioned(query, operation, &mut asks, &mut answers);
    }
    if asks.is_empty() && answers.is_empty() {
        return;
    }
    let parameters = asks
        .into_iter()
        .map(|(name, what)| json!({"name": name, "in": "header", "required": false, "description": what, "schema": {"type": "string"}}));
    match operation.get_mut("parameters").and_then(Value::as_array_mut) {
        Some(has) => has.extend(parameters),
        None => operation["parameters"] = parameters.collect(),
    }
    for (_, response) in operation["responses"].as_object_mut().into_iter().flatten().filter(|(status, _)| status.starts_with('2')) {
        let headers: Map<String, Value> =
            answers.iter().map(|(name, what)| ((*name).to_owned(), json!({"description": what, "schema": {"type": "string"}}))).collect();
        response["headers"] = Value::Object(headers);
    }
}

/// Headers, each with what it says.
type Named = Vec<(&'static str, &'static str)>;

fn versioned(query: bool, operation: &Value, asks: &mut Named, answers: &mut Named) {
    let single = operation["responses"].get("304").is_some();
    asks.push(("Tenure-Tenant", "For which tenant a platform super_admin acts."));
    answers.push(("Tenure-Position", "What the answer reflects: everything up to this position."));
    if query {
        answers.push(("Tenure-Parked", "Where something that could not be folded holds up a part of the answer: from this position on."));
    } else {
        asks.push(("If-Match", "Entity tags that the caller has seen, such as `\"v3\"`; 412 when none of them names the current version."));
    }
    if single {
        answers.push(("ETag", "The tag of what is shown, such as `\"v3.9f86d081884c7d65\"`; `If-Match` reads its version."));
    } else if query {
        answers.push(("Link", "The next page, `rel=\"next\"`, if there is one."));
    } else {
        answers.push(("ETag", "The version, such as `\"v3\"`."));
    }
    if single {
        asks.push(("If-None-Match", "Entity tags of what the caller has; 304 when one of them is that of what would be shown."));
    }
    if operation["responses"].get("201").is_some() {
        answers.push(("Location", "Where it is, under this path."));
    }
}
