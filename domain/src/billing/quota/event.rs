//! What happens to quotas. Stored for ever: append only, a golden file per version under `domain/tests/golden/quota/`.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::billing::meter::Meter;
use crate::billing::money::{Money, UnitPrice};
use crate::billing::period::Month;

/// What a part of a month has come to, in which the same was in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PricedSegment {
    /// From when on.
    pub from: DateTime<Utc>,
    /// How much was used in it.
    #[schema(example = 90_000)]
    pub used: i64,
    /// How much was included in the month; nothing is said where there was no limit.
    #[schema(example = 100_000)]
    pub quota: Option<i64>,
    /// How much was used beyond that.
    #[schema(example = 0)]
    pub overage: i64,
    /// What each such unit costs, if it is sold.
    pub unit_price: Option<UnitPrice>,
    /// What that comes to.
    pub amount: Option<Money>,
    /// Who pays it: the subscription that was in force.
    pub subscription: Option<Uuid>,
    /// Its plan.
    #[schema(example = "enterprise")]
    pub plan: Option<String>,
    /// In which version.
    #[schema(example = 1)]
    pub plan_version: Option<u32>,
}

/// Something that has happened to the quota of a meter in a month.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// Something was used in it.
    PeriodOpened {
        /// Of which meter.
        meter: Meter,
        /// In which month.
        period: Month,
        /// When that ends.
        ends_at: DateTime<Utc>,
        /// When it takes nothing in any more.
        closes_at: DateTime<Utc>,
    },
    /// So much of the quota is used that somebody should know.
    ThresholdCrossed {
        /// Of which meter.
        meter: Meter,
        /// In which month.
        period: Month,
        /// How many percent of it: 80, 90 or 100.
        threshold: u16,
        /// The how-manieth limits these are of which it is a part.
        generation: i64,
        /// How much was used.
        used: i64,
        /// Of how much.
        quota: i64,
        /// Whether it is the highest of those crossed at once: the one that people are told of.
        highest: bool,
    },
    /// The month takes nothing in any more.
    PeriodClosed {
        /// Of which meter.
        meter: Meter,
        /// Which month.
        period: Month,
        /// How much was used in it.
        used: i64,
        /// How much was included at its end; nothing is said where there was no limit.
        quota: Option<i64>,
        /// How much was used beyond what was included at the time.
        overage: i64,
        /// What each such unit costs at its end, if it is sold.
        unit_price: Option<UnitPrice>,
        /// What all of it comes to; of several currencies, in the last one.
        amount: Option<Money>,
        /// The plan at its end.
        plan: Option<String>,
        /// In which version.
        plan_version: Option<u32>,
        /// The parts of the month in which the same was in force, in order. Of months that were closed before there were any there are none; those were priced as a whole.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        segments: Vec<PricedSegment>,
    },
}

crate::event_kinds!(Event:
    PeriodOpened => "quota.period_opened" "1",
    ThresholdCrossed => "quota.threshold_crossed" "1",
    PeriodClosed => "quota.period_closed" "1",
);
