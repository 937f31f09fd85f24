//! What may be asked of a role, and why it may be refused.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::text::{Permission, line};

crate::text_types! {
    /// What a role is called.
    RoleName { max: 60, example: "Dispatcher", parse: |t| line(t, 60) }
}

/// Defines a role of the tenant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DefineRole {
    /// Its id, if the client chooses one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    /// What it is called; unique in the tenant, whatever its case.
    pub name: RoleName,
    /// What somebody in it may.
    #[schema(example = json!(["ticket:read", "ticket:read_all", "ticket:assign"]))]
    pub permissions: BTreeSet<Permission>,
}

/// Calls a role something else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenameRole {
    /// What it is called.
    pub name: RoleName,
}

/// Lets those in a role do something else, within a second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangePermissions {
    /// What somebody in it may.
    #[schema(example = json!(["ticket:read", "ticket:read_all"]))]
    pub permissions: BTreeSet<Permission>,
}

crate::bare_commands! {
    /// Deletes a role that nobody has.
    DeleteRole
}

crate::commands! { "role":
    Define(DefineRole) "define", "define";
    Rename(RenameRole) "rename", "define";
    ChangePermissions(ChangePermissions) "change_permissions", "define";
    Delete(DeleteRole) "delete", "delete";
}

crate::errors! {
    /// Why a role refuses.
    Error {
        /// There is none, or no longer.
        NotFound: NotFound "role.not_found", "there is no such role";
        /// The id is in use.
        AlreadyExists: Conflict "role.already_exists", "a role with this id exists already";
        /// Another role has this name.
        NameTaken: Conflict "role.name_taken", "another role of the tenant has this name";
        /// Somebody has it.
        InUse: Conflict "role.in_use", "somebody has this role; give them another one first";
        /// No such permission can be given.
        NoSuchPermission {
            /// Which.
            permission: String,
        }: Invalid "role.no_such_permission", "there is no permission {permission}";
        /// Nobody gives what they do not have.
        BeyondYou {
            /// Which permission.
            permission: String,
        }: Forbidden "role.beyond_you", "you cannot give or take {permission}, which you do not have";
        /// The platform's own tenant has one role.
        NotHere: Invalid "role.not_here", "the platform's own tenant has no roles but super_admin";
    }
}
