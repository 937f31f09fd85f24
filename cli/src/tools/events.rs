//! `tenure events`.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use bus::feed::Feed;
use bus::subscription::{Handler, HandlerError, run as follow};
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use domain::{Aggregate, StreamId, TenantId};
use serde_json::{Value, json};
use store::read::Filter;
use store::{Head, RawEvent, Store};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::site::Site;
use crate::terminal::{cancelled_by_signals, print};

/// Events read at a time.
const PAGE: i64 = 500;

/// Ways to look at the log.
#[derive(Subcommand)]
pub(crate) enum Events {
    /// List events in position order.
    List {
        #[command(flatten)]
        which: Which,
        /// Only after this position.
        #[arg(long, default_value_t = 0)]
        after: i64,
        /// At most so many [default: 1000; all with --json].
        #[arg(long)]
        limit: Option<i64>,
    },
    /// Follow the log live, until Ctrl-C. Goes on by itself when the database or the bus was away.
    Tail {
        #[command(flatten)]
        which: Which,
        /// Begin after this position [default: the log's end now].
        #[arg(long)]
        after: Option<i64>,
    },
    /// Print the events of one aggregate, and its state after them.
    Show {
        /// Its type, such as `ticket`.
        aggregate: String,
        /// `<tenant>/<id>`.
        stream: StreamId,
        /// As it was at this version.
        #[arg(long, conflicts_with = "at_time")]
        at_version: Option<i64>,
        /// As it was at this time.
        #[arg(long)]
        at_time: Option<DateTime<Utc>>,
        /// Show personal data in clear.
        #[arg(long)]
        reveal: bool,
        /// One JSON object per line: the events, then the state.
        #[arg(long)]
        json: bool,
    },
}

/// Which events; all that is given must hold.
#[derive(Args)]
pub(crate) struct Which {
    /// Of this tenant.
    #[arg(long, value_parser = access::token::tenant::parse)]
    tenant: Option<TenantId>,
    /// Of an aggregate type (`tenant`) or an event type (`tenant.renamed`).
    #[arg(long = "type")]
    kind: Option<String>,
    /// Of the aggregate with this id.
    #[arg(long)]
    id: Option<Uuid>,
    /// Caused by this actor: a token's subject, or the name of a part of Tenure.
    #[arg(long)]
    actor: Option<String>,
    /// With this correlation id.
    #[arg(long)]
    correlation: Option<Uuid>,
    /// Up to this position.
    #[arg(long)]
    to: Option<i64>,
    /// Recorded at or after this time (RFC 3339).
    #[arg(long)]
    since: Option<DateTime<Utc>>,
    /// Recorded before this time.
    #[arg(long)]
    until: Option<DateTime<Utc>>,
    /// One JSON object per line, with the column names of the events table.
    #[arg(long)]
    json: bool,
}

impl Which {
    fn filter(&self) -> Filter {
        Filter {
            tenant: self.tenant.map(|tenant| tenant.0),
            kind: self.kind.clone(),
            id: self.id,
            actor: self.actor.clone(),
            correlation: self.correlation,
            to: self.to,
            since: self.since,
            until: self.until,
        }
    }
}

