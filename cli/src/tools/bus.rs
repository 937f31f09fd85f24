//! `tenure bus`.

use crate::site::Site;

/// `tenure bus rebuild`.
pub(crate) async fn rebuild(site: &Site) -> anyhow::Result<()> {
    let (store, _) = site.store().await?;
    let bus = site.bus(&store).await?;
    eprintln!(
        "The stream {} is deleted and published again. Outside durable consumers are deleted with it and start over.",
        bus.stream_name()
    );
    let position = bus::mirror::rebuild(&store, &bus).await?;
    println!("{position} events published");
    Ok(())
}
