//! Random appends that take and release claims, set and fire timers, name other streams and begin tenants, through two processes at once.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use domain::{Claim, Effect, Gate, Precondition, Refusal, Scope, StreamId, TenantId};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use store::{Append, AppendError, Appended, Expected, Store};
use testing::{Env, eventually, id};

use crate::kit::{assert_log_is_sound, at_once, event, keyed, new_stream, tenant, to, when};

const SLUG: Claim = Claim { namespace: "slug", scope: Scope::Installation, personal: false };
const NAME: Claim = Claim { namespace: "name", scope: Scope::Tenant, personal: false };
const SEATS: &str = "seats";

/// What the guards should be, made from the appends in the order of the log.
#[derive(Clone, Default)]
struct Model {
    versions: BTreeMap<StreamId, i64>,
    gates: BTreeMap<TenantId, bool>,
    /// (namespace, scope, value) → (stream, label).
    claims: BTreeMap<(&'static str, Option<TenantId>, String), (StreamId, String)>,
    timers: BTreeMap<(StreamId, String), DateTime<Utc>>,
    seats: BTreeMap<TenantId, i64>,
}

fn claim_key(claim: &Claim, tenant: TenantId, value: &str) -> (&'static str, Option<TenantId>, String) {
    (claim.namespace, (claim.scope == Scope::Tenant).then_some(tenant), value.to_owned())
}

impl Model {
    /// What stands after an append, or why it has to be refused.
    fn after(&self, append: &Append) -> Result<Self, &'static str> {
        let mut next = self.clone();
        let part = &append.streams[0];
        let (stream, tenant) = (part.stream, part.stream.tenant);
        if let Expected::Exact(expected) = part.expected
            && expected != self.versions.get(&stream).copied().unwrap_or(0)
        {
            return Err("conflict");
        }
        for precondition in &append.preconditions {
            let (holds, otherwise) = match precondition {
                Precondition::StreamAt { stream, version, .. } => {
                    (self.versions.get(stream).copied().unwrap_or(0) == *version, "stream moved")
                }
                Precondition::StreamExists { stream, .. } => (self.versions.contains_key(stream), "no such stream"),
                Precondition::ClaimFree { claim, value } => (!self.claims.contains_key(&claim_key(claim, tenant, value)), "claim taken"),
                Precondition::ClaimHeld { claim, value } => (self.claims.contains_key(&claim_key(claim, tenant, value)), "claim not held"),
                Precondition::GateOpen => {
                    let gate = self.gates.get(&tenant);
                    (gate == Some(&true), if gate.is_none() { "no such tenant" } else { "gate closed" })
                }
                Precondition::TimerSet { stream, name, due, .. } => {
                    (self.timers.get(&(*stream, name.clone())) == Some(due), "timer not set")
                }
                Precondition::TenantLives | Precondition::CounterWithin { .. } => unreachable!("not made here"),
            };
            if !holds {
                return Err(otherwise);
            }
        }
        for effect in part.events.iter().flat_map(|event| &event.effects) {
            match effect {
                Effect::TakeClaim { claim, label, value: Some(value) } => {
                    let (key, me) = (claim_key(claim, tenant, value), (stream, label.clone()));
                    match next.claims.get(&key) {
                        Some(holder) if *holder != me => return Err("claim taken"),
                        Some(_) => {}
                        None => {
                            next.claims.retain(|other, holder| other.0 != claim.namespace || *holder != me);
                            next.claims.insert(key, me);
                        }
                    }
                }
                Effect::ReleaseClaim { claim, label } => {
                    next.claims.retain(|key, holder| key.0 != claim.namespace || *holder != (stream, label.clone()));
                }
                Effect::SetTimer { name, due } => _ = next.timers.insert((stream, name.clone()), *due),
                Effect::CancelTimer { name } => _ = next.timers.remove(&(stream, name.clone())),
                Effect::Gate(gate) => _ = next.gates.insert(tenant, *gate == Gate::Open),
                Effect::Count { delta, .. } => *next.seats.entry(tenant).or_default() += delta,
                Effect::TakeClaim { value: None, .. }
                | Effect::Bound { .. }
                | Effect::Allocate { .. }
                | Effect::Erase(_)
                | Effect::EndTenant => unreachable!("not made here"),
            }
        }
        *next.versions.entry(stream).or_default() += i64::try_from(part.events.len()).unwrap();
        Ok(next)
    }
}