/// Does it.
pub(crate) async fn run(site: &Site, what: Events) -> anyhow::Result<ExitCode> {
    let (store, _) = site.store().await?;
    match what {
        Events::List { which, after, limit } => list(&store, &which, after, limit).await?,
        Events::Tail { which, after } => tail(site, &store, which, after).await?,
        Events::Show { aggregate, stream, at_version, at_time, reveal, json } => {
            let until = |event: &RawEvent| {
                at_version.is_none_or(|version| event.sequence <= version) && at_time.is_none_or(|time| event.recorded_at <= time)
            };
            let mut events = store.stream(&aggregate, &stream.to_string()).await?;
            anyhow::ensure!(!events.is_empty(), "there is no {aggregate} {stream}");
            events.retain(until);
            let state = state(&store, &aggregate, &events).await?;
            show(&events, &if reveal { state } else { veiled(state) }, json)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

const HEADER: [&str; 6] = ["POSITION", "RECORDED", "TENANT", "TYPE", "VERSION", "STREAM"];

fn cells(event: &RawEvent) -> [String; 6] {
    [
        event.position.to_string(),
        event.recorded_at.format("%Y-%m-%d %H:%M:%S").to_string(),
        event.tenant_id.to_string(),
        event.event_type.clone(),
        event.sequence.to_string(),
        event.aggregate_id.split_once('/').map_or(event.aggregate_id.clone(), |(_, id)| id.to_owned()),
    ]
}

async fn list(store: &Store, which: &Which, mut after: i64, limit: Option<i64>) -> anyhow::Result<()> {
    let filter = which.filter();
    let mut left = limit.unwrap_or(if which.json { i64::MAX } else { 1000 });
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(HEADER);
    while left > 0 {
        let events = store.list(after, PAGE.min(left), &filter).await?;
        let Some(last) = events.last() else { break };
        (after, left) = (last.position, left - i64::try_from(events.len())?);
        for event in &events {
            if !which.json {
                table.add_row(cells(event));
            } else if !print(&serde_json::to_string(event)?)? {
                return Ok(());
            }
        }
    }
    if !which.json {
        print(&table.to_string())?;
    }
    Ok(())
}

/// Prints what comes.
struct Tail {
    store: Store,
    filter: Filter,
    json: bool,
    checkpoint: Option<Head>,
    after: Option<i64>,
    /// The output is closed, or all that was asked for has been printed.
    done: CancellationToken,
    /// The log no longer has what was printed.
    diverged: Arc<AtomicBool>,
}

impl Handler for Tail {
    fn name(&self) -> &'static str {
        "tail"
    }

    async fn begin(&mut self) -> Result<Option<Head>, HandlerError> {
        let retry = |error: sqlx::Error| HandlerError::Retry(error.to_string());
        if self.checkpoint.is_none() {
            let head = self.store.head().await.map_err(retry)?;
            self.checkpoint = Some(match self.after {
                None => head,
                Some(position) => Head { position, log_hash: self.store.hash_at(position).await.map_err(retry)?.unwrap_or_default() },
            });
        }
        Ok(self.checkpoint)
    }

    async fn note(&mut self, fault: Option<&str>) -> Result<(), HandlerError> {
        if fault.is_some() {
            // The log tells the fault to standard error.
            self.diverged.store(true, Ordering::SeqCst);
            self.done.cancel();
        }
        Ok(())
    }

    async fn handle(&mut self, events: &[Arc<RawEvent>]) -> Result<(), HandlerError> {
        for event in events {
            if self.filter.passes(event) {
                let line = if self.json {
                    serde_json::to_string(event.as_ref()).unwrap_or_default()
                } else {
                    let [position, recorded, tenant, kind, version, stream] = cells(event);
                    format!("{position:>9}  {recorded}  {tenant}  {kind:<30}  {version:>7}  {stream}")
                };
                if !print(&line).unwrap_or(false) {
                    self.done.cancel();
                }
            }
            if self.filter.to.is_some_and(|to| event.position >= to) {
                self.done.cancel();
            }
            self.checkpoint = Some(Head { position: event.position, log_hash: event.log_hash });
        }
        Ok(())
    }

    async fn release(&mut self) {}
}

async fn tail(site: &Site, store: &Store, which: Which, after: Option<i64>) -> anyhow::Result<()> {
    let done = cancelled_by_signals()?;
    // Without a bus the log itself is looked at once a second.
    let feed = match site.bus(store).await {
        Ok(bus) => Feed::start(store.clone(), bus, done.clone()),
        Err(_) => Feed::silent(),
    };
    if let Some(after) = after {
        let head = store.head().await?.position;
        anyhow::ensure!((0..=head).contains(&after), "--after must be a position of the log, 0 to {head}");
    }
    let diverged = Arc::new(AtomicBool::new(false));
    let (filter, json) = (which.filter(), which.json);
    let tail = Tail { store: store.clone(), filter, json, checkpoint: None, after, done: done.clone(), diverged: diverged.clone() };
    follow(tail, store.clone(), feed, done).await;
    anyhow::ensure!(!diverged.load(Ordering::SeqCst), "the log was restored to an earlier state, and no longer has what was printed");
    Ok(())
}

/// The fold of the events, as JSON.
async fn state(store: &Store, aggregate: &str, events: &[RawEvent]) -> anyhow::Result<Value> {
    macro_rules! all {
        ($($kind:ty,)*) => {
            match aggregate {
                $(<$kind as cqrs_es::Aggregate>::TYPE => fold::<$kind>(store, events).await,)*
                _ => anyhow::bail!("there is no aggregate {aggregate}; there are {}", [$(<$kind as cqrs_es::Aggregate>::TYPE),*].join(", ")),
            }
        };
    }
    domain::for_each_aggregate!(all)
}

async fn fold<A: Aggregate>(store: &Store, events: &[RawEvent]) -> anyhow::Result<Value> {
    let mut state = A::default();
    for recorded in store.typed::<A>(&events.iter().collect::<Vec<_>>()).await? {
        state.apply(recorded.event);
    }
    serde_json::to_value(state).context("the state has no JSON form")
}

/// The state without the values of personal data.
fn veiled(state: Value) -> Value {
    match state {
        Value::Object(map) => Value::Object(
            map.into_iter()
                .map(|(name, value)| {
                    let value = if name == domain::personal::PERSONAL { json!({"subject": value["subject"]}) } else { veiled(value) };
                    (name, value)
                })
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(veiled).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => state,
    }
}

fn show(events: &[RawEvent], state: &Value, json: bool) -> anyhow::Result<()> {
    let version = events.last().map_or(0, |event| event.sequence);
    if json {
        for event in events {
            print(&serde_json::to_string(event)?)?;
        }
        print(&json!({"version": version, "state": state}).to_string())?;
        return Ok(());
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["VERSION", "POSITION", "RECORDED", "TYPE", "PAYLOAD"]);
    for event in events {
        let [position, recorded, _, kind, version, _] = cells(event);
        let payload: String = event.payload.chars().take(100).collect();
        table.add_row([version, position, recorded, kind, if payload.len() < event.payload.len() { payload + "…" } else { payload }]);
    }
    print(&table.to_string())?;
    print(&format!("\nstate at version {version}:\n{}", serde_json::to_string_pretty(&state)?))?;
    Ok(())
}
