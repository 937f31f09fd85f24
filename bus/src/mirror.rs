//! Comparing the stream with the log, and making it anew.

use std::time::Duration;

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use futures::StreamExt as _;
use store::Store;
use store::audit::Finding;

use crate::relay::Relay;
use crate::{Bus, BusError, envelope};

/// How long the bus may be silent in the middle of a comparison.
const SILENCE: Duration = Duration::from_secs(10);

/// Deletes the stream and publishes the whole log again. Outside durable consumers are deleted with it and start over.
pub async fn rebuild(store: &Store, bus: &Bus) -> Result<i64, BusError> {
    if bus.existing_stream().await?.is_some() {
        bus.jetstream().delete_stream(bus.stream_name()).await.map_err(BusError::from_error)?;
    }
    let head = store.head().await.map_err(BusError::from_error)?.position;
    Relay::new(store.clone(), bus.clone()).run_until(head).await?;
    Ok(head)
}

/// Compares every message of the stream with the log's event at its position, up to `head`. Answers the first difference; a stream that is merely behind is none, but said.
pub async fn compare(store: &Store, bus: &Bus, head: i64, progress: &mut (dyn FnMut(i64) + Send)) -> Result<Vec<Finding>, BusError> {
    let find = |position: i64, what: String| Ok(vec![Finding { position: Some(position), what }]);
    let Some(stream) = bus.existing_stream().await? else {
        return if head == 0 { Ok(vec![]) } else { find(1, "the stream does not exist".into()) };
    };
    let state = stream.get_info().await.map_err(BusError::from_error)?.state;
    let last = i64::try_from(state.last_sequence).unwrap_or(i64::MAX);
    if state.first_sequence > 1 && state.messages > 0 {
        return find(1, format!("the stream begins at {}", state.first_sequence));
    }
    let end = last.min(head);
    let mut messages = stream
        .create_consumer(OrderedConfig { deliver_policy: DeliverPolicy::All, ..Default::default() })
        .await
        .map_err(BusError::from_error)?
        .messages()
        .await
        .map_err(BusError::from_error)?;
    let mut position = 0;
    while position < end {
        for ours in store.read_from(position, (end - position).min(500)).await.map_err(BusError::from_error)? {
            let message = tokio::time::timeout(SILENCE, messages.next()).await.map_err(|_| BusError(format!("silent after {position}")))?;
            let message = message.ok_or_else(|| BusError("the consumer has ended".into()))?.map_err(BusError::from_error)?;
            let sequence = message.info().map_err(BusError::from_error)?.stream_sequence;
            if u64::try_from(ours.position) != Ok(sequence) {
                return find(ours.position, format!("the stream goes on with {sequence}"));
            }
            let theirs = message.headers.as_ref().and_then(|headers| envelope::decode(headers, &message.payload));
            if theirs.as_ref() != Some(&ours) {
                return find(ours.position, "the message in the stream is not the event in the log".into());
            }
            position = ours.position;
        }
        progress(position);
    }
    let log_end = store.head().await.map_err(BusError::from_error)?.position;
    if last > log_end {
        return find(log_end + 1, format!("the stream ends at {last}, beyond the log's end at {log_end}"));
    }
    if last < head {
        return find(last + 1, format!("the stream ends at {last}, the log at {head}: the relay is behind"));
    }
    Ok(vec![])
}
