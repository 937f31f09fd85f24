//! What may be asked of the records.

use serde::{Deserialize, Serialize};

use super::{Action, Outcome};
use crate::text::Reference;

/// Notes that somebody tried something.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NoteAccess {
    /// What.
    pub action: Action,
    /// What came of it.
    pub outcome: Outcome,
    /// Who, if that is known: a user's or a key's id.
    pub actor: Option<Reference>,
    /// On what.
    pub target: Option<Reference>,
    /// Why it was refused: the code of the problem.
    pub code: Option<Reference>,
    /// How often, where one record stands for several attempts.
    pub count: Option<u32>,
    /// Which network address they came from, as a keyed hash that changes every day.
    pub source: Option<Reference>,
}

impl NoteAccess {
    /// A record. Whatever of it is no line of at most 255 characters is left out, such as a path that somebody has made up.
    pub fn new(action: Action, outcome: Outcome, actor: Option<&str>, target: Option<&str>, code: Option<&str>) -> Self {
        let [actor, target, code] = [actor, target, code].map(|text| text.and_then(|text| Reference::parse(text).ok()));
        Self { action, outcome, actor, target, code, count: None, source: None }
    }
}

crate::commands! { "access_record":
    Note(NoteAccess) "note", "note";
}
