//! The timer poller: turns what is due into commands.
//!
//! A timer is fired by a command whose id follows from the timer, under the precondition that it is still set for that time, and the event that results
//! clears or moves it, in the same append. So it fires exactly once, wherever a poller dies and however many there are; the lease only saves work.

use std::time::Duration;

use chrono::TimeDelta;
use domain::{Actor, Aggregate, Precondition, StreamId};
use store::timers::{Due, done, forget_leases, next_due, take_due};
use store::{Key, Store};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::error::CommandError;
use crate::execute::{Executor, Request};

/// The longest time between two looks.
const POLL: Duration = Duration::from_secs(1);
/// A poller that died keeps its timers this long from the others. One that is slower than this has them fired by others, too, which does no harm.
const LEASE: Duration = Duration::from_secs(1);
/// Timers taken at a time.
const BATCH: i64 = 500;
/// How often old idempotency keys are forgotten.
const HOUSEKEEPING: TimeDelta = TimeDelta::hours(1);

/// Forgets what nobody needs any more; whether that is all.
async fn housekeep(store: &Store) -> Result<bool, sqlx::Error> {
    forget_leases(store.pool()).await?;
    Ok(store.expire_keys().await? < store::keys::AT_A_TIME)
}

/// A poller of one process.
#[derive(Clone)]
pub struct TimerPoller {
    executor: Executor,
    owner: Uuid,
}

impl TimerPoller {
    /// A poller that sends its commands through `executor`.
    pub fn new(executor: Executor) -> Self {
        let owner = executor.store().fresh_id();
        Self { executor, owner }
    }

    /// Fires what falls due, until cancelled.
    pub async fn run(self, cancel: CancellationToken) {
        let store = self.executor.store().clone();
        let mut housekept = store.clock().now() - HOUSEKEEPING;
        while !cancel.is_cancelled() {
            let fired = tokio::select! {
                () = cancel.cancelled() => return,
                fired = self.fire_due() => fired,
            };
            match fired {
                // There may be more.
                Ok(taken) if taken > 0 => continue,
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "timers cannot be read"),
            }
            let now = store.clock().now();
            if now - housekept >= HOUSEKEEPING {
                match housekeep(&store).await {
                    Ok(true) => housekept = now,
                    // There is more to forget; go on soon.
                    Ok(false) => {}
                    Err(error) => tracing::warn!(%error, "old keys and leases cannot be forgotten"),
                }
            }
            let _ = tokio::time::timeout(self.rest(&store).await, cancel.cancelled()).await;
        }
    }

    /// Until the next timer, or the next look.
    async fn rest(&self, store: &Store) -> Duration {
        let next = next_due(store.pool()).await.ok().flatten();
        let until = next.and_then(|due| (due - store.clock().now()).to_std().ok());
        // What is due already is leased to somebody or failed just now.
        until.map_or(POLL, |until| until.clamp(Duration::from_millis(10), POLL))
    }

    /// Fires everything that is due now and not taken by another poller, and answers how many that were.
    pub async fn fire_due(&self) -> Result<usize, sqlx::Error> {
        let store = self.executor.store();
        let taken = take_due(store.pool(), store.clock().now(), self.owner, LEASE, BATCH).await?;
        futures::future::join_all(taken.iter().map(|due| self.fire_one(due))).await;
        if !taken.is_empty() {
            done(store.pool(), &taken, self.owner).await?;
        }
        Ok(taken.len())
    }

    async fn fire_one(&self, due: &Due) {
        match self.fire(due).await {
            Ok(()) => metrics::counter!("tenure_timers_fired_total").increment(1),
            // Cancelled, moved or fired since it was read.
            Err(CommandError::Rejected { code, .. }) if code == "timer.not_set" => {}
            // If it is still set it stays leased for a while and is then tried again.
            Err(error) => tracing::error!(timer = due.name, stream = due.aggregate_id, %error, "a timer could not be fired"),
        }
    }

    async fn fire(&self, due: &Due) -> Result<(), CommandError> {
        macro_rules! all {
            ($($aggregate:ty,)*) => {
                match due.aggregate_type.as_str() {
                    $(<$aggregate as cqrs_es::Aggregate>::TYPE => self.fire_as::<$aggregate>(due).await,)*
                    other => Err(CommandError::Internal(format!("aggregate type {other} is not known to this binary"))),
                }
            };
        }
        domain::for_each_aggregate!(all)
    }

    async fn fire_as<A: Aggregate>(&self, due: &Due) -> Result<(), CommandError> {
        let stream: StreamId = due.aggregate_id.parse().map_err(|e: domain::ids::StreamIdError| CommandError::Internal(e.to_string()))?;
        let command = A::timer(&due.name).ok_or_else(|| CommandError::Internal(format!("{} has no timer {}", A::TYPE, due.name)))?;
        let identity = format!("{} {} {} {}", A::TYPE, stream, due.name, due.due_at.timestamp_micros());
        let command_id = Uuid::new_v5(&stream.id, identity.as_bytes());
        let mut request = Request::<A>::new(stream, command, Actor::System { name: "timers".into() }, command_id);
        request.preconditions = vec![Precondition::TimerSet { aggregate: A::TYPE, stream, name: due.name.clone(), due: due.due_at }];
        request.keys = vec![Key { tenant: stream.tenant, scope: "timer".into(), key: command_id.to_string(), fingerprint: [0; 32] }];
        self.executor.execute(request).await.map(drop)
    }
}
