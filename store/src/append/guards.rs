//! What an append reads and writes besides events, as it stands during one batch: read once, changed in memory request by request, written once.

use std::collections::{HashMap, HashSet};
use std::hash::Hash as StdHash;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use domain::{Claim, CounterName, Effect, Gate, Precondition, Refusal, Scope, StreamId, TenantId};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::Ceilings;
use crate::hash::Hash;

/// A row of a guard table, if it is known.
#[derive(Clone, Debug, PartialEq)]
enum Row<V> {
    /// Neither read nor remembered nor changed.
    Unread,
    Absent,
    Present(V),
}

impl<V> Row<V> {
    fn of(value: Option<V>) -> Self {
        value.map_or(Self::Absent, Self::Present)
    }

    fn value(&self) -> Option<&V> {
        match self {
            Self::Present(value) => Some(value),
            Self::Unread | Self::Absent => None,
        }
    }
}

/// Rows of one guard table: what they were, what they are, and how to take back what the current request did.
pub(crate) struct Table<K, V> {
    rows: HashMap<K, (Row<V>, Row<V>)>,
    undo: Vec<(K, Row<V>)>,
}

/// A row that a batch changes.
pub(crate) struct Change<'a, K, V> {
    pub(crate) key: &'a K,
    /// Whether the old row has to be deleted. True as well if it is not known whether there is one.
    pub(crate) replaces: bool,
    pub(crate) after: Option<&'a V>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { rows: HashMap::new(), undo: Vec::new() }
    }
}

impl<K: Clone + Eq + StdHash, V: Clone + PartialEq> Table<K, V> {
    pub(crate) fn load(&mut self, key: K, value: V) {
        self.put(key, Some(value));
    }

    /// A row as it stands; `None`: it is known that there is none.
    pub(crate) fn put(&mut self, key: K, value: Option<V>) {
        let row = Row::of(value);
        self.rows.insert(key, (row.clone(), row));
    }

    /// Whether it is known what stands there.
    pub(crate) fn knows(&self, key: &K) -> bool {
        self.rows.get(key).is_some_and(|row| row.1 != Row::Unread)
    }

    /// What is known now, also of rows that are not there.
    pub(crate) fn known(&self) -> impl Iterator<Item = (&K, Option<&V>)> {
        self.rows.iter().filter(|(_, row)| row.1 != Row::Unread).map(|(key, row)| (key, row.1.value()))
    }

    /// The value that is known to be there.
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.rows.get(key).and_then(|row| row.1.value())
    }

    /// Changes a row, which may be unread.
    pub(crate) fn set(&mut self, key: K, value: Option<V>) {
        let row = self.rows.entry(key.clone()).or_insert((Row::Unread, Row::Unread));
        self.undo.push((key, std::mem::replace(&mut row.1, Row::of(value))));
    }

    fn keep(&mut self) {
        self.undo.clear();
    }

    fn rollback(&mut self) {
        while let Some((key, row)) = self.undo.pop() {
            if let Some(now) = self.rows.get_mut(&key) {
                now.1 = row;
            }
        }
    }

    /// What is there now.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (&K, &V)> {
        self.rows.iter().filter_map(|(key, row)| row.1.value().map(|value| (key, value)))
    }

    /// Removes what `gone` says.
    pub(crate) fn remove(&mut self, gone: impl Fn(&K, &V) -> bool) {
        self.rows.retain(|key, row| row.1.value().is_none_or(|value| !gone(key, value)));
    }

    /// The rows that the batch changes.
    pub(crate) fn changes(&self) -> impl Iterator<Item = Change<'_, K, V>> {
        let changed = self.rows.iter().filter(|(_, (before, after))| before != after);
        changed.map(|(key, (before, after))| Change { key, replaces: *before != Row::Absent, after: after.value() })
    }
}

/// The gate of a tenant that is gone.
const DELETED: &str = "deleted";

