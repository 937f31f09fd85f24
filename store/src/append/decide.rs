//! Deciding a batch: given what the log and its guards look like, which requests are accepted and what exactly is written. Pure, so that it is the same whether the state was
//! read under the lock or before it.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use domain::{Effect, StreamId, TenantId};
use serde_json::Value;
use uuid::Uuid;

use super::guards::{Guards, StreamKey};
use super::{AppendError, Appended, Expected, Key, Payload, Prepared};
use crate::Head;
use crate::hash::{Digested, digest, log_link, tenant_link};

/// The first answer to a keyed request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct KeyRecord {
    pub(crate) fingerprint: [u8; 32],
    pub(crate) aggregate_id: String,
    pub(crate) version: i64,
    pub(crate) position: i64,
    pub(crate) created: bool,
}

/// What a batch is decided upon.
pub(crate) struct Snapshot {
    pub(crate) head: Head,
    pub(crate) guards: Guards,
    pub(crate) keys: HashMap<(TenantId, String, String), KeyRecord>,
}

/// An event with its place.
pub(crate) struct Row {
    pub(crate) event_id: Uuid,
    pub(crate) tenant: TenantId,
    pub(crate) aggregate: &'static str,
    pub(crate) stream: String,
    pub(crate) sequence: i64,
    pub(crate) event_type: String,
    pub(crate) event_version: String,
    pub(crate) payload: String,
    pub(crate) metadata: String,
    pub(crate) digest: [u8; 32],
    pub(crate) tenant_hash: [u8; 32],
    pub(crate) log_hash: [u8; 32],
}

/// What is to be written, and what everybody is to be told once it is.
pub(crate) struct Plan {
    pub(crate) before: Head,
    pub(crate) after: Head,
    pub(crate) rows: Vec<Row>,
    pub(crate) keys: Vec<(Key, KeyRecord)>,
    pub(crate) guards: Guards,
    pub(crate) answers: Vec<Result<Appended, AppendError>>,
}

impl Plan {
    /// Nothing yet, after this head.
    pub(crate) fn after(head: Head) -> Self {
        Self { before: head, after: head, rows: Vec::new(), keys: Vec::new(), guards: Guards::default(), answers: Vec::new() }
    }

    /// Whether there is anything to write.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.keys.is_empty()
    }
}

/// Decides `batch` in order; each request sees what the ones before it did.
pub(crate) fn decide(mut snapshot: Snapshot, batch: &[&Prepared], now: DateTime<Utc>) -> Plan {
    let mut plan = Plan::after(snapshot.head);
    for request in batch {
        decide_next(&mut snapshot, &mut plan, request, now);
    }
    plan.guards = snapshot.guards;
    plan
}

/// Decides one more request of a plan.
pub(crate) fn decide_next(snapshot: &mut Snapshot, plan: &mut Plan, request: &Prepared, now: DateTime<Utc>) {
    let answer = decide_one(snapshot, plan, request, now);
    match &answer {
        Ok(_) => snapshot.guards.keep(),
        Err(_) => snapshot.guards.rollback(),
    }
    plan.answers.push(answer);
}

