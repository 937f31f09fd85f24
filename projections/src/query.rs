//! Asking: each query runs in a short transaction of the reader's role, at a position that is at least the one asked for.

use std::time::{Duration, Instant};

use domain::TenantId;
use sqlx::{PgConnection, PgPool, Postgres, Transaction};
use store::{Database, DbRole};

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
    /// The cursor was not made for this list, or was changed.
    #[error("the cursor is not valid for this list")]
    BadCursor,
    /// The database did not answer.
    #[error("the read models cannot be reached")]
    Unavailable(#[from] sqlx::Error),
}

/// One page of a list.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// Its rows.
    pub rows: Vec<T>,
    /// Where the next one begins, if there is one.
    pub next: Option<String>,
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
    /// The rows reflect at least everything up to here.
    pub position: i64,
}

impl Read {
    /// Where the query runs.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.tx
    }
}

impl ReadSide {
    /// Reads from `database`; `progress` is that of the projectors of this process, if it has any.
    pub fn new(database: &Database, progress: Progress, cursors: CursorKey) -> Self {
        Self { reader: database.pool(DbRole::Reader, 16), platform: database.pool(DbRole::PlatformReader, 8), progress, cursors }
    }

    /// Begins a query over one read model, once it has come as far as `after`.
    pub async fn begin(&self, view: View, model: &'static str, after: Option<i64>) -> Result<Read, QueryError> {
        let deadline = Instant::now() + PATIENCE;
        let mut progress = self.progress.watch(model);
        loop {
            if let Some(progress) = &mut progress {
                progress.borrow_and_update();
            }
            let (pool, tenant) = match view {
                View::Tenant(tenant) => (&self.reader, Some(tenant.0.to_string())),
                View::Platform => (&self.platform, None),
            };
            let mut tx = pool.begin().await?;
            // The position is read before the rows, so they are never older than it says.
            let position: i64 = sqlx::query_scalar(
                "select position from read.generations where name = $1 and state = 'serving' and set_config('app.current_tenant_id', coalesce($2, ''), true) is not null",
            )
            .bind(model)
            .bind(tenant)
            .fetch_one(&mut *tx)
            .await?;
            match after {
                Some(wanted) if position < wanted => {
                    tx.rollback().await?;
                    if Instant::now() > deadline {
                        return Err(QueryError::Behind { position, wanted });
                    }
                    wait(progress.as_mut()).await;
                }
                Some(_) | None => return Ok(Read { tx, position }),
            }
        }
    }

    /// Where each read model stands.
    pub async fn positions(&self) -> Result<Vec<(String, i64)>, sqlx::Error> {
        sqlx::query_as("select name, position from read.generations where state = 'serving' order by name").fetch_all(&self.platform).await
    }
}

/// Until this process's projector moves on, or for a moment.
async fn wait(progress: Option<&mut tokio::sync::watch::Receiver<i64>>) {
    let moved = async {
        match progress {
            Some(progress) => drop(progress.changed().await),
            None => std::future::pending().await,
        }
    };
    let _ = tokio::time::timeout(POLL, moved).await;
}
