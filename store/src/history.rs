//! What this process remembers of the log, and noticing that the log was restored to an earlier state.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::load::Cache;
use crate::seal::Keyring;
use crate::{Head, Store};

/// The furthest head that this process has seen, with everything that it remembers of the log up to there.
pub(crate) struct History {
    seen: Mutex<Head>,
    /// Rises with every rewind: what was decided and sealed before one is not written after it.
    generation: AtomicU64,
    keyring: Arc<Keyring>,
    cache: Arc<Cache>,
    head: watch::Sender<i64>,
}

impl History {
    pub(crate) fn new(seen: Head, keyring: Arc<Keyring>, cache: Arc<Cache>, head: watch::Sender<i64>) -> Self {
        Self { seen: Mutex::new(seen), generation: AtomicU64::new(0), keyring, cache, head }
    }

    /// The furthest head seen.
    pub(crate) fn seen(&self) -> Head {
        *self.seen.lock()
    }

    /// The number of rewinds so far.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Notes a head. One that lies before the furthest says nothing: reads overtake one another.
    pub(crate) fn saw(&self, head: Head) {
        let mut seen = self.seen.lock();
        if head.position > seen.position {
            *seen = head;
        }
    }

    /// The log, which ends at `to`, does not have what was seen: nothing that is remembered holds any more, neither states of aggregates nor keys of data subjects. Does
    /// nothing where another task has noticed already.
    pub(crate) fn rewind(&self, seen: Head, to: Head) {
        {
            let mut now = self.seen.lock();
            if *now != seen {
                return;
            }
            *now = to;
            self.generation.fetch_add(1, Ordering::SeqCst);
        }
        tracing::error!(
            seen = seen.position,
            head = to.position,
            "the log no longer has what this process has seen: it was restored to an earlier state"
        );
        self.keyring.forget_all();
        self.cache.clear();
        self.head.send_replace(to.position);
    }
}

impl Store {
    /// Makes sure that the log still has what this process has seen of it; otherwise the process forgets all that it remembers. A standby that had not received everything, or a
    /// database that was restored, lacks it.
    pub async fn recognise(&self) -> Result<(), sqlx::Error> {
        let history = &self.inner.history;
        let seen = history.seen();
        if self.confirm(seen).await?.is_err() {
            history.rewind(seen, self.head().await?);
        }
        Ok(())
    }
}
