//! What is metered, and how much of it a plan gives.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;

use super::money::UnitPrice;
use super::period::Month;
use crate::effect::{CounterName, Effect, Refusal, Which};
use crate::error::{DomainError, Kind};

/// Something that is metered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Meter {
    /// Messages sent in a period.
    Messages,
    /// Calls of the customer's own interface in a period.
    ApiCalls,
    /// Bytes kept.
    Storage,
    /// People with a seat.
    Users,
    /// Places that business is done from.
    Outlets,
    /// Devices in use.
    Devices,
}

impl Meter {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Messages, Self::ApiCalls, Self::Storage, Self::Users, Self::Outlets, Self::Devices];

    /// As stored and shown; also the kind of its counter.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::ApiCalls => "api_calls",
            Self::Storage => "storage",
            Self::Users => "users",
            Self::Outlets => "outlets",
            Self::Devices => "devices",
        }
    }

    /// Whether it flows, and is counted by the month; others stand, and are counted as they are.
    pub fn is_flow(self) -> bool {
        matches!(self, Self::Messages | Self::ApiCalls)
    }

    /// The month in which a use counts: of what flows that of the tenant's zone, of everything else that of UTC, so that all of it is told apart in the same way.
    pub fn month(self, at: DateTime<Utc>, zone: Tz) -> Month {
        Month::of(at, self.calendar(zone))
    }

    /// By whose calendar its months and days are.
    pub fn calendar(self, zone: Tz) -> Tz {
        if self.is_flow() { zone } else { Tz::UTC }
    }

    /// Whether its use is told from outside, rather than by what Tenure itself has.
    pub fn is_recorded(self) -> bool {
        self.is_flow() || self == Self::Storage
    }

    /// Its counter. Of one that flows that has only the ceiling of all months.
    pub fn counter(self) -> CounterName {
        self.as_str().into()
    }

    /// The counter of what is used and held of it in a month, or now if it does not flow.
    pub fn counter_in(self, month: Month) -> CounterName {
        if self.is_flow() { CounterName::of_month(self.as_str(), month) } else { self.counter() }
    }

    /// The counter of what is held of it.
    pub fn held_in(self, month: Month) -> CounterName {
        let kind = match self {
            Self::Messages => "messages_held",
            Self::ApiCalls => "api_calls_held",
            Self::Storage => "storage_held",
            Self::Users => "users_held",
            Self::Outlets => "outlets_held",
            Self::Devices => "devices_held",
        };
        if self.is_flow() { CounterName::of_month(kind, month) } else { kind.into() }
    }

    /// The counter whose ceiling is the quota: what percentages are of. Nothing stops there.
    pub fn quota(self) -> CounterName {
        match self {
            Self::Messages => "messages_quota",
            Self::ApiCalls => "api_calls_quota",
            Self::Storage => "storage_quota",
            Self::Users => "users_quota",
            Self::Outlets => "outlets_quota",
            Self::Devices => "devices_quota",
        }
        .into()
    }

    /// The counter of how often its limits were set.
    pub fn generation(self) -> CounterName {
        match self {
            Self::Messages => "messages_generation",
            Self::ApiCalls => "api_calls_generation",
            Self::Storage => "storage_generation",
            Self::Users => "users_generation",
            Self::Outlets => "outlets_generation",
            Self::Devices => "devices_generation",
        }
        .into()
    }

    /// The counter whose ceiling stands instead of a subscription's.
    pub fn overriding(self) -> Option<CounterName> {
        self.counter().ceilings().next()
    }
}

impl fmt::Display for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Nothing of this name is metered.
#[derive(Debug, thiserror::Error)]
#[error("a meter is messages, api_calls, storage, users, outlets or devices")]
pub struct UnknownMeter;

impl FromStr for Meter {
    type Err = UnknownMeter;

    fn from_str(text: &str) -> Result<Self, UnknownMeter> {
        Self::ALL.into_iter().find(|meter| meter.as_str() == text).ok_or(UnknownMeter)
    }
}

/// How much of a meter a plan gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Entitlement {
    /// How much of it is included.
    #[schema(minimum = 0, example = 1000)]
    pub quota: u64,
    /// At how many percent of the quota it stops: 100, or more where overage is sold.
    #[serde(default = "hundred")]
    #[schema(minimum = 100, maximum = 1000, default = 100)]
    pub hard_percent: u16,
    /// What each unit beyond the quota costs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overage: Option<UnitPrice>,
}

fn hundred() -> u16 {
    100
}

impl Entitlement {
    /// Just this much.
    pub const fn of(quota: u64) -> Self {
        Self { quota, hard_percent: 100, overage: None }
    }

