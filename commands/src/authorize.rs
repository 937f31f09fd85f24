//! Who may do what: each built-in role as an explicit table of permissions.

use domain::{Actor, Role, TenantId};

use crate::CommandError;

/// What an org_admin may do in their tenant. The platform keeps to itself what stops a tenant and what brings it back.
const ORG_ADMIN: &[&str] = &[
    "tenant:read",
    "tenant:rename",
    "tenant:change_slug",
    "tenant:update_settings",
    "tenant:set_llm_config",
    "tenant:set_branding",
    "tenant:cancel",
];
const SUPPORT_AGENT: &[&str] = &["tenant:read"];
const USER: &[&str] = &["tenant:read"];
const VIEWER: &[&str] = &["tenant:read"];

/// Whether the role has the permission. A super admin, who exists in the system tenant only, has all of them.
pub fn allows(role: Role, permission: &str) -> bool {
    let table = match role {
        Role::SuperAdmin => return true,
        Role::OrgAdmin => ORG_ADMIN,
        Role::SupportAgent => SUPPORT_AGENT,
        Role::User => USER,
        Role::Viewer => VIEWER,
    };
    table.contains(&permission)
}

/// Whether the actor may act for this tenant at all. Somebody else's tenant does not exist, as far as they can see.
pub fn may_enter(actor: &Actor, tenant: TenantId) -> bool {
    match actor {
        Actor::User { tenant: own, role, .. } => *own == tenant || (*own == TenantId::SYSTEM && *role == Role::SuperAdmin),
        Actor::System { .. } => true,
    }
}

/// Refuses an actor who lacks the permission.
pub fn authorize(actor: &Actor, permission: &'static str) -> Result<(), CommandError> {
    match actor {
        Actor::User { role, .. } if !allows(*role, permission) => Err(CommandError::Forbidden { permission }),
        Actor::User { .. } | Actor::System { .. } => Ok(()),
    }
}
