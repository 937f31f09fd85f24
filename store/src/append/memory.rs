//! Deciding without asking: upon what this process's last batch left behind, and upon what the requests themselves assume.
//!
//! As long as no other process appends, the log's head and the rows of guards are what the last batch made them, and the next one can be decided while that one is still
//! being written. What the last batches did not touch is assumed as the request needs it: streams at their versions, keys new, claims free, timers set, a tenant's first event.
//! `append_assuming` checks all of it under the head's lock, and writes nothing if one assumption is wrong; then the batch takes the careful path, which reads first, and so does
//! from the start whatever cannot be assumed: tenants and counters that are not remembered, the end of a tenant, the erasure of a person.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use domain::{CounterName, Effect, Precondition, StreamId, TenantId};
use serde_json::{Value, json};

use super::decide::{Plan, Snapshot, decide_next};
use super::guards::{ClaimKey, Counter, Guards, Holder, StreamKey, Table, TenantHead, TimerKey, claim_key};
use super::queue::{BATCH_BYTES, BATCH_ROWS};
use super::{Expected, Prepared};
use crate::{Ceilings, Head};

/// When this many heads, counters and sequences are remembered, or this many claims and holders, all of these are forgotten.
const MOST: usize = 20_000;
/// After an assumption was wrong, this many batches assume only versions and keys: whoever names what is not there must not make others be decided again and again.
const WARY: u32 = 16;

/// What the last batch left behind.
#[derive(Default)]
pub(super) struct Memory {
    head: Option<Head>,
    tenants: HashMap<TenantId, Option<TenantHead>>,
    counters: HashMap<(TenantId, CounterName), Option<Counter>>,
    allocations: HashMap<(TenantId, &'static str), Option<i64>>,
    claims: HashMap<ClaimKey, Option<Holder>>,
    held: HashMap<Holder, Option<ClaimKey>>,
    /// Batches that still assume only versions and keys.
    wary: u32,
}

impl Memory {
    /// Forgets everything unless it is about this head: an equal head proves that nothing has changed since.
    pub(super) fn confirm(&mut self, head: Head) {
        if self.head != Some(head) {
            self.forget();
        }
    }

    pub(super) fn forget(&mut self) {
        *self = Self { wary: self.wary, ..Self::default() };
    }

    /// Forgets what a plan that was learnt would have left behind: an assumption was wrong, so the head is where it was, and what the plan does not touch is as it was.
    pub(super) fn unlearn(&mut self, plan: &Plan) {
        let guards = &plan.guards;
        self.head = Some(plan.before);
        guards.tenants.known().for_each(|(key, _)| _ = self.tenants.remove(key));
        guards.counters.known().for_each(|(key, _)| _ = self.counters.remove(key));
        guards.allocations.known().for_each(|(key, _)| _ = self.allocations.remove(key));
        guards.claims.known().for_each(|(key, _)| _ = self.claims.remove(key));
        guards.held.known().for_each(|(key, _)| _ = self.held.remove(key));
        self.wary = WARY;
    }

    /// Takes over what a plan leaves behind when it is written.
    pub(super) fn learn(&mut self, plan: &Plan) {
        let guards = &plan.guards;
        if guards.ended.rows().next().is_some() {
            // Rows that the plan knows are gone with their tenant.
            self.forget();
            self.head = Some(plan.after);
            return;
        }
        if self.tenants.len() + self.counters.len() + self.allocations.len() > MOST {
            self.forget();
        }
        if self.claims.len() + self.held.len() > MOST {
            // Together: a claim that is remembered has a holder that is remembered.
            self.claims.clear();
            self.held.clear();
        }
        self.head = Some(plan.after);
        self.wary = self.wary.saturating_sub(1);
        self.tenants.extend(guards.tenants.known().map(|(tenant, head)| (*tenant, head.cloned())));
        self.counters.extend(guards.counters.known().map(|(key, counter)| (*key, counter.cloned())));
        self.allocations.extend(guards.allocations.known().map(|(key, last)| (*key, last.copied())));
        self.claims.extend(guards.claims.known().map(|(key, holder)| (key.clone(), holder.cloned())));
        self.held.extend(guards.held.known().map(|(holder, key)| (holder.clone(), key.cloned())));
    }

