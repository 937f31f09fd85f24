//! The process that is measured, killed at the end.

use std::process::Stdio;
use std::time::{Duration, Instant};

use access::token::TokenKey;
use anyhow::Context as _;
use chrono::TimeDelta;
use domain::{Clock as _, Role, SystemClock, TenantId};
use hyper::Method;
use tokio::process::{Child, Command};

use crate::client::Client;
use crate::load::pause;
use crate::site::Site;

/// A running process, and a client of the platform.
pub(crate) struct Process {
    child: Child,
    pub(crate) client: Client,
    pub(crate) key: TokenKey,
}

/// A free local address.
pub(crate) fn free_address() -> anyhow::Result<String> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

/// Waits until a server answers.
pub(crate) async fn answers(client: &Client, path: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !client.try_send(Method::GET, path, None).await.is_ok_and(|answer| answer.status.is_success()) {
        anyhow::ensure!(Instant::now() < deadline, "the process does not come up");
        pause(Duration::from_millis(50)).await;
    }
    Ok(())
}

impl Process {
    /// Starts `tenure` with these arguments on a database.
    pub(crate) async fn start(site: &Site, database: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?.with_file_name("tenure");
        anyhow::ensure!(program.exists(), "{} has to be built", program.display());
        let (address, pem) = (free_address()?, TokenKey::generate());
        let key = TokenKey::from_pem(&pem)?;
        let child = Command::new(program)
            .args(arguments)
            .args(["--http", &address])
            .envs(Self::environment(site, database))
            .env("TENURE_API_TOKEN_KEY", pem)
            .env("TENURE_BILLING_WITHOUT_PLAN", "unlimited")
            .env("TENURE_LOG", "warn")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let token = key.sign("bench", TenantId::SYSTEM, Role::SuperAdmin, SystemClock.now(), TimeDelta::hours(2))?;
        let client = Client::new(&address, &token);
        answers(&client, "/readyz").await?;
        Ok(Self { child, client, key })
    }

    /// Environment variables of a process: database, bus and keys.
    pub(crate) fn environment(site: &Site, database: &str) -> [(&'static str, String); 4] {
        [
            ("DATABASE_URL", site.url(database, false)),
            ("NATS_URL", site.remembered.nats_url()),
            ("TENURE_BUS_PREFIX", database.replace('_', "")),
            ("TENURE_STORE_MASTER_KEY", site.master_key.clone()),
        ]
    }

    /// Its resident memory in bytes.
    pub(crate) fn resident(&self) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().context("it runs")?))?;
        let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("its memory")?;
        Ok(kilobytes.trim().trim_end_matches(" kB").trim().parse::<f64>()? * 1024.0)
    }
}
