//! Asking: each query runs in a short transaction of the reader's role, at a position that is at least the one asked for.

use std::time::{Duration, Instant};

use admission::{Admission, Bounds, Load, Permit};
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

/// Connections for queries of single tenants, and for those over all tenants.
const CONNECTIONS: (u32, u32) = (16, 8);
/// Connections that one tenant's queries take at a time: so many that queries which take as long as they may leave most of them to others.
const OF_ONE_TENANT: usize = 3;
/// A query that takes longer than this is a long one.
const LONG: Duration = Duration::from_millis(15);
/// Queries that wait for a connection, of all tenants and of one.
const WAITING: (usize, usize) = (1024, 128);
/// The longest that a query waits for a connection.
const TURN: Duration = Duration::from_secs(2);

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
    /// Too many of the tenant's queries wait, or this one took longer than a query may.
    #[error("too many queries of this tenant are waiting, or this one took too long; ask for less, or again shortly")]
    Overloaded,
    /// The database did not answer.
    #[error("the read models cannot be reached")]
    Unavailable(sqlx::Error),
}

impl From<sqlx::Error> for QueryError {
    fn from(error: sqlx::Error) -> Self {
        // SQLSTATE 57014, query_canceled: the statement took longer than statement_timeout.
        let cancelled = error.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|code| code == "57014");
        if cancelled { Self::Overloaded } else { Self::Unavailable(error) }
    }
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
    /// Says where the read models stand, however many queries wait.
    probe: PgPool,
    /// Gives the tenants their turns at the connections of both pools.
    tenants: Admission<TenantId>,
    platforms: Admission<TenantId>,
    progress: Progress,
    /// Signs cursors.
    pub cursors: CursorKey,
}

/// A query's transaction.
pub struct Read {
    // Before the place is free again, the connection is.
    tx: Transaction<'static, Postgres>,
    _place: Permit<TenantId>,
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
        let admission = |connections: u32| {
            Admission::new(Bounds {
                places: connections as usize,
                places_per_party: OF_ONE_TENANT,
                long: LONG,
                waiting: WAITING.0,
                waiting_per_party: WAITING.1,
                waiting_per_lane: WAITING.1,
                patience: TURN,
            })
        };
        Self {
            reader: database.pool(DbRole::Reader, CONNECTIONS.0),
            platform: database.pool(DbRole::PlatformReader, CONNECTIONS.1),
            probe: database.pool(DbRole::PlatformReader, 1),
            tenants: admission(CONNECTIONS.0),
            platforms: admission(CONNECTIONS.1),
            progress,
            cursors,
        }
    }

    /// How much of the connections for queries of single tenants, and for those over all tenants, is taken.
    pub fn loads(&self) -> [(&'static str, Load); 2] {
        [("readers", self.tenants.load()), ("platform_readers", self.platforms.load())]
    }

    /// Begins a query over read models for the tenant that it sees, or for the platform, once all of them have come as far as `after`.
    pub async fn begin(&self, view: View, models: &[&'static str], after: Option<i64>) -> Result<Read, QueryError> {
        let party = match view {
            View::Tenant(tenant) => tenant,
            View::Platform => TenantId::SYSTEM,
        };
        self.begin_for(party, view, models, after).await
    }

    /// The same for a party that may not be the one whose rows it sees: the connection is taken from its share.
    pub async fn begin_for(&self, party: TenantId, view: View, models: &[&'static str], after: Option<i64>) -> Result<Read, QueryError> {
        let deadline = Instant::now() + PATIENCE;
        let mut progress: Vec<_> = models.iter().filter_map(|model| self.progress.watch(model)).collect();
        let (pool, admission, begin) = match view {
            View::Tenant(tenant) => (&self.reader, &self.tenants, format!("begin; set local app.current_tenant_id = '{tenant}'")),
            View::Platform => (&self.platform, &self.platforms, "begin".to_owned()),
        };
        loop {
            for progress in &mut progress {
                progress.borrow_and_update();
            }
            // Not kept while it waits for the read models.
            let place = admission.enter(party, 0).await.map_err(|_| QueryError::Overloaded)?;
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
                    drop(place);
                    if Instant::now() > deadline {
                        return Err(QueryError::Behind { position, wanted });
                    }
                    wait(&mut progress).await;
                }
                Some(_) | None => return Ok(Read { tx, _place: place, models: models.to_vec(), position, parked }),
            }
        }
    }

    /// The checkpoint of each read model that serves, how many of its partitions are parked, and why it has stopped, if it has.
    pub async fn statuses(&self) -> Result<Vec<ModelStatus>, sqlx::Error> {
        sqlx::query_as(
            "select g.name, g.position, (select count(*) from read.parked p where (p.name, p.generation) = (g.name, g.generation)) as parked, g.fault
             from read.generations g where g.state = 'serving' order by g.name",
        )
        .fetch_all(&self.probe)
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