    /// Puts everything that a request is decided upon into the guards; false when something can neither be remembered nor assumed.
    fn supply(&self, request: &Prepared, draft: &mut Draft) -> bool {
        let mut supply = Supply { memory: self, guards: &mut draft.snapshot.guards, assumed: &mut draft.assumed };
        // All versions first: what holds for a new stream holds for everything in the request.
        request.streams.iter().all(|part| match part.expected {
            Expected::Exact(version) => {
                supply.version((part.aggregate, part.stream), version);
                true
            }
            Expected::Any => false,
        }) && supply.tenant(request.tenant, request)
            && request.streams.iter().all(|part| supply.tenant(part.stream.tenant, request))
            && request.preconditions.iter().all(|precondition| supply.precondition(request.tenant, precondition))
            && request.streams.iter().all(|part| {
                part.events.iter().flat_map(|event| &event.effects).all(|effect| supply.effect(part.aggregate, part.stream, effect))
            })
    }
}

/// What must be so when a batch is written, although nobody has read it.
#[derive(Default)]
pub(super) struct Assumed {
    /// Streams at these versions.
    pub(super) versions: Vec<(StreamKey, i64)>,
    /// Streams that have events.
    existing: Vec<StreamKey>,
    /// Tenants without events.
    new_tenants: HashSet<TenantId>,
    /// Claims that nobody holds.
    free: Vec<ClaimKey>,
    /// Timers that are due at these times.
    timers: Vec<(TimerKey, DateTime<Utc>)>,
}

impl Assumed {
    /// What `append_assuming` checks besides versions; `None` for nothing.
    pub(super) fn document(&self) -> Option<Value> {
        let nothing = self.existing.is_empty() && self.new_tenants.is_empty() && self.free.is_empty() && self.timers.is_empty();
        (!nothing).then(|| {
            json!({
                "existing": self.existing.iter().map(|(aggregate, stream)| json!({"aggregate_type": aggregate, "aggregate_id": stream.to_string()})).collect::<Vec<_>>(),
                "new_tenants": self.new_tenants,
                "free": self.free.iter().map(|c| json!({"scope": c.scope, "namespace": c.namespace, "value": c.value})).collect::<Vec<_>>(),
                "timers": self.timers.iter().map(|((aggregate, stream, name), due)| json!({"aggregate_type": aggregate, "aggregate_id": stream.to_string(), "name": name, "due_at": due})).collect::<Vec<_>>(),
            })
        })
    }
}

/// Fills the guards of a draft with what a request is decided upon. Each method answers whether that is possible.
struct Supply<'a> {
    memory: &'a Memory,
    guards: &'a mut Guards,
    assumed: &'a mut Assumed,
}

