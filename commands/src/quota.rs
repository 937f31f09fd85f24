//! How much of a tenant's quotas is used, by the counters that decide; and what was included at some time, by the log.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use cqrs_es::Aggregate as _;
use domain::billing::meter::{CLOSED, Meter, Standing};
use domain::billing::period::{Month, Period};
use domain::billing::quota::{Included, Segment};
use domain::billing::subscription::{self, Subscription};
use domain::billing::usage::{self, Usage};
use domain::identity::tenant::{self, Tenant};
use domain::{StreamId, TenantId};
use store::load::LoadError;
use store::read::Filter;
use store::{RawEvent, Store};
use uuid::Uuid;

use crate::error::CommandError;

/// How a meter stands in a month.
pub async fn standing(store: &Store, tenant: TenantId, meter: Meter, month: Month) -> Result<Standing, CommandError> {
    let counters = store.counters(tenant, &Standing::counters(meter, month)).await.map_err(LoadError::from)?;
    Ok(Standing::read(meter, month, &counters))
}

/// Whether a month takes nothing in any more.
pub(crate) async fn is_closed(store: &Store, tenant: TenantId, meter: Meter, month: Month) -> Result<bool, CommandError> {
    let counter = meter.counter_in(month);
    let counters = store.counters(tenant, &[counter]).await.map_err(LoadError::from)?;
    Ok(counters.get(&counter).is_some_and(|(_, ceiling)| *ceiling == Some(CLOSED)))
}

/// How all meters stand in a month, at one moment.
pub async fn standings(store: &Store, tenant: TenantId, month: Month) -> Result<BTreeMap<Meter, Standing>, CommandError> {
    let wanted: Vec<_> = Meter::ALL.into_iter().flat_map(|meter| Standing::counters(meter, month)).collect();
    let counters = store.counters(tenant, &wanted).await.map_err(LoadError::from)?;
    Ok(Meter::ALL.into_iter().map(|meter| (meter, Standing::read(meter, month, &counters))).collect())
}

/// The parts of a month in which the same was in force of a meter, in order, with how much was used in each.
pub(crate) async fn segments(store: &Store, tenant: TenantId, meter: Meter, month: Month) -> Result<Vec<Segment>, CommandError> {
    let loaded = store.current::<Tenant>(StreamId::new(tenant, tenant.0)).await?;
    let period = month.period(loaded.state.time_zone().unwrap_or_default());
    let mut segments = in_force(store, tenant, meter, period).await?;
    // A month of one segment needs no events: its counter is the total.
    if segments.len() > 1 {
        count_uses(store, tenant, (meter, month), period, &mut segments).await?;
    }
    Ok(segments)
}

