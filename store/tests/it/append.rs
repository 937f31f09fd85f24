//! The append path.

use std::collections::HashSet;

use chrono::TimeDelta;
use domain::{Claim, Effect, Gate, Personal, Precondition, Refusal, Scope, StreamId, SubjectId};
use serde_json::json;
use sqlx::Executor as _;
use store::{AppendError, DbRole, Expected, Hash};
use testing::{Env, id};

use crate::kit::{assert_log_is_sound, at_once, event, keyed, new_stream, tenant, to, when, with_payload};

const SLUG: Claim = Claim { namespace: "slug", scope: Scope::Installation, personal: false };
const MAIL: Claim = Claim { namespace: "mail", scope: Scope::Tenant, personal: true };

fn take(value: &str) -> Effect {
    Effect::TakeClaim { claim: SLUG, label: "current".into(), value: Some(value.into()) }
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_callers_at_once_leave_a_dense_log_with_one_winner_per_claim_and_exact_counters_and_gapless_allocations() {
    let env = Env::new().await;
    // Two processes: each has its own writer, so they also race for the head.
    let stores = [env.store().await, env.store().await];
    let (busy, few) = (tenant(), StreamId::new(tenant(), id()));
    stores[0].append(new_stream(busy, vec![Effect::Bound { counter: "seats".into(), floor: Some(0), ceiling: Some(20) }])).await.unwrap();
    let mut tasks = Vec::new();
    for caller in 0..64_u32 {
        let store = stores[caller as usize % 2].clone();
        tasks.push(tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            let mut seats = 0_i64;
            let mut slugs = Vec::new();
            for round in 0..12_u32 {
                let number = Effect::Allocate { sequence: "number", pointer: "/number" };
                let mut request = to(
                    StreamId::new(busy, id()),
                    Expected::Exact(0),
                    vec![with_payload(json!({"type": "happened", "number": null}), vec![number])],
                );
                match (caller + round) % 6 {
                    // A wrong version: refused, and harms nobody.
                    0 => request.streams[0].expected = Expected::Exact(7),
                    1 => request.streams[0].events[0].effects.push(take(&format!("slug-{}", round % 4))),
                    2 => request.streams[0].events[0].effects.push(Effect::Count { counter: "seats".into(), delta: 1 }),
                    3 => request.streams[0].events[0].effects.push(Effect::Count { counter: "seats".into(), delta: -1 }),
                    // Everybody on one stream.
                    4 => request.streams[0] = to(few, Expected::Any, vec![event(vec![])]).streams.remove(0),
                    _ => {}
                }
                let wrong = (caller + round) % 6 == 0;
                let ids: Vec<_> = request.streams[0].events.iter().map(|e| e.event_id).collect();
                let effects = request.streams[0].events[0].effects.clone();
                match store.append(request).await {
                    Ok(_) => {
                        assert!(!wrong, "a wrong version was accepted");
                        acknowledged.extend(ids.into_iter().map(|id| (id, true)));
                        for effect in effects {
                            if let Effect::Count { delta, .. } = effect {
                                seats += delta;
                            } else if let Effect::TakeClaim { value, .. } = effect {
                                slugs.extend(value);
                            }
                        }
                    }
                    Err(AppendError::Refused(_) | AppendError::Conflict { .. }) => {
                        acknowledged.extend(ids.into_iter().map(|id| (id, false)));
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            (acknowledged, seats, slugs)
        }));
    }
    let (mut there, mut refused, mut seats, mut slugs) = (HashSet::new(), HashSet::new(), 0, Vec::new());
    for task in tasks {
        let (acknowledged, mine, won) = task.await.unwrap();
        seats += mine;
        slugs.extend(won);
        for (id, accepted) in acknowledged {
            if accepted {
                there.insert(id)
            } else {
                refused.insert(id)
            };
        }
    }
    let events = stores[0].read_from(0, 10_000).await.unwrap();
    let in_log: HashSet<_> = events.iter().skip(1).map(|e| e.event_id).collect();
    assert_eq!(in_log, there, "everything acknowledged is there once, and nothing else");
    assert_eq!(in_log.len() + 1, events.len());
    assert!(!refused.is_empty() && in_log.is_disjoint(&refused));
    assert!(events.iter().map(|e| e.position).eq(1..=i64::try_from(events.len()).unwrap()), "dense");

    let numbers: Vec<i64> =
        events.iter().filter_map(|e| serde_json::from_str::<serde_json::Value>(&e.payload).unwrap()["number"].as_i64()).collect();
    assert!(numbers.iter().copied().eq(1..=i64::try_from(numbers.len()).unwrap()), "allocated in log order without a gap");

    let value: i64 = sqlx::query_scalar("select value from counters where name = 'seats'").fetch_one(&env.owner).await.unwrap();
    assert_eq!(value, seats);
    assert!((0..=20).contains(&value));
    slugs.sort();
    assert_eq!(slugs, ["slug-0", "slug-1", "slug-2", "slug-3"], "one winner each");
    assert_log_is_sound(&env).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_makes_its_batch_fail_harms_no_other() {
    let env = Env::new().await;
    // The database itself refuses this one, whatever was decided before.
    env.owner.execute("alter table events add constraint poison check (event_type <> 'thing.poison')").await.unwrap();
    let store = env.store().await;
    let tenant = tenant();
    let mut requests: Vec<_> = (0..50).map(|_| new_stream(tenant, vec![])).collect();
    requests[20].streams[0].events[0].event_type = "thing.poison".into();
    let answers = at_once(&store, requests).await;
    for (n, answer) in answers.iter().enumerate() {
        assert_eq!(answer.is_ok(), n != 20, "{answer:?}");
    }
    assert_eq!(store.head().await.unwrap().position, 49);
    assert_log_is_sound(&env).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_tenant_does_not_keep_others_waiting() {
    let env = Env::new().await;
    let mut config = env.store_config();
    config.batch = 8;
    let (store, _) = store::Store::open(&env.database, config).await.unwrap();
    let (busy, quiet) = (tenant(), tenant());
    // All of these are in the queue before the quiet tenant comes: the runtime has not let the writer run in between.
    let mut requests: Vec<_> = (0..400).map(|_| new_stream(busy, vec![])).collect();
    requests.push(new_stream(quiet, vec![]));
    let answers = at_once(&store, requests).await;
    let last = answers.last().unwrap().as_ref().unwrap().position;
    let behind = answers.iter().filter(|a| a.as_ref().unwrap().position > last).count();
    assert!(behind > 100, "the quiet tenant came {last} of 401");
}

#[tokio::test]
async fn requests_beyond_the_queue_are_refused_as_overload_and_leave_nothing() {
    let env = Env::new().await;
    let mut config = env.store_config();
    config.queue = 10;
    let (store, _) = store::Store::open(&env.database, config).await.unwrap();
    let tenant = tenant();
    // On this one-threaded runtime all of them come before the writer's turn.
    let answers = at_once(&store, (0..300).map(|_| new_stream(tenant, vec![])).collect()).await;
    let accepted = answers.iter().filter(|a| a.is_ok()).count();
    assert!(answers.iter().all(|a| matches!(a, Ok(_) | Err(AppendError::Overloaded))));
    assert!((7..300).contains(&accepted), "{accepted}");
    assert_eq!(store.head().await.unwrap().position, i64::try_from(accepted).unwrap());
}

#[tokio::test]
async fn a_writer_that_stalls_inside_its_transaction_delays_others_for_two_seconds_at_most() {
    let env = Env::new().await;
    let store = env.store().await;
    let mut stuck = env.database.connect(DbRole::Writer, &[("idle_in_transaction_session_timeout", "2s")]).await.unwrap();
    stuck.execute("begin").await.unwrap();
    stuck.execute("select 1 from log_head for update").await.unwrap();
    let since = std::time::Instant::now();
    store.append(new_stream(tenant(), vec![])).await.unwrap();
    assert!(since.elapsed() < std::time::Duration::from_secs(4), "{:?}", since.elapsed());
}

#[tokio::test]
async fn several_streams_are_appended_together_or_not_at_all() {
    let env = Env::new().await;
    let store = env.store().await;
    let tenant = tenant();
    let (a, b) = (StreamId::new(tenant, id()), StreamId::new(tenant, id()));
    let mut both = to(a, Expected::Exact(0), vec![event(vec![]), event(vec![])]);
    both.streams.extend(to(b, Expected::Exact(0), vec![event(vec![])]).streams);
    let done = store.append(both.clone()).await.unwrap();
    assert_eq!((done.version, done.position, done.created), (2, 3, true));
    // The second stream is not where it should be, so the first gets nothing either.
    both.streams[0].expected = Expected::Exact(2);
    assert!(matches!(store.append(both).await, Err(AppendError::Conflict { actual: 1, .. })));
    assert_eq!(store.head().await.unwrap().position, 3);
}

#[tokio::test]
async fn preconditions_are_checked_under_the_lock() {
    let env = Env::new().await;
    let store = env.store().await;
    let tenant = tenant();
    let other = StreamId::new(tenant, id());
    store
        .append(to(other, Expected::Exact(0), vec![event(vec![take("acme"), Effect::Count { counter: "n".into(), delta: 3 }])]))
        .await
        .unwrap();
    let ask = |precondition| store.append(when(new_stream(tenant, vec![]), precondition));
    let at = |version| Precondition::StreamAt { aggregate: "thing", stream: other, version };
    assert!(ask(at(1)).await.is_ok());
    assert!(matches!(ask(at(2)).await, Err(AppendError::Refused(Refusal::StreamMoved { .. }))));
    let free = |value: &str| Precondition::ClaimFree { claim: SLUG, value: value.into() };
    assert!(ask(free("other")).await.is_ok());
    assert!(matches!(ask(free("acme")).await, Err(AppendError::Refused(Refusal::ClaimTaken { .. }))));
    let held = |value: &str| Precondition::ClaimHeld { claim: SLUG, value: value.into() };
    assert!(ask(held("acme")).await.is_ok());
    assert!(matches!(ask(held("other")).await, Err(AppendError::Refused(Refusal::ClaimNotHeld { .. }))));
    let within = |at_least, at_most| Precondition::CounterWithin { counter: "n".into(), at_least, at_most };
    assert!(ask(within(Some(3), Some(3))).await.is_ok());
    assert!(matches!(ask(within(Some(4), None)).await, Err(AppendError::Refused(Refusal::CounterOutOfBounds { value: 3, .. }))));
    assert!(matches!(ask(Precondition::GateOpen).await, Err(AppendError::Refused(Refusal::NoSuchTenant { .. }))));
    store.append(new_stream(tenant, vec![Effect::Gate(Gate::Open)])).await.unwrap();
    assert!(ask(Precondition::GateOpen).await.is_ok());
    store.append(new_stream(tenant, vec![Effect::Gate(Gate::Closed("frozen"))])).await.unwrap();
    assert!(matches!(ask(Precondition::GateOpen).await, Err(AppendError::Refused(Refusal::GateClosed { status })) if status == "frozen"));
    let due = testing::start_of_time();
    let timer = Precondition::TimerSet { aggregate: "thing", stream: other, name: "t".into(), due };
    assert!(matches!(ask(timer.clone()).await, Err(AppendError::Refused(Refusal::TimerNotSet { .. }))));
    store.append(to(other, Expected::Any, vec![event(vec![Effect::SetTimer { name: "t".into(), due }])])).await.unwrap();
    assert!(ask(timer.clone()).await.is_ok());
    store
        .append(to(other, Expected::Any, vec![event(vec![Effect::SetTimer { name: "t".into(), due: due + TimeDelta::days(1) }])]))
        .await
        .unwrap();
    assert!(matches!(ask(timer).await, Err(AppendError::Refused(Refusal::TimerNotSet { .. }))));
}

#[tokio::test]
async fn a_claim_moves_with_its_label_and_is_released_without_its_value() {
    let env = Env::new().await;
    let store = env.store().await;
    let (a, b) = (StreamId::new(tenant(), id()), StreamId::new(tenant(), id()));
    let append = |stream, effects| store.append(to(stream, Expected::Any, vec![event(effects)]));
    append(a, vec![take("one")]).await.unwrap();
    append(a, vec![take("two")]).await.unwrap();
    append(b, vec![take("one")]).await.expect("free again, since the label has moved on");
    assert!(matches!(append(b, vec![take("two")]).await, Err(AppendError::Refused(Refusal::ClaimTaken { .. }))));
    append(a, vec![Effect::ReleaseClaim { claim: SLUG, label: "current".into() }]).await.unwrap();
    append(b, vec![take("two")]).await.unwrap();
    let left: Vec<String> = sqlx::query_scalar("select value from claims").fetch_all(&env.owner).await.unwrap();
    assert_eq!(left, ["two"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_from_32_callers_at_once_has_one_effect_and_one_answer() {
    let env = Env::new().await;
    let stores = [env.store().await, env.store().await];
    let tenant = tenant();
    let mut tasks = Vec::new();
    for n in 0..32 {
        let store = stores[n % 2].clone();
        let request = keyed(new_stream(tenant, vec![]), "k1", 1);
        tasks.push(tokio::spawn(async move { store.append(request).await.unwrap() }));
    }
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    assert_eq!(answers.iter().filter(|a| !a.replayed).count(), 1);
    assert!(answers.iter().all(|a| (&a.aggregate_id, a.version, a.position) == (&answers[0].aggregate_id, 1, 1)));
    assert_eq!(stores[0].head().await.unwrap().position, 1);
    assert!(matches!(stores[0].append(keyed(new_stream(tenant, vec![]), "k1", 2)).await, Err(AppendError::KeyReused)));
    assert!(stores[0].append(keyed(new_stream(self::tenant(), vec![]), "k1", 2)).await.is_ok(), "keys belong to a tenant");
}

#[tokio::test]
async fn a_lost_commit_answer_is_found_out_and_nothing_is_written_twice() {
    let env = Env::new().await;
    let store = env.store().await;
    let tenant = tenant();
    store.append(new_stream(tenant, vec![])).await.unwrap();
    // While requests run, every backend of the writer is shot again and again: some commits are lost on the way there, some on the way back.
    let shots = tokio::spawn({
        let owner = env.owner.clone();
        async move {
            for _ in 0..40 {
                let _ = sqlx::query("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() and query like '%append_batch%'").execute(&owner).await;
            }
        }
    });
    let mut accepted = Vec::new();
    let mut n = 0;
    while !shots.is_finished() {
        for answer in at_once(
            &store,
            (0..4)
                .map(|_| {
                    n += 1;
                    new_stream(tenant, vec![])
                })
                .collect(),
        )
        .await
        {
            accepted.push(answer.expect("found out within the writer's patience").position);
        }
    }
    accepted.sort_unstable();
    assert!(accepted.iter().copied().eq(2..=n + 1), "each position answered once");
    assert_eq!(store.head().await.unwrap().position, n + 1);
    assert_log_is_sound(&env).await;
}

#[tokio::test]
async fn no_role_of_the_services_can_change_or_remove_an_event() {
    let env = Env::new().await;
    env.store().await.append(new_stream(tenant(), vec![])).await.unwrap();
    for role in DbRole::ALL {
        let mut connection = env.database.connect(role, &[]).await.unwrap();
        for statement in [
            "update events set payload = '{}'",
            "delete from events",
            "truncate events",
            "alter table events disable trigger all",
            "drop table events",
        ] {
            let error = connection.execute(statement).await.expect_err(statement);
            assert_eq!(error.as_database_error().unwrap().code().unwrap(), "42501", "{role:?}: {statement}");
        }
    }
    // Not even the owner, short of disabling the trigger.
    for statement in ["update events set payload = '{}'", "delete from events", "truncate events"] {
        assert!(env.owner.execute(statement).await.unwrap_err().to_string().contains("append-only"));
    }
}

#[tokio::test]
async fn an_event_that_would_not_fit_into_a_message_is_refused() {
    let env = Env::new().await;
    let store = env.store().await;
    let stream = StreamId::new(tenant(), id());
    let big = with_payload(json!({"type": "happened", "text": "x".repeat(512 * 1024)}), vec![]);
    assert!(matches!(store.append(to(stream, Expected::Exact(0), vec![big])).await, Err(AppendError::Refused(Refusal::TooLarge { .. }))));
    assert_eq!(store.head().await.unwrap().position, 0);
}

#[tokio::test]
async fn a_personal_value_is_in_no_table_in_clear_and_gone_once_its_subject_is_erased() {
    let env = Env::new().await;
    let store = env.store().await;
    let (tenant, subject) = (tenant(), SubjectId(id()));
    let secret = "ada.lovelace@example.com";
    let payload = json!({"type": "happened", "mail": Personal::new(subject, secret), "list": [Personal::new(subject, 7)]});
    let claim = Effect::TakeClaim { claim: MAIL, label: "mail".into(), value: Some(secret.into()) };
    let append = |effects| store.append(to(StreamId::new(tenant, id()), Expected::Exact(0), vec![with_payload(payload.clone(), effects)]));
    append(vec![claim.clone()]).await.unwrap();
    assert!(matches!(append(vec![claim]).await, Err(AppendError::Refused(Refusal::ClaimTaken { .. }))), "a keyed hash still compares");
    let raw = store.read_from(0, 1).await.unwrap().remove(0);
    assert!(raw.payload.contains("$sealed") && !raw.payload.contains("ada"), "{}", raw.payload);
    let tables: Vec<String> = sqlx::query_scalar(
        "select format('%I.%I', table_schema, table_name) from information_schema.tables where table_schema in ('public', 'ops', 'read')",
    )
    .fetch_all(&env.owner)
    .await
    .unwrap();
    assert!(tables.len() > 8);
    for table in tables {
        let rows: Vec<String> = sqlx::query_scalar(&format!("select t::text from {table} t")).fetch_all(&env.owner).await.unwrap();
        assert!(!rows.iter().any(|row| row.contains("lovelace")), "{table}");
    }
    store.append(new_stream(tenant, vec![Effect::Erase(subject)])).await.unwrap();
    assert!(
        matches!(append(vec![]).await, Err(AppendError::Refused(Refusal::SubjectErased { .. }))),
        "nothing is sealed for an erased subject"
    );
    let keys: Vec<Option<Vec<u8>>> = sqlx::query_scalar("select wrapped_key from ops.subject_keys").fetch_all(&env.owner).await.unwrap();
    assert_eq!(keys, [None]);
    assert_log_is_sound(&env).await;
}

#[tokio::test]
async fn an_audit_names_the_first_position_where_a_stored_event_was_changed() {
    let env = Env::new().await;
    let store = env.store().await;
    let tenant = tenant();
    for _ in 0..5 {
        store.append(new_stream(tenant, vec![])).await.unwrap();
    }
    assert_ne!(store.head().await.unwrap().log_hash, Hash::ZERO);
    env.owner.execute("alter table events disable trigger all").await.unwrap();
    env.owner.execute("update events set payload = '{\"type\": \"forged\"}' where position = 3").await.unwrap();
    let report = store.audit(&mut |_| {}).await.unwrap();
    assert!(report.findings.iter().any(|f| f.position == Some(3) && f.what.contains("digest")), "{:?}", report.findings);
    env.owner.execute("update counters set value = 1").await.unwrap();
    env.owner.execute("insert into allocations values (gen_random_uuid(), 'x', 5)").await.unwrap();
    let report = store.audit(&mut |_| {}).await.unwrap();
    assert!(
        report.findings.iter().any(|f| f.what.contains("allocation x") && f.what.contains("the log knows none")),
        "{:?}",
        report.findings
    );
}

#[tokio::test]
async fn the_roles_that_only_read_rows_see_neither_events_nor_guards_nor_keys() {
    let env = Env::new().await;
    for role in [DbRole::Reader, DbRole::PlatformReader] {
        let mut connection = env.database.connect(role, &[]).await.unwrap();
        for table in ["events", "log_head", "claims", "counters", "timers", "ops.subject_keys", "ops.idempotency_keys", "ops.master_key"] {
            assert!(connection.execute(format!("select * from {table}").as_str()).await.is_err(), "{role:?}: {table}");
        }
    }
    let mut projector = env.database.connect(DbRole::Projector, &[]).await.unwrap();
    for table in ["events", "ops.subject_keys", "ops.idempotency_keys"] {
        assert!(projector.execute(format!("select * from {table}").as_str()).await.is_err(), "{table}");
    }
}
