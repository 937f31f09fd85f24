//! From stored bytes to what rules and folds see.

use domain::{Personal, StreamId, SubjectId};
use serde_json::json;
use store::load::LoadError;
use store::{Expected, NewEvent};
use testing::thing::{Event, Thing};
use testing::{Env, id};

use crate::kit::{tenant, to, with_payload};

fn made(version: &str, payload: serde_json::Value) -> NewEvent {
    NewEvent { event_type: "thing.made".into(), event_version: version.into(), ..with_payload(payload, vec![]) }
}

#[tokio::test]
async fn an_event_of_an_older_version_is_upcast_wherever_it_becomes_a_value_and_stays_as_it_was_stored() {
    let env = Env::new().await;
    let store = env.store().await;
    let stream = StreamId::new(tenant(), id());
    store.append(to(stream, Expected::Exact(0), vec![made("1", json!({"type": "made", "text": "hello"}))])).await.unwrap();
    let expected = Event::Made { number: None, words: Personal::new(SubjectId(uuid::Uuid::nil()), "hello".into()) };
    assert_eq!(store.load::<Thing>(stream).await.unwrap().state.0, Some(expected.clone()), "loading");
    let raw = store.at(1).await.unwrap().unwrap();
    assert_eq!(store.typed::<Thing>(&[&raw]).await.unwrap()[0].event, expected, "folding");
    assert_eq!((raw.event_version.as_str(), raw.payload.as_str()), ("1", r#"{"text":"hello","type":"made"}"#));
}

#[tokio::test]
async fn an_event_that_this_binary_does_not_know_is_an_error_that_says_which_and_not_a_guess() {
    let env = Env::new().await;
    let store = env.store().await;
    let stream = StreamId::new(tenant(), id());
    store.append(to(stream, Expected::Exact(0), vec![made("3", json!({"type": "made"}))])).await.unwrap();
    assert!(matches!(store.load::<Thing>(stream).await, Err(LoadError::UnknownEvent { version, .. }) if version == "3"));
    let raw = store.at(1).await.unwrap().unwrap();
    assert!(matches!(store.typed::<Thing>(&[&raw]).await, Err(LoadError::UnknownEvent { position: 1, .. })));
}

#[tokio::test]
async fn what_was_sealed_is_read_again_until_its_subject_is_erased() {
    let env = Env::new().await;
    let store = env.store().await;
    let (stream, subject) = (StreamId::new(tenant(), id()), SubjectId(id()));
    let words = Personal::new(subject, "hello".to_owned());
    store.append(to(stream, Expected::Exact(0), vec![made("2", json!({"type": "made", "number": 1, "words": words}))])).await.unwrap();
    // Another process, so that nothing comes from this one's cache.
    let other = env.store().await;
    assert_eq!(other.load::<Thing>(stream).await.unwrap().state.0, Some(Event::Made { number: Some(1), words }));
    let erase = with_payload(json!({"type": "happened"}), vec![domain::Effect::Erase(subject)]);
    store.append(to(StreamId::new(stream.tenant, id()), Expected::Exact(0), vec![erase])).await.unwrap();
    let gone = Event::Made { number: Some(1), words: Personal::Erased { subject } };
    assert_eq!(store.load::<Thing>(stream).await.unwrap().state.0, Some(gone.clone()), "at once in the process that erased");
    assert_eq!(env.store().await.load::<Thing>(stream).await.unwrap().state.0, Some(gone), "and in every new one");
}

#[tokio::test]
async fn a_log_is_not_opened_with_another_master_key_than_its_own() {
    let env = Env::new().await;
    env.store().await;
    let mut config = env.store_config();
    config.master_key = store::MasterKey::from_hex(&store::MasterKey::generate()).unwrap();
    assert!(matches!(store::Store::open(&env.database, config).await, Err(store::OpenError::WrongMasterKey)));
    env.store().await;
}

#[tokio::test]
async fn a_subject_that_is_erased_before_anything_was_sealed_for_it_stays_erased() {
    let env = Env::new().await;
    let store = env.store().await;
    let (stream, subject) = (StreamId::new(tenant(), id()), SubjectId(id()));
    let erase = with_payload(json!({"type": "happened"}), vec![domain::Effect::Erase(subject)]);
    store.append(to(stream, Expected::Exact(0), vec![erase])).await.unwrap();
    let words = Personal::new(subject, "hello".to_owned());
    let late = store
        .append(to(
            StreamId::new(stream.tenant, id()),
            Expected::Exact(0),
            vec![made("2", json!({"type": "made", "number": 1, "words": words}))],
        ))
        .await;
    assert!(matches!(late, Err(store::AppendError::Refused(domain::Refusal::SubjectErased { .. }))), "{late:?}");
}

#[tokio::test]
async fn a_personal_value_that_cannot_be_sealed_is_refused_and_never_stored_in_clear() {
    let env = Env::new().await;
    let store = env.store().await;
    let flattened = json!({"type": "made", "$personal": {"subject": id(), "value": "ada"}});
    let answer = store.append(to(StreamId::new(tenant(), id()), Expected::Exact(0), vec![made("2", flattened)])).await;
    assert!(matches!(answer, Err(store::AppendError::Failed(_))), "{answer:?}");
    assert_eq!(store.head().await.unwrap().position, 0);
}
