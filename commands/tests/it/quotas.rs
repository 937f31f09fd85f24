//! What is used, held, warned of and closed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bus::subscription::HandlerError;
use chrono::{DateTime, TimeDelta, Utc};
use commands::policies::quotas::Quotas;
use commands::policy::{self, Answer, Commands, Reaction};
use commands::usage::{Recorded, Recording};
use commands::{CommandError, Executor, Request, quota};
use domain::billing::meter::{Meter, Standing};
use domain::billing::period::{Billing, Month};
use domain::billing::subscription::{ChangePlan, StartSubscription, Subscription, When};
use domain::billing::usage::{CommitUsage, ReleaseUsage, ReserveUsage, Usage, UsageId, UsageItem};
use domain::identity::tenant::{OverrideLimit, UpdateSettings};
use domain::json::JsonObject;
use domain::text::PlanCode;
use domain::{Clock as _, StreamId, TenantId};
use futures::future::join_all;
use serde_json::{Value, json};
use store::{RawEvent, Store};
use testing::node::{Node, system};
use testing::{Env, eventually, id};
use tokio_util::sync::CancellationToken;

/// A tenant that has subscribed to the smallest plan: 1 000 messages, 1 050 with what is sold beyond.
struct Shop {
    env: Env,
    node: Node,
    tenant: TenantId,
    subscription: StreamId,
}

fn plan(code: &str) -> PlanCode {
    PlanCode::parse(code).unwrap()
}

fn item(id: &str, quantity: i64) -> UsageItem {
    UsageItem { id: UsageId::parse(id).unwrap(), quantity, at: None }
}

impl Shop {
    async fn new() -> Self {
        let env = Env::new().await;
        let node = Node::start(&env).await;
        node.ship_plans().await;
        let tenant = node.provision("acme").await;
        let subscription = StreamId::new(tenant, id());
        let (billing, time_zone) = (Billing::Anniversary, chrono_tz::Tz::UTC);
        let start =
            StartSubscription { id: None, plan: plan("starter"), trial_days: Some(90), billing, time_zone, currency: None, quantity: 1 };
        node.execute_on::<Subscription>(subscription, start).await.unwrap();
        Self { env, node, tenant, subscription }
    }

    fn recording(&self, meter: Meter, items: Vec<UsageItem>) -> Recording {
        Recording { tenant: self.tenant, meter, items, actor: system(), traceparent: None }
    }

    async fn record(&self, meter: Meter, id: &str, quantity: i64) -> Result<Recorded, CommandError> {
        self.node.executor.record_one(self.recording(meter, vec![item(id, quantity)])).await
    }

    async fn record_at(&self, id: &str, quantity: i64, at: DateTime<Utc>) -> Result<Recorded, CommandError> {
        let items = vec![UsageItem { at: Some(at.try_into().unwrap()), ..item(id, quantity) }];
        self.node.executor.record_one(self.recording(Meter::Messages, items)).await
    }

    async fn standing(&self, meter: Meter, month: &str) -> Standing {
        quota::standing(&self.node.store, self.tenant, meter, month.parse().unwrap()).await.unwrap()
    }

    async fn now(&self, meter: Meter) -> Standing {
        let month = Month::of(self.env.clock.now(), chrono_tz::Tz::UTC);
        quota::standing(&self.node.store, self.tenant, meter, month).await.unwrap()
    }

    /// The payloads of the tenant's events of a kind, in the log's order.
    async fn events(&self, kind: &str) -> Vec<Value> {
        let payloads: Vec<String> =
            sqlx::query_scalar("select payload::text from events where tenant_id = $1 and event_type = $2 order by position")
                .bind(self.tenant.0)
                .bind(kind)
                .fetch_all(&self.env.owner)
                .await
                .unwrap();
        payloads.iter().map(|payload| serde_json::from_str(payload).unwrap()).collect()
    }

    async fn limit(&self, meter: Meter, limit: u64) {
        self.node.execute(self.tenant, OverrideLimit { meter, limit, until: None }).await.unwrap();
    }

