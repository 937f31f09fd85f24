//! Deciding a batch without reading: from the rows that earlier batches of this process left behind, and from assumptions.
//!
//! As long as no other process appends, the log's head and the rows of guards are what the last batch made them, and the next one can be decided while that one is still
//! being written. Rows that are not remembered are assumed to be as the request needs them: streams at their expected versions, new idempotency keys, free claims, timers that are set, tenants without events.
//! `append_assuming` checks every assumption under the head's lock and writes nothing if one of them is wrong. The batch then takes the careful path, which reads first.
//! Requests that need a tenant or counter that is not remembered, end a tenant or erase a person take the careful path at once.

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

/// Maximum number of remembered tenants, counters and sequences together, and of claims and holders together. Beyond it, all of that kind are forgotten.
const MOST: usize = 20_000;
/// Number of batches after a wrong assumption that assume only versions and keys, so that repeated requests for streams that do not exist cannot send every batch to the careful path.
const CAUTIOUS: u32 = 16;

/// What the last batch left behind.
#[derive(Default)]
pub(super) struct Memory {
    head: Option<Head>,
    tenants: HashMap<TenantId, Option<TenantHead>>,
    counters: HashMap<(TenantId, CounterName), Option<Counter>>,
    allocations: HashMap<(TenantId, &'static str), Option<i64>>,
    claims: HashMap<ClaimKey, Option<Holder>>,
    held: HashMap<Holder, Option<ClaimKey>>,
    /// Remaining batches that assume only versions and keys.
    cautious: u32,
}

impl Memory {
    /// Forgets everything unless it is about this head: an equal head proves that nothing has changed since.
    pub(super) fn confirm(&mut self, head: Head) {
        if self.head != Some(head) {
            self.forget();
        }
    }

    pub(super) fn forget(&mut self) {
        *self = Self { cautious: self.cautious, ..Self::default() };
    }

    /// Reverts [`Self::learn`] for a plan with a wrong assumption: its rows are forgotten. The head has not moved, so all other rows stay valid.
    pub(super) fn unlearn(&mut self, plan: &Plan) {
        let guards = &plan.guards;
        self.head = Some(plan.before);
        guards.tenants.known().for_each(|(key, _)| _ = self.tenants.remove(key));
        guards.counters.known().for_each(|(key, _)| _ = self.counters.remove(key));
        guards.allocations.known().for_each(|(key, _)| _ = self.allocations.remove(key));
        guards.claims.known().for_each(|(key, _)| _ = self.claims.remove(key));
        guards.held.known().for_each(|(key, _)| _ = self.held.remove(key));
        self.cautious = CAUTIOUS;
    }

    /// Takes over what a plan leaves behind when it is written.
    pub(super) fn learn(&mut self, plan: &Plan) {
        let guards = &plan.guards;
        if guards.ended.rows().next().is_some() {
            // The end of a tenant deletes rows that the plan still contains.
            self.forget();
            self.head = Some(plan.after);
            return;
        }
        if self.tenants.len() + self.counters.len() + self.allocations.len() > MOST {
            self.forget();
        }
        if self.claims.len() + self.held.len() > MOST {
            // Both at once: `Supply::remembered_claim` needs the holder of every remembered claim.
            self.claims.clear();
            self.held.clear();
        }
        self.head = Some(plan.after);
        self.cautious = self.cautious.saturating_sub(1);
        self.tenants.extend(guards.tenants.known().map(|(tenant, head)| (*tenant, head.cloned())));
        self.counters.extend(guards.counters.known().map(|(key, counter)| (*key, counter.cloned())));
        self.allocations.extend(guards.allocations.known().map(|(key, last)| (*key, last.copied())));
        self.claims.extend(guards.claims.known().map(|(key, holder)| (key.clone(), holder.cloned())));
        self.held.extend(guards.held.known().map(|(holder, key)| (holder.clone(), key.cloned())));
    }