/// (aggregate type, stream).
pub(crate) type StreamKey = (&'static str, StreamId);

/// (aggregate type, stream, name).
pub(crate) type TimerKey = (&'static str, StreamId, String);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ClaimKey {
    pub(crate) scope: Uuid,
    pub(crate) namespace: &'static str,
    pub(crate) value: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Holder {
    pub(crate) aggregate: String,
    pub(crate) stream: StreamId,
    pub(crate) namespace: &'static str,
    pub(crate) label: String,
}

impl Holder {
    pub(crate) fn of(aggregate: &str, stream: StreamId, claim: &Claim, label: &str) -> Self {
        Self { aggregate: aggregate.to_owned(), stream, namespace: claim.namespace, label: label.to_owned() }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Counter {
    pub(crate) value: i64,
    pub(crate) floor: Option<i64>,
    pub(crate) ceiling: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Default)]
pub(crate) struct TenantHead {
    pub(crate) position: i64,
    pub(crate) hash: Hash,
    pub(crate) gate: Option<String>,
}

#[derive(Default)]
pub(crate) struct Guards {
    pub(crate) versions: Table<StreamKey, i64>,
    /// Streams that are assumed to have events although their versions are not known.
    pub(crate) existing: HashSet<StreamKey>,
    pub(crate) tenants: Table<TenantId, TenantHead>,
    pub(crate) claims: Table<ClaimKey, Holder>,
    pub(crate) held: Table<Holder, ClaimKey>,
    pub(crate) counters: Table<(TenantId, CounterName), Counter>,
    pub(crate) allocations: Table<(TenantId, &'static str), i64>,
    pub(crate) timers: Table<TimerKey, DateTime<Utc>>,
    pub(crate) erased: Table<(TenantId, domain::SubjectId), ()>,
    pub(crate) ended: Table<TenantId, ()>,
    /// Where counters end for which nothing in the log says so; an audit, which folds what was accepted, knows of none.
    pub(crate) ceilings: Arc<Ceilings>,
}

macro_rules! all_tables {
    ($self:ident, $method:ident) => {{
        $self.versions.$method();
        $self.tenants.$method();
        $self.claims.$method();
        $self.held.$method();
        $self.counters.$method();
        $self.allocations.$method();
        $self.timers.$method();
        $self.erased.$method();
        $self.ended.$method();
    }};
}

pub(crate) fn scope_of(claim: &Claim, tenant: TenantId) -> Uuid {
    match claim.scope {
        Scope::Installation => Uuid::nil(),
        Scope::Tenant => tenant.0,
    }
}

pub(crate) fn claim_key(claim: &Claim, tenant: TenantId, value: &str) -> ClaimKey {
    ClaimKey { scope: scope_of(claim, tenant), namespace: claim.namespace, value: value.to_owned() }
}

/// Where a tenant's counter ends for which nothing in the log says so: where the last of those ends that its ceiling may be that of.
pub(crate) fn ceiling_unless_set(ceilings: &Ceilings, tenant: TenantId, counter: CounterName) -> Option<i64> {
    if tenant == TenantId::SYSTEM { None } else { counter.ceilings().last().and_then(|by| ceilings.get(by.kind)).copied() }
}

impl Guards {
    /// Nothing yet, with what holds where the log says nothing.
    pub(crate) fn with(ceilings: Arc<Ceilings>) -> Self {
        Self { ceilings, ..Self::default() }
    }

    /// The request is accepted: what it did stays.
    pub(crate) fn keep(&mut self) {
        all_tables!(self, keep);
    }

    /// The request is refused: what it did is taken back.
    pub(crate) fn rollback(&mut self) {
        all_tables!(self, rollback);
    }

    /// What `append_batch` does at the end of a tenant, for whoever folds the whole log.
    pub(crate) fn end_tenant(&mut self, tenant: TenantId) {
        self.claims.remove(|_, holder| holder.stream.tenant == tenant);
        self.held.remove(|holder, _| holder.stream.tenant == tenant);
        self.counters.remove(|key, _| key.0 == tenant);
        self.allocations.remove(|key, _| key.0 == tenant);
        self.timers.remove(|key, _| key.1.tenant == tenant);
    }

    pub(crate) fn check(&self, tenant: TenantId, precondition: &Precondition) -> Result<(), Refusal> {
        match precondition {
            Precondition::StreamAt { aggregate, stream, version } => {
                let actual = self.versions.get(&(aggregate, *stream)).copied().unwrap_or(0);
                if actual == *version { Ok(()) } else { Err(Refusal::StreamMoved { aggregate: (*aggregate).to_owned(), id: stream.id }) }
            }
            Precondition::StreamExists { aggregate, stream } => {
                let key = (*aggregate, *stream);
                let exists = self.existing.contains(&key) || self.versions.get(&key).is_some_and(|version| *version > 0);
                if exists { Ok(()) } else { Err(Refusal::NoSuchStream { aggregate: (*aggregate).to_owned(), id: stream.id }) }
            }
            Precondition::ClaimFree { claim, value } => match self.claims.get(&claim_key(claim, tenant, value)) {
                None => Ok(()),
                Some(_) => Err(Refusal::ClaimTaken { namespace: claim.namespace.to_owned() }),
            },
            Precondition::ClaimHeld { claim, value } => match self.claims.get(&claim_key(claim, tenant, value)) {
                Some(_) => Ok(()),
                None => Err(Refusal::ClaimNotHeld { namespace: claim.namespace.to_owned() }),
            },
            Precondition::CounterWithin { counter, at_least, at_most } => {
                let value = self.counters.get(&(tenant, *counter)).map_or(0, |c| c.value);
                if at_least.is_none_or(|n| value >= n) && at_most.is_none_or(|n| value <= n) {
                    Ok(())
                } else {
                    Err(Refusal::CounterOutOfBounds { counter: counter.to_string(), value, floor: *at_least, ceiling: *at_most })
                }
            }
            Precondition::GateOpen | Precondition::TenantLives if tenant == TenantId::SYSTEM => Ok(()),
            Precondition::TenantLives => match self.tenants.get(&tenant).and_then(|t| t.gate.as_deref()) {
                None | Some(DELETED) => Err(Refusal::NoSuchTenant { tenant }),
                Some(_) => Ok(()),
            },
            Precondition::GateOpen => match self.tenants.get(&tenant).and_then(|t| t.gate.as_deref()) {
                None => Err(Refusal::NoSuchTenant { tenant }),
                Some("open") => Ok(()),
                Some(status) => Err(Refusal::GateClosed { status: status.to_owned() }),
            },
            Precondition::TimerSet { aggregate, stream, name, due } => match self.timers.get(&(aggregate, *stream, name.clone())) {
                Some(set) if set == due => Ok(()),
                Some(_) | None => Err(Refusal::TimerNotSet { name: name.clone() }),
            },
        }
    }

    /// Applies one effect of an event of `stream`; for an allocation answers the number drawn.
    pub(crate) fn apply(&mut self, aggregate: &'static str, stream: StreamId, effect: &Effect) -> Result<Option<i64>, Refusal> {
        let tenant = stream.tenant;
        let holder = |claim: &Claim, label: &str| Holder::of(aggregate, stream, claim, label);
        match effect {
            Effect::TakeClaim { value: None, .. } => {}
            Effect::TakeClaim { claim, label, value: Some(value) } => {
                let (key, me) = (claim_key(claim, tenant, value), holder(claim, label));
                match self.claims.get(&key) {
                    Some(other) if *other != me => return Err(Refusal::ClaimTaken { namespace: claim.namespace.to_owned() }),
                    Some(_) => {}
                    None => {
                        if let Some(old) = self.held.get(&me).cloned() {
                            self.claims.set(old, None);
                        }
                        self.claims.set(key.clone(), Some(me.clone()));
                        self.held.set(me, Some(key));
                    }
                }
            }
            Effect::ReleaseClaim { claim, label } => {
                let me = holder(claim, label);
                if let Some(key) = self.held.get(&me).cloned() {
                    self.claims.set(key, None);
                }
                self.held.set(me, None);
            }
            // What is gone is counted no more.
            Effect::Count { .. } if self.tenants.get(&tenant).and_then(|head| head.gate.as_deref()) == Some(DELETED) => {}
            Effect::Count { counter, delta } => {
                let key = (tenant, *counter);
                let mut c = self.counters.get(&key).cloned().unwrap_or(Counter { value: 0, floor: None, ceiling: None });
                let set = counter.ceilings().find_map(|by| self.counters.get(&(tenant, by)).and_then(|by| by.ceiling));
                let ceiling = set.or_else(|| ceiling_unless_set(&self.ceilings, tenant, *counter));
                let refused = || Refusal::CounterOutOfBounds { counter: counter.to_string(), value: c.value, floor: c.floor, ceiling };
                let value = c.value.checked_add(*delta).ok_or_else(refused)?;
                if (*delta > 0 && ceiling.is_some_and(|most| value > most)) || (*delta < 0 && c.floor.is_some_and(|least| value < least)) {
                    return Err(refused());
                }
                c.value = value;
                self.counters.set(key, Some(c));
            }
            Effect::Bound { counter, floor, ceiling } => {
                let key = (tenant, *counter);
                let value = self.counters.get(&key).map_or(0, |c| c.value);
                self.counters.set(key, Some(Counter { value, floor: *floor, ceiling: *ceiling }));
            }
            Effect::Allocate { sequence, .. } => {
                let key = (tenant, *sequence);
                let next = self.allocations.get(&key).copied().unwrap_or(0) + 1;
                self.allocations.set(key, Some(next));
                return Ok(Some(next));
            }
            Effect::SetTimer { name, due } => self.timers.set((aggregate, stream, name.clone()), Some(*due)),
            Effect::CancelTimer { name } => self.timers.set((aggregate, stream, name.clone()), None),
            Effect::Gate(gate) => {
                let mut head = self.tenants.get(&tenant).cloned().unwrap_or_default();
                head.gate = Some(match gate {
                    Gate::Open => "open".to_owned(),
                    Gate::Closed(status) => (*status).to_owned(),
                });
                self.tenants.set(tenant, Some(head));
            }
            Effect::Erase(subject) => self.erased.set((tenant, *subject), Some(())),
            Effect::EndTenant => self.ended.set(tenant, Some(())),
        }
        Ok(None)
    }

    /// The changed guards as the document that `append_batch` takes; `None` when nothing changed.
    pub(crate) fn document(&self) -> Option<Value> {
        // Deleted by holder: the value of an unread claim is not known.
        let holders_gone: Vec<_> = self
            .held
            .changes()
            .filter(|change| change.replaces)
            .map(|Change { key: h, .. }| json!({"aggregate_type": h.aggregate, "aggregate_id": h.stream.to_string(), "namespace": h.namespace, "label": h.label}))
            .collect();
        let claims: Vec<_> = self
            .claims
            .changes()
            .filter_map(|Change { key: k, after, .. }| after.map(|h| json!({"scope": k.scope, "namespace": k.namespace, "value": k.value, "tenant_id": h.stream.tenant, "aggregate_type": h.aggregate, "aggregate_id": h.stream.to_string(), "label": h.label})))
            .collect();
        let counters: Vec<_> = self
            .counters
            .changes()
            .filter_map(|Change { key: k, after, .. }| {
                after.map(|c| json!({"tenant_id": k.0, "name": k.1.to_string(), "value": c.value, "floor": c.floor, "ceiling": c.ceiling}))
            })
            .collect();
        let allocations: Vec<_> = self
            .allocations
            .changes()
            .filter_map(|Change { key: k, after, .. }| after.map(|last| json!({"tenant_id": k.0, "name": k.1, "last": last})))
            .collect();
        let timer = |(aggregate, stream, name): &TimerKey| json!({"aggregate_type": aggregate, "aggregate_id": stream.to_string(), "name": name, "tenant_id": stream.tenant});
        let timers_gone: Vec<_> = self.timers.changes().filter(|change| change.replaces).map(|change| timer(change.key)).collect();
        let timers: Vec<_> = self
            .timers
            .changes()
            .filter_map(|Change { key, after, .. }| {
                after.map(|due| {
                    let mut row = timer(key);
                    row["due_at"] = json!(due);
                    row
                })
            })
            .collect();
        let erased: Vec<_> = self.erased.changes().map(|change| json!({"tenant_id": change.key.0, "subject_id": change.key.1})).collect();
        let ended: Vec<_> = self.ended.changes().map(|change| json!(change.key)).collect();
        let nothing =
            [&holders_gone, &claims, &counters, &allocations, &timers_gone, &timers, &erased, &ended].iter().all(|list| list.is_empty());
        (!nothing).then(|| {
            json!({"holders_gone": holders_gone, "claims": claims, "counters": counters, "allocations": allocations, "timers_gone": timers_gone, "timers": timers, "erased": erased, "ended": ended})
        })
    }
}
