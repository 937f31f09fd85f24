//! The smallest aggregate that uses what tenants do not: it is gated, draws a number, and has an event that once had another shape.

use domain::aggregate::Upcaster;
use domain::{Aggregate, Effect, EventKind, Issued, Personal, SubjectId};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// What may be asked.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Make {
    /// Whom it is about.
    pub subject: SubjectId,
    /// What it says.
    pub words: String,
}

domain::commands! { "thing":
    Make(Make) "make", "make";
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// It was made. Version 1 had a `text` in clear and no number.
    Made {
        /// The tenant's next number; drawn under the lock.
        number: Option<i64>,
        /// What it says.
        words: Personal<String>,
    },
}

domain::event_kinds!(Event: Made => "thing.made" "2");

domain::errors! {
    /// Why it may be refused.
    Error {
        /// It is there.
        Exists: Conflict "thing.exists", "it exists";
    }
}

/// Its state: what the event said.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Thing(pub Option<Event>);

impl Thing {
    fn evolve(&mut self, event: Event) {
        self.0 = Some(event);
    }
}

domain::aggregate!(Thing, "thing", Command, Event, Error);

impl Aggregate for Thing {
    type Ask = Command;

    const EVENTS: &'static [EventKind] = Event::KINDS;

    const UPCASTERS: &'static [Upcaster] = &[Upcaster {
        event: "thing.made",
        from: "1",
        to: "2",
        upcast: |old| json!({"type": "made", "number": null, "words": Personal::new(SubjectId(uuid::Uuid::nil()), old["text"].as_str().unwrap_or_default())}),
    }];

    fn decide(&self, Issued { command: Command::Make(c), .. }: Issued<Command>) -> Result<Vec<Event>, Error> {
        if self.0.is_some() { Err(Error::Exists) } else { Ok(vec![Event::Made { number: None, words: Personal::new(c.subject, c.words) }]) }
    }

    fn effects(&self, _: &Event) -> Vec<Effect> {
        vec![Effect::Allocate { sequence: "thing_number", pointer: "/number" }]
    }
}
