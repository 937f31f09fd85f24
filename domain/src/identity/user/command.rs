//! What may be asked of a user, and why it may be refused.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Status;
use crate::actor::Role;
use crate::text::{DisplayName, Email, Locale, Reason, TimeZone, not_null, removable};

/// Makes somebody a user. They get a mail with a link that shows the address to be theirs; without a password they set one by a reset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterUser {
    /// Their id, if the client chooses one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    /// Where to write to them; unique in the tenant, whatever its case.
    pub email: Email,
    /// What to call them.
    pub name: DisplayName,
    /// What they may.
    pub role: Role,
    /// Whether the address is known to be theirs. Only Tenure itself says so, for an import: whoever could claim an address could be its owner elsewhere.
    #[serde(skip)]
    pub email_verified: bool,
    /// Whether they get one link by which they set a password and show the address to be theirs, instead of one that shows that alone. For the owner of a new tenant, who is
    /// waited for by nobody.
    #[serde(skip)]
    pub welcome: bool,
}

/// Asks somebody to become a user. They get a mail with a link to accept it by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InviteUser {
    /// Their id, if the client chooses one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    /// Where to write to them; unique in the tenant, whatever its case.
    pub email: Email,
    /// What to call them, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<DisplayName>,
    /// What they will be allowed.
    pub role: Role,
    /// For how many hours it can be accepted.
    #[serde(default = "week")]
    #[schema(default = 168, minimum = 1, maximum = 720)]
    pub expires_in_hours: u32,
}

fn week() -> u32 {
    168
}

/// Becomes a user; sent for whoever has the link.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AcceptInvitation {
    /// What the link was made of.
    pub token: Uuid,
    /// What to call them; needed unless the invitation says it.
    pub name: Option<DisplayName>,
    /// Where the hash of their password is.
    pub credential: Uuid,
}

/// Does not become a user; sent for whoever has the link.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeclineInvitation {
    /// What the link was made of.
    pub token: Uuid,
}

/// Shows that an address is theirs; sent for whoever has the link.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerifyEmail {
    /// What the link was made of.
    pub token: Uuid,
}

/// Gives a user another address; they get a mail with a link that shows it to be theirs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeEmail {
    /// The new address; unique in the tenant, whatever its case.
    pub email: Email,
    /// Whether whoever asks has just shown that they know the password.
    #[serde(skip)]
    pub proven: bool,
}

/// Changes what is known of a user, as a JSON merge patch (RFC 7396): what is not named stays, `null` takes away.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateProfile {
    /// What to call them; cannot be `null`.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub name: Option<DisplayName>,
    /// The language they read; `null` removes it.
    #[serde(default, deserialize_with = "removable", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Locale>)]
    pub locale: Option<Option<Locale>>,
    /// Where their clock is; `null` removes it.
    #[serde(default, deserialize_with = "removable", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<TimeZone>)]
    pub time_zone: Option<Option<TimeZone>>,
}

/// Lets a user do something else. Nobody gives what they do not have themselves, and a tenant keeps at least one org_admin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeRole {
    /// What they may from now on.
    pub role: Role,
}

/// Gives a user a password.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetPassword {
    /// Where its hash is.
    pub credential: Uuid,
    /// The session that goes on, where all others end.
    pub keeps: Option<Uuid>,
    /// Whether whoever asks has just shown that they know the password before.
    #[serde(skip)]
    pub proven: bool,
}

/// Sets another password; sent for whoever has the link.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResetPassword {
    /// What the link was made of.
    pub token: Uuid,
    /// Where the hash of the new password is.
    pub credential: Uuid,
}

/// Notes that they have logged in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecordLogin {
    /// The session that begins.
    pub session: Uuid,
    /// The credential that was checked, if one was: a password that was changed meanwhile opens nothing.
    pub credential: Option<Uuid>,
}

/// Records that a wrong password was tried on a user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecordLoginFailure {
    /// Whether it was the last one that is looked at for a while, from where it came.
    pub limited: bool,
}

/// Lets a user do nothing for the time being. All sessions end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SuspendUser {
    /// Why.
    pub reason: Reason,
}

