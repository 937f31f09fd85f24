//! What is metered, and how much of it a plan gives.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::money::UnitPrice;
use crate::effect::{CounterName, Effect};

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

    /// Its counter.
    pub fn counter(self) -> CounterName {
        self.as_str().into()
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
}

/// What a plan gives. A meter that is not named is not included.
pub type Entitlements = BTreeMap<Meter, Entitlement>;

/// Puts what a subscription gives into force: the ceilings of all meters' counters, 0 for those that are not included.
pub(crate) fn in_force(entitlements: &Entitlements, quantity: u32) -> Vec<Effect> {
    let ceiling = |meter: &Meter| entitlements.get(meter).map_or(0, |entitlement| entitlement.hard_limit(quantity));
    Meter::ALL.iter().map(|meter| Effect::Bound { counter: meter.counter(), floor: None, ceiling: Some(ceiling(meter)) }).collect()
}
