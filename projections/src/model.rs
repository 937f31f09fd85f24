//! What a read model declares.

use std::hash::Hash;

use domain::{Aggregate, TenantId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use store::load::LoadError;
use store::{RawEvent, Recorded, Store};
use uuid::Uuid;

/// What waits together when one event of it cannot be folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partition {
    /// The events of one stream.
    Stream,
    /// The events of one tenant: for rows that gather what many streams say.
    Tenant,
}

impl Partition {
    /// The partition that an event belongs to: `<tenant uuid>/<id>` or `<tenant uuid>`.
    pub(crate) fn of(self, event: &RawEvent) -> String {
        match self {
            Self::Stream => event.aggregate_id.clone(),
            Self::Tenant => event.tenant_id.to_string(),
        }
    }
}

/// The key of a read model with one row for each stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct StreamKey {
    /// Whose.
    pub tenant_id: TenantId,
    /// The aggregate's own id.
    pub id: Uuid,
}

impl StreamKey {
    /// The row of the event's stream.
    pub fn of<E>(event: &Recorded<E>) -> Vec<Self> {
        vec![Self { tenant_id: event.stream.tenant, id: event.stream.id }]
    }
}

/// Whose events a read model folds: those of one aggregate, or of several that it names itself.
pub trait Source: Send + Sync + 'static {
    /// The aggregate types.
    const TYPES: &'static [&'static str];

    /// What their events are to the fold.
    type Event: Send + Sync;

    /// Whether an event is one of those; one that is not is not even read.
    fn concerns(event: &RawEvent) -> bool {
        Self::TYPES.contains(&event.aggregate_type.as_str())
    }

    /// Turns stored events of these types into what the fold sees.
    fn typed(store: &Store, events: &[&RawEvent]) -> impl Future<Output = Result<Vec<Recorded<Self::Event>>, LoadError>> + Send;
}

impl<A: Aggregate> Source for A {
    const TYPES: &'static [&'static str] = &[A::TYPE];

    type Event = <A as cqrs_es::Aggregate>::Event;

    async fn typed(store: &Store, events: &[&RawEvent]) -> Result<Vec<Recorded<Self::Event>>, LoadError> {
        store.typed::<A>(events).await
    }
}

/// A fold of the log into rows. Pure: given the same events it makes the same rows, so rebuilt = live.
pub trait ReadModel: Send + Sync + 'static {
    /// Versioned: `tenants_v1`. Also the name of the view that queries read.
    const NAME: &'static str;

    /// What waits together.
    const PARTITION: Partition = Partition::Stream;

    /// The column with the data subject whose personal data a row holds, if rows do. The rows of a tenant that is gone are removed, since all of its subjects are.
    const SUBJECT: Option<&'static str> = None;

    /// Whose events it folds.
    type Events: Source;

    /// The key columns; the first is always `tenant_id`.
    type Key: Serialize + Clone + Eq + Hash + Send + Sync;

    /// The columns, by name.
    type Row: Serialize + DeserializeOwned + Clone + PartialEq + Send + Sync + Unpin;

    /// The rows that an event touches. An event that moves something carries both the old and the new value.
    fn keys(event: &Recorded<<Self::Events as Source>::Event>) -> Vec<Self::Key>;

    /// What becomes of one of them.
    fn apply(key: &Self::Key, row: Option<Self::Row>, event: &Recorded<<Self::Events as Source>::Event>) -> Option<Self::Row>;

    /// What is left of a row once its subject's personal data has been erased: what the fold would have made of the erased values.
    fn erased(row: Self::Row) -> Self::Row {
        row
    }
}
