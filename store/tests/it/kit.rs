//! Short ways to say what a test appends.

use domain::{Actor, Effect, Precondition, StreamId, TenantId};
use serde_json::{Value, json};
use store::{Append, AppendError, Appended, Expected, Key, Metadata, NewEvent, Store, StreamAppend};
use testing::{Env, id};

pub fn metadata() -> Metadata {
    Metadata {
        actor: Actor::System { name: "test".into() },
        command_id: id(),
        correlation_id: id(),
        causation_id: None,
        traceparent: None,
        erases: None,
    }
}

pub fn event(effects: Vec<Effect>) -> NewEvent {
    with_payload(json!({"type": "happened"}), effects)
}

pub fn with_payload(payload: Value, effects: Vec<Effect>) -> NewEvent {
    NewEvent { event_id: id(), event_type: "thing.happened".into(), event_version: "1".into(), payload, effects }
}

pub fn to(stream: StreamId, expected: Expected, events: Vec<NewEvent>) -> Append {
    Append {
        tenant: stream.tenant,
        streams: vec![StreamAppend { aggregate: "thing", stream, expected, events }],
        preconditions: vec![],
        keys: vec![],
        metadata: metadata(),
    }
}

pub fn new_stream(tenant: TenantId, effects: Vec<Effect>) -> Append {
    to(StreamId::new(tenant, id()), Expected::Exact(0), vec![event(effects)])
}

pub fn keyed(mut append: Append, key: &str, body: u8) -> Append {
    append.keys = vec![Key { tenant: append.tenant, scope: "POST /things".into(), key: key.into(), fingerprint: [body; 32] }];
    append
}

pub fn when(mut append: Append, precondition: Precondition) -> Append {
    append.preconditions.push(precondition);
    append
}

pub fn tenant() -> TenantId {
    TenantId(id())
}

/// Starts all at once and answers in order.
pub async fn at_once(store: &Store, requests: Vec<Append>) -> Vec<Result<Appended, AppendError>> {
    let tasks: Vec<_> = requests
        .into_iter()
        .map(|request| {
            let store = store.clone();
            tokio::spawn(async move { store.append(request).await })
        })
        .collect();
    let mut answers = Vec::with_capacity(tasks.len());
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    answers
}

/// Density, contiguity, digests and chains; `thing` is no aggregate of the product, so the guards are not folded here.
pub async fn assert_log_is_sound(env: &Env) {
    let store = env.store().await;
    let report = store.audit(&mut |_| {}).await.unwrap();
    let broken: Vec<_> = report.findings.iter().filter(|f| f.position.is_some() && !f.what.contains("not known to this binary")).collect();
    assert!(broken.is_empty(), "{broken:#?}");
}
