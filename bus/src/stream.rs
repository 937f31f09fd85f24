//! The state of the stream: whether its configuration, its beginning and its end are those of a mirror of the log.

use std::time::Duration;

use async_nats::jetstream::stream::{Config, LastRawMessageErrorKind, RetentionPolicy, StorageType, Stream};
use store::append::MAX_EVENT_BYTES;
use store::{Hash, Head, Store};
use uuid::Uuid;

use crate::{Bus, BusError, envelope};

/// A reason why the stream cannot be extended, until a person has decided.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The server refuses messages that Tenure may have to publish.
    #[error("the server takes messages of at most {limit} bytes, and an event may have {MAX_EVENT_BYTES}: raise `max_payload`")]
    Payload {
        /// The server's limit, in bytes.
        limit: usize,
    },
    /// Settings of the stream are not those of a mirror, and the server did not change them.
    #[error("the stream is configured differently ({}): change that, or {REBUILD}", .0.join(", "))]
    Configuration(Vec<&'static str>),
    /// The stream has lost its beginning.
    #[error("the stream begins at {first}: a limit or a purge removed what was before; {REBUILD}")]
    Beginning {
        /// The sequence of its first message.
        first: i64,
    },
    /// The last message was deleted.
    #[error("the stream's message {last} was removed; {REBUILD}")]
    Removed {
        /// Its sequence.
        last: i64,
    },
    /// The last message is not an event.
    #[error("message {last} of the stream was not published by Tenure (subject {subject}); {REBUILD}")]
    Foreign {
        /// Its sequence.
        last: i64,
        /// Its subject.
        subject: String,
    },
    /// The stream is longer than the log.
    #[error(
        "the stream ends at {last}, beyond the log's end at {head}: the log was restored to an earlier state, or the stream belongs to another log; `tenure log reconcile` shows and cures what was made from it"
    )]
    Beyond {
        /// The sequence of its last message.
        last: i64,
        /// The end of the log.
        head: i64,
    },
    /// The last message is another event than the log has there.
    #[error(
        "position {position} is event {theirs} in the stream and event {ours} in the log, or has another hash: the log was restored to an earlier state, or another party publishes; `tenure log reconcile` shows and cures what was made from it"
    )]
    Differs {
        /// The position of both.
        position: i64,
        /// The id of the message.
        theirs: Uuid,
        /// The id in the log.
        ours: Uuid,
    },
}

const REBUILD: &str =
    "`tenure bus rebuild` deletes the stream and publishes the whole log again; outside durable consumers then start over";

/// The state of an existing stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// The sequence of its last message; 0 when it has none.
    pub last: i64,
    /// Reasons why it cannot be extended, the most specific first.
    pub faults: Vec<Fault>,
}

/// Compares the stream's configuration, first sequence and last message (by id and chain hash) with the log, and the server's limits with what Tenure publishes.
pub async fn inspect(store: &Store, bus: &Bus, stream: &Stream) -> Result<Inspection, BusError> {
    let info = stream.get_info().await.map_err(BusError::from_error)?;
    let last = i64::try_from(info.state.last_sequence).unwrap_or(i64::MAX);
    let mut faults = Vec::new();
    if last > 0 {
        faults.extend(end(store, stream, last).await?);
        let first = i64::try_from(info.state.first_sequence).unwrap_or(i64::MAX);
        if first > 1 {
            faults.push(Fault::Beginning { first });
        }
    }
    let drifted = drift(&info.config, &bus.stream_config());
    if !drifted.is_empty() {
        faults.push(Fault::Configuration(drifted));
    }
    let limit = bus.client().server_info().max_payload;
    // Before the first greeting of a server there is no limit to look at.
    if limit > 0 && limit < MAX_EVENT_BYTES {
        faults.push(Fault::Payload { limit });
    }
    Ok(Inspection { last, faults })
}

