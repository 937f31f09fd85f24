//! Events as they are stored, and as rules and folds see them.

use std::any::Any;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use chrono::{DateTime, Utc};
use domain::{Actor, Effect, StreamId, SubjectId, TenantId};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sqlx::FromRow;
use uuid::Uuid;

use crate::Head;
use crate::hash::{Digested, Hash, digest, log_link};
use crate::load::{LoadError, unknown_metadata};
use crate::seal::Place;

/// One row of the log, its JSON as the exact text that was hashed.
#[derive(Clone, Debug, PartialEq)]
pub struct RawEvent {
    /// Its place in the log.
    pub position: i64,
    /// Its own id.
    pub event_id: Uuid,
    /// Whose it is.
    pub tenant_id: Uuid,
    /// `tenant`, `ticket`, …
    pub aggregate_type: String,
    /// `<tenant uuid>/<id>`.
    pub aggregate_id: String,
    /// Its version in the stream, from 1.
    pub sequence: i64,
    /// `tenant.renamed`, …
    pub event_type: String,
    /// The version of its type.
    pub event_version: String,
    /// What happened, personal data sealed.
    pub payload: String,
    /// Who, why: see [`Metadata`].
    pub metadata: String,
    /// When it was recorded.
    pub recorded_at: DateTime<Utc>,
    /// Over the fields above.
    pub digest: Hash,
    /// Chained within the tenant.
    pub tenant_hash: Hash,
    /// Chained over the log.
    pub log_hash: Hash,
    /// What was made of the row, for the next one in this process who wants it.
    pub decoded: Decoded,
}

/// An event that was decoded, kept beside its row so that many read models and policies decode it once. It is no part of the row: copies and comparisons leave it out.
#[derive(Default)]
pub struct Decoded(OnceLock<(Arc<dyn Any + Send + Sync>, Unsealed)>);

/// When something was unsealed. It may be used until its keys may have been destroyed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unsealed {
    /// How often this process had forgotten all keys by then.
    pub(crate) forgotten: u64,
    pub(crate) at: Instant,
}

impl Decoded {
    /// The decoded event, if it is one of this type and `fresh` accepts when it was unsealed.
    pub(crate) fn get<E: Clone + Send + Sync + 'static>(&self, fresh: impl FnOnce(Unsealed) -> bool) -> Option<Recorded<E>> {
        let (decoded, unsealed) = self.0.get()?;
        decoded.downcast_ref::<Recorded<E>>().filter(|_| fresh(*unsealed)).cloned()
    }

    /// Keeps a decoded event. Only the first one is kept.
    pub(crate) fn keep<E: Clone + Send + Sync + 'static>(&self, event: &Recorded<E>, unsealed: Unsealed) {
        self.0.get_or_init(|| (Arc::new(event.clone()), unsealed));
    }
}

impl Clone for Decoded {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for Decoded {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl std::fmt::Debug for Decoded {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Decoded")
    }
}

/// The columns that make a [`RawEvent`].
pub(crate) const COLUMNS: &str = "position, event_id, tenant_id, aggregate_type, aggregate_id, sequence, event_type, event_version, \
    payload::text as payload, metadata::text as metadata, recorded_at, digest, tenant_hash, log_hash";

impl FromRow<'_, sqlx::postgres::PgRow> for RawEvent {
    fn from_row(row: &sqlx::postgres::PgRow) -> Result<Self, sqlx::Error> {
        use sqlx::Row as _;
        Ok(Self {
            position: row.try_get("position")?,
            event_id: row.try_get("event_id")?,
            tenant_id: row.try_get("tenant_id")?,
            aggregate_type: row.try_get("aggregate_type")?,
            aggregate_id: row.try_get("aggregate_id")?,
            sequence: row.try_get("sequence")?,
            event_type: row.try_get("event_type")?,
            event_version: row.try_get("event_version")?,
            payload: row.try_get("payload")?,
            metadata: row.try_get("metadata")?,
            recorded_at: row.try_get("recorded_at")?,
            digest: Hash(row.try_get("digest")?),
            tenant_hash: Hash(row.try_get("tenant_hash")?),
            log_hash: Hash(row.try_get("log_hash")?),
            decoded: Decoded::default(),
        })
    }
}

/// As an object with the column names of the events table; hashes in hexadecimal, JSON as it stands.
#[derive(Serialize, Deserialize)]
struct Columns {
    position: i64,
    event_id: Uuid,
    tenant_id: Uuid,
    aggregate_type: String,
    aggregate_id: String,
    sequence: i64,
    event_type: String,
    event_version: String,
    payload: Box<RawValue>,
    metadata: Box<RawValue>,
    recorded_at: DateTime<Utc>,
    #[serde(with = "crate::hash::as_text")]
    digest: Hash,
    #[serde(with = "crate::hash::as_text")]
    tenant_hash: Hash,
    #[serde(with = "crate::hash::as_text")]
    log_hash: Hash,
}

