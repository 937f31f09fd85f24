//! Usage of meters that are told from outside: recorded when it has happened, or reserved before.
//!
//! `recorded`, or `reserved → committed | released | expired`. Each recording and each reservation is a stream of its own, so that those of a tenant do not wait for one
//! another; how much is used together is a counter, which lets through what fits under the limit at that place in the log. That a usage id is seen once is the work of
//! idempotency keys.

mod command;
mod event;
#[cfg(test)]
mod tests;

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

pub use command::*;
pub use event::{Event, Used};

use super::meter::Meter;
use super::period::Month;
use crate::aggregate::{Context, EventKind, Issued, Lookup};
use crate::effect::{CounterName, Effect, Precondition, Refusal};
use crate::ids::StreamId;
use crate::instant::Instant;

/// How long after its end a month takes in what was used in it.
pub const CLOSING: TimeDelta = TimeDelta::hours(72);
/// How old use may be that is recorded.
pub const OLDEST: TimeDelta = TimeDelta::days(35);
/// How far ahead of ours another clock may be.
pub const AHEAD: TimeDelta = TimeDelta::minutes(5);
/// How long a reservation may last, in seconds.
const LONGEST: u32 = 86_400;
/// The most of one item.
const MAX_QUANTITY: i64 = 1_000_000_000_000;
/// The counter of what is recorded as storage: no more of it is freed, whatever else is stored.
const RECORDED_STORAGE: &str = "storage_recorded";
/// The most items of one recording.
pub const MAX_ITEMS: usize = 1_000;

const EXPIRY: &str = "expiry";

/// Usage as its events tell it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Usage {
    /// Nothing has happened yet.
    #[default]
    Absent,
    /// Room for it is held.
    Reserved(Hold),
    /// What became of it is decided.
    Settled(End),
}

/// What became of usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// It was recorded.
    Recorded,
    /// Of what was held so much was used.
    Committed {
        /// How much was held.
        reserved: i64,
        /// How much was used.
        quantity: i64,
    },
    /// It was not used.
    Released,
    /// Nobody said in time whether it was.
    Expired,
}

impl End {
    fn as_str(self) -> &'static str {
        match self {
            Self::Recorded => "recorded",
            Self::Committed { .. } => "committed",
            Self::Released => "released",
            Self::Expired => "expired",
        }
    }
}

/// What room is held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    meter: Meter,
    period: Month,
    quantity: i64,
    expires_at: DateTime<Utc>,
    time_zone: Tz,
}

/// Where a use counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// In which month.
    pub period: Month,
    /// The month in which it was, where that is closed.
    pub adjusts: Option<Month>,
}

/// Whether an item makes sense.
pub fn sensible(meter: Meter, item: &UsageItem, now: DateTime<Utc>) -> Result<(), Error> {
    if !meter.is_recorded() {
        return Err(Error::NotRecorded { meter });
    }
    let least = if meter == Meter::Storage { -MAX_QUANTITY } else { 1 };
    if item.quantity == 0 || !(least..=MAX_QUANTITY).contains(&item.quantity) {
        return Err(Error::BadQuantity);
    }
    match item.at.map(Instant::time) {
        Some(at) if at > now + AHEAD => Err(Error::Ahead),
        Some(at) if at < now - OLDEST => Err(Error::TooOld),
        Some(_) | None => Ok(()),
    }
}

/// Where a use at this time counts: in its own month until that is closed, then in the present one. What does not flow counts now.
pub fn place(meter: Meter, at: DateTime<Utc>, now: DateTime<Utc>, zone: Tz, is_closed: impl Fn(Month) -> bool) -> Place {
    let (own, present) = (Month::of(at, zone), meter.month(now, zone));
    if !meter.is_flow() {
        return Place { period: present, adjusts: None };
    }
    let closed = now >= own.period(zone).end + CLOSING || is_closed(own);
    if closed { Place { period: present, adjusts: Some(own) } } else { Place { period: own, adjusts: None } }
}

