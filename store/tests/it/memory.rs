//! Batches decided from memory, beside what makes memory wrong.

use domain::{Effect, Refusal, StreamId};
use serde_json::json;
use sqlx::Row as _;
use store::{AppendError, Expected};
use testing::{Env, id};

use crate::kit::{at_once, event, keyed, new_stream, tenant, to, with_payload};

const SEATS: &str = "seats";

fn seat() -> Vec<Effect> {
    vec![Effect::Count { counter: SEATS.into(), delta: 1 }]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_key_gets_its_first_answer_also_when_the_request_would_be_refused_now() {
    let env = Env::new().await;
    let store = env.store().await;
    let t = tenant();
    store.append(new_stream(t, vec![Effect::Bound { counter: SEATS.into(), floor: None, ceiling: Some(1) }])).await.unwrap();
    let first = store.append(keyed(new_stream(t, seat()), "k", 1)).await.unwrap();
    for _ in 0..20 {
        let answers = at_once(
            &store,
            vec![new_stream(t, vec![]), keyed(new_stream(t, seat()), "k", 1), new_stream(t, vec![]), new_stream(t, seat())],
        )
        .await;
        let again = answers[1].as_ref().unwrap();
        assert_eq!((again.position, &again.aggregate_id, again.replayed), (first.position, &first.aggregate_id, true));
        assert!(answers[0].is_ok() && answers[2].is_ok());
        assert!(matches!(answers[3], Err(AppendError::Refused(Refusal::CounterOutOfBounds { .. }))), "{:?}", answers[3]);
        let other = store.append(keyed(new_stream(t, seat()), "k", 2)).await;
        assert!(matches!(other, Err(AppendError::KeyReused)), "{other:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_process_has_appended_is_never_overlooked() {
    let env = Env::new().await;
    let stores = [env.store().await, env.store().await];
    let t = tenant();
    stores[0].append(new_stream(t, vec![Effect::Bound { counter: SEATS.into(), floor: None, ceiling: Some(150) }])).await.unwrap();
    let numbered = || {
        let mut effects = seat();
        effects.push(Effect::Allocate { sequence: "number", pointer: "/number" });
        to(StreamId::new(t, id()), Expected::Exact(0), vec![with_payload(json!({"type": "happened", "number": 0}), effects)])
    };
    // Each one's memory is warm when the other one appends.
    let mut accepted = 0;
    for round in 0..20 {
        let (one, other) = (&stores[round % 2], &stores[(round + 1) % 2]);
        for answers in [
            at_once(one, (0..3).map(|_| numbered()).collect()).await,
            at_once(one, (0..3).map(|_| numbered()).collect()).await,
            at_once(other, (0..3).map(|_| numbered()).collect()).await,
        ] {
            accepted += answers.iter().filter(|answer| answer.is_ok()).count();
        }
    }
    assert_eq!(accepted, 150, "as many as there are seats, and not one more");
    let numbers =
        sqlx::query("select (payload ->> 'number')::bigint as n from events where payload ->> 'number' is not null order by position")
            .fetch_all(&env.owner)
            .await
            .unwrap();
    assert!(numbers.iter().map(|row| row.get::<i64, _>("n")).eq(1..=150));
    let findings = stores[0].audit(&mut |_| {}).await.unwrap().findings;
    assert!(findings.iter().all(|finding| !finding.what.contains("chain")), "{findings:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_not_where_it_was_expected_harms_nobody_else_in_the_batch() {
    let env = Env::new().await;
    let store = env.store().await;
    let t = tenant();
    let stream = StreamId::new(t, id());
    store.append(to(stream, Expected::Exact(0), vec![event(vec![])])).await.unwrap();
    for version in 1..20 {
        let wrong = to(stream, Expected::Exact(version + 1), vec![event(vec![])]);
        let answers = at_once(&store, vec![new_stream(t, vec![]), wrong, new_stream(t, vec![])]).await;
        assert!(answers[0].is_ok() && answers[2].is_ok());
        assert!(matches!(answers[1], Err(AppendError::Conflict { actual, .. }) if actual == version), "{:?}", answers[1]);
        store.append(to(stream, Expected::Exact(version), vec![event(vec![])])).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_large_events_at_once_are_written_in_batches_that_the_database_can_take() {
    let env = Env::new().await;
    let store = env.store().await;
    let t = tenant();
    store.append(new_stream(t, vec![])).await.unwrap();
    let large = || {
        let payload = json!({"type": "happened", "text": "x".repeat(400 * 1024)});
        to(StreamId::new(t, id()), Expected::Exact(0), vec![with_payload(payload, vec![])])
    };
    for answer in at_once(&store, (0..100).map(|_| large()).collect()).await {
        answer.unwrap();
    }
}
