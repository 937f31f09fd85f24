//! Loading aggregates: fold of the stream, kept in a bounded cache.
//!
//! A cached state may be behind, since other processes append too. That is harmless for an append, which checks the version under the lock; whatever is
//! concluded otherwise (a refusal, "already so") is final only after [`Store::verify`] has confirmed the version.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cqrs_es::persist::PersistedEventRepository as _;
use domain::{Aggregate, StreamId};
use postgres_es::PostgresEventRepository;
use serde_json::Value;
use sqlx::types::Json;
use uuid::Uuid;

use crate::Store;
use crate::append::decide::{KeyRecord, replay};
use crate::append::snapshot::KeyRow;
use crate::append::{AppendError, Appended, Key};
use crate::event::{Metadata, RawEvent, Recorded};
use crate::seal::{Place, UnsealError};

/// The longest a state is used without a fresh look at its stream: it may hold personal data that another process has erased meanwhile.
const STATE_TTL: Duration = Duration::from_secs(60);

/// An aggregate at a version.
#[derive(Clone, Debug)]
pub struct Loaded<A> {
    /// Its state.
    pub state: A,
    /// Its version; 0 when it does not exist.
    pub version: i64,
    /// Since when what it says has not been looked at anew.
    pub since: Instant,
}

/// What a stream looks like now.
#[derive(Clone, Debug)]
pub struct Verified {
    /// Its version; 0 when it does not exist.
    pub version: i64,
    /// Where the log ended when that was so.
    pub position: i64,
    /// The answer to an earlier request with the same key.
    pub answered: Option<Result<Appended, AppendError>>,
}

/// Why an aggregate or an event could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The database did not answer.
    #[error("the log cannot be reached")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// An event of a type or version that this binary does not know: a newer one wrote it.
    #[error("position {position}: {event_type} version {version} is not known to this binary")]
    UnknownEvent {
        /// Where; 0 when it was met while folding a single stream.
        position: i64,
        /// Its type.
        event_type: String,
        /// Its version.
        version: String,
    },
    /// A stored event cannot be read.
    #[error("{event_type}: {reason}")]
    Corrupt {
        /// Its type.
        event_type: String,
        /// Why.
        reason: String,
    },
}

impl From<sqlx::Error> for LoadError {
    fn from(error: sqlx::Error) -> Self {
        Self::Unavailable(Box::new(error))
    }
}

impl From<UnsealError> for LoadError {
    fn from(error: UnsealError) -> Self {
        match error {
            UnsealError::Database(error) => error.into(),
            corrupt @ UnsealError::Corrupt(_) => Self::Corrupt { event_type: "sealed data".into(), reason: corrupt.to_string() },
        }
    }
}

type Entry = (Arc<dyn Any + Send + Sync>, i64, Instant);

