//! `tenure seed`: an installation worth looking at.
//!
//! Tenants are founded, work and pay for some months, day by day, by the same commands that everybody sends and with the policies and timers of a running process; only the
//! clock is not the machine's. The same seed makes the same tenants.

mod firm;
mod texts;

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use chrono::{DateTime, NaiveTime, TimeDelta, Utc};
use clap::Args;
use commands::timers::TimerPoller;
use commands::{CommandError, Executor, Outcome, Request, policy};
use domain::identity::user::{RegisterUser, User};
use domain::text::{DisplayName, Email};
use domain::{Actor, Aggregate, Clock as _, ManualClock, Role, StreamId, SystemClock, TenantId};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde::de::DeserializeOwned;
use serde_json::Value;
use servers::DataDir;
use store::{DbRole, Store};
use tokio_util::sync::CancellationToken;

use crate::roles::{self, RoleName};
use crate::site::Site;
use crate::{private, terminal, up};
use firm::Firm;

/// Between two looks at how far the policies have come.
const MOMENT: Duration = Duration::from_millis(5);

/// How much of it.
#[derive(Args)]
pub(crate) struct Wanted {
    /// How many tenants.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    tenants: u32,
    /// What everything follows from: the same number makes the same tenants.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// For how many months they have been at work.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=24))]
    months: u32,
    /// Until when [default: now].
    #[arg(long)]
    until: Option<DateTime<Utc>>,
    /// Do nothing where there are tenants already.
    #[arg(long)]
    if_empty: bool,
}

/// Commands as they are sent in a time of our own.
struct Town {
    executor: Executor,
    access: access::Access,
    clock: ManualClock,
    /// What everybody logs in with: drawn, since nobody knows who can reach the installation.
    password: String,
}

impl Town {
    fn store(&self) -> &Store {
        self.executor.store()
    }

    fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    /// Goes on to a time.
    fn until(&self, time: DateTime<Utc>) {
        self.clock.advance((time - self.clock.now()).max(TimeDelta::zero()));
    }

    /// Sends a command with the body that a request would have. `None`: a plan or a closed tenant did not let it through, which is a part of life.
    async fn send<A: Aggregate, C: DeserializeOwned + Into<A::Ask>>(
        &self,
        stream: StreamId,
        actor: &Actor,
        body: Value,
    ) -> anyhow::Result<Option<Outcome>> {
        let command: C = serde_json::from_value(body.clone()).with_context(|| format!("{} {body}", std::any::type_name::<C>()))?;
        self.ask::<A>(stream, actor, command.into()).await
    }

    /// The same with a command that no request has as its body.
    async fn ask<A: Aggregate>(&self, stream: StreamId, actor: &Actor, command: A::Ask) -> anyhow::Result<Option<Outcome>> {
        use domain::aggregate::Ask as _;
        let what = command.name();
        match self.executor.execute(Request::<A>::new(stream, command, actor.clone(), self.store().fresh_id())).await {
            Ok(outcome) => Ok(Some(outcome)),
            Err(CommandError::QuotaExceeded(_)) => Ok(None),
            Err(CommandError::Rejected { code, .. }) if code == "tenant.closed" => Ok(None),
            Err(error) => Err(error).with_context(|| format!("{}.{what}", A::TYPE)),
        }
    }

    /// Fires what is due, and waits until every policy has answered what has happened.
    async fn settle(&self) -> anyhow::Result<()> {
        let timers = TimerPoller::new(self.executor.clone());
        let mut moved = self.store().watch_head();
        loop {
            while timers.fire_due().await? > 0 {}
            let head = self.store().head().await?.position;
            if policy::statuses(self.store()).await?.iter().all(|policy| policy.position >= head) && timers.fire_due().await? == 0 {
                return Ok(());
            }
            // Until the log goes on, or for a moment.
            let _ = tokio::time::timeout(MOMENT, moved.changed()).await;
        }
    }
}

