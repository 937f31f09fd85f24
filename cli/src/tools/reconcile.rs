//! `tenure log reconcile`: whatever was made from another log than this one is made from this one.

use std::process::ExitCode;

use anyhow::Context as _;
use bus::stream::{Fault, common, inspect};
use bus::{Bus, mirror};
use clap::Args;
use commands::policy;
use domain::{Clock as _, SystemClock};
use outbound::queue;
use projections::Tools;
use projections::rebuild::Purpose;
use sqlx::PgPool;
use store::{DbRole, Hash, Head, Store};

use crate::site::Site;
use crate::terminal::{advance, print, progress};

/// How to go about it.
#[derive(Args)]
pub(crate) struct Reconcile {
    /// Change nothing: say what disagrees with the log. Exit code 1 when something does.
    #[arg(long)]
    dry_run: bool,
    /// Let policies that disagree answer again from this position on, instead of from where the stream and the log agree: needed where the stream was rebuilt already.
    #[arg(long)]
    policies_from: Option<i64>,
}

/// Parts of the installation that disagree with the log.
struct Found {
    models: Vec<(String, String)>,
    policies: Vec<(String, String)>,
    stream: Vec<Fault>,
    agreed: Option<Head>,
}

impl Found {
    /// The position up to which the histories of the stream and the log are one, where the stream still is that of the other history and has all of it.
    fn parted(&self) -> Option<Head> {
        let other = self.stream.iter().any(|fault| matches!(fault, Fault::Beyond { .. } | Fault::Differs { .. }));
        let whole = !self.stream.iter().any(|fault| matches!(fault, Fault::Beginning { .. }));
        self.agreed.filter(|agreed| other && whole && agreed.position > 0)
    }

    fn is_empty(&self) -> bool {
        self.models.is_empty() && self.policies.is_empty() && self.stream.is_empty()
    }
}

pub(crate) async fn run(site: &Site, wanted: Reconcile) -> anyhow::Result<ExitCode> {
    let (store, _writer) = site.store().await?;
    let bus = site.relay_bus(&store).await?;
    bus.connected().await.context("the bus does not answer; the position up to which stream and log agree is read from it")?;
    let pool = site.database()?.pool(DbRole::Projector, 4);
    let found = look(&store, &bus, &pool).await?;
    tell(&found)?;
    if wanted.dry_run {
        return Ok(if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    // Policies first: where they go on is known by the old stream only.
    if !found.policies.is_empty() {
        let agreed = match wanted.policies_from {
            Some(position) => {
                let hash = store.hash_at(position).await?.with_context(|| format!("the log does not reach position {position}"))?;
                Head { position, log_hash: hash }
            }
            None => found
                .parted()
                .context("the stream does not show up to where policies have answered this log: name the position with --policies-from")?,
        };
        for (name, position) in policy::reconcile(&store, agreed).await? {
            print(&format!("policy {name}: goes on after position {} instead of {position}", agreed.position))?;
        }
    }
    projections::parking::forget_discards(&store, &pool).await?;
    for (name, _) in &found.models {
        let tools =
            Tools::all().into_iter().find(|tools| tools.name == name).with_context(|| format!("this binary has no read model {name}"))?;
        let bar = progress(tools.name, store.head().await?.position);
        let rebuilt = (tools.rebuild)(&store, &pool, Purpose::Replace, None, &|position, _| advance(&bar, position)).await;
        bar.finish_and_clear();
        print(&format!("read model {name}: rebuilt from the log up to position {}", rebuilt?.position))?;
    }
    let dropped = queue::drop_orphans(store.pool(), SystemClock.now()).await?;
    if dropped > 0 {
        print(&format!("{dropped} deliveries dropped, whose events are not in the log"))?;
    }
    if found.stream.iter().any(|fault| !matches!(fault, Fault::Payload { .. } | Fault::Configuration(_))) {
        let position = mirror::rebuild(&store, &bus).await?;
        print(&format!("stream: published again up to position {position}; outside durable consumers start over"))?;
    }
    let left = look(&store, &bus, &pool).await?;
    if left.is_empty() {
        print("everything agrees with the log")?;
        return Ok(ExitCode::SUCCESS);
    }
    tell(&left)?;
    Ok(ExitCode::FAILURE)
}

async fn look(store: &Store, bus: &Bus, pool: &PgPool) -> anyhow::Result<Found> {
    let disagreeing = async |checkpoints: Vec<(String, i64, [u8; 32])>| {
        let mut found = Vec::new();
        for (name, position, log_hash) in checkpoints {
            if let Err(disagreement) = store.confirm(Head { position, log_hash: Hash(log_hash) }).await? {
                found.push((name, disagreement.to_string()));
            }
        }
        anyhow::Ok(found)
    };
    let models = sqlx::query_as("select name, position, log_hash from read.generations where state = 'serving' order by name");
    let policies = sqlx::query_as("select name, position, log_hash from ops.policies order by name");
    let (models, policies) =
        (disagreeing(models.fetch_all(pool).await?).await?, disagreeing(policies.fetch_all(store.pool()).await?).await?);
    let (mut stream, mut agreed) = (Vec::new(), None);
    if let Some(existing) = bus.existing_stream().await? {
        stream = inspect(store, bus, &existing).await?.faults;
        agreed = Some(common(store, &existing).await?);
    }
    Ok(Found { models, policies, stream, agreed })
}

fn tell(found: &Found) -> anyhow::Result<()> {
    for (name, disagreement) in &found.models {
        print(&format!("read model {name}: {disagreement}"))?;
    }
    for (name, disagreement) in &found.policies {
        print(&format!("policy {name}: {disagreement}"))?;
    }
    for fault in &found.stream {
        print(&format!("stream: {fault}"))?;
    }
    if let (Some(agreed), false) = (found.agreed, found.stream.is_empty()) {
        print(&format!("the stream and the log agree up to position {}", agreed.position))?;
    }
    Ok(())
}