fn record(c: RecordUsage, ctx: &Context) -> Result<Vec<Event>, Error> {
    let zone = ctx.found.zone();
    let mut events: Vec<(Place, Vec<Used>)> = Vec::new();
    for item in c.items {
        sensible(c.meter, &item, ctx.now)?;
        let at = item.at.map_or(ctx.now, Into::into);
        let place = place(c.meter, at, ctx.now, zone, |month| c.closed.contains(&month));
        let used = Used { id: item.id.into(), quantity: item.quantity, at };
        match events.iter_mut().find(|(other, _)| *other == place) {
            Some((_, items)) => items.push(used),
            None => events.push((place, vec![used])),
        }
    }
    let recorded = |(Place { period, adjusts }, items): (Place, Vec<Used>)| {
        let total = items.iter().map(|item| item.quantity).sum();
        Event::Recorded { meter: c.meter, period, adjusts, total, items, time_zone: c.meter.calendar(zone) }
    };
    Ok(events.into_iter().map(recorded).collect())
}

fn reserve(c: &ReserveUsage, ctx: &Context) -> Result<Vec<Event>, Error> {
    if !c.meter.is_recorded() {
        return Err(Error::NotRecorded { meter: c.meter });
    }
    if !(1..=MAX_QUANTITY).contains(&c.quantity) {
        return Err(Error::BadQuantity);
    }
    if !(1..=LONGEST).contains(&c.ttl_seconds) {
        return Err(Error::BadTimeToLive);
    }
    let (period, expires_at) = (c.meter.month(ctx.now, ctx.found.zone()), ctx.now + TimeDelta::seconds(c.ttl_seconds.into()));
    let time_zone = c.meter.calendar(ctx.found.zone());
    Ok(vec![Event::Reserved { meter: c.meter, period, quantity: c.quantity, expires_at, time_zone }])
}

impl Hold {
    fn decide(&self, command: &Command, ctx: &Context) -> Result<Vec<Event>, Error> {
        let Self { meter, period, quantity: reserved, expires_at, time_zone } = *self;
        match command {
            Command::Record(_) | Command::Reserve(_) => Err(Error::AlreadyExists),
            // The timer may be late.
            Command::Commit(_) if ctx.now >= expires_at => Err(Error::Settled { how: "expired" }),
            Command::Commit(c) => match c.quantity.unwrap_or(reserved) {
                quantity if quantity < 0 => Err(Error::BadQuantity),
                quantity if quantity > reserved => Err(Error::MoreThanReserved { reserved }),
                quantity => Ok(vec![Event::Committed { meter, period, reserved, quantity, time_zone }]),
            },
            Command::Release(_) => Ok(vec![Event::Released { meter, period, reserved }]),
            Command::Expire(_) if ctx.now < expires_at => Err(Error::NotDue),
            Command::Expire(_) => Ok(vec![Event::Expired { meter, period, reserved }]),
        }
    }
}

impl Usage {
    /// Until when room is held, if it is.
    pub fn held_until(&self) -> Option<DateTime<Utc>> {
        match self {
            Self::Reserved(hold) => Some(hold.expires_at),
            Self::Absent | Self::Settled(_) => None,
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "as every aggregate has it")]
    fn evolve(&mut self, event: Event) {
        *self = match event {
            Event::Reserved { meter, period, quantity, expires_at, time_zone } => {
                Self::Reserved(Hold { meter, period, quantity, expires_at, time_zone })
            }
            Event::Recorded { .. } => Self::Settled(End::Recorded),
            Event::Committed { reserved, quantity, .. } => Self::Settled(End::Committed { reserved, quantity }),
            Event::Released { .. } => Self::Settled(End::Released),
            Event::Expired { .. } => Self::Settled(End::Expired),
        };
    }
}

crate::aggregate!(Usage, "usage", Command, Event, Error);

impl crate::Aggregate for Usage {
    type Ask = Command;

