//! Who tried what, where no other aggregate tells: refused commands, logins of nobody, a refresh token used twice, and who has read these records.
//!
//! Each is a stream of its own, so that none waits for another. What anybody can cause without end is summed up before it comes here.

mod command;
mod event;

use std::convert::Infallible;

use serde::{Deserialize, Serialize};

pub use command::*;
pub use event::{Action, Event, Outcome};

use crate::aggregate::{EventKind, Issued};
use crate::effect::Effect;

/// A record. It has no state: it stands for itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AccessRecord;

crate::aggregate!(AccessRecord, "access_record", Command, Event, Infallible);

impl AccessRecord {
    #[expect(clippy::unused_self, reason = "there is nothing to fold")]
    fn evolve(&mut self, _: Event) {}
}

impl crate::Aggregate for AccessRecord {
    type Ask = Command;

    const EVENTS: &'static [EventKind] = Event::KINDS;

    /// What is tried in a closed tenant is worth knowing too.
    fn gated(_: &Command) -> bool {
        false
    }

    fn decide(&self, Issued { command, .. }: Issued<Command>) -> Result<Vec<Event>, Infallible> {
        match command {
            Command::Note(NoteAccess { action, outcome, actor, target, code, count, source }) => {
                let [actor, target, code, source] = [actor, target, code, source].map(|text| text.map(String::from));
                Ok(vec![Event::Noted { action, outcome, actor, target, code, count, source }])
            }
        }
    }

    fn effects(&self, event: &Event) -> Vec<Effect> {
        match event {
            Event::Noted { .. } => vec![],
        }
    }
}
