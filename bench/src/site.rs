//! Private servers with their usual settings, and databases on them.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use bus::Bus;
use domain::SystemClock;
use servers::{DataDir, Nats, Postgres, Remembered};
use sqlx::{Connection as _, Executor as _, PgConnection};
use store::{Config, Database, MasterKey, Store};

/// The servers of a run; they stop with it.
pub(crate) struct Site {
    pub(crate) remembered: Remembered,
    pub(crate) master_key: String,
    _postgres: Postgres,
    _nats: Nats,
    _data: DataDir,
    _dir: tempfile::TempDir,
}

impl Site {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("tenure-bench-").tempdir()?;
        let data = DataDir::open(&dir.path().join("data"))?;
        let mut remembered = data.remembered()?;
        // What a larger site has as well: connections enough for everything at once.
        let mut settings = vec!["max_connections=200"];
        if statements_wanted() {
            settings.extend(["shared_preload_libraries=pg_stat_statements", "pg_stat_statements.track=all"]);
        }
        let postgres = Postgres::start(&data, &mut remembered, &settings).await?;
        let nats = Nats::start(&data, &remembered).await?;
        Ok(Self { remembered, master_key: MasterKey::generate(), _postgres: postgres, _nats: nats, _data: data, _dir: dir })
    }

    /// Where a database of this name is, for its owner or for the services.
    pub(crate) fn url(&self, name: &str, owner: bool) -> String {
        let url = if owner { self.remembered.owner_url() } else { self.remembered.service_url() };
        url.replace("/tenure?", &format!("/{name}?"))
    }

    /// A migrated database.
    pub(crate) async fn database(&self, name: &str) -> anyhow::Result<Database> {
        let mut connection = PgConnection::connect(&self.remembered.owner_url()).await?;
        connection.execute(format!("create database {name}").as_str()).await?;
        connection.close().await?;
        Database::new(&self.url(name, true))?.migrate().await?;
        let mut owner = PgConnection::connect(&self.url(name, true)).await?;
        owner.execute("update log_head set installation_id = gen_random_uuid()").await?;
        self.existing(name)
    }

    /// One that is there.
    pub(crate) fn existing(&self, name: &str) -> anyhow::Result<Database> {
        Ok(Database::new(&self.url(name, false))?)
    }

    /// Says where Postgres has spent its time since the last call, if that is wanted.
    pub(crate) async fn statements(&self, of: &str) -> anyhow::Result<()> {
        if !statements_wanted() {
            return Ok(());
        }
        let mut connection = PgConnection::connect(&self.remembered.owner_url().replace("/tenure?", "/postgres?")).await?;
        connection.execute("create extension if not exists pg_stat_statements").await?;
        let rows: Vec<(i64, f64, f64, String)> = sqlx::query_as(
            "select calls, total_exec_time, mean_exec_time, regexp_replace(left(query, 150), '\\s+', ' ', 'g') from pg_stat_statements order by 2 desc limit 12",
        )
        .fetch_all(&mut connection)
        .await?;
        eprintln!("\n{of}: calls, ms in all, ms each");
        for (calls, total, mean, query) in rows {
            eprintln!("{calls:>9} {total:>9.0} {mean:>8.3}  {query}");
        }
        eprintln!();
        connection.execute("select pg_stat_statements_reset()").await?;
        Ok(())
    }

    /// How many transactions of a database were committed until now.
    pub(crate) async fn commits(&self, database: &str) -> anyhow::Result<i64> {
        let mut connection = PgConnection::connect(&self.remembered.owner_url()).await?;
        let commits = sqlx::query_scalar("select pg_stat_get_db_xact_commit(oid) from pg_database where datname = $1");
        Ok(commits.bind(database).fetch_one(&mut connection).await?)
    }

    pub(crate) async fn store(&self, database: &Database) -> anyhow::Result<Store> {
        let key = MasterKey::from_hex(&self.master_key).context("a key")?;
        Ok(Store::open(database, Config::new(key, Arc::new(SystemClock))).await?.0)
    }

    pub(crate) async fn bus(&self, store: &Store, prefix: &str) -> anyhow::Result<Bus> {
        Ok(Bus::connect(&self.remembered.nats_url(), prefix, store.installation()).await?)
    }
}

/// Whether to say where Postgres spends its time.
fn statements_wanted() -> bool {
    std::env::var_os("BENCH_STATEMENTS").is_some()
}

/// A program of PostgreSQL's.
pub(crate) fn postgres_program(name: &str) -> anyhow::Result<PathBuf> {
    Ok(servers::postgres_programs()?.join(name))
}