/// Why an append was refused, in the model's words.
fn kind(error: &AppendError) -> &'static str {
    match error {
        AppendError::Conflict { .. } => "conflict",
        AppendError::Refused(Refusal::StreamMoved { .. }) => "stream moved",
        AppendError::Refused(Refusal::NoSuchStream { .. }) => "no such stream",
        AppendError::Refused(Refusal::ClaimTaken { .. }) => "claim taken",
        AppendError::Refused(Refusal::ClaimNotHeld { .. }) => "claim not held",
        AppendError::Refused(Refusal::NoSuchTenant { .. }) => "no such tenant",
        AppendError::Refused(Refusal::GateClosed { .. }) => "gate closed",
        AppendError::Refused(Refusal::TimerNotSet { .. }) => "timer not set",
        AppendError::Refused(_)
        | AppendError::KeyReused
        | AppendError::KeysKnown
        | AppendError::Overloaded
        | AppendError::Unavailable
        | AppendError::Failed(_) => panic!("{error:?}"),
    }
}

fn one_of<T: Copy>(random: &mut StdRng, all: &[T]) -> T {
    *all.choose(random).unwrap()
}

fn due(random: &mut StdRng) -> DateTime<Utc> {
    testing::start_of_time() + TimeDelta::days(random.gen_range(0..3))
}

/// An append that has something to do with what other appends do.
fn any(random: &mut StdRng, model: &Model, tenants: &[TenantId]) -> Append {
    let known: Vec<StreamId> = model.versions.keys().copied().collect();
    let stream = if known.is_empty() || random.gen_bool(0.3) {
        let tenant = if random.gen_bool(0.2) { tenant() } else { one_of(random, tenants) };
        StreamId::new(tenant, id())
    } else {
        // Often one of the last, so that appends of one round meet.
        known[random.gen_range(known.len().saturating_sub(6)..known.len())]
    };
    let version = model.versions.get(&stream).copied().unwrap_or(0);
    let values = ["a", "b", "c", "d"];
    let mut effects = Vec::new();
    // Tenants begin, and what looks like a beginning may be none.
    if version == 0 && (!model.gates.contains_key(&stream.tenant) || random.gen_bool(0.3)) {
        effects.push(Effect::Gate(Gate::Open));
    }
    for _ in 0..random.gen_range(1..4) {
        let claim = if random.gen_bool(0.5) { SLUG } else { NAME };
        let (label, name) = (one_of(random, &["first", "second"]).to_owned(), one_of(random, &["t", "u"]).to_owned());
        effects.push(match random.gen_range(0..7) {
            0..=2 => Effect::TakeClaim { claim, label, value: Some(one_of(random, &values).to_owned()) },
            3 => Effect::ReleaseClaim { claim, label },
            4 => Effect::SetTimer { name, due: due(random) },
            5 => Effect::CancelTimer { name },
            _ => Effect::Count { counter: SEATS.into(), delta: 1 },
        });
    }
    if random.gen_bool(0.05) {
        effects.push(Effect::Gate(if random.gen_bool(0.5) { Gate::Open } else { Gate::Closed("frozen") }));
    }
    // Now and then one that is not decided from memory.
    let expected = if random.gen_bool(0.05) { Expected::Any } else { Expected::Exact(version) };
    let mut append = to(stream, expected, vec![event(effects)]);
    if random.gen_bool(0.3) {
        append = keyed(append, &id().to_string(), 1);
    }
    if random.gen_bool(0.5) {
        let claim = if random.gen_bool(0.5) { SLUG } else { NAME };
        let value = one_of(random, &values).to_owned();
        let other = known.choose(random).copied().unwrap_or(stream);
        append = when(
            append,
            match random.gen_range(0..6) {
                0 => Precondition::ClaimFree { claim, value },
                1 => Precondition::ClaimHeld { claim, value },
                2 => Precondition::StreamExists {
                    aggregate: "thing",
                    stream: if random.gen_bool(0.8) { other } else { StreamId::new(stream.tenant, id()) },
                },
                3 => {
                    Precondition::StreamAt { aggregate: "thing", stream: other, version: model.versions.get(&other).copied().unwrap_or(0) }
                }
                4 => Precondition::GateOpen,
                _ => {
                    let set: Vec<_> = model.timers.iter().collect();
                    let ((stream, name), due) =
                        set.choose(random).map_or(((other, "t".to_owned()), due(random)), |(key, due)| ((*key).clone(), **due));
                    Precondition::TimerSet { aggregate: "thing", stream, name, due }
                }
            },
        );
    }
    append
}

