//! The stream is the log, whatever happens.

use std::path::Path;
use std::time::Duration;

use async_nats::jetstream::consumer::pull::{self, OrderedConfig};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::Config;
use bus::Bus;
use bus::feed::{Feed, FeedState};
use bus::mirror::{compare, rebuild};
use bus::permissions;
use bus::relay::{Relay, Status};
use domain::{Effect, StreamId, TenantId};
use futures::StreamExt as _;
use serde_json::json;
use store::{Append, AppendError, Appended, Expected, Metadata, NewEvent, Store, StreamAppend};
use testing::{Env, eventually, id};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Appends `count` events in one go.
pub async fn append(store: &Store, count: usize) {
    try_append(store, count).await.unwrap();
}

async fn try_append(store: &Store, count: usize) -> Result<Appended, AppendError> {
    let stream = StreamId::new(TenantId(id()), id());
    let event = |n: usize| NewEvent {
        event_id: id(),
        event_type: "thing.happened".into(),
        event_version: "1".into(),
        payload: json!({"n": n, "text": "a bit of text"}),
        effects: Vec::<Effect>::new(),
    };
    let request = Append {
        tenant: stream.tenant,
        streams: vec![StreamAppend { aggregate: "thing", stream, expected: Expected::Any, events: (0..count).map(event).collect() }],
        preconditions: vec![],
        keys: vec![],
        metadata: Metadata {
            actor: testing::node::system(),
            command_id: id(),
            correlation_id: id(),
            causation_id: None,
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
            erases: None,
        },
    };
    store.append(request).await
}

/// Removes all events after a position, as a restored backup lacks them.
pub async fn roll_back(env: &Env, position: i64) {
    sqlx::raw_sql(&format!(
        "alter table events disable trigger all; delete from events where position > {position};
         update log_head set position = {position}, log_hash = (select log_hash from events where position = {position});
         update tenant_heads h set (position, tenant_hash) = (select e.position, e.tenant_hash from events e where e.tenant_id = h.tenant_id order by e.position desc limit 1)
         where exists (select from events e where e.tenant_id = h.tenant_id);
         delete from tenant_heads h where not exists (select from events e where e.tenant_id = h.tenant_id)"
    ))
    .execute(&env.owner)
    .await
    .unwrap();
}

fn start(store: &Store, bus: &Bus) -> (watch::Receiver<Status>, DropGuard) {
    let relay = Relay::new(store.clone(), bus.clone());
    let (status, cancel) = (relay.status(), CancellationToken::new());
    tokio::spawn(relay.run(cancel.clone()));
    (status, cancel.drop_guard())
}

async fn assert_mirrored(store: &Store, bus: &Bus) {
    let head = store.head().await.unwrap().position;
    eventually("the stream is as long as the log", || async {
        let stream = bus.existing_stream().await.ok()??;
        (stream.get_info().await.ok()?.state.last_sequence == u64::try_from(head).unwrap()).then_some(())
    })
    .await;
    assert_eq!(compare(store, bus, head, &mut |_| {}).await.unwrap(), vec![]);
    let state = bus.stream().await.unwrap().get_info().await.unwrap().state;
    assert_eq!(state.messages, u64::try_from(head).unwrap(), "nothing twice");
}

