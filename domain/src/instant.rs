//! Points in time and days from outside.

use std::fmt;

use chrono::{DateTime, Datelike as _, NaiveDate, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, Type};
use utoipa::openapi::{RefOr, Schema};

use crate::time::micros;

/// Why a time was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InstantError {
    /// Not RFC 3339.
    #[error("must be a time with an offset, such as 2030-01-01T00:00:00Z (RFC 3339)")]
    Malformed,
    /// Second 60: no clock and no table of Tenure has it.
    #[error("must not be a leap second (second 60); use second 59 or the next minute")]
    LeapSecond,
    /// Before the year 1 or after the year 9999.
    #[error("must lie in the years 1 to 9999 in UTC")]
    OutOfRange,
    /// Not a day.
    #[error("must be a day of the years 1 to 9999, such as 2030-01-31")]
    NoDay,
}

/// A point in time from outside, in whole microseconds and in the years 1 to 9999 of UTC: what the log, the timers and every read model hold and give back equal. Written as
/// RFC 3339 with an offset; what is finer than a microsecond is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "DateTime<Utc>")]
pub struct Instant(DateTime<Utc>);

impl Instant {
    /// Reads an RFC 3339 time.
    pub fn parse(text: &str) -> Result<Self, InstantError> {
        let time = DateTime::parse_from_rfc3339(text).map_err(|_| InstantError::Malformed)?;
        time.to_utc().try_into()
    }

    /// Its time.
    pub fn time(self) -> DateTime<Utc> {
        self.0
    }
}

impl TryFrom<DateTime<Utc>> for Instant {
    type Error = InstantError;

    fn try_from(time: DateTime<Utc>) -> Result<Self, InstantError> {
        if time.timestamp_subsec_nanos() >= 1_000_000_000 {
            return Err(InstantError::LeapSecond);
        }
        if (1..=9999).contains(&time.year()) { Ok(Self(micros(time))) } else { Err(InstantError::OutOfRange) }
    }
}

impl TryFrom<String> for Instant {
    type Error = InstantError;

    fn try_from(text: String) -> Result<Self, InstantError> {
        Self::parse(&text)
    }
}

impl From<Instant> for DateTime<Utc> {
    fn from(instant: Instant) -> Self {
        instant.0
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl utoipa::PartialSchema for Instant {
    fn schema() -> RefOr<Schema> {
        let format = SchemaFormat::KnownFormat(KnownFormat::DateTime);
        ObjectBuilder::new().schema_type(Type::String).format(Some(format)).examples(["2030-01-01T00:00:00Z"]).build().into()
    }
}

impl ToSchema for Instant {}

/// A day from outside, of the years 1 to 9999. Written as RFC 3339 has it: `2030-01-31`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "NaiveDate")]
pub struct Day(NaiveDate);

impl Day {
    /// Reads a day.
    pub fn parse(text: &str) -> Result<Self, InstantError> {
        let shape = text.len() == 10
            && text.bytes().enumerate().all(|(n, byte)| if n == 4 || n == 7 { byte == b'-' } else { byte.is_ascii_digit() });
        let day: NaiveDate = text.parse().map_err(|_| InstantError::NoDay)?;
        if shape && day.year() >= 1 { Ok(Self(day)) } else { Err(InstantError::NoDay) }
    }

    /// Its date.
    pub fn date(self) -> NaiveDate {
        self.0
    }
}

impl TryFrom<String> for Day {
    type Error = InstantError;

    fn try_from(text: String) -> Result<Self, InstantError> {
        Self::parse(&text)
    }
}

impl From<Day> for NaiveDate {
    fn from(day: Day) -> Self {
        day.0
    }
}

impl utoipa::PartialSchema for Day {
    fn schema() -> RefOr<Schema> {
        let format = SchemaFormat::KnownFormat(KnownFormat::Date);
        ObjectBuilder::new().schema_type(Type::String).format(Some(format)).examples(["2030-01-31"]).build().into()
    }
}

impl ToSchema for Day {}
