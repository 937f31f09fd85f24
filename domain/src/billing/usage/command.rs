//! What may be asked about usage, and why it may be refused.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::billing::meter::Meter;
use crate::billing::period::Month;
use crate::instant::Instant;
use crate::text::{TextError, line};

crate::text_types! {
    /// What whoever records use calls it: the same one counts once.
    UsageId { max: 100, example: "msg-2041", parse: |t| {
        if t.trim() == t { line(t, 100) } else { Err(TextError::Malformed("must not begin or end with white space")) }
    } }
}

/// One item of what was used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"id": "msg-2041", "quantity": 1}))]
pub struct UsageItem {
    /// What the caller calls it. The same id counts once, for 35 days.
    pub id: UsageId,
    /// How much; of storage also less than nothing, for what was freed.
    #[serde(default = "one")]
    #[schema(default = 1, maximum = 1_000_000_000_000_i64)]
    pub quantity: i64,
    /// When it was used; now, if nothing is said. At most 35 days ago, and 5 minutes ahead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Instant>,
}

fn one() -> i64 {
    1
}

/// Records use, all of it or nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecordUsage {
    /// Of which meter.
    pub meter: Meter,
    /// What.
    pub items: Vec<UsageItem>,
    /// Months that are known to be closed although their time has not come.
    pub closed: BTreeSet<Month>,
}

/// Holds room for what is going to be used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"meter": "messages", "quantity": 20, "ttl_seconds": 600}))]
pub struct ReserveUsage {
    /// Its id, if the client chooses one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    /// Of which meter: messages, api_calls or storage.
    pub meter: Meter,
    /// How much.
    #[serde(default = "one")]
    #[schema(default = 1, minimum = 1, maximum = 1_000_000_000_000_i64)]
    pub quantity: i64,
    /// For how many seconds it is held, unless somebody says what became of it.
    #[serde(default = "five_minutes")]
    #[schema(default = 300, minimum = 1, maximum = 86_400)]
    pub ttl_seconds: u32,
}

fn five_minutes() -> u32 {
    300
}

/// Says that what room was held for was used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"quantity": 17}))]
pub struct CommitUsage {
    /// How much of it; all, if nothing is said. The rest is released.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::json::given")]
    #[schema(minimum = 0, nullable = false)]
    pub quantity: Option<i64>,
}

crate::bare_commands! {
    /// Says that what room was held for will not be used.
    ReleaseUsage
    /// Releases what nobody said anything of in time.
    ExpireUsage
}

crate::commands! { "usage":
    Record(RecordUsage) "record", "record";
    Reserve(ReserveUsage) "reserve", "reserve";
    Commit(CommitUsage) "commit", "reserve";
    Release(ReleaseUsage) "release", "reserve";
    Expire(ExpireUsage) "expire", "expire";
}

crate::errors! {
    /// Why usage is refused.
    Error {
        /// There is no such reservation.
        NotFound: NotFound "usage.not_found", "there is no such reservation";
        /// The id is in use.
        AlreadyExists: Conflict "usage.already_exists", "a reservation with this id exists already";
        /// What became of it is decided.
        Settled {
            /// What.
            how: &'static str,
        }: Conflict "usage.settled", "it was {how} already";
        /// Its time has not come.
        NotDue: Conflict "usage.not_due", "it is held still";
        /// Tenure counts these itself.
        NotRecorded {
            /// Which.
            meter: Meter,
        }: Invalid "usage.not_recorded", "{meter} are counted by what there is of them, and recorded by nobody";
        /// A quantity that makes no sense.
        BadQuantity: Invalid "usage.bad_quantity", "a quantity is 1 to 1000000000000, of what is recorded as storage also less than 0";
        /// It was used too long ago.
        TooOld: Invalid "usage.too_old", "what was used more than 35 days ago is recorded no more";
        /// It says that it will be used.
        Ahead: Invalid "usage.ahead", "it lies more than 5 minutes ahead";
        /// More is freed than there is.
        NotKept: Conflict "usage.not_kept", "so much storage is not used";
        /// A reservation lasts 1 second to 24 hours.
        BadTimeToLive: Invalid "usage.bad_time_to_live", "a reservation lasts 1 to 86400 seconds";
        /// More is used than was held.
        MoreThanReserved {
            /// How much was held.
            reserved: i64,
        }: Invalid "usage.more_than_reserved", "only {reserved} are held";
    }
}
