//! An installation of several processes, and what can happen to them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::seq::SliceRandom as _;
use reqwest::StatusCode;
use serde_json::json;
use servers::{Nats, Postgres};
use sqlx::PgPool;
use testing::eventually;

use super::load::{Counts, Load};
use crate::process::{Tenure, text, tool};
use crate::site::Site;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// `kill -9` of a process that answers commands.
    KillApi,
    /// `kill -9` of the process that relays.
    KillRelay,
    /// `kill -9` of the process that keeps the read models.
    KillProjector,
    /// `kill -9` of PostgreSQL's main process; it is started again.
    KillPostgres,
    /// PostgreSQL is shut down and started.
    RestartPostgres,
    /// Single sessions are ended by the database.
    TerminateBackends,
    /// `kill -9` of nats-server; it is started again.
    KillNats,
    /// nats-server comes back with the files of some time ago, as after a power loss.
    RollBackNats,
    /// A process stops in the middle of an append's transaction.
    StallWriter,
    /// No more connections for the services, and those that are there are gone.
    ExhaustConnections,
    /// The clocks of the processes jump forth and back.
    JumpClocks,
    /// The database is restored to an earlier state beside a bus that has what came after.
    RestoreEarlier,
}

impl Fault {
    pub const ALL: [Self; 12] = [
        Self::KillApi,
        Self::KillRelay,
        Self::KillProjector,
        Self::KillPostgres,
        Self::RestartPostgres,
        Self::TerminateBackends,
        Self::KillNats,
        Self::RollBackNats,
        Self::StallWriter,
        Self::ExhaustConnections,
        Self::JumpClocks,
        Self::RestoreEarlier,
    ];
}

/// Processes of one installation, under load.
pub struct Chaos {
    pub load: Load,
    pub apis: Vec<Tenure>,
    relays: Vec<Tenure>,
    projectors: Vec<Tenure>,
    pub owner: PgPool,
    clock: PathBuf,
    pub done: HashMap<Fault, usize>,
    /// Dropped last: a process that stops wants to tell its servers.
    pub site: Site,
}

impl Chaos {
    /// Two processes of each kind, and callers.
    pub async fn start() -> Self {
        Self::on(Site::new().await).await
    }

    /// The same, on a site whose environment says something special.
    pub async fn on(mut site: Site) -> Self {
        let clock = site.dir().join("clock");
        set_clock(&clock, 0);
        site.environment.extend([
            ("LD_PRELOAD", faketime()),
            ("FAKETIME_TIMESTAMP_FILE", clock.display().to_string()),
            ("FAKETIME_CACHE_DURATION", "1".into()),
            // Timeouts are measured with the monotonic clock, which never jumps.
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ]);
        let apis = vec![site.serve("api,timers"), site.serve("api,timers")];
        let relays = vec![site.serve("relay"), site.serve("relay")];
        let projectors = vec![site.serve("projector"), site.serve("projector")];
        for api in &apis {
            api.ready("ok").await;
        }
        let tenant = apis[0].provision("acme").await;
        let token = site.out(&["dev-token", "--tenant", &tenant, "--role", "support_agent", "--ttl", "12h"]).await;
        let owner = sqlx::postgres::PgPoolOptions::new().max_connections(2).connect_lazy(&site.servers.remembered.owner_url()).unwrap();
        let load = Load::start(token.trim(), bases(&apis));
        let chaos = Self { site, load, owner, apis, relays, projectors, clock, done: HashMap::new() };
        chaos.load.progress(20).await;
        chaos
    }

    /// Tells the callers where the processes are now.
    fn point(&self) {
        self.load.to(bases(&self.apis));
    }

    /// Lets something go wrong, and waits until work goes on.
    pub async fn inflict(&mut self, fault: Fault) {
        match fault {
            Fault::KillApi => {
                kill_one(&mut self.apis).await;
                self.apis.push(self.site.serve("api,timers"));
                self.point();
            }
            Fault::KillRelay => {
                kill_one(&mut self.relays).await;
                self.relays.push(self.site.serve("relay"));
            }
            Fault::KillProjector => {
                kill_one(&mut self.projectors).await;
                self.projectors.push(self.site.serve("projector"));
            }
            Fault::KillPostgres => kill_by_file(&self.site.servers.data.path().join("postgres/postmaster.pid")),
            Fault::RestartPostgres => {
                self.site.servers.postgres.stop().await;
                let mut remembered = self.site.servers.remembered.clone();
                self.site.servers.postgres = Postgres::start(&self.site.servers.data, &mut remembered, &["fsync=off"]).await.unwrap();
            }
            Fault::TerminateBackends => {
                for _ in 0..10 {
                    let one =
                        "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'tenure_service' order by random() limit 1";
                    sqlx::query(one).execute(&self.owner).await.unwrap();
                    self.load.progress(3).await;
                }
            }
            Fault::KillNats => kill_by_file(&self.site.servers.data.path().join("nats.pid")),
            Fault::RollBackNats => self.roll_back_nats().await,
            Fault::StallWriter => self.stall_writer().await,
            Fault::ExhaustConnections => {
                sqlx::query("alter role tenure_service connection limit 0").execute(&self.owner).await.unwrap();
                sqlx::query("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'tenure_service'")
                    .execute(&self.owner)
                    .await
                    .unwrap();
                self.apis[0].ready("unavailable").await;
                for answer in
                    [self.apis[0].get("/v1/tenants").await, self.apis[0].post("/v1/tenants", json!({"slug": "none", "name": "x"})).await]
                {
                    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
                }
                sqlx::query("alter role tenure_service connection limit -1").execute(&self.owner).await.unwrap();
            }
            Fault::JumpClocks => {
                // Never to before the callers' token was issued: that would not be valid yet.
                for minutes in [100, 30, 0] {
                    set_clock(&self.clock, minutes);
                    eventually(&format!("it is {minutes} minutes later"), || async { (self.minutes_off().await == minutes).then_some(()) })
                        .await;
                    self.load.progress(50).await;
                }
            }
            // Below, since every process is replaced by it.
            Fault::RestoreEarlier => {}
        }
        if fault == Fault::RestoreEarlier {
            self.restore_earlier().await;
        }
        self.load.progress(50).await;
        *self.done.entry(fault).or_default() += 1;
    }

