//! Helping people.

pub mod ticket;
pub mod ticket_statistics;
pub mod ticket_thread;

use domain::{Actor, UserId};

/// What of the tickets somebody may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Those who work on tickets: everything.
    Agent,
    /// Those who only look: everybody's tickets, but nothing internal.
    Viewer,
    /// A requester: their own tickets, but nothing internal.
    Requester(UserId),
}

impl Audience {
    /// What the actor may see, by permission.
    pub fn of(actor: &Actor) -> Self {
        match actor.user() {
            Some(user) if !actor.may("ticket:read_all") => Self::Requester(user),
            Some(_) if !actor.may("ticket:work") => Self::Viewer,
            Some(_) | None => Self::Agent,
        }
    }

    /// Whether that includes what is internal.
    pub fn sees_internal(self) -> bool {
        self == Self::Agent
    }

    /// The one whose tickets they see, if not everybody's.
    pub(crate) fn only(self) -> Option<UserId> {
        match self {
            Self::Agent | Self::Viewer => None,
            Self::Requester(user) => Some(user),
        }
    }
}
