//! What happens to devices. Stored for ever: append only, a golden file per version under `domain/tests/golden/device/`.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

/// What became of a command on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was not.
    Failed,
}

/// Something that has happened to a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// It is expected, and will claim itself.
    Preregistered {
        /// What its maker calls it.
        serial: String,
        /// What kind of device it is.
        model: String,
        /// Whatever else is known of it.
        #[serde(deserialize_with = "crate::json::stored")]
        metadata: Value,
        /// SHA-256 of the code that it will show.
        claim_digest: String,
    },
    /// It wants to be accepted.
    Registered {
        /// What its maker calls it.
        serial: String,
        /// What kind of device it is.
        model: String,
        /// Whatever else is known of it.
        #[serde(deserialize_with = "crate::json::stored")]
        metadata: Value,
        /// Where the hash of its secret is.
        credential: Uuid,
    },
    /// It has shown its code, and wants to be accepted.
    Claimed {
        /// Where the hash of its secret is.
        credential: Uuid,
    },
    /// It works, and takes one of the plan's devices.
    Accepted,
    /// It was not accepted.
    Rejected {
        /// Why.
        reason: String,
    },
    /// It is looked at once more.
    Reconsidered,
    /// It works again.
    Enabled,
    /// It does not work for now.
    Disabled,
    /// Something is wrong with it.
    Quarantined {
        /// What.
        reason: String,
    },
    /// It is gone for good.
    Decommissioned {
        /// How many of the plan's devices it gives back: 1, unless it was never accepted.
        released: u8,
    },
    /// What is known of it has changed.
    MetadataUpdated {
        /// How (RFC 7396).
        #[serde(deserialize_with = "crate::json::stored")]
        patch: Value,
    },
    /// It is found under a word.
    Tagged {
        /// Which.
        tag: String,
    },
    /// It is not any more.
    Untagged {
        /// Which.
        tag: String,
    },
    /// It belongs to a group, or to none any more.
    GroupAssigned {
        /// Which.
        group: Option<String>,
    },
    /// It has another secret.
    CredentialRotated {
        /// Where its hash is.
        credential: Uuid,
        /// Until when the old one is good too.
        previous_until: DateTime<Utc>,
    },
    /// Its secrets open nothing any more.
    CredentialRevoked,
    /// It should be otherwise.
    DesiredStateSet {
        /// How (RFC 7396).
        #[serde(deserialize_with = "crate::json::stored")]
        patch: Value,
        /// The how-manieth wish it is.
        version: i64,
    },
    /// It is otherwise.
    StateReported {
        /// How (RFC 7396).
        #[serde(deserialize_with = "crate::json::stored")]
        patch: Value,
        /// The how-manieth report it is, by the device's own count.
        seq: i64,
    },
    /// It should do something.
    CommandSent {
        /// The command's id.
        command: Uuid,
        /// What.
        method: String,
        /// With what.
        #[serde(deserialize_with = "crate::json::stored")]
        params: Value,
        /// Until when.
        expires_at: DateTime<Utc>,
    },
    /// It has done it, or could not.
    CommandAcknowledged {
        /// Which.
        command: Uuid,
        /// Whether it was done.
        outcome: Outcome,
        /// What it has to say of it.
        #[serde(deserialize_with = "crate::json::stored")]
        result: Value,
    },
    /// It has not done it in time.
    CommandExpired {
        /// Which.
        command: Uuid,
    },
}

crate::event_kinds!(Event:
    Preregistered => "device.preregistered" "1",
    Registered => "device.registered" "1",
    Claimed => "device.claimed" "1",
    Accepted => "device.accepted" "1",
    Rejected => "device.rejected" "1",
    Reconsidered => "device.reconsidered" "1",
    Enabled => "device.enabled" "1",
    Disabled => "device.disabled" "1",
    Quarantined => "device.quarantined" "1",
    Decommissioned => "device.decommissioned" "1",
    MetadataUpdated => "device.metadata_updated" "1",
    Tagged => "device.tagged" "1",
    Untagged => "device.untagged" "1",
    GroupAssigned => "device.group_assigned" "1",
    CredentialRotated => "device.credential_rotated" "1",
    CredentialRevoked => "device.credential_revoked" "1",
    DesiredStateSet => "device.desired_state_set" "1",
    StateReported => "device.state_reported" "1",
    CommandSent => "device.command_sent" "1",
    CommandAcknowledged => "device.command_acknowledged" "1",
    CommandExpired => "device.command_expired" "1",
);
