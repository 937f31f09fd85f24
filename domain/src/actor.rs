//! Who acts, and what each role may do: explicit tables of permissions, `<resource>:<action>`.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{RefOr, Schema};
use uuid::Uuid;

use crate::ids::{RoleId, TenantId, UserId};

/// A role: a built-in one, or one that a tenant has defined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Role {
    /// Runs the platform; exists in the system tenant only.
    SuperAdmin,
    /// Runs a tenant.
    OrgAdmin,
    /// Looks after what a tenant pays.
    BillingAdmin,
    /// Works on tickets.
    SupportAgent,
    /// Uses the product.
    User,
    /// May look, not touch.
    Viewer,
    /// One that the tenant has defined: a named set of permissions.
    Custom(RoleId),
}

impl utoipa::PartialSchema for Role {
    fn schema() -> RefOr<Schema> {
        let schema = ObjectBuilder::new().schema_type(Type::String).examples(["support_agent"]);
        schema.description(Some("A built-in role, or the id of one that the tenant has defined.")).build().into()
    }
}

impl utoipa::ToSchema for Role {}

/// The text is neither a built-in role nor the id of one that a tenant has defined.
#[derive(Debug, thiserror::Error)]
#[error("a role is super_admin, org_admin (or admin), billing_admin, support_agent (or agent), user, viewer, or the id of a custom one")]
pub struct UnknownRole;

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        match text {
            "super_admin" => Ok(Self::SuperAdmin),
            "org_admin" | "admin" => Ok(Self::OrgAdmin),
            "billing_admin" => Ok(Self::BillingAdmin),
            "support_agent" | "agent" => Ok(Self::SupportAgent),
            "user" => Ok(Self::User),
            "viewer" => Ok(Self::Viewer),
            id => id.parse().map(Self::Custom).map_err(|_| UnknownRole),
        }
    }
}

impl TryFrom<String> for Role {
    type Error = UnknownRole;

    fn try_from(text: String) -> Result<Self, UnknownRole> {
        text.parse()
    }
}

impl From<Role> for String {
    fn from(role: Role) -> Self {
        role.to_string()
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SuperAdmin => "super_admin",
            Self::OrgAdmin => "org_admin",
            Self::BillingAdmin => "billing_admin",
            Self::SupportAgent => "support_agent",
            Self::User => "user",
            Self::Viewer => "viewer",
            Self::Custom(id) => return id.fmt(f),
        })
    }
}

/// A set of permissions.
pub type Permissions = Arc<BTreeSet<String>>;

/// What somebody may beyond or instead of what their role says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Grants {
    /// What the table of the built-in role says.
    #[default]
    OfRole,
    /// Exactly this: a custom role, or the scopes of an API key.
    Only(Permissions),
}

impl Grants {
    /// What somebody in a role may that a tenant has defined: what it says, and what everybody may who belongs to a tenant.
    pub fn of_custom(permissions: &Permissions) -> Self {
        Self::Only(Arc::new(permissions.iter().cloned().chain(MEMBER.iter().map(|permission| (*permission).to_owned())).collect()))
    }

    /// Whether these, for this role, include the permission.
    pub fn allow(&self, role: Role, permission: &str) -> bool {
        match self {
            Self::OfRole => role.allows(permission),
            Self::Only(permissions) => permissions.contains(permission),
        }
    }
}

/// Who acts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Actor {
    /// A person, with a token or with an API key of theirs.
    User {
        /// The token's subject.
        id: String,
        /// The token's tenant, which for a platform super admin is not the tenant acted upon.
        tenant: TenantId,
        /// Their role.
        role: Role,
        /// The API key that they used, if it was one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<Uuid>,
        /// What they may; not recorded.
        #[serde(skip)]
        grants: Grants,
    },
    /// A program, with an API key that belongs to nobody in particular.
    Service {
        /// The key.
        key: Uuid,
        /// The key's tenant.
        tenant: TenantId,
        /// What it may; not recorded.
        #[serde(skip)]
        grants: Permissions,
    },
    /// A device, with its own credential.
    Device {
        /// The device.
        id: Uuid,
        /// Its tenant.
        tenant: TenantId,
    },
    /// Tenure itself: a timer, a policy.
    System {
        /// Which part of it.
        name: String,
    },
}

