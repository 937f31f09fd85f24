//! What is sealed opens in its one place only.

use domain::{Personal, StreamId, SubjectId, TenantId};
use serde_json::{Value, json};
use sqlx::PgPool;
use store::load::LoadError;
use store::{Expected, MasterKey, NewEvent, RawEvent, Store};
use testing::thing::{Event, Thing};
use testing::{Env, id};
use uuid::Uuid;

use crate::kit::{tenant, to};

/// Appends a `thing.made` with these fields besides, and answers it as it is stored.
async fn stored(store: &Store, stream: StreamId, fields: Value) -> RawEvent {
    let mut payload = json!({"type": "made", "number": null});
    payload.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let event = NewEvent { event_id: id(), event_type: "thing.made".into(), event_version: "2".into(), payload, effects: vec![] };
    let position = store.append(to(stream, Expected::Any, vec![event])).await.unwrap().position;
    store.at(position).await.unwrap().unwrap()
}

fn with(event: &RawEvent, change: impl FnOnce(&mut Value)) -> RawEvent {
    let mut payload: Value = serde_json::from_str(&event.payload).unwrap();
    change(&mut payload);
    RawEvent { payload: payload.to_string(), ..event.clone() }
}

async fn opens(store: &Store, event: &RawEvent) -> Option<String> {
    match store.typed::<Thing>(&[event]).await {
        Ok(events) => {
            let Event::Made { words, .. } = &events[0].event else { panic!("{:?}", events[0].event) };
            words.known().cloned()
        }
        Err(LoadError::Corrupt { reason, .. }) => {
            assert!(reason.contains("cannot be opened"), "{reason}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn a_sealed_value_opens_in_no_other_field_event_stream_aggregate_tenant_or_subject() {
    let env = Env::new().await;
    let store = env.store().await;
    let (tenant, ada, grace) = (tenant(), SubjectId(id()), SubjectId(id()));
    let stream = StreamId::new(tenant, id());
    let fields = || {
        json!({
            "words": Personal::new(ada, "first"), "other": Personal::new(ada, "second"), "of_grace": Personal::new(grace, "third"),
            "list": [Personal::new(ada, "fourth"), Personal::new(ada, "fifth")], "a/b": {"c": Personal::new(ada, "sixth")},
        })
    };
    let event = stored(&store, stream, fields()).await;
    let later = stored(&store, stream, fields()).await;
    assert_eq!(opens(&store, &event).await.as_deref(), Some("first"), "where it belongs");
    let other: Value = serde_json::from_str(&later.payload).unwrap();
    let swap = |a: &'static str, b: &'static str| {
        with(&event, move |payload| {
            let (one, two) = (payload.pointer(a).unwrap().clone(), payload.pointer(b).unwrap().clone());
            *payload.pointer_mut(a).unwrap() = two;
            *payload.pointer_mut(b).unwrap() = one;
        })
    };
    let field = |name: &'static str, value: Value| with(&event, move |payload| payload["words"]["$sealed"][name] = value);
    let moves: Vec<(&str, RawEvent)> = vec![
        ("another field", swap("/words", "/other")),
        ("another place of a list", swap("/list/0", "/list/1")),
        ("from a list into a field", swap("/words", "/list/0")),
        ("another level", swap("/words", "/a~1b/c")),
        (
            "a field of another name",
            with(&event, |payload| {
                let words = payload["words"].clone();
                payload["more"] = words;
            }),
        ),
        ("another person's field", swap("/words", "/of_grace")),
        ("another subject", field("subject", json!(grace))),
        ("the same field of another event", with(&event, |payload| payload["words"] = other["words"].clone())),
        ("another event id", RawEvent { event_id: later.event_id, ..event.clone() }),
        ("another stream", RawEvent { aggregate_id: StreamId::new(tenant, id()).to_string(), ..event.clone() }),
        ("another aggregate", RawEvent { aggregate_type: "other".into(), ..event.clone() }),
        ("the first version", with(&event, |payload| drop(payload["words"]["$sealed"].as_object_mut().unwrap().remove("v")))),
        ("a version that is not known", field("v", json!(3))),
        ("no data", field("data", json!(""))),
    ];
    for (what, moved) in moves {
        assert_eq!(opens(&store, &moved).await, None, "{what}");
    }
    // Another tenant's person with the same id has another key; with the same key the tenant is what differs.
    let twin = TenantId(id());
    sqlx::query("insert into ops.subject_keys select $2, subject_id, wrapped_key from ops.subject_keys where tenant_id = $1")
        .bind(tenant.0)
        .bind(twin.0)
        .execute(&env.owner)
        .await
        .unwrap();
    let elsewhere = RawEvent { tenant_id: twin.0, aggregate_id: StreamId::new(twin, stream.id).to_string(), ..event.clone() };
    assert_eq!(opens(&store, &elsewhere).await, None, "another tenant");
    // What a stream is loaded by knows the ids of its events too.
    let loaded = store.reload::<Thing>(stream).await.unwrap();
    assert!(matches!(&loaded.state.0, Some(Event::Made { words, .. }) if words.known().is_some_and(|words| words == "first")));
}

/// Made by the version before: bound to tenant and subject alone, under the master key of sevens.
const OLD_KEY: &str = "1002df3234aef62bfc28dcfaf4bb6840ea9ddc74e0bbbe51cd62f95442bbda6f700847f4b3d95b863b3aa673865850db554017cf19a4c616023f2911ee966c1aae3446f38587b7d4";
const OLD_DATA: &str = "GNU5b5+ob6lWi7mJFY3R85p6uFayKCyISTbEUuVUH/CDJQq03YZ7LJQKoCjcRx42PXBkiswAxqXoJBCpkACSCnTt";
const OLD_SECRET: &str = "9c4c9ebcd91740353e03dace7d7db7cb3e9b5190ba86b334fd7a4c3e5151e3c451abb51ae5b5f57050ce0194370bb2c517af1a8f390d";

fn bytes(hex: &str) -> Vec<u8> {
    hex.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

#[tokio::test]
async fn what_the_first_version_sealed_and_wrapped_stays_readable() {
    let mut env = Env::new().await;
    env.master_key = MasterKey::from_hex(&"07".repeat(32)).unwrap();
    let store = env.store().await;
    let (tenant, subject) = (TenantId(Uuid::from_u128(1)), SubjectId(Uuid::from_u128(2)));
    sqlx::query("insert into ops.subject_keys values ($1, $2, $3)")
        .bind(tenant.0)
        .bind(subject.0)
        .bind(bytes(OLD_KEY))
        .execute(&env.owner)
        .await
        .unwrap();
    let words = json!({"words": {"$sealed": {"subject": subject, "data": OLD_DATA}}});
    let event = stored(&store, StreamId::new(tenant, id()), words).await;
    assert_eq!(opens(&store, &event).await.as_deref(), Some("ada.lovelace@example.com"));
    let secret = store.unwrap("provider event", &["stripe", "evt_1"], &bytes(OLD_SECRET));
    assert_eq!(secret.as_deref(), Some(br#"{"id":"evt_1"}"#.as_slice()));
}

#[tokio::test]
async fn a_wrapped_secret_opens_for_its_own_use_and_row_only() {
    let env = Env::new().await;
    let store = env.store().await;
    let wrapped = store.wrap("provider event", &["stripe", "evt_1"], b"body").unwrap();
    assert_eq!(store.unwrap("provider event", &["stripe", "evt_1"], &wrapped).as_deref(), Some(b"body".as_slice()));
    let moves: [(&'static str, &[&str]); 6] = [
        ("provider event", &["stripe", "evt_2"]),
        ("provider event", &["other", "evt_1"]),
        ("provider event", &["stripeevt_1"]),
        ("provider event", &["stripe", "evt_1", ""]),
        ("provider event", &[]),
        ("signing key", &["stripe", "evt_1"]),
    ];
    for (domain, row) in moves {
        assert_eq!(store.unwrap(domain, row, &wrapped), None, "{domain} {row:?}");
    }
    assert_eq!(store.unwrap("provider event", &["stripe", "evt_1"], &wrapped[4..]), None, "as one of the first version");
}

/// All that is stored of an idempotency key.
async fn keys(owner: &PgPool) -> Vec<String> {
    sqlx::query_scalar("select key from ops.idempotency_keys order by position").fetch_all(owner).await.unwrap()
}

#[tokio::test]
async fn an_idempotency_key_that_names_a_person_is_in_no_table_and_is_known_all_the_same() {
    let env = Env::new().await;
    let store = env.store().await;
    let (tenant, plain) = (tenant(), id().to_string());
    let append = crate::kit::new_stream(tenant, vec![]);
    let first = store.append(crate::kit::keyed(append.clone(), "invite ada.lovelace@example.com", 1)).await.unwrap();
    let again = store.append(crate::kit::keyed(append.clone(), "invite ada.lovelace@example.com", 1)).await.unwrap();
    assert!(again.replayed && again.aggregate_id == first.aggregate_id);
    store.append(crate::kit::keyed(crate::kit::new_stream(tenant, vec![]), &plain, 1)).await.unwrap();
    let kept = keys(&env.owner).await;
    assert!(kept[0].len() == 64 && !kept[0].contains("ada"), "{kept:?}");
    assert_eq!(kept[1], plain, "an id says nothing");
}
