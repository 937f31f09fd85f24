//! The REST interface of a real process, over real connections.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use access::token::TokenKey;
use anyhow::Context as _;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use chrono::TimeDelta;
use domain::{Clock as _, Role, SystemClock, TenantId};
use futures::StreamExt as _;
use reqwest::Method;
use serde_json::{Value, json};

use crate::figures::{Figure, Run};
use crate::load::{closed, open, pause};

use crate::site::Site;
use crate::{metering, parties};

pub(crate) const LASTS: Duration = Duration::from_secs(4);
pub(crate) const CONNECTIONS: usize = 32;
/// Commands per second while delays are measured.
const STEADY: u32 = 500;

/// A client of the process.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    token: String,
}

/// What an answer says of itself.
pub(crate) struct Answer {
    pub(crate) position: i64,
    body: Value,
}

impl Answer {
    /// Of what was made.
    pub(crate) fn id(&self) -> anyhow::Result<&str> {
        self.body["id"].as_str().context("an id")
    }
}

impl Client {
    async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let mut request = self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.expect("an answer");
        let (status, position) = (response.status(), response.headers().get("tenure-position").cloned());
        let text = response.bytes().await.expect("a body");
        assert!(status.is_success(), "{path}: {status} {}", String::from_utf8_lossy(&text));
        Answer {
            position: position.and_then(|position| position.to_str().ok()?.parse().ok()).unwrap_or(0),
            body: serde_json::from_slice(&text).unwrap_or_default(),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, Some(body)).await
    }

    /// A client with another token.
    pub(crate) fn acting(&self, token: String) -> Self {
        Self { token, ..self.clone() }
    }

    /// Reads the whole answer, whatever it is.
    pub(crate) async fn try_get(&self, path: &str) {
        if let Ok(answer) = self.http.get(format!("{}{path}", self.base)).bearer_auth(&self.token).send().await {
            let _ = answer.bytes().await;
        }
    }

    /// Whether a list reflects a position by now.
    pub(crate) async fn shows(&self, list: &str, position: i64) -> anyhow::Result<bool> {
        let answer = self.http.get(format!("{}{list}&after={position}", self.base)).bearer_auth(&self.token).send().await?;
        Ok(answer.status().is_success())
    }

    async fn open_ticket(&self) -> Answer {
        let body = json!({"subject": "The invoice shows the wrong amount", "body": "Invoice 2041 says 99.00 USD, our plan is 29.00.", "tags": ["billing"]});
        self.post("/v1/tickets", body).await
    }
}

/// The process, killed at the end.
struct Process(tokio::process::Child);

impl Process {
    /// Its resident memory in bytes.
    fn resident(&self) -> Option<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()?)).ok()?;
        let kilobytes: f64 =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().trim_end_matches(" kB").trim().parse().ok()?;
        Some(kilobytes * 1024.0)
    }
}

/// The process with all its roles, and a client.
async fn start(site: &Site, database: &str, key: &TokenKey, pem: &str) -> anyhow::Result<(Process, Client)> {
    let program = std::env::current_exe()?.with_file_name("tenure");
    anyhow::ensure!(program.exists(), "{} has to be built", program.display());
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let address = format!("127.0.0.1:{port}");
    let child = tokio::process::Command::new(program)
        .args(["serve", "--http", &address])
        .env("DATABASE_URL", site.url(database, false))
        .env("NATS_URL", site.remembered.nats_url())
        .env("TENURE_BUS_PREFIX", database.replace('_', ""))
        .env("TENURE_STORE_MASTER_KEY", &site.master_key)
        .env("TENURE_API_TOKEN_KEY", pem)
        .env("TENURE_BILLING_WITHOUT_PLAN", "unlimited")
        .env("TENURE_LOG", "warn")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let http = reqwest::Client::builder().pool_max_idle_per_host(256).build()?;
    let token = key.sign("bench", TenantId::SYSTEM, Role::SuperAdmin, SystemClock.now(), TimeDelta::hours(1))?;
    let client = Client { http, base: format!("http://{address}"), token };
    let deadline = Instant::now() + Duration::from_secs(20);
    while client.http.get(format!("{}/readyz", client.base)).send().await.map_or(true, |answer| !answer.status().is_success()) {
        anyhow::ensure!(Instant::now() < deadline, "the process does not come up");
        pause(Duration::from_millis(50)).await;
    }
    Ok((Process(child), client))
}

