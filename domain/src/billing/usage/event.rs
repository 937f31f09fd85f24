//! What happens to usage. Stored for ever: append only, a golden file per version under `domain/tests/golden/usage/`.

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use crate::billing::meter::Meter;
use crate::billing::period::Month;

/// One item of what was used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// What whoever recorded it calls it.
    pub id: String,
    /// How much.
    pub quantity: i64,
    /// When.
    pub at: DateTime<Utc>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_utc(zone: &Tz) -> bool {
    *zone == Tz::UTC
}

/// Something that has happened to usage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// Something was used.
    Recorded {
        /// Of which meter.
        meter: Meter,
        /// In which month it counts.
        period: Month,
        /// The month in which it was used, where that was closed already.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        adjusts: Option<Month>,
        /// How much together.
        total: i64,
        /// What, item by item.
        items: Vec<Used>,
        /// By whose calendar its days are, and its month.
        #[serde(default, skip_serializing_if = "is_utc")]
        time_zone: Tz,
    },
    /// Something is going to be used, and room for it is held.
    Reserved {
        /// Of which meter.
        meter: Meter,
        /// In which month it counts.
        period: Month,
        /// How much.
        quantity: i64,
        /// Until when.
        expires_at: DateTime<Utc>,
        /// By whose calendar its days are, and its month.
        #[serde(default, skip_serializing_if = "is_utc")]
        time_zone: Tz,
    },
    /// It was used.
    Committed {
        /// Of which meter.
        meter: Meter,
        /// In which month it counts.
        period: Month,
        /// How much was held.
        reserved: i64,
        /// How much was used.
        quantity: i64,
        /// By whose calendar its days are, and its month.
        #[serde(default, skip_serializing_if = "is_utc")]
        time_zone: Tz,
    },
    /// It was not.
    Released {
        /// Of which meter.
        meter: Meter,
        /// In which month it was to count.
        period: Month,
        /// How much was held.
        reserved: i64,
    },
    /// Nobody said in time whether it was.
    Expired {
        /// Of which meter.
        meter: Meter,
        /// In which month it was to count.
        period: Month,
        /// How much was held.
        reserved: i64,
    },
}

crate::event_kinds!(Event:
    Recorded => "usage.recorded" "1",
    Reserved => "usage.reserved" "1",
    Committed => "usage.committed" "1",
    Released => "usage.released" "1",
    Expired => "usage.expired" "1",
);
