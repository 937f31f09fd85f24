//! The quota of a meter in a month: what of it was told, and what it came to in the end. How much is used is a counter; see [`super::usage`].
//!
//! `opened → closed`, for what flows, 72 hours after the end of the month. Thresholds are crossed once for each time that limits were set.

mod command;
mod event;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use command::*;
pub use event::{Event, PricedSegment};

use super::meter::{CLOSED, Meter, Standing};
use super::money::{Currency, Money, UnitPrice};
use super::period::Month;
use super::usage::CLOSING;
use crate::aggregate::{Context, EventKind, Issued, Lookup};
use crate::effect::Effect;
use crate::ids::{StreamId, TenantId};

/// At how many percent of a quota somebody is told.
pub const THRESHOLDS: [u16; 3] = [80, 90, 100];

const CLOSE_TIMER: &str = "period_close";

/// The stream of a meter's quota in a month.
pub fn stream(tenant: TenantId, meter: Meter, period: Month) -> StreamId {
    StreamId::new(tenant, Uuid::new_v5(&tenant.0, format!("quota:{meter}:{period}").as_bytes()))
}

/// What was in force of a meter's quota at some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Included {
    /// How much was included.
    pub quota: i64,
    /// What each unit beyond it costs, if it is sold.
    pub overage: Option<(UnitPrice, Currency)>,
    /// By which subscription, to which plan, in which version.
    pub by: Option<(Uuid, String, u32)>,
}

/// A part of a month in which the same was in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// From when on.
    pub from: DateTime<Utc>,
    /// What was included; `None`: there was no limit.
    pub included: Option<Included>,
    /// How much was used in it.
    pub used: i64,
}

/// A quota as its events tell it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quota {
    /// What is counted and when that ends, once something was.
    open: Option<Open>,
    closed: bool,
    /// The limits to which what was crossed belongs.
    generation: i64,
    crossed: BTreeSet<u16>,
    /// What people were told last.
    warning: Option<Warning>,
}

/// What people are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// Of which meter.
    pub meter: Meter,
    /// How many percent of the quota are used.
    pub threshold: u16,
    /// How much.
    pub used: i64,
    /// Of how much.
    pub quota: i64,
    /// When the month ends in which it is counted, for what flows.
    pub resets_at: Option<DateTime<Utc>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Open {
    meter: Meter,
    period: Month,
    ends_at: DateTime<Utc>,
    closes_at: DateTime<Utc>,
}

impl Quota {
    /// What people were told last, if anything.
    pub fn warning(&self) -> Option<Warning> {
        self.warning
    }

    /// Which thresholds are crossed that were not before.
    fn newly_crossed(&self, standing: &Standing) -> Vec<u16> {
        let told = |threshold: &u16| standing.generation == self.generation && self.crossed.contains(threshold);
        THRESHOLDS.into_iter().filter(|threshold| standing.reaches(*threshold) && !told(threshold)).collect()
    }

    /// Whether looking at it would lead to anything.
    pub fn is_news(&self, meter: Meter, standing: &Standing) -> bool {
        !self.closed
            && ((self.open.is_none() && meter.is_flow() && standing.used + standing.held > 0) || !self.newly_crossed(standing).is_empty())
    }

    fn assess(&self, &AssessQuota { meter, period }: &AssessQuota, ctx: &Context) -> Vec<Event> {
        let standing = ctx.found.standings.get(&(meter, period)).copied().unwrap_or_default();
        if !self.is_news(meter, &standing) {
            return vec![];
        }
        let ends_at = period.period(ctx.found.zone()).end;
        let opens = self.open.is_none() && meter.is_flow();
        let opened = opens.then(|| Event::PeriodOpened { meter, period, ends_at, closes_at: ends_at + CLOSING });
        let crossed = self.newly_crossed(&standing);
        let highest = crossed.last().copied();
        let crossed = crossed.into_iter().map(|threshold| Event::ThresholdCrossed {
            meter,
            period,
            threshold,
            generation: standing.generation,
            used: standing.used,
            quota: standing.quota.unwrap_or_default(),
            highest: Some(threshold) == highest,
        });
        opened.into_iter().chain(crossed).collect()
    }

