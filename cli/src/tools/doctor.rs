//! `tenure doctor`: everything that an installation depends on, and what to do about whatever is wrong.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use bus::stream::inspect;
use chrono::{DateTime, TimeDelta, Utc};
use comfy_table::{Table, presets};
use domain::{Clock as _, SystemClock};
use projections::parking::parked;
use projections::status::generations;
use serde::Serialize;
use sqlx::PgPool;
use store::{DbRole, Hash, Head, Store};

use crate::site::Site;
use crate::terminal::print;

/// How long a dependency may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How far clocks may differ. Leases and timers go by the database's clock, events and tokens by the process's.
const SKEW: TimeDelta = TimeDelta::seconds(2);
/// The relay, or a read model, that is further behind than this many events is said to lag.
const LAG: i64 = 1_000;
/// How long a transaction may last.
const LONG: f64 = 60.0;
/// How much of a disk has to be free: so many bytes always, and of a small disk so many percent.
const FREE: u64 = 1 << 30;
const FREE_PERCENT: u64 = 5;
/// So many free bytes are enough however large the disk is.
const PLENTY: u64 = 10 << 30;

/// One thing looked at.
#[derive(Serialize)]
struct Check {
    what: String,
    ok: bool,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<&'static str>,
}

#[derive(Default)]
struct Report(Vec<Check>);

impl Report {
    fn say(&mut self, what: impl Into<String>, ok: bool, found: impl Into<String>, remedy: &'static str) {
        self.0.push(Check { what: what.into(), ok, found: found.into(), remedy: (!ok).then_some(remedy) });
    }
}

