//! A handler gets each event once, in order, whatever the feed does.

use std::sync::Arc;
use std::time::Duration;

use bus::Bus;
use bus::feed::{Feed, FeedState};
use bus::relay::Relay;
use bus::subscription::{Handler, HandlerError, run};
use parking_lot::Mutex;
use store::hash::{log_link, tenant_link};
use store::{Hash, Head, RawEvent, Store};
use testing::{Env, eventually};
use tokio_util::sync::CancellationToken;

use crate::relay::{append, roll_back};

/// Keeps what it was given; fails now and then on purpose.
#[derive(Clone, Default)]
struct Recorder {
    seen: Arc<Mutex<Vec<(i64, Hash)>>>,
    calls: Arc<Mutex<usize>>,
    fault: Arc<Mutex<Option<String>>>,
}

impl Handler for Recorder {
    fn name(&self) -> &'static str {
        "recorder"
    }

    async fn begin(&mut self) -> Result<Option<Head>, HandlerError> {
        let (position, log_hash) = self.seen.lock().last().copied().unwrap_or((0, Hash::ZERO));
        Ok(Some(Head { position, log_hash }))
    }

    async fn note(&mut self, fault: Option<&str>) -> Result<(), HandlerError> {
        *self.fault.lock() = fault.map(str::to_owned);
        Ok(())
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

/// A forged event with the digest and the chain hash that a genuine one would have after `last`.
fn forged_after(last: &RawEvent) -> RawEvent {
    let mut event = RawEvent { position: last.position + 1, sequence: last.sequence + 1, event_id: testing::id(), ..last.clone() };
    event.payload = r#"{"n":0,"text":"forged"}"#.into();
    event.digest = event.computed_digest();
    event.tenant_hash = tenant_link(last.tenant_hash, event.digest);
    event.log_hash = log_link(last.log_hash, event.position, event.digest);
    event
}

async fn publish(bus: &Bus, event: &RawEvent) {
    let (headers, body) = bus::envelope::encode(bus, event);
    let subject = bus.subject(event.tenant_id, &event.event_type);
    bus.jetstream().publish_with_headers(subject, headers, body).await.unwrap().await.unwrap();
}

async fn log_of(store: &Store) -> Vec<(i64, Hash)> {
    store.read_from(0, 10_000).await.unwrap().into_iter().map(|e| (e.position, e.log_hash)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_message_or_chain_is_handed_to_no_handler_and_shows_in_the_state_of_the_feed() {
    let env = Env::new().await;
    let store = env.store().await;
    let bus = env.bus(&store).await;
    let cancel = CancellationToken::new();
    let _guard = cancel.clone().drop_guard();
    append(&store, 5).await;
    Relay::new(store.clone(), bus.clone()).run_until(5).await.unwrap();
    let feed = Feed::start(store.clone(), bus.clone(), cancel.clone());
    let mut state = feed.state();
    let recorder = Recorder::default();
    tokio::spawn(run(recorder.clone(), store.clone(), feed, cancel.clone()));
    eventually("the handler has the log", || async { (recorder.seen.lock().len() == 5).then_some(()) }).await;
    state.wait_for(|state| *state == FeedState::Listening).await.unwrap();
    // Beyond the head, with a chain that is right: three of them.
    let mut last = store.at(5).await.unwrap().unwrap();
    for _ in 0..3 {
        last = forged_after(&last);
        publish(&bus, &last).await;
    }
    let diverged = |state: &FeedState| matches!(state, FeedState::Diverged { reason } if reason.contains("message 8"));
    tokio::time::timeout(testing::PATIENCE, state.wait_for(diverged)).await.expect("the feed says so").unwrap();
    assert_eq!(recorder.seen.lock().len(), 5, "nothing of it was handed on");
    // And once real events have taken those positions, the forged ones are still not believed.
    append(&store, 10).await;
    eventually("the handler has the real ones", || async { (recorder.seen.lock().len() >= 15).then_some(()) }).await;
    let log = log_of(&store).await;
    assert_eq!(*recorder.seen.lock(), log);
    // A rebuilt stream is believed again.
    bus::mirror::rebuild(&store, &bus).await.unwrap();
    tokio::time::timeout(testing::PATIENCE, state.wait_for(|state| *state == FeedState::Listening))
        .await
        .expect("it listens again")
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_the_log_does_not_confirm_stops_its_handler_until_it_is_put_right() {
    let env = Env::new().await;
    let store = env.store().await;
    let cancel = CancellationToken::new();
    let _guard = cancel.clone().drop_guard();
    append(&store, 5).await;
    let recorder = Recorder::default();
    recorder.seen.lock().push((7, Hash([1; 32])));
    tokio::spawn(run(recorder.clone(), store.clone(), Feed::silent(), cancel));
    let fault = async |wanted: &str| {
        eventually(&format!("the fault says {wanted}"), || async {
            recorder
                .fault
                .lock()
                .as_ref()
                .is_some_and(|fault| fault.contains(wanted) && fault.contains("tenure log reconcile"))
                .then_some(())
        })
        .await;
    };
    fault("position 7 is beyond the head of the log at 5").await;
    append(&store, 5).await;
    fault("position 7 has hash 0101").await;
    assert_eq!(recorder.seen.lock().len(), 1, "nothing was handled meanwhile");
    recorder.seen.lock().clear();
    eventually("the handler goes on from the start", || async { (recorder.seen.lock().len() == 10).then_some(()) }).await;
    let log = log_of(&store).await;
    assert_eq!((recorder.seen.lock().clone(), recorder.fault.lock().clone()), (log, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_rolled_back_under_a_running_handler_stops_it_whether_or_not_it_has_grown_again() {
    for grows in [false, true] {
        let env = Env::new().await;
        let store = env.store().await;
        let bus = env.bus(&store).await;
        let cancel = CancellationToken::new();
        let _guard = cancel.clone().drop_guard();
        append(&store, 10).await;
        Relay::new(store.clone(), bus.clone()).run_until(10).await.unwrap();
        let recorder = Recorder::default();
        tokio::spawn(run(recorder.clone(), store.clone(), Feed::start(store.clone(), bus.clone(), cancel.clone()), cancel));
        eventually("the handler has the log", || async { (recorder.seen.lock().len() == 10).then_some(()) }).await;
        roll_back(&env, 6).await;
        if grows {
            // Another process's: this one's writer would notice.
            append(&env.store().await, 8).await;
        }
        eventually("the handler has stopped", || async { recorder.fault.lock().is_some().then_some(()) }).await;
        assert_eq!(recorder.seen.lock().len(), 10, "and handled nothing of the other history");
    }
}
