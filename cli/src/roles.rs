//! Running roles: what a process does, put together and taken apart again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use access::Access;
use anyhow::Context as _;
use api::App;
use api::health::{Component, Health, Level, Operations, Probe};
use api::serve::serve;
use bus::Bus;
use bus::feed::{Feed, FeedState};
use bus::relay::{Relay, Status, hint};
use clap::ValueEnum;
use commands::Executor;
use commands::policies::catalogue;
use commands::policy::{Commands, PolicyStatus};
use commands::timers::TimerPoller;
use futures::FutureExt as _;
use metrics_exporter_prometheus::PrometheusHandle;
use outbound::erasure::ErasurePolicy;
use outbound::policy::MailPolicy;
use outbound::worker::{Channel, Worker};
use payments::channel::PaymentChannel;
use payments::policy::PaymentsPolicy;
use projections::{ModelStatus, Progress, ReadSide, projector, statistics};
use serde_json::json;
use store::{DbRole, Store};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::checkpoint::Signer;
use crate::site::{Site, checkpoint_key};

/// How long accepted requests may take to finish at a shutdown.
const GRACE: Duration = Duration::from_secs(20);
/// How often figures are folded.
const UPKEEP: Duration = Duration::from_secs(5);
/// How often sessions and secrets that count no more are forgotten.
const HOUSEKEEPING: Duration = Duration::from_secs(3600);
/// How long a health check waits for a dependency.
const PROBE: Duration = Duration::from_secs(1);
/// A read model that is further behind than this many events is said to lag.
const LAG: i64 = 10_000;

/// What a process may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleName {
    /// Serve REST commands and queries.
    Api,
    /// Mirror the log on the bus.
    Relay,
    /// Keep the read models.
    Projector,
    /// Answer events with commands.
    Policies,
    /// Fire timers.
    Timers,
}

impl RoleName {
    /// All of them.
    pub(crate) const ALL: [Self; 5] = [Self::Api, Self::Relay, Self::Projector, Self::Policies, Self::Timers];
}

