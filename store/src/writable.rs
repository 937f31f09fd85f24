//! Whether the log takes writes now.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::Store;

/// For how long the outcome of an append stands for the present state of the log.
const FRESH: Duration = Duration::from_secs(5);

/// The outcome of the last attempt of this process to write.
#[derive(Debug, Default)]
pub(crate) struct LastWrite(Mutex<Option<(Instant, Result<(), String>)>>);

impl LastWrite {
    pub(crate) fn succeeded(&self) {
        *self.0.lock() = Some((Instant::now(), Ok(())));
    }

    pub(crate) fn failed(&self, reason: String) {
        *self.0.lock() = Some((Instant::now(), Err(reason)));
    }

    fn fresh(&self) -> Option<Result<(), String>> {
        self.0.lock().as_ref().filter(|(at, _)| at.elapsed() < FRESH).map(|(_, outcome)| outcome.clone())
    }
}

/// The database refuses writes, or does not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("commands fail: {0}")]
pub struct NotWritable(String);

impl Store {
    /// Whether commands can be written now: the outcome of this process's last append, if that is at most 5 s old; otherwise a row is rewritten and committed. A full disk may
    /// have room for that row while it has none for events, so a failed append counts for its 5 s.
    pub async fn writable(&self) -> Result<(), NotWritable> {
        self.recognise().await.map_err(|error| NotWritable(error.to_string()))?;
        if let Some(outcome) = self.inner.last_write.fresh() {
            return outcome.map_err(NotWritable);
        }
        sqlx::query("update ops.write_probe set written_at = now()")
            .execute(&self.inner.pool)
            .await
            .map(drop)
            .map_err(|error| NotWritable(error.to_string()))
    }
}
