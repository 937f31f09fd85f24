//! Reading what a batch is decided upon: everything in one statement, and so in one snapshot.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use domain::{CounterName, Effect, Precondition, StreamId, TenantId};
use serde::Deserialize;
use serde_json::{Value, json};
use sqlx::types::Json;
use sqlx::{PgConnection, Row as _};
use uuid::Uuid;

use super::Prepared;
use super::decide::{KeyRecord, Snapshot, streams_of};
use super::guards::{ClaimKey, Counter, Guards, Holder, TenantHead, TimerKey, claim_key, scope_of};
use crate::hash::Hash;
use crate::{Ceilings, Head};

#[derive(Deserialize)]
struct GuardRows {
    claims: Vec<ClaimRow>,
    counters: Vec<CounterRow>,
    allocations: Vec<AllocationRow>,
    timers: Vec<TimerRow>,
}

#[derive(Deserialize)]
struct ClaimRow {
    scope: Uuid,
    namespace: String,
    value: String,
    aggregate_type: String,
    aggregate_id: String,
    label: String,
}

#[derive(Deserialize)]
struct CounterRow {
    tenant_id: TenantId,
    name: String,
    value: i64,
    floor: Option<i64>,
    ceiling: Option<i64>,
}

#[derive(Deserialize)]
struct AllocationRow {
    tenant_id: TenantId,
    name: String,
    last: i64,
}

#[derive(Deserialize)]
struct TimerRow {
    aggregate_type: String,
    aggregate_id: String,
    name: String,
    due_at: DateTime<Utc>,
}

