//! A handler gets each event once, in order, whatever the feed does.

use std::sync::Arc;
use std::time::Duration;

use bus::feed::Feed;
use bus::relay::Relay;
use bus::subscription::{Checkpoint, Handler, HandlerError, run};
use parking_lot::Mutex;
use store::{Hash, RawEvent};
use testing::{Env, eventually};
use tokio_util::sync::CancellationToken;

use crate::relay::append;

/// Keeps what it was given; fails now and then on purpose.
#[derive(Clone, Default)]
struct Recorder {
    seen: Arc<Mutex<Vec<(i64, Hash)>>>,
    calls: Arc<Mutex<usize>>,
}

impl Handler for Recorder {
    fn name(&self) -> &'static str {
        "recorder"
    }

    async fn begin(&mut self) -> Result<Option<Checkpoint>, HandlerError> {
        let (position, log_hash) = self.seen.lock().last().copied().unwrap_or((0, Hash::ZERO));
        Ok(Some(Checkpoint { position, log_hash }))
    }

    async fn handle(&mut self, events: &[Arc<RawEvent>]) -> Result<(), HandlerError> {
        let call = {
            let mut calls = self.calls.lock();
            *calls += 1;
            *calls
        };
        if call % 5 == 0 {
            return Err(HandlerError::Retry("on purpose".into()));
        }
        self.seen.lock().extend(events.iter().map(|e| (e.position, e.log_hash)));
        Ok(())
    }

    async fn release(&mut self) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_gets_each_event_once_and_in_order_while_the_stream_is_deleted_under_it_and_it_fails_now_and_then() {
    let env = Env::new().await;
    let store = env.store().await;
    let bus = env.bus(&store).await;
    let cancel = CancellationToken::new();
    let _guard = cancel.clone().drop_guard();
    tokio::spawn(Relay::new(store.clone(), bus.clone()).run(cancel.clone()));
    append(&store, 700).await;
    let feed = Feed::start(store.clone(), bus.clone(), cancel.clone());
    let recorder = Recorder::default();
    tokio::spawn(run(recorder.clone(), store.clone(), feed, cancel.clone()));
    for round in 0..12 {
        append(&store, 20).await;
        if round == 6 {
            bus.jetstream().delete_stream(bus.stream_name()).await.unwrap();
        }
    }
    let head = store.head().await.unwrap().position;
    eventually("the handler has seen all", || async { (recorder.seen.lock().len() >= usize::try_from(head).unwrap()).then_some(()) }).await;
    let seen = recorder.seen.lock().clone();
    let log: Vec<_> = store.read_from(0, 10_000).await.unwrap().into_iter().map(|e| (e.position, e.log_hash)).collect();
    assert_eq!(seen, log);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_bus_a_handler_still_gets_everything_from_the_log() {
    let env = Env::new().await;
    let store = env.store().await;
    let cancel = CancellationToken::new();
    let _guard = cancel.clone().drop_guard();
    let recorder = Recorder::default();
    tokio::spawn(run(recorder.clone(), store.clone(), Feed::silent(), cancel));
    append(&store, 30).await;
    eventually("the first", || async { (recorder.seen.lock().len() == 30).then_some(()) }).await;
    append(&store, 30).await;
    let since = std::time::Instant::now();
    eventually("the rest", || async { (recorder.seen.lock().len() == 60).then_some(()) }).await;
    assert!(since.elapsed() < Duration::from_secs(5));
}