pub(crate) struct Cache(quick_cache::sync::Cache<(&'static str, StreamId), Entry>);

impl Cache {
    pub(crate) fn new(capacity: usize) -> Self {
        Self(quick_cache::sync::Cache::new(capacity))
    }

    pub(crate) fn clear(&self) {
        self.0.clear();
    }
}

impl Store {
    /// The aggregate, from the cache if it is there.
    pub async fn load<A: Aggregate>(&self, stream: StreamId) -> Result<Loaded<A>, LoadError> {
        if let Some((state, version, since)) = self.inner.cache.0.get(&(A::TYPE, stream))
            && let Some(state) = state.downcast_ref::<A>()
        {
            if since.elapsed() < STATE_TTL {
                return Ok(Loaded { state: state.clone(), version, since });
            }
            // A long stream that goes on slowly is not read from its beginning every minute.
            let (read, now) = (Instant::now(), if A::PERSONAL { None } else { Some(self.verify::<A>(stream, None).await?.version) });
            if now == Some(version) {
                let loaded = Loaded { state: state.clone(), version, since: read };
                self.remember(stream, &loaded);
                return Ok(loaded);
            }
        }
        self.reload(stream).await
    }

    /// The aggregate, from its events.
    pub async fn reload<A: Aggregate>(&self, stream: StreamId) -> Result<Loaded<A>, LoadError> {
        // The repository knows nothing of event ids; this view of the log has them as metadata.
        let events = PostgresEventRepository::new(self.inner.pool.clone())
            .with_tables("event_streams", "snapshots")
            .get_events::<A>(&stream.to_string())
            .await
            .map_err(|error| LoadError::Unavailable(Box::new(error)))?;
        let version = events.last().map_or(0, |e| i64::try_from(e.sequence).unwrap_or(i64::MAX));
        let mut payloads = Vec::with_capacity(events.len());
        for event in events {
            let id = event.metadata["event_id"].as_str().and_then(|id| id.parse::<Uuid>().ok());
            let without = || LoadError::Corrupt { event_type: event.event_type.clone(), reason: "it has no id".into() };
            payloads.push((id.ok_or_else(without)?, event.event_type, event.event_version, event.payload));
        }
        let of = stream.to_string();
        let place = |event_id| Place { tenant: stream.tenant, aggregate: A::TYPE, stream: &of, event_id };
        self.inner.keyring.unseal(payloads.iter_mut().map(|p| (place(p.0), &mut p.3))).await?;
        let mut loaded = Loaded { state: A::default(), version, since: Instant::now() };
        for (_, event_type, event_version, payload) in payloads {
            loaded.state.apply(decode::<A>(0, &event_type, &event_version, payload)?);
        }
        if version > 0 {
            self.remember(stream, &loaded);
        }
        Ok(loaded)
    }

    /// The aggregate as the log says it is at this moment: what is remembered, if it has not moved since.
    pub async fn current<A: Aggregate>(&self, stream: StreamId) -> Result<Loaded<A>, LoadError> {
        let loaded = self.load::<A>(stream).await?;
        if self.verify::<A>(stream, None).await?.version == loaded.version { Ok(loaded) } else { self.reload(stream).await }
    }

    /// Keeps a state that was read, or follows from one that was by what has just been appended.
    pub fn remember<A: Aggregate>(&self, stream: StreamId, loaded: &Loaded<A>) {
        self.inner.cache.0.insert((A::TYPE, stream), (Arc::new(loaded.state.clone()), loaded.version, loaded.since));
    }

    /// Forgets a state that is known to be behind.
    pub fn forget<A: Aggregate>(&self, stream: StreamId) {
        self.inner.cache.0.remove(&(A::TYPE, stream));
    }

    /// What the log says now of a stream, and of an idempotency key.
    pub async fn verify<A: Aggregate>(&self, stream: StreamId, key: Option<&Key>) -> Result<Verified, LoadError> {
        let key = key.map(|key| self.keyed(key));
        let (position, version, record): (i64, Option<i64>, Option<Json<KeyRow>>) = sqlx::query_as(
            "select h.position,
               (select e.sequence from events e where e.aggregate_type = $1 and e.aggregate_id = $2 order by e.sequence desc limit 1),
               (select to_jsonb(k) || jsonb_build_object('fingerprint', encode(k.fingerprint, 'hex')) from ops.idempotency_keys k where k.tenant_id = $3 and k.scope = $4 and k.key = $5)
             from log_head h",
        )
        .bind(A::TYPE)
        .bind(stream.to_string())
        .bind(key.as_ref().map(|k| k.tenant.0))
        .bind(key.as_ref().map(|k| k.scope.as_str()))
        .bind(key.as_ref().map(|k| k.key.as_str()))
        .fetch_one(&self.inner.pool)
        .await?;
        let record: Option<KeyRecord> = record.and_then(|Json(row)| row.parse());
        let answered = record.zip(key).map(|(record, key)| replay(&record, &key));
        Ok(Verified { version: version.unwrap_or(0), position, answered })
    }

    /// The first answers to requests with these keys, as far as they are known.
    pub async fn answered(&self, keys: &[Key]) -> Result<Vec<Option<Result<Appended, AppendError>>>, LoadError> {
        let keys: Vec<Key> = keys.iter().map(|key| self.keyed(key)).collect();
        let rows: Vec<Option<Json<KeyRow>>> = sqlx::query_scalar(
            "select (select to_jsonb(i) || jsonb_build_object('fingerprint', encode(i.fingerprint, 'hex')) from ops.idempotency_keys i
                     where i.tenant_id = w.t and i.scope = w.s and i.key = w.k)
             from unnest($1::uuid[], $2::text[], $3::text[]) with ordinality as w (t, s, k, o) order by o",
        )
        .bind(keys.iter().map(|key| key.tenant.0).collect::<Vec<_>>())
        .bind(keys.iter().map(|key| key.scope.as_str()).collect::<Vec<_>>())
        .bind(keys.iter().map(|key| key.key.as_str()).collect::<Vec<_>>())
        .fetch_all(&self.inner.pool)
        .await?;
        let record = |row: Option<Json<KeyRow>>| row.and_then(|Json(row)| row.parse());
        Ok(rows.into_iter().zip(&keys).map(|(row, key)| record(row).map(|record| replay(&record, key))).collect())
    }

    /// Turns stored events of one aggregate type into what folds see: upcast, unsealed, typed. Each event is decoded once, whoever asks for it, until its keys may be gone.
    pub async fn typed<A: Aggregate>(&self, events: &[&RawEvent]) -> Result<Vec<Recorded<A::Event>>, LoadError> {
        let keyring = &self.inner.keyring;
        let unsealing = keyring.unsealing();
        let mut typed: Vec<Option<Recorded<A::Event>>> =
            events.iter().map(|event| event.decoded.get(|unsealed| keyring.is_fresh(unsealed))).collect();
        let mut payloads = Vec::new();
        for (event, _) in events.iter().zip(&typed).filter(|(_, typed)| typed.is_none()) {
            let payload: Value = serde_json::from_str(&event.payload)
                .map_err(|e| LoadError::Corrupt { event_type: event.event_type.clone(), reason: e.to_string() })?;
            payloads.push((event.place(), payload));
        }
        if !payloads.is_empty() {
            keyring.unseal(payloads.iter_mut().map(|p| (p.0, &mut p.1))).await?;
        }
        let mut payloads = payloads.into_iter().map(|(_, payload)| payload);
        for (raw, slot) in events.iter().zip(&mut typed).filter(|(_, slot)| slot.is_none()) {
            let recorded = recorded::<A>(raw, payloads.next().unwrap_or_default())?;
            raw.decoded.keep(&recorded, unsealing);
            *slot = Some(recorded);
        }
        Ok(typed.into_iter().flatten().collect())
    }
}

/// The event of a row whose payload is unsealed.
fn recorded<A: Aggregate>(raw: &RawEvent, payload: Value) -> Result<Recorded<A::Event>, LoadError> {
    let corrupt = |reason: String| LoadError::Corrupt { event_type: raw.event_type.clone(), reason };
    // Metadata that cannot be read was written by a newer binary, as an event of an unknown version is.
    let metadata: Metadata = serde_json::from_str(&raw.metadata).map_err(|_| unknown_metadata(raw))?;
    Ok(Recorded {
        event: decode::<A>(raw.position, &raw.event_type, &raw.event_version, payload)?,
        position: raw.position,
        event_id: raw.event_id,
        stream: raw.aggregate_id.parse().map_err(|e: domain::ids::StreamIdError| corrupt(e.to_string()))?,
        version: raw.sequence,
        actor: metadata.actor,
        recorded_at: raw.recorded_at,
    })
}

/// The error for metadata that this binary does not understand.
pub fn unknown_metadata(event: &RawEvent) -> LoadError {
    let version = format!("{} (its metadata)", event.event_version);
    LoadError::UnknownEvent { position: event.position, event_type: event.event_type.clone(), version }
}

fn decode<A: Aggregate>(position: i64, event_type: &str, version: &str, mut payload: Value) -> Result<A::Event, LoadError> {
    let mut version = version;
    for upcaster in A::UPCASTERS {
        if upcaster.event == event_type && upcaster.from == version {
            payload = (upcaster.upcast)(payload);
            version = upcaster.to;
        }
    }
    if !A::EVENTS.iter().any(|kind| kind.name == event_type && kind.version == version) {
        return Err(LoadError::UnknownEvent { position, event_type: event_type.to_owned(), version: version.to_owned() });
    }
    serde_json::from_value(payload).map_err(|e| LoadError::Corrupt { event_type: event_type.to_owned(), reason: e.to_string() })
}
