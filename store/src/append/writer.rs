//! The one task of a process that writes the log.
//!
//! A batch takes two round trips. The first reads, without any lock, what the requests are to be decided upon, all in one snapshot. The second, `append_batch`, takes the
//! head's lock, makes sure that the log has not moved since that snapshot, writes and commits, as one statement: the lock is never held across the network. Everything an
//! append looks at is changed by appends only, so an unmoved head proves that the whole snapshot still holds. If another process was quicker, the batch is
//! decided again with the lock held from the start, which cannot fail that way (see `docs/adr/0005-append-path.md`).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use domain::{Clock, Effect, Precondition, StreamId, TenantId};
use serde::Deserialize;
use serde_json::{Value, json};
use sqlx::types::Json;
use sqlx::{Connection as _, Executor as _, PgConnection, Row as _};
use tokio::sync::watch;
use uuid::Uuid;

use super::decide::{KeyRecord, Plan, Snapshot, decide, streams_of};
use super::guards::{ClaimKey, Counter, Guards, Holder, TenantHead, claim_key, scope_of};
use super::queue::Queue;
use super::{AppendError, Outcome, Prepared};
use crate::Head;
use crate::database::{Database, DbRole};
use crate::hash::Hash;

/// A stuck writer, ours or another, may stall the log for no longer than this.
const STALL: &str = "2s";
/// For how long a batch is tried before its callers are told that the log cannot be reached.
const PATIENCE: Duration = Duration::from_secs(4);
/// After another process was quicker, this many batches take the lock first.
const LOCK_FIRST: u32 = 16;

pub(crate) struct Writer {
    database: Database,
    queue: Arc<Queue>,
    clock: Arc<dyn Clock>,
    head: watch::Sender<i64>,
    connection: Option<PgConnection>,
    lock_first: u32,
}

enum Failure {
    /// The connection is gone; nobody knows whether the batch was written, unless it was never sent.
    Connection(sqlx::Error),
    /// The database answered with an error, so nothing was written.
    Database(sqlx::Error),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        // SQLSTATE class 57P: the server is shutting down or the backend was terminated; 25P03: it idled in a transaction.
        let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        let lost = match code {
            Some(code) => code.starts_with("57P") || code == "25P03",
            None => {
                matches!(
                    error,
                    sqlx::Error::Io(_)
                        | sqlx::Error::Tls(_)
                        | sqlx::Error::Protocol(_)
                        | sqlx::Error::PoolTimedOut
                        | sqlx::Error::PoolClosed
                        | sqlx::Error::WorkerCrashed
                )
            }
        };
        if lost { Self::Connection(error) } else { Self::Database(error) }
    }
}

impl Writer {
    pub(crate) fn new(database: Database, queue: Arc<Queue>, clock: Arc<dyn Clock>, head: watch::Sender<i64>) -> Self {
        Self { database, queue, clock, head, connection: None, lock_first: 0 }
    }

    pub(crate) async fn run(mut self) {
        while let Some(batch) = self.queue.take().await {
            metrics::histogram!("tenure_append_batch_requests").record(u32::try_from(batch.len()).unwrap_or(u32::MAX));
            metrics::gauge!("tenure_append_queue").set(f64::from(u32::try_from(self.queue.len()).unwrap_or(u32::MAX)));
            self.serve(batch).await;
        }
        if let Some(connection) = self.connection.take() {
            let _ = connection.close().await;
        }
    }

