//! Appending: what may be asked ([`Append`]), and what comes of it.

pub(crate) mod decide;
pub(crate) mod guards;
pub(crate) mod memory;
pub(crate) mod queue;
pub(crate) mod snapshot;
pub(crate) mod statement;
pub(crate) mod writer;

use domain::{Effect, Precondition, Refusal, StreamId, TenantId};
use serde_json::Value;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::Store;
use crate::event::{Erases, Metadata};
use crate::seal::{self, Place};

/// The most that one event may take as a message of the bus, headers included. A `nats-server` refuses 1 MiB by default; half of it leaves room.
pub const MAX_EVENT_BYTES: usize = 512 * 1024;

/// What a message carries besides payload and metadata, at most.
const ENVELOPE_BYTES: usize = 2048;

/// A request to append to one or more streams, all or nothing.
#[derive(Clone, Debug)]
pub struct Append {
    /// For whom; also whose counters the preconditions speak of.
    pub tenant: TenantId,
    /// What to append where. The first is the one that the answer speaks of.
    pub streams: Vec<StreamAppend>,
    /// What else must be so at that moment.
    pub preconditions: Vec<Precondition>,
    /// Make the request repeatable. The only one, where it is known, gets the first answer again; of several, none may be known.
    pub keys: Vec<Key>,
    /// Why; the same for all its events.
    pub metadata: Metadata,
}

/// The part of a request that is about one stream.
#[derive(Clone, Debug)]
pub struct StreamAppend {
    /// The aggregate's type.
    pub aggregate: &'static str,
    /// Which stream.
    pub stream: StreamId,
    /// At which version it must be.
    pub expected: Expected,
    /// What to append; may be nothing, then only the version is checked.
    pub events: Vec<NewEvent>,
}

/// At which version a stream must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// At this one; 0 means that it does not exist.
    Exact(i64),
    /// At any.
    Any,
}

/// An event to be.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// Its id.
    pub event_id: Uuid,
    /// `tenant.renamed`, …
    pub event_type: String,
    /// The version of its type.
    pub event_version: String,
    /// What happens; personal data still in clear.
    pub payload: Value,
    /// What it does to the guards.
    pub effects: Vec<Effect>,
}

/// An idempotency key. The same key with the same fingerprint gets the first answer again; with another one it is an error.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Whose key it is: the caller's tenant, which for a command of the platform is not the tenant acted upon.
    pub tenant: TenantId,
    /// Within what the key is unique besides its tenant: the route.
    pub scope: String,
    /// The key itself.
    pub key: String,
    /// SHA-256 of what the client asked, without anything the server generates.
    pub fingerprint: [u8; 32],
}

/// What came of an append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The first stream's id.
    pub aggregate_id: String,
    /// Its version now.
    pub version: i64,
    /// The position of the request's last event; where nothing was appended, where the log ended then. Whatever this request was decided upon lies at or below.
    pub position: i64,
    /// Whether it began the stream.
    pub created: bool,
    /// Whether this is the answer to an earlier request with the same key.
    pub replayed: bool,
}

/// Why nothing was appended.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    /// A guard said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A stream is not at the expected version.
    #[error("{aggregate} {stream} is at version {actual}, not {expected}")]
    Conflict {
        /// Its type.
        aggregate: &'static str,
        /// Which.
        stream: StreamId,
        /// The version the request was made for.
        expected: i64,
        /// The version it is at.
        actual: i64,
    },
    /// The idempotency key was used for another request.
    #[error("the idempotency key was used for another request")]
    KeyReused,
    /// Of several idempotency keys, some are known.
    #[error("some of the idempotency keys are known already")]
    KeysKnown,
    /// Too many requests wait.
    #[error("too many requests are waiting for the log")]
    Overloaded,
    /// The database cannot be reached. The request may or may not have been written; sending it again with the same ids decides.
    #[error("the log cannot be reached")]
    Unavailable,
    /// The request alone made the database fail.
    #[error("the log refused the request: {0}")]
    Failed(String),
}

/// What one caller is told.
pub(crate) type Outcome = Result<Appended, AppendError>;

/// A request made ready outside the lock: sealed, encoded, measured.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) tenant: TenantId,
    pub(crate) streams: Vec<PreparedStream>,
    pub(crate) preconditions: Vec<Precondition>,
    pub(crate) keys: Vec<Key>,
    pub(crate) metadata: String,
    /// Of the history that it was made for.
    pub(crate) generation: u64,
    pub(crate) reply: oneshot::Sender<Result<Appended, AppendError>>,
}

#[derive(Debug)]
pub(crate) struct PreparedStream {
    pub(crate) aggregate: &'static str,
    pub(crate) stream: StreamId,
    pub(crate) expected: Expected,
    pub(crate) events: Vec<PreparedEvent>,
}

#[derive(Debug)]
pub(crate) struct PreparedEvent {
    pub(crate) event_id: Uuid,
    pub(crate) event_type: String,
    pub(crate) event_version: String,
    pub(crate) payload: Payload,
    pub(crate) effects: Vec<Effect>,
}

/// A payload is text as soon as nothing under the lock can change it any more.
#[derive(Debug)]
pub(crate) enum Payload {
    Text(String),
    /// Waits for an allocated number.
    Open(Value),
}

