//! `tenure replay`.

use std::num::NonZeroU32;
use std::process::ExitCode;

use bus::replay::{Replay, replay};
use clap::Args;
use domain::TenantId;
use serde_json::json;
use store::read::Filter;

use crate::site::Site;
use crate::terminal::{advance, print, progress};

/// What to publish where.
#[derive(Args)]
pub(crate) struct Wanted {
    /// From this position on.
    #[arg(long)]
    from_position: i64,
    /// Up to this position.
    #[arg(long)]
    to_position: i64,
    /// What the subjects begin with: `<prefix>.events.<tenant>.<aggregate>.<event>`.
    #[arg(long)]
    subject_prefix: String,
    /// Only this tenant's events.
    #[arg(long, value_parser = access::token::tenant::parse)]
    tenant: Option<TenantId>,
    /// Only events of this type: an aggregate's (`ticket`) or an event's (`ticket.opened`).
    #[arg(long = "type")]
    kind: Option<String>,
    /// So many messages per second at most.
    #[arg(long)]
    rate: Option<NonZeroU32>,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

/// Publishes a part of the log once more, without touching the main stream.
pub(crate) async fn run(site: &Site, wanted: Wanted) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(
        (1..=wanted.to_position).contains(&wanted.from_position),
        "positions begin at 1, and the last may not lie before the first"
    );
    let (store, _) = site.store().await?;
    let head = store.head().await?.position;
    anyhow::ensure!(wanted.to_position <= head, "the log ends at {head}");
    let bus = site.relay_bus(&store).await?;
    let filter =
        Filter { tenant: wanted.tenant.map(|tenant| tenant.0), kind: wanted.kind, to: Some(wanted.to_position), ..Filter::default() };
    let bar = progress("replaying", wanted.to_position);
    let replaying = Replay { from: wanted.from_position, filter, prefix: wanted.subject_prefix.clone(), rate: wanted.rate };
    let published = replay(&store, &bus, &replaying, &|position| advance(&bar, position)).await;
    bar.finish_and_clear();
    let published = published?;
    print(&if wanted.json {
        json!({"published": published, "from": wanted.from_position, "to": wanted.to_position, "prefix": wanted.subject_prefix}).to_string()
    } else {
        format!("{published} events published under {}.events", wanted.subject_prefix)
    })?;
    Ok(ExitCode::SUCCESS)
}
