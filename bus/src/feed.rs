//! The feed of a process: one ordered, unfiltered consumer of the stream, shared by all its handlers.
//!
//! The feed promises nothing: it may begin late, skip, repeat or fall silent. Every handler checks position and hash itself and reads the log whenever the feed does not
//! continue where it stands (see [`crate::subscription`]).

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use futures::StreamExt as _;
use store::{RawEvent, Store};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::{Bus, BusError, envelope};

/// Events that a slow handler may lag behind before it is sent to the log.
const BUFFER: usize = 4096;
/// After this much silence it is checked whether there should have been something.
pub(crate) const SILENCE: Duration = Duration::from_secs(1);

/// Where handlers get events from. Cheap to clone.
#[derive(Clone)]
pub struct Feed {
    events: broadcast::Sender<Arc<RawEvent>>,
}

impl Feed {
    /// Starts to listen; ends with `cancel`.
    pub fn start(store: Store, bus: Bus, cancel: CancellationToken) -> Self {
        let (events, _) = broadcast::channel(BUFFER);
        let feed = Self { events };
        tokio::spawn({
            let feed = feed.clone();
            async move {
                while !cancel.is_cancelled() {
                    let ended = tokio::select! {
                        () = cancel.cancelled() => return,
                        ended = feed.listen(&store, &bus) => ended,
                    };
                    if let Err(error) = ended {
                        tracing::debug!(%error, "the feed begins again");
                    }
                    let _ = tokio::time::timeout(Duration::from_millis(200), cancel.cancelled()).await;
                }
            }
        });
        feed
    }

    /// A feed that brings nothing: everything comes from the log.
    pub fn silent() -> Self {
        Self { events: broadcast::channel(1).0 }
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Arc<RawEvent>> {
        self.events.subscribe()
    }

    /// Listens from the log's present end on, until the consumer ends or is silent while the log goes on.
    async fn listen(&self, store: &Store, bus: &Bus) -> Result<(), BusError> {
        let head = store.head().await.map_err(BusError::from_error)?.position;
        let Some(stream) = bus.existing_stream().await? else { return Err(BusError("there is no stream yet".into())) };
        // nats-server 2.9 clamps a start beyond the last sequence to it; what comes too early is dropped by the handlers.
        let config = OrderedConfig {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: u64::try_from(head + 1).unwrap_or(1) },
            ..Default::default()
        };
        let consumer = stream.create_consumer(config).await.map_err(BusError::from_error)?;
        let mut messages = consumer.messages().await.map_err(BusError::from_error)?;
        let mut last = head;
        loop {
            match tokio::time::timeout(SILENCE, messages.next()).await {
                Ok(Some(message)) => {
                    let message = message.map_err(BusError::from_error)?;
                    let sequence = message.info().map_err(BusError::from_error)?.stream_sequence;
                    let Some(event) = message.headers.as_ref().and_then(|headers| envelope::decode(headers, &message.payload)) else {
                        continue;
                    };
                    if u64::try_from(event.position) == Ok(sequence) {
                        last = event.position;
                        // Nobody listening is fine.
                        let _ = self.events.send(Arc::new(event));
                    }
                }
                Ok(None) => return Err(BusError("the consumer has ended".into())),
                // The client recreates a lost ordered consumer for ever, so a vanished stream shows as silence.
                Err(_) => {
                    let head = store.head().await.map_err(BusError::from_error)?.position;
                    if head > last {
                        return Err(BusError(format!("silent at {last} while the log is at {head}")));
                    }
                }
            }
        }
    }
}