fn decide_one(snapshot: &mut Snapshot, plan: &mut Plan, request: &Prepared, now: DateTime<Utc>) -> Result<Appended, AppendError> {
    // The key comes first: a duplicate gets the first answer, not a conflict with itself.
    let known = request.keys.iter().find_map(|key| {
        let record = snapshot.keys.get(&(key.tenant, key.scope.clone(), key.key.clone()))?;
        Some((record, key))
    });
    if let Some((record, key)) = known {
        return if request.keys.len() == 1 { replay(record, key) } else { Err(AppendError::KeysKnown) };
    }
    for stream in &request.streams {
        let actual = snapshot.guards.versions.get(&(stream.aggregate, stream.stream)).copied().unwrap_or(0);
        if let Expected::Exact(expected) = stream.expected
            && expected != actual
        {
            return Err(AppendError::Conflict { aggregate: stream.aggregate, stream: stream.stream, expected, actual });
        }
    }
    for precondition in &request.preconditions {
        snapshot.guards.check(request.tenant, precondition)?;
    }
    let mut head = plan.after;
    let mut rows = Vec::with_capacity(request.event_count());
    let mut first: Option<(String, i64, bool)> = None;
    for part in &request.streams {
        let key: StreamKey = (part.aggregate, part.stream);
        let mut version = snapshot.guards.versions.get(&key).copied().unwrap_or(0);
        let created = version == 0 && !part.events.is_empty();
        let stream = part.stream.to_string();
        for event in &part.events {
            let mut drawn = Vec::new();
            for effect in &event.effects {
                if let (Some(number), Effect::Allocate { pointer, .. }) =
                    (snapshot.guards.apply(part.aggregate, part.stream, effect)?, effect)
                {
                    drawn.push((*pointer, number));
                }
            }
            version += 1;
            head.position += 1;
            let payload = fill(&event.payload, &drawn)?;
            let digest = digest(&Digested {
                event_id: event.event_id,
                tenant_id: part.stream.tenant.0,
                aggregate_type: part.aggregate,
                aggregate_id: &stream,
                sequence: version,
                event_type: &event.event_type,
                event_version: &event.event_version,
                payload: &payload,
                metadata: &request.metadata,
                recorded_at: now,
            });
            let mut tenant = snapshot.guards.tenants.get(&part.stream.tenant).cloned().unwrap_or_default();
            tenant.hash = tenant_link(tenant.hash, digest);
            tenant.position = head.position;
            head.log_hash = log_link(head.log_hash, head.position, digest);
            rows.push(Row {
                event_id: event.event_id,
                tenant: part.stream.tenant,
                aggregate: part.aggregate,
                stream: stream.clone(),
                sequence: version,
                event_type: event.event_type.clone(),
                event_version: event.event_version.clone(),
                payload,
                metadata: request.metadata.clone(),
                digest: digest.0,
                tenant_hash: tenant.hash.0,
                log_hash: head.log_hash.0,
            });
            snapshot.guards.tenants.set(part.stream.tenant, Some(tenant));
        }
        if !part.events.is_empty() {
            snapshot.guards.versions.set(key, Some(version));
        }
        first.get_or_insert((stream, version, created));
    }
    let (aggregate_id, version, created) = first.unwrap_or_default();
    let answer = Appended { aggregate_id, version, position: head.position, created, replayed: false };
    for key in &request.keys {
        let record = KeyRecord {
            fingerprint: key.fingerprint,
            aggregate_id: answer.aggregate_id.clone(),
            version,
            position: answer.position,
            created,
        };
        snapshot.keys.insert((key.tenant, key.scope.clone(), key.key.clone()), record.clone());
        plan.keys.push((key.clone(), record));
    }
    plan.rows.extend(rows);
    plan.after = head;
    Ok(answer)
}

/// The answer to a request whose key is known.
pub(crate) fn replay(record: &KeyRecord, key: &Key) -> Result<Appended, AppendError> {
    if record.fingerprint != key.fingerprint {
        return Err(AppendError::KeyReused);
    }
    Ok(Appended {
        aggregate_id: record.aggregate_id.clone(),
        version: record.version,
        position: record.position,
        created: record.created,
        replayed: true,
    })
}

fn fill(payload: &Payload, drawn: &[(&str, i64)]) -> Result<String, AppendError> {
    match payload {
        Payload::Text(text) => Ok(text.clone()),
        Payload::Open(value) => {
            let mut value = value.clone();
            for (pointer, number) in drawn {
                let Some(place) = value.pointer_mut(pointer) else {
                    return Err(AppendError::Failed(format!("the event has no field {pointer} for its number")));
                };
                *place = Value::from(*number);
            }
            Ok(value.to_string())
        }
    }
}

/// All streams whose version a request speaks of.
pub(crate) fn streams_of(request: &Prepared) -> impl Iterator<Item = (&'static str, StreamId)> + '_ {
    let named = request.preconditions.iter().filter_map(|p| match p {
        domain::Precondition::StreamAt { aggregate, stream, .. } | domain::Precondition::StreamExists { aggregate, stream } => {
            Some((*aggregate, *stream))
        }
        domain::Precondition::ClaimFree { .. }
        | domain::Precondition::ClaimHeld { .. }
        | domain::Precondition::CounterWithin { .. }
        | domain::Precondition::GateOpen
        | domain::Precondition::TenantLives
        | domain::Precondition::TimerSet { .. } => None,
    });
    request.streams.iter().map(|s| (s.aggregate, s.stream)).chain(named)
}
