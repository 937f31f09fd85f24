//! Deciding without asking: upon what this process's last batch left behind, and upon what the requests themselves assume.
//!
//! As long as no other process appends, the log's head and the rows of guards are what the last batch made them, and the next one can be decided while that one is still
//! being written. The versions of streams, and that keys are new, are assumed, and checked by `append_assuming` under the head's lock. Whatever cannot be known in this
//! way is left to the careful path, which reads first.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use domain::{CounterName, Effect, Precondition, TenantId};

use super::decide::{Plan, Snapshot, decide_next};
use super::guards::{Counter, Guards, StreamKey, Table, TenantHead};
use super::queue::{BATCH_BYTES, BATCH_ROWS};
use super::{Expected, Prepared};
use crate::{Ceilings, Head};

/// When this many rows are remembered, all are forgotten.
const MOST: usize = 20_000;

/// What the last batch left behind.
#[derive(Default)]
pub(super) struct Memory {
    head: Option<Head>,
    tenants: HashMap<TenantId, Option<TenantHead>>,
    counters: HashMap<(TenantId, CounterName), Option<Counter>>,
    allocations: HashMap<(TenantId, &'static str), Option<i64>>,
}

impl Memory {
    /// Forgets everything unless it is about this head: an equal head proves that nothing has changed since.
    pub(super) fn confirm(&mut self, head: Head) {
        if self.head != Some(head) {
            self.forget();
        }
    }

    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Takes over what a plan leaves behind when it is written.
    pub(super) fn learn(&mut self, plan: &Plan) {
        let guards = &plan.guards;
        if guards.ended.rows().next().is_some() || self.tenants.len() + self.counters.len() + self.allocations.len() > MOST {
            self.forget();
        }
        self.head = Some(plan.after);
        self.tenants.extend(guards.tenants.known().map(|(tenant, head)| (*tenant, head.cloned())));
        self.counters.extend(guards.counters.known().map(|(key, counter)| (*key, counter.cloned())));
        self.allocations.extend(guards.allocations.known().map(|(key, last)| (*key, last.copied())));
    }

    /// Puts everything that a request is decided upon into the guards; false when something is not known.
    fn supply(&self, request: &Prepared, draft: &mut Draft) -> bool {
        let guards = &mut draft.snapshot.guards;
        let assumed = &mut draft.assumed;
        let mut assume = |key: StreamKey, version: i64, guards: &mut Guards| {
            if !guards.versions.knows(&key) {
                guards.versions.put(key, (version > 0).then_some(version));
                assumed.push((key, version));
            }
        };
        let preconditions = request.preconditions.iter().all(|precondition| match precondition {
            Precondition::GateOpen | Precondition::TenantLives => true,
            Precondition::CounterWithin { counter, .. } => supply_row(&self.counters, &mut guards.counters, (request.tenant, *counter)),
            Precondition::StreamAt { aggregate, stream, version } => {
                assume((aggregate, *stream), *version, guards);
                true
            }
            Precondition::StreamExists { .. }
            | Precondition::ClaimFree { .. }
            | Precondition::ClaimHeld { .. }
            | Precondition::TimerSet { .. } => false,
        });
        preconditions
            && supply_row(&self.tenants, &mut guards.tenants, request.tenant)
            && request.streams.iter().all(|part| {
                let tenant = part.stream.tenant;
                let Expected::Exact(version) = part.expected else { return false };
                assume((part.aggregate, part.stream), version, guards);
                supply_row(&self.tenants, &mut guards.tenants, tenant)
                    && part.events.iter().flat_map(|event| &event.effects).all(|effect| match effect {
                        Effect::Count { counter, .. } | Effect::Bound { counter, .. } => {
                            counter.ceilings().all(|counter| supply_row(&self.counters, &mut guards.counters, (tenant, counter)))
                        }
                        Effect::Allocate { sequence, .. } => supply_row(&self.allocations, &mut guards.allocations, (tenant, *sequence)),
                        Effect::TakeClaim { .. }
                        | Effect::ReleaseClaim { .. }
                        | Effect::SetTimer { .. }
                        | Effect::CancelTimer { .. }
                        | Effect::Gate(_)
                        | Effect::Erase(_)
                        | Effect::EndTenant => false,
                    })
            })
    }
}

/// Puts what is remembered of a row into its table; false when nothing is.
fn supply_row<K: Copy + Eq + Hash, V: Clone + PartialEq>(remembered: &HashMap<K, Option<V>>, table: &mut Table<K, V>, key: K) -> bool {
    if !table.knows(&key) {
        let Some(row) = remembered.get(&key) else { return false };
        table.put(key, row.clone());
    }
    true
}

/// The next batch, decided request by request as they come.
pub(super) struct Draft {
    pub(super) batch: Vec<Prepared>,
    pub(super) now: DateTime<Utc>,
    /// What must be so when it is written: streams at these versions.
    pub(super) assumed: Vec<(StreamKey, i64)>,
    plan: Plan,
    snapshot: Snapshot,
    bytes: usize,
}

impl Draft {
    /// A batch after what is remembered; `None` when nothing is.
    pub(super) fn after(memory: &Memory, now: DateTime<Utc>, ceilings: Arc<Ceilings>) -> Option<Self> {
        let head = memory.head?;
        let snapshot = Snapshot { head, guards: Guards::with(ceilings), keys: HashMap::new() };
        Some(Self { batch: Vec::new(), now, assumed: Vec::new(), plan: Plan::after(head), snapshot, bytes: 0 })
    }

    /// Decides one more request, or gives it back because that takes reading.
    pub(super) fn add(&mut self, request: Prepared, memory: &Memory) -> Result<(), Prepared> {
        if !memory.supply(&request, self) {
            return Err(request);
        }
        decide_next(&mut self.snapshot, &mut self.plan, &request, self.now);
        // A refused request writes nothing under its key, so nothing would show that the key is known; and whoever repeats a request gets its first answer, not a refusal.
        if !request.keys.is_empty() && self.plan.answers.pop_if(|answer| answer.is_err()).is_some() {
            return Err(request);
        }
        self.bytes += request.bytes();
        self.batch.push(request);
        Ok(())
    }

    /// Whether one more batch from the queue may join.
    pub(super) fn has_room(&self, requests: usize) -> bool {
        self.batch.len() < requests && self.plan.rows.len() + self.plan.keys.len() < BATCH_ROWS && self.bytes < BATCH_BYTES
    }

    /// The requests, what they came to, and what is checked before it is written: also what was assumed for a request that was given back, since others may have been decided upon it.
    pub(super) fn finish(mut self) -> (Vec<Prepared>, Plan, Vec<(StreamKey, i64)>) {
        self.plan.guards = self.snapshot.guards;
        (self.batch, self.plan, self.assumed)
    }
}