/// Brings the model from before a round to after it, and checks every answer: what was accepted follows in the order of the log, what was refused would have been at some moment of the round.
fn explain(model: &Model, round: &[(Append, Result<Appended, AppendError>)]) -> Model {
    let mut accepted: Vec<_> = round.iter().filter_map(|(append, answer)| Some((append, answer.as_ref().ok()?))).collect();
    accepted.sort_by_key(|(_, appended)| appended.position);
    let mut states = vec![model.clone()];
    for (append, appended) in accepted {
        let next = states.last().unwrap().after(append);
        let next = next.unwrap_or_else(|why| panic!("{append:?} was accepted at {}: {why}", appended.position));
        states.push(next);
    }
    for (append, answer) in round {
        if let Err(refusal) = answer {
            let due = |state: &Model| state.after(append).err() == Some(kind(refusal));
            assert!(states.iter().any(due), "{append:?} was refused: {refusal}");
        }
    }
    states.pop().unwrap()
}

async fn assert_guards(env: &Env, model: &Model) {
    let claims: BTreeSet<(String, String, String, String)> = sqlx::query_as("select namespace, value, aggregate_id, label from claims")
        .fetch_all(&env.owner)
        .await
        .unwrap()
        .into_iter()
        .collect();
    let expected: BTreeSet<_> = model
        .claims
        .iter()
        .map(|((namespace, _, value), (stream, label))| ((*namespace).to_owned(), value.clone(), stream.to_string(), label.clone()))
        .collect();
    assert_eq!(claims, expected);
    let timers: BTreeSet<(String, String, DateTime<Utc>)> =
        sqlx::query_as("select aggregate_id, name, due_at from timers").fetch_all(&env.owner).await.unwrap().into_iter().collect();
    let expected: BTreeSet<_> = model.timers.iter().map(|((stream, name), due)| (stream.to_string(), name.clone(), *due)).collect();
    assert_eq!(timers, expected);
    let gates: BTreeMap<uuid::Uuid, Option<String>> = sqlx::query_as("select tenant_id, gate from tenant_heads where gate is not null")
        .fetch_all(&env.owner)
        .await
        .unwrap()
        .into_iter()
        .collect();
    let expected = model.gates.iter().map(|(tenant, open)| (tenant.0, Some(if *open { "open" } else { "frozen" }.to_owned()))).collect();
    assert_eq!(gates, expected);
    let seats: BTreeMap<uuid::Uuid, i64> =
        sqlx::query_as("select tenant_id, value from counters").fetch_all(&env.owner).await.unwrap().into_iter().collect();
    assert_eq!(seats, model.seats.iter().map(|(tenant, seats)| (tenant.0, *seats)).collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn random_claims_timers_gates_and_references_of_two_processes_are_decided_as_if_one_after_the_other() {
    for seed in 0..2 {
        let mut random = StdRng::seed_from_u64(seed);
        let env = Env::new().await;
        let mut stores = [env.store().await, env.store().await];
        let tenants = [tenant(), tenant()];
        let mut model = Model::default();
        let mut refused = 0;
        for round in 0..90 {
            // A process that remembers nothing but the head, and so has to assume.
            if round % 5 == 0 {
                stores[0] = env.store().await;
                stores[0].append(new_stream(tenant(), vec![])).await.unwrap();
            }
            let appends: Vec<Append> = (0..random.gen_range(1..8)).map(|_| any(&mut random, &model, &tenants)).collect();
            // For a while one process writes, then the other, then both.
            let both = round % 15 > 11;
            let (one, other) = if round / 15 % 3 < 2 { (&stores[0], &stores[1]) } else { (&stores[1], &stores[0]) };
            let (here, there): (Vec<_>, Vec<_>) = appends.into_iter().enumerate().partition(|(n, _)| !both || n % 2 == 0);
            let strip = |numbered: Vec<(usize, Append)>| numbered.into_iter().map(|(_, append)| append).collect::<Vec<_>>();
            let (here, there) = (strip(here), strip(there));
            let (answers, others) = tokio::join!(at_once(one, here.clone()), at_once(other, there.clone()));
            let asked: Vec<_> = here.into_iter().zip(answers).chain(there.into_iter().zip(others)).collect();
            refused += asked.iter().filter(|(_, answer)| answer.is_err()).count();
            model = explain(&model, &asked);
        }
        assert!(refused > 20 && model.claims.len() > 4 && !model.timers.is_empty(), "{refused}: the histories say something");
        assert_guards(&env, &model).await;
        assert_log_is_sound(&env).await;
    }
}

/// How often each function of the append path was called. A server process tells when it ends, so all of them are ended.
async fn calls(env: &Env) -> (i64, i64) {
    let others =
        "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()";
    sqlx::query(others).execute(&env.owner).await.unwrap();
    let calls: BTreeMap<String, i64> =
        sqlx::query_as("select funcname::text, calls from pg_stat_user_functions where funcname in ('append_assuming', 'append_batch')")
            .fetch_all(&env.owner)
            .await
            .unwrap()
            .into_iter()
            .collect();
    let of = |name: &str| calls.get(name).copied().unwrap_or(0);
    (of("append_assuming"), of("append_batch"))
}

async fn accepted(store: &Store, appends: Vec<Append>) {
    for append in appends {
        store.append(append).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_timers_gates_references_and_new_tenants_take_one_statement() {
    let env = Env::new().await;
    let database: String = sqlx::query_scalar("select current_database()").fetch_one(&env.owner).await.unwrap();
    sqlx::query(&format!("alter database {database} set track_functions = 'pl'")).execute(&env.owner).await.unwrap();
    let store = env.store().await;
    let t = tenant();
    let (first, second) = (StreamId::new(t, id()), StreamId::new(t, id()));
    let take = |value: &str| Effect::TakeClaim { claim: NAME, label: "name".into(), value: Some(value.into()) };
    let timer = |days| Effect::SetTimer { name: "t".into(), due: testing::start_of_time() + TimeDelta::days(days) };
    // Read before: the log's head, and nothing else.
    accepted(&store, vec![new_stream(tenant(), vec![])]).await;
    let fires = Precondition::TimerSet { aggregate: "thing", stream: first, name: "t".into(), due: testing::start_of_time() };
    let fast = vec![
        to(first, Expected::Exact(0), vec![event(vec![Effect::Gate(Gate::Open), take("one"), timer(0)])]),
        when(
            to(second, Expected::Exact(0), vec![event(vec![take("two")])]),
            Precondition::StreamExists { aggregate: "thing", stream: first },
        ),
        when(to(first, Expected::Exact(1), vec![event(vec![take("three"), timer(1)])]), Precondition::GateOpen),
        when(to(second, Expected::Exact(1), vec![event(vec![take("one")])]), Precondition::ClaimFree { claim: NAME, value: "one".into() }),
        to(first, Expected::Exact(2), vec![event(vec![Effect::ReleaseClaim { claim: NAME, label: "name".into() }, timer(0)])]),
        when(to(first, Expected::Exact(3), vec![event(vec![Effect::CancelTimer { name: "t".into() }])]), fires),
        to(second, Expected::Exact(2), vec![event(vec![Effect::Gate(Gate::Closed("frozen"))])]),
    ];
    let sent = i64::try_from(fast.len()).unwrap();
    accepted(&store, fast).await;
    // `append_batch` is called by each `append_assuming` that writes, and once by what was read before.
    eventually("the calls are counted", || async {
        let (assuming, batches) = calls(&env).await;
        assert!(assuming <= sent && batches <= sent + 1, "{assuming} {batches}");
        (assuming == sent && batches == sent + 1).then_some(())
    })
    .await;
    let left: Vec<(String, String)> = sqlx::query_as("select value, aggregate_id from claims").fetch_all(&env.owner).await.unwrap();
    assert_eq!(left, [("one".to_owned(), second.to_string())]);
    assert_eq!(sqlx::query_scalar::<_, i64>("select count(*) from timers").fetch_one(&env.owner).await.unwrap(), 0);
    // Another process, which remembers nothing: what it assumes of claims, timers and streams is enough.
    let other = env.store().await;
    accepted(&other, vec![new_stream(t, vec![])]).await;
    accepted(&other, vec![to(second, Expected::Exact(3), vec![event(vec![take("four"), Effect::CancelTimer { name: "t".into() }])])]).await;
    eventually("the calls are counted", || async {
        let (assuming, batches) = calls(&env).await;
        assert!(assuming <= sent + 1 && batches <= sent + 3, "{assuming} {batches}");
        (assuming == sent + 1 && batches == sent + 3).then_some(())
    })
    .await;
    let left: Vec<(String, String)> = sqlx::query_as("select value, aggregate_id from claims").fetch_all(&env.owner).await.unwrap();
    assert_eq!(left, [("four".to_owned(), second.to_string())]);
}
