//! The REST interface of a real process, over real connections.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use access::token::TokenKey;
use anyhow::Context as _;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use chrono::TimeDelta;
use domain::{Clock as _, Role, SystemClock, TenantId};
use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::client::{Answer, Client};
use crate::figures::{Figure, Run};
use crate::load::{closed, open, pause};
use crate::process::Process;
use crate::site::Site;
use crate::{metering, parties};

pub(crate) const LASTS: Duration = Duration::from_secs(4);
pub(crate) const CONNECTIONS: usize = 32;
/// Commands per second while delays are measured.
const STEADY: u32 = 500;

/// Body of a request that opens a ticket.
pub(crate) fn ticket() -> Value {
    json!({"subject": "The invoice shows the wrong amount", "body": "Invoice 2041 says 99.00 USD, our plan is 29.00.", "tags": ["billing"]})
}

/// Opens a ticket.
pub(crate) async fn open_ticket(client: &Client) -> Answer {
    client.post("/v1/tickets", &ticket()).await
}

/// A tenant, and the token of one of its agents.
pub(crate) async fn agent(platform: &Client, key: &TokenKey, slug: &str) -> anyhow::Result<(TenantId, Client)> {
    let made = platform.post("/v1/tenants", &json!({"slug": slug, "name": slug})).await;
    let tenant: TenantId = made.id()?.parse()?;
    let token = key.sign("agent", tenant, Role::SupportAgent, SystemClock.now(), TimeDelta::hours(2))?;
    Ok((tenant, platform.acting(&token)))
}

/// Waits until a list shows a position.
pub(crate) async fn shown(client: &Client, list: &str, position: i64) -> anyhow::Result<()> {
    let caught_up = Instant::now() + Duration::from_secs(60);
    while !client.shows(list, position).await? {
        anyhow::ensure!(Instant::now() < caught_up, "the read model does not catch up");
    }
    Ok(())
}

/// Measures the queries of one tenant beside heavy queries of another.
pub(crate) async fn parties(site: &Site, run: &mut Run) -> anyhow::Result<()> {
    site.database("bench_parties").await?;
    let process = Process::start(site, "bench_parties", &["serve"]).await?;
    parties::measure(run, &process.client, &process.key).await
}

/// All figures of the interface.
pub(crate) async fn measure(site: &Site, run: &mut Run, reference: &Figure) -> anyhow::Result<()> {
    let database = site.database("bench_http").await?;
    let process = Process::start(site, "bench_http", &["serve"]).await?;
    let (platform, key) = (process.client.clone(), &process.key);
    let (tenant, client) = agent(&platform, key, "bench").await?;

    let on = client.clone();
    let (times, took) = closed(CONNECTIONS, LASTS, move |_, _| {
        let client = on.clone();
        async move { drop(open_ticket(&client).await) }
    })
    .await;
    let posts = run.add(Figure::of("http.post_ticket.32", times, took).against(reference));

    let mut ids = Vec::new();
    let mut last = 0;
    for _ in 0..256 {
        let opened = open_ticket(&client).await;
        last = opened.position;
        ids.push(opened.id()?);
    }
    // The read model may have fallen behind what was just written as fast as it can be.
    shown(&client, "/v1/tickets?limit=1", last).await?;
    let ids = Arc::new(ids);
    let (on, of) = (client.clone(), ids.clone());
    let (times, took) = closed(CONNECTIONS, LASTS, move |caller, n| {
        let (client, id) = (on.clone(), of[(caller * 7919 + n) % of.len()].clone());
        async move { drop(client.get(&format!("/v1/tickets/{id}")).await) }
    })
    .await;
    let gets = run.add(Figure::of("http.get_ticket.32", times, took).against(reference));

    let on = client.clone();
    let (times, took) = closed(CONNECTIONS, LASTS, move |_, _| {
        let client = on.clone();
        async move { drop(client.get("/v1/tickets?limit=20").await) }
    })
    .await;
    run.add(Figure::of("http.list_tickets.32", times, took).against(reference));

    let on = client.clone();
    let (times, took) = closed(CONNECTIONS, LASTS, move |_, _| {
        let client = on.clone();
        async move {
            let opened = open_ticket(&client).await;
            let path = format!("/v1/tickets/{}", opened.id().expect("an id"));
            client.get(&format!("{path}?after={}", opened.position)).await;
            let tagged = client.post(&format!("{path}/tag"), &json!({"tag": "seen"})).await;
            let shown = client.get(&format!("{path}?after={}", tagged.position)).await;
            assert_eq!(shown.number("version"), Some(2), "one reads what one has written");
        }
    })
    .await;
    run.add(Figure::of("http.read_your_write.32", times, took).against(reference));

    // Of one tenant, and below a limit that has to be looked at.
    let limit = json!({"meter": "api_calls", "limit": 1_000_000_000_000_i64});
    platform.post(&format!("/v1/tenants/{tenant}/override-limit"), &limit).await;
    let token = key.sign("admin", tenant, Role::OrgAdmin, SystemClock.now(), TimeDelta::hours(1))?;
    metering::quotas(run, &platform.acting(&token), &posts, &gets).await;
    delays(site, run, &client, &ids, &database).await?;
    commits(site, run, &client).await?;
    metering::lists(site, run, &platform, &database).await?;
    run.add(Figure::rate("memory.rss (MB)", process.resident()? / 1e6));
    memory(run, &process).await
}

