//! Billing periods: from an anchor on, month by month or year by year, at the same local time of the same day, or of the month's last one where it has none such
//! (31 January, 28 February, 31 March).

use chrono::{DateTime, Datelike as _, Days, LocalResult, Months, NaiveDateTime, NaiveTime, TimeZone as _, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How long a period is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Interval {
    /// A month.
    Month,
    /// A year.
    Year,
}

impl Interval {
    fn months(self) -> u32 {
        match self {
            Self::Month => 1,
            Self::Year => 12,
        }
    }
}

/// Where periods begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Billing {
    /// With the calendar's months, at midnight of the first; the first period is shorter.
    Calendar,
    /// On the day on which the first one began.
    #[default]
    Anniversary,
}

/// From when to when; the end is the beginning of the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Period {
    /// When it begins.
    pub start: DateTime<Utc>,
    /// When it ends.
    pub end: DateTime<Utc>,
}

impl Period {
    /// How many days of it there are, and how many are left of it at `at`, the day of `at` included; by the calendar of `zone`.
    pub fn days(&self, at: DateTime<Utc>, zone: Tz) -> (i64, i64) {
        let day = |time: DateTime<Utc>| time.with_timezone(&zone).date_naive();
        let whole = (day(self.end) - day(self.start)).num_days().max(1);
        (whole, (day(self.end) - day(at)).num_days().clamp(0, whole))
    }
}

/// The periods from an anchor on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// A beginning of a period; all others follow from it.
    pub anchor: DateTime<Utc>,
    /// Whose calendar and clock.
    pub zone: Tz,
}

impl Schedule {
    /// The schedule of what begins at `start`.
    pub fn beginning(start: DateTime<Utc>, billing: Billing, zone: Tz) -> Self {
        let anchor = match billing {
            Billing::Anniversary => start,
            Billing::Calendar => {
                let day = start.with_timezone(&zone).date_naive();
                instant(day.with_day(1).unwrap_or(day).and_time(NaiveTime::MIN), zone)
            }
        };
        Self { anchor, zone }
    }

    /// The beginning that is so many months after the anchor.
    fn boundary(&self, months: u32) -> DateTime<Utc> {
        let local = self.anchor.with_timezone(&self.zone).naive_local();
        instant(local.checked_add_months(Months::new(months)).unwrap_or(NaiveDateTime::MAX), self.zone)
    }

    /// The month of a time, counted from the anchor's.
    fn month_of(&self, time: DateTime<Utc>) -> u32 {
        let month = |time: DateTime<Utc>| {
            let local = time.with_timezone(&self.zone);
            i64::from(local.year()) * 12 + i64::from(local.month0())
        };
        u32::try_from(month(time) - month(self.anchor)).unwrap_or(0)
    }

    /// The period after one that ends at `start`, which is a beginning of this schedule.
    pub fn from(&self, start: DateTime<Utc>, interval: Interval) -> Period {
        Period { start, end: self.boundary(self.month_of(start) + interval.months()) }
    }

    /// The period in which `at` lies, from `at` on: where something begins in the middle of one.
    pub fn rest_from(&self, at: DateTime<Utc>, interval: Interval) -> Period {
        let step = interval.months();
        let first = self.month_of(at) / step;
        let end = (first..first + 3).map(|n| self.boundary(n * step)).find(|boundary| *boundary > at);
        Period { start: at, end: end.unwrap_or(at) }
    }
}

/// When a local time is. One that a clock skips is as long after midnight as it says; of one that comes twice it is the first.
fn instant(local: NaiveDateTime, zone: Tz) -> DateTime<Utc> {
    match zone.from_local_datetime(&local) {
        LocalResult::Single(time) | LocalResult::Ambiguous(time, _) => time.to_utc(),
        LocalResult::None => {
            // The offset that held before the gap: what the clock would say had it not been put forward (RFC 5545 section 3.3.5).
            let before = local.checked_sub_days(Days::new(1)).map(|day| zone.offset_from_local_datetime(&day).earliest());
            let offset = before.flatten().map(|offset| chrono::Offset::fix(&offset).local_minus_utc()).unwrap_or_default();
            (local - chrono::TimeDelta::seconds(offset.into())).and_utc()
        }
    }
}