    /// Writes a batch and answers everybody in it.
    async fn serve(&mut self, batch: Vec<Prepared>) {
        let requests: Vec<&Prepared> = batch.iter().collect();
        let mut answers = Vec::with_capacity(batch.len());
        match self.commit(&requests).await {
            Ok(all) => answers = all,
            Err(Failure::Connection(error)) => {
                tracing::warn!(error = %error, requests = batch.len(), "the log cannot be reached");
                answers.resize_with(batch.len(), || Err(AppendError::Unavailable));
            }
            // Something in this batch made the database fail. One by one, only the guilty one does.
            Err(Failure::Database(error)) => {
                tracing::warn!(error = %error, requests = batch.len(), "a batch failed; its requests are tried one by one");
                for request in requests {
                    answers.push(match self.commit(&[request]).await {
                        Ok(mut one) => one.pop().unwrap_or(Err(AppendError::Unavailable)),
                        Err(Failure::Connection(_)) => Err(AppendError::Unavailable),
                        Err(Failure::Database(error)) if is_transient(&error) => Err(AppendError::Unavailable),
                        Err(Failure::Database(error)) => Err(AppendError::Failed(error.to_string())),
                    });
                }
            }
        }
        for (request, answer) in batch.into_iter().zip(answers) {
            // Whoever asked may have gone; that changes nothing.
            let _ = request.reply.send(answer);
        }
    }

