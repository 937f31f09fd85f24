//! What happens to API keys. Stored for ever: append only, a golden file per version under `domain/tests/golden/api_key/`.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Kind;
use crate::ids::UserId;

/// Something that has happened to a key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// It exists.
    Created {
        /// What it is called.
        name: String,
        /// How it begins.
        prefix: String,
        /// Whose it is.
        kind: Kind,
        /// Who made it.
        owner: Option<UserId>,
        /// What it may.
        scopes: BTreeSet<String>,
        /// Until when it is good.
        expires_at: Option<DateTime<Utc>>,
        /// Where the hash of its secret is.
        secret: Uuid,
    },
    /// It has another secret.
    Rotated {
        /// Where its hash is.
        secret: Uuid,
        /// How the key begins from now on.
        prefix: String,
        /// Until when the old one is good too.
        previous_until: DateTime<Utc>,
    },
    /// It opens nothing any more.
    Revoked,
}

crate::event_kinds!(Event:
    Created => "api_key.created" "1",
    Rotated => "api_key.rotated" "1",
    Revoked => "api_key.revoked" "1",
);
