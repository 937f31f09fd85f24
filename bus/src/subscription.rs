//! The subscription runtime: brings the log to a handler, each event once and in order.
//!
//! A handler starts from its own checkpoint, once the log has confirmed it. New and far-lagging handlers read the log in short pages; one that has caught up takes events from
//! the feed as long as each one is the next (position = checkpoint + 1, and its hash continues the chain), and goes back to the log whenever that is not so. A handler that
//! fails is tried again with backoff.
//!
//! A checkpoint that the log does not confirm (it is beyond the head, or has another hash, or the log does not continue it) stops the handler: it was made from events that are
//! not in the log, and going on from there would mix two histories. The handler notes the fault where operators and queries find it, and is tried again every few seconds, so
//! that it goes on by itself once `tenure log reconcile` has cured it.

use std::sync::Arc;
use std::time::Duration;

use store::{Disagreement, Head, RawEvent, Store};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio_util::sync::CancellationToken;

use crate::feed::{Feed, SILENCE};

/// The first pause after a failure; it grows until something was handled again.
const PAUSE: Duration = Duration::from_millis(50);
/// Under load, batches begin no sooner than this after one another: a commit costs the same for one event as for fifty. What comes after a pause is handled at once.
const GATHER: Duration = Duration::from_millis(10);
/// How often the log is looked at while it goes on and the feed does not.
const CLOSELY: Duration = Duration::from_millis(50);
/// Events handed over at a time.
const BATCH: usize = 500;
/// The pause before a handler that has stopped is tried again.
const STOPPED: Duration = Duration::from_secs(2);
/// How the faults that this module reports are cured.
const CURE: &str = "`tenure log reconcile` rebuilds what was made from it";

/// Why a handler did not handle.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    /// It may work next time.
    #[error("{0}")]
    Retry(String),
    /// It fails again until the program or what it has stored is mended: it lies in what the events say.
    #[error("{0}")]
    Poison(String),
    /// This binary cannot, another may: the lease is given up.
    #[error("{0}")]
    Unknown(String),
    /// The log does not confirm the checkpoint.
    #[error("{0}; {CURE}")]
    Diverged(#[from] Disagreement),
}

/// What is done with events.
pub trait Handler: Send + 'static {
    /// Its name, for logs.
    fn name(&self) -> &'static str;

    /// Where it stands, if it is this process's turn: takes or renews the lease. `None` while another process has it.
    fn begin(&mut self) -> impl Future<Output = Result<Option<Head>, HandlerError>> + Send;

    /// Notes why the handler has stopped, or that it goes on, where operators and queries of all processes find it.
    fn note(&mut self, fault: Option<&str>) -> impl Future<Output = Result<(), HandlerError>> + Send;

    /// Handles contiguous events that begin right after the checkpoint, and moves the checkpoint, in one transaction.
    fn handle(&mut self, events: &[Arc<RawEvent>]) -> impl Future<Output = Result<(), HandlerError>> + Send;

    /// Gives the lease back.
    fn release(&mut self) -> impl Future<Output = ()> + Send;
}

/// Runs a handler until cancelled.
pub async fn run<H: Handler>(mut handler: H, store: Store, feed: Feed, cancel: CancellationToken) {
    let mut pause = PAUSE;
    let stopped = metrics::gauge!("tenure_handler_stopped", "handler" => handler.name());
    while !cancel.is_cancelled() {
        let ended = tokio::select! {
            // A batch is one transaction, so it may be dropped anywhere.
            () = cancel.cancelled() => break,
            ended = session(&mut handler, &store, &feed, &mut pause) => ended,
        };
        stopped.set(f64::from(u8::from(matches!(ended, Err(HandlerError::Diverged(_))))));
        match ended {
            Ok(()) => pause = PAUSE,
            Err(HandlerError::Retry(reason) | HandlerError::Poison(reason)) => {
                tracing::warn!(handler = handler.name(), %reason, "tried again soon");
                pause = (pause * 2).min(Duration::from_secs(5));
            }
            Err(HandlerError::Unknown(reason)) => {
                tracing::error!(handler = handler.name(), %reason, "left to a newer process");
                handler.release().await;
                pause = Duration::from_secs(5);
            }
            Err(diverged @ HandlerError::Diverged(_)) => {
                // The log may have been restored to an earlier state: then this process remembers too much.
                if let Err(error) = store.recognise().await {
                    tracing::warn!(%error, "the log cannot be looked at");
                }
                let fault = diverged.to_string();
                tracing::error!(handler = handler.name(), %fault, "stopped");
                if let Err(error) = handler.note(Some(&fault)).await {
                    tracing::warn!(handler = handler.name(), %error, "the fault cannot be noted");
                }
                pause = STOPPED;
            }
        }
        let _ = tokio::time::timeout(pause, cancel.cancelled()).await;
    }
    handler.release().await;
}

