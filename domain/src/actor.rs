//! Who acts, and what each built-in role may do: explicit tables of permissions, `<resource>:<action>`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::ids::{TenantId, UserId};

/// A built-in role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Runs the platform; exists in the system tenant only.
    SuperAdmin,
    /// Runs a tenant.
    #[serde(alias = "admin")]
    OrgAdmin,
    /// Works on tickets.
    #[serde(alias = "agent")]
    SupportAgent,
    /// Uses the product.
    User,
    /// May look, not touch.
    Viewer,
}

impl FromStr for Role {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_json::from_value(Value::String(text.to_owned()))
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SuperAdmin => "super_admin",
            Self::OrgAdmin => "org_admin",
            Self::SupportAgent => "support_agent",
            Self::User => "user",
            Self::Viewer => "viewer",
        })
    }
}

/// Who acts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Actor {
    /// Somebody with a token.
    User {
        /// The token's subject.
        id: String,
        /// The tenant the token is for, which for a platform super admin is not the tenant acted upon.
        tenant: TenantId,
        /// The role the token carries.
        role: Role,
    },
    /// Tenure itself: a timer, a policy.
    System {
        /// Which part of it.
        name: String,
    },
}

/// What everybody may who belongs to a tenant.
const MEMBER: &[&str] = &["tenant:read"];

/// What an org_admin may do in their tenant. The platform keeps to itself what stops a tenant and what brings it back.
const ORG_ADMIN: &[&str] =
    &["tenant:rename", "tenant:change_slug", "tenant:update_settings", "tenant:set_llm_config", "tenant:set_branding", "tenant:cancel"];

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
    /// Whether the role has the permission. A super admin, who exists in the system tenant only, has all of them.
    pub fn allows(self, permission: &str) -> bool {
        let table: &[&[&str]] = match self {
            Self::SuperAdmin => return true,
            Self::OrgAdmin => &[MEMBER, ORG_ADMIN, SUPPORT_AGENT],
            Self::SupportAgent => &[MEMBER, SUPPORT_AGENT],
            Self::User => &[MEMBER, USER],
            Self::Viewer => &[MEMBER, VIEWER],
        };
        table.iter().any(|permissions| permissions.contains(&permission))
    }
}

impl Actor {
    /// Whether the actor has the permission. Tenure itself has all of them.
    pub fn may(&self, permission: &str) -> bool {
        match self {
            Self::User { role, .. } => role.allows(permission),
            Self::System { .. } => true,
        }
    }

    /// The user who acts, if it is one. A token whose subject is no UUID, as development tokens have, stands for the same user every time (UUIDv5, RFC 9562 section 5.5).
    pub fn user(&self) -> Option<UserId> {
        match self {
            Self::User { id, tenant, .. } => Some(UserId(id.parse().unwrap_or_else(|_| Uuid::new_v5(&tenant.0, id.as_bytes())))),
            Self::System { .. } => None,
        }
    }
}
