//! What may be asked of an API key, and why it may be refused.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Kind;
use crate::instant::Instant;
use crate::text::{DisplayName, Permission, Reference};

/// Makes a key whose secret was drawn already.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CreateKey {
    /// What it is called.
    pub name: DisplayName,
    /// How it begins, so that its owner recognises it.
    pub prefix: Reference,
    /// Whose it is.
    pub kind: Kind,
    /// What it may.
    pub scopes: BTreeSet<Permission>,
    /// Until when it is good; for ever, if nothing is said.
    pub expires_at: Option<Instant>,
    /// Where the hash of its secret is.
    pub secret: Uuid,
}

/// Gives a key another secret, which was drawn already. The old one is good for a while.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RotateKey {
    /// Where the hash of the new secret is.
    pub secret: Uuid,
    /// How the key begins from now on.
    pub prefix: Reference,
    /// For how many seconds the old secret is good beside it.
    pub grace_seconds: u32,
}

crate::bare_commands! {
    /// Ends a key: within a second it opens nothing in any process.
    RevokeKey
}

crate::commands! { "api_key":
    Create(CreateKey) "create", "create";
    Rotate(RotateKey) "rotate", "create";
    Revoke(RevokeKey) "revoke", "create";
}

crate::errors! {
    /// Why a key refuses.
    Error {
        /// There is none, or none that the caller may see.
        NotFound: NotFound "api_key.not_found", "there is no such key";
        /// The id is in use.
        AlreadyExists: Conflict "api_key.already_exists", "a key with this id exists already";
        /// It was revoked or has expired.
        NotLive: Conflict "api_key.not_live", "the key was revoked or has expired";
        /// No such permission can be given.
        NoSuchScope {
            /// Which.
            scope: String,
        }: Invalid "api_key.no_such_scope", "there is no permission {scope}";
        /// Nobody gives what they do not have.
        BeyondYou {
            /// Which permission.
            scope: String,
        }: Forbidden "api_key.beyond_you", "you cannot give {scope}, which you do not have";
        /// Keys of programs are for those who run the tenant.
        ServiceKeysOnly: Forbidden "api_key.service", "making keys of programs needs the permission api_key:create_service";
        /// Keys are made by people who have logged in; a personal one by somebody of the tenant.
        PeopleOnly: Forbidden "api_key.people_only", "a key is made by a person, not by another key, and a personal one by a person of the tenant";
        /// It would be good for nothing.
        ExpiresInThePast: Invalid "api_key.expires_in_the_past", "the key would have expired already";
        /// An old secret lives 7 days at most.
        GraceTooLong: Invalid "api_key.grace_too_long", "the old secret can be good for 7 days at most";
    }
}