    /// Where `quantity` of it stops: floor(quota × quantity × percent / 100), as far as a counter can count.
    pub fn hard_limit(&self, quantity: u32) -> i64 {
        let limit = u128::from(self.quota) * u128::from(quantity) * u128::from(self.hard_percent) / 100;
        i64::try_from(limit).unwrap_or(i64::MAX)
    }

    /// How much `quantity` of it includes.
    pub fn included(&self, quantity: u32) -> i64 {
        i64::try_from(u128::from(self.quota) * u128::from(quantity)).unwrap_or(i64::MAX)
    }
}

/// What a plan gives. A meter that is not named is not included.
pub type Entitlements = BTreeMap<Meter, Entitlement>;

/// How much of a meter is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Limit {
    /// How much is included.
    #[schema(example = 1000)]
    pub quota: i64,
    /// Where it stops.
    #[schema(example = 1050)]
    pub limit: i64,
}

impl Limit {
    /// What both of two give.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { quota: self.quota.min(other.quota), limit: self.limit.min(other.limit) }
    }
}

/// How much of each meter is given; all meters are named.
pub type Limits = BTreeMap<Meter, Limit>;

/// What `quantity` times these gives: of meters that are not included nothing.
pub fn limits(entitlements: &Entitlements, quantity: u32) -> Limits {
    let of = |meter: Meter| {
        let given = entitlements.get(&meter).copied().unwrap_or(Entitlement::of(0));
        (meter, Limit { quota: given.included(quantity), limit: given.hard_limit(quantity) })
    };
    Meter::ALL.map(of).into()
}

/// What a tenant may use before it has its first subscription: a setting of the platform, such as `users=10,outlets=1`. Meters that are not named may not be used at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WithoutPlan(BTreeMap<Meter, Option<i64>>);

impl WithoutPlan {
    /// Everything without limit.
    pub fn unlimited() -> Self {
        Self(Meter::ALL.map(|meter| (meter, None)).into())
    }

    /// The counters that it bounds, by their kinds: what is used, and what percentages are of.
    pub fn ceilings(&self) -> BTreeMap<&'static str, i64> {
        let of = |meter: Meter| {
            let most = self.0.get(&meter).copied().unwrap_or(Some(0));
            most.map(|most| [(meter.counter().kind, most), (meter.quota().kind, most)])
        };
        Meter::ALL.into_iter().filter_map(of).flatten().collect()
    }
}

impl Default for WithoutPlan {
    /// Enough to set up an organisation; nothing of what costs the platform money.
    fn default() -> Self {
        Self([(Meter::Users, Some(10)), (Meter::Outlets, Some(1))].into())
    }
}

/// A text says of no meter how much of it may be used without a plan.
#[derive(Debug, thiserror::Error)]
#[error("what may be used without a plan is written `users=10,outlets=1,messages=unlimited`, or `unlimited`; {0}")]
pub struct BadWithoutPlan(String);

impl FromStr for WithoutPlan {
    type Err = BadWithoutPlan;

    fn from_str(text: &str) -> Result<Self, BadWithoutPlan> {
        if text.trim() == "unlimited" {
            return Ok(Self::unlimited());
        }
        let one = |part: &str| {
            let (meter, most) = part.split_once('=').ok_or_else(|| BadWithoutPlan(format!("{part:?} has no =")))?;
            let meter = meter.trim().parse::<Meter>().map_err(|error| BadWithoutPlan(error.to_string()))?;
            match most.trim() {
                "unlimited" => Ok((meter, None)),
                most => match most.parse() {
                    Ok(most) if most >= 0 => Ok((meter, Some(most))),
                    Ok(_) | Err(_) => Err(BadWithoutPlan(format!("{most:?} is no number from 0 on"))),
                },
            }
        };
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(one).collect::<Result<_, _>>().map(Self)
    }
}

/// Puts limits into force: quotas and ceilings of all meters.
pub(crate) fn in_force(limits: &Limits) -> Vec<Effect> {
    let set = |(meter, given): (&Meter, &Limit)| {
        let bound = |counter, ceiling| Effect::Bound { counter, floor: None, ceiling: Some(ceiling) };
        [bound(meter.counter(), given.limit), bound(meter.quota(), given.quota), generation_of(*meter)]
    };
    limits.iter().flat_map(set).collect()
}

/// Sets or takes off what stands instead of a subscription's limit.
pub(crate) fn override_with(meter: Meter, ceiling: Option<i64>) -> impl Iterator<Item = Effect> {
    let bound = meter.overriding().map(|counter| Effect::Bound { counter, floor: None, ceiling });
    bound.into_iter().chain([generation_of(meter)])
}

