//! Keeping the serving generations of the read models up to date.
//!
//! The read models are members of one group ([`bus::group`]). Rows and checkpoints commit in one transaction, guarded by position and epoch: whoever has lost a lease
//! without noticing cannot write, and each event has its effect once. What cannot be folded is tried again a few times, then its partition is parked.

use std::collections::HashMap;
use std::sync::Arc;

use bus::feed::Feed;
use bus::group::{Advanced, Checkpoint, CheckpointMove, Checkpoints, Group, Member, Wait, Work};
use bus::subscription::HandlerError;
use futures::future::BoxFuture;
use metrics::Gauge;
use sqlx::{PgConnection, PgPool};
use store::load::LoadError;
use store::{Hash, Head, RawEvent, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::fold::FoldError;
use crate::kept::{Kept, Rows};
use crate::model::ReadModel;
use crate::parking::{Generation, advance, concerns};

/// How often a page that cannot be folded is tried before the partitions at fault are parked.
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

/// The checkpoints of the serving generations.
pub struct Generations {
    pool: PgPool,
}

impl Checkpoints for Generations {
    const KIND: &'static str = "projection";

    fn pool(&self) -> &PgPool {
        &self.pool
    }

    async fn read(&self, names: &[&str]) -> Result<Vec<(String, Checkpoint)>, sqlx::Error> {
        let checkpoints: Vec<(String, i32, i64, [u8; 32])> =
            sqlx::query_as("select name, generation, position, log_hash from read.generations where name = any($1) and state = 'serving'")
                .bind(names)
                .fetch_all(&self.pool)
                .await?;
        let checkpoint = |generation, position, hash| Checkpoint { head: Head { position, log_hash: Hash(hash) }, generation };
        Ok(checkpoints.into_iter().map(|(name, generation, position, hash)| (name, checkpoint(generation, position, hash))).collect())
    }

    async fn advance(
        &self,
        connection: &mut PgConnection,
        wanted: &[CheckpointMove],
        from: i64,
        to: Head,
        wait: Wait,
    ) -> Result<Vec<(String, Advanced)>, sqlx::Error> {
        let moved: Vec<(String, i64, bool)> =
            sqlx::query_as("select model, revision, holds from read.advance($1, $2, $3, $4, $5, $6, $7, $8)")
                .bind(wanted.iter().map(|m| m.name).collect::<Vec<_>>())
                .bind(wanted.iter().map(|m| m.generation).collect::<Vec<_>>())
                .bind(wanted.iter().map(|m| m.epoch).collect::<Vec<_>>())
                .bind(from)
                .bind(to.position)
                .bind(to.log_hash.0)
                .bind(wait == Wait::Forever)
                .bind(wait.statement_timeout())
                .fetch_all(connection)
                .await?;
        let advanced = |(name, revision, holds): (String, i64, bool)| {
            let CheckpointMove { generation, epoch, .. } = *wanted.iter().find(|m| m.name == name)?;
            Some((name, Advanced { generation, revision, epoch, holds }))
        };
        Ok(moved.into_iter().filter_map(advanced).collect())
    }

    async fn note(&self, names: &[&str], fault: Option<&str>) -> Result<(), sqlx::Error> {
        sqlx::query("update read.generations set fault = $2 where name = any($1) and state = 'serving' and fault is distinct from $2")
            .bind(names)
            .bind(fault)
            .execute(&self.pool)
            .await
            .map(drop)
    }
}

/// The group of the read models that this process keeps.
pub type Projections = Group<Generations>;

/// A group without read models that writes through `pool`, in the projector's role.
pub fn none(store: &Store, pool: &PgPool, feed: &Feed, cancel: &CancellationToken) -> Projections {
    Group::new(Generations { pool: pool.clone() }, store, feed, cancel)
}

/// The group of all read models.
pub fn all(store: &Store, pool: &PgPool, feed: &Feed, progress: &Progress, cancel: &CancellationToken) -> Projections {
    let group = none(store, pool, feed, cancel);
    macro_rules! all {
        ($($model:ty,)*) => { $(group.add(Projection::<$model>::new(store, progress));)* };
    }
    crate::for_each_read_model!(all);
    group
}

/// A read model in one process.
pub struct Projection<M: ReadModel> {
    store: Store,
    progress: Progress,
    position: Gauge,
    kept: Kept<M>,
}

impl<M: ReadModel> Projection<M> {
    /// The read model as a member of the group.
    pub fn new(store: &Store, progress: &Progress) -> Arc<Self> {
        let position = metrics::gauge!("tenure_projection_position", "model" => M::NAME);
        Arc::new(Self { store: store.clone(), progress: progress.clone(), position, kept: Kept::default() })
    }
}

impl From<FoldError> for HandlerError {
    fn from(error: FoldError) -> Self {
        match error {
            FoldError::Load(unknown @ LoadError::UnknownEvent { .. }) => Self::Unknown(unknown.to_string()),
            poison if poison.is_poison() => Self::Poison(poison.to_string()),
            FoldError::Load(_) | FoldError::Database(_) | FoldError::Json(_) | FoldError::Panicked(_) | FoldError::Erasure { .. } => {
                Self::Retry(error.to_string())
            }
        }
    }
}

impl<M: ReadModel> Member for Projection<M> {
    fn name(&self) -> &'static str {
        M::NAME
    }

    fn concerns(&self, event: &RawEvent) -> bool {
        concerns::<M>(event)
    }

    fn prepare<'a>(self: Arc<Self>, events: &'a [Arc<RawEvent>], failed: u32) -> BoxFuture<'a, Result<Box<dyn Work + 'a>, HandlerError>> {
        let page = Page { projection: self, events, one_by_one: failed >= ATTEMPTS, rows: Rows::default() };
        Box::pin(async move { Ok(Box::new(page) as Box<dyn Work + 'a>) })
    }

    fn moved(&self, position: i64) {
        self.progress.set(M::NAME, position);
        #[expect(clippy::cast_precision_loss, reason = "a gauge")]
        self.position.set(position as f64);
    }

    fn forget(&self) {
        self.kept.forget();
    }
}

/// A page that a read model folds.
struct Page<'a, M: ReadModel> {
    projection: Arc<Projection<M>>,
    events: &'a [Arc<RawEvent>],
    one_by_one: bool,
    rows: Rows<M>,
}

impl<M: ReadModel> Work for Page<'_, M> {
    fn write<'c>(&'c mut self, connection: &'c mut PgConnection, advanced: &'c Advanced) -> BoxFuture<'c, Result<(), HandlerError>> {
        Box::pin(async move {
            let Projection { store, kept, .. } = &*self.projection;
            kept.belongs_to(advanced);
            // Folded one by one, what was folded may be taken back.
            self.rows = if self.one_by_one { Rows::default() } else { kept.rows() };
            let events: Vec<&RawEvent> = self.events.iter().map(Arc::as_ref).collect();
            let generation = Generation { number: advanced.generation, serving: true, holds: advanced.holds };
            advance::<M>(store, connection, generation, &events, self.one_by_one, &mut self.rows).await?;
            Ok(())
        })
    }

    fn committed(self: Box<Self>) {
        if self.one_by_one {
            self.projection.kept.forget();
        } else {
            self.projection.kept.take(self.rows);
        }
    }
}
