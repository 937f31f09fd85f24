//! The relay: extends the stream by what follows it in the log.
//!
//! It first makes sure that the stream is a mirror of the log (see [`crate::stream`]): its configuration, its beginning, and that its last message *is* the log's event at
//! that position, by id and chain hash. Everything after it then is what the stream lacks, be that the newest event or all of them (nats-server acknowledges before it syncs, so a power loss forgets acknowledged messages). Each message is published with
//! the expected last sequence and the expected last message id, which fences a second relay and a foreign publisher. (The sequence alone would not do with a window in
//! flight: where a foreign message takes position n, our n fails, but our n + 1 finds exactly the sequence it expects.) On any surprise everything in flight is drained and the last message is read
//! again. What cannot be right (a foreign message, a log that was restored to an earlier state) halts the relay with the reason, until it is cured.

use std::collections::VecDeque;
use std::future::IntoFuture as _;
use std::time::{Duration, Instant};

use async_nats::Subscriber;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::stream::Stream;
use futures::future::{BoxFuture, join_all};
use futures::{FutureExt as _, StreamExt as _};
use serde::Serialize;
use store::{RawEvent, Store, lease};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::stream::inspect;
use crate::{Bus, BusError, envelope};

/// Messages in flight at most.
pub(crate) const WINDOW: usize = 512;
/// Events read from the log at a time.
const PAGE: i64 = 500;
/// Without any hint, the log is looked at this often.
const POLL: Duration = Duration::from_secs(1);
/// How long a relay that died keeps others waiting.
const LEASE: Duration = Duration::from_secs(10);
const LEASE_NAME: &str = "relay";

/// What a relay is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Status {
    /// Not begun yet.
    Starting,
    /// Another process relays.
    Standby,
    /// Everything up to this position is on the bus.
    Running {
        /// That position.
        position: i64,
    },
    /// The bus or the log does not answer; it goes on by itself.
    Waiting {
        /// What is missing.
        reason: String,
    },
    /// Something is wrong that only a person can decide.
    Halted {
        /// What, and what to do.
        reason: String,
    },
}

enum Stop {
    /// Try again from the stream's last message.
    Surprise(String),
    /// A person has to decide.
    Halt(String),
}

impl From<BusError> for Stop {
    fn from(error: BusError) -> Self {
        Self::Surprise(error.to_string())
    }
}

impl From<sqlx::Error> for Stop {
    fn from(error: sqlx::Error) -> Self {
        Self::Surprise(format!("the log: {error}"))
    }
}

/// A relay of one process.
pub struct Relay {
    store: Store,
    bus: Bus,
    owner: Uuid,
    status: watch::Sender<Status>,
}

impl Relay {
    /// A relay from `store` to `bus`.
    pub fn new(store: Store, bus: Bus) -> Self {
        let owner = store.fresh_id();
        Self { store, bus, owner, status: watch::Sender::new(Status::Starting) }
    }

    /// What it is doing.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Relays until cancelled.
    pub async fn run(self, cancel: CancellationToken) {
        while !cancel.is_cancelled() {
            let stop = tokio::select! {
                () = cancel.cancelled() => break,
                stop = self.session(None) => stop,
            };
            let pause = match stop {
                Ok(()) => continue,
                Err(Stop::Surprise(reason)) => {
                    tracing::warn!(%reason, "the relay begins again");
                    self.set(Status::Waiting { reason });
                    Duration::from_millis(200)
                }
                Err(Stop::Halt(reason)) => {
                    let status = Status::Halted { reason: reason.clone() };
                    if *self.status.borrow() != status {
                        tracing::error!(%reason, "the relay has halted");
                    }
                    self.set(status);
                    POLL
                }
            };
            let _ = tokio::time::timeout(pause, cancel.cancelled()).await;
        }
        let _ = lease::release(self.store.pool(), LEASE_NAME, self.owner).await;
    }

    /// Relays until the stream holds everything up to `position`.
    pub async fn run_until(&self, position: i64) -> Result<(), BusError> {
        let mut tries = 0;
        loop {
            match self.session(Some(position)).await {
                Ok(()) => return Ok(()),
                Err(Stop::Halt(reason)) => return Err(BusError(reason)),
                Err(Stop::Surprise(reason)) if tries == 30 => return Err(BusError(reason)),
                Err(Stop::Surprise(reason)) => tracing::warn!(%reason, "the relay begins again"),
            }
            tries += 1;
            pause(POLL / 5).await;
        }
    }

    fn set(&self, status: Status) {
        if let Status::Running { position } = status {
            #[expect(clippy::cast_precision_loss, reason = "a gauge")]
            metrics::gauge!("tenure_relay_position").set(position as f64);
        }
        metrics::gauge!("tenure_relay_halted").set(f64::from(u8::from(matches!(status, Status::Halted { .. }))));
        self.status.send_replace(status);
    }

    /// From finding out where the stream ends to the first surprise.
    async fn session(&self, until: Option<i64>) -> Result<(), Stop> {
        if until.is_none() && !self.holds_lease().await? {
            self.set(Status::Standby);
            pause(POLL).await;
            return Ok(());
        }
        let hints = self.bus.client.subscribe(self.bus.hint_subject()).await.map_err(BusError::from_error)?;
        let stream = self.bus.stream().await?;
        let position = sound_end(&self.store, &self.bus, &stream).await?;
        self.set(Status::Running { position });
        let mut window = Window::default();
        let ended = self.extend(&stream, position, until, hints, &mut window).await;
        // Nothing that is still in flight may land after the last message has been read again.
        window.drain().await;
        ended
    }

