//! `tenure keys`.

use access::ACCESS_TTL;
use chrono::TimeDelta;
use clap::Subcommand;
use commands::Executor;
use domain::{Clock as _, SystemClock};

use crate::site::Site;
use crate::terminal;

/// The keys that sign access tokens.
#[derive(Subcommand)]
pub(crate) enum Keys {
    /// Show them.
    List,
    /// Make a new one. It is published at once and signs after a while; the old ones are good until the last token that they signed has expired.
    Rotate {
        /// After how long it signs: longer than others keep the published keys.
        #[arg(long, default_value = "10m", value_parser = terminal::duration)]
        lead: TimeDelta,
    },
    /// End one now, with every token that it signed: for a key that somebody has taken.
    Revoke {
        /// Which.
        kid: String,
    },
}

pub(crate) async fn run(site: &Site, what: Keys) -> anyhow::Result<()> {
    let (store, _writer) = site.store().await?;
    let access = site.access(&Executor::new(store))?;
    let keys = access.keys();
    match what {
        Keys::List => {
            let now = SystemClock.now();
            for key in keys.all().await?.iter() {
                let signs = if key.signs_from > now { format!("signs from {}", key.signs_from.format("%F %T")) } else { "signs".into() };
                let until = key.verifies_until.map_or_else(|| signs, |until| format!("verifies until {}", until.format("%F %T")));
                terminal::print(&format!("{}  {until}", key.kid()))?;
            }
        }
        Keys::Rotate { lead } => {
            let kid = keys.rotate(lead).await?;
            println!(
                "{kid}: published now, signs after {} min; older keys verify for {} min more",
                lead.num_minutes(),
                ACCESS_TTL.num_minutes() + 1
            );
        }
        Keys::Revoke { kid } => {
            anyhow::ensure!(keys.revoke(&kid).await?, "there is no such key");
            println!("{kid}: opens nothing any more");
        }
    }
    Ok(())
}
