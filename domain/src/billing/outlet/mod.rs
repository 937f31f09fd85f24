//! The outlet: a place that a tenant does business from. It takes one of the plan's outlets as long as it exists.
//!
//! `open → removed`.

mod command;
mod event;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use command::*;
pub use event::{Event, WhatsApp};

use super::meter::{self, Meter};
use crate::aggregate::{EventKind, Issued, changed};
use crate::effect::{Claim, Effect, Refusal, Scope};

/// Phone numbers of outlets.
pub const PHONE: Claim = Claim { namespace: "outlet_phone", scope: Scope::Installation, personal: false };

/// An outlet as its events tell it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Outlet {
    /// Nothing has happened yet.
    #[default]
    Absent,
    /// There is one.
    Open(Details),
    /// There was one.
    Removed,
}

/// What is known of an outlet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Details {
    name: String,
    phone: Option<String>,
    whatsapp: Option<WhatsApp>,
}

impl Outlet {
    fn evolve(&mut self, event: Event) {
        *self = match event {
            Event::Created { name, phone, whatsapp } | Event::Updated { name, phone, whatsapp } => {
                Self::Open(Details { name, phone, whatsapp })
            }
            Event::Removed => Self::Removed,
        };
    }

    fn phone(&self) -> Option<&String> {
        match self {
            Self::Open(outlet) => outlet.phone.as_ref(),
            Self::Absent | Self::Removed => None,
        }
    }
}

impl Details {
    fn update(&self, c: UpdateOutlet) -> Vec<Event> {
        let after = Self {
            name: c.name.map_or_else(|| self.name.clone(), String::from),
            phone: c.phone.map_or_else(|| self.phone.clone(), |phone| phone.map(String::from)),
            whatsapp: c.whatsapp.map_or_else(|| self.whatsapp.clone(), |config| config.map(WhatsApp::from)),
        };
        changed(after != *self, || Event::Updated { name: after.name, phone: after.phone, whatsapp: after.whatsapp })
    }
}

crate::aggregate!(Outlet, "outlet", Command, Event, Error);

impl crate::Aggregate for Outlet {
    type Ask = Command;

    const EVENTS: &'static [EventKind] = Event::KINDS;

    const PERSONAL: bool = false;

    const METERED: &'static [(&'static str, Meter)] = &[("outlet.created", Meter::Outlets), ("outlet.removed", Meter::Outlets)];

    fn metered(event: &Event) -> i64 {
        match event {
            Event::Created { .. } => 1,
            Event::Updated { .. } => 0,
            Event::Removed => -1,
        }
    }

    fn decide(&self, Issued { command, ctx: _ }: Issued<Command>) -> Result<Vec<Event>, Error> {
        match (self, command) {
            (Self::Absent, Command::Create(c)) => {
                let (phone, whatsapp) = (c.phone.map(String::from), c.whatsapp.map(WhatsApp::from));
                Ok(vec![Event::Created { name: c.name.into(), phone, whatsapp }])
            }
            (Self::Open(_) | Self::Removed, Command::Create(_)) => Err(Error::AlreadyExists),
            (Self::Open(outlet), Command::Update(c)) => Ok(outlet.update(c)),
            (Self::Open(_), Command::Remove(_)) => Ok(vec![Event::Removed]),
            (Self::Removed, Command::Remove(_)) => Ok(vec![]),
            (Self::Absent, Command::Update(_) | Command::Remove(_)) | (Self::Removed, Command::Update(_)) => Err(Error::NotFound),
        }
    }

    fn effects(&self, event: &Event) -> Vec<Effect> {
        let label = || "phone".to_owned();
        let counted = meter::count(Meter::Outlets, Self::metered(event));
        let call = |phone: &Option<String>| match phone {
            Some(phone) if self.phone() != Some(phone) => {
                Some(Effect::TakeClaim { claim: PHONE, label: label(), value: Some(phone.clone()) })
            }
            None if self.phone().is_some() => Some(Effect::ReleaseClaim { claim: PHONE, label: label() }),
            Some(_) | None => None,
        };
        match event {
            Event::Created { phone, .. } | Event::Updated { phone, .. } => counted.into_iter().chain(call(phone)).collect(),
            Event::Removed => counted.into_iter().chain(call(&None)).collect(),
        }
    }

    fn refused(refusal: &Refusal) -> Option<Error> {
        matches!(refusal, Refusal::ClaimTaken { namespace } if namespace == PHONE.namespace).then_some(Error::PhoneTaken)
    }
}
