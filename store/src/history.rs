//! What this process remembers of the log, and noticing that the log was restored to an earlier state.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::load::Cache;
use crate::seal::Keyring;
use crate::{Head, Store};

/// The furthest head that this process has seen, with everything that it remembers of the log up to there.
pub(crate) struct History {
    seen: Mutex<Head>,
    keyring: Arc<Keyring>,
    cache: Arc<Cache>,
    head: watch::Sender<i64>,
}

impl History {
    pub(crate) fn new(seen: Head, keyring: Arc<Keyring>, cache: Arc<Cache>, head: watch::Sender<i64>) -> Self {
        Self { seen: Mutex::new(seen), keyring, cache, head }
    }

    /// The furthest head seen.
    pub(crate) fn seen(&self) -> Head {
        *self.seen.lock()
    }

    /// Notes a head. One that lies before the furthest says nothing: reads overtake one another.
    pub(crate) fn saw(&self, head: Head) {
        let mut seen = self.seen.lock();
        if head.position > seen.position {
            *seen = head;
        }
    }

    /// The log does not have what was seen: nothing that is remembered holds any more, neither states of aggregates nor keys of data subjects.
    pub(crate) fn rewind(&self, to: Head) {
        let seen = std::mem::replace(&mut *self.seen.lock(), to);
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
        if self.confirm(history.seen()).await?.is_err() {
            history.rewind(self.head().await?);
        }
        Ok(())
    }
}