    /// By how much the clock that dated the last event differs from the database's.
    async fn minutes_off(&self) -> i64 {
        let off =
            "select round(extract(epoch from recorded_at - clock_timestamp()) / 60)::bigint from events order by position desc limit 1";
        sqlx::query_scalar(off).fetch_one(&self.owner).await.unwrap()
    }

    /// The files of nats-server as they were a while ago.
    async fn roll_back_nats(&mut self) {
        let data = self.site.servers.data.path().to_owned();
        let (files, copy) = (data.join("nats"), data.join("nats.earlier"));
        self.site.servers.nats.stop().await;
        copy_dir(&files, &copy);
        self.start_nats().await;
        // What follows is acknowledged by the server, and then forgotten.
        let before = self.stream_end().await;
        self.load.progress(100).await;
        eventually("the stream has grown", || async { (self.stream_end().await >= before + 50).then_some(()) }).await;
        kill_by_file(&data.join("nats.pid"));
        self.site.servers.nats.stop().await;
        std::fs::remove_dir_all(&files).unwrap();
        std::fs::rename(&copy, &files).unwrap();
        self.start_nats().await;
    }

    /// A copy of the database from before some of the load takes its place, as after a restore or a failover to a standby that lagged; then `log reconcile` cures what is ahead.
    async fn restore_earlier(&mut self) {
        let programs = servers::postgres_programs().unwrap();
        let dump = self.site.dir().join("earlier.dump");
        let url = self.site.servers.remembered.owner_url();
        let run = async |program: &str, arguments: &[&str]| {
            let output = tokio::process::Command::new(programs.join(program)).args(arguments).output().await.unwrap();
            assert!(output.status.success(), "{program}: {}", text(&output.stderr));
        };
        let file = dump.to_str().unwrap();
        run("pg_dump", &["--format=custom", "--file", file, &url]).await;
        self.load.progress(200).await;
        let lost: i64 = sqlx::query_scalar("select position from log_head").fetch_one(&self.owner).await.unwrap();
        eventually("the bus has what will be lost", || async { (self.stream_end().await >= lost).then_some(()) }).await;
        for process in self.apis.iter_mut().chain(&mut self.relays).chain(&mut self.projectors) {
            process.signal(Signal::SIGKILL);
            process.child.wait().await.unwrap();
        }
        (self.apis, self.relays, self.projectors) = (vec![], vec![], vec![]);
        self.point();
        self.owner.close().await;
        let maintenance = url.replace("/tenure?", "/postgres?");
        let other = PgPool::connect(&maintenance).await.unwrap();
        sqlx::query("drop database tenure with (force)").execute(&other).await.unwrap();
        sqlx::query("create database tenure").execute(&other).await.unwrap();
        run("pg_restore", &["--dbname", &url, file]).await;
        self.owner = sqlx::postgres::PgPoolOptions::new().max_connections(2).connect_lazy(&url).unwrap();
        let head: i64 = sqlx::query_scalar("select position from log_head").fetch_one(&self.owner).await.unwrap();
        assert!(head < lost, "{head} of {lost}");
        self.load.restored(head);
        self.apis = vec![self.site.serve("api,timers"), self.site.serve("api,timers")];
        self.relays = vec![self.site.serve("relay"), self.site.serve("relay")];
        self.projectors = vec![self.site.serve("projector"), self.site.serve("projector")];
        self.point();
        self.load.progress(50).await;
        // The relays halt, and `doctor` names the stream.
        eventually("the doctor names the stream", || async {
            let (sound, checks) = self.site.doctor().await;
            let named = checks.iter().any(|check| check["what"] == "stream" && check["ok"] == false);
            (!sound && named).then_some(())
        })
        .await;
        self.site.out(&["log", "reconcile"]).await;
    }

    /// Gives nats-server a disk of its own, empty and small.
    pub async fn small_disk_for_nats(&mut self) -> Disk {
        self.site.servers.nats.stop().await;
        let disk = Disk::mount(&self.site.servers.data.path().join("nats"));
        self.start_nats().await;
        disk
    }