/// Quota of a meter over a period: of the newest subscription, or of the platform's override.
async fn in_force(store: &Store, tenant: TenantId, meter: Meter, period: Period) -> Result<Vec<Segment>, CommandError> {
    use tenant::Event as T;
    let history = store.entitling(tenant, period.end - TimeDelta::microseconds(1)).await.map_err(LoadError::from)?;
    let of = |kind: &'static str| history.iter().filter(move |event| event.aggregate_type == kind).collect::<Vec<&RawEvent>>();
    let subscriptions = store.typed::<Subscription>(&of(Subscription::TYPE)).await?;
    let tenants = store.typed::<Tenant>(&of(Tenant::TYPE)).await?;
    let mut overrides: Vec<(DateTime<Utc>, Option<i64>)> = Vec::new();
    for event in tenants {
        let (at, event) = (event.recorded_at, event.event);
        let (limit, until) = if let T::LimitOverridden { meter: of, limit, until } = event
            && of == meter
        {
            (Some(limit), until)
        } else if matches!(event, T::LimitOverrideCleared { meter: of } if of == meter) {
            (None, None)
        } else {
            continue;
        };
        // An override ends at `until`, even when its timer fires late.
        overrides.retain(|(before, _)| *before <= at);
        overrides.push((at, limit));
        overrides.extend(until.map(|until| (until, None)));
    }
    let mut given: Vec<(DateTime<Utc>, Option<Included>)> = Vec::new();
    let mut states: BTreeMap<Uuid, Subscription> = BTreeMap::new();
    let mut last = None;
    for event in subscriptions {
        if matches!(event.event, subscription::Event::Started { .. }) {
            last = Some(event.stream.id);
        }
        let state = states.entry(event.stream.id).or_default();
        state.apply(event.event);
        if last == Some(event.stream.id) {
            let included = state.details().map(|details| Included {
                quota: details.in_force().get(&meter).map_or(0, |limit| limit.quota),
                overage: details.entitlement(meter).overage.map(|price| (price, details.pinned.terms.price.currency)),
                by: Some((event.stream.id, details.pinned.code.clone(), details.pinned.version)),
            });
            given.push((event.recorded_at, included));
        }
    }
    let mut times: Vec<DateTime<Utc>> = overrides.iter().map(|(at, _)| *at).chain(given.iter().map(|(at, _)| *at)).collect();
    times.retain(|at| *at > period.start && *at < period.end);
    times.push(period.start);
    times.sort_unstable();
    let mut segments: Vec<Segment> = Vec::new();
    for from in times {
        let overridden = overrides.iter().rev().find(|(at, _)| *at <= from).and_then(|(_, limit)| *limit);
        let subscribed = given.iter().rev().find(|(at, _)| *at <= from).and_then(|(_, included)| included.clone());
        let included = match overridden {
            Some(quota) => Some(Included { quota, overage: None, by: None }),
            None => subscribed,
        };
        match segments.last_mut() {
            Some(before) if before.included == included => {}
            Some(before) if before.from == from => before.included = included,
            Some(_) | None => segments.push(Segment { from, included, used: 0 }),
        }
    }
    Ok(segments)
}

/// How far time zones are apart at most.
const ZONES: TimeDelta = TimeDelta::hours(26);
/// How many events of a tenant are read at a time.
const PAGE: i64 = 1_000;

/// Adds what was used of a meter in a month to the segments of its times. What was used before the month, and was told when its own was closed, counts as of its beginning.
async fn count_uses(
    store: &Store,
    tenant: TenantId,
    which: (Meter, Month),
    period: Period,
    segments: &mut [Segment],
) -> Result<(), CommandError> {
    let mut count = |at: DateTime<Utc>, used: i64| {
        let index = segments.partition_point(|segment| segment.from <= at).saturating_sub(1);
        if let Some(segment) = segments.get_mut(index) {
            segment.used += used;
        }
    };
    // The month may have begun by the clock of another time zone.
    let (since, until) = (period.start - ZONES, period.end + usage::CLOSING + ZONES);
    let filter = Filter { tenant: Some(tenant.0), kind: Some(Usage::TYPE.to_owned()), until: Some(until), ..Filter::default() };
    let mut position = store.position_before(since).await.map_err(LoadError::from)?;
    loop {
        let page = store.list(position, PAGE, &filter).await.map_err(LoadError::from)?;
        let Some(last) = page.last() else { return Ok(()) };
        position = last.position;
        let events: Vec<&RawEvent> = page.iter().collect();
        for event in store.typed::<Usage>(&events).await? {
            match event.event {
                usage::Event::Recorded { meter, period, items, .. } if (meter, period) == which => {
                    items.iter().for_each(|item| count(item.at, item.quantity));
                }
                // What was reserved is used when that is said.
                usage::Event::Committed { meter, period, quantity, .. } if (meter, period) == which => count(event.recorded_at, quantity),
                usage::Event::Recorded { .. }
                | usage::Event::Committed { .. }
                | usage::Event::Reserved { .. }
                | usage::Event::Released { .. }
                | usage::Event::Expired { .. } => {}
            }
        }
    }
}
