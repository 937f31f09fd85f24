//! Refusing those who may not.

use domain::{Actor, Role, TenantId};

use crate::CommandError;

/// Whether the actor may act for this tenant at all. Somebody else's tenant does not exist, as far as they can see.
pub fn may_enter(actor: &Actor, tenant: TenantId) -> bool {
    match actor {
        Actor::User { tenant: own, role, .. } => *own == tenant || (*own == TenantId::SYSTEM && *role == Role::SuperAdmin),
        Actor::Service { tenant: own, .. } => *own == tenant || *own == TenantId::SYSTEM,
        Actor::Device { tenant: own, .. } => *own == tenant,
        Actor::System { .. } => true,
    }
}

/// Refuses an actor who lacks the permission.
pub fn authorize(actor: &Actor, permission: &'static str) -> Result<(), CommandError> {
    if actor.may(permission) { Ok(()) } else { Err(CommandError::Forbidden { permission }) }
}