    /// Fills the guards with every row that a request depends on. Returns false if a row is neither remembered nor assumed.
    fn supply(&self, request: &Prepared, draft: &mut Draft) -> bool {
        let mut supply = Supply { memory: self, guards: &mut draft.snapshot.guards, assumed: &mut draft.assumed };
        // Versions first: the other rows depend on whether a stream is new.
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

/// Assumptions of a batch, checked when it is written.
#[derive(Default)]
pub(super) struct Assumed {
    /// Streams at these versions.
    pub(super) versions: Vec<(StreamKey, i64)>,
    /// Streams that have events.
    existing: Vec<StreamKey>,
    /// Tenants without events.
    new_tenants: HashSet<TenantId>,
    /// Claims without a holder.
    free: Vec<ClaimKey>,
    /// Timers with their due times.
    timers: Vec<(TimerKey, DateTime<Utc>)>,
}

impl Assumed {
    /// All assumptions except versions, as the parameter `assumed` of `append_assuming`. `None` if there are none.
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

/// Fills the guards of a draft from memory or with assumptions. Methods that return false could do neither.
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

    /// A tenant's head. A tenant that is not remembered is assumed to be new if the request sets its gate with the first event of a stream.
    fn tenant(&mut self, tenant: TenantId, request: &Prepared) -> bool {
        if supply_row(&self.memory.tenants, &mut self.guards.tenants, tenant, false) {
            return true;
        }
        let begins = request.streams.iter().any(|part| {
            part.stream.tenant == tenant
                && part.expected == Expected::Exact(0)
                && part.events.iter().flat_map(|event| &event.effects).any(|effect| matches!(effect, Effect::Gate(_)))
        });
        if !begins || self.is_cautious() {
            return false;
        }
        self.guards.tenants.put(tenant, None);
        self.assumed.new_tenants.insert(tenant);
        true
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
                if self.is_cautious() {
                    return false;
                }
                self.guards.existing.insert(key);
                self.assumed.existing.push(key);
                true
            }
            Precondition::ClaimFree { claim, value } => self.claim(claim_key(claim, tenant, value)),
            // Not assumed: the precondition does not name the holder, and another request of the batch may release the claim.
            Precondition::ClaimHeld { claim, value } => self.remembered_claim(&claim_key(claim, tenant, value)),
            Precondition::TimerSet { aggregate, stream, name, due } => {
                let key = (*aggregate, *stream, name.clone());
                if self.guards.timers.knows(&key) {
                    return true;
                }
                if self.is_cautious() {
                    return false;
                }
                self.guards.timers.load(key.clone(), *due);
                self.assumed.timers.push((key, *due));
                true
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
                let (key, is_new) = ((tenant, *sequence), self.is_new(tenant));
                supply_row(&self.memory.allocations, &mut self.guards.allocations, key, is_new)
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
            // Setting or cancelling a timer does not depend on its old value; the gate is part of the tenant's head.
            Effect::SetTimer { .. } | Effect::CancelTimer { .. } | Effect::Gate(_) => true,
            Effect::Erase(_) | Effect::EndTenant => false,
        }
    }

    /// Whether only versions and keys may be assumed.
    fn is_cautious(&self) -> bool {
        self.memory.cautious > 0
    }

    fn is_new(&self, tenant: TenantId) -> bool {
        self.assumed.new_tenants.contains(&tenant)
    }

    fn counter(&mut self, tenant: TenantId, counter: CounterName) -> bool {
        let (key, is_new) = ((tenant, counter), self.is_new(tenant));
        supply_row(&self.memory.counters, &mut self.guards.counters, key, is_new)
    }

    /// A claim that is not remembered is assumed to be free.
    fn claim(&mut self, key: ClaimKey) -> bool {
        if self.remembered_claim(&key) {
            return true;
        }
        if self.is_cautious() {
            return false;
        }
        self.guards.claims.put(key.clone(), None);
        self.assumed.free.push(key);
        true
    }

    /// Supplies a remembered claim together with its holder, so that releasing the holder also frees the claim in the guards.
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

    /// The claim of a holder. If it is not remembered, it stays unread and is deleted by holder, see [`Guards::document`].
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

/// Supplies a remembered row, or that a new tenant has none. Returns false if the row is not known.
fn supply_row<K: Copy + Eq + Hash, V: Clone + PartialEq>(
    remembered: &HashMap<K, Option<V>>,
    table: &mut Table<K, V>,
    key: K,
    is_new: bool,
) -> bool {
    if table.knows(&key) {
        return true;
    }
    let row = remembered.get(&key).cloned();
    let known = is_new || row.is_some();
    if known {
        table.put(key, row.flatten());
    }
    known
}

/// The next batch, decided request by request as they come.
pub(super) struct Draft {
    pub(super) batch: Vec<Prepared>,
    pub(super) now: DateTime<Utc>,
    /// Checked when it is written.
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

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;
    use uuid::Uuid;

    use super::*;
    use crate::Hash as ChainHash;
    use crate::append::PreparedStream;

    fn naming_another_stream(tenant: TenantId, preconditions: Vec<Precondition>) -> Prepared {
        let stream = StreamId::new(tenant, Uuid::from_u128(7));
        let part = PreparedStream { aggregate: "thing", stream, expected: Expected::Exact(0), events: vec![] };
        Prepared {
            tenant,
            streams: vec![part],
            preconditions,
            keys: vec![],
            metadata: String::new(),
            generation: 0,
            reply: oneshot::channel().0,
        }
    }

    #[test]
    fn after_a_wrong_assumption_other_tenants_stay_remembered_and_for_16_batches_nothing_but_versions_is_assumed() {
        let (guilty, other) = (TenantId(Uuid::from_u128(1)), TenantId(Uuid::from_u128(2)));
        let head = Head { position: 5, log_hash: ChainHash::ZERO };
        let mut memory = Memory { head: Some(head), ..Memory::default() };
        memory.tenants.extend([guilty, other].map(|tenant| (tenant, Some(TenantHead::default()))));
        let draft = |memory: &Memory| Draft::after(memory, DateTime::UNIX_EPOCH, Arc::default()).expect("a head");
        let missing = || Precondition::StreamExists { aggregate: "thing", stream: StreamId::new(guilty, Uuid::from_u128(8)) };

        let mut wrong = draft(&memory);
        assert!(wrong.add(naming_another_stream(guilty, vec![missing()]), &memory).is_ok());
        let (_, plan, assumed) = wrong.finish();
        assert_eq!(assumed.existing.len(), 1);
        memory.learn(&plan);
        memory.unlearn(&plan);
        assert_eq!(memory.head, Some(head));

        for _ in 0..CAUTIOUS {
            let mut next = draft(&memory);
            assert!(next.add(naming_another_stream(other, vec![missing()]), &memory).is_err(), "given back alone");
            assert!(next.add(naming_another_stream(other, vec![]), &memory).is_ok(), "still remembered");
            memory.learn(&next.finish().1);
        }
        assert!(draft(&memory).add(naming_another_stream(other, vec![missing()]), &memory).is_ok());
    }
}
