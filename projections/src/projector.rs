//! Keeping the serving generation of a read model up to date.
//!
//! Rows and checkpoint commit in one transaction, guarded by position and epoch: whoever has lost the lease without noticing cannot write, and each event has its effect once.
//! What cannot be folded is tried again a few times, then its partition is parked.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use bus::feed::Feed;
use bus::subscription::{Handler, HandlerError, run};
use sqlx::PgPool;
use sqlx::postgres::PgQueryResult;
use store::load::LoadError;
use store::{Hash, Head, RawEvent, Store, lease};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::fold::FoldError;
use crate::model::ReadModel;
use crate::parking::{Generation, advance, concerns};

/// How long a projector that died keeps others waiting.
const LEASE: Duration = Duration::from_secs(10);
/// How often a batch that cannot be folded is tried before the partitions at fault are parked.
const ATTEMPTS: u32 = 3;

/// How far the read models of this process have come. What other processes project is not seen here.
#[derive(Clone)]
pub struct Progress(Arc<HashMap<&'static str, watch::Sender<i64>>>);

impl Default for Progress {
    fn default() -> Self {
        macro_rules! all {
            ($($model:ty,)*) => { HashMap::from([$((<$model as ReadModel>::NAME, watch::Sender::new(0))),*]) };
        }
        Self(Arc::new(crate::for_each_read_model!(all)))
    }
}

impl Progress {
    /// Signals the checkpoint of a read model.
    pub fn watch(&self, model: &str) -> Option<watch::Receiver<i64>> {
        self.0.get(model).map(watch::Sender::subscribe)
    }

    fn set(&self, model: &str, position: i64) {
        if let Some(sender) = self.0.get(model) {
            sender.send_replace(position);
        }
    }
}

/// Starts the projectors of all read models; they end with `cancel`.
pub fn start_all(tasks: &mut JoinSet<()>, store: &Store, pool: &PgPool, feed: &Feed, progress: &Progress, cancel: &CancellationToken) {
    macro_rules! all {
        ($($model:ty,)*) => {
            $(tasks.spawn(run(Projector::<$model>::new(store.clone(), pool.clone(), progress.clone()), store.clone(), feed.clone(), cancel.clone()));)*
        };
    }
    crate::for_each_read_model!(all);
}

/// The projector of one read model in one process.
pub struct Projector<M> {
    store: Store,
    pool: PgPool,
    progress: Progress,
    owner: Uuid,
    lease: String,
    /// The epoch and the generation that were found when the lease was taken.
    turn: (i64, i32),
    /// How often the next batch has failed.
    failed: u32,
    model: PhantomData<M>,
}

impl<M: ReadModel> Projector<M> {
    /// A projector that writes through `pool`, in the projector's role.
    pub fn new(store: Store, pool: PgPool, progress: Progress) -> Self {
        let owner = store.fresh_id();
        Self { store, pool, progress, owner, lease: format!("projection/{}", M::NAME), turn: (0, 0), failed: 0, model: PhantomData }
    }
}

impl<M: ReadModel> Projector<M> {
    /// Rows and checkpoint in one transaction.
    async fn write(&self, events: &[Arc<RawEvent>]) -> Result<(), FoldError> {
        let (Some(first), Some(last)) = (events.first(), events.last()) else { return Ok(()) };
        let (epoch, number) = self.turn;
        let moving = sqlx::query(
            "update read.generations set position = $4, log_hash = $5, epoch = $6
             where name = $1 and generation = $2 and state = 'serving' and position = $3 and epoch <= $6",
        )
        .bind(M::NAME)
        .bind(number)
        .bind(first.position - 1)
        .bind(last.position)
        .bind(last.log_hash.0)
        .bind(epoch);
        let moved = |done: &PgQueryResult| match done.rows_affected() {
            1 => Ok(()),
            _ => Err(FoldError::Moved { model: M::NAME, position: first.position - 1 }),
        };
        // Most events are of no concern to most read models: then one statement is all.
        if !events.iter().any(|event| concerns::<M>(event)) {
            return moved(&moving.execute(&self.pool).await?);
        }
        let mut tx = self.pool.begin().await?;
        moved(&moving.execute(&mut *tx).await?)?;
        let events: Vec<&RawEvent> = events.iter().map(Arc::as_ref).collect();
        let generation = Generation { number, serving: true };
        advance::<M>(&self.store, &mut tx, generation, &events, self.failed >= ATTEMPTS).await?;
        Ok(tx.commit().await?)
    }
}

impl From<FoldError> for HandlerError {
    fn from(error: FoldError) -> Self {
        match error {
            FoldError::Load(unknown @ LoadError::UnknownEvent { .. }) => Self::Unknown(unknown.to_string()),
            FoldError::Load(_)
            | FoldError::Database(_)
            | FoldError::Json(_)
            | FoldError::Panicked(_)
            | FoldError::Erasure { .. }
            | FoldError::Moved { .. } => Self::Retry(error.to_string()),
        }
    }
}

fn retry(error: impl std::fmt::Display) -> HandlerError {
    HandlerError::Retry(error.to_string())
}

impl<M: ReadModel> Handler for Projector<M> {
    fn name(&self) -> &'static str {
        M::NAME
    }

    async fn begin(&mut self) -> Result<Option<Head>, HandlerError> {
        let Some(lease) = lease::acquire(&self.pool, &self.lease, self.owner, LEASE).await.map_err(retry)? else { return Ok(None) };
        let (generation, position, log_hash): (i32, i64, [u8; 32]) =
            sqlx::query_as("select generation, position, log_hash from read.generations where name = $1 and state = 'serving'")
                .bind(M::NAME)
                .fetch_one(&self.pool)
                .await
                .map_err(retry)?;
        self.turn = (lease.epoch, generation);
        self.progress.set(M::NAME, position);
        Ok(Some(Head { position, log_hash: Hash(log_hash) }))
    }

    async fn note(&mut self, fault: Option<&str>) -> Result<(), HandlerError> {
        sqlx::query("update read.generations set fault = $3 where name = $1 and generation = $2 and fault is distinct from $3")
            .bind(M::NAME)
            .bind(self.turn.1)
            .bind(fault)
            .execute(&self.pool)
            .await
            .map_err(retry)?;
        Ok(())
    }

    async fn handle(&mut self, events: &[Arc<RawEvent>]) -> Result<(), HandlerError> {
        let Some(last) = events.last() else { return Ok(()) };
        match self.write(events).await {
            Ok(()) => self.failed = 0,
            Err(error) => {
                self.failed += u32::from(error.is_poison());
                return Err(error.into());
            }
        }
        self.progress.set(M::NAME, last.position);
        #[expect(clippy::cast_precision_loss, reason = "a gauge")]
        metrics::gauge!("tenure_projection_position", "model" => M::NAME).set(last.position as f64);
        Ok(())
    }

    async fn release(&mut self) {
        let _ = lease::release(&self.pool, &self.lease, self.owner).await;
    }
}