/// Limits were set: warnings begin anew.
fn generation_of(meter: Meter) -> Effect {
    Effect::Count { counter: meter.generation(), delta: 1 }
}

/// Counts so much more of a meter that stands.
pub(crate) fn count(meter: Meter, delta: i64) -> Option<Effect> {
    (delta != 0).then(|| Effect::Count { counter: meter.counter(), delta })
}

/// The ceiling of a month's counter once that is closed.
pub const CLOSED: i64 = -1;

/// How much of a meter is used, and may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Used.
    pub used: i64,
    /// Held by reservations.
    pub held: i64,
    /// What percentages are of; `None`: there is no limit.
    pub quota: Option<i64>,
    /// Where it stops.
    pub limit: Option<i64>,
    /// How often limits were set.
    pub generation: i64,
}

impl Standing {
    /// The counters that say how a meter stands in a month.
    pub fn counters(meter: Meter, month: Month) -> Vec<CounterName> {
        let limits = meter.counter_in(month).ceilings();
        limits.chain([meter.held_in(month), meter.quota(), meter.generation()]).collect()
    }

    /// By value and ceiling of those counters.
    pub fn read(meter: Meter, month: Month, counters: &BTreeMap<CounterName, (i64, Option<i64>)>) -> Self {
        let of = |counter: CounterName| counters.get(&counter).copied().unwrap_or_default();
        let held = of(meter.held_in(month)).0;
        let overridden = meter.overriding().and_then(|counter| of(counter).1);
        Self {
            used: of(meter.counter_in(month)).0 - held,
            held,
            quota: overridden.or(of(meter.quota()).1),
            limit: overridden.or(of(meter.counter()).1),
            generation: of(meter.generation()).0,
        }
    }

    /// How much is left; `None`: no end to it.
    pub fn remaining(&self) -> Option<i64> {
        self.limit.map(|limit| (limit - self.used - self.held).max(0))
    }

    /// How many percent of the quota are used, rounded down; `None` where there is none, or nothing of it is to be used.
    pub fn percent(&self) -> Option<i64> {
        let quota = self.quota.filter(|quota| *quota > 0)?;
        i64::try_from(i128::from(self.used) * 100 / i128::from(quota)).ok()
    }

    /// Whether so many percent of the quota are used.
    pub fn reaches(&self, percent: u16) -> bool {
        self.quota.is_some_and(|quota| self.used > 0 && i128::from(self.used) * 100 >= i128::from(quota) * i128::from(percent))
    }
}

/// More was asked for than a limit lets through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Exceeded {
    /// Of what.
    pub meter: Meter,
    /// Where it stops.
    #[schema(example = 1050)]
    pub limit: i64,
    /// How much is used and held.
    #[schema(example = 1050)]
    pub used: i64,
    /// How much is left.
    #[schema(example = 0)]
    pub remaining: i64,
    /// When it begins at 0 again; never, if nothing is said.
    pub resets_at: Option<DateTime<Utc>>,
}

impl Exceeded {
    /// What a refusal by the guards says of a meter, if it speaks of one. Months are by the calendar of `zone`.
    pub fn of(refusal: &Refusal, zone: Tz) -> Option<Self> {
        let Refusal::CounterOutOfBounds { counter, value, ceiling: Some(limit), .. } = refusal else { return None };
        let (kind, month) = counter.split_once(':').map_or((counter.as_str(), None), |(kind, which)| (kind, which.parse().ok()));
        let resets_at = month.and_then(|which| match which {
            Which::Month(month) => Some(month.period(zone).end),
            Which::Id(_) => None,
        });
        let meter = kind.parse().ok()?;
        Some(Self { meter, limit: *limit, used: *value, remaining: (limit - value).max(0), resets_at })
    }

    /// The month that is closed already, if that is what the refusal says.
    pub fn closed(refusal: &Refusal) -> Option<Month> {
        let Refusal::CounterOutOfBounds { counter, ceiling: Some(CLOSED), .. } = refusal else { return None };
        counter.split_once(':')?.1.parse().ok()
    }
}

impl DomainError for Exceeded {
    const PAGES: &'static [(&'static str, Kind)] = &[("quota.exceeded", Kind::Exhausted)];

    fn kind(&self) -> Kind {
        Kind::Exhausted
    }

    fn page(&self) -> &'static str {
        "quota.exceeded"
    }

    fn code(&self) -> Cow<'static, str> {
        self.page().into()
    }
}

impl std::error::Error for Exceeded {}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the limit of {} is {}, and {} of them are used", self.meter, self.limit, self.used)
    }
}
