//! How much of each meter was used in each month, and what that came to.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, Utc};
use chrono_tz::Tz;
use cqrs_es::{Aggregate as _, DomainEvent as _};
use domain::billing::meter::Meter;
use domain::billing::money::Money;
use domain::billing::period::Month;
use domain::billing::quota::{self, PricedSegment, Quota};
use domain::billing::usage::{self, Usage};
use domain::{Aggregate, TenantId};
use serde::{Deserialize, Serialize};
use serde_json::json;
use store::load::LoadError;
use store::{RawEvent, Recorded, Store};
use utoipa::ToSchema;

use crate::cursor::CursorKey;
use crate::list::{self, Column, Orders, Page, Paging};
use crate::model::{Partition, ReadModel, Source};
use crate::query::{QueryError, Read};

/// The read model by month.
pub struct Months;

/// The read model by day.
pub struct Days;

/// Whose events say how much is used.
pub struct Metered;

/// What an event says of a meter.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// So much more was used, at these times.
    Used {
        /// Of which meter.
        meter: Meter,
        /// In which month it counts.
        period: Month,
        /// Whether it was in a month that is closed.
        adjusts: bool,
        /// How much, and on which day.
        items: Vec<(i64, NaiveDate)>,
        /// How much less is held.
        held: i64,
    },
    /// So much more is held.
    Held {
        /// Of which meter.
        meter: Meter,
        /// In which month.
        period: Month,
        /// How much.
        quantity: i64,
    },
    /// A threshold was crossed, or a month closed.
    Told(quota::Event),
}

/// One more or less of what does not flow; its months are those of UTC.
fn one(meter: Meter, quantity: i64, at: DateTime<Utc>) -> Vec<Change> {
    let used = Change::Used { meter, period: Month::of(at, Tz::UTC), adjusts: false, items: vec![(quantity, at.date_naive())], held: 0 };
    if quantity == 0 { vec![] } else { vec![used] }
}

fn of_usage(event: usage::Event, at: DateTime<Utc>) -> Vec<Change> {
    use usage::Event as E;
    let used = |meter, period, adjusts, items, held| vec![Change::Used { meter, period, adjusts, items, held }];
    match event {
        E::Recorded { meter, period, adjusts, total: _, items, time_zone } => {
            // What is told of a month that is closed counts on the day on which it is told: the days of a month come to what the month does.
            let day = |used_at| period.day(if adjusts.is_some() { at } else { used_at }, time_zone);
            let items = items.into_iter().map(|item| (item.quantity, day(item.at))).collect();
            used(meter, period, adjusts.is_some(), items, 0)
        }
        E::Reserved { meter, period, quantity, .. } => vec![Change::Held { meter, period, quantity }],
        E::Committed { meter, period, reserved, quantity, time_zone } => {
            used(meter, period, false, vec![(quantity, period.day(at, time_zone))], -reserved)
        }
        E::Released { meter, period, reserved } | E::Expired { meter, period, reserved } => {
            vec![Change::Held { meter, period, quantity: -reserved }]
        }
    }
}

/// What the events of an aggregate change of a meter that stands. No others are read.
async fn standing<A: Aggregate>(store: &Store, events: &[&RawEvent]) -> Result<Vec<Recorded<Vec<Change>>>, LoadError> {
    let meter = |name: &str| A::METERED.iter().find(|(of, _)| *of == name).map(|(_, meter)| *meter);
    let metered: Vec<&RawEvent> = events.iter().copied().filter(|event| meter(&event.event_type).is_some()).collect();
    let changes = |event: Recorded<<A as cqrs_es::Aggregate>::Event>| {
        let at = event.recorded_at;
        event.map(|event| meter(&event.event_type()).map(|meter| one(meter, A::metered(&event), at)).unwrap_or_default())
    };
    Ok(store.typed::<A>(&metered).await?.into_iter().map(changes).collect())
}

impl Source for Metered {
    const TYPES: &'static [&'static str] = domain::TYPES;

    type Event = Vec<Change>;

    fn concerns(event: &RawEvent) -> bool {
        [Usage::TYPE, Quota::TYPE].contains(&event.aggregate_type.as_str()) || domain::metered(&event.event_type).is_some()
    }

    async fn typed(store: &Store, events: &[&RawEvent]) -> Result<Vec<Recorded<Vec<Change>>>, LoadError> {
        let of = |kind: &'static str| events.iter().copied().filter(move |event| event.aggregate_type == kind).collect::<Vec<_>>();
        let used = store.typed::<Usage>(&of(Usage::TYPE)).await?.into_iter().map(|event| {
            let at = event.recorded_at;
            event.map(|event| of_usage(event, at))
        });
        let told = store.typed::<Quota>(&of(Quota::TYPE)).await?.into_iter().map(|event| event.map(|event| vec![Change::Told(event)]));
        let mut all: Vec<Recorded<Vec<Change>>> = used.chain(told).collect();
        macro_rules! stand {
            ($($aggregate:ty,)*) => { $(all.extend(standing::<$aggregate>(store, events).await?);)* };
        }
        domain::for_each_aggregate!(stand);
        all.sort_by_key(|event| event.position);
        Ok(all)
    }
}

