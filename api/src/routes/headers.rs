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

fn describe(method: &str, operation: &mut Value) {
    let query = method == "get";
    // What has to do with secrets, with one's own session and with others' servers is neither an aggregate's command nor a list.
    let apart = |id: &str| {
        id.ends_with("_sessions") || {
            // What is recorded has its own ids, and what answers for many things at once no version.
            let many = ["record_usage", "check_quota", "get_quota_status", "preregister_devices", "claim_device", "send_heartbeat"];
            matches!(id, "preview_change" | "set_up_payment") || many.contains(&id.trim_start_matches("admin_"))
        }
    };
    if matches!(operation["tags"][0].as_str(), Some("auth" | "me" | "deliveries" | "providers"))
        || operation["operationId"].as_str().is_some_and(apart)
    {
        return;
    }
    let single = operation["responses"].get("304").is_some();
    let mut asks = vec![("Tenure-Tenant", "For which tenant a platform super_admin acts.")];
    let mut answers = vec![("Tenure-Position", "What the answer reflects: everything up to this position.")];
    if query {
        answers.push(("Tenure-Parked", "Where something that could not be folded holds up a part of the answer: from this position on."));
    } else {
        asks.push(("Idempotency-Key", "The same key and request get the first answer again, for at least 35 days."));
        asks.push(("If-Match", "The version that the caller has seen, such as `\"v3\"`; 412 when it is not the current one."));
        answers.push(("Idempotent-Replayed", "`true` when this is the first answer again."));
    }
    if single || !query {
        answers.push(("ETag", "The version, such as `\"v3\"`."));
    } else {
        answers.push(("Link", "The next page, `rel=\"next\"`, if there is one."));
    }
    if single {
        asks.push(("If-None-Match", "Versions that the caller has; 304 when one of them is the current one."));
    }
    if operation["responses"].get("201").is_some() {
        answers.push(("Location", "Where it is, under this path."));
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