    /// Starts nats-server again.
    pub async fn restart_nats(&mut self) {
        self.site.servers.nats.stop().await;
        self.start_nats().await;
    }

    async fn start_nats(&mut self) {
        self.site.servers.nats = Nats::start(&self.site.servers.data, &self.site.servers.remembered).await.unwrap();
    }

    /// The last sequence of the stream; 0 while nobody answers.
    pub async fn stream_end(&self) -> i64 {
        let installation: uuid::Uuid = sqlx::query_scalar("select installation_id from log_head").fetch_one(&self.owner).await.unwrap();
        let Ok(bus) = bus::Bus::connect(&self.site.servers.remembered.nats_url(), "tenure", installation).await else { return 0 };
        match bus.existing_stream().await {
            Ok(Some(stream)) => i64::try_from(stream.cached_info().state.last_sequence).unwrap(),
            Ok(None) | Err(_) => 0,
        }
    }

    /// Which transactions hold the log's lock and wait for their process.
    async fn holders(&self) -> Vec<(i32, String)> {
        let query = "select a.pid, a.xact_start::text from pg_locks l join pg_stat_activity a using (pid)
             where l.relation = 'log_head'::regclass and l.mode = 'RowShareLock' and a.state = 'idle in transaction' and a.usename = 'tenure_service'";
        sqlx::query_as(query).fetch_all(&self.owner).await.unwrap()
    }

    /// Stops a process while its session has a transaction open, and shows that the other one gets on all the same.
    async fn stall_writer(&mut self) {
        let stalled = &self.apis[0];
        eventually("it stops inside its transaction", || async {
            stalled.signal(Signal::SIGSTOP);
            // A process that runs would have moved on after a while.
            let (before, _, after) =
                (self.holders().await, sqlx::query("select pg_sleep(0.1)").execute(&self.owner).await, self.holders().await);
            let inside = before.iter().any(|holder| after.contains(holder));
            if !inside {
                stalled.signal(Signal::SIGCONT);
            }
            inside.then_some(())
        })
        .await;
        self.load.to(vec![self.apis[1].base.clone()]);
        let waited = self.load.progress(30).await;
        assert!(waited < Duration::from_secs(15), "the others waited for {waited:?}");
        self.apis[0].signal(Signal::SIGCONT);
        self.point();
    }

    /// Everything is answered, nothing is lost or doubled, and all tools find all well.
    pub async fn settle(&mut self) -> Counts {
        let counts = self.load.settle(&self.owner).await;
        sound(&self.site).await;
        counts
    }
}

/// A file system in memory that can be filled. Mounting it takes root, as CI has.
pub struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path) -> Self {
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some("size=32m,mode=0700")).expect("a file system; this test needs root");
        Self(at.to_owned())
    }

    /// Leaves no room.
    pub fn fill(&self) {
        let mut filler = std::fs::File::create(self.0.join("filler")).unwrap();
        while std::io::Write::write(&mut filler, &[0; 4096]).is_ok_and(|written| written > 0) {}
    }

    /// Makes room again.
    pub fn free(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// The log, its guards and the bus are sound, and so is every read model.
pub async fn sound(site: &Site) {
    let mut last = String::new();
    let deadline = Instant::now() + Duration::from_secs(120);
    for tool_of in [["audit", "verify"], ["projections", "verify"]] {
        loop {
            let output = tool(site.dir(), &site.environment, &tool_of).await;
            if output.status.success() {
                break;
            }
            assert!(Instant::now() < deadline, "{tool_of:?} finds something wrong: {last}");
            last = text(&output.stdout) + &text(&output.stderr);
        }
    }
}

fn bases(apis: &[Tenure]) -> Vec<String> {
    apis.iter().map(|api| api.base.clone()).collect()
}

async fn kill_one(processes: &mut Vec<Tenure>) {
    processes.shuffle(&mut rand::thread_rng());
    let mut victim = processes.pop().unwrap();
    victim.signal(Signal::SIGKILL);
    victim.child.wait().await.unwrap();
}

fn kill_by_file(pid_file: &Path) {
    // Already being restarted: then somebody else was quicker.
    let Some(pid) = std::fs::read_to_string(pid_file).ok().and_then(|text| text.lines().next()?.trim().parse().ok()) else { return };
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

fn copy_dir(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

/// Lets the processes believe that it is so many minutes later.
fn set_clock(file: &Path, minutes: i64) {
    std::fs::write(file, format!("{minutes:+}m\n")).unwrap();
}

/// The library that lets a process believe in another time; scripts/setup.sh installs it.
fn faketime() -> String {
    let found = std::fs::read_dir("/usr/lib").unwrap().flatten().map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"));
    let found =
        found.chain(["/usr/lib", "/usr/lib64"].map(|lib| Path::new(lib).join("faketime/libfaketimeMT.so.1"))).find(|path| path.exists());
    found.expect("libfaketime: run scripts/setup.sh").display().to_string()
}

/// One of them.
pub fn any<T: Copy>(of: &[T]) -> T {
    *of.choose(&mut rand::thread_rng()).unwrap()
}