/// How often PostgreSQL commits while 1 000 tickets a second are opened.
async fn commits(site: &Site, run: &mut Run, client: &Client) -> anyhow::Result<()> {
    let before = site.commits("bench_http").await?;
    let began = Instant::now();
    let opened = open(1000, 2 * LASTS, |_| {
        let client = client.clone();
        async move { drop(open_ticket(&client).await) }
    })
    .await;
    let took = began.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let (commits, opened) = ((site.commits("bench_http").await? - before) as f64 / took, opened.len() as f64 / took);
    run.add(Figure::rate("commits.posts", opened));
    run.add(Figure { ratio: Some(commits / opened), ..Figure::rate("commits.postgresql", commits) });
    Ok(())
}

/// Memory of the process per idle connection.
async fn memory(run: &mut Run, process: &Process) -> anyhow::Result<()> {
    const WAITING: u32 = 4000;
    let before = process.resident()?;
    let mut waiting = Vec::new();
    for _ in 0..WAITING {
        let client = process.client.alone();
        client.get("/livez").await;
        waiting.push(client);
    }
    run.add(Figure::rate("memory.idle_connection (KB)", (process.resident()? - before) / f64::from(WAITING) / 1000.0));
    Ok(())
}

/// How long after a command's answer its row can be seen, and an outside subscriber has its event.
async fn delays(site: &Site, run: &mut Run, client: &Client, ids: &Arc<Vec<String>>, database: &store::Database) -> anyhow::Result<()> {
    let store = site.store(database).await?;
    let bus = site.bus(&store, "benchhttp").await?;
    let stream = bus.existing_stream().await?.context("a stream")?;
    let last = stream.get_info().await?.state.last_sequence;
    let start = OrderedConfig {
        deliver_policy: async_nats::jetstream::consumer::DeliverPolicy::ByStartSequence { start_sequence: last + 1 },
        ..OrderedConfig::default()
    };
    let mut messages = stream.create_consumer(start).await?.messages().await?;
    let arrived: Arc<Mutex<HashMap<i64, Instant>>> = Arc::default();
    let subscriber = tokio::spawn({
        let arrived = arrived.clone();
        async move {
            while let Some(Ok(message)) = messages.next().await {
                let now = Instant::now();
                if let Ok(position) = message.info().map(|info| i64::try_from(info.stream_sequence).unwrap_or(0)) {
                    arrived.lock().expect("no panic while locked").insert(position, now);
                }
            }
        }
    });
    let answers = open(STEADY, 2 * LASTS, |n| {
        let (client, id) = (client.clone(), ids[n % ids.len()].clone());
        async move {
            let commented = client.post(&format!("/v1/tickets/{id}/comments"), &json!({"body": "And now?"})).await;
            let answered = Instant::now();
            client.get(&format!("/v1/tickets/{id}?after={}", commented.position)).await;
            (commented.position, answered, answered.elapsed())
        }
    })
    .await;
    pause(Duration::from_secs(1)).await;
    subscriber.abort();
    let arrived = arrived.lock().expect("no panic while locked");
    let outside: Vec<Duration> =
        answers.iter().filter_map(|(position, answered, _)| Some(arrived.get(position)?.saturating_duration_since(*answered))).collect();
    anyhow::ensure!(outside.len() == answers.len(), "the subscriber missed {}", answers.len() - outside.len());
    run.add(Figure::of("lag.read_model", answers.into_iter().map(|(_, _, visible)| visible).collect(), 2 * LASTS));
    run.add(Figure::of("lag.subscriber", outside, 2 * LASTS));
    Ok(())
}
