//! The invariants of the log, checked from the stored bytes: density, contiguous streams, digests, both chains, and every guard table against the fold of the log.

use std::collections::{BTreeMap, HashMap};

use domain::{Aggregate, Effect, StreamId, TenantId};
use futures::future::BoxFuture;
use serde::Serialize;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::append::guards::Guards;
use crate::database::snapshot;
use crate::event::RawEvent;
use crate::hash::{Hash, log_link, tenant_link};
use crate::load::LoadError;
use crate::read::{Filter, page};
use crate::{Head, Store};

/// Events read at a time.
const PAGE: i64 = 1000;

/// Something that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The first position where it shows, if it is about a place in the log.
    pub position: Option<i64>,
    /// What is wrong.
    pub what: String,
}

/// What an audit found.
#[derive(Clone, Debug)]
pub struct Report {
    /// Up to where the log was checked.
    pub head: Head,
    /// How many streams it holds.
    pub streams: usize,
    /// How many tenants it holds.
    pub tenants: usize,
    /// What is wrong, in the order in which it was met; empty when all is well.
    pub findings: Vec<Finding>,
}

/// An event's stream and what it does to the guards.
type Effects = Result<(StreamId, Vec<Effect>), LoadError>;

/// Folds the events of one aggregate type for their effects.
trait Folder: Send {
    fn effects<'a>(&'a mut self, store: &'a Store, event: &'a RawEvent) -> BoxFuture<'a, Effects>;
}

struct Fold<A>(HashMap<StreamId, A>);

impl<A: Aggregate> Folder for Fold<A> {
    fn effects<'a>(&'a mut self, store: &'a Store, event: &'a RawEvent) -> BoxFuture<'a, Effects> {
        Box::pin(async move {
            let recorded = store.typed::<A>(&[event]).await?.remove(0);
            let state = self.0.entry(recorded.stream).or_default();
            let effects = state.effects(&recorded.event);
            state.apply(recorded.event);
            Ok((recorded.stream, effects))
        })
    }
}

fn folders() -> HashMap<&'static str, Box<dyn Folder>> {
    macro_rules! all {
        ($($aggregate:ty,)*) => {
            HashMap::from([$((<$aggregate as cqrs_es::Aggregate>::TYPE, Box::new(Fold::<$aggregate>(HashMap::new())) as Box<dyn Folder>)),*])
        };
    }
    domain::for_each_aggregate!(all)
}

/// The running state of an audit.
struct Audit {
    head: Head,
    sequences: HashMap<(String, String), i64>,
    tenants: HashMap<Uuid, (i64, Hash)>,
    guards: Guards,
    folders: HashMap<&'static str, Box<dyn Folder>>,
    findings: Vec<Finding>,
    /// Each kind of fault is reported where it first shows; what follows from it would only bury it.
    seen: std::collections::HashSet<(&'static str, Option<String>)>,
}

impl Audit {
    fn find(&mut self, kind: &'static str, about: Option<String>, position: Option<i64>, what: String) {
        if self.seen.insert((kind, about)) {
            self.findings.push(Finding { position, what });
        }
    }

    async fn event(&mut self, store: &Store, event: &RawEvent) {
        let at = Some(event.position);
        let expected = self.head.position + 1;
        if event.position != expected {
            self.find("dense", None, at, format!("position {} follows {}", event.position, self.head.position));
        }
        let stream = (event.aggregate_type.clone(), event.aggregate_id.clone());
        let sequence = self.sequences.entry(stream).or_insert(0);
        let before = std::mem::replace(sequence, event.sequence);
        if event.sequence != before + 1 {
            self.find(
                "contiguous",
                Some(event.aggregate_id.clone()),
                at,
                format!("{} {}: version {} follows {before}", event.aggregate_type, event.aggregate_id, event.sequence),
            );
        }
        if event.computed_digest() != event.digest {
            self.find("digest", None, at, "the digest is not that of the event: it was changed".into());
        }
        let (_, previous) = self.tenants.get(&event.tenant_id).copied().unwrap_or_default();
        if tenant_link(previous, event.digest) != event.tenant_hash {
            self.find("tenant chain", Some(event.tenant_id.to_string()), at, format!("the chain of tenant {} is broken", event.tenant_id));
        }
        if log_link(self.head.log_hash, event.position, event.digest) != event.log_hash {
            self.find("log chain", None, at, "the chain of the log is broken".into());
        }
        self.tenants.insert(event.tenant_id, (event.position, event.tenant_hash));
        self.head = Head { position: event.position, log_hash: event.log_hash };
        self.fold(store, event).await;
    }

    async fn fold(&mut self, store: &Store, event: &RawEvent) {
        let at = Some(event.position);
        let Some((aggregate, mut folder)) = self.folders.remove_entry(event.aggregate_type.as_str()) else {
            self.find(
                "unknown",
                Some(event.aggregate_type.clone()),
                at,
                format!("aggregate type {} is not known to this binary; its guards are not checked", event.aggregate_type),
            );
            return;
        };
        match folder.effects(store, event).await {
            Ok((stream, effects)) => {
                for mut effect in effects {
                    if let Effect::TakeClaim { claim, value: Some(value), .. } = &mut effect
                        && claim.personal
                    {
                        *value = store.inner.keyring.claim_hash(claim, stream.tenant, value);
                    }
                    if let Err(refusal) = self.guards.apply(aggregate, stream, &effect) {
                        self.find("guards", None, at, format!("the guards would have refused this event: {refusal}"));
                    }
                    if effect == Effect::EndTenant {
                        self.guards.keep();
                        self.guards.end_tenant(stream.tenant);
                    }
                }
                self.guards.keep();
            }
            Err(error) => self.find("unreadable", Some(event.event_type.clone()), at, format!("cannot be folded: {error}")),
        }
        self.folders.insert(aggregate, folder);
    }