    async fn pass(&self, time: TimeDelta) {
        self.env.clock.advance(time);
        while self.node.timers().fire_due().await.unwrap() > 0 {}
    }

    async fn until(&self, time: &str) {
        let time: DateTime<Utc> = time.parse().unwrap();
        self.pass(time - self.env.clock.now()).await;
    }
}

fn exceeded(outcome: &Result<Recorded, CommandError>) -> Option<(i64, i64)> {
    match outcome {
        Ok(_) => None,
        Err(CommandError::QuotaExceeded(exceeded)) => Some((exceeded.used, exceeded.limit)),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_of_mixed_sizes_at_once_is_accepted_and_refused_as_a_replay_of_the_log_in_its_order_says() {
    let shop = Shop::new().await;
    shop.limit(Meter::ApiCalls, 500).await;
    let other = Executor::new(shop.env.store().await);
    let executors = [shop.node.executor.clone(), other];
    // Singles and batches, in two processes.
    let sizes: Vec<Vec<i64>> = (0..64_i64).map(|n| if n % 4 == 0 { vec![n % 7 + 1, 3, 30, 1, 2] } else { vec![n * 13 % 40 + 1] }).collect();
    let all = sizes.iter().enumerate().map(|(n, sizes)| {
        let items = sizes.iter().enumerate().map(|(k, size)| item(&format!("{n}-{k}"), *size)).collect();
        let (executor, recording) = (executors[n % 2].clone(), shop.recording(Meter::ApiCalls, items));
        tokio::spawn(async move { executor.record_each(recording).await })
    });
    let answers: Vec<_> = join_all(all).await.into_iter().map(Result::unwrap).collect();
    // The log in its order: what the counter was before each event, and what was counted.
    let mut used = 0;
    let mut prefixes = vec![0];
    let mut counted: BTreeMap<String, i64> = BTreeMap::new();
    for event in shop.events("usage.recorded").await {
        for one in event["items"].as_array().unwrap() {
            used += one["quantity"].as_i64().unwrap();
            assert!(counted.insert(one["id"].as_str().unwrap().to_owned(), one["quantity"].as_i64().unwrap()).is_none());
            prefixes.push(used);
        }
    }
    assert!(used <= 500 && used > 460, "{used}");
    let mut refused = 0;
    for (n, (sizes, answers)) in sizes.iter().zip(&answers).enumerate() {
        for (k, (size, answer)) in sizes.iter().zip(answers).enumerate() {
            let was = counted.get(&format!("{n}-{k}")).copied();
            match exceeded(answer) {
                None => assert_eq!(was, Some(*size)),
                Some((used, limit)) => {
                    refused += 1;
                    assert_eq!((was, limit), (None, 500));
                    // At its place it did not fit, and that place is one of the log.
                    assert!(used + size > 500 && prefixes.contains(&used), "{used} + {size}");
                }
            }
        }
    }
    assert!(refused > 0);
    assert_eq!(shop.now(Meter::ApiCalls).await.used, used);
    shop.node.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_usage_id_from_32_callers_at_once_counts_once_and_everyone_gets_the_same_answer() {
    let shop = Shop::new().await;
    let other = Executor::new(shop.env.store().await);
    let executors = [shop.node.executor.clone(), other];
    let all = (0..32).map(|n| {
        let items = if n % 4 == 3 { vec![item(&format!("own-{n}"), 1), item("same", 3)] } else { vec![item("same", 3)] };
        let (executor, recording) = (executors[n % 2].clone(), shop.recording(Meter::Messages, items));
        tokio::spawn(async move { executor.record_each(recording).await })
    });
    let answers: Vec<_> = join_all(all).await.into_iter().map(Result::unwrap).collect();
    let positions: std::collections::BTreeSet<i64> =
        answers.iter().map(|answers| answers.last().unwrap().as_ref().unwrap().position).collect();
    assert_eq!(positions.len(), 1, "{positions:?}");
    let first = answers.iter().filter(|answers| !answers.last().unwrap().as_ref().unwrap().replayed).count();
    assert_eq!(first, 1);
    assert_eq!(shop.now(Meter::Messages).await.used, 3 + 8);
    // Also much later, alone and in a batch; another quantity is another request.
    shop.pass(TimeDelta::days(3)).await;
    let position = positions.into_iter().next().unwrap();
    assert_eq!(shop.record(Meter::Messages, "same", 3).await.unwrap(), Recorded { position, replayed: true });
    assert!(matches!(shop.record(Meter::Messages, "same", 4).await, Err(CommandError::KeyReused)));
    let twice = vec![item("same", 3), item("twice", 1), item("twice", 1), item("twice", 2), item("same", 4)];
    let answers = shop.node.executor.record_each(shop.recording(Meter::Messages, twice)).await;
    assert_eq!(answers[0].as_ref().unwrap().position, position);
    let (once, again) = (answers[1].as_ref().unwrap(), answers[2].as_ref().unwrap());
    assert_eq!((once.position, once.replayed, again.position, again.replayed), (once.position, false, once.position, true));
    assert!(matches!((&answers[3], &answers[4]), (Err(CommandError::KeyReused), Err(CommandError::KeyReused))));
    // Another meter has ids of its own.
    assert!(!shop.record(Meter::ApiCalls, "same", 3).await.unwrap().replayed);
    assert_eq!(shop.events("usage.recorded").await.len(), 1 + 8 + 1 + 1);
    shop.node.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_go_to_105_percent_of_the_quota_and_other_meters_to_100() {
    let shop = Shop::new().await;
    shop.record(Meter::Messages, "most", 1_040).await.unwrap();
    for n in 0..10 {
        shop.record(Meter::Messages, &format!("m{n}"), 1).await.unwrap();
    }
    let refused = shop.record(Meter::Messages, "one more", 1).await;
    let Err(CommandError::QuotaExceeded(told)) = refused else { panic!("{refused:?}") };
    let ends = Month::of(shop.env.clock.now(), chrono_tz::Tz::UTC).period(chrono_tz::Tz::UTC).end;
    assert_eq!((told.meter, told.limit, told.used, told.remaining, told.resets_at), (Meter::Messages, 1_050, 1_050, 0, Some(ends)));
    assert_eq!(exceeded(&shop.record(Meter::ApiCalls, "all and one", 10_001).await), Some((0, 10_000)));
    shop.record(Meter::ApiCalls, "all", 10_000).await.unwrap();
    assert_eq!(exceeded(&shop.record(Meter::ApiCalls, "one more", 1).await), Some((10_000, 10_000)));
    // What is kept stops at 100 %, too; what is freed can be used again, and no more is freed than there is.
    let gib = 1 << 30;
    shop.record(Meter::Storage, "kept", gib).await.unwrap();
    assert_eq!(exceeded(&shop.record(Meter::Storage, "a byte", 1).await), Some((gib, gib)));
    shop.record(Meter::Storage, "freed", -10).await.unwrap();
    let run = vec![item("five", 5), item("six", 6), item("less", -1), item("and six", 6)];
    let answers = shop.node.executor.record_each(shop.recording(Meter::Storage, run)).await;
    assert_eq!(answers.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true, true]);
    let too_much = shop.record(Meter::Storage, "nothing left", -gib - 1).await;
    assert!(matches!(&too_much, Err(CommandError::Rejected { code, .. }) if code == "usage.not_kept"), "{too_much:?}");
    shop.node.verified().await;
}

/// The policy, until it has sent so many commands; then it does nothing any more.
struct Dying {
    left: Arc<AtomicUsize>,
}

impl Reaction for Dying {
    const NAME: &'static str = Quotas::NAME;
    const TYPES: &'static [&'static str] = Quotas::TYPES;
    const STEPS: usize = Quotas::STEPS;

    fn worth(events: Vec<Arc<RawEvent>>) -> Vec<Arc<RawEvent>> {
        Quotas::worth(events)
    }

    async fn step(&self, store: &Store, event: &RawEvent, n: usize) -> Result<Option<Answer>, HandlerError> {
        // What was sent for the step before is done by now, and the checkpoint has not moved.
        if self.left.load(Ordering::SeqCst) == 0 {
            std::future::pending::<()>().await;
        }
        let answer = Quotas.step(store, event, n).await?;
        if answer.is_some() {
            self.left.fetch_sub(1, Ordering::SeqCst);
        }
        Ok(answer)
    }
}

fn crossed(events: &[Value]) -> Vec<(i64, i64)> {
    events.iter().map(|event| (event["generation"].as_i64().unwrap(), event["threshold"].as_i64().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jump_from_79_to_101_percent_gives_three_thresholds_once_each_within_a_second_though_the_policy_is_killed_and_begins_anew() {
    let shop = Shop::new().await;
    shop.record(Meter::Messages, "most", 790).await.unwrap();
    // It has opened the month, and dies before that is noted.
    let left = Arc::new(AtomicUsize::new(1));
    let policies = policy::none(&shop.node.store, &shop.node.feed, &CancellationToken::new());
    policies.add(Commands::member(Dying { left: left.clone() }, &shop.node.executor));
    let process = tokio::spawn(policies.run());
    eventually("the month is open", || async { (!shop.events("quota.period_opened").await.is_empty()).then_some(()) }).await;
    process.abort();
    let _ = process.await;
    store::lease::expire_all(&shop.env.owner).await.unwrap();
    shop.node.react().await;
    shop.node.settled().await;
    let jump = Instant::now();
    shop.record(Meter::Messages, "jump", 220).await.unwrap();
    eventually("all thresholds", || async { (shop.events("quota.threshold_crossed").await.len() == 3).then_some(()) }).await;
    let (took, patience) = (jump.elapsed(), if std::env::var_os("TENURE_TEST_HEAVY").is_some() { 1 } else { 10 });
    assert!(took.as_secs() < patience, "{took:?}");
    shop.record(Meter::Messages, "more", 40).await.unwrap();
    shop.node.settled().await;
    let told = shop.events("quota.threshold_crossed").await;
    assert_eq!(crossed(&told), [(1, 80), (1, 90), (1, 100)]);
    assert_eq!(told.iter().map(|event| event["highest"].as_bool().unwrap()).collect::<Vec<_>>(), [false, false, true]);
    // It reads the whole log again, as after a restored database.
    store::lease::expire_all(&shop.env.owner).await.unwrap();
    sqlx::query("update ops.policies set position = 0, log_hash = decode(repeat('00', 32), 'hex') where name = 'quotas'")
        .execute(&shop.env.owner)
        .await
        .unwrap();
    shop.node.settled().await;
    assert_eq!(crossed(&shop.events("quota.threshold_crossed").await).len(), 3);
    assert_eq!(shop.events("quota.period_opened").await.len(), 1);
    // Other limits, other warnings, in the append that sets them.
    shop.limit(Meter::Messages, 1_100).await;
    shop.node.settled().await;
    assert_eq!(crossed(&shop.events("quota.threshold_crossed").await)[3..], [(2, 80), (2, 90)]);
    let change = ChangePlan { plan: plan("growth"), when: When::Now };
    shop.node.execute_on::<Subscription>(shop.subscription, change).await.unwrap();
    assert_eq!(shop.now(Meter::Messages).await.generation, 3);
    shop.node.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_month_rolls_over_by_the_tenants_clock_takes_in_what_is_late_and_is_closed_to_the_cent() {
    let shop = Shop::new().await;
    shop.node.react().await;
    let zone = JsonObject::try_from(json!({"time_zone": "Pacific/Auckland"})).unwrap();
    shop.node.execute(shop.tenant, UpdateSettings(zone)).await.unwrap();
    shop.until("2026-02-10T00:00:00Z").await;
    shop.record(Meter::Messages, "feb", 1_049).await.unwrap();
    // There, March begins at 11:00 UTC of the last day of February.
    shop.until("2026-02-28T10:59:59Z").await;
    shop.record(Meter::Messages, "last", 1).await.unwrap();
    assert!(exceeded(&shop.record(Meter::Messages, "too much", 1).await).is_some());
    shop.until("2026-02-28T11:00:00Z").await;
    shop.record(Meter::Messages, "first of march", 1_000).await.unwrap();
    // Late, for the month that is full; and in time for this one.
    let february: DateTime<Utc> = "2026-02-27T00:00:00Z".parse().unwrap();
    assert!(exceeded(&shop.record_at("late and too much", 1, february).await).is_some());
    shop.node.settled().await;
    // In the middle of March there is another plan; of February's overage the one that was in force at its end is the measure.
    let change = ChangePlan { plan: plan("growth"), when: When::Now };
    shop.node.execute_on::<Subscription>(shop.subscription, change).await.unwrap();
    shop.record_at("late, and there is room now", 30, february).await.unwrap();
    shop.node.settled().await;
    shop.until("2026-03-03T10:59:59Z").await;
    assert_eq!(shop.events("quota.period_closed").await.len(), 0);
    shop.record_at("just in time", 20, february).await.unwrap();
    shop.until("2026-03-03T11:00:00Z").await;
    let closed = shop.events("quota.period_closed").await;
    assert_eq!(closed.len(), 1, "{closed:?}");
    // 1 049 + 1 + 30 + 20 of 1 000 included: 100 at 0.02 USD.
    let (amount, first) = (json!({"amount": 200, "currency": "USD"}), &closed[0]);
    assert_eq!(
        (&first["period"], &first["used"], &first["overage"], &first["amount"], &first["plan"]),
        (&json!("2026-02"), &json!(1100), &json!(100), &amount, &json!("starter"))
    );
    // Too late: it counts now, as an adjustment.
    shop.record_at("too late", 7, february).await.unwrap();
    assert_eq!(
        (shop.standing(Meter::Messages, "2026-02").await.used, shop.standing(Meter::Messages, "2026-03").await.used),
        (1_100, 1_007)
    );
    let last = shop.events("usage.recorded").await.pop().unwrap();
    assert_eq!((&last["period"], &last["adjusts"]), (&json!("2026-03"), &json!("2026-02")));
    let old = shop.record_at("too old", 1, shop.env.clock.now() - TimeDelta::days(36)).await;
    assert!(matches!(&old, Err(CommandError::Rejected { code, .. }) if code == "usage.too_old"), "{old:?}");
    let ahead = shop.record_at("ahead", 1, shop.env.clock.now() + TimeDelta::minutes(6)).await;
    assert!(matches!(&ahead, Err(CommandError::Rejected { code, .. }) if code == "usage.ahead"), "{ahead:?}");
    shop.node.settled().await;
    // March ends with what growth includes.
    shop.record(Meter::Messages, "to the brim", 9_493).await.unwrap();
    assert!(exceeded(&shop.record(Meter::Messages, "over", 1).await).is_some());
    shop.node.settled().await;
    shop.until("2026-04-03T12:00:00Z").await;
    let march = shop.events("quota.period_closed").await.pop().unwrap();
    // 500 of overage at 0.015 USD.
    assert_eq!(
        (&march["used"], &march["overage"], &march["amount"]["amount"], &march["plan"]),
        (&json!(10_500), &json!(500), &json!(750), &json!("growth"))
    );
    shop.node.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_month_that_was_closed_by_another_clock_takes_nothing_in_any_more() {
    let shop = Shop::new().await;
    shop.node.react().await;
    shop.until("2026-02-28T00:00:00Z").await;
    shop.record(Meter::Messages, "feb", 10).await.unwrap();
    shop.node.settled().await;
    shop.until("2026-03-04T00:00:00Z").await;
    assert_eq!(shop.events("quota.period_closed").await.len(), 1);
    // Whose clock is behind still takes it for open.
    shop.env.clock.advance(TimeDelta::hours(-2));
    let late: DateTime<Utc> = "2026-02-28T01:00:00Z".parse().unwrap();
    shop.record_at("late", 5, late).await.unwrap();
    let batch = ["a", "b"].map(|id| UsageItem { at: Some(late.try_into().unwrap()), ..item(id, 1) }).to_vec();
    let answers = shop.node.executor.record_each(shop.recording(Meter::Messages, batch)).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!((shop.standing(Meter::Messages, "2026-02").await.used, shop.standing(Meter::Messages, "2026-03").await.used), (10, 7));
    // What does not fit into the present one is refused at once, and the rest is not.
    let batch =
        [("c", 1_000), ("d", 44), ("e", 43)].map(|(id, n)| UsageItem { at: Some(late.try_into().unwrap()), ..item(id, n) }).to_vec();
    let answers = shop.node.executor.record_each(shop.recording(Meter::Messages, batch)).await;
    assert_eq!(answers.iter().map(exceeded).collect::<Vec<_>>(), [None, Some((1_007, 1_050)), None]);
    shop.node.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reservations_hold_room_exactly_until_they_are_committed_released_or_expire_also_when_the_process_dies_in_between() {
    let shop = Shop::new().await;
    let reserve = |quantity, ttl_seconds| ReserveUsage { id: None, meter: Meter::Messages, quantity, ttl_seconds };
    let stream = || StreamId::new(shop.tenant, id());
    let [one, two, three] = [stream(), stream(), stream()];
    for (stream, quantity) in [(one, 500), (two, 300), (three, 200)] {
        shop.node.execute_on::<Usage>(stream, reserve(quantity, 300)).await.unwrap();
    }
    let held = |used, held| Standing { used, held, quota: Some(1_000), limit: Some(1_050), generation: 1 };
    assert_eq!(shop.now(Meter::Messages).await, held(0, 1_000));
    assert_eq!(exceeded(&shop.record(Meter::Messages, "no room", 51).await), Some((1_000, 1_050)));
    // Sixty-four ask for the last fifty at once, ten each.
    let all = (0..64).map(|_| shop.node.execute_on::<Usage>(stream(), reserve(10, 60)));
    let got = join_all(all).await.into_iter().flatten().count();
    assert_eq!((got, shop.now(Meter::Messages).await), (5, held(0, 1_050)));
    shop.node.execute_on::<Usage>(one, CommitUsage { quantity: Some(420) }).await.unwrap();
    shop.node.execute_on::<Usage>(two, ReleaseUsage {}).await.unwrap();
    assert_eq!(shop.now(Meter::Messages).await, held(420, 250));
    // Who has made the others is gone; another process finds them due, as often as it looks.
    let Shop { env, node, tenant, .. } = shop;
    drop(node);
    let node = Node::start(&env).await;
    env.clock.advance(TimeDelta::seconds(60));
    let (a, b) = (node.timers(), node.timers());
    while {
        let (a, b) = futures::join!(a.fire_due(), b.fire_due());
        a.unwrap() + b.unwrap() > 0
    } {}
    let month = Month::of(env.clock.now(), chrono_tz::Tz::UTC);
    assert_eq!(quota::standing(&node.store, tenant, Meter::Messages, month).await.unwrap(), held(420, 200));
    let late = Request::<Usage>::new(three, CommitUsage { quantity: None }, system(), id());
    env.clock.advance(TimeDelta::seconds(240));
    assert!(matches!(node.executor.execute(late).await, Err(CommandError::Rejected { code, .. }) if code == "usage.settled"));
    while node.timers().fire_due().await.unwrap() > 0 {}
    assert_eq!(quota::standing(&node.store, tenant, Meter::Messages, month).await.unwrap(), held(420, 0));
    node.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_without_limits_uses_as_much_as_it_likes_and_is_warned_of_nothing() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    node.react().await;
    let tenant = node.provision("boundless").await;
    let recording = Recording { tenant, meter: Meter::Messages, items: vec![item("much", 1_000_000)], actor: system(), traceparent: None };
    node.executor.record_one(recording).await.unwrap();
    node.settled().await;
    env.clock.advance(TimeDelta::days(40));
    while node.timers().fire_due().await.unwrap() > 0 {}
    let told: Vec<String> = sqlx::query_scalar("select event_type from events where aggregate_type = 'quota' order by position")
        .fetch_all(&env.owner)
        .await
        .unwrap();
    assert_eq!(told, ["quota.period_opened", "quota.period_closed"]);
    node.verified().await;
}
