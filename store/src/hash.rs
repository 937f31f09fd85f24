//! Digests and chains.
//!
//! * `digest` = SHA-256 over the event's fields, each preceded by its length in bytes as a 64-bit big-endian number: `event_id`, `tenant_id` (16 bytes each),
//!   `aggregate_type`, `aggregate_id`, `sequence` (decimal), `event_type`, `event_version`, `payload`, `metadata` (their exact bytes), `recorded_at` (microseconds
//!   since 1970 UTC, decimal). The position is left out: it is covered by the log chain.
//! * `tenant_hash` = SHA-256(previous `tenant_hash` of the tenant ‖ `digest`)
//! * `log_hash` = SHA-256(previous `log_hash` ‖ position as 64-bit big-endian ‖ `digest`)
//!
//! Before the first event both are 32 zero bytes.

use std::fmt;

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// A SHA-256 value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// Before the first event.
    pub const ZERO: Self = Self([0; 32]);

    /// From 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).ok().map(|()| Self(bytes))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A hash as hexadecimal digits, for `#[serde(with = …)]`.
pub mod as_text {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    use super::Hash;

    /// Writes it.
    pub fn serialize<S: Serializer>(hash: &Hash, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(hash)
    }

    /// Reads it.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Hash, D::Error> {
        Hash::from_hex(&String::deserialize(deserializer)?).ok_or_else(|| D::Error::custom("not 64 hexadecimal digits"))
    }
}

/// What a digest covers.
pub struct Digested<'a> {
    /// The event's id.
    pub event_id: Uuid,
    /// Its tenant.
    pub tenant_id: Uuid,
    /// Its aggregate's type.
    pub aggregate_type: &'a str,
    /// Its stream.
    pub aggregate_id: &'a str,
    /// Its version in the stream.
    pub sequence: i64,
    /// Its type.
    pub event_type: &'a str,
    /// The version of its type.
    pub event_version: &'a str,
    /// Its exact payload.
    pub payload: &'a str,
    /// Its exact metadata.
    pub metadata: &'a str,
    /// When it was recorded.
    pub recorded_at: DateTime<Utc>,
}

/// The digest of one event.
pub fn digest(e: &Digested<'_>) -> Hash {
    let mut sha = Sha256::new();
    for field in [
        e.event_id.as_bytes().as_slice(),
        e.tenant_id.as_bytes(),
        e.aggregate_type.as_bytes(),
        e.aggregate_id.as_bytes(),
        e.sequence.to_string().as_bytes(),
        e.event_type.as_bytes(),
        e.event_version.as_bytes(),
        e.payload.as_bytes(),
        e.metadata.as_bytes(),
        e.recorded_at.timestamp_micros().to_string().as_bytes(),
    ] {
        sha.update((field.len() as u64).to_be_bytes());
        sha.update(field);
    }
    Hash(sha.finalize().into())
}

/// The next link of a tenant's chain.
pub fn tenant_link(previous: Hash, digest: Hash) -> Hash {
    Hash(Sha256::new().chain_update(previous.0).chain_update(digest.0).finalize().into())
}

/// The next link of the log's chain.
pub fn log_link(previous: Hash, position: i64, digest: Hash) -> Hash {
    Hash(Sha256::new().chain_update(previous.0).chain_update(position.to_be_bytes()).chain_update(digest.0).finalize().into())
}
