//! What may be asked of the records.

use serde::{Deserialize, Serialize};

use super::{Action, Outcome};

/// Notes that somebody tried something.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NoteAccess {
    /// What.
    pub action: Action,
    /// What came of it.
    pub outcome: Outcome,
    /// Who, if that is known: a user's or a key's id.
    pub actor: Option<String>,
    /// On what.
    pub target: Option<String>,
    /// Why it was refused: the code of the problem.
    pub code: Option<String>,
    /// How often, where one record stands for several attempts.
    pub count: Option<u32>,
    /// Which network address they came from, as a keyed hash that changes every day.
    pub source: Option<String>,
}

crate::commands! { "access_record":
    Note(NoteAccess) "note", "note";
}