/// Looks at everything. Exit code 1 when anything is wrong.
pub(crate) async fn run(dir: &Path, site: &Site, json: bool) -> anyhow::Result<ExitCode> {
    let mut report = Report::default();
    let pool = site.owner()?.pool(DbRole::Writer, 2);
    match tokio::time::timeout(PATIENCE, sqlx::query_scalar::<_, String>("show server_version").fetch_one(&pool)).await {
        Ok(Ok(version)) => {
            let major: u32 = version.split(['.', ' ']).next().and_then(|major| major.parse().ok()).unwrap_or(0);
            report.say("PostgreSQL", major >= 15, version, "PostgreSQL 15 or newer is needed: views with security_invoker");
            postgres(&mut report, site, &pool).await?;
        }
        Ok(Err(error)) => report.say(
            "PostgreSQL",
            false,
            error.to_string(),
            "start it (`tenure up` starts a private one), check DATABASE_URL, and `tenure migrate`",
        ),
        Err(_) => report.say("PostgreSQL", false, "no answer", "start it, or check DATABASE_URL and the way there"),
    }
    match site.store().await {
        Ok((store, _)) => installation(&mut report, site, &store).await?,
        Err(error) => report.say(
            "log",
            false,
            format!("{error:#}"),
            "start PostgreSQL, run `tenure migrate`, and use the installation's own master key",
        ),
    }
    disk(&mut report, "disk of the data directory", dir);
    let fine = report.0.iter().all(|check| check.ok);
    if json {
        for check in &report.0 {
            print(&serde_json::to_string(check)?)?;
        }
    } else {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_header(["", "WHAT", "FOUND"]);
        for check in &report.0 {
            table.add_row([if check.ok { "ok" } else { "WRONG" }, check.what.as_str(), check.found.as_str()]);
        }
        print(&table.to_string())?;
        for check in report.0.iter().filter(|check| !check.ok) {
            print(&format!("\n{}: {}\n  → {}", check.what, check.found, check.remedy.unwrap_or_default()))?;
        }
    }
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn postgres(report: &mut Report, site: &Site, pool: &PgPool) -> anyhow::Result<()> {
    let (missing, newer) = site.owner()?.migrations().await?;
    report.say(
        "migrations",
        missing == 0,
        match (missing, newer) {
            (0, 0) => "all there".to_owned(),
            (0, newer) => format!("all there, and {newer} newer than this binary, which is fine"),
            (missing, _) => format!("{missing} are missing"),
        },
        "run `tenure migrate` as the owner of the tables",
    );
    let before = SystemClock.now();
    let theirs: DateTime<Utc> = sqlx::query_scalar("select clock_timestamp()").fetch_one(pool).await?;
    let ours = before + (SystemClock.now() - before) / 2;
    let skew = (ours - theirs).abs();
    report.say(
        "clock",
        skew <= SKEW,
        format!("{} ms from the database's", skew.num_milliseconds()),
        "let both machines follow the same time server",
    );
    let long: Vec<(i32, f64, Option<String>)> = sqlx::query_as(
        "select pid, extract(epoch from clock_timestamp() - xact_start)::float8, left(query, 60) from pg_stat_activity
         where datname = current_database() and xact_start < clock_timestamp() - $1 * interval '1 second' and pid <> pg_backend_pid() order by 2 desc",
    )
    .bind(LONG)
    .fetch_all(pool)
    .await?;
    let words =
        long.iter().map(|(pid, age, query)| format!("{pid} for {age:.0} s: {}", query.as_deref().unwrap_or("?"))).collect::<Vec<_>>();
    report.say(
        "long transactions",
        long.is_empty(),
        if long.is_empty() { "none".to_owned() } else { words.join("; ") },
        "end them (`select pg_terminate_backend(<pid>)`): they keep dead rows from being cleaned up, and may hold locks",
    );
    let bytes: i64 = sqlx::query_scalar("select pg_database_size(current_database())").fetch_one(pool).await?;
    report.say("size of the database", true, format!("{} MiB", bytes >> 20), "");
    Ok(())
}

async fn installation(report: &mut Report, site: &Site, store: &Store) -> anyhow::Result<()> {
    let head = store.head().await?.position;
    report.say("log", true, format!("ends at position {head}, installation {}", store.installation()), "");
    let projector = site.database()?.pool(DbRole::Projector, 2);
    for generation in generations(&projector).await?.into_iter().filter(|generation| generation.state == "serving") {
        let behind = head - generation.position;
        report.say(
            format!("read model {}", generation.name),
            behind <= LAG && (generation.owner.is_some() || behind == 0),
            format!("position {}, {behind} behind, {}", generation.position, generation.owner.map_or("no projector", |_| "projected")),
            "run a process with the role `projector`, and look at its log; `tenure projections status` tells more",
        );
    }
    agreement(report, store, &projector).await?;
    match store.writable().await {
        Ok(()) => report.say("writes", true, "the database takes them", ""),
        Err(error) => report.say("writes", false, error.to_string(), "make room on its disk, or name the primary in DATABASE_URL"),
    }
    let waiting = parked(&projector).await?;
    report.say(
        "parked partitions",
        waiting.is_empty(),
        if waiting.is_empty() { "none".to_owned() } else { waiting.len().to_string() },
        "`tenure projections parked` says why; mend the cause, then `tenure projections retry`",
    );
    let bus = site.relay_bus(store).await?;
    if bus.connected().await.is_err() {
        report.say(
            "NATS",
            false,
            "no answer",
            "start it (`tenure up` starts a private one), or check NATS_URL; commands and queries go on meanwhile",
        );
        return Ok(());
    }
    report.say("NATS", true, bus.server_version().unwrap_or_default(), "");
    match bus.existing_stream().await {
        Ok(Some(stream)) => {
            let found = inspect(store, &bus, &stream).await?;
            let behind = head - found.last;
            report.say(
                "relay",
                behind <= LAG,
                format!("{} ends at {}, {behind} behind", bus.stream_name(), found.last),
                "run a process with the role `relay`, and look at its log",
            );
            let faults: Vec<String> = found.faults.iter().map(ToString::to_string).collect();
            report.say(
                "stream",
                faults.is_empty(),
                if faults.is_empty() { "a mirror of the log".to_owned() } else { faults.join("; ") },
                "`tenure log reconcile` after a restore, `tenure bus rebuild` otherwise; both delete the stream and publish the log again",
            );
        }
        Ok(None) => report.say("relay", head == 0, "there is no stream", "run a process with the role `relay`"),
        Err(error) => report.say("relay", false, error.to_string(), "JetStream has to be enabled, and its account allowed to use it"),
    }
    Ok(())
}

/// Whether everything that was made from the log was made from this one.
async fn agreement(report: &mut Report, store: &Store, projector: &PgPool) -> anyhow::Result<()> {
    let models: Vec<(String, i64, [u8; 32])> =
        sqlx::query_as("select 'read model ' || name, position, log_hash from read.generations where state = 'serving'")
            .fetch_all(projector)
            .await?;
    let policies: Vec<(String, i64, [u8; 32])> =
        sqlx::query_as("select 'policy ' || name, position, log_hash from ops.policies").fetch_all(store.pool()).await?;
    let mut faults = Vec::new();
    for (what, position, log_hash) in models.into_iter().chain(policies) {
        if let Err(disagreement) = store.confirm(Head { position, log_hash: Hash(log_hash) }).await? {
            faults.push(format!("{what}: {disagreement}"));
        }
    }
    report.say(
        "checkpoints",
        faults.is_empty(),
        if faults.is_empty() { "all confirmed by the log".to_owned() } else { faults.join("; ") },
        "`tenure log reconcile` rebuilds what was made from another log",
    );
    Ok(())
}

fn disk(report: &mut Report, what: &str, path: &Path) {
    let Ok(stat) = nix::sys::statvfs::statvfs(path) else { return };
    let (free, all) = (stat.blocks_available() * stat.fragment_size(), stat.blocks() * stat.fragment_size());
    let enough = free >= PLENTY || (free >= FREE && free * 100 >= all * FREE_PERCENT);
    report.say(
        what,
        enough,
        format!("{} MiB of {} MiB free", free >> 20, all >> 20),
        "make room: PostgreSQL and JetStream stop when the disk is full",
    );
}