/// The key of a month.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct MonthKey {
    tenant_id: TenantId,
    meter: Meter,
    period: Month,
}

/// A threshold that was crossed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CrossedThreshold {
    /// How many percent.
    #[schema(example = 80)]
    pub threshold: u16,
    /// The how-manieth limits it was of.
    #[schema(example = 1)]
    pub generation: i64,
    /// Of how much.
    #[schema(example = 1000)]
    pub quota: i64,
    /// When.
    pub at: DateTime<Utc>,
}

/// How much of a meter was used in a month.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = UsageOfMonth)]
pub struct Row {
    /// Whose.
    pub tenant_id: TenantId,
    /// Of what.
    pub meter: Meter,
    /// In which month: of what flows by the tenant's calendar, of everything else by UTC.
    pub period: Month,
    /// How much; of what does not flow, how much more than at its beginning.
    #[schema(example = 812)]
    pub used: i64,
    /// How much of it was used in earlier months, which were closed when it was told.
    #[schema(example = 0)]
    pub adjustments: i64,
    /// How much of it is held by reservations.
    #[schema(example = 20)]
    pub held: i64,
    /// What was crossed, the oldest first.
    pub thresholds: Vec<CrossedThreshold>,
    /// How much was included, once it is closed.
    #[schema(example = 1000)]
    pub quota: Option<i64>,
    /// How much was used beyond that, once it is closed.
    #[schema(example = 0)]
    pub overage: Option<i64>,
    /// What that comes to, where it is sold.
    pub amount: Option<Money>,
    /// The parts of the month in which the same was in force, once it is closed.
    pub segments: Vec<PricedSegment>,
    /// When it was closed.
    pub closed_at: Option<DateTime<Utc>>,
    /// When this last changed.
    pub updated_at: DateTime<Utc>,
}

fn month_of(change: &Change) -> Option<(Meter, Month)> {
    match change {
        Change::Used { meter, period, .. }
        | Change::Held { meter, period, .. }
        | Change::Told(quota::Event::ThresholdCrossed { meter, period, .. } | quota::Event::PeriodClosed { meter, period, .. }) => {
            Some((*meter, *period))
        }
        Change::Told(quota::Event::PeriodOpened { .. }) => None,
    }
}

impl ReadModel for Months {
    const NAME: &'static str = "usage_v2";
    const PARTITION: Partition = Partition::Tenant;
    type Events = Metered;
    type Key = MonthKey;
    type Row = Row;

    fn keys(event: &Recorded<Vec<Change>>) -> Vec<MonthKey> {
        let tenant_id = event.stream.tenant;
        event.event.iter().filter_map(month_of).map(|(meter, period)| MonthKey { tenant_id, meter, period }).collect()
    }

    fn apply(key: &MonthKey, row: Option<Row>, event: &Recorded<Vec<Change>>) -> Option<Row> {
        let at = event.recorded_at;
        let mut row = row.unwrap_or_else(|| Row {
            tenant_id: key.tenant_id,
            meter: key.meter,
            period: key.period,
            used: 0,
            adjustments: 0,
            held: 0,
            thresholds: vec![],
            quota: None,
            overage: None,
            amount: None,
            segments: vec![],
            closed_at: None,
            updated_at: at,
        });
        row.updated_at = at;
        for change in event.event.iter().filter(|change| month_of(change) == Some((key.meter, key.period))) {
            match change {
                Change::Used { adjusts, items, held, .. } => {
                    let total: i64 = items.iter().map(|(quantity, _)| quantity).sum();
                    row.used += total;
                    row.held += held;
                    row.adjustments += if *adjusts { total } else { 0 };
                }
                Change::Held { quantity, .. } => row.held += quantity,
                Change::Told(quota::Event::ThresholdCrossed { threshold, generation, quota, .. }) => {
                    row.thresholds.push(CrossedThreshold { threshold: *threshold, generation: *generation, quota: *quota, at });
                }
                Change::Told(quota::Event::PeriodClosed { quota, overage, amount, segments, .. }) => {
                    row.segments.clone_from(segments);
                    (row.quota, row.overage, row.amount, row.closed_at) = (*quota, Some(*overage), *amount, Some(at));
                }
                Change::Told(quota::Event::PeriodOpened { .. }) => {}
            }
        }
        Some(row)
    }
}