impl Supply<'_> {
    fn version(&mut self, key: StreamKey, version: i64) {
        if !self.guards.versions.knows(&key) {
            self.guards.versions.put(key, (version > 0).then_some(version));
            self.assumed.versions.push((key, version));
        }
    }

    /// The head of a tenant. One that is not remembered, and whose gate the request opens with the first event of a stream, is taken for a new one.
    fn tenant(&mut self, tenant: TenantId, request: &Prepared) -> bool {
        if supply_row(&self.memory.tenants, &mut self.guards.tenants, tenant) {
            return true;
        }
        let begins = request.streams.iter().any(|part| {
            part.stream.tenant == tenant
                && part.expected == Expected::Exact(0)
                && part.events.iter().flat_map(|event| &event.effects).any(|effect| matches!(effect, Effect::Gate(_)))
        });
        if begins && self.assumes() {
            self.guards.tenants.put(tenant, None);
            self.assumed.new_tenants.insert(tenant);
        }
        begins && self.assumes()
    }

    fn precondition(&mut self, tenant: TenantId, precondition: &Precondition) -> bool {
        match precondition {
            Precondition::GateOpen | Precondition::TenantLives => true,
            Precondition::CounterWithin { counter, .. } => self.counter(tenant, *counter),
            Precondition::StreamAt { aggregate, stream, version } => {
                self.version((aggregate, *stream), *version);
                true
            }
            Precondition::StreamExists { aggregate, stream } => {
                let key = (*aggregate, *stream);
                if self.guards.versions.knows(&key) || self.guards.existing.contains(&key) {
                    return true;
                }
                if self.assumes() {
                    self.guards.existing.insert(key);
                    self.assumed.existing.push(key);
                }
                self.assumes()
            }
            Precondition::ClaimFree { claim, value } => self.claim(claim_key(claim, tenant, value)),
            // Who holds it is not said, and would have to be known if the holder were in the same batch.
            Precondition::ClaimHeld { claim, value } => self.remembered_claim(&claim_key(claim, tenant, value)),
            Precondition::TimerSet { aggregate, stream, name, due } => {
                let key = (*aggregate, *stream, name.clone());
                if self.guards.timers.knows(&key) {
                    return true;
                }
                if self.assumes() {
                    self.guards.timers.load(key.clone(), *due);
                    self.assumed.timers.push((key, *due));
                }
                self.assumes()
            }
        }
    }

    fn effect(&mut self, aggregate: &'static str, stream: StreamId, effect: &Effect) -> bool {
        let tenant = stream.tenant;
        match effect {
            Effect::Count { counter, .. } | Effect::Bound { counter, .. } => {
                counter.ceilings().all(|counter| self.counter(tenant, counter))
            }
            Effect::Allocate { sequence, .. } => {
                let key = (tenant, *sequence);
                supply_row(&self.memory.allocations, &mut self.guards.allocations, key)
                    || self.is_new(tenant) && absent(&mut self.guards.allocations, key)
            }
            Effect::TakeClaim { claim, label, value } => {
                let Some(value) = value else { return true };
                self.holder(aggregate, Holder::of(aggregate, stream, claim, label));
                self.claim(claim_key(claim, tenant, value))
            }
            Effect::ReleaseClaim { claim, label } => {
                self.holder(aggregate, Holder::of(aggregate, stream, claim, label));
                true
            }
            // Timers are set and cancelled whatever they were; what a gate was, the tenant's head says.
            Effect::SetTimer { .. } | Effect::CancelTimer { .. } | Effect::Gate(_) => true,
            Effect::Erase(_) | Effect::EndTenant => false,
        }
    }

    /// Whether anything but versions and keys is assumed now.
    fn assumes(&self) -> bool {
        self.memory.wary == 0
    }

    fn is_new(&self, tenant: TenantId) -> bool {
        self.assumed.new_tenants.contains(&tenant)
    }

    fn counter(&mut self, tenant: TenantId, counter: CounterName) -> bool {
        let key = (tenant, counter);
        supply_row(&self.memory.counters, &mut self.guards.counters, key) || self.is_new(tenant) && absent(&mut self.guards.counters, key)
    }

    /// A claim that is not remembered is taken for free.
    fn claim(&mut self, key: ClaimKey) -> bool {
        if self.remembered_claim(&key) {
            return true;
        }
        if self.assumes() {
            self.guards.claims.put(key.clone(), None);
            self.assumed.free.push(key);
        }
        self.assumes()
    }

    /// A claim and its holder are known together, so that whoever gives up a value that is known to be held makes it free.
    fn remembered_claim(&mut self, key: &ClaimKey) -> bool {
        if self.guards.claims.knows(key) {
            return true;
        }
        let Some(holder) = self.memory.claims.get(key) else { return false };
        self.guards.claims.put(key.clone(), holder.clone());
        if let Some(holder) = holder {
            self.guards.held.put(holder.clone(), Some(key.clone()));
        }
        true
    }

    /// What a holder holds. If nobody remembers, it stays unread, and is released whatever it is: see [`Guards::document`].
    fn holder(&mut self, aggregate: &'static str, holder: Holder) {
        if self.guards.held.knows(&holder) {
            return;
        }
        let stream = (aggregate, holder.stream);
        let is_new = self.guards.versions.knows(&stream) && self.guards.versions.get(&stream).is_none();
        match self.memory.held.get(&holder) {
            Some(Some(key)) => _ = self.remembered_claim(key),
            Some(None) => self.guards.held.put(holder, None),
            None if is_new => self.guards.held.put(holder, None),
            None => {}
        }
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

/// Notes that a row is not there.
fn absent<K: Clone + Eq + Hash, V: Clone + PartialEq>(table: &mut Table<K, V>, key: K) -> bool {
    table.put(key, None);
    true
}

/// The next batch, decided request by request as they come.
pub(super) struct Draft {
    pub(super) batch: Vec<Prepared>,
    pub(super) now: DateTime<Utc>,
    /// What must be so when it is written.
    assumed: Assumed,
    plan: Plan,
    snapshot: Snapshot,
    bytes: usize,
}

impl Draft {
    /// A batch after what is remembered; `None` when nothing is.
    pub(super) fn after(memory: &Memory, now: DateTime<Utc>, ceilings: Arc<Ceilings>) -> Option<Self> {
        let head = memory.head?;
        let snapshot = Snapshot { head, guards: Guards::with(ceilings), keys: HashMap::new() };
        Some(Self { batch: Vec::new(), now, assumed: Assumed::default(), plan: Plan::after(head), snapshot, bytes: 0 })
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
    pub(super) fn finish(mut self) -> (Vec<Prepared>, Plan, Assumed) {
        self.plan.guards = self.snapshot.guards;
        (self.batch, self.plan, self.assumed)
    }
}
