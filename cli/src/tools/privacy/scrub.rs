//! `tenure privacy scrub`.
//!
//! PostgreSQL leaves the bytes of deleted and replaced rows in its pages, also after a plain VACUUM, and so do indexes. `VACUUM FULL` writes a table, its TOAST table and all of
//! its indexes anew from the rows that are live. Statistics of the planner hold frequent values of columns, so they are made anew too. Last, the write-ahead log of all this is
//! cut off: segments are removed as soon as a checkpoint needs them no more.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sqlx::{Connection as _, Executor as _, PgConnection};

use crate::site::Site;
use crate::terminal::print;

/// How long read models and old transactions are waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many segments of the write-ahead log are gone through at most: more than are ever kept for reuse by default.
const SEGMENTS: usize = 400;

pub(crate) async fn run(site: &Site) -> anyhow::Result<ExitCode> {
    let mut connection = PgConnection::connect_with(site.owner()?.options()).await.context("DATABASE_OWNER_URL")?;
    wait(&mut connection, "the read models and the policy `erasure` are behind the log; a process has to run", BEHIND, None).await?;
    let now: String = sqlx::query_scalar("select pg_current_xact_id()::xid::text").fetch_one(&mut connection).await?;
    wait(&mut connection, "older transactions keep dead rows", OLDER, Some(&now)).await?;
    // The log is append-only: it has no dead rows, and what it says of people is sealed.
    let tables: Vec<String> = sqlx::query_scalar(
        "select format('%I.%I', schemaname, tablename) from pg_tables
         where schemaname in ('read', 'ops', 'public') and tablename not in ('events', '_sqlx_migrations') order by 1",
    )
    .fetch_all(&mut connection)
    .await?;
    // ANALYZE leaves the statistics of a table as they are that has no rows any more.
    if let Err(error) = connection.execute(FORGET_STATISTICS).await {
        print(&format!("statistics of tables that are empty now stay, for only a superuser may remove them: {error}"))?;
    }
    for table in &tables {
        connection.execute(format!("vacuum (full, analyze) {table}").as_str()).await.with_context(|| table.clone())?;
    }
    connection.execute("vacuum (full) pg_catalog.pg_statistic").await.context("pg_statistic")?;
    print(&format!("{} tables and the planner's statistics were written anew", tables.len()))?;
    let statements: bool = sqlx::query_scalar("select exists (select from pg_extension where extname = 'pg_stat_statements')")
        .fetch_one(&mut connection)
        .await?;
    if statements {
        connection.execute("select pg_stat_statements_reset()").await.context("pg_stat_statements")?;
    }
    match cut(&mut connection).await {
        Ok(removed) => print(&format!("the write-ahead log begins anew; {removed} older segments were removed"))?,
        Err(error) => {
            print(&format!("the write-ahead log is as it was: {error:#}"))?;
            print("  see \"After an erasure\" in docs/SECURITY.md for the steps on a server of your own")?;
            return Ok(ExitCode::FAILURE);
        }
    };
    Ok(ExitCode::SUCCESS)
}

/// What has not come as far as the log.
const BEHIND: &str = "select name || ' is at ' || position from (
    select name, position from read.generations where state = 'serving' union all select name, position from ops.policies where name = 'erasure') m
  where $1::text is null and position < (select position from log_head) order by 1";

/// Transactions that are older than this one, and what else keeps dead rows.
const OLDER: &str = "select 'process ' || pid from pg_stat_activity
    where pid <> pg_backend_pid() and (datname = current_database() or backend_type = 'walsender') and greatest(age(backend_xmin), age(backend_xid)) > age($1::xid)
  union all select 'prepared transaction ' || gid from pg_prepared_xacts where database = current_database()
  union all select 'replication slot ' || slot_name from pg_replication_slots where greatest(age(xmin), age(catalog_xmin)) > age($1::xid)";

/// Removes the planner's statistics of our tables and their indexes.
const FORGET_STATISTICS: &str = "delete from pg_catalog.pg_statistic s using pg_class c
  where s.starelid = c.oid and c.relnamespace::regnamespace::text in ('read', 'ops', 'public') and c.relname <> 'events'";

/// Waits until a query finds nothing any more.
async fn wait(connection: &mut PgConnection, what: &str, query: &str, with: Option<&str>) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found: Vec<String> = sqlx::query_scalar(query).bind(with).fetch_all(&mut *connection).await?;
        if found.is_empty() {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, "{what}: {}", found.join(", "));
        let _ = tokio::time::timeout(Duration::from_millis(100), std::future::pending::<()>()).await;
    }
}

/// Has all write-ahead log removed that was written until now. How many segments that were.
async fn cut(connection: &mut PgConnection) -> anyhow::Result<usize> {
    let recycle: String = sqlx::query_scalar("show wal_recycle").fetch_one(&mut *connection).await?;
    anyhow::ensure!(recycle == "off", "wal_recycle is on: old segments would be kept under new names, with what they say");
    let segments = "select name from pg_ls_waldir() where name ~ '^[0-9A-F]{24}$' order by 1";
    let before: Vec<String> = sqlx::query_scalar(segments).fetch_all(&mut *connection).await.context("pg_ls_waldir")?;
    let mut first: Option<String> = None;
    for _ in 0..SEGMENTS {
        // A switch does nothing in a segment that has nothing in it; the rest of one that it leaves is zeros.
        connection.execute("select pg_logical_emit_message(false, 'tenure', 'scrub')").await?;
        connection.execute("select pg_switch_wal()").await?;
        connection.execute("select pg_logical_emit_message(false, 'tenure', 'scrub')").await?;
        let current: String = sqlx::query_scalar("select pg_walfile_name(pg_current_wal_insert_lsn())").fetch_one(&mut *connection).await?;
        let first = first.get_or_insert_with(|| current.clone());
        connection.execute("checkpoint").await?;
        let now: Vec<String> = sqlx::query_scalar(segments).fetch_all(&mut *connection).await?;
        let current: String = sqlx::query_scalar("select pg_walfile_name(pg_current_wal_insert_lsn())").fetch_one(&mut *connection).await?;
        // Segments ahead of the current one were kept for reuse by an earlier start, and still say what they said.
        if now.iter().all(|name| *first <= *name && *name <= current) {
            return Ok(before.iter().filter(|name| !now.contains(name)).count());
        }
    }
    anyhow::bail!("a replication slot, a standby, an archive that fails or wal_keep_size keeps old segments")
}
