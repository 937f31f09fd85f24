//! The role: a named set of permissions that a tenant has defined for itself. Nobody puts into one what they do not have; one that somebody has cannot be deleted.

mod command;
mod event;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use command::*;
pub use event::Event;

use super::user::ROLE_USERS;
use crate::actor::{Permissions, grantable};
use crate::aggregate::{Context, EventKind, Issued, changed};
use crate::effect::{Claim, CounterName, Effect, Precondition, Refusal, Scope};
use crate::ids::{StreamId, TenantId};
use crate::text::Permission;

/// The name of a role, whatever its case: unique in the tenant.
pub const NAME: Claim = Claim { namespace: "role_name", scope: Scope::Tenant, personal: false };

/// A role as its events tell it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Role {
    /// Nothing has happened yet.
    #[default]
    Absent,
    /// It exists.
    Defined {
        /// What it is called.
        name: String,
        /// What somebody in it may.
        permissions: Permissions,
    },
    /// It is gone.
    Deleted,
}

impl Role {
    /// What somebody in it may, if it exists.
    pub fn permissions(&self) -> Option<&Permissions> {
        match self {
            Self::Defined { permissions, .. } => Some(permissions),
            Self::Absent | Self::Deleted => None,
        }
    }

    fn evolve(&mut self, event: Event) {
        *self = match (std::mem::take(self), event) {
            (_, Event::Defined { name, permissions }) => Self::Defined { name, permissions: Arc::new(permissions) },
            (Self::Defined { permissions, .. }, Event::Renamed { name }) => Self::Defined { name, permissions },
            (Self::Defined { name, .. }, Event::PermissionsChanged { permissions }) => {
                Self::Defined { name, permissions: Arc::new(permissions) }
            }
            (_, Event::Deleted) => Self::Deleted,
            (state @ (Self::Absent | Self::Deleted), Event::Renamed { .. } | Event::PermissionsChanged { .. }) => state,
        };
    }
}

/// The permissions, if all of them exist and the actor has them too.
fn may_give(permissions: BTreeSet<Permission>, ctx: &Context) -> Result<BTreeSet<String>, Error> {
    let permissions: BTreeSet<String> = permissions.into_iter().map(String::from).collect();
    has_all(&permissions, ctx)?;
    Ok(permissions)
}

/// Refuses permissions that do not exist, or that the actor lacks.
fn has_all(permissions: &BTreeSet<String>, ctx: &Context) -> Result<(), Error> {
    let known = grantable();
    if let Some(unknown) = permissions.iter().find(|permission| !known.contains(permission.as_str())) {
        return Err(Error::NoSuchPermission { permission: unknown.clone() });
    }
    match permissions.iter().find(|permission| !ctx.actor.may(permission)) {
        Some(permission) => Err(Error::BeyondYou { permission: permission.clone() }),
        None => Ok(()),
    }
}

crate::aggregate!(Role, "role", Command, Event, Error);

impl crate::Aggregate for Role {
    type Ask = Command;

    const EVENTS: &'static [EventKind] = Event::KINDS;

    fn decide(&self, Issued { command, ctx }: Issued<Command>) -> Result<Vec<Event>, Error> {
        match (self, command) {
            // The platform has one role.
            (Self::Absent, Command::Define(_)) if ctx.stream.tenant == TenantId::SYSTEM => Err(Error::NotHere),
            (Self::Absent, Command::Define(c)) => {
                Ok(vec![Event::Defined { name: c.name.into(), permissions: may_give(c.permissions, &ctx)? }])
            }
            (Self::Defined { .. } | Self::Deleted, Command::Define(_)) => Err(Error::AlreadyExists),
            (Self::Defined { name, .. }, Command::Rename(c)) => {
                Ok(changed(name != c.name.as_str(), || Event::Renamed { name: c.name.into() }))
            }
            (Self::Defined { permissions, .. }, Command::ChangePermissions(c))
                if permissions.iter().eq(c.permissions.iter().map(Permission::as_str)) =>
            {
                Ok(vec![])
            }
            (Self::Defined { permissions, .. }, Command::ChangePermissions(c)) => {
                has_all(permissions, &ctx)?;
                Ok(vec![Event::PermissionsChanged { permissions: may_give(c.permissions, &ctx)? }])
            }
            (Self::Defined { .. }, Command::Delete(_)) => Ok(vec![Event::Deleted]),
            (Self::Deleted, Command::Delete(_)) => Ok(vec![]),
            (Self::Absent | Self::Deleted, Command::Rename(_) | Command::ChangePermissions(_) | Command::Delete(_)) => Err(Error::NotFound),
        }
    }

    fn effects(&self, event: &Event) -> Vec<Effect> {
        let label = || "name".to_owned();
        match event {
            Event::Defined { name, .. } | Event::Renamed { name } => {
                vec![Effect::TakeClaim { claim: NAME, label: label(), value: Some(name.to_lowercase()) }]
            }
            Event::PermissionsChanged { .. } => vec![],
            Event::Deleted => vec![Effect::ReleaseClaim { claim: NAME, label: label() }],
        }
    }

    fn requires(event: &Event, stream: StreamId) -> Vec<Precondition> {
        match event {
            Event::Deleted => {
                vec![Precondition::CounterWithin { counter: CounterName::of(ROLE_USERS, stream.id), at_least: None, at_most: Some(0) }]
            }
            Event::Defined { .. } | Event::Renamed { .. } | Event::PermissionsChanged { .. } => vec![],
        }
    }

    fn refused(refusal: &Refusal) -> Option<Error> {
        match refusal {
            Refusal::ClaimTaken { .. } => Some(Error::NameTaken),
            Refusal::CounterOutOfBounds { .. } => Some(Error::InUse),
            Refusal::ClaimNotHeld { .. }
            | Refusal::GateClosed { .. }
            | Refusal::NoSuchTenant { .. }
            | Refusal::TimerNotSet { .. }
            | Refusal::SubjectErased { .. }
            | Refusal::TooLarge { .. }
            | Refusal::StreamMoved { .. }
            | Refusal::NoSuchStream { .. } => None,
        }
    }
}
