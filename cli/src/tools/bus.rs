//! `tenure bus`.

use anyhow::Context as _;
use bus::permissions::{SUBSCRIBER, accounts};

use crate::site::{Site, prefix};

/// `tenure bus rebuild`.
pub(crate) async fn rebuild(site: &Site) -> anyhow::Result<()> {
    let (store, _) = site.store().await?;
    let bus = site.relay_bus(&store).await?;
    eprintln!(
        "The stream {} is deleted and published again. Outside durable consumers are deleted with it and start over.",
        bus.stream_name()
    );
    let position = bus::mirror::rebuild(&store, &bus).await?;
    println!("{position} events published");
    Ok(())
}

/// `tenure bus permissions`.
pub(crate) fn permissions() {
    println!("accounts {:#}", accounts(&prefix(), |user| format!("<password of {user}>")));
}

/// `tenure bus url`.
pub(crate) fn url(dir: &std::path::Path) -> anyhow::Result<()> {
    let remembered =
        servers::remembered(dir)?.context("the data directory has no private server; a server of your own has its own users")?;
    println!("{}", remembered.nats_url_as(SUBSCRIBER).context("the private server has no such user yet: start it once with this version")?);
    Ok(())
}
