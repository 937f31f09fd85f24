//! What is recorded. Stored for ever: append only, a golden file per version under `domain/tests/golden/access_record/`.

use serde::{Deserialize, Serialize};

/// What somebody tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// To log in.
    Login,
    /// To use a refresh token once more.
    RefreshTokenReuse,
    /// To do something that they may not.
    Command,
    /// To read the records.
    ReadRecords,
    /// To end a session, or all of somebody's.
    EndSession,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was refused.
    Refused,
}

/// Something that was recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// Somebody tried something.
    Noted {
        /// What.
        action: Action,
        /// What came of it.
        outcome: Outcome,
        /// Who, if that is known: a user's or a key's id.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        actor: Option<String>,
        /// On what.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<String>,
        /// Why it was refused: the code of the problem.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<String>,
        /// How often, where one record stands for several attempts.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        count: Option<u32>,
        /// Which network address they came from, as a keyed hash that changes every day.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<String>,
    },
}

crate::event_kinds!(Event: Noted => "access_record.noted" "1");
