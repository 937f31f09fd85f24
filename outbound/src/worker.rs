//! Attempting what is due.

use std::time::Duration;

use chrono::TimeDelta;
use futures::StreamExt as _;
use store::Store;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::mail::Mailer;
use crate::queue::{self, Due};

/// The longest time between two looks.
const POLL: Duration = Duration::from_secs(1);
/// Deliveries taken, and attempted, at a time.
const BATCH: i64 = 16;
/// An attempt that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it is known what was delivered.
const KEPT: TimeDelta = TimeDelta::days(90);

/// A worker of one process.
#[derive(Clone)]
pub struct Worker {
    store: Store,
    mailer: Mailer,
    owner: Uuid,
}

impl Worker {
    /// A worker that delivers by `mailer`.
    pub fn new(store: Store, mailer: Mailer) -> Self {
        let owner = store.fresh_id();
        Self { store, mailer, owner }
    }

    /// Delivers until cancelled; what is being attempted then is finished first.
    pub async fn run(self, cancel: CancellationToken) {
        let mut kept = self.store.clock().now();
        while !cancel.is_cancelled() {
            match self.deliver_due().await {
                Ok(taken) if taken > 0 => continue,
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "deliveries cannot be read or recorded"),
            }
            let now = self.store.clock().now();
            if now - kept >= TimeDelta::hours(1) {
                kept = now;
                if let Err(error) = queue::forget(self.store.pool(), now - KEPT).await {
                    tracing::warn!(%error, "old deliveries cannot be forgotten");
                }
            }
            let next = queue::next_due(self.store.pool()).await.ok().flatten();
            let until = next.and_then(|due| (due - now).to_std().ok()).map_or(POLL, |until| until.clamp(Duration::from_millis(20), POLL));
            let _ = tokio::time::timeout(until, cancel.cancelled()).await;
        }
    }

    /// Attempts everything that is due now and taken by nobody else, and answers how many that were.
    pub async fn deliver_due(&self) -> Result<usize, sqlx::Error> {
        let due = queue::take(self.store.pool(), self.owner, self.store.clock().now(), BATCH).await?;
        let attempts: Vec<_> = due.iter().map(|due| self.attempt(due)).collect();
        let results: Vec<Result<(), sqlx::Error>> =
            futures::stream::iter(attempts).buffer_unordered(usize::try_from(BATCH).unwrap_or(1)).collect().await;
        results.into_iter().collect::<Result<(), _>>()?;
        Ok(due.len())
    }

    async fn attempt(&self, due: &Due) -> Result<(), sqlx::Error> {
        let began = self.store.clock().now();
        let attempt = tokio::time::timeout(PATIENCE, self.mailer.send(&self.store, due)).await;
        let attempt = attempt.unwrap_or_else(|_| queue::Attempt::Failed("no answer in time".into()));
        let word = match &attempt {
            queue::Attempt::Delivered => "delivered",
            queue::Attempt::Failed(_) => "failed",
            queue::Attempt::Refused(_) => "refused",
            queue::Attempt::Dropped(_) => "dropped",
        };
        metrics::counter!("tenure_delivery_attempts_total", "kind" => "mail", "outcome" => word).increment(1);
        if let queue::Attempt::Failed(reason) | queue::Attempt::Refused(reason) = &attempt {
            tracing::warn!(delivery = %due.id, attempt = due.attempts + 1, reason, "a mail was not delivered");
        }
        queue::record(self.store.pool(), self.owner, due, began, self.store.clock().now(), &attempt).await
    }
}