/// An error after which the handler is tried again.
pub fn retry(error: impl std::fmt::Display) -> HandlerError {
    HandlerError::Retry(error.to_string())
}

/// From taking the lease to losing it, or to a failure.
async fn session<H: Handler>(handler: &mut H, store: &Store, feed: &Feed, pause: &mut Duration) -> Result<(), HandlerError> {
    let Some(mut checkpoint) = handler.begin().await? else {
        let _ = tokio::time::timeout(SILENCE, std::future::pending::<()>()).await;
        return Ok(());
    };
    store.confirm(checkpoint).await.map_err(retry)??;
    handler.note(None).await?;
    let mut events = feed.subscribe();
    let mut renewed = std::time::Instant::now();
    let (mut behind, mut patience) = (true, SILENCE);
    let mut began = tokio::time::Instant::now();
    loop {
        if renewed.elapsed() > SILENCE {
            match handler.begin().await? {
                Some(now) if now == checkpoint => renewed = std::time::Instant::now(),
                // Another process moved it, or has taken over.
                Some(_) | None => return Ok(()),
            }
            // The log may have been restored to an earlier state while nothing else showed it.
            store.confirm(checkpoint).await.map_err(retry)??;
        }
        let batch = if behind {
            let page = store.read_from(checkpoint.position, i64::try_from(BATCH).unwrap_or(i64::MAX)).await.map_err(retry)?;
            behind = page.len() == BATCH;
            page.into_iter().map(Arc::new).collect()
        } else {
            gather(began, GATHER).await;
            match next(&mut events, checkpoint, patience).await {
                Next::Events(batch) => {
                    patience = SILENCE;
                    batch
                }
                Next::Gap => {
                    behind = true;
                    continue;
                }
                Next::Silence => {
                    behind = store.head().await.map_err(retry)?.position > checkpoint.position;
                    // While the bus is away and the log goes on, the log is followed closely.
                    patience = if behind { CLOSELY } else { (patience * 2).min(SILENCE) };
                    continue;
                }
            }
        };
        let Some(end) = batch.last().map(|last| Head { position: last.position, log_hash: last.log_hash }) else { continue };
        if !batch[0].continues(checkpoint) {
            // Told apart by the log itself; where it still confirms the checkpoint, its own chain is broken, which only an audit can explain.
            store.confirm(checkpoint).await.map_err(retry)??;
            let position = batch[0].position;
            return Err(retry(format!(
                "position {position} does not continue the chain at {}; run `tenure audit verify`",
                checkpoint.position
            )));
        }
        began = tokio::time::Instant::now();
        handler.handle(&batch).await?;
        *pause = PAUSE;
        checkpoint = end;
    }
}

/// Waits until `interval` has passed since the last batch began, so that under load several events form one batch.
pub(crate) async fn gather(began: tokio::time::Instant, interval: Duration) {
    tokio::time::sleep_until(began + interval).await;
}

enum Next {
    Events(Vec<Arc<RawEvent>>),
    /// The feed does not continue where the handler stands.
    Gap,
    Silence,
}

/// What the feed has, as far as it continues the checkpoint.
async fn next(events: &mut broadcast::Receiver<Arc<RawEvent>>, mut checkpoint: Head, patience: Duration) -> Next {
    let mut batch = Vec::new();
    // One limit for the whole: a feed that only repeats old events is as good as silent.
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        let event = if batch.is_empty() {
            match tokio::time::timeout_at(deadline, events.recv()).await {
                Ok(Ok(event)) => event,
                Ok(Err(RecvError::Lagged(_))) => return Next::Gap,
                // A feed without an end that listens: the log is all there is.
                Ok(Err(RecvError::Closed)) => {
                    let _ = tokio::time::timeout_at(deadline, std::future::pending::<()>()).await;
                    return Next::Silence;
                }
                Err(_) => return Next::Silence,
            }
        } else {
            match events.try_recv() {
                Ok(event) => event,
                // Whatever went wrong shows again with the next call, when the batch is empty.
                Err(TryRecvError::Empty | TryRecvError::Lagged(_) | TryRecvError::Closed) => return Next::Events(batch),
            }
        };
        if event.position <= checkpoint.position {
            continue;
        }
        if !event.continues(checkpoint) {
            return if batch.is_empty() { Next::Gap } else { Next::Events(batch) };
        }
        checkpoint = Head { position: event.position, log_hash: event.log_hash };
        batch.push(event);
        if batch.len() == BATCH {
            return Next::Events(batch);
        }
    }
}