    fn close(&self, ctx: &Context) -> Result<Vec<Event>, Error> {
        let Some(Open { meter, period, closes_at, .. }) = self.open else { return Err(Error::NotOpened) };
        if self.closed {
            return Ok(vec![]);
        }
        if ctx.now < closes_at {
            return Err(Error::NotDue);
        }
        let count = |counter| ctx.found.counters.get(&counter).copied().unwrap_or(0);
        let used = count(meter.counter_in(period)) - count(meter.held_in(period));
        // What was not used in the segments after the first one was used in that.
        let mut segments = ctx.found.segments.clone();
        let later: i64 = segments.iter().skip(1).map(|segment| segment.used).sum();
        segments.first_mut().into_iter().for_each(|first| first.used = used - later);
        let segments = priced(&segments);
        let last = segments.last();
        let amounts = || segments.iter().filter_map(|segment| segment.amount);
        // Of several currencies the last one; each segment has its own.
        let currency = amounts().next_back().map(|amount| amount.currency);
        let sum = |currency| amounts().filter(|amount| amount.currency == currency).map(|amount| amount.amount).sum();
        Ok(vec![Event::PeriodClosed {
            meter,
            period,
            used,
            quota: last.and_then(|segment| segment.quota),
            overage: segments.iter().map(|segment| segment.overage).sum(),
            unit_price: last.and_then(|segment| segment.unit_price),
            amount: currency.map(|currency| Money::new(sum(currency), currency)),
            plan: last.and_then(|segment| segment.plan.clone()),
            plan_version: last.and_then(|segment| segment.plan_version),
            segments,
        }])
    }

    #[expect(clippy::needless_pass_by_value, reason = "as every aggregate has it")]
    fn evolve(&mut self, event: Event) {
        match event {
            Event::PeriodOpened { meter, period, ends_at, closes_at } => self.open = Some(Open { meter, period, ends_at, closes_at }),
            Event::ThresholdCrossed { meter, threshold, generation, used, quota, highest, .. } => {
                if highest {
                    let resets_at = self.open.map(|open| open.ends_at);
                    self.warning = Some(Warning { meter, threshold, used, quota, resets_at });
                }
                if generation != self.generation {
                    self.generation = generation;
                    self.crossed.clear();
                }
                self.crossed.insert(threshold);
            }
            Event::PeriodClosed { .. } => self.closed = true,
        }
    }
}

/// What each part of a month comes to. Each use is measured by what was in force at its time, as its limit was: beyond the quota is what is used when the month's use has reached
/// that. So what was used under one plan is not priced by another one, before or after it.
fn priced(segments: &[Segment]) -> Vec<PricedSegment> {
    let mut total = 0_i64;
    let price = |Segment { from, included, used }: &Segment| {
        let before = total;
        total += used;
        let overage = included.as_ref().map_or(0, |included| (total - included.quota.max(before)).max(0));
        let sold = included.as_ref().and_then(|included| included.overage);
        let by = included.as_ref().and_then(|included| included.by.clone());
        PricedSegment {
            from: *from,
            used: *used,
            quota: included.as_ref().map(|included| included.quota),
            overage,
            unit_price: sold.map(|(price, _)| price),
            amount: sold.map(|(price, currency)| price.of(overage, currency)),
            subscription: by.as_ref().map(|(subscription, ..)| *subscription),
            plan: by.as_ref().map(|(_, plan, _)| plan.clone()),
            plan_version: by.map(|(.., version)| version),
        }
    };
    segments.iter().map(price).collect()
}

impl UnitPrice {
    /// What so many units cost, rounded half away from zero.
    pub fn of(self, units: i64, currency: Currency) -> Money {
        Money::new(self.amount.into(), currency).share(1, units, i64::from(self.per.get()))
    }
}

crate::aggregate!(Quota, "quota", Command, Event, Error);

impl crate::Aggregate for Quota {
    type Ask = Command;

    const EVENTS: &'static [EventKind] = Event::KINDS;

    const PERSONAL: bool = false;

    /// What was used is told and closed, whatever has become of the tenant.
    fn gated(_: &Command) -> bool {
        false
    }

    fn looks_up(&self, command: &Command) -> Vec<Lookup> {
        match (command, self.open) {
            (Command::Assess(c), _) => vec![Lookup::Calendar, Lookup::Standing(c.meter, c.period)],
            (Command::Close(_), Some(Open { meter, period, .. })) => {
                let counters = [meter.counter_in(period), meter.held_in(period)].map(Lookup::Exactly);
                counters.into_iter().chain([Lookup::Segments(meter, period)]).collect()
            }
            (Command::Close(_), None) => vec![],
        }
    }

    fn decide(&self, Issued { command, ctx }: Issued<Command>) -> Result<Vec<Event>, Error> {
        match command {
            Command::Assess(c) => Ok(self.assess(&c, &ctx)),
            Command::Close(_) => self.close(&ctx),
        }
    }

    fn effects(&self, event: &Event) -> Vec<Effect> {
        match event {
            Event::PeriodOpened { closes_at, .. } => vec![Effect::SetTimer { name: CLOSE_TIMER.into(), due: *closes_at }],
            Event::ThresholdCrossed { .. } => vec![],
            Event::PeriodClosed { meter, period, .. } => vec![
                Effect::CancelTimer { name: CLOSE_TIMER.into() },
                Effect::Bound { counter: meter.counter_in(*period), floor: None, ceiling: Some(CLOSED) },
            ],
        }
    }

    fn timer(name: &str) -> Option<Command> {
        (name == CLOSE_TIMER).then(|| ClosePeriod {}.into())
    }
}