crate::bare_commands! {
    /// Asks somebody again who was asked to become a user; only the new link is good.
    ResendInvitation
    /// Takes back that somebody was asked to become a user.
    RevokeInvitation
    /// Says that nobody has answered in time; sent by its timer.
    ExpireInvitation
    /// Sends a mail with a link that shows the address to be theirs.
    RequestEmailVerification
    /// Sends a mail with a link to set another password by.
    RequestPasswordReset
    /// Lets nobody log in as a user for 15 minutes.
    LockUser
    /// Lets a locked user log in again.
    UnlockUser
    /// Lets a suspended or deactivated user work again.
    ReactivateUser
    /// Says that a user has left; they hold no seat. All sessions end.
    DeactivateUser
    /// Deletes a user for good: the address can be used again.
    DeleteUser
    /// Deletes a user and destroys the key of their personal data.
    EraseUser
}

crate::commands! { "user":
    Register(RegisterUser) "register", "register";
    Invite(InviteUser) "invite", "invite";
    ResendInvitation(ResendInvitation) "resend_invitation", "invite";
    AcceptInvitation(AcceptInvitation) "accept_invitation", "accept_invitation";
    DeclineInvitation(DeclineInvitation) "decline_invitation", "decline_invitation";
    RevokeInvitation(RevokeInvitation) "revoke_invitation", "invite";
    ExpireInvitation(ExpireInvitation) "expire_invitation", "expire_invitation";
    RequestEmailVerification(RequestEmailVerification) "request_email_verification", "update";
    VerifyEmail(VerifyEmail) "verify_email", "verify_email";
    ChangeEmail(ChangeEmail) "change_email", "update";
    UpdateProfile(UpdateProfile) "update_profile", "update";
    ChangeRole(ChangeRole) "change_role", "change_role";
    SetPassword(SetPassword) "set_password", "update";
    RequestPasswordReset(RequestPasswordReset) "request_password_reset", "request_password_reset";
    ResetPassword(ResetPassword) "reset_password", "reset_password";
    RecordLogin(RecordLogin) "record_login", "record_login";
    RecordLoginFailure(RecordLoginFailure) "record_login_failure", "record_login";
    Lock(LockUser) "lock", "lock";
    Unlock(UnlockUser) "unlock", "lock";
    Suspend(SuspendUser) "suspend", "suspend";
    Reactivate(ReactivateUser) "reactivate", "suspend";
    Deactivate(DeactivateUser) "deactivate", "suspend";
    Delete(DeleteUser) "delete", "delete";
    Erase(EraseUser) "erase", "erase";
}

crate::errors! {
    /// Why a user refuses.
    Error {
        /// There is none, or no longer.
        NotFound: NotFound "user.not_found", "there is no such user";
        /// The id is in use.
        AlreadyExists: Conflict "user.already_exists", "a user with this id exists already";
        /// Another user of the tenant, or somebody invited, has this address.
        EmailTaken: Conflict "user.email_taken", "the address is taken by another user of the tenant";
        /// The status does not allow the command.
        NotWhile {
            /// The command's name.
            command: &'static str,
            /// The user's status.
            status: Status,
        }: Conflict "user.cannot_while", "a user who is {status} cannot {command}";
        /// The tenant would have nobody left to run it.
        LastAdmin: Conflict "user.last_admin", "a tenant keeps at least one active org_admin, the platform one super_admin";
        /// Acting on other people needs a permission.
        NotYourself: Forbidden "user.not_yourself", "acting on other users needs the permission user:manage";
        /// One's own address and password are changed by whoever knows the password.
        PasswordNeeded: Forbidden "user.password_needed", "your own address and password are changed under /v1/me, with the present password";
        /// Nobody gives or takes what they do not have.
        BeyondYou: Forbidden "user.beyond_you", "the role of this user, or the one to be given, may more than you may";
        /// super_admin is the role of the platform's own tenant, and its only one.
        WrongTenant: Invalid "user.wrong_tenant", "super_admin is the role of the platform's own tenant, and its only one";
        /// There is no such role.
        NoSuchRole: Invalid "user.no_such_role", "there is no such role";
        /// The link was used, replaced or is too old.
        LinkNotGood: Conflict "user.link_not_good", "the link was used already, was replaced by a newer one, or has expired";
        /// Nobody knows what to call them.
        NameNeeded: Invalid "user.name_needed", "a name is needed";
        /// An invitation is good for 1 hour to 30 days.
        BadExpiry: Invalid "user.bad_expiry", "an invitation is good for 1 to 720 hours";
        /// The password was changed while somebody logged in with the old one.
        PasswordChanged: Conflict "user.password_changed", "the password was changed meanwhile";
    }
    code Self::NotWhile { command, status } => format!("user.cannot_{command}_while_{status}");
}
