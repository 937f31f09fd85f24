//! What happens to plans. Stored for ever: append only, a golden file per version under `domain/tests/golden/plan/`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::billing::meter::Entitlements;
use crate::billing::money::Money;
use crate::billing::period::Interval;

/// What one version of a plan costs and gives. It never changes: a change is another version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Terms {
    /// For one period.
    pub price: Money,
    /// How long a period is.
    pub interval: Interval,
    /// How long it can be tried for nothing.
    #[schema(example = 14)]
    pub trial_days: u16,
    /// What it gives.
    #[schema(value_type = Object, example = json!({"users": {"quota": 25, "hard_percent": 100}}))]
    pub entitlements: Entitlements,
}

/// Something that has happened to a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// There is one, in its first version.
    Defined {
        /// What it is called in requests.
        code: String,
        /// What people call it.
        name: String,
        /// What it costs and gives.
        terms: Terms,
    },
    /// There is another version; who has subscribed to an earlier one keeps that.
    Revised {
        /// The how-manieth it is.
        version: u32,
        /// What people call it.
        name: String,
        /// What it costs and gives.
        terms: Terms,
    },
    /// Nobody can subscribe to it any more.
    Retired,
}

crate::event_kinds!(Event:
    Defined => "plan.defined" "1",
    Revised => "plan.revised" "1",
    Retired => "plan.retired" "1",
);
