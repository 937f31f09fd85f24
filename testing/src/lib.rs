//! The test kit: real servers started once per test run by the same code as `tenure up`, a database per test cloned from one migrated template, an injected clock, and
//! waiting for conditions instead of sleeping.
//!
//! `cargo run -p testing -- cargo test` starts the servers once for all test binaries; a test binary that is run by itself starts its own.

pub mod dns;
pub mod http;
pub mod node;
pub mod servers;
pub mod stripe;
pub mod thing;

use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bus::Bus;
use chrono::{DateTime, TimeZone as _, Utc};
use domain::ManualClock;
use domain::billing::meter::WithoutPlan;
use sqlx::PgPool;
use store::{Config, Database, MasterKey, Store};
use tokio::task::JoinHandle;
use uuid::Uuid;

/// How long a test waits for something that must come.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// When test clocks start.
pub fn start_of_time() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 1, 1, 9, 0, 0).single().unwrap_or_default()
}

/// A fresh random id.
#[expect(clippy::disallowed_methods, reason = "tests need ids that do not collide between test databases on one message bus")]
pub fn id() -> Uuid {
    Uuid::now_v7()
}

/// A database of its own, with an installation id of its own and so a stream of its own.
pub struct Env {
    /// As services see it.
    pub database: Database,
    /// As its owner.
    pub owner: PgPool,
    /// The message bus that all tests share.
    pub nats_url: String,
    /// What this installation's subjects begin with.
    pub prefix: String,
    /// What time it is.
    pub clock: ManualClock,
    /// Wraps the keys of data subjects.
    pub master_key: MasterKey,
    /// What a tenant may use before its first subscription.
    pub without_plan: WithoutPlan,
}

impl Env {
    /// A new empty installation.
    pub async fn new() -> Self {
        servers::shared().await.new_env().await
    }

    /// Opens its log, as one process would.
    pub async fn open(&self) -> (Store, JoinHandle<()>) {
        Store::open(&self.database, self.store_config()).await.expect("the log opens")
    }

    /// Opens its log; the writer ends with the test.
    pub async fn store(&self) -> Store {
        self.open().await.0
    }

    /// Connects to the bus.
    pub async fn bus(&self, store: &Store) -> Bus {
        let bus = Bus::connect(&self.nats_url, &self.prefix, store.installation()).await.expect("a NATS URL");
        eventually("the bus is connected", || async { bus.is_connected().then_some(()) }).await;
        bus
    }

    /// How it is opened.
    pub fn store_config(&self) -> Config {
        Config { ceilings: self.without_plan.ceilings(), ..Config::new(self.master_key.clone(), Arc::new(self.clock.clone())) }
    }
}

/// Waits until `probe` answers something.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut probe: impl FnMut() -> F) -> T {
    eventually_else(|| {
        let answer = probe();
        async { answer.await.ok_or(what) }
    })
    .await
}

/// Waits until `probe` succeeds; what it said last is said when the wait is over.
pub async fn eventually_else<T, E: Display, F: Future<Output = Result<T, E>>>(mut probe: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let said = match probe().await {
            Ok(answer) => return answer,
            Err(said) => said,
        };
        assert!(Instant::now() < deadline, "gave up waiting: {said}");
        tick().await;
    }
}

#[expect(clippy::disallowed_methods, reason = "between two looks at a condition with a deadline")]
async fn tick() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}