/// Measures the queries of one tenant beside heavy queries of another.
pub(crate) async fn parties(site: &Site, run: &mut Run) -> anyhow::Result<()> {
    site.database("bench_parties").await?;
    let pem = TokenKey::generate();
    let key = TokenKey::from_pem(&pem)?;
    let (_process, platform) = start(site, "bench_parties", &key, &pem).await?;
    parties::measure(run, &platform, &key).await
}

/// All figures of the interface.
pub(crate) async fn measure(site: &Site, run: &mut Run, reference: &Figure) -> anyhow::Result<()> {
    let database = site.database("bench_http").await?;
    let pem = TokenKey::generate();
    let key = TokenKey::from_pem(&pem)?;
    let (process, platform) = start(site, "bench_http", &key, &pem).await?;
    let made = platform.post("/v1/tenants", json!({"slug": "bench", "name": "Bench"})).await;
    let tenant: TenantId = made.body["id"].as_str().context("an id")?.parse()?;
    let token = key.sign("agent", tenant, Role::SupportAgent, SystemClock.now(), TimeDelta::hours(1))?;
    let client = Client { token, ..platform.clone() };

    let on = client.clone();
    let (times, took) = closed(CONNECTIONS, LASTS, move |_, _| {
        let client = on.clone();
        async move { drop(client.open_ticket().await) }
    })
    .await;
    let posts = run.add(Figure::of("http.post_ticket.32", times, took).against(reference));

    let mut ids = Vec::new();
    let mut last = 0;
    for _ in 0..256 {
        let opened = client.open_ticket().await;
        last = opened.position;
        ids.push(opened.body["id"].as_str().context("an id")?.to_owned());
    }
    // The read model may have fallen behind what was just written as fast as it can be.
    let caught_up = Instant::now() + Duration::from_secs(60);
    while !client.shows("/v1/tickets?limit=1", last).await? {
        anyhow::ensure!(Instant::now() < caught_up, "the read model does not catch up");
    }
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
            let opened = client.open_ticket().await;
            let path = format!("/v1/tickets/{}", opened.body["id"].as_str().unwrap_or_default());
            client.get(&format!("{path}?after={}", opened.position)).await;
            let tagged = client.post(&format!("{path}/tag"), json!({"tag": "seen"})).await;
            let shown = client.get(&format!("{path}?after={}", tagged.position)).await;
            assert_eq!(shown.body["version"], 2, "one reads what one has written");
        }
    })
    .await;
    run.add(Figure::of("http.read_your_write.32", times, took).against(reference));

    // Of one tenant, and below a limit that has to be looked at.
    let limit = json!({"meter": "api_calls", "limit": 1_000_000_000_000_i64});
    platform.post(&format!("/v1/tenants/{tenant}/override-limit"), limit).await;
    let token = key.sign("admin", tenant, Role::OrgAdmin, SystemClock.now(), TimeDelta::hours(1))?;
    metering::quotas(run, &Client { token, ..platform.clone() }, &posts, &gets).await;
    delays(site, run, &client, &ids, &database).await?;
    metering::lists(site, run, &platform, &database).await?;
    let resident = process.resident().context("the process runs")?;
    run.add(Figure::rate("memory.rss (MB)", resident / 1e6));
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
            let commented = client.post(&format!("/v1/tickets/{id}/comments"), json!({"body": "And now?"})).await;
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