    async fn compare_guards(&mut self, tx: &mut PgConnection) -> Result<(), sqlx::Error> {
        let claims: Vec<(Uuid, String, String, String, String, String)> =
            sqlx::query_as("select scope, namespace, value, aggregate_type, aggregate_id, label from claims").fetch_all(&mut *tx).await?;
        let folded = self.guards.claims.rows().map(|(k, h)| {
            (format!("claim {} {} in {}", k.namespace, k.value, k.scope), format!("{} {} {}", h.aggregate, h.stream, h.label))
        });
        let stored = claims.into_iter().map(|c| (format!("claim {} {} in {}", c.1, c.2, c.0), format!("{} {} {}", c.3, c.4, c.5)));
        let mut differences = differences(folded, stored);

        let counters: Vec<(Uuid, String, i64, Option<i64>, Option<i64>)> =
            sqlx::query_as("select tenant_id, name, value, floor, ceiling from counters").fetch_all(&mut *tx).await?;
        let folded = self
            .guards
            .counters
            .rows()
            .map(|(k, c)| (format!("counter {} of {}", k.1, k.0), format!("{} in {:?}..{:?}", c.value, c.floor, c.ceiling)));
        let stored = counters.into_iter().map(|c| (format!("counter {} of {}", c.1, c.0), format!("{} in {:?}..{:?}", c.2, c.3, c.4)));
        differences.extend(self::differences(folded, stored));

        let allocations: Vec<(Uuid, String, i64)> =
            sqlx::query_as("select tenant_id, name, last from allocations").fetch_all(&mut *tx).await?;
        let folded = self.guards.allocations.rows().map(|(k, last)| (format!("allocation {} of {}", k.1, k.0), last.to_string()));
        differences.extend(self::differences(
            folded,
            allocations.into_iter().map(|a| (format!("allocation {} of {}", a.1, a.0), a.2.to_string())),
        ));

        let timers: Vec<(String, String, String, chrono::DateTime<chrono::Utc>)> =
            sqlx::query_as("select aggregate_type, aggregate_id, name, due_at from timers").fetch_all(&mut *tx).await?;
        let folded = self.guards.timers.rows().map(|(k, due)| (format!("timer {} of {} {}", k.2, k.0, k.1), due.to_string()));
        differences
            .extend(self::differences(folded, timers.into_iter().map(|t| (format!("timer {} of {} {}", t.2, t.0, t.1), t.3.to_string()))));

        let heads: Vec<(Uuid, i64, Vec<u8>, Option<String>)> =
            sqlx::query_as("select tenant_id, position, tenant_hash, gate from tenant_heads").fetch_all(&mut *tx).await?;
        let gates = &self.guards.tenants;
        let folded = self.tenants.iter().map(|(tenant, (position, hash))| {
            let gate = gates.get(&TenantId(*tenant)).and_then(|t| t.gate.clone());
            (format!("head of tenant {tenant}"), format!("{position} {hash} {gate:?}"))
        });
        differences.extend(self::differences(
            folded,
            heads.into_iter().map(|h| (format!("head of tenant {}", h.0), format!("{} {} {:?}", h.1, hex::encode(h.2), h.3))),
        ));
        self.findings.extend(differences.into_iter().map(|what| Finding { position: None, what }));
        Ok(())
    }
}

/// What only one side has, or both have differently.
fn differences(folded: impl Iterator<Item = (String, String)>, stored: impl Iterator<Item = (String, String)>) -> Vec<String> {
    let folded: BTreeMap<_, _> = folded.collect();
    let stored: BTreeMap<_, _> = stored.collect();
    let missing = folded
        .iter()
        .filter(|(name, _)| !stored.contains_key(*name))
        .map(|(name, value)| format!("{name} is missing; the log says {value}"));
    let other = stored.iter().filter_map(|(name, value)| match folded.get(name) {
        None => Some(format!("{name} is {value}; the log knows none")),
        Some(said) if said != value => Some(format!("{name} is {value}; the log says {said}")),
        Some(_) => None,
    });
    missing.chain(other).collect()
}

impl Store {
    /// Checks the whole log and its guards in one read-only snapshot, and reports everything that is wrong. `progress` hears the position reached now and then.
    pub async fn audit(&self, progress: &mut (dyn FnMut(i64) + Send)) -> Result<Report, sqlx::Error> {
        let mut tx = snapshot(&self.inner.pool).await?;
        let (position, log_hash): (i64, [u8; 32]) = sqlx::query_as("select position, log_hash from log_head").fetch_one(&mut *tx).await?;
        let stored = Head { position, log_hash: Hash(log_hash) };
        let mut audit = Audit {
            head: Head { position: 0, log_hash: Hash::ZERO },
            sequences: HashMap::new(),
            tenants: HashMap::new(),
            guards: Guards::default(),
            folders: folders(),
            findings: Vec::new(),
            seen: std::collections::HashSet::new(),
        };
        loop {
            let events = page(&mut tx, audit.head.position, PAGE, &Filter::default()).await?;
            if events.is_empty() {
                break;
            }
            for event in &events {
                audit.event(self, event).await;
            }
            progress(audit.head.position);
        }
        if audit.head != stored {
            let (is, says) = (audit.head, stored);
            audit.find(
                "head",
                None,
                Some(is.position),
                format!("the log ends at {} {}, its head says {} {}", is.position, is.log_hash, says.position, says.log_hash),
            );
        }
        audit.compare_guards(&mut tx).await?;
        tx.rollback().await?;
        Ok(Report { head: audit.head, streams: audit.sequences.len(), tenants: audit.tenants.len(), findings: audit.findings })
    }
}
