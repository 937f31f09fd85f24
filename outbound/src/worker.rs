//! Attempting what is due.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use store::Store;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::queue::{self, Attempt, Due};

/// How deliveries of a kind are attempted.
pub trait Channel: Send + Sync + 'static {
    /// Which kind.
    fn kind(&self) -> &'static str;

    /// Whether what is about the same subject is attempted one after the other, in the order in which it was decided: where the last word has to be the last one told.
    fn is_ordered(&self) -> bool {
        false
    }

    /// Attempts one. What it answers names nothing personal: it is kept.
    fn attempt<'a>(&'a self, due: &'a Due) -> BoxFuture<'a, Attempt>;
}

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
    channels: Vec<Arc<dyn Channel>>,
    kinds: Vec<&'static str>,
    owner: Uuid,
}

impl Worker {
    /// A worker that delivers what there is a channel for; the rest waits for one that has it.
    pub fn new(store: Store, channels: Vec<Arc<dyn Channel>>) -> Self {
        let (owner, kinds) = (store.fresh_id(), channels.iter().map(|channel| channel.kind()).collect());
        Self { store, channels, kinds, owner }
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
            match queue::drop_orphans(self.store.pool(), now).await {
                Ok(0) => {}
                Ok(dropped) => tracing::warn!(dropped, "deliveries whose events are not in the log were dropped"),
                Err(error) => tracing::warn!(%error, "deliveries cannot be compared with the log"),
            }
            if now - kept >= TimeDelta::hours(1) {
                kept = now;
                if let Err(error) = queue::forget(self.store.pool(), now - KEPT).await {
                    tracing::warn!(%error, "old deliveries cannot be forgotten");
                }
            }
            let next = queue::next_due(self.store.pool(), &self.kinds).await.ok().flatten();
            let until = next.and_then(|due| (due - now).to_std().ok()).map_or(POLL, |until| until.clamp(Duration::from_millis(20), POLL));
            let _ = tokio::time::timeout(until, cancel.cancelled()).await;
        }
    }

    /// Attempts everything that is due now and taken by nobody else, and answers how many that were.
    pub async fn deliver_due(&self) -> Result<usize, sqlx::Error> {
        let ordered: Vec<_> = self.channels.iter().filter(|channel| channel.is_ordered()).map(|channel| channel.kind()).collect();
        let due = queue::take(self.store.pool(), self.owner, &self.kinds, &ordered, self.store.clock().now(), BATCH).await?;
        let attempts: Vec<_> = due.iter().map(|due| self.attempt(due)).collect();
        let results: Vec<Result<(), sqlx::Error>> =
            futures::stream::iter(attempts).buffer_unordered(usize::try_from(BATCH).unwrap_or(1)).collect().await;
        results.into_iter().collect::<Result<(), _>>()?;
        Ok(due.len())
    }

    async fn attempt(&self, due: &Due) -> Result<(), sqlx::Error> {
        let began = self.store.clock().now();
        let Some(channel) = self.channels.iter().find(|channel| channel.kind() == due.kind) else { return Ok(()) };
        let attempt = tokio::time::timeout(PATIENCE, channel.attempt(due)).await;
        let attempt = attempt.unwrap_or_else(|_| Attempt::Failed("no answer in time".into()));
        let word = match &attempt {
            Attempt::Delivered => "delivered",
            Attempt::Failed(_) => "failed",
            Attempt::Refused(_) => "refused",
            Attempt::Dropped(_) => "dropped",
        };
        metrics::counter!("tenure_delivery_attempts_total", "kind" => channel.kind(), "outcome" => word).increment(1);
        if let Attempt::Failed(reason) | Attempt::Refused(reason) = &attempt {
            tracing::warn!(delivery = %due.id, kind = due.kind, attempt = due.attempts + 1, reason, "not delivered");
        }
        queue::record(self.store.pool(), self.owner, due, began, self.store.clock().now(), &attempt).await
    }
}
