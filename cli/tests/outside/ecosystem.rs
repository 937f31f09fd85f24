//! The subscribers of `examples/`.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use sqlx::PgPool;
use testing::eventually;
use tokio::process::{Child, Command};

use crate::chaos::{Chaos, Fault};
use crate::program;

/// What a subscriber holds, in the order in which it was written.
type Copy = Vec<(i64, String, String)>;

/// The examples, and where they keep their copies.
struct Subscribers {
    python: PathBuf,
    rust: PgPool,
    rust_url: String,
    nats_url: String,
    children: Vec<Child>,
}

impl Subscribers {
    async fn start(chaos: &Chaos) -> Self {
        sqlx::query("create database subscriber").execute(&chaos.owner).await.unwrap();
        let remembered = &chaos.site.servers.remembered;
        let rust_url = remembered.owner_url().replace("/tenure?", "/subscriber?");
        let rust = PgPool::connect(&rust_url).await.unwrap();
        let python = chaos.site.dir().join("copy.db");
        let mut subscribers = Self { python, rust, rust_url, nats_url: remembered.nats_url(), children: vec![] };
        subscribers.run();
        subscribers
    }

    fn run(&mut self) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/python/subscriber.py");
        let mut python = Command::new(program("TENURE_TEST_PYTHON"));
        python.arg(script).arg(&self.python);
        let mut rust = Command::new(Path::new(env!("CARGO_BIN_EXE_tenure")).with_file_name("subscriber"));
        rust.env("DATABASE_URL", &self.rust_url);
        self.children = [python, rust]
            .into_iter()
            .map(|mut command| command.env("NATS_URL", &self.nats_url).stdin(Stdio::null()).kill_on_drop(true).spawn().unwrap())
            .collect();
    }

    /// `kill -9`, wherever they are, and once more.
    async fn restart(&mut self) {
        for child in &mut self.children {
            child.kill().await.unwrap();
        }
        self.run();
    }

    async fn copies(&self) -> [Copy; 2] {
        let rust = sqlx::query_as("select position, id::text, type from events order by n").fetch_all(&self.rust).await.unwrap_or_default();
        [self.python_copy().await, rust]
    }

    async fn python_copy(&self) -> Copy {
        let query = "import json, sqlite3, sys; print(json.dumps(sqlite3.connect(sys.argv[1]).execute('select position, id, type from events order by rowid').fetchall()))";
        let output = Command::new(program("TENURE_TEST_PYTHON")).arg("-c").arg(query).arg(&self.python).output().await.unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// Until both have come this far.
    async fn reach(&self, position: i64) {
        for (n, who) in ["Python", "Rust"].into_iter().enumerate() {
            eventually(&format!("the subscriber in {who} has {position}"), || async {
                self.copies().await[n].last().is_some_and(|last| last.0 >= position).then_some(())
            })
            .await;
        }
    }
}

async fn head(chaos: &Chaos) -> i64 {
    sqlx::query_scalar("select position from log_head").fetch_one(&chaos.owner).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn outside_subscribers_survive_restarts_redelivery_and_a_refilled_stream_and_lose_and_double_nothing() {
    let mut chaos = Chaos::start().await;
    let mut subscribers = Subscribers::start(&chaos).await;
    subscribers.reach(head(&chaos).await).await;
    for _ in 0..5 {
        chaos.load.progress(100).await;
        subscribers.restart().await;
    }
    subscribers.reach(head(&chaos).await).await;
    for fault in [Fault::KillNats, Fault::RollBackNats, Fault::KillRelay, Fault::RollBackNats] {
        chaos.inflict(fault).await;
        subscribers.restart().await;
        chaos.load.progress(100).await;
    }
    subscribers.reach(head(&chaos).await).await;
    chaos.site.out(&["bus", "rebuild"]).await;
    chaos.load.progress(200).await;
    println!("{}", chaos.settle().await);
    let log: Copy =
        sqlx::query_as("select position, event_id::text, event_type from events order by position").fetch_all(&chaos.owner).await.unwrap();
    subscribers.reach(log.last().unwrap().0).await;
    for (who, copy) in ["Python", "Rust"].into_iter().zip(subscribers.copies().await) {
        assert_eq!(copy.len(), log.len(), "{who}");
        assert!(copy == log, "{who}'s copy is the log, in its order");
    }
    println!("{} events in both copies, as in the log", log.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn outside_subscribers_stop_and_say_so_where_the_log_was_restored_to_an_earlier_state() {
    let mut chaos = Chaos::start().await;
    let mut subscribers = Subscribers::start(&chaos).await;
    chaos.load.progress(100).await;
    subscribers.reach(head(&chaos).await).await;
    chaos.inflict(Fault::RestoreEarlier).await;
    chaos.load.progress(500).await;
    for (n, who) in ["Python", "Rust"].into_iter().enumerate() {
        let ended = tokio::time::timeout(testing::PATIENCE, subscribers.children[n].wait()).await.expect(who).unwrap();
        assert_eq!(ended.code(), Some(3), "{who}");
    }
    let log: Copy =
        sqlx::query_as("select position, event_id::text, event_type from events order by position").fetch_all(&chaos.owner).await.unwrap();
    for (who, copy) in ["Python", "Rust"].into_iter().zip(subscribers.copies().await) {
        let common = copy.iter().zip(&log).take_while(|(ours, theirs)| ours == theirs).count();
        let lost: Vec<_> = copy[common..].iter().collect();
        assert!(!lost.is_empty() && lost.iter().all(|event| !log.contains(event)), "{who} holds what was lost, and nothing after it");
    }
    chaos.settle().await;
}
