//! The only place where the system clock is read and identifiers are drawn; `clippy.toml` bans both everywhere else, so that tests can decide what time it is.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use uuid::{ContextV7, Timestamp, Uuid};

/// Tells the time. All time in Tenure comes from one of these.
pub trait Clock: Send + Sync + 'static {
    /// Now, in whole microseconds (what Postgres stores; a finer time would not survive the round trip and break the hash).
    fn now(&self) -> DateTime<Utc>;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
    fn now(&self) -> DateTime<Utc> {
        micros(Utc::now())
    }
}

/// A clock that stands still until it is told otherwise.
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<AtomicI64>);

impl ManualClock {
    /// Starts at `now`.
    pub fn new(now: DateTime<Utc>) -> Self {
        Self(Arc::new(AtomicI64::new(now.timestamp_micros())))
    }

    /// Moves on (or back) by `by`.
    pub fn advance(&self, by: TimeDelta) {
        self.0.fetch_add(by.num_microseconds().unwrap_or(0), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(self.0.load(Ordering::SeqCst)).unwrap_or_default()
    }
}

/// `time` cut to whole microseconds.
pub fn micros(time: DateTime<Utc>) -> DateTime<Utc> {
    // Not by `duration_trunc`, which counts nanoseconds in 64 bits and leaves times before 1677 and after 2262 as they are.
    DateTime::from_timestamp_micros(time.timestamp_micros()).unwrap_or(time)
}

/// Draws UUIDv7 (RFC 9562 section 5.7) identifiers that rise within a process even when the clock stands still.
pub struct IdSource {
    clock: Arc<dyn Clock>,
    context: Mutex<ContextV7>,
}

impl IdSource {
    /// Ids whose time part is `clock`'s.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, context: Mutex::new(ContextV7::new()) }
    }

    /// The next id.
    pub fn next(&self) -> Uuid {
        let now = self.clock.now();
        let context = self.context.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = u64::try_from(now.timestamp()).unwrap_or(0);
        Uuid::new_v7(Timestamp::from_unix(&*context, seconds, now.timestamp_subsec_nanos()))
    }
}