/// What everybody may who belongs to a tenant: their own account, their own keys.
const MEMBER: &[&str] = &["tenant:read", "plan:read", "quota:read", "user:update", "api_key:create", "api_key:read"];

/// What an org_admin may do in their tenant. The platform keeps to itself what stops a tenant and what brings it back.
const ORG_ADMIN: &[&str] = &[
    "tenant:rename",
    "tenant:change_slug",
    "tenant:update_settings",
    "tenant:set_llm_config",
    "tenant:set_branding",
    "tenant:manage_domains",
    "tenant:cancel",
    // With its subscription a tenant ends.
    "subscription:cancel",
    "user:register",
    "user:invite",
    "user:manage",
    "user:change_role",
    "user:lock",
    "user:suspend",
    "user:delete",
    "user:erase",
    "session:read",
    "session:revoke",
    "role:define",
    "role:delete",
    "api_key:create_service",
    "api_key:manage",
    "token:introspect",
    "access_record:read",
    "delivery:read",
    "delivery:retry",
    "usage:record",
    "usage:reserve",
    "outlet:create",
    "outlet:update",
    "outlet:remove",
    "device:register",
    "device:accept",
    "device:manage",
    "device:manage_credential",
    "device:control",
];

/// What those may who look after what a tenant works with without running it.
const ASSETS: &[&str] = &["outlet:read", "device:read"];

/// What a device may: of itself only.
const DEVICE: &[&str] = &["device:claim", "device:report", "device:read_own"];

/// What those may who look after what a tenant pays.
const BILLING: &[&str] = &["subscription:read", "subscription:start", "subscription:change", "subscription:set_up_payment"];

/// What those may who look after people without running the tenant: who there is, and in which role.
const PEOPLE: &[&str] = &["user:read", "role:read"];

/// What those may who work on tickets; `ticket:work` shows them what is internal and lets them act on everybody's.
const SUPPORT_AGENT: &[&str] = &[
    "ticket:work",
    "ticket:read",
    "ticket:read_all",
    "ticket:report",
    "ticket:open",
    "ticket:edit",
    "ticket:comment",
    "ticket:redact_comment",
    "ticket:assign",
    "ticket:change_priority",
    "ticket:change_status",
    "ticket:resolve",
    "ticket:close",
    "ticket:reopen",
    "ticket:delete",
    "ticket:link",
    "ticket:tag",
    "ticket:attach",
    "ticket:detach",
    "ticket:follow",
];

/// What somebody may who uses the product: all of it on their own tickets only.
const USER: &[&str] = &["ticket:read", "ticket:open", "ticket:edit", "ticket:comment", "ticket:resolve", "ticket:reopen", "ticket:attach"];

/// What somebody may who only looks: everybody's tickets, but nothing internal.
const VIEWER: &[&str] = &["ticket:read", "ticket:read_all", "ticket:report"];

impl Role {
    /// The built-in ones.
    pub const BUILT_IN: [Self; 6] = [Self::SuperAdmin, Self::OrgAdmin, Self::BillingAdmin, Self::SupportAgent, Self::User, Self::Viewer];

    /// The tables of a built-in role. A super admin has all permissions of a tenant, and those that no table names.
    fn tables(self) -> &'static [&'static [&'static str]] {
        match self {
            Self::SuperAdmin | Self::OrgAdmin => &[MEMBER, ORG_ADMIN, BILLING, PEOPLE, ASSETS, SUPPORT_AGENT],
            Self::BillingAdmin => &[MEMBER, BILLING, PEOPLE],
            Self::SupportAgent => &[MEMBER, PEOPLE, ASSETS, SUPPORT_AGENT],
            Self::User => &[MEMBER, USER],
            Self::Viewer => &[MEMBER, ASSETS, VIEWER],
            Self::Custom(_) => &[],
        }
    }

