//! Whenever more of something is used, or its limits are set, it is looked whether somebody should know.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bus::subscription::HandlerError;
use domain::TenantId;
use domain::billing::meter::Meter;
use domain::billing::period::Month;
use domain::billing::quota::{self, AssessQuota, Quota};
use serde::Deserialize;
use store::{RawEvent, Store};

use crate::lookup;
use crate::policy::{Answer, Reaction, retry, unreadable};

/// The policy.
pub struct Quotas;

/// What an event of usage says of where it counts.
#[derive(Deserialize)]
struct Counted {
    meter: Meter,
    period: Month,
}

/// Which meters an event is about, and in which month if it says so.
fn touched(event: &RawEvent) -> Result<Vec<(Meter, Option<Month>)>, serde_json::Error> {
    match event.event_type.as_str() {
        "usage.recorded" | "usage.reserved" | "usage.committed" => {
            let Counted { meter, period } = serde_json::from_str(&event.payload)?;
            Ok(vec![(meter, meter.is_flow().then_some(period))])
        }
        "subscription.started"
        | "subscription.plan_changed"
        | "subscription.quantity_changed"
        | "tenant.limit_overridden"
        | "tenant.limit_override_cleared" => Ok(Meter::ALL.map(|meter| (meter, None)).to_vec()),
        name => Ok(domain::metered(name).map(|meter| (meter, None)).into_iter().collect()),
    }
}

impl Reaction for Quotas {
    const NAME: &'static str = "quotas";
    const TYPES: &'static [&'static str] = domain::TYPES;
    const STEPS: usize = Meter::ALL.len();

    /// What is counted is read when it is looked at, so that the last of many events speaks for all of them.
    fn worth(events: Vec<Arc<RawEvent>>) -> Vec<Arc<RawEvent>> {
        let mut last: BTreeMap<(Meter, Option<Month>), i64> = BTreeMap::new();
        let mut worth = BTreeSet::new();
        for event in &events {
            match touched(event) {
                Ok(touched) => last.extend(touched.into_iter().map(|key| (key, event.position))),
                // What cannot be read is not left out: the policy waits before it, for a newer binary or for somebody who mends it.
                Err(_) => drop(worth.insert(event.position)),
            }
        }
        worth.extend(last.into_values());
        events.into_iter().filter(|event| worth.contains(&event.position)).collect()
    }

    async fn step(&self, store: &Store, event: &RawEvent, n: usize) -> Result<Option<Answer>, HandlerError> {
        let touched = touched(event).map_err(retry)?;
        let Some((meter, month)) = touched.get(n).copied() else { return Ok(None) };
        let tenant = TenantId(event.tenant_id);
        let period = match month {
            Some(month) => month,
            None => meter.month(event.recorded_at, lookup::time_zone(store, tenant).await.map_err(retry)?.unwrap_or_default()),
        };
        let standing = crate::quota::standing(store, tenant, meter, period).await.map_err(retry)?;
        let stream = quota::stream(tenant, meter, period);
        // Nothing is sent that would change nothing; and what somebody has told in the meantime is found out when it is decided.
        let known = store.load::<Quota>(stream).await.map_err(unreadable)?;
        let news = known.state.is_news(meter, &standing);
        Ok(news.then(|| Answer::new::<Quota>(stream, AssessQuota { meter, period })))
    }
}
