//! `tenure policies`.

use clap::Subcommand;
use commands::policy::{self, PolicyStatus};

use crate::site::Site;
use crate::terminal;

/// What answers events.
#[derive(Subcommand)]
pub(crate) enum Policies {
    /// Show how far each policy has come.
    List,
    /// Show the commands of policies that were refused, the newest first: what they were to do has not been done.
    Refusals,
}

pub(crate) async fn run(site: &Site, what: Policies) -> anyhow::Result<()> {
    let (store, _writer) = site.store().await?;
    match what {
        Policies::List => {
            let head = store.head().await?.position;
            for PolicyStatus { name, position, fault } in policy::statuses(&store).await? {
                let stopped = fault.map_or(String::new(), |fault| format!("; stopped: {fault}"));
                if !terminal::print(&format!("{name:<14} at position {position}, {} behind{stopped}", head - position))? {
                    break;
                }
            }
        }
        Policies::Refusals => {
            for refusal in policy::refusals(&store, 200).await? {
                let at = refusal.recorded_at.format("%F %T");
                let (policy, position, tenant, command) = (refusal.policy, refusal.position, refusal.tenant_id, refusal.command);
                if !terminal::print(&format!("{at}  {policy} at {position}  {tenant}  {command}: {}", refusal.reason))? {
                    break;
                }
            }
        }
    }
    Ok(())
}
