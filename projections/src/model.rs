//! What a read model declares.

use std::hash::Hash;

use domain::Aggregate;
use serde::Serialize;
use serde::de::DeserializeOwned;
use store::Recorded;

/// A fold of the log into rows. Pure: given the same events it makes the same rows, so rebuilt = live.
pub trait ReadModel: Send + Sync + 'static {
    /// Versioned: `tenants_v1`. Also the name of the view that queries read.
    const NAME: &'static str;

    /// Whose events it folds.
    type Aggregate: Aggregate;

    /// The key columns; the first is always `tenant_id`.
    type Key: Serialize + Clone + Eq + Hash + Send + Sync;

    /// The columns, by name.
    type Row: Serialize + DeserializeOwned + Clone + PartialEq + Send + Sync + Unpin;

    /// The rows that an event touches. An event that moves something carries both the old and the new value.
    fn keys(event: &Recorded<<Self::Aggregate as cqrs_es::Aggregate>::Event>) -> Vec<Self::Key>;

    /// What becomes of one of them.
    fn apply(
        key: &Self::Key,
        row: Option<Self::Row>,
        event: &Recorded<<Self::Aggregate as cqrs_es::Aggregate>::Event>,
    ) -> Option<Self::Row>;
}
