//! Asking: each query runs in a short transaction of the reader's role, at a position that is at least the one asked for.

use std::time::{Duration, Instant};

use domain::{StreamId, TenantId};
use futures::future::select_all;
use sqlx::{FromRow, PgConnection, PgPool, Postgres, Transaction};
use store::{Database, DbRole};
use tokio::sync::watch;

use crate::cursor::CursorKey;
use crate::projector::Progress;

/// How long a query waits for a position.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// How often the checkpoint is looked at when another process projects.
const POLL: Duration = Duration::from_millis(15);

/// Whose rows a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// One tenant's: row-level security sees to it.
    Tenant(TenantId),
    /// All tenants'.
    Platform,
}

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The read model has not come as far as asked.
    #[error("the read model is at position {position}, not yet at {wanted}")]
    Behind {
        /// Where it is.
        position: i64,
        /// Where the caller wants it.
        wanted: i64,
    },
    /// The read model was made from events that are not in the log, and waits for `tenure log reconcile`.
    #[error("the read model was made from another log than this one")]
    Diverged,
    /// The cursor was not made for this list, or was changed.
    #[error("the cursor is not valid for this list")]
    BadCursor,
    /// The database did not answer.
    #[error("the read models cannot be reached")]
    Unavailable(#[from] sqlx::Error),
}

/// The state of a read model.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct ModelStatus {
    /// Its name.
    pub name: String,
    /// Everything up to here is in its rows.
    pub position: i64,
    /// How many of its partitions are parked.
    pub parked: i64,
    /// Why it has stopped, and answers no queries.
    pub fault: Option<String>,
}

/// The reading side of a process. Cheap to clone.
#[derive(Clone)]
pub struct ReadSide {
    reader: PgPool,
    platform: PgPool,
    progress: Progress,
    /// Signs cursors.
    pub cursors: CursorKey,
}

/// A query's transaction.
pub struct Read {
    tx: Transaction<'static, Postgres>,
    models: Vec<&'static str>,
    /// The rows reflect at least everything up to here, but for what is parked.
    pub position: i64,
    /// The first event that waits in a parked partition that the view may see.
    pub parked: Option<i64>,
}

impl Read {
    /// Where the query runs.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.tx
    }

    /// The first event that waits in what concerns a stream: its own partition, or its tenant's.
    pub async fn parked_of(&mut self, stream: StreamId) -> Result<Option<i64>, QueryError> {
        if self.parked.is_none() {
            return Ok(None);
        }
        let partitions = [stream.to_string(), stream.tenant.to_string()];
        let first = sqlx::query_scalar(
            "select min(p.position) from read.parked p join read.generations g using (name, generation)
             where g.state = 'serving' and g.name = any($1) and p.partition = any($2)",
        );
        Ok(first.bind(&self.models).bind(partitions.as_slice()).fetch_one(&mut *self.tx).await?)
    }
}

impl ReadSide {
    /// Reads from `database`; `progress` is that of the projectors of this process, if it has any.
    pub fn new(database: &Database, progress: Progress, cursors: CursorKey) -> Self {
        Self { reader: database.pool(DbRole::Reader, 16), platform: database.pool(DbRole::PlatformReader, 8), progress, cursors }
    }

    /// Begins a query over read models, once all of them have come as far as `after`.
    pub async fn begin(&self, view: View, models: &[&'static str], after: Option<i64>) -> Result<Read, QueryError> {
        let deadline = Instant::now() + PATIENCE;
        let mut progress: Vec<_> = models.iter().filter_map(|model| self.progress.watch(model)).collect();
        let (pool, begin) = match view {
            View::Tenant(tenant) => (&self.reader, format!("begin; set local app.current_tenant_id = '{tenant}'")),
            View::Platform => (&self.platform, "begin".to_owned()),
        };
        loop {
            for progress in &mut progress {
                progress.borrow_and_update();
            }
            let mut tx = pool.begin_with(begin.clone()).await?;
            // The position is read before the rows, so they are never older than it says.
            let (position, parked, diverged): (i64, Option<i64>, bool) = sqlx::query_as(
                "select min(g.position), min((select min(p.position) from read.parked p where (p.name, p.generation) = (g.name, g.generation))), bool_or(g.fault is not null)
                 from read.generations g where g.name = any($1) and g.state = 'serving'",
            )
            .bind(models)
            .fetch_one(&mut *tx)
            .await?;
            if diverged {
                return Err(QueryError::Diverged);
            }
            match after {
                Some(wanted) if position < wanted => {
                    tx.rollback().await?;
                    if Instant::now() > deadline {
                        return Err(QueryError::Behind { position, wanted });
                    }
                    wait(&mut progress).await;
                }
                Some(_) | None => return Ok(Read { tx, models: models.to_vec(), position, parked }),
            }
        }
    }

    /// The checkpoint of each read model that serves, how many of its partitions are parked, and why it has stopped, if it has.
    pub async fn statuses(&self) -> Result<Vec<ModelStatus>, sqlx::Error> {
        sqlx::query_as(
            "select g.name, g.position, (select count(*) from read.parked p where (p.name, p.generation) = (g.name, g.generation)) as parked, g.fault
             from read.generations g where g.state = 'serving' order by g.name",
        )
        .fetch_all(&self.platform)
        .await
    }
}

/// Until one of this process's projectors moves on, or for a moment.
async fn wait(progress: &mut [watch::Receiver<i64>]) {
    let moved = async {
        match progress {
            [] => std::future::pending().await,
            models => drop(select_all(models.iter_mut().map(|model| Box::pin(model.changed()))).await),
        }
    };
    let _ = tokio::time::timeout(POLL, moved).await;
}
