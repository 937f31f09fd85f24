//! Rows that a projector remembers. It alone writes the rows of a serving generation, so what it has read or written is still there, and need not be read again.
//!
//! What is remembered is forgotten when that may not be so any more: when another generation serves, a partition was retried from outside, personal data was erased, a transaction may
//! or may not have been committed, or another process has had the lease.

use std::collections::HashMap;
use std::sync::Arc;

use bus::group::Advanced;
use parking_lot::Mutex;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::model::ReadModel;

/// What the remembered rows of one read model may take as JSON, in bytes.
const BYTES: u64 = 1024 * 1024;
/// About how many rows that are.
const ROWS: usize = 1024;

#[derive(Clone)]
struct Weight;

impl<K, R> Weighter<K, (R, usize)> for Weight {
    fn weight(&self, _: &K, (_, bytes): &(R, usize)) -> u64 {
        *bytes as u64
    }
}

type Remembered<M> = Cache<<M as ReadModel>::Key, (<M as ReadModel>::Row, usize), Weight>;

/// The rows of one read model that are remembered.
pub(crate) struct Kept<M: ReadModel> {
    rows: Arc<Remembered<M>>,
    of: Mutex<Advanced>,
}

impl<M: ReadModel> Default for Kept<M> {
    fn default() -> Self {
        Self { rows: Arc::new(Cache::with_weighter(ROWS, BYTES, Weight)), of: Mutex::default() }
    }
}

impl<M: ReadModel> Kept<M> {
    /// Forgets everything.
    pub(crate) fn forget(&self) {
        self.rows.clear();
    }

    /// Forgets everything unless it belongs to this generation, revision and epoch.
    pub(crate) fn belongs_to(&self, advanced: &Advanced) {
        let mut of = self.of.lock();
        if (of.generation, of.revision, of.epoch) != (advanced.generation, advanced.revision, advanced.epoch) {
            self.forget();
            of.clone_from(advanced);
        }
    }

    /// What a transaction sees of them.
    pub(crate) fn rows(&self) -> Rows<M> {
        Rows { kept: Some(self.rows.clone()), seen: HashMap::new() }
    }

    /// Remembers what a transaction that was committed has seen.
    pub(crate) fn take(&self, rows: Rows<M>) {
        for (key, row) in rows.seen {
            match row {
                Some((row, bytes)) => self.rows.insert(key, (row, bytes)),
                None => drop(self.rows.remove(&key)),
            }
        }
    }
}

/// What is known of the row of a key.
pub(crate) enum Known<R> {
    /// It is this one.
    Row(R),
    /// There is none.
    Nothing,
    /// It has to be read.
    Unknown,
}

/// What a transaction knows of the rows: what was remembered before, and what it has itself read or written.
pub(crate) struct Rows<M: ReadModel> {
    kept: Option<Arc<Remembered<M>>>,
    seen: HashMap<M::Key, Option<(M::Row, usize)>>,
}

impl<M: ReadModel> Default for Rows<M> {
    /// Nothing, and nothing is remembered.
    fn default() -> Self {
        Self { kept: None, seen: HashMap::new() }
    }
}

impl<M: ReadModel> Rows<M> {
    /// What is known of the row of a key.
    pub(crate) fn get(&self, key: &M::Key) -> Known<M::Row> {
        match self.seen.get(key) {
            Some(Some((row, _))) => Known::Row(row.clone()),
            Some(None) => Known::Nothing,
            None => self.kept.as_ref().and_then(|kept| kept.get(key)).map_or(Known::Unknown, |(row, _)| Known::Row(row)),
        }
    }

    /// Notes the row that a key has now, and its length as JSON.
    pub(crate) fn set(&mut self, key: M::Key, row: Option<(M::Row, usize)>) {
        if self.kept.is_some() {
            self.seen.insert(key, row);
        }
    }

    /// Forgets everything: rows have changed that are not known by their keys.
    pub(crate) fn forget(&mut self) {
        self.seen.clear();
        if let Some(kept) = &self.kept {
            kept.clear();
        }
    }
}