impl Prepared {
    /// How many rows it writes, about.
    pub(crate) fn rows(&self) -> usize {
        self.event_count() + self.keys.len()
    }

    pub(crate) fn event_count(&self) -> usize {
        self.streams.iter().map(|s| s.events.len()).sum()
    }

    /// How large its payloads are.
    pub(crate) fn bytes(&self) -> usize {
        self.streams.iter().flat_map(|s| &s.events).map(|e| e.payload.len()).sum()
    }

    pub(crate) fn effects(&self) -> impl Iterator<Item = &Effect> {
        self.streams.iter().flat_map(|s| &s.events).flat_map(|e| &e.effects)
    }
}

impl Store {
    /// Appends all of the request or nothing. Returns when it is durable.
    pub async fn append(&self, request: Append) -> Result<Appended, AppendError> {
        let (reply, answer) = oneshot::channel();
        let erases = Erases::of(request.streams.iter().flat_map(|s| &s.events).flat_map(|e| &e.effects));
        if erases.is_some() && request.streams.iter().any(|s| s.stream.tenant != request.tenant) {
            return Err(AppendError::Failed("what is erased is told by tenant, so a request that erases is about one tenant only".into()));
        }
        let request = Append { metadata: Metadata { erases: erases.clone(), ..request.metadata }, ..request };
        let prepared = self.prepare(request, reply).await?;
        self.inner.queue.push(prepared)?;
        let answered = async move { answer.await.map_err(|_| AppendError::Unavailable)? };
        if erases.is_none() {
            return answered.await;
        }
        // What was unsealed for this process must not outlive the key, whether or not the caller is still there, and whatever it was told.
        let inner = self.inner.clone();
        let cleared = tokio::spawn(async move {
            let answer = answered.await;
            inner.forget_unsealed();
            answer
        });
        cleared.await.unwrap_or(Err(AppendError::Unavailable))
    }

    /// The key as it is stored. A text that a client chose as a key may name a person, so a keyed hash of it is kept; an id says nothing and stays as it is.
    pub(crate) fn keyed(&self, key: &Key) -> Key {
        let fingerprint = self.inner.keyring.fingerprint(&key.fingerprint);
        let text = match key.key.parse::<Uuid>() {
            Ok(_) => key.key.clone(),
            Err(_) => self.inner.keyring.idempotency_key(key),
        };
        Key { fingerprint, key: text, ..key.clone() }
    }

    async fn prepare(&self, request: Append, reply: oneshot::Sender<Result<Appended, AppendError>>) -> Result<Prepared, AppendError> {
        let generation = self.inner.history.generation();
        let Append { tenant, streams, preconditions, keys, metadata } = request;
        let metadata = serde_json::to_string(&metadata).map_err(|e| AppendError::Failed(e.to_string()))?;
        let mut ready = Vec::with_capacity(streams.len());
        for StreamAppend { aggregate, stream, expected, events } in streams {
            let mut prepared = Vec::with_capacity(events.len());
            let stream_id = stream.to_string();
            for NewEvent { event_id, event_type, event_version, mut payload, mut effects } in events {
                let place = Place { tenant: stream.tenant, aggregate, stream: &stream_id, event_id };
                self.inner.keyring.seal(place, &mut payload).await?;
                if seal::has_clear(&payload) {
                    return Err(AppendError::Failed(format!(
                        "{event_type} would be stored with a personal value in clear: it must be an object of its own"
                    )));
                }
                let tenant_of = stream.tenant;
                for effect in &mut effects {
                    if let Effect::TakeClaim { claim, value: Some(value), .. } = effect
                        && claim.personal
                    {
                        *value = self.inner.keyring.claim_hash(claim, tenant_of, value);
                    }
                }
                let text = payload.to_string();
                let bytes = text.len() + metadata.len() + ENVELOPE_BYTES;
                if bytes > MAX_EVENT_BYTES {
                    return Err(Refusal::TooLarge { bytes, limit: MAX_EVENT_BYTES }.into());
                }
                let allocates = effects.iter().any(|e| matches!(e, Effect::Allocate { .. }));
                prepared.push(PreparedEvent {
                    event_id,
                    event_type,
                    event_version,
                    payload: if allocates { Payload::Open(payload) } else { Payload::Text(text) },
                    effects,
                });
            }
            ready.push(PreparedStream { aggregate, stream, expected, events: prepared });
        }
        let tenant_of = tenant;
        let keys = keys.iter().map(|key| self.keyed(key)).collect();
        let preconditions = preconditions
            .into_iter()
            .map(|mut precondition| {
                if let Precondition::ClaimFree { claim, value } | Precondition::ClaimHeld { claim, value } = &mut precondition
                    && claim.personal
                {
                    *value = self.inner.keyring.claim_hash(claim, tenant_of, value);
                }
                precondition
            })
            .collect();
        Ok(Prepared { tenant, streams: ready, preconditions, keys, metadata, generation, reply })
    }
}

impl Payload {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            // Only a bound on a batch's size hangs on this.
            Self::Open(_) => 1024,
        }
    }
}
