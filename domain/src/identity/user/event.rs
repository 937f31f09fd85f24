//! What happens to users. Stored for ever: append only, a golden file per version under `domain/tests/golden/user/`.
//!
//! Addresses, names, profiles and why somebody was suspended are personal data of the user. Secrets are named, never told: a credential by the id of its row, a link's token by the id that it is made of.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::actor::Role;
use crate::ids::{SubjectId, UserId};
use crate::personal::Personal;

/// What may be absent of what is known of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProfileField {
    /// The language they read.
    Locale,
    /// Where their clock is.
    TimeZone,
}

/// Something that has happened to a user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// Somebody made them a user.
    Registered {
        /// Where to write to them.
        email: Personal<String>,
        /// Whether the address is known to be theirs.
        email_verified: bool,
        /// What to call them.
        name: Personal<String>,
        /// What they may.
        role: Role,
    },
    /// They were asked to become one.
    Invited {
        /// Where to write to them.
        email: Personal<String>,
        /// What to call them, if that is known.
        name: Option<Personal<String>>,
        /// What they will be allowed.
        role: Role,
        /// What the link in the mail is made of.
        token: Uuid,
        /// Until when it can be accepted.
        expires_at: DateTime<Utc>,
        /// For how many hours a link is good.
        hours: u32,
        /// Who asked them, if a person did.
        invited_by: Option<UserId>,
    },
    /// They were asked again; only the new link is good.
    InvitationResent {
        /// What the new link is made of.
        token: Uuid,
        /// Until when it can be accepted.
        expires_at: DateTime<Utc>,
    },
    /// They have become a user, and the address is theirs.
    InvitationAccepted {
        /// What to call them.
        name: Personal<String>,
    },
    /// They do not want to.
    InvitationDeclined,
    /// They are no longer wanted.
    InvitationRevoked,
    /// They did not answer in time.
    InvitationExpired,
    /// A link is to show that an address is theirs.
    EmailVerificationRequested {
        /// What it is made of.
        token: Uuid,
        /// Until when it is good.
        expires_at: DateTime<Utc>,
    },
    /// The address is theirs.
    EmailVerified,
    /// They have another address, which is not known to be theirs.
    EmailChanged {
        /// The new address.
        email: Personal<String>,
    },
    /// What is known of them changed; what is not named stayed as it was.
    ProfileUpdated {
        /// What to call them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<Personal<String>>,
        /// The language they read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        locale: Option<Personal<String>>,
        /// Where their clock is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        time_zone: Option<Personal<String>>,
        /// What is known no more.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        removed: Vec<ProfileField>,
    },
    /// They may something else.
    RoleChanged {
        /// What they were.
        from: Role,
        /// What they are.
        to: Role,
    },
    /// They have a password, or another one. All sessions but one end.
    PasswordSet {
        /// Where its hash is.
        credential: Uuid,
        /// The session that goes on: the one in which it was changed.
        keeps: Option<Uuid>,
        /// Whether nobody but them can know it: they chose it by a link in a mail, or in place of one that they had chosen so.
        by_owner: bool,
    },
    /// A link is to let them set another password.
    PasswordResetRequested {
        /// What it is made of.
        token: Uuid,
        /// Until when it is good.
        expires_at: DateTime<Utc>,
        /// Whether it comes with the account, and nobody asked for it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        welcome: bool,
    },
    /// They have logged in.
    LoggedIn {
        /// The session that began.
        session: Uuid,
        /// With their password, rather than from another tenant.
        by_password: bool,
    },
    /// Somebody tried to log in as them with a wrong password.
    LoginFailed {
        /// How often in a row.
        failures: u32,
    },
    /// So many wrong passwords were tried from somewhere that no more are looked at from there for a while. The user is told, once a day at most.
    LoginAttemptsLimited {
        /// Until when.
        until: DateTime<Utc>,
    },
    /// Nobody can log in as them for a while.
    Locked {
        /// Until when.
        until: DateTime<Utc>,
    },
    /// They can log in again.
    Unlocked,
    /// They may do nothing until reactivated. All sessions end.
    Suspended {
        /// Why.
        reason: Personal<String>,
    },
    /// They can work again.
    Reactivated {
        /// How many seats more are taken by it.
        #[serde(default, skip_serializing_if = "is_zero")]
        seats: i64,
    },
    /// They have left. All sessions end.
    Deactivated,
    /// They are gone for good.
    Deleted {
        /// How many seats more are taken by it: -1, unless they had none.
        #[serde(default, skip_serializing_if = "is_zero")]
        seats: i64,
    },
    /// Nothing personal is known of them any more.
    Erased {
        /// Whose key was destroyed.
        subject: SubjectId,
    },
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(seats: &i64) -> bool {
    *seats == 0
}

crate::event_kinds!(Event:
    Registered => "user.registered" "1",
    Invited => "user.invited" "1",
    InvitationResent => "user.invitation_resent" "1",
    InvitationAccepted => "user.invitation_accepted" "1",
    InvitationDeclined => "user.invitation_declined" "1",
    InvitationRevoked => "user.invitation_revoked" "1",
    InvitationExpired => "user.invitation_expired" "1",
    EmailVerificationRequested => "user.email_verification_requested" "1",
    EmailVerified => "user.email_verified" "1",
    EmailChanged => "user.email_changed" "1",
    ProfileUpdated => "user.profile_updated" "1",
    RoleChanged => "user.role_changed" "1",
    PasswordSet => "user.password_set" "1",
    PasswordResetRequested => "user.password_reset_requested" "1",
    LoggedIn => "user.logged_in" "1",
    LoginFailed => "user.login_failed" "1",
    LoginAttemptsLimited => "user.login_attempts_limited" "1",
    Locked => "user.locked" "1",
    Unlocked => "user.unlocked" "1",
    Suspended => "user.suspended" "1",
    Reactivated => "user.reactivated" "1",
    Deactivated => "user.deactivated" "1",
    Deleted => "user.deleted" "1",
    Erased => "user.erased" "1",
);
