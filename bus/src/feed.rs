//! The feed of a process: one ordered, unfiltered consumer of the stream, shared by all its handlers.
//!
//! **The bus is never believed.** A message is handed on only after the log has confirmed it: its position lies at or below the head that is committed in PostgreSQL, and the
//! log has the same chain hash there. The chain covers every byte of every event before it, so one look at the log confirms a whole batch. A stream that disagrees (a forged
//! message, a stream of an older database, a log that was restored) is reported in [`FeedState::Diverged`], and nothing of it is handed on.
//!
//! Apart from that the feed promises nothing: it may begin late, skip, repeat or fall silent. Every handler checks that an event continues its checkpoint, and reads the log
//! whenever the feed does not (see [`crate::subscription`]).

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::{Ordered, OrderedConfig, OrderedError};
use futures::{FutureExt as _, StreamExt as _};
use serde::Serialize;
use store::{Head, RawEvent, Store};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::{Bus, BusError, envelope, subscription};

/// Events that a slow handler may lag behind before it has to read the log.
const BUFFER: usize = 4096;
/// Messages that are confirmed with one look at the log, at most.
const BATCH: usize = 500;
/// Under load, looks at the log begin no sooner than this after one another.
const GATHER: Duration = Duration::from_millis(5);
/// After this much silence the feed checks whether there should have been something.
pub(crate) const SILENCE: Duration = Duration::from_secs(1);
/// The pause before a feed that has lost its consumer begins again.
const RESTART: Duration = Duration::from_millis(200);
/// The pause before a stream that disagrees with the log is looked at again.
const DIVERGED: Duration = Duration::from_secs(2);

/// The state of a feed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum FeedState {
    /// Messages are confirmed and handed on.
    Listening,
    /// The bus or the log does not answer; handlers read the log meanwhile.
    Waiting {
        /// The cause.
        reason: String,
    },
    /// The stream disagrees with the log. Nothing of it is handed on; handlers read the log.
    Diverged {
        /// The position and the kind of disagreement.
        reason: String,
    },
}

/// Why a feed stops listening.
enum Stop {
    Lost(BusError),
    Diverged(String),
}

impl From<BusError> for Stop {
    fn from(error: BusError) -> Self {
        Self::Lost(error)
    }
}

/// Source of confirmed events for handlers. Cheap to clone.
#[derive(Clone)]
pub struct Feed {
    events: broadcast::Sender<Arc<RawEvent>>,
    state: watch::Sender<FeedState>,
}

impl Feed {
    /// Starts to listen; ends with `cancel`.
    pub fn start(store: Store, bus: Bus, cancel: CancellationToken) -> Self {
        let feed = Self::silent();
        tokio::spawn({
            let feed = feed.clone();
            async move {
                while !cancel.is_cancelled() {
                    let stop = tokio::select! {
                        () = cancel.cancelled() => return,
                        stop = feed.listen(&store, &bus) => stop,
                    };
                    let pause = match stop {
                        Stop::Lost(error) => {
                            tracing::debug!(%error, "the feed begins again");
                            feed.state.send_replace(FeedState::Waiting { reason: error.to_string() });
                            RESTART
                        }
                        Stop::Diverged(reason) => {
                            let state = FeedState::Diverged { reason };
                            if *feed.state.borrow() != state {
                                tracing::error!(?state, "the stream disagrees with the log; handlers read the log");
                            }
                            feed.set(state);
                            DIVERGED
                        }
                    };
                    let _ = tokio::time::timeout(pause, cancel.cancelled()).await;
                }
            }
        });
        feed
    }

    /// A feed that brings nothing: everything comes from the log.
    pub fn silent() -> Self {
        Self { events: broadcast::channel(BUFFER).0, state: watch::Sender::new(FeedState::Waiting { reason: "not begun".into() }) }
    }

