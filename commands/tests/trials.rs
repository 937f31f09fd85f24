//! Trials that end, by the thousand. A test binary of its own, so that nothing else runs beside what is measured.
#![expect(clippy::unwrap_used, reason = "tests may")]

use chrono::{DateTime, TimeDelta, Utc};
use commands::policies::catalogue;
use commands::timers::TimerPoller;
use commands::{Executor, Request};
use domain::billing::period::Billing;
use domain::billing::subscription::{SetPaymentMethod, StartSubscription, Subscription};
use domain::identity::tenant::{ProvisionTenant, Slug, Tenant};
use domain::text::{DisplayName, PlanCode, Reference};
use domain::{Clock as _, StreamId, TenantId};
use futures::{StreamExt as _, TryStreamExt as _};
use testing::node::system;
use testing::{Env, id};
use tokio_util::sync::CancellationToken;

/// A new tenant in its trial; with something to pay with, if asked.
async fn trial(executor: &Executor, payable: bool) -> Result<StreamId, commands::CommandError> {
    let tenant = TenantId(id());
    let name = DisplayName::parse("x").unwrap();
    let slug = Slug::parse(&format!("t-{}", tenant.0.simple())).unwrap();
    let provision = ProvisionTenant { id: None, slug, name, plan: None, owner: None };
    executor.execute(Request::<Tenant>::new(StreamId::new(tenant, tenant.0), provision, system(), id())).await?;
    let start = StartSubscription {
        id: None,
        plan: PlanCode::parse("starter").unwrap(),
        trial_days: None,
        billing: Billing::Anniversary,
        time_zone: chrono_tz::Tz::UTC,
        currency: None,
        quantity: 1,
    };
    let stream = StreamId::new(tenant, id());
    executor.execute(Request::<Subscription>::new(stream, start, system(), id())).await?;
    if payable {
        let method = SetPaymentMethod { reference: Reference::parse("pm_1").unwrap() };
        executor.execute(Request::<Subscription>::new(stream, method, system(), id())).await?;
    }
    Ok(stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_trials_due_in_the_same_second_convert_once_each_within_five_seconds_though_a_poller_is_killed() {
    const COUNT: i64 = 10_000;
    let env = Env::new().await;
    let executor = Executor::new(env.store().await);
    catalogue::install(&executor).await.unwrap();
    let made = futures::stream::iter((0..COUNT).map(|_| trial(&executor, true)));
    let _: Vec<StreamId> = made.buffer_unordered(256).try_collect().await.unwrap();
    // They were reminded of it three days before.
    env.clock.advance(TimeDelta::days(12));
    while TimerPoller::new(executor.clone()).fire_due().await.unwrap() > 0 {}
    env.clock.advance(TimeDelta::days(2));
    let (due, before) = (env.clock.now(), executor.store().head().await.unwrap().position);
    // Nothing else happens, so the log's end says how many have; counting them would cost more than they do.
    let converted = || async { executor.store().head().await.unwrap().position - before };
    // Two processes; their clock goes on as time does.
    let (ticking, clock) = (CancellationToken::new(), env.clock.clone());
    let _guard = ticking.clone().drop_guard();
    tokio::spawn(async move {
        let mut last = std::time::Instant::now();
        while tokio::time::timeout(std::time::Duration::from_millis(10), ticking.cancelled()).await.is_err() {
            clock.advance(TimeDelta::from_std(last.elapsed()).unwrap());
            last = std::time::Instant::now();
        }
    });
    let cancel = CancellationToken::new();
    let _guard = cancel.clone().drop_guard();
    let other = Executor::new(env.store().await);
    let pollers = [&executor, &other].map(|executor| tokio::spawn(TimerPoller::new(executor.clone()).run(cancel.clone())));
    testing::eventually("half of them have converted", || async { (converted().await > COUNT / 2).then_some(()) }).await;
    // In the middle of what it had taken; what that was is leased still.
    pollers[0].abort();
    testing::eventually("all of them have converted", || async { (converted().await >= COUNT).then_some(()) }).await;
    let (converted, streams, p99, longest): (i64, i64, DateTime<Utc>, DateTime<Utc>) = sqlx::query_as(
        "select count(*), count(distinct aggregate_id), percentile_disc(0.99) within group (order by recorded_at), max(recorded_at)
         from events where event_type = 'subscription.trial_converted'",
    )
    .fetch_one(&env.owner)
    .await
    .unwrap();
    println!("p99 {} after its end, the last one {}", p99 - due, longest - due);
    assert_eq!((converted, streams), (COUNT, COUNT), "each once");
    // Five seconds where the machine is known to have nothing else to do; elsewhere still far below what a dead poller's timers would wait for a lease of old.
    let limit = TimeDelta::seconds(if std::env::var_os("TENURE_TEST_HEAVY").is_some() { 5 } else { 20 });
    assert!(p99 - due <= limit, "{}", p99 - due);
    let periods: i64 = sqlx::query_scalar(
        "select count(*) from events where event_type = 'subscription.trial_converted' and (payload -> 'period' ->> 'start')::timestamptz <= $1",
    )
    .bind(due)
    .fetch_one(&env.owner)
    .await
    .unwrap();
    assert_eq!(periods, COUNT, "paid for from the trial's end, however late the timer was");
}