/// Runs the roles until cancelled, then finishes what was accepted.
#[expect(clippy::too_many_lines, reason = "a list of the parts of a process, in the order in which they start")]
pub(crate) async fn run(site: &Site, roles: &[RoleName], listener: Option<TcpListener>, cancel: CancellationToken) -> anyhow::Result<()> {
    Site::raise_file_limit();
    let has = |role| roles.contains(&role);
    // Before anything else: a figure that is registered earlier is lost.
    let metrics = api::app::recorder();
    let (store, mut writer) = site.store().await?;
    let bus = site.bus(&store).await?;
    let progress = Progress::default();
    let executor = Executor::new(store.clone()).with_daily_mails(Site::daily_mails()?).with_unpaid_ceiling(Site::unpaid_ceiling()?);
    let access = site.access(&executor)?;
    let payments = site.payments()?;
    // What runs in the background ends after the API has.
    let background = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(hint(store.clone(), bus.clone(), background.clone()));
    let mut relaying = None;
    if has(RoleName::Relay) {
        let publishing = site.relay_bus(&store).await?;
        if let Some(key) = checkpoint_key(site.dir())? {
            let (place, interval) = site.checkpoints()?;
            let signer = Signer { store: store.clone(), bus: publishing.clone(), key, place, interval };
            tasks.spawn(signer.run(background.clone()));
        }
        let relay = Relay::new(store.clone(), publishing);
        relaying = Some(relay.status());
        tasks.spawn(relay.run(background.clone()));
    }
    let follows = has(RoleName::Projector) || has(RoleName::Policies);
    let feed = if follows { Feed::start(store.clone(), bus.clone(), background.clone()) } else { Feed::silent() };
    if has(RoleName::Projector) {
        let pool = site.database()?.pool(DbRole::Projector, 8);
        tasks.spawn(projector::all(&store, &pool, &feed, &progress, &background).run());
        tasks.spawn(statistics::keep(pool, background.clone()));
    }
    if has(RoleName::Policies) {
        let mailer = site.mailer(&store)?;
        let files = mailer.written_to();
        if let Some(files) = &files {
            // Of people who were erased while this process did not run.
            files.forget_erased(&store).await?;
        }
        let policies = commands::policy::none(&store, &feed, &background);
        policies.add(ErasurePolicy::member(&store, files));
        policies.add(MailPolicy::member(&store));
        policies.add(PaymentsPolicy::member(&store, payments.clone()));
        macro_rules! reactions {
            ($($reaction:expr,)*) => { $(policies.add(Commands::member($reaction, &executor));)* };
        }
        commands::for_each_reaction!(reactions);
        tasks.spawn(policies.run());
        tokio::spawn(install_plans(executor.clone(), background.clone()));
        let mut channels: Vec<Arc<dyn Channel>> = vec![Arc::new(mailer)];
        channels.extend(payments.clone().map(|provider| Arc::new(PaymentChannel::new(executor.clone(), provider)) as Arc<dyn Channel>));
        tasks.spawn(Worker::new(store.clone(), channels).run(background.clone()));
    }
    if has(RoleName::Timers) {
        tasks.spawn(TimerPoller::new(executor.clone()).run(background.clone()));
        tasks.spawn(housekeep(access.clone(), store.clone(), background.clone()));
    }
    tasks.spawn(upkeep(metrics.clone(), background.clone()));
    tasks.spawn(record_sums(access.clone(), background.clone()));
    tracing::info!(?roles, position = *store.watch_head().borrow(), "running");
    let serving = async {
        if let Some(listener) = listener {
            let reads = ReadSide::new(&site.database()?, progress, site.cursor_key()?);
            let feed = follows.then(|| feed.state());
            let probe = probe(store.clone(), bus, reads.clone(), relaying, feed);
            let operations = Operations::new(probe, metrics);
            let app = App { executor, reads, access, payments, dns: Arc::new(Site::dns()?), operations };
            let limits = Site::limits()?;
            let (connections, proxies) = (limits.connections, limits.trusted_proxies.clone());
            let apart = match Site::operations_address()? {
                Some(address) => {
                    let listener = TcpListener::bind(address).await;
                    let listener = listener.with_context(|| format!("TENURE_API_OPERATIONS_HTTP: {address} cannot be listened on"))?;
                    Some((listener, api::app::operations(app.clone())))
                }
                None => None,
            };
            let operations = async {
                if let Some((listener, router)) = apart {
                    serve(listener, router, connections, &proxies, cancel.cancelled(), GRACE).await;
                }
            };
            let api = serve(listener, api::router(app, limits), connections, &proxies, cancel.cancelled(), GRACE);
            tokio::join!(api, operations);
        } else {
            cancel.cancelled().await;
        }
        anyhow::Ok(())
    };
    // A part that ends before it is told to has failed; without it the process would only look alive.
    let ended = tokio::select! {
        served = serving => served,
        ended = tasks.join_next() => Err(anyhow::anyhow!("a part of the process has ended by itself: {ended:?}")),
        ended = &mut writer => Err(anyhow::anyhow!("the writer has ended by itself: {ended:?}")),
    };
    tracing::info!("stopping");
    background.cancel();
    let _ = tokio::time::timeout(GRACE / 2, async { while tasks.join_next().await.is_some() {} }).await;
    store.close();
    if !writer.is_finished() {
        let _ = tokio::time::timeout(GRACE / 2, writer).await;
    }
    ended
}

/// Makes the plans that come with Tenure, as soon as that can be.
async fn install_plans(executor: Executor, cancel: CancellationToken) {
    let mut pause = Duration::from_millis(100);
    while let Err(error) = catalogue::install(&executor).await {
        tracing::warn!(%error, "the plans that come with Tenure cannot be made yet");
        if tokio::time::timeout(pause, cancel.cancelled()).await.is_ok() {
            return;
        }
        pause = (pause * 2).min(Duration::from_secs(60));
    }
}

/// Forgets sessions and secrets that count no more, and the bodies of what payment providers told long ago.
async fn housekeep(access: Access, store: Store, cancel: CancellationToken) {
    while tokio::time::timeout(HOUSEKEEPING, cancel.cancelled()).await.is_err() {
        if let Err(error) = access.housekeep().await {
            tracing::warn!(%error, "old sessions and secrets cannot be forgotten");
        }
        if let Err(error) = payments::inbox::forget(&store).await {
            tracing::warn!(%error, "old messages of payment providers cannot be forgotten");
        }
    }
}