    const EVENTS: &'static [EventKind] = Event::KINDS;

    const PERSONAL: bool = false;

    /// What was reserved while the tenant was open is settled in any case.
    fn gated(command: &Command) -> bool {
        matches!(command, Command::Record(_) | Command::Reserve(_))
    }

    fn is_final(&self) -> bool {
        matches!(self, Self::Settled(End::Recorded))
    }

    fn looks_up(&self, command: &Command) -> Vec<Lookup> {
        if matches!(command, Command::Record(_) | Command::Reserve(_)) { vec![Lookup::Calendar] } else { vec![] }
    }

    fn decide(&self, Issued { command, ctx }: Issued<Command>) -> Result<Vec<Event>, Error> {
        match (self, command) {
            (Self::Absent, Command::Record(c)) => record(c, &ctx),
            (Self::Absent, Command::Reserve(c)) => reserve(&c, &ctx),
            (Self::Absent, Command::Commit(_) | Command::Release(_) | Command::Expire(_)) => Err(Error::NotFound),
            (Self::Reserved(hold), command) => hold.decide(&command, &ctx),
            (Self::Settled(_), Command::Record(_) | Command::Reserve(_)) => Err(Error::AlreadyExists),
            (Self::Settled(End::Released | End::Expired), Command::Release(_)) => Ok(vec![]),
            (Self::Settled(End::Committed { reserved, quantity }), Command::Commit(c)) if c.quantity.unwrap_or(*reserved) == *quantity => {
                Ok(vec![])
            }
            (Self::Settled(end), Command::Commit(_) | Command::Release(_) | Command::Expire(_)) => {
                Err(Error::Settled { how: end.as_str() })
            }
        }
    }

    fn effects(&self, event: &Event) -> Vec<Effect> {
        let count = |counter: CounterName, delta: i64| (delta != 0).then_some(Effect::Count { counter, delta });
        let recorded = |meter, delta| count(RECORDED_STORAGE.into(), if meter == Meter::Storage { delta } else { 0 });
        let settle = |meter: Meter, period, reserved: i64, used: i64| {
            let counter = count(meter.counter_in(period), used - reserved);
            let counts = [counter, count(meter.held_in(period), -reserved), recorded(meter, used)];
            counts.into_iter().flatten().chain([Effect::CancelTimer { name: EXPIRY.into() }]).collect()
        };
        match event {
            Event::Recorded { meter, period, total, .. } => {
                [count(meter.counter_in(*period), *total), recorded(*meter, *total)].into_iter().flatten().collect()
            }
            Event::Reserved { meter, period, quantity, expires_at, .. } => {
                let counts = [count(meter.counter_in(*period), *quantity), count(meter.held_in(*period), *quantity)];
                counts.into_iter().flatten().chain([Effect::SetTimer { name: EXPIRY.into(), due: *expires_at }]).collect()
            }
            Event::Committed { meter, period, reserved, quantity, .. } => settle(*meter, *period, *reserved, *quantity),
            Event::Released { meter, period, reserved } | Event::Expired { meter, period, reserved } => {
                settle(*meter, *period, *reserved, 0)
            }
        }
    }

    /// Nobody frees what is not used.
    fn requires(event: &Event, _: StreamId) -> Vec<Precondition> {
        let Event::Recorded { meter: Meter::Storage, total, .. } = event else { return vec![] };
        let counter = RECORDED_STORAGE.into();
        if *total < 0 { vec![Precondition::CounterWithin { counter, at_least: Some(-total), at_most: None }] } else { vec![] }
    }

    fn timer(name: &str) -> Option<Command> {
        (name == EXPIRY).then(|| ExpireUsage {}.into())
    }

    fn refused(refusal: &Refusal) -> Option<Error> {
        matches!(refusal, Refusal::CounterOutOfBounds { ceiling: None, floor: Some(_), .. }).then_some(Error::NotKept)
    }
}