async fn halted(status: &mut watch::Receiver<Status>) -> String {
    let status =
        tokio::time::timeout(testing::PATIENCE, status.wait_for(|s| matches!(s, Status::Halted { .. }))).await.expect("it halts").unwrap();
    let Status::Halted { reason } = status.clone() else { unreachable!() };
    reason
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_carries_the_event_byte_for_byte_and_its_cloudevents_attributes() {
    let env = Env::new().await;
    let store = env.store().await;
    let bus = env.bus(&store).await;
    let mut outside = bus.client().subscribe(format!("{}.events.*.thing.>", env.prefix)).await.unwrap();
    let (_, _guard) = start(&store, &bus);
    append(&store, 1).await;
    let message = futures::StreamExt::next(&mut outside).await.unwrap();
    let event = store.at(1).await.unwrap().unwrap();
    assert_eq!(message.subject.as_str(), format!("{}.events.{}.thing.happened", env.prefix, event.tenant_id));
    assert_eq!(message.payload, event.payload.as_bytes());
    let headers = message.headers.unwrap();
    let get = |name: &str| headers.get(name).unwrap().as_str().to_owned();
    assert_eq!((get("ce-specversion"), get("ce-id"), get("ce-position")), ("1.0".into(), event.event_id.to_string(), "1".into()));
    assert_eq!(get("ce-traceparent"), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    assert_eq!(bus::envelope::decode(&headers, &message.payload), Some(event), "and all of it can be read back");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_relays_at_once_and_one_stopped_in_mid_window_leave_the_stream_equal_to_the_log() {
    let env = Env::new().await;
    let store = env.store().await;
    let bus = env.bus(&store).await;
    for _ in 0..6 {
        append(&store, 500).await;
    }
    // These ignore the lease, so they really publish against each other.
    let head = store.head().await.unwrap().position;
    let race = |n: i64| {
        let relay = Relay::new(store.clone(), bus.clone());
        tokio::spawn(async move { relay.run_until(n).await })
    };
    let (a, b) = (race(head), race(head));
    // And this one dies in the middle of its window.
    let dying = race(head);
    eventually("something is published", || async {
        (bus.existing_stream().await.ok()??.get_info().await.ok()?.state.messages > 100).then_some(())
    })
    .await;
    dying.abort();
    for _ in 0..4 {
        append(&store, 300).await;
    }
    a.await.unwrap().unwrap();
    b.await.unwrap().unwrap();
    let (_, _guard) = start(&store, &bus);
    let (_, _other) = start(&store, &bus);
    append(&store, 100).await;
    assert_mirrored(&store, &bus).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_vanished_under_a_running_relay_is_published_again() {
    let env = Env::new().await;
    let store = env.store().await;
    let bus = env.bus(&store).await;
    let (_, _guard) = start(&store, &bus);
    append(&store, 300).await;
    assert_mirrored(&store, &bus).await;
    bus.jetstream().delete_stream(bus.stream_name()).await.unwrap();
    append(&store, 10).await;
    assert_mirrored(&store, &bus).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_published_by_somebody_else_halts_the_relay_which_says_why_until_the_bus_is_rebuilt() {
    let env = Env::new().await;
    let store = env.store().await;
    let bus = env.bus(&store).await;
    let (mut status, _guard) = start(&store, &bus);
    append(&store, 5).await;
    assert_mirrored(&store, &bus).await;
    let intruder = PublishMessage::build().payload("boo".into());
    bus.jetstream().send_publish(format!("{}.events.x.y", env.prefix), intruder).await.unwrap().await.unwrap();
    append(&store, 5).await;
    let reason = halted(&mut status).await;
    assert!(
        reason.contains("message 6") && reason.contains("not published by Tenure") && reason.contains("tenure bus rebuild"),
        "{reason}"
    );
    assert_eq!(compare(&store, &bus, 10, &mut |_| {}).await.unwrap()[0].position, Some(6), "the audit names the place");
    rebuild(&store, &bus).await.unwrap();
    assert_mirrored(&store, &bus).await;
    status.wait_for(|s| matches!(s, Status::Running { .. })).await.unwrap();
    append(&store, 5).await;
    assert_mirrored(&store, &bus).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_restored_to_an_earlier_state_halts_the_relay_which_says_why() {
    let env = Env::new().await;
    let store = env.store().await;
    let bus = env.bus(&store).await;
    {
        let (_, _guard) = start(&store, &bus);
        append(&store, 10).await;
        assert_mirrored(&store, &bus).await;
    }
    roll_back(&env, 6).await;
    let (mut status, _guard) = start(&store, &bus);
    let reason = halted(&mut status).await;
    assert!(reason.contains("ends at 10, beyond the log's end at 6"), "{reason}");
    // And once other events have taken the lost ones' places, the stream still is not extended.
    append(&store, 8).await;
    let other = tokio::time::timeout(
        testing::PATIENCE,
        status.wait_for(|s| matches!(s, Status::Halted { reason } if reason.contains("position 10 is event"))),
    )
    .await
    .expect("it says so");
    drop(other);
}

/// A nats-server of the test's own, whose store it may maltreat.
#[tokio::test(flavor = "multi_thread")]
async fn a_jetstream_store_that_was_wiped_or_rolled_back_to_an_earlier_copy_is_refilled() {
    let mut servers = testing::servers::Servers::start().await;
    let env = testing::servers::Shared::prepare(servers.remembered.clone()).await.new_env().await;
    let store = env.store().await;
    let bus = env.bus(&store).await;
    let (_, _guard) = start(&store, &bus);
    let directory = servers.data.path().join("nats");
    let copy = servers.data.path().join("nats-copy");
    append(&store, 200).await;
    assert_mirrored(&store, &bus).await;
    servers.nats.stop().await;
    let shell = |script: String| assert!(std::process::Command::new("sh").args(["-ec", &script]).status().unwrap().success());
    let show = |path: &Path| path.display().to_string();
    shell(format!("cp -a {} {}", show(&directory), show(&copy)));
    servers.nats = servers::Nats::start(&servers.data, &servers.remembered).await.unwrap();
    append(&store, 300).await;
    assert_mirrored(&store, &bus).await;
    // What a power loss does to messages that were acknowledged and not yet synced.
    servers.nats.stop().await;
    shell(format!("rm -rf {0}; mv {1} {0}", show(&directory), show(&copy)));
    append(&store, 50).await;
    servers.nats = servers::Nats::start(&servers.data, &servers.remembered).await.unwrap();
    assert_mirrored(&store, &bus).await;
    servers.nats.stop().await;
    shell(format!("rm -rf {}", show(&directory)));
    servers.nats = servers::Nats::start(&servers.data, &servers.remembered).await.unwrap();
    assert_mirrored(&store, &bus).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_that_another_party_sets_on_the_stream_are_taken_back_and_messages_that_are_gone_halt_the_relay() {
    let env = Env::new().await;
    let store = env.store().await;
    let bus = env.bus(&store).await;
    let (mut status, _guard) = start(&store, &bus);
    append(&store, 20).await;
    assert_mirrored(&store, &bus).await;
    let config = |change: fn(&mut Config)| {
        let mut config = Config {
            name: bus.stream_name(),
            subjects: vec![format!("{}.events.>", env.prefix)],
            deny_delete: true,
            deny_purge: true,
            ..Config::default()
        };
        change(&mut config);
        config
    };
    // Each of these loses nothing yet, and would.
    for change in [
        |c: &mut Config| c.max_messages = 1000,
        |c: &mut Config| c.max_age = Duration::from_secs(3600),
        |c: &mut Config| c.max_bytes = 1 << 20,
        |c: &mut Config| c.max_message_size = 1024,
    ] {
        bus.jetstream().update_stream(config(change)).await.unwrap();
        append(&store, 1).await;
        eventually("the limit is gone", || async {
            let config = bus.existing_stream().await.ok()??.get_info().await.ok()?.config;
            (config.max_messages <= 0 && config.max_age.is_zero() && config.max_bytes <= 0 && config.max_message_size <= 0).then_some(())
        })
        .await;
        assert_mirrored(&store, &bus).await;
    }
    bus.jetstream().update_stream(config(|config| config.max_messages = 10)).await.unwrap();
    let reason = halted(&mut status).await;
    assert!(reason.contains("the stream begins at 15") && reason.contains("tenure bus rebuild"), "{reason}");
    rebuild(&store, &bus).await.unwrap();
    assert_mirrored(&store, &bus).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_only_messages_smaller_than_an_event_halts_the_relay_before_it_meets_one() {
    let mut servers = testing::servers::Servers::start().await;
    let env = testing::servers::Shared::prepare(servers.remembered.clone()).await.new_env().await;
    let store = env.store().await;
    append(&store, 3).await;
    servers.nats.stop().await;
    let config = servers.data.path().join("nats.conf");
    let small = servers.data.path().join("small.conf");
    std::fs::write(&small, format!("{}max_payload: 65536\n", std::fs::read_to_string(&config).unwrap())).unwrap();
    let _server = tokio::process::Command::new(servers::nats_program().unwrap())
        .arg("-c")
        .arg(&small)
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let bus = env.bus(&store).await;
    let (mut status, _guard) = start(&store, &bus);
    let reason = halted(&mut status).await;
    assert!(reason.contains("at most 65536 bytes") && reason.contains("max_payload"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_user_of_the_relay_may_publish_events_and_the_others_can_still_consume_them() {
    let mut servers = testing::servers::Servers::start().await;
    let env = testing::servers::Shared::prepare(servers.remembered.clone()).await.new_env().await;
    servers.nats.stop().await;
    servers.remembered.nats_accounts = Some(permissions::accounts(&env.prefix, |user| servers.remembered.nats_password_of(user)));
    servers.nats = servers::Nats::start(&servers.data, &servers.remembered).await.unwrap();
    let store = env.store().await;
    let relaying = env.bus(&store).await;
    let (_, _guard) = start(&store, &relaying);
    append(&store, 5).await;
    assert_mirrored(&store, &relaying).await;
    relaying.publish_checkpoint("signed").await.unwrap();
    // The feed hears its events, and its hints reach the relay.
    let feed_url = servers.remembered.nats_url_as(permissions::FEED).unwrap();
    let feeding = Bus::connect(&feed_url, &env.prefix, store.installation()).await.unwrap();
    let cancel = CancellationToken::new();
    let _cancel = cancel.clone().drop_guard();
    let mut state = Feed::start(store.clone(), feeding.clone(), cancel).state();
    tokio::time::timeout(testing::PATIENCE, state.wait_for(|state| *state == FeedState::Listening)).await.expect("it listens").unwrap();
    // A subscriber, by the client's own defaults.
    let address: async_nats::ServerAddr = servers.remembered.nats_url_as(permissions::SUBSCRIBER).unwrap().parse().unwrap();
    let options =
        async_nats::ConnectOptions::new().user_and_password(address.username().unwrap().into(), address.password().unwrap().into());
    let client = options.connect(address).await.unwrap();
    let outside = async_nats::jetstream::new(client.clone());
    let name = relaying.stream_name();
    let stream = outside.get_stream(&name).await.unwrap();
    let consumer = stream.create_consumer(OrderedConfig::default()).await.unwrap();
    let messages: Vec<_> = consumer.messages().await.unwrap().take(5).collect().await;
    assert!(messages.into_iter().all(|message| message.is_ok()), "it consumes");
    let durable = pull::Config { durable_name: Some("outside".into()), ..Default::default() };
    let durable = stream.create_consumer(durable).await.unwrap();
    let handled: Vec<_> = durable.fetch().max_messages(5).messages().await.unwrap().collect().await;
    let last = handled.last().unwrap().as_ref().unwrap();
    last.double_ack().await.unwrap();
    let hears = client.subscribe(format!("{}.events.>", env.prefix)).await.unwrap();

    let intruder = |bus: async_nats::jetstream::Context| {
        let subject = format!("{}.events.x.y", env.prefix);
        async move { bus.send_publish(subject, PublishMessage::build().payload("boo".into())).await.unwrap().await }
    };
    for (who, bus) in [("the subscriber", outside.clone()), ("the feed", feeding.jetstream().clone())] {
        assert!(intruder(bus).await.is_err(), "{who} published an event");
    }
    assert!(outside.delete_stream(&name).await.is_err(), "nor may it delete the stream");
    // The server writes no answer, no message that is asked for, and none of a consumer into the stream for it.
    let event = format!("{}.events.x.y", env.prefix);
    let acknowledgement = handled[0].as_ref().unwrap().reply.clone().unwrap().to_string();
    for (subject, body) in [
        ("$JS.API.INFO".to_owned(), ""),
        (format!("$JS.API.STREAM.INFO.{name}"), ""),
        (format!("$JS.API.CONSUMER.MSG.NEXT.{name}.outside"), ""),
        (acknowledgement, "+NXT"),
    ] {
        client.publish_with_reply(subject, event.clone(), body.into()).await.unwrap();
    }
    let checkpoints = format!("TENURE_CHECKPOINTS_{}", store.installation().simple());
    for (n, (of, to)) in [&name, &checkpoints]
        .into_iter()
        .flat_map(|of| [event.clone(), format!("$JS.API.STREAM.PURGE.{name}")].map(|to| (of, to)))
        .enumerate()
    {
        let config =
            json!({"stream_name": of, "config": {"durable_name": format!("push-{n}"), "deliver_subject": to, "ack_policy": "none"}});
        let subject = format!("$JS.API.CONSUMER.DURABLE.CREATE.{of}.push-{n}");
        client.request(subject, serde_json::to_vec(&config).unwrap().into()).await.unwrap();
    }
    append(&store, 5).await;
    relaying.publish_checkpoint("signed again").await.unwrap();
    assert_mirrored(&store, &relaying).await;
    let handled: Vec<_> = durable.fetch().max_messages(10).messages().await.unwrap().collect().await;
    let positions: Vec<_> =
        handled.iter().map(|message| message.as_ref().unwrap().headers.as_ref().unwrap().get("ce-position").unwrap().as_str()).collect();
    // Two went where it had asked for them: to its own subscriptions.
    assert_eq!(positions, ["8", "9", "10"], "and it reads nothing but events");
    // What is published while it listens reaches it too.
    let events =
        hears.filter(|message| std::future::ready(message.headers.as_ref().is_some_and(|headers| headers.get("ce-position").is_some())));
    let events: Vec<_> = tokio::time::timeout(testing::PATIENCE, events.take(5).collect()).await.expect("it hears");
    assert_eq!(events.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_finds_an_older_log_behind_a_new_connection_writes_nothing_that_it_decided_before() {
    let env = Env::new().await;
    let store = env.store().await;
    append(&store, 10).await;
    roll_back(&env, 6).await;
    sqlx::query("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and usename = 'tenure_service'")
        .execute(&env.owner)
        .await
        .unwrap();
    assert!(matches!(try_append(&store, 1).await, Err(AppendError::Unavailable)), "decided upon a history that is gone");
    append(&store, 1).await;
    assert_eq!(store.head().await.unwrap().position, 7);
    assert_eq!(*store.watch_head().borrow(), 7, "and whoever follows it is told");
    let found = store.audit(&mut |_| {}).await.unwrap().findings;
    assert!(found.iter().all(|finding| finding.what.contains("not known to this binary")), "{found:?}");
}