    /// Signals the state of the feed.
    pub fn state(&self) -> watch::Receiver<FeedState> {
        self.state.subscribe()
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Arc<RawEvent>> {
        self.events.subscribe()
    }

    fn set(&self, state: FeedState) {
        metrics::gauge!("tenure_feed_diverged").set(f64::from(u8::from(matches!(state, FeedState::Diverged { .. }))));
        self.state.send_replace(state);
    }

    /// Listens from the present end of the log on, until the consumer ends, is silent while the log goes on, or disagrees with the log.
    async fn listen(&self, store: &Store, bus: &Bus) -> Stop {
        match self.try_listen(store, bus).await {
            Err(stop) => stop,
            Ok(never) => match never {},
        }
    }

    async fn try_listen(&self, store: &Store, bus: &Bus) -> Result<std::convert::Infallible, Stop> {
        let mut confirmed = head(store).await?;
        let Some(stream) = bus.existing_stream().await? else { return Err(BusError("there is no stream yet".into()).into()) };
        // nats-server 2.9 clamps a start beyond the last sequence to it; what comes too early is dropped below.
        let config = OrderedConfig {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: u64::try_from(confirmed.position + 1).unwrap_or(1) },
            ..Default::default()
        };
        let consumer = stream.create_consumer(config).await.map_err(BusError::from_error)?;
        let mut messages = consumer.messages().await.map_err(BusError::from_error)?;
        let mut began = tokio::time::Instant::now();
        loop {
            subscription::gather(began, GATHER).await;
            if let Ok((batch, stop)) = tokio::time::timeout(SILENCE, gather(&mut messages, confirmed)).await {
                began = tokio::time::Instant::now();
                if let Some(last) = batch.last() {
                    let end = Head { position: last.position, log_hash: last.log_hash };
                    match store.confirm(end).await.map_err(BusError::from_error)? {
                        Ok(()) => confirmed = end,
                        Err(disagreement) => return Err(Stop::Diverged(format!("message {}: {disagreement}", end.position))),
                    }
                    self.set(FeedState::Listening);
                    for event in batch {
                        // No handler may be listening.
                        let _ = self.events.send(event);
                    }
                }
                match stop {
                    Some(stop) => return Err(stop),
                    None => continue,
                }
            }
            // The client recreates a lost ordered consumer for ever, so a vanished stream shows as silence. And a log that was restored under this process shows nowhere else.
            let head = head(store).await?;
            if store.confirm(confirmed).await.map_err(BusError::from_error)?.is_err() {
                return Err(BusError(format!("the log no longer has what was confirmed up to {}", confirmed.position)).into());
            }
            if head.position > confirmed.position {
                return Err(BusError(format!("silent at {} while the log is at {}", confirmed.position, head.position)).into());
            }
            self.set(FeedState::Listening);
        }
    }
}

async fn head(store: &Store) -> Result<Head, BusError> {
    store.head().await.map_err(BusError::from_error)
}

/// The next messages that continue `after`, as many as have arrived, and why there will be no more, if so.
async fn gather(messages: &mut Ordered, after: Head) -> (Vec<Arc<RawEvent>>, Option<Stop>) {
    let mut batch: Vec<Arc<RawEvent>> = Vec::new();
    let mut end = after;
    while batch.len() < BATCH {
        let message = if batch.is_empty() {
            messages.next().await
        } else {
            match messages.next().now_or_never() {
                Some(message) => message,
                None => break,
            }
        };
        match message.ok_or_else(|| BusError("the consumer has ended".into()).into()).and_then(|message| continuing(message, end)) {
            Ok(Some(event)) => {
                end = Head { position: event.position, log_hash: event.log_hash };
                batch.push(Arc::new(event));
            }
            Ok(None) => {}
            Err(stop) => return (batch, Some(stop)),
        }
    }
    (batch, None)
}

/// The event of a message that continues `end`; `None` for one that lies at or below it.
fn continuing(message: Result<Message, OrderedError>, end: Head) -> Result<Option<RawEvent>, Stop> {
    let message = message.map_err(BusError::from_error)?;
    let sequence = message.info().map_err(BusError::from_error)?.stream_sequence;
    if u64::try_from(end.position).is_ok_and(|position| sequence <= position) {
        return Ok(None);
    }
    let Some(event) = message.headers.as_ref().and_then(|headers| envelope::decode(headers, &message.payload)) else {
        return Err(Stop::Diverged(format!("message {sequence} was not published by Tenure")));
    };
    if u64::try_from(event.position) == Ok(sequence) && event.continues(end) {
        Ok(Some(event))
    } else {
        Err(Stop::Diverged(format!("message {sequence} does not continue the chain of the log at {}", end.position)))
    }
}
