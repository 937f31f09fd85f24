//! How much of a tenant's quotas is used, by the counters that decide; and what was included at some time, by the log.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use cqrs_es::Aggregate as _;
use domain::TenantId;
use domain::billing::meter::{CLOSED, Entitlement, Meter, Standing};
use domain::billing::period::Month;
use domain::billing::quota::Included;
use domain::billing::subscription::{self, Pinned, Subscription};
use domain::identity::tenant::{self, Tenant};
use store::load::LoadError;
use store::{RawEvent, Store};

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

/// What was included of a meter at a time: by the subscription that was last set up then, or by what the platform had set instead. `None`: there was no limit.
pub(crate) async fn included(store: &Store, tenant: TenantId, meter: Meter, at: DateTime<Utc>) -> Result<Option<Included>, CommandError> {
    use subscription::Event as S;
    use tenant::Event as T;
    let history = store.entitling(tenant, at).await.map_err(LoadError::from)?;
    let of = |kind: &'static str| history.iter().filter(move |event| event.aggregate_type == kind).collect::<Vec<&RawEvent>>();
    let mut given: Option<(domain::StreamId, Pinned, u32)> = None;
    for event in store.typed::<Subscription>(&of(Subscription::TYPE)).await? {
        match (event.event, &mut given) {
            (S::Started { pinned, quantity, .. }, given) => *given = Some((event.stream, pinned, quantity)),
            (S::PlanChanged { pinned, .. }, Some((stream, given, _))) if *stream == event.stream => *given = pinned,
            (S::QuantityChanged { to, .. }, Some((stream, _, quantity))) if *stream == event.stream => *quantity = to,
            (_, Some(_) | None) => {}
        }
    }
    let mut overridden: Option<(i64, Option<DateTime<Utc>>)> = None;
    for event in store.typed::<Tenant>(&of(Tenant::TYPE)).await? {
        if let T::LimitOverridden { meter: of, limit, until } = event.event
            && of == meter
        {
            overridden = Some((limit, until));
        } else if matches!(event.event, T::LimitOverrideCleared { meter: of } if of == meter) {
            overridden = None;
        }
    }
    // What was to end by then has, whether or not its timer had fired.
    if let Some((limit, _)) = overridden.filter(|(_, until)| until.is_none_or(|until| at < until)) {
        return Ok(Some(Included { quota: limit, overage: None, plan: None }));
    }
    Ok(given.map(|(_, pinned, quantity)| {
        let entitlement = pinned.terms.entitlements.get(&meter).copied().unwrap_or(Entitlement::of(0));
        Included {
            quota: entitlement.included(quantity),
            overage: entitlement.overage.map(|price| (price, pinned.terms.price.currency)),
            plan: Some((pinned.code, pinned.version)),
        }
    }))
}
