//! What the log knows of a person: for whoever has to show that nothing of it is left.

use domain::personal::PERSONAL;
use domain::{SubjectId, TenantId};
use serde_json::Value;

use crate::load::LoadError;
use crate::read::Filter;
use crate::{Store, seal};

/// Events at a time.
const PAGE: i64 = 500;

impl Store {
    /// The texts that the log has of a person, unsealed, each once and in the order in which they came; nothing of somebody who was erased.
    pub async fn personal_texts(&self, tenant: TenantId, subject: SubjectId) -> Result<Vec<String>, LoadError> {
        let filter = Filter { tenant: Some(tenant.0), ..Filter::default() };
        let (mut after, mut texts, id) = (0, Vec::new(), subject.to_string());
        loop {
            let page = self.list(after, PAGE, &filter).await?;
            let Some(last) = page.last() else { return Ok(texts) };
            after = last.position;
            for event in page.iter().filter(|event| event.payload.contains(&id)) {
                let corrupt =
                    |error: serde_json::Error| LoadError::Corrupt { event_type: event.event_type.clone(), reason: error.to_string() };
                let mut payload: Value = serde_json::from_str(&event.payload).map_err(corrupt)?;
                self.inner.keyring.unseal([(event.place(), &mut payload)]).await?;
                seal::marked(&mut payload, PERSONAL, &mut |_, map| {
                    if map[PERSONAL]["subject"].as_str() == Some(&id) {
                        collect(&map[PERSONAL]["value"], &mut texts);
                    }
                });
            }
        }
    }
}

fn collect(value: &Value, texts: &mut Vec<String>) {
    match value {
        Value::String(text) if !texts.contains(text) => texts.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| collect(item, texts)),
        Value::Object(map) => map.values().for_each(|value| collect(value, texts)),
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