impl Serialize for RawEvent {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::Error as _;
        let raw = |text: &str| RawValue::from_string(text.to_owned()).map_err(S::Error::custom);
        let columns = Columns {
            position: self.position,
            event_id: self.event_id,
            tenant_id: self.tenant_id,
            aggregate_type: self.aggregate_type.clone(),
            aggregate_id: self.aggregate_id.clone(),
            sequence: self.sequence,
            event_type: self.event_type.clone(),
            event_version: self.event_version.clone(),
            payload: raw(&self.payload)?,
            metadata: raw(&self.metadata)?,
            recorded_at: self.recorded_at,
            digest: self.digest,
            tenant_hash: self.tenant_hash,
            log_hash: self.log_hash,
        };
        columns.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RawEvent {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let columns = Columns::deserialize(deserializer)?;
        Ok(Self {
            position: columns.position,
            event_id: columns.event_id,
            tenant_id: columns.tenant_id,
            aggregate_type: columns.aggregate_type,
            aggregate_id: columns.aggregate_id,
            sequence: columns.sequence,
            event_type: columns.event_type,
            event_version: columns.event_version,
            payload: columns.payload.get().to_owned(),
            metadata: columns.metadata.get().to_owned(),
            recorded_at: columns.recorded_at,
            digest: columns.digest,
            tenant_hash: columns.tenant_hash,
            log_hash: columns.log_hash,
            decoded: Decoded::default(),
        })
    }
}

impl RawEvent {
    /// Whether this is the event that follows `head` in a log: the next position, and chained to its hash. `digest` is taken as it stands.
    pub fn continues(&self, head: Head) -> bool {
        self.position == head.position + 1 && log_link(head.log_hash, self.position, self.digest) == self.log_hash
    }

    /// Whether it may have erased personal data, without a look at it.
    pub fn may_erase(&self) -> bool {
        self.metadata.contains("\"erases\"")
    }

    /// Whose personal data it erased, if it did.
    pub fn erases(&self) -> Result<Option<Erases>, LoadError> {
        #[derive(Deserialize)]
        struct Part {
            erases: Option<Erases>,
        }
        Ok(serde_json::from_str::<Part>(&self.metadata).map_err(|_| unknown_metadata(self))?.erases)
    }

    /// What its sealed values are bound to.
    pub(crate) fn place(&self) -> Place<'_> {
        Place { tenant: TenantId(self.tenant_id), aggregate: &self.aggregate_type, stream: &self.aggregate_id, event_id: self.event_id }
    }

    /// The digest of what this event says now; equal to `digest` unless something was changed.
    pub fn computed_digest(&self) -> Hash {
        digest(&Digested {
            event_id: self.event_id,
            tenant_id: self.tenant_id,
            aggregate_type: &self.aggregate_type,
            aggregate_id: &self.aggregate_id,
            sequence: self.sequence,
            event_type: &self.event_type,
            event_version: &self.event_version,
            payload: &self.payload,
            metadata: &self.metadata,
            recorded_at: self.recorded_at,
        })
    }
}

/// Why an event happened. Everything in it is plain ASCII-safe JSON and holds no personal data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Who asked.
    pub actor: Actor,
    /// The command that led to it.
    pub command_id: Uuid,
    /// What ties together everything that one request set off.
    pub correlation_id: Uuid,
    /// The event or command that led to the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub causation_id: Option<Uuid>,
    /// W3C trace context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// Whose personal data the request erased; set by the append. Whoever keeps a copy of it has to forget it now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erases: Option<Erases>,
}

/// Whose personal data was erased.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Erases {
    /// That of these data subjects of the event's tenant.
    Subjects(Vec<SubjectId>),
    /// That of everybody in the event's tenant, which is gone.
    Tenant,
}

impl Erases {
    /// What the effects of a request erase.
    pub(crate) fn of<'a>(effects: impl Iterator<Item = &'a Effect>) -> Option<Self> {
        let mut subjects = Vec::new();
        for effect in effects {
            match effect {
                Effect::EndTenant => return Some(Self::Tenant),
                Effect::Erase(subject) => subjects.push(*subject),
                Effect::TakeClaim { .. }
                | Effect::ReleaseClaim { .. }
                | Effect::Count { .. }
                | Effect::Bound { .. }
                | Effect::Allocate { .. }
                | Effect::SetTimer { .. }
                | Effect::CancelTimer { .. }
                | Effect::Gate(_) => {}
            }
        }
        (!subjects.is_empty()).then_some(Self::Subjects(subjects))
    }
}

/// An event as folds see it: its type is known, its personal data unsealed.
#[derive(Clone, Debug)]
pub struct Recorded<E> {
    /// What happened.
    pub event: E,
    /// Its place in the log.
    pub position: i64,
    /// Its own id.
    pub event_id: Uuid,
    /// Its stream.
    pub stream: StreamId,
    /// Its version in the stream.
    pub version: i64,
    /// Who caused it.
    pub actor: Actor,
    /// When it was recorded.
    pub recorded_at: DateTime<Utc>,
}

impl<E> Recorded<E> {
    /// The same, its event seen otherwise.
    pub fn map<F>(self, see: impl FnOnce(E) -> F) -> Recorded<F> {
        let Self { event, position, event_id, stream, version, actor, recorded_at } = self;
        Recorded { event: see(event), position, event_id, stream, version, actor, recorded_at }
    }
}
