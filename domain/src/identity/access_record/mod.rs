//! Who tried what, where no other aggregate tells: refused commands, logins of nobody, a refresh token used twice, and who has read these records.
//!
//! One stream for each tenant and day, appended to without being read. What anybody can cause without end is sampled before it comes here.

mod command;
mod event;

use std::convert::Infallible;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use command::*;
pub use event::{Action, Event, Outcome};

use crate::aggregate::{EventKind, Issued};
use crate::effect::Effect;
use crate::ids::{StreamId, TenantId};

/// The records of one tenant and day. They have no state: each stands for itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AccessRecord;

/// The stream of a tenant's records at a time (UUIDv5, RFC 9562 section 5.5, of the tenant and the day in UTC).
pub fn stream(tenant: TenantId, at: DateTime<Utc>) -> StreamId {
    StreamId::new(tenant, Uuid::new_v5(&tenant.0, format!("access {}", at.date_naive()).as_bytes()))
}

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
            Command::Note(NoteAccess { action, outcome, actor, target, code }) => {
                Ok(vec![Event::Noted { action, outcome, actor, target, code }])
            }
        }
    }

    fn effects(&self, event: &Event) -> Vec<Effect> {
        match event {
            Event::Noted { .. } => vec![],
        }
    }
}