/// The key of a day.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct DayKey {
    tenant_id: TenantId,
    meter: Meter,
    day: NaiveDate,
}

/// How much of a meter was used on a day.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = UsageOfDay)]
pub struct Day {
    /// Whose.
    pub tenant_id: TenantId,
    /// Of what.
    pub meter: Meter,
    /// The day: of what flows by the tenant's calendar, of everything else by UTC.
    pub day: NaiveDate,
    /// How much; of what does not flow, how much more than at its beginning.
    #[schema(example = 41)]
    pub used: i64,
    /// In how many recordings.
    #[schema(example = 7)]
    pub items: i64,
}

/// What was used on each day.
fn by_day(event: &Recorded<Vec<Change>>) -> BTreeMap<(Meter, NaiveDate), (i64, i64)> {
    let mut days: BTreeMap<(Meter, NaiveDate), (i64, i64)> = BTreeMap::new();
    for change in &event.event {
        let Change::Used { meter, items, .. } = change else { continue };
        for (quantity, day) in items {
            let (used, count) = days.entry((*meter, *day)).or_default();
            *used += quantity;
            *count += 1;
        }
    }
    days
}

impl ReadModel for Days {
    const NAME: &'static str = "usage_daily_v2";
    const PARTITION: Partition = Partition::Tenant;
    type Events = Metered;
    type Key = DayKey;
    type Row = Day;

    fn keys(event: &Recorded<Vec<Change>>) -> Vec<DayKey> {
        let tenant_id = event.stream.tenant;
        by_day(event).into_keys().map(|(meter, day)| DayKey { tenant_id, meter, day }).collect()
    }

    fn apply(key: &DayKey, row: Option<Day>, event: &Recorded<Vec<Change>>) -> Option<Day> {
        let mut row = row.unwrap_or(Day { tenant_id: key.tenant_id, meter: key.meter, day: key.day, used: 0, items: 0 });
        let (used, items) = by_day(event).get(&(key.meter, key.day)).copied().unwrap_or_default();
        row.used += used;
        row.items += items;
        Some(row)
    }
}

/// In which order months are listed.
pub const MONTHS: Orders = Orders { columns: &[Column { name: "period", sql: "period", kind: "text" }], tie: ("meter", "text") };
/// In which order days are listed.
pub const DAYS: Orders = Orders { columns: &[Column { name: "day", sql: "day", kind: "date" }], tie: ("meter", "text") };

/// One page of a tenant's months, from one to another, both included.
pub async fn months(
    read: &mut Read,
    cursors: &CursorKey,
    tenant: TenantId,
    meter: Option<Meter>,
    range: (Option<Month>, Option<Month>),
    paging: &Paging,
) -> Result<Page<Row>, QueryError> {
    let mut query = list::select(Months::NAME, paging);
    query.push(" and tenant_id = ").bind(tenant.0);
    if let Some(meter) = meter {
        query.push(" and meter = ").bind(meter.as_str());
    }
    if let Some(from) = range.0 {
        query.push(" and period >= ").bind(from.to_string());
    }
    if let Some(to) = range.1 {
        query.push(" and period <= ").bind(to.to_string());
    }
    list::page(read, cursors, query, &json!([Months::NAME, tenant, meter, range]).to_string(), paging).await
}

/// One page of a tenant's days, from one to another, both included.
pub async fn days(
    read: &mut Read,
    cursors: &CursorKey,
    tenant: TenantId,
    meter: Option<Meter>,
    range: (Option<NaiveDate>, Option<NaiveDate>),
    paging: &Paging,
) -> Result<Page<Day>, QueryError> {
    let mut query = list::select(Days::NAME, paging);
    query.push(" and tenant_id = ").bind(tenant.0);
    if let Some(meter) = meter {
        query.push(" and meter = ").bind(meter.as_str());
    }
    if let Some(from) = range.0 {
        query.push(" and day >= ").bind(from);
    }
    if let Some(to) = range.1 {
        query.push(" and day <= ").bind(to);
    }
    list::page(read, cursors, query, &json!([Days::NAME, tenant, meter, range]).to_string(), paging).await
}
