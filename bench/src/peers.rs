//! The same three endpoints as a careful team would write them with Fastify and pg (`bench/peers/fastify`), measured in turn with ours.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use domain::{Clock as _, SystemClock};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::client::Client;
use crate::figures::{Figure, Run};
use crate::http::{CONNECTIONS, agent, open_ticket, shown};
use crate::load::closed;
use crate::process::{Process, free_address};
use crate::site::Site;

/// How often each is measured, in turn.
const TURNS: usize = 3;
const LASTS: Duration = Duration::from_secs(3);
const TICKETS: usize = 256;

/// The peer on a PostgreSQL of its own.
struct Peer {
    client: Client,
    _child: Child,
    _site: Site,
}

/// A token as the peer verifies it: JSON Web Token with HMAC-SHA-256.
fn token(secret: &str) -> anyhow::Result<String> {
    let claims = serde_json::json!({
        "sub": "01900000-0000-7000-8000-000000000002", "tenant": "01900000-0000-7000-8000-000000000001", "exp": SystemClock.now().timestamp() + 7200,
    });
    let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
    Ok(jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key)?)
}

impl Peer {
    async fn start() -> anyhow::Result<Self> {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/fastify");
        let installed = Command::new("npm")
            .args(["install", "--no-package-lock", "--no-audit", "--no-fund", "--silent"])
            .current_dir(&dir)
            .status()
            .await
            .context("npm, which comes with Node.js")?;
        anyhow::ensure!(installed.success(), "npm install: {installed}");
        let site = Site::start().await?;
        let (address, secret) = (free_address()?, "the bench's own");
        let port = address.rsplit(':').next().unwrap_or_default();
        let mut child = Command::new("node")
            .arg("server.js")
            .current_dir(&dir)
            .env("DATABASE_URL", site.remembered.owner_url())
            .env("PORT", port)
            .env("SECRET", secret)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut said = BufReader::new(child.stdout.take().context("its output")?).lines();
        while said.next_line().await?.context("it has ended")? != "listening" {}
        Ok(Self { client: Client::new(&address, &token(secret)?), _child: child, _site: site })
    }
}

/// One endpoint of one server.
async fn once(client: &Client, what: &str, ids: &Arc<Vec<String>>) -> (Vec<Duration>, Duration) {
    let (client, ids, what) = (client.clone(), ids.clone(), what.to_owned());
    closed(CONNECTIONS, LASTS, move |caller, n| {
        let (client, id, what) = (client.clone(), ids[(caller * 7919 + n) % ids.len()].clone(), what.clone());
        async move {
            match what.as_str() {
                "post_ticket" => drop(open_ticket(&client).await),
                "get_ticket" => drop(client.get(&format!("/v1/tickets/{id}")).await),
                _ => drop(client.get("/v1/tickets?limit=20").await),
            }
        }
    })
    .await
}

async fn tickets(client: &Client) -> anyhow::Result<(Arc<Vec<String>>, i64)> {
    let (mut ids, mut last) = (Vec::new(), 0);
    for _ in 0..TICKETS {
        let opened = open_ticket(client).await;
        last = opened.position;
        ids.push(opened.id()?);
    }
    Ok((Arc::new(ids), last))
}

pub(crate) async fn measure(site: &Site, run: &mut Run) -> anyhow::Result<()> {
    site.database("bench_peers").await?;
    let process = Process::start(site, "bench_peers", &["serve"]).await?;
    let (_, ours) = agent(&process.client, &process.key, "bench").await?;
    let peer = Peer::start().await?;
    let (our_ids, last) = tickets(&ours).await?;
    let (their_ids, _) = tickets(&peer.client).await?;
    shown(&ours, "/v1/tickets?limit=1", last).await?;
    for what in ["get_ticket", "list_tickets", "post_ticket"] {
        let [mut our, mut their] = [const { (Vec::new(), Duration::ZERO) }; 2];
        for _ in 0..TURNS {
            for (client, ids, sum) in [(&peer.client, &their_ids, &mut their), (&ours, &our_ids, &mut our)] {
                let (times, took) = once(client, what, ids).await;
                sum.0.extend(times);
                sum.1 += took;
            }
        }
        let theirs = run.add(Figure::of(&format!("fastify.{what}.32"), their.0, their.1));
        run.add(Figure::of(&format!("peers.{what}.32"), our.0, our.1).against(&theirs));
    }
    Ok(())
}