    /// The permissions of a built-in role, as far as tables name them.
    pub fn permissions(self) -> impl Iterator<Item = &'static str> {
        self.tables().iter().flat_map(|table| table.iter().copied())
    }

    /// Whether a built-in role has the permission. A super admin, who exists in the system tenant only, has all of them; what a custom one has is looked up.
    pub fn allows(self, permission: &str) -> bool {
        self == Self::SuperAdmin || self.permissions().any(|has| has == permission)
    }

    /// Which one of the tenant's own it is, if it is one.
    pub fn custom(self) -> Option<RoleId> {
        if let Self::Custom(id) = self { Some(id) } else { None }
    }

    /// Whether it runs its tenant: of those, each tenant keeps at least one.
    pub fn is_admin(self) -> bool {
        matches!(self, Self::SuperAdmin | Self::OrgAdmin)
    }

    /// Whether somebody in it may be among those who work on tickets; of a custom role nobody knows without looking.
    pub fn may_work(self) -> bool {
        matches!(self, Self::Custom(_)) || (self != Self::SuperAdmin && self.allows("ticket:work"))
    }
}

/// All permissions that a tenant can give to its own roles and keys.
pub fn grantable() -> BTreeSet<&'static str> {
    Role::BUILT_IN.into_iter().flat_map(Role::permissions).collect()
}

impl Actor {
    /// Somebody with a built-in role.
    pub fn person(id: impl Into<String>, tenant: TenantId, role: Role) -> Self {
        Self::User { id: id.into(), tenant, role, key: None, grants: Grants::OfRole }
    }

    /// A part of Tenure itself.
    pub fn system(name: &str) -> Self {
        Self::System { name: name.to_owned() }
    }

    /// Whether the actor has the permission. Tenure itself has all of them.
    pub fn may(&self, permission: &str) -> bool {
        match self {
            Self::User { role, grants, .. } => grants.allow(*role, permission),
            Self::Service { grants, .. } => grants.contains(permission),
            Self::Device { .. } => DEVICE.contains(&permission),
            Self::System { .. } => true,
        }
    }

    /// Whether the actor has all that a role has, whose permissions these are if it is a custom one: nobody gives or takes what they do not have.
    pub fn covers(&self, role: Role, custom: Option<&Permissions>) -> bool {
        match role {
            Role::SuperAdmin => {
                matches!(self, Self::System { .. } | Self::User { role: Role::SuperAdmin, grants: Grants::OfRole, .. })
            }
            Role::Custom(_) => custom.is_some_and(|custom| match Grants::of_custom(custom) {
                Grants::Only(permissions) => permissions.iter().all(|permission| self.may(permission)),
                Grants::OfRole => false,
            }),
            Role::OrgAdmin | Role::BillingAdmin | Role::SupportAgent | Role::User | Role::Viewer => {
                role.permissions().all(|permission| self.may(permission))
            }
        }
    }

    /// Whose the actor is; Tenure itself belongs to nobody.
    pub fn tenant(&self) -> Option<TenantId> {
        match self {
            Self::User { tenant, .. } | Self::Service { tenant, .. } | Self::Device { tenant, .. } => Some(*tenant),
            Self::System { .. } => None,
        }
    }

    /// Who acts, in one word: a user's id, a key's id, a part of Tenure.
    pub fn name(&self) -> String {
        match self {
            Self::User { id, .. } => id.clone(),
            Self::Service { key, .. } => key.to_string(),
            Self::Device { id, .. } => id.to_string(),
            Self::System { name } => name.clone(),
        }
    }

    /// The user who acts, if it is one; a service's key acts for itself, whatever id somebody chose for it. A token whose subject is no UUID, as development tokens have, stands for the same user every time
    /// (UUIDv5, RFC 9562 section 5.5).
    pub fn user(&self) -> Option<UserId> {
        match self {
            Self::User { id, tenant, .. } => Some(UserId(id.parse().unwrap_or_else(|_| Uuid::new_v5(&tenant.0, id.as_bytes())))),
            Self::Service { key, .. } => Some(UserId(Uuid::new_v5(key, b"service"))),
            Self::Device { .. } | Self::System { .. } => None,
        }
    }
}
