//! The servers of a test run.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use domain::billing::meter::WithoutPlan;
use servers::{DataDir, Nats, Postgres, Remembered};
use sqlx::{Connection as _, Executor as _, PgConnection};
use store::{Database, MasterKey};
use tokio::sync::OnceCell;

use crate::{Env, start_of_time};

/// Names the data directory of servers that are running already.
pub const VARIABLE: &str = "TENURE_TEST_SERVERS";

/// What a crash of the machine would lose does not matter here, and much is written.
const FAST: &[&str] = &["fsync=off", "full_page_writes=off", "max_connections=500"];

/// PostgreSQL and nats-server of a test or a test run. Dropped, they stop and their files are removed, also when the test process is killed.
pub struct Servers {
    /// Where they are and how to log in.
    pub remembered: Remembered,
    /// PostgreSQL.
    pub postgres: Postgres,
    /// nats-server.
    pub nats: Nats,
    /// Their data directory, held.
    pub data: DataDir,
    /// Dropped last, when the others have been told to stop.
    _reaper: Reaper,
}

impl Servers {
    /// Starts both in a new directory under the system's temporary one.
    pub async fn start() -> Self {
        let path = std::env::temp_dir().join(format!("tenure-test-{}", crate::id()));
        let data = DataDir::open(&path).expect("a data directory");
        let reaper = Reaper::start(data.path());
        let mut remembered = data.remembered().expect("ports");
        let postgres = Postgres::start(&data, &mut remembered, FAST).await.expect("PostgreSQL starts");
        let nats = Nats::start(&data, &remembered).await.expect("nats-server starts");
        Self { remembered, postgres, nats, data, _reaper: reaper }
    }
}

/// A shell that waits for the end of its input, which comes when this process ends in whatever way, then stops whatever servers run in the directory and removes it.
struct Reaper(Child);

impl Reaper {
    fn start(data: &Path) -> Self {
        let script = r#"cat >/dev/null
            p=$(head -n 1 "$0/postgres/postmaster.pid" 2>/dev/null) && kill -QUIT "$p"
            n=$(cat "$0/nats.pid" 2>/dev/null) && kill -KILL "$n"
            for i in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$p" || break; sleep 0.2; done
            rm -rf "$0""#;
        // A group of its own: Ctrl-C must not end it before it has done its work.
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).arg(data).stdin(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        Self(shell.spawn().expect("sh"))
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Where databases are made for tests.
pub struct Shared {
    remembered: Remembered,
    made: AtomicU32,
    /// Cloning needs a template that nobody is connected to.
    clone: tokio::sync::Mutex<()>,
}

/// The servers that all tests of this process share.
pub async fn shared() -> &'static Shared {
    static SHARED: OnceCell<Shared> = OnceCell::const_new();
    SHARED
        .get_or_init(|| async {
            let remembered = match std::env::var_os(VARIABLE) {
                Some(dir) => servers::remembered(&PathBuf::from(dir)).expect("servers.json").expect("the servers of the test run"),
                None => own().await,
            };
            Shared::prepare(remembered).await
        })
        .await
}

/// Servers for this process alone, on a runtime that outlives the single test.
async fn own() -> Remembered {
    static OWN: OnceLock<(tokio::runtime::Runtime, Servers)> = OnceLock::new();
    tokio::task::spawn_blocking(|| {
        OWN.get_or_init(|| {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
            let servers = runtime.block_on(Servers::start());
            (runtime, servers)
        })
        .1
        .remembered
        .clone()
    })
    .await
    .expect("servers")
}

impl Shared {
    /// Makes the template, unless another test binary of this run has.
    pub async fn prepare(remembered: Remembered) -> Self {
        let mut connection = PgConnection::connect(&remembered.owner_url()).await.expect("PostgreSQL");
        connection.execute("select pg_advisory_lock(4711)").await.expect("the template's lock");
        let exists: bool = sqlx::query_scalar("select exists(select from pg_database where datname = 'tenure_template')")
            .fetch_one(&mut connection)
            .await
            .expect("PostgreSQL");
        if !exists {
            connection.execute("create database tenure_making").await.expect("a template");
            Database::new(&remembered.owner_url().replace("/tenure?", "/tenure_making?"))
                .expect("a URL")
                .migrate()
                .await
                .expect("migrations");
            connection.execute("alter database tenure_making rename to tenure_template").await.expect("a template");
        }
        connection.close().await.expect("PostgreSQL");
        Self { remembered, made: AtomicU32::new(0), clone: tokio::sync::Mutex::new(()) }
    }

    /// A new empty installation.
    pub async fn new_env(&self) -> Env {
        let name = format!("t_{}_{}", std::process::id(), self.made.fetch_add(1, Ordering::Relaxed));
        {
            let _one = self.clone.lock().await;
            let mut connection = PgConnection::connect(&self.remembered.owner_url()).await.expect("PostgreSQL");
            connection.execute(format!("create database {name} template tenure_template").as_str()).await.expect("a database");
            connection.close().await.expect("PostgreSQL");
        }
        let url = |url: String| url.replace("/tenure?", &format!("/{name}?"));
        let owner = sqlx::postgres::PgPoolOptions::new().max_connections(3).connect_lazy(&url(self.remembered.owner_url())).expect("a URL");
        sqlx::query("update log_head set installation_id = gen_random_uuid()").execute(&owner).await.expect("an installation");
        Env {
            database: Database::new(&url(self.remembered.service_url())).expect("a URL"),
            owner,
            nats_url: self.remembered.nats_url(),
            prefix: name,
            clock: domain::ManualClock::new(start_of_time()),
            master_key: MasterKey::from_hex(&MasterKey::generate()).expect("a key"),
            without_plan: WithoutPlan::unlimited(),
        }
    }
}