pub(crate) async fn run(dir: &Path, wanted: &Wanted) -> anyhow::Result<()> {
    let cancel = terminal::cancelled_by_signals()?;
    let data = DataDir::open(dir).context("stop the installation first: this needs it for itself")?;
    Box::pin(private::with_servers(&data, &cancel, async |site| {
        if up::has_tenants(&site).await? {
            anyhow::ensure!(
                wanted.if_empty,
                "there are tenants already; fill another data directory (--data-dir), or leave it (--if-empty)"
            );
            return Ok(());
        }
        let pool = site.database()?.pool(DbRole::Writer, 1);
        let running = store::lease::is_held(&pool, "policy/").await? || store::lease::is_held(&pool, "projection/").await?;
        anyhow::ensure!(!running, "another process runs this installation; stop it first");
        let until = wanted.until.unwrap_or_else(|| SystemClock.now());
        let days = i64::from(wanted.months) * 30;
        let first = (until - TimeDelta::days(days)).date_naive().and_time(NaiveTime::MIN).and_utc();
        let clock = ManualClock::new(first);
        let site = site.simulated(clock.clone());
        let (policies, alone) = (CancellationToken::new(), [RoleName::Relay, RoleName::Policies]);
        let mut background = std::pin::pin!(roles::run(&site, &alone, None, policies.clone()));
        let (firms, password) = tokio::select! {
            () = cancel.cancelled() => anyhow::bail!("stopped; what there is by now is no whole demonstration"),
            ended = &mut background => return ended.and(Err(anyhow::anyhow!("the policies have ended by themselves"))),
            lived = live(&site, &clock, wanted, until, days) => lived?,
        };
        policies.cancel();
        background.await?;
        tell(&firms, wanted, &password);
        Ok(())
    }))
    .await
}

/// Lets the tenants live, day by day.
async fn live(site: &Site, clock: &ManualClock, wanted: &Wanted, until: DateTime<Utc>, days: i64) -> anyhow::Result<(Vec<Firm>, String)> {
    let (store, _writer) = site.store().await?;
    let executor = Executor::new(store);
    let town = Town { access: site.access(&executor)?, executor, clock: clock.clone(), password: access::devices::claim_code() };
    commands::policies::catalogue::install(&town.executor).await?;
    platform(&town).await?;
    let mut random = StdRng::seed_from_u64(wanted.seed);
    let mut firms: Vec<Firm> = (0..wanted.tenants).map(|n| Firm::draw(n, days, &mut random)).collect();
    let bar = terminal::progress("days", days);
    let start = clock.now();
    for day in 0..=days {
        for hour in [8, 12, 16] {
            let time = start + TimeDelta::days(day) + TimeDelta::hours(hour);
            if time >= until {
                break;
            }
            town.until(time);
            for firm in &mut firms {
                firm.work(&town, day, hour).await.with_context(|| firm.slug.clone())?;
            }
            // A new tenant gets its subscription and its owner at once; everything else has time until the evening.
            if hour == 16 || firms.iter().any(|firm| firm.begins(day)) {
                town.settle().await?;
            }
        }
        terminal::advance(&bar, day);
    }
    town.until(until);
    town.settle().await?;
    for firm in &mut firms {
        firm.end(&town).await.with_context(|| firm.slug.clone())?;
    }
    town.settle().await?;
    bar.finish_and_clear();
    town.store().close();
    Ok((firms, town.password))
}

/// Those who run the platform.
async fn platform(town: &Town) -> anyhow::Result<()> {
    let admin = StreamId::new(TenantId::SYSTEM, town.store().fresh_id());
    let actor = Actor::system("seed");
    let (email, name) = (Email::parse("admin@example.com")?, DisplayName::parse("Platform Admin")?);
    let register = RegisterUser { id: None, email, name, role: Role::SuperAdmin, email_verified: true, welcome: false };
    town.ask::<User>(admin, &actor, register.into()).await?;
    town.access.set_password(admin, access::passwords::Password::new(town.password.clone()), actor).await?;
    Ok(())
}

fn tell(firms: &[Firm], wanted: &Wanted, password: &str) {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_header(["tenant", "plan", "users", "devices", "tickets", "who runs it"]);
    for firm in firms {
        table.add_row([
            firm.slug.clone(),
            firm.plan.to_owned(),
            firm.people.len().to_string(),
            firm.devices.len().to_string(),
            firm.tickets.to_string(),
            firm.email.clone(),
        ]);
    }
    println!(
        "{table}\n\nSeed {}: {} tenants. Everybody in the table, and admin@example.com of `system`, logs in with the password `{password}`.",
        wanted.seed,
        firms.len()
    );
    println!("Start it with `tenure up`.");
}