    /// Writes a batch exactly once, through broken connections and quicker processes.
    async fn commit(&mut self, batch: &[&Prepared]) -> Result<Vec<Outcome>, Failure> {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_millis(10);
        // A plan that was sent when the connection broke: it may have been written.
        let mut doubtful: Option<Plan> = None;
        loop {
            let error = match self.attempt(batch, &mut doubtful).await {
                Ok(answers) => return Ok(answers),
                Err(Failure::Database(error)) => {
                    if is_transient(&error) && Instant::now() < deadline {
                        error
                    } else {
                        return Err(Failure::Database(error));
                    }
                }
                Err(Failure::Connection(error)) => {
                    self.connection = None;
                    error
                }
            };
            if Instant::now() + pause > deadline {
                return Err(Failure::Connection(error));
            }
            backoff(pause).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    async fn attempt(&mut self, batch: &[&Prepared], doubtful: &mut Option<Plan>) -> Result<Vec<Outcome>, Failure> {
        let now = self.clock.now();
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => self.connection.insert(connect(&self.database).await?),
        };
        if doubtful.is_none() && self.lock_first == 0 {
            let plan = decide(read(connection, batch).await?, batch, now);
            if plan.is_empty() {
                return Ok(plan.answers);
            }
            match write(connection, &plan, now).await {
                Ok(true) => return Ok(self.done(plan)),
                Ok(false) => self.lock_first = LOCK_FIRST,
                Err(error) => return Err(keep_doubt(error.into(), plan, doubtful)),
            }
        }
        self.lock_first = self.lock_first.saturating_sub(1);
        let Some(connection) = &mut self.connection else { return Err(Failure::Connection(sqlx::Error::PoolClosed)) };
        let mut tx = connection.begin().await?;
        tx.execute("select 1 from log_head for update").await?;
        if let Some(plan) = doubtful.take() {
            // The lock is ours, so the broken attempt has either committed or never will: it was bound to the position it was made for.
            if was_written(&mut tx, &plan).await? {
                tx.rollback().await?;
                return Ok(self.done(plan));
            }
        }
        let plan = decide(read(&mut tx, batch).await?, batch, now);
        if plan.is_empty() {
            tx.rollback().await?;
            return Ok(plan.answers);
        }
        let written = match write(&mut tx, &plan, now).await {
            Ok(written) => written,
            Err(error) => return Err(error.into()),
        };
        debug_assert!(written, "the head moved under its lock");
        match tx.commit().await {
            Ok(()) => Ok(self.done(plan)),
            Err(error) => Err(keep_doubt(error.into(), plan, doubtful)),
        }
    }

    fn done(&self, plan: Plan) -> Vec<Outcome> {
        metrics::counter!("tenure_events_appended_total").increment(plan.rows.len() as u64);
        self.head.send_if_modified(|head| {
            let moved = plan.after.position > *head;
            *head = plan.after.position.max(*head);
            moved
        });
        plan.answers
    }
}

fn keep_doubt(failure: Failure, plan: Plan, doubtful: &mut Option<Plan>) -> Failure {
    if matches!(failure, Failure::Connection(_)) {
        *doubtful = Some(plan);
    }
    failure
}

#[expect(clippy::disallowed_methods, reason = "the pause between two attempts to reach the database")]
async fn backoff(pause: Duration) {
    tokio::time::sleep(pause).await;
}

/// Timeouts, deadlocks and a lack of resources pass by themselves (SQLSTATE classes 40, 53, 55, and 57014 query_canceled).
fn is_transient(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .is_some_and(|c| c.starts_with("40") || c.starts_with("53") || c.starts_with("55") || c == "57014")
}

async fn connect(database: &Database) -> Result<PgConnection, sqlx::Error> {
    database
        .connect(
            DbRole::Writer,
            &[
                ("lock_timeout", STALL),
                ("statement_timeout", STALL),
                ("idle_in_transaction_session_timeout", STALL),
                // Every look-up here is by primary key; a plan made while a table was still small must not scan it for ever.
                ("enable_seqscan", "off"),
                ("enable_hashjoin", "off"),
                ("enable_mergejoin", "off"),
            ],
        )
        .await
}

/// Whether the plan's own events stand at its positions.
async fn was_written(connection: &mut PgConnection, plan: &Plan) -> Result<bool, sqlx::Error> {
    match (plan.rows.first(), plan.keys.first()) {
        (Some(row), _) => {
            let found: Option<Uuid> = sqlx::query_scalar("select event_id from events where position = $1")
                .bind(plan.before + 1)
                .fetch_optional(connection)
                .await?;
            Ok(found == Some(row.event_id))
        }
        // Without events there is nothing that could happen twice.
        (None, _) => Ok(false),
    }
}

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
    counters: HashSet<(TenantId, &'static str)>,
    allocations: HashSet<(TenantId, &'static str)>,
    timers: HashSet<(&'static str, StreamId, String)>,
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
                        let counter = wanted.name(counter);
                        wanted.counters.insert((request.tenant, counter));
                    }
                    Precondition::TimerSet { aggregate, stream, name, .. } => {
                        let aggregate = wanted.name(aggregate);
                        wanted.timers.insert((aggregate, *stream, name.clone()));
                    }
                    Precondition::StreamAt { .. } | Precondition::GateOpen => {}
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
                self.labels.insert(Holder { aggregate: aggregate.to_owned(), stream, namespace: claim.namespace, label: label.clone() });
                if let Some(value) = value {
                    self.claims.insert(ClaimKey { scope: scope_of(claim, tenant), namespace: claim.namespace, value: value.clone() });
                }
            }
            Effect::ReleaseClaim { claim, label } => {
                self.name(claim.namespace);
                self.labels.insert(Holder { aggregate: aggregate.to_owned(), stream, namespace: claim.namespace, label: label.clone() });
            }
            Effect::Count { counter, .. } | Effect::Bound { counter, .. } => {
                let counter = self.name(counter);
                self.counters.insert((tenant, counter));
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
                "counters": self.counters.iter().map(|c| json!({"tenant_id": c.0, "name": c.1})).collect::<Vec<_>>(),
                "allocations": self.allocations.iter().map(|c| json!({"tenant_id": c.0, "name": c.1})).collect::<Vec<_>>(),
                "timers": self.timers.iter().map(|t| json!({"aggregate_type": t.0, "aggregate_id": t.1.to_string(), "name": t.2})).collect::<Vec<_>>(),
            })
        })
    }

    /// Puts the rows that came back into the guards.
    fn load(&self, rows: GuardRows, guards: &mut Guards) {
        let known = |name: &str| self.names.get(name).copied();
        for row in rows.claims {
            let (Some(namespace), Ok(stream)) = (known(&row.namespace), row.aggregate_id.parse()) else { continue };
            let holder = Holder { aggregate: row.aggregate_type, stream, namespace, label: row.label };
            let key = ClaimKey { scope: row.scope, namespace, value: row.value };
            guards.claims.load(key.clone(), holder.clone());
            guards.held.load(holder, key);
        }
        for row in rows.counters {
            let Some(name) = known(&row.name) else { continue };
            guards.counters.load((row.tenant_id, name), Counter { value: row.value, floor: row.floor, ceiling: row.ceiling });
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
async fn read(connection: &mut PgConnection, batch: &[&Prepared]) -> Result<Snapshot, sqlx::Error> {
    let streams: Vec<_> = batch.iter().flat_map(|r| streams_of(r)).collect::<HashSet<_>>().into_iter().collect();
    let tenants: Vec<_> = batch
        .iter()
        .flat_map(|r| r.streams.iter().map(|s| s.stream.tenant).chain([r.tenant]))
        .collect::<HashSet<_>>()
        .into_iter()
        .collect();
    let keys: Vec<_> = batch
        .iter()
        .filter_map(|r| r.key.as_ref().map(|k| (k.tenant, k.scope.clone(), k.key.clone())))
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

    let mut guards = Guards::default();
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

/// Writes a plan; false when the log is not where the plan was made for.
async fn write(connection: &mut PgConnection, plan: &Plan, now: DateTime<Utc>) -> Result<bool, sqlx::Error> {
    let rows = &plan.rows;
    // The gate and the chain stand in one row; each tenant that got an event changes it.
    let heads: Vec<_> = plan.guards.tenants.changes().filter_map(|(tenant, _, head)| head.map(|head| (tenant, head))).collect();
    let keys = &plan.keys;
    sqlx::query_scalar(
        "select append_batch($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30)",
    )
    .bind(plan.before)
    .bind(plan.after.position)
    .bind(plan.after.log_hash.0)
    .bind(rows.iter().map(|r| r.event_id).collect::<Vec<_>>())
    .bind(rows.iter().map(|r| r.tenant.0).collect::<Vec<_>>())
    .bind(rows.iter().map(|r| r.aggregate).collect::<Vec<_>>())
    .bind(rows.iter().map(|r| r.stream.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|r| r.sequence).collect::<Vec<_>>())
    .bind(rows.iter().map(|r| r.event_type.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|r| r.event_version.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|r| r.payload.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|r| r.metadata.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|_| now).collect::<Vec<_>>())
    .bind(rows.iter().map(|r| r.digest.as_slice()).collect::<Vec<_>>())
    .bind(rows.iter().map(|r| r.tenant_hash.as_slice()).collect::<Vec<_>>())
    .bind(rows.iter().map(|r| r.log_hash.as_slice()).collect::<Vec<_>>())
    .bind(heads.iter().map(|h| h.0.0).collect::<Vec<_>>())
    .bind(heads.iter().map(|h| h.1.position).collect::<Vec<_>>())
    .bind(heads.iter().map(|h| h.1.hash.0.as_slice()).collect::<Vec<_>>())
    .bind(heads.iter().map(|h| h.1.gate.as_deref()).collect::<Vec<_>>())
    .bind(keys.iter().map(|k| k.0.tenant.0).collect::<Vec<_>>())
    .bind(keys.iter().map(|k| k.0.scope.as_str()).collect::<Vec<_>>())
    .bind(keys.iter().map(|k| k.0.key.as_str()).collect::<Vec<_>>())
    .bind(keys.iter().map(|k| k.0.fingerprint.as_slice()).collect::<Vec<_>>())
    .bind(keys.iter().map(|k| k.1.aggregate_id.as_str()).collect::<Vec<_>>())
    .bind(keys.iter().map(|k| k.1.version).collect::<Vec<_>>())
    .bind(keys.iter().map(|k| k.1.position).collect::<Vec<_>>())
    .bind(keys.iter().map(|k| k.1.created).collect::<Vec<_>>())
    .bind(keys.iter().map(|_| now).collect::<Vec<_>>())
    .bind(plan.guards.document().map(Json))
    .fetch_one(connection)
    .await
}
