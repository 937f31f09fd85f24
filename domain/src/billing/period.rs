//! Billing periods: from an anchor on, month by month or year by year, at the same local time of the same day, or of the month's last one where it has none such
//! (31 January, 28 February, 31 March).

use chrono::{DateTime, Datelike as _, Days, LocalResult, Months, NaiveDate, NaiveDateTime, NaiveTime, TimeZone as _, Utc};
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
    /// How many months it has.
    pub fn months(self) -> u32 {
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

/// A calendar month: the period in which use is counted. Written as ISO 8601 has it: `2026-11`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Month {
    year: i32,
    /// 1 to 12.
    month: u32,
}

/// The text is no month.
#[derive(Debug, thiserror::Error)]
#[error("a month is written as 2026-11")]
pub struct NoMonth;

impl Month {
    /// The month of a time by the calendar of `zone`.
    pub fn of(time: DateTime<Utc>, zone: Tz) -> Self {
        let local = time.with_timezone(&zone);
        Self { year: local.year(), month: local.month() }
    }

    /// The next one.
    #[must_use]
    pub fn next(self) -> Self {
        if self.month == 12 { Self { year: self.year + 1, month: 1 } } else { Self { month: self.month + 1, ..self } }
    }

    /// The day of it on which something at this time counts, by the clock of `zone`: its own, or the nearest one where that is in another month.
    pub fn day(self, at: DateTime<Utc>, zone: Tz) -> NaiveDate {
        let first = NaiveDate::from_ymd_opt(self.year, self.month, 1).unwrap_or_default();
        let next = self.next();
        let last = NaiveDate::from_ymd_opt(next.year, next.month, 1).and_then(|day| day.pred_opt()).unwrap_or(first);
        at.with_timezone(&zone).date_naive().clamp(first, last)
    }

    /// From when to when it lasts, by the clock of `zone`.
    pub fn period(self, zone: Tz) -> Period {
        let begins = |month: Self| {
            let first = NaiveDate::from_ymd_opt(month.year, month.month, 1).unwrap_or_default();
            instant(first.and_time(NaiveTime::MIN), zone)
        };
        Period { start: begins(self), end: begins(self.next()) }
    }
}

impl std::fmt::Display for Month {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04}-{:02}", self.year, self.month)
    }
}

impl std::str::FromStr for Month {
    type Err = NoMonth;

    fn from_str(text: &str) -> Result<Self, NoMonth> {
        let digits = |text: &str, n: usize| text.len() == n && text.bytes().all(|byte| byte.is_ascii_digit());
        let (year, month) = text.split_once('-').filter(|(year, month)| digits(year, 4) && digits(month, 2)).ok_or(NoMonth)?;
        let (year, month) = (year.parse().map_err(|_| NoMonth)?, month.parse().map_err(|_| NoMonth)?);
        if (1..=12).contains(&month) && (1..=9999).contains(&year) { Ok(Self { year, month }) } else { Err(NoMonth) }
    }
}

impl TryFrom<String> for Month {
    type Error = NoMonth;

    fn try_from(text: String) -> Result<Self, NoMonth> {
        text.parse()
    }
}

impl From<Month> for String {
    fn from(month: Month) -> Self {
        month.to_string()
    }
}

impl utoipa::PartialSchema for Month {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        use utoipa::openapi::schema::{ObjectBuilder, Type};
        ObjectBuilder::new().schema_type(Type::String).examples(["2026-11"]).description(Some("A calendar month.")).build().into()
    }
}

impl ToSchema for Month {}

/// From when to when; the end is the beginning of the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Period {
    /// When it begins.
    pub start: DateTime<Utc>,
    /// When it ends.
    pub end: DateTime<Utc>,
}

impl Period {
    /// How long it is, in seconds; at least one.
    pub fn seconds(&self) -> i64 {
        (self.end - self.start).num_seconds().max(1)
    }

    /// How many whole seconds of it are left at `at`.
    pub fn seconds_left(&self, at: DateTime<Utc>) -> i64 {
        (self.end - at.max(self.start)).num_seconds().max(0)
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

    /// The beginning of a period from which all others are counted.
    pub fn anchor(&self) -> DateTime<Utc> {
        self.anchor
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

    /// Whether a period of this schedule can end at this time.
    pub fn has_boundary(&self, time: DateTime<Utc>) -> bool {
        time > self.anchor && self.boundary(self.month_of(time)) == time
    }

    /// The period of full length that ends with this one, which is shorter where it began in the middle of one.
    pub fn whole(&self, period: Period, interval: Interval) -> Period {
        let start = self.month_of(period.end).checked_sub(interval.months()).map(|months| self.boundary(months));
        Period { start: start.unwrap_or(period.start), ..period }
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
