//! Asking: each query is one statement in a transaction of its own, in the reader's role, at a position that is at least the one asked for.
//!
//! `read.ask` names the tenant to row-level security, says where the read models stand, and selects the rows: one round trip, whatever is asked.

use std::time::{Duration, Instant};

use admission::{Admission, Bounds, Load, Permit};
use domain::{StreamId, TenantId};
use futures::future::select_all;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgArguments;
use sqlx::{Arguments as _, FromRow, PgPool, Postgres};
use store::{Database, DbRole};
use tokio::sync::watch;
use uuid::Uuid;

use crate::cursor::CursorKey;
use crate::projector::Progress;
use crate::row::Doc;
use crate::sql::{Parts, Sql};

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
/// Maximum numbers of queries that wait for a connection, of all tenants and of one. Queries that wait for the same position arrive together when a page is committed.
const WAITING: (usize, usize) = (1024, 512);
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
    /// A row is not what this binary expects.
    #[error("a row cannot be read")]
    Unreadable(#[from] serde_json::Error),
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

/// A query, or several one after the other, over read models.
pub struct Read {
    side: ReadSide,
    party: TenantId,
    view: View,
    models: Vec<&'static str>,
    after: Option<i64>,
    // Before the place is free again, the connection is.
    connection: Option<(PoolConnection<Postgres>, Permit<TenantId>)>,
    /// Once it was asked: the rows reflect at least everything up to here, but for what is parked.
    pub position: i64,
    /// Once it was asked: the first event that waits in a parked partition that the view may see.
    pub parked: Option<i64>,
}

/// What `read.ask` answers: first where the read models stand, then rows.
#[derive(FromRow)]
struct Answer {
    reached: Option<i64>,
    parked: Option<i64>,
    diverged: Option<bool>,
    doc: Option<String>,
    columns: Option<String>,
    sorted_by: Option<String>,
    tied_by: Option<String>,
    beside: Option<String>,
}

/// One of the rows that were asked for.
pub(crate) struct Found<T> {
    pub(crate) row: Doc<T>,
    /// What the rows are sorted by, and what tells equal ones apart.
    pub(crate) place: (String, String),
    /// What was selected beside it, as JSON.
    pub(crate) beside: Option<String>,
}

impl<T: Serialize + DeserializeOwned> Found<T> {
    fn of(answer: Answer) -> Result<Self, QueryError> {
        let row = Doc::selected(answer.doc, answer.columns.as_deref())?;
        Ok(Self { row, place: (answer.sorted_by.unwrap_or_default(), answer.tied_by.unwrap_or_default()), beside: answer.beside })
    }
}

impl Read {
    /// Asks where the read models stand, and for nothing else.
    pub async fn look(&mut self) -> Result<(), QueryError> {
        self.ask::<()>(&Sql::new(""), 0, 0).await.map(drop)
    }

    /// The row that a statement selects by its key, if there is one.
    pub async fn one<T: Serialize + DeserializeOwned>(&mut self, sql: &Sql) -> Result<Option<Doc<T>>, QueryError> {
        Ok(self.one_beside(sql).await?.map(|found| found.row))
    }

    /// The same with what was selected beside the row.
    pub(crate) async fn one_beside<T: Serialize + DeserializeOwned>(&mut self, sql: &Sql) -> Result<Option<Found<T>>, QueryError> {
        let Parts { text, values, .. } = sql.parts();
        // Row-level security knows no tenant yet when the statement is planned; the condition tells the planner which key to use.
        let tenants = if self.tenant().is_some() { " and t.tenant_id = $2" } else { "" };
        // The plan of a look-up by key is always the same, so it may be made once. The outer side of a left join is read first, so the tenant is set before the row is looked for. Without a
        // tenant no row would be found.
        let text = format!(
            "select e.reached, e.parked, e.diverged, t.* from read.enter($2, $3) e
             left join lateral ({text}{tenants}) t (doc, columns, sorted_by, tied_by, beside) on not e.diverged and ($4::bigint is null or e.reached >= $4)"
        );
        let given = self.given(values).map_err(sqlx::Error::Encode)?;
        let answer = self.answer(&text, &given).await?.into_iter().next();
        answer.filter(|answer| answer.doc.is_some() || answer.columns.is_some()).map(Found::of).transpose()
    }

    /// All rows that a statement selects.
    pub async fn all<T: Serialize + DeserializeOwned>(&mut self, sql: &Sql) -> Result<Vec<Doc<T>>, QueryError> {
        Ok(self.ask(sql, usize::MAX, usize::MAX).await?.0.into_iter().map(|found| found.row).collect())
    }

    /// The first `most` rows that a statement selects, fewer where they come to more than so many bytes, but one at least; and whether there are more.
    pub(crate) async fn ask<T: Serialize + DeserializeOwned>(
        &mut self,
        sql: &Sql,
        most: usize,
        bytes: usize,
    ) -> Result<(Vec<Found<T>>, bool), QueryError> {
        let Parts { text, values, few } = sql.parts();
        let (probe, probed, few) = few.map_or((None, None, None), |(probe, probed, few)| (Some(probe), Some(probed), Some(few)));
        let bounded = |bound: usize| i64::try_from(bound).unwrap_or(i64::MAX);
        let mut given = self.given(values).map_err(sqlx::Error::Encode)?;
        given
            .add(&*text)
            .and_then(|()| given.add(bounded(most)))
            .and_then(|()| given.add(bounded(bytes)))
            .and_then(|()| given.add(probe))
            .and_then(|()| given.add(probed))
            .and_then(|()| given.add(few))
            .map_err(sqlx::Error::Encode)?;
        let asked = "select reached, parked, diverged, doc, columns, sorted_by, tied_by, beside from read.ask($2, $3, $4, $5, $1, $6, $7, $8, $9, $10)";
        let mut answers = self.answer(asked, &given).await?.split_off(1);
        let more = answers.last().is_some_and(|last| last.doc.is_none() && last.columns.is_none());
        if more {
            answers.pop();
        }
        Ok((answers.into_iter().map(Found::of).collect::<Result<_, QueryError>>()?, more))
    }

    /// The first four parameters of every statement: values, tenant, read models, minimum position.
    fn given(&self, values: &[String]) -> Result<PgArguments, sqlx::error::BoxDynError> {
        let mut given = PgArguments::default();
        given.add(values)?;
        given.add(self.tenant())?;
        given.add(&self.models)?;
        given.add(self.after)?;
        Ok(given)
    }

    fn tenant(&self) -> Option<Uuid> {
        match self.view {
            View::Tenant(tenant) => Some(tenant.0),
            View::Platform => None,
        }
    }

    /// Asks once the read models have come as far as they have to. There is always a first answer, which says where they stand.
    async fn answer(&mut self, asked: &str, given: &PgArguments) -> Result<Vec<Answer>, QueryError> {
        let deadline = Instant::now() + PATIENCE;
        let mut progress: Vec<_> = self.models.iter().filter_map(|model| self.side.progress.watch(model)).collect();
        if let Some(wanted) = self.after {
            reached(&mut progress, wanted).await;
        }
        let mut gone = 0;
        loop {
            let (mut connection, place) = self.connect().await?;
            let answers: Vec<Answer> = match sqlx::query_as_with(asked, given.clone()).fetch_all(&mut *connection).await {
                // The server was restarted since the connection was last used; so it is with the others of the pool.
                Err(error) if gone < CONNECTIONS.0 && is_gone(&error) => {
                    gone += 1;
                    continue;
                }
                answers => answers?,
            };
            let Some(Answer { reached, parked, diverged, .. }) = answers.first() else { return Err(sqlx::Error::RowNotFound.into()) };
            if *diverged == Some(true) {
                return Err(QueryError::Diverged);
            }
            let (position, parked) = (reached.unwrap_or(0), *parked);
            match self.after {
                Some(wanted) if position < wanted => {
                    // Not kept while it waits for the read models.
                    drop((connection, place));
                    if Instant::now() > deadline {
                        return Err(QueryError::Behind { position, wanted });
                    }
                    moved(&mut progress).await;
                }
                Some(_) | None => {
                    (self.position, self.parked) = (position, parked);
                    self.connection = Some((connection, place));
                    return Ok(answers);
                }
            }
        }
    }

    /// The connection of the question before, or one of its party's share.
    async fn connect(&mut self) -> Result<(PoolConnection<Postgres>, Permit<TenantId>), QueryError> {
        if let Some(connected) = self.connection.take() {
            return Ok(connected);
        }
        let (pool, admission) = match self.view {
            View::Tenant(_) => (&self.side.reader, &self.side.tenants),
            View::Platform => (&self.side.platform, &self.side.platforms),
        };
        let place = admission.enter(self.party, 0).await.map_err(|_| QueryError::Overloaded)?;
        Ok((pool.acquire().await?, place))
    }

    /// The first event that waits in what concerns a stream: its own partition, or its tenant's.
    pub async fn parked_of(&mut self, stream: StreamId) -> Result<Option<i64>, QueryError> {
        if self.parked.is_none() {
            return Ok(None);
        }
        let mut first = Sql::new(
            "select min(p.position)::text, null, null, null, null from read.parked p join read.generations g using (name, generation) where g.state = 'serving' and g.name = any(",
        );
        first.bind_as(format!("{{{}}}", self.models.join(",")), "text[]").push(") and p.partition in (");
        first.bind(stream.to_string()).push(", ").bind(stream.tenant.to_string()).push(") having count(*) > 0");
        let (seen, first) = ((self.position, self.parked), self.all::<i64>(&first).await?);
        (self.position, self.parked) = seen;
        first.first().map(Doc::read).transpose()
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

    /// A query over read models for the tenant that it sees, or for the platform, once all of them have come as far as `after`.
    pub fn begin(&self, view: View, models: &[&'static str], after: Option<i64>) -> Read {
        let party = match view {
            View::Tenant(tenant) => tenant,
            View::Platform => TenantId::SYSTEM,
        };
        self.begin_for(party, view, models, after)
    }

    /// The same for a party that may not be the one whose rows it sees: the connection is taken from its share.
    pub fn begin_for(&self, party: TenantId, view: View, models: &[&'static str], after: Option<i64>) -> Read {
        Read { side: self.clone(), party, view, models: models.to_vec(), after, connection: None, position: 0, parked: None }
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

/// Whether a connection has ended: SQLSTATE 57P01 to 57P03, or nothing answers.
fn is_gone(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    matches!(error, sqlx::Error::Io(_)) || code.is_some_and(|code| code.starts_with("57P"))
}

/// Until this process's projectors have come to a position, or for a moment: another process may keep some of the read models.
async fn reached(progress: &mut [watch::Receiver<i64>], wanted: i64) {
    let all = async {
        for model in progress {
            let _ = model.wait_for(|position| *position >= wanted).await;
        }
    };
    let _ = tokio::time::timeout(POLL, all).await;
}

/// Until one of this process's projectors moves on, or for a moment.
async fn moved(progress: &mut [watch::Receiver<i64>]) {
    let moved = async {
        match progress {
            [] => std::future::pending().await,
            models => drop(select_all(models.iter_mut().map(|model| Box::pin(model.changed()))).await),
        }
    };
    let _ = tokio::time::timeout(POLL, moved).await;
}
