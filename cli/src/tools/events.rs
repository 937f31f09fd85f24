//! `tenure events`.

use comfy_table::{Table, presets};
use store::read::Filter;

use crate::EventList;
use crate::site::Site;
use crate::terminal::print;

/// Events read at a time.
const PAGE: i64 = 500;

/// `tenure events list`.
pub(crate) async fn list(site: &Site, wanted: &EventList) -> anyhow::Result<()> {
    let (store, _) = site.store().await?;
    let filter = Filter { tenant: wanted.tenant.map(|t| t.0), kind: wanted.kind.clone() };
    let mut left = wanted.limit.unwrap_or(if wanted.json { i64::MAX } else { 1000 });
    let mut after = wanted.after;
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["POSITION", "RECORDED", "TENANT", "TYPE", "VERSION", "STREAM"]);
    while left > 0 {
        let events = store.list(after, PAGE.min(left), &filter).await?;
        let Some(last) = events.last() else { break };
        (after, left) = (last.position, left - i64::try_from(events.len())?);
        for event in &events {
            if wanted.json {
                if !print(&serde_json::to_string(event)?)? {
                    return Ok(());
                }
            } else {
                table.add_row([
                    event.position.to_string(),
                    event.recorded_at.format("%Y-%m-%d %H:%M:%S").to_string(),
                    event.tenant_id.to_string(),
                    event.event_type.clone(),
                    event.sequence.to_string(),
                    event.aggregate_id.split_once('/').map_or(event.aggregate_id.clone(), |(_, id)| id.to_owned()),
                ]);
            }
        }
    }
    if !wanted.json {
        print(&table.to_string())?;
    }
    Ok(())
}