    async fn holds_lease(&self) -> Result<bool, Stop> {
        Ok(lease::acquire(self.store.pool(), LEASE_NAME, self.owner, LEASE).await?.is_some())
    }

    /// Publishes what follows `position` in the log, and goes on as the log grows.
    async fn extend(
        &self,
        stream: &Stream,
        mut position: i64,
        until: Option<i64>,
        mut hints: Subscriber,
        window: &mut Window,
    ) -> Result<(), Stop> {
        let mut local = self.store.watch_head();
        let (mut renewed, mut inspected) = (Instant::now(), Instant::now());
        loop {
            local.borrow_and_update();
            if until.is_none() && renewed.elapsed() > LEASE / 3 {
                if !self.holds_lease().await? {
                    return Ok(());
                }
                renewed = Instant::now();
            }
            let events = self.store.read_from(position, PAGE).await?;
            for event in &events {
                if window.is_full() {
                    window.settle_one().await?;
                }
                let first = window.last.is_none();
                window.send(&self.bus, event).await?;
                // The server forgets the last message's id when it restarts, so the first message of a session goes without, and alone.
                if first {
                    window.settle_one().await?;
                }
                position = event.position;
            }
            let reached = until.is_some_and(|until| position >= until);
            if i64::try_from(events.len()) == Ok(PAGE) && !reached {
                // Catching up, the window stays full from page to page.
                self.set(Status::Running { position: position - i64::try_from(window.len()).unwrap_or(0) });
                continue;
            }
            while window.len() > 0 {
                window.settle_one().await?;
            }
            self.set(Status::Running { position });
            if reached {
                return Ok(());
            }
            tokio::select! {
                _ = local.changed() => {}
                hint = hints.next() => if hint.is_none() { return Err(Stop::Surprise("the subscription to hints has ended".into())) },
                () = pause(POLL) => {}
            }
            // Neither a quiet nor a busy log may hide that the stream was deleted, rolled back, limited, or written to by another party.
            if inspected.elapsed() > POLL {
                let last = sound_end(&self.store, &self.bus, stream).await?;
                if last != position {
                    return Err(Stop::Surprise(format!("the stream ends at {last}, not at {position}")));
                }
                inspected = Instant::now();
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the slow poll behind the hints")]
async fn pause(time: Duration) {
    tokio::time::sleep(time).await;
}

/// The last sequence of the stream; halts where the stream cannot be extended.
async fn sound_end(store: &Store, bus: &Bus, stream: &Stream) -> Result<i64, Stop> {
    let found = inspect(store, bus, stream).await?;
    match found.faults.first() {
        None => Ok(found.last),
        Some(fault) => Err(Stop::Halt(fault.to_string())),
    }
}

/// What is in flight, oldest first.
#[derive(Default)]
struct Window {
    acks: VecDeque<(i64, BoxFuture<'static, Result<PublishAck, String>>)>,
    /// The id of the message sent last in this session.
    last: Option<Uuid>,
}

impl Window {
    fn len(&self) -> usize {
        self.acks.len()
    }

    fn is_full(&self) -> bool {
        self.acks.len() >= WINDOW
    }

    async fn send(&mut self, bus: &Bus, event: &RawEvent) -> Result<(), Stop> {
        let (headers, body) = envelope::encode(bus, event);
        let before = u64::try_from(event.position - 1).unwrap_or(0);
        let mut message =
            PublishMessage::build().headers(headers).payload(body).message_id(event.event_id.to_string()).expected_last_sequence(before);
        if let Some(last) = self.last.replace(event.event_id) {
            message = message.expected_last_message_id(last.to_string());
        }
        let ack = bus
            .jetstream
            .send_publish(bus.subject(event.tenant_id, &event.event_type), message)
            .await
            .map_err(|e| Stop::Surprise(e.to_string()))?;
        self.acks.push_back((event.position, ack.into_future().map(|ack| ack.map_err(|e| e.to_string())).boxed()));
        Ok(())
    }

    async fn settle_one(&mut self) -> Result<(), Stop> {
        let Some((position, ack)) = self.acks.pop_front() else { return Ok(()) };
        match ack.await {
            // A duplicate that stands where it should is the echo of an earlier try.
            Ok(ack) if i64::try_from(ack.sequence) == Ok(position) => Ok(()),
            Ok(ack) => Err(Stop::Surprise(format!("position {position} was acknowledged as sequence {}", ack.sequence))),
            Err(error) => Err(Stop::Surprise(format!("position {position}: {error}"))),
        }
    }

    /// Waits for whatever is still in flight, so that nothing of it can land after the last message has been read again.
    async fn drain(&mut self) {
        // All at once: each has a time limit of its own, which begins when it is asked.
        join_all(self.acks.drain(..).map(|(_, ack)| ack)).await;
    }
}

/// Tells relays of other processes that this one's log has grown.
pub async fn hint(store: Store, bus: Bus, cancel: CancellationToken) {
    let mut head = store.watch_head();
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = head.changed() => if changed.is_err() { return },
        }
        let position = head.borrow_and_update().to_string();
        // A hint that is lost costs a poll, nothing else; and without a server the client would wait for room to keep it.
        if bus.is_connected() {
            let _ = tokio::time::timeout(POLL, bus.client.publish(bus.hint_subject(), position.into())).await;
        }
    }
}
