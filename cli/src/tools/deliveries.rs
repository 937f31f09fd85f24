//! `tenure deliveries`.

use clap::Subcommand;
use commands::Executor;
use domain::{Clock as _, SystemClock, TenantId};
use outbound::queue::{self, State};
use uuid::Uuid;

use crate::site::Site;
use crate::terminal;

/// Mails that were queued.
#[derive(Subcommand)]
pub(crate) enum Deliveries {
    /// Show a tenant's, the newest first.
    List {
        /// The tenant, by id or slug; `system` is the platform.
        #[arg(long)]
        tenant: String,
        /// Dead letters only.
        #[arg(long)]
        dead: bool,
    },
    /// Attempt dead letters again: one, or all.
    Retry {
        /// Which; all, if nothing is said.
        delivery: Option<Uuid>,
        /// The tenant, by id or slug; all tenants, if nothing is said.
        #[arg(long)]
        tenant: Option<String>,
    },
}

pub(crate) async fn run(site: &Site, what: Deliveries) -> anyhow::Result<()> {
    let (store, _writer) = site.store().await?;
    let access = site.access(&Executor::new(store.clone()))?;
    let find = async |text: String| -> anyhow::Result<TenantId> {
        access.tenant(&text).await?.ok_or_else(|| anyhow::anyhow!("there is no tenant {text}"))
    };
    match what {
        Deliveries::List { tenant, dead } => {
            let tenant = find(tenant).await?;
            for row in queue::list(store.pool(), tenant, dead.then_some(State::Dead), None, 200).await? {
                let reason = row.reason.unwrap_or_default();
                let line = format!(
                    "{}  {}  {:<12}  {:<9}  {} attempts  {reason}",
                    row.created_at.format("%F %T"),
                    row.id,
                    row.template,
                    row.state,
                    row.attempts
                );
                if !terminal::print(line.trim_end())? {
                    break;
                }
            }
        }
        Deliveries::Retry { delivery, tenant } => {
            let tenant = match tenant {
                Some(text) => Some(find(text).await?),
                None => None,
            };
            println!("{} to be attempted again", queue::retry(store.pool(), tenant, delivery, SystemClock.now()).await?);
        }
    }
    Ok(())
}