/// Whether the last message is the log's event at that position.
async fn end(store: &Store, stream: &Stream, last: i64) -> Result<Option<Fault>, BusError> {
    let message = match stream.get_raw_message(u64::try_from(last).unwrap_or(0)).await {
        Ok(message) => message,
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => return Ok(Some(Fault::Removed { last })),
        Err(error) => return Err(BusError::from_error(error)),
    };
    let head = store.head().await.map_err(BusError::from_error)?.position;
    let Some(theirs) = envelope::decode(&message.headers, &message.payload) else {
        return Ok(Some(Fault::Foreign { last, subject: message.subject.to_string() }));
    };
    if last > head {
        return Ok(Some(Fault::Beyond { last, head }));
    }
    let Some(ours) = store.at(last).await.map_err(BusError::from_error)? else { return Ok(Some(Fault::Beyond { last, head })) };
    let genuine =
        theirs.position == last && theirs.event_id == ours.event_id && theirs.log_hash == ours.log_hash && theirs.digest == ours.digest;
    Ok((!genuine).then_some(Fault::Differs { position: last, theirs: theirs.event_id, ours: ours.event_id }))
}

/// The settings that keep a stream from being a mirror: what they are now matters, whatever else an operator may have set (placement, compression, a description).
pub(crate) fn drift(theirs: &Config, ours: &Config) -> Vec<&'static str> {
    let limited = |limit: i64| limit > 0;
    let settings = [
        ("subjects", theirs.subjects != ours.subjects),
        ("storage", theirs.storage != StorageType::File),
        ("retention", theirs.retention != RetentionPolicy::Limits),
        ("max_msgs", limited(theirs.max_messages)),
        ("max_bytes", limited(theirs.max_bytes)),
        ("max_msgs_per_subject", limited(theirs.max_messages_per_subject)),
        ("max_age", theirs.max_age > Duration::ZERO),
        (
            "max_msg_size",
            limited(theirs.max_message_size.into()) && usize::try_from(theirs.max_message_size).is_ok_and(|size| size < MAX_EVENT_BYTES),
        ),
        ("num_replicas", theirs.num_replicas != ours.num_replicas),
        ("no_ack", theirs.no_ack),
        ("sealed", theirs.sealed),
        ("allow_rollup_hdrs", theirs.allow_rollup),
        ("deny_delete", !theirs.deny_delete),
        ("deny_purge", !theirs.deny_purge),
        ("mirror", theirs.mirror.is_some()),
        ("sources", theirs.sources.as_ref().is_some_and(|sources| !sources.is_empty())),
    ];
    settings.into_iter().filter_map(|(name, drifted)| drifted.then_some(name)).collect()
}

/// The settings of a stream with those of a mirror put right; what does not matter stays.
pub(crate) fn corrected(theirs: &Config, ours: &Config) -> Config {
    Config {
        subjects: ours.subjects.clone(),
        max_messages: ours.max_messages,
        max_bytes: ours.max_bytes,
        max_messages_per_subject: ours.max_messages_per_subject,
        max_age: ours.max_age,
        max_message_size: ours.max_message_size,
        num_replicas: ours.num_replicas,
        no_ack: ours.no_ack,
        allow_rollup: ours.allow_rollup,
        deny_delete: ours.deny_delete,
        deny_purge: ours.deny_purge,
        ..theirs.clone()
    }
}

/// The last position up to which the stream is this log: where both were one before the log was restored. A chain hash that is equal proves that everything before it is,
/// so this is found by bisection.
pub async fn common(store: &Store, stream: &Stream) -> Result<Head, BusError> {
    let state = stream.get_info().await.map_err(BusError::from_error)?.state;
    let head = store.head().await.map_err(BusError::from_error)?.position;
    let position = |sequence: u64| i64::try_from(sequence).unwrap_or(i64::MAX);
    let none = Head { position: 0, log_hash: Hash::ZERO };
    let (mut agreed, mut low, mut high) = (none, position(state.first_sequence).max(1), position(state.last_sequence).min(head));
    while low <= high {
        let middle = low + (high - low) / 2;
        let theirs = match stream.get_raw_message(u64::try_from(middle).unwrap_or(0)).await {
            Ok(message) => envelope::decode(&message.headers, &message.payload).map(|event| event.log_hash),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => None,
            Err(error) => return Err(BusError::from_error(error)),
        };
        match store.hash_at(middle).await.map_err(BusError::from_error)? {
            Some(ours) if theirs == Some(ours) => (agreed, low) = (Head { position: middle, log_hash: ours }, middle + 1),
            Some(_) | None => high = middle - 1,
        }
    }
    Ok(agreed)
}
