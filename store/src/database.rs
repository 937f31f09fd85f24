//! Connections: to which database, in which role.

use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgConnection, PgPool, Postgres, Transaction};

/// Which rights a connection acts with. Services log in as a member of these roles and never as the owner of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DbRole {
    /// Appends and loads.
    Writer,
    /// Folds read models.
    Projector,
    /// Queries one tenant's rows.
    Reader,
    /// Queries all tenants' rows.
    PlatformReader,
}

impl DbRole {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Writer, Self::Projector, Self::Reader, Self::PlatformReader];

    /// Its name in the database.
    pub fn name(self) -> &'static str {
        match self {
            Self::Writer => "tenure_writer",
            Self::Projector => "tenure_projector",
            Self::Reader => "tenure_reader",
            Self::PlatformReader => "tenure_platform_reader",
        }
    }
}

/// A connection that was not used for longer than this is asked whether it still works.
const QUIET: Duration = Duration::from_secs(1);
/// Statements that a connection keeps prepared: a projector has a few for each read model.
const STATEMENTS: usize = 1000;

/// A database, by how it is reached.
#[derive(Clone, Debug)]
pub struct Database {
    options: PgConnectOptions,
}

impl Database {
    /// The database at a `postgres://` URL.
    pub fn new(url: &str) -> Result<Self, sqlx::Error> {
        // JIT compiles a batch statement for longer than it runs.
        let options = PgConnectOptions::from_str(url)?.application_name("tenure").options([("jit", "off")]);
        Ok(Self { options })
    }

    /// How it is reached.
    pub fn options(&self) -> &PgConnectOptions {
        &self.options
    }

    /// A pool whose connections act in `role`. Connects when first used.
    pub fn pool(&self, role: DbRole, max: u32) -> PgPool {
        // Queries wait for nothing but the switch to another generation, and read one page: one that takes longer than this takes it from others.
        let (lock_timeout, statement_timeout) = match role {
            DbRole::Reader | DbRole::PlatformReader => ("5s", "5s"),
            DbRole::Writer | DbRole::Projector => ("30s", "0"),
        };
        let reads = matches!(role, DbRole::Reader | DbRole::PlatformReader);
        PgPoolOptions::new()
            .max_connections(max)
            .acquire_timeout(Duration::from_secs(3))
            .max_lifetime(None)
            // To ask each time whether the server is there would double the round trips of a query; one that finds it gone asks again over another connection.
            .test_before_acquire(!reads)
            .before_acquire(move |connection, meta| {
                Box::pin(async move {
                    if reads && meta.idle_for > QUIET {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
            // A process that hangs in the middle of a transaction must not hold up others for ever.
            .connect_lazy_with(self.options.clone().statement_cache_capacity(STATEMENTS).options([
                ("role", role.name()),
                ("idle_in_transaction_session_timeout", "60s"),
                ("lock_timeout", lock_timeout),
                ("statement_timeout", statement_timeout),
                // Look-ups by key have one plan; PostgreSQL would make it anew each time, which takes longer than the look-up. Lists are planned each time, see `read.ask`.
                ("plan_cache_mode", if reads { "force_generic_plan" } else { "auto" }),
                // A page is read by a cursor, and to its end.
                ("cursor_tuple_fraction", "1.0"),
            ]))
    }

    /// One connection that acts in `role`, with further settings.
    pub async fn connect(&self, role: DbRole, settings: &[(&str, &str)]) -> Result<PgConnection, sqlx::Error> {
        PgConnection::connect_with(&self.options.clone().options([("role", role.name())]).options(settings.iter().copied())).await
    }

    /// How many of this binary's migrations the schema lacks, and how many it has that are newer.
    pub async fn migrations(&self) -> Result<(usize, usize), sqlx::Error> {
        let mut connection = PgConnection::connect_with(&self.options).await?;
        let exists: bool = sqlx::query_scalar("select to_regclass('_sqlx_migrations') is not null").fetch_one(&mut connection).await?;
        let applied: Vec<i64> = if exists {
            sqlx::query_scalar("select version from _sqlx_migrations where success").fetch_all(&mut connection).await?
        } else {
            vec![]
        };
        let ours: Vec<i64> = sqlx::migrate!("../migrations").iter().map(|migration| migration.version).collect();
        let missing = ours.iter().filter(|version| !applied.contains(version)).count();
        Ok((missing, applied.iter().filter(|version| !ours.contains(version)).count()))
    }

    /// Brings the schema up to this binary's version, as the owner. A newer schema is left as it is: migrations expand before they contract, so an older process lives with it.
    pub async fn migrate(&self) -> Result<(), sqlx::migrate::MigrateError> {
        let mut connection = PgConnection::connect_with(&self.options).await?;
        let mut migrator = sqlx::migrate!("../migrations");
        migrator.set_ignore_missing(true).run(&mut connection).await?;
        Ok(connection.close().await?)
    }
}

/// Begins a transaction. The returned future may be dropped at any time.
///
/// Use this instead of [`PgPool::begin`]. If the future of [`PgPool::begin`] is dropped before PostgreSQL has answered `BEGIN`, sqlx returns the connection to the pool with an open
/// transaction: later statements on it are not committed, and their locks are not released (sqlx issues 2054 and 4393). Here a separate task always waits for the answer, and an
/// unused transaction is rolled back.
pub async fn begin(pool: &PgPool) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
    begin_with(pool, None).await
}

/// Begins a read-only transaction with isolation level repeatable read. The returned future may be dropped at any time, as with [`begin`].
pub async fn snapshot(pool: &PgPool) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
    begin_with(pool, Some("begin isolation level repeatable read, read only")).await
}

async fn begin_with(pool: &PgPool, statement: Option<&'static str>) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
    let connection = pool.acquire().await?;
    // Joining fails only if the runtime shuts down.
    tokio::spawn(Transaction::begin(connection, statement.map(Into::into))).await.map_err(|_| sqlx::Error::WorkerCrashed)?
}