/// What a batch needs to know of the guards.
#[derive(Default)]
struct Wanted {
    claims: HashSet<ClaimKey>,
    labels: HashSet<Holder>,
    counters: HashSet<(TenantId, CounterName)>,
    allocations: HashSet<(TenantId, &'static str)>,
    timers: HashSet<TimerKey>,
    /// The static form of every name, for rows that come back.
    names: HashMap<String, &'static str>,
}

impl Wanted {
    fn name(&mut self, name: &'static str) -> &'static str {
        self.names.insert(name.to_owned(), name);
        name
    }

    fn collect(batch: &[&Prepared]) -> Self {
        let mut wanted = Self::default();
        for request in batch {
            for precondition in &request.preconditions {
                match precondition {
                    Precondition::ClaimFree { claim, value } | Precondition::ClaimHeld { claim, value } => {
                        wanted.name(claim.namespace);
                        wanted.claims.insert(claim_key(claim, request.tenant, value));
                    }
                    Precondition::CounterWithin { counter, .. } => {
                        wanted.name(counter.kind);
                        wanted.counters.insert((request.tenant, *counter));
                    }
                    Precondition::TimerSet { aggregate, stream, name, .. } => {
                        let aggregate = wanted.name(aggregate);
                        wanted.timers.insert((aggregate, *stream, name.clone()));
                    }
                    Precondition::StreamAt { .. }
                    | Precondition::StreamExists { .. }
                    | Precondition::GateOpen
                    | Precondition::TenantLives => {}
                }
            }
            for part in &request.streams {
                for effect in part.events.iter().flat_map(|e| &e.effects) {
                    wanted.effect(part.aggregate, part.stream, effect);
                }
            }
        }
        wanted
    }

    fn effect(&mut self, aggregate: &'static str, stream: StreamId, effect: &Effect) {
        let tenant = stream.tenant;
        match effect {
            Effect::TakeClaim { claim, label, value } => {
                self.name(claim.namespace);
                self.labels.insert(Holder::of(aggregate, stream, claim, label));
                if let Some(value) = value {
                    self.claims.insert(ClaimKey { scope: scope_of(claim, tenant), namespace: claim.namespace, value: value.clone() });
                }
            }
            Effect::ReleaseClaim { claim, label } => {
                self.name(claim.namespace);
                self.labels.insert(Holder::of(aggregate, stream, claim, label));
            }
            Effect::Count { counter, .. } | Effect::Bound { counter, .. } => {
                for counter in counter.ceilings() {
                    self.name(counter.kind);
                    self.counters.insert((tenant, counter));
                }
            }
            Effect::Allocate { sequence, .. } => {
                let sequence = self.name(sequence);
                self.allocations.insert((tenant, sequence));
            }
            Effect::SetTimer { name, .. } | Effect::CancelTimer { name } => {
                let aggregate = self.name(aggregate);
                self.timers.insert((aggregate, stream, name.clone()));
            }
            Effect::Gate(_) | Effect::Erase(_) | Effect::EndTenant => {}
        }
    }

    fn document(&self) -> Option<Value> {
        let nothing = self.claims.is_empty()
            && self.labels.is_empty()
            && self.counters.is_empty()
            && self.allocations.is_empty()
            && self.timers.is_empty();
        (!nothing).then(|| {
            json!({
                "claims": self.claims.iter().map(|c| json!({"scope": c.scope, "namespace": c.namespace, "value": c.value})).collect::<Vec<_>>(),
                "labels": self.labels.iter().map(|h| json!({"aggregate_type": h.aggregate, "aggregate_id": h.stream.to_string(), "namespace": h.namespace, "label": h.label})).collect::<Vec<_>>(),
                "counters": self.counters.iter().map(|c| json!({"tenant_id": c.0, "name": c.1.to_string()})).collect::<Vec<_>>(),
                "allocations": self.allocations.iter().map(|c| json!({"tenant_id": c.0, "name": c.1})).collect::<Vec<_>>(),
                "timers": self.timers.iter().map(|t| json!({"aggregate_type": t.0, "aggregate_id": t.1.to_string(), "name": t.2})).collect::<Vec<_>>(),
            })
        })
    }

    /// Puts the rows that came back into the guards, and that the others are not there.
    fn load(&self, rows: GuardRows, guards: &mut Guards) {
        self.claims.iter().for_each(|key| guards.claims.put(key.clone(), None));
        self.labels.iter().for_each(|key| guards.held.put(key.clone(), None));
        self.timers.iter().for_each(|key| guards.timers.put(key.clone(), None));
        self.counters.iter().for_each(|key| guards.counters.put(*key, None));
        self.allocations.iter().for_each(|key| guards.allocations.put(*key, None));
        let known = |name: &str| self.names.get(name).copied();
        for row in rows.claims {
            let (Some(namespace), Ok(stream)) = (known(&row.namespace), row.aggregate_id.parse()) else { continue };
            let holder = Holder { aggregate: row.aggregate_type, stream, namespace, label: row.label };
            let key = ClaimKey { scope: row.scope, namespace, value: row.value };
            guards.claims.load(key.clone(), holder.clone());
            guards.held.load(holder, key);
        }
        for row in rows.counters {
            let (kind, of) = row.name.split_once(':').map_or((row.name.as_str(), None), |(kind, of)| (kind, of.parse().ok()));
            let Some(kind) = known(kind) else { continue };
            guards
                .counters
                .load((row.tenant_id, CounterName { kind, of }), Counter { value: row.value, floor: row.floor, ceiling: row.ceiling });
        }
        for row in rows.allocations {
            let Some(name) = known(&row.name) else { continue };
            guards.allocations.load((row.tenant_id, name), row.last);
        }
        for row in rows.timers {
            let (Some(aggregate), Ok(stream)) = (known(&row.aggregate_type), row.aggregate_id.parse()) else { continue };
            guards.timers.load((aggregate, stream, row.name), row.due_at);
        }
    }
}

/// Reads everything that a batch is decided upon, in one statement and so in one snapshot.
pub(super) async fn read(connection: &mut PgConnection, batch: &[&Prepared], ceilings: Arc<Ceilings>) -> Result<Snapshot, sqlx::Error> {
    let streams: Vec<_> = batch.iter().flat_map(|r| streams_of(r)).collect::<HashSet<_>>().into_iter().collect();
    let tenants: Vec<_> = batch
        .iter()
        .flat_map(|r| r.streams.iter().map(|s| s.stream.tenant).chain([r.tenant]))
        .collect::<HashSet<_>>()
        .into_iter()
        .collect();
    let keys: Vec<_> = batch
        .iter()
        .flat_map(|r| r.keys.iter().map(|k| (k.tenant, k.scope.clone(), k.key.clone())))
        .collect::<HashSet<_>>()
        .into_iter()
        .collect();
    let wanted = Wanted::collect(batch);
    let row = sqlx::query(
        "select h.position, h.log_hash,
           array(select (select e.sequence from events e where e.aggregate_type = w.t and e.aggregate_id = w.i order by e.sequence desc limit 1)
                 from unnest($1::text[], $2::text[]) with ordinality as w (t, i, o) order by o) as versions,
           array(select (select t.tenant_hash from tenant_heads t where t.tenant_id = w.i) from unnest($3::uuid[]) with ordinality as w (i, o) order by o) as tenant_hashes,
           array(select (select t.position from tenant_heads t where t.tenant_id = w.i) from unnest($3::uuid[]) with ordinality as w (i, o) order by o) as tenant_positions,
           array(select (select t.gate from tenant_heads t where t.tenant_id = w.i) from unnest($3::uuid[]) with ordinality as w (i, o) order by o) as gates,
           array(select (select to_jsonb(i) || jsonb_build_object('fingerprint', encode(i.fingerprint, 'hex')) from ops.idempotency_keys i
                         where i.tenant_id = w.t and i.scope = w.s and i.key = w.k)
                 from unnest($4::uuid[], $5::text[], $6::text[]) with ordinality as w (t, s, k, o) order by o) as keys,
           case when $7::jsonb is not null then guards_now($7) end as guards
         from log_head h",
    )
    .bind(streams.iter().map(|s| s.0).collect::<Vec<_>>())
    .bind(streams.iter().map(|s| s.1.to_string()).collect::<Vec<_>>())
    .bind(tenants.iter().map(|t| t.0).collect::<Vec<_>>())
    .bind(keys.iter().map(|k| k.0.0).collect::<Vec<_>>())
    .bind(keys.iter().map(|k| k.1.as_str()).collect::<Vec<_>>())
    .bind(keys.iter().map(|k| k.2.as_str()).collect::<Vec<_>>())
    .bind(wanted.document().map(Json))
    .fetch_one(connection)
    .await?;

    let mut guards = Guards::with(ceilings);
    for (key, version) in streams.into_iter().zip(row.try_get::<Vec<Option<i64>>, _>("versions")?) {
        if let Some(version) = version {
            guards.versions.load(key, version);
        }
    }
    let hashes: Vec<Option<[u8; 32]>> =
        row.try_get::<Vec<Option<Vec<u8>>>, _>("tenant_hashes")?.into_iter().map(|h| h.and_then(|h| h.try_into().ok())).collect();
    let positions: Vec<Option<i64>> = row.try_get("tenant_positions")?;
    let gates: Vec<Option<String>> = row.try_get("gates")?;
    for (((tenant, hash), position), gate) in tenants.into_iter().zip(hashes).zip(positions).zip(gates) {
        if let (Some(hash), Some(position)) = (hash, position) {
            guards.tenants.load(tenant, TenantHead { position, hash: Hash(hash), gate });
        }
    }
    if let Some(Json(rows)) = row.try_get::<Option<Json<GuardRows>>, _>("guards")? {
        wanted.load(rows, &mut guards);
    }
    let records: Vec<Option<Json<KeyRow>>> = row.try_get("keys")?;
    let keys = keys.into_iter().zip(records).filter_map(|(key, record)| record.and_then(|Json(r)| r.parse()).map(|r| (key, r))).collect();
    Ok(Snapshot { head: Head { position: row.try_get("position")?, log_hash: Hash(row.try_get("log_hash")?) }, guards, keys })
}

#[derive(Deserialize)]
pub(crate) struct KeyRow {
    fingerprint: String,
    aggregate_id: String,
    version: i64,
    position: i64,
    created: bool,
}

impl KeyRow {
    pub(crate) fn parse(self) -> Option<KeyRecord> {
        let fingerprint = Hash::from_hex(&self.fingerprint)?.0;
        Some(KeyRecord {
            fingerprint,
            aggregate_id: self.aggregate_id,
            version: self.version,
            position: self.position,
            created: self.created,
        })
    }
}
