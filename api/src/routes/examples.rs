//! Gives every operation of the description an example of each body and each path parameter, made from the schemas: a schema's own example where it has one, else one of
//! its parts'. A test sends them.

use serde_json::{Map, Value, json};
use utoipa::Modify;
use utoipa::openapi::OpenApi;

/// Fills in the examples.
pub(super) struct Examples;

impl Modify for Examples {
    fn modify(&self, openapi: &mut OpenApi) {
        let Ok(mut document) = serde_json::to_value(&*openapi) else { return };
        let schemas = document["components"]["schemas"].clone();
        for operation in document["paths"].as_object_mut().into_iter().flat_map(Map::values_mut).flat_map(operations) {
            for parameter in operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten() {
                if parameter["in"] == "path" {
                    parameter["example"] = of(&parameter["schema"], &schemas);
                }
            }
            let (mut bodies, responses): (Vec<_>, _) = match operation {
                Value::Object(operation) => {
                    let mut parts = (None, None);
                    for (name, part) in operation {
                        match name.as_str() {
                            "requestBody" => parts.0 = Some(part),
                            "responses" => parts.1 = Some(part),
                            _ => {}
                        }
                    }
                    (parts.0.into_iter().collect(), parts.1)
                }
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => continue,
            };
            bodies.extend(responses.and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut));
            for content in bodies.into_iter().filter_map(|body| body.get_mut("content")?.as_object_mut()).flat_map(Map::values_mut) {
                if content.get("schema").is_some() && content.get("example").is_none() {
                    content["example"] = of(&content["schema"], &schemas);
                }
            }
        }
        if let Ok(filled) = serde_json::from_value(document) {
            *openapi = filled;
        }
    }
}

fn operations(path: &mut Value) -> impl Iterator<Item = &mut Value> {
    path.as_object_mut().into_iter().flat_map(Map::values_mut)
}

/// An example of a schema.
fn of(schema: &Value, schemas: &Value) -> Value {
    let own =
        schema.get("example").or_else(|| schema["examples"].get(0)).or_else(|| schema.get("default")).or_else(|| schema["enum"].get(0));
    if let Some(example) = own {
        return example.clone();
    }
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        return of(&schemas[name], schemas);
    }
    if let Some(parts) = schema["allOf"].as_array().filter(|parts| parts.len() > 1) {
        // What is flattened into one object.
        let parts: Vec<Value> = parts.iter().map(|part| of(part, schemas)).collect();
        if parts.iter().all(Value::is_object) {
            return Value::Object(
                parts.iter().filter_map(Value::as_object).flatten().map(|(name, field)| (name.clone(), field.clone())).collect(),
            );
        }
    }
    let one_of = schema["oneOf"].as_array().or_else(|| schema["anyOf"].as_array()).or_else(|| schema["allOf"].as_array());
    if let Some(first) = one_of.and_then(|all| all.iter().find(|one| one["type"] != "null")) {
        return of(first, schemas);
    }
    let kind = schema["type"].as_str().or_else(|| schema["type"].as_array()?.iter().filter_map(Value::as_str).find(|kind| *kind != "null"));
    match (kind, schema["format"].as_str()) {
        (Some("object"), _) => {
            let fields = schema["properties"].as_object().into_iter().flatten();
            Value::Object(fields.map(|(name, field)| (name.clone(), of(field, schemas))).collect())
        }
        (Some("array"), _) => json!([of(&schema["items"], schemas)]),
        (Some("string"), Some("uuid")) => json!("01900000-0000-7000-8000-000000000001"),
        (Some("string"), Some("date-time")) => json!("2026-01-01T09:00:00Z"),
        (Some("string"), Some("date")) => json!("2026-01-01"),
        (Some("string"), _) => json!("text"),
        (Some("integer" | "number"), _) => schema.get("minimum").cloned().unwrap_or(json!(1)),
        (Some("boolean"), _) => json!(false),
        _ => Value::Null,
    }
}