/// Records what was tried and summed up, when its minute has passed, and at the end.
async fn record_sums(access: Access, cancel: CancellationToken) {
    let mut last = false;
    while !last {
        last = tokio::time::timeout(UPKEEP, cancel.cancelled()).await.is_ok();
        if let Err(error) = access.record_sums(last).await {
            tracing::warn!(%error, "what was tried could not be recorded");
        }
    }
}

/// Keeps the figures small, scraped or not.
async fn upkeep(metrics: PrometheusHandle, cancel: CancellationToken) {
    while tokio::time::timeout(UPKEEP, cancel.cancelled()).await.is_err() {
        metrics.run_upkeep();
    }
}

fn probe(
    store: Store,
    bus: Bus,
    reads: ReadSide,
    relaying: Option<watch::Receiver<Status>>,
    feed: Option<watch::Receiver<FeedState>>,
) -> Probe {
    std::sync::Arc::new(move || {
        let (store, bus, reads, relaying, feed) = (store.clone(), bus.clone(), reads.clone(), relaying.clone(), feed.clone());
        async move {
            let mut components = BTreeMap::new();
            let mut say = |name: &str, status, detail| components.insert(name.to_owned(), Component { status, detail });
            let head = match tokio::time::timeout(PROBE, store.head()).await {
                Ok(Ok(head)) => Ok(head.position),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("no answer".into()),
            };
            match &head {
                Ok(position) => say("log", Level::Ok, json!({"position": position, "waiting": store.queued()})),
                Err(error) => say("log", Level::Unavailable, json!({"error": error})),
            };
            match tokio::time::timeout(PROBE, store.writable()).await {
                Ok(Ok(())) => say("writes", Level::Ok, json!({})),
                Ok(Err(error)) => say("writes", Level::Unavailable, json!({"error": error.to_string()})),
                Err(_) => say("writes", Level::Unavailable, json!({"error": "no answer"})),
            };
            if bus.is_connected() {
                say("bus", Level::Ok, json!({"version": bus.server_version()}));
            } else {
                say("bus", Level::Degraded, json!({"error": "not connected"}));
            }
            if let Some(status) = relaying {
                let status = status.borrow().clone();
                let level = match &status {
                    Status::Starting | Status::Standby | Status::Running { .. } => Level::Ok,
                    Status::Waiting { .. } | Status::Halted { .. } => Level::Degraded,
                };
                say("relay", level, json!(status));
            }
            for (name, load) in reads.loads() {
                // Those who wait are refused after 2 s: then queries do not work for all who ask.
                let level = match load.longest_wait {
                    wait if wait < PROBE / 4 => Level::Ok,
                    wait if load.taken < load.places || wait < PROBE => Level::Degraded,
                    _ => Level::Unavailable,
                };
                say(name, level, json!({"connections": load.places, "taken": load.taken, "waiting": load.waiting}));
            }
            if let Some(state) = feed {
                let state = state.borrow().clone();
                let level = match &state {
                    FeedState::Listening | FeedState::Waiting { .. } => Level::Ok,
                    FeedState::Diverged { .. } => Level::Degraded,
                };
                say("feed", level, json!(state));
            }
            // A failure is reported as that of the log already.
            if let Ok(Ok(policies)) = tokio::time::timeout(PROBE, commands::policy::statuses(&store)).await {
                for PolicyStatus { name, position, fault } in policies.into_iter().filter(|policy| policy.fault.is_some()) {
                    say(&format!("policy.{name}"), Level::Degraded, json!({"position": position, "fault": fault}));
                }
            }
            match tokio::time::timeout(PROBE, reads.statuses()).await {
                Ok(Ok(models)) => {
                    for ModelStatus { name, position, parked, fault } in models {
                        let behind = head.as_ref().map_or(0, |head| head - position);
                        let level = if behind > LAG || parked > 0 || fault.is_some() { Level::Degraded } else { Level::Ok };
                        let mut detail = json!({"position": position, "behind": behind, "parked": parked});
                        if let Some(fault) = fault {
                            detail["fault"] = json!(fault);
                        }
                        say(&format!("read_model.{name}"), level, detail);
                    }
                }
                Ok(Err(error)) => drop(say("read_models", Level::Unavailable, json!({"error": error.to_string()}))),
                Err(_) => drop(say("read_models", Level::Unavailable, json!({"error": "no answer"}))),
            }
            Health::of(components)
        }
        .boxed()
    })
}
