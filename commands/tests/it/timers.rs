//! What falls due.

use chrono::TimeDelta;
use commands::timers::TimerPoller;
use commands::{Executor, Request};
use domain::identity::tenant::{ChangeSlug, ProvisionTenant, Slug, Tenant};
use domain::text::DisplayName;
use domain::{StreamId, TenantId};
use testing::node::system;
use testing::{Env, eventually, id};
use tokio_util::sync::CancellationToken;

const COUNT: usize = 40;

/// Tenants that have all just changed their slug.
async fn changed(env: &Env) -> Executor {
    let executor = Executor::new(env.store().await);
    for n in 0..COUNT {
        let tenant = TenantId(id());
        let stream = StreamId::new(tenant, tenant.0);
        let slug = |text: String| Slug::parse(&text).unwrap();
        let provision =
            ProvisionTenant { id: None, slug: slug(format!("old-{n}")), name: DisplayName::parse("x").unwrap(), plan: None, owner: None };
        executor.execute(Request::<Tenant>::new(stream, provision, system(), id())).await.unwrap();
        executor.execute(Request::<Tenant>::new(stream, ChangeSlug { slug: slug(format!("new-{n}")) }, system(), id())).await.unwrap();
    }
    executor
}

async fn expired(env: &Env) -> usize {
    let count: i64 = sqlx::query_scalar("select count(*) from events where event_type = 'tenant.slug_alias_expired'")
        .fetch_one(&env.owner)
        .await
        .unwrap();
    usize::try_from(count).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn timers_fire_exactly_once_with_two_pollers_running_and_pollers_killed_at_any_point() {
    let env = Env::new().await;
    let executor = changed(&env).await;
    let poller = |executor: &Executor| TimerPoller::new(executor.clone());
    assert_eq!(poller(&executor).fire_due().await.unwrap(), 0, "not a moment too early");
    env.clock.advance(TimeDelta::days(30));
    // Killed at any point: at each await of a fire, sooner or later.
    for polls in 0..60 {
        let mut fire = Box::pin(async { poller(&executor).fire_due().await });
        for _ in 0..polls {
            if futures::poll!(fire.as_mut()).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(fire);
    }
    assert!(expired(&env).await <= COUNT);
    // What the killed ones had taken is taken over once their leases have run out.
    sqlx::query("update ops.timer_leases set until = now() - interval '1 second'").execute(&env.owner).await.unwrap();
    let cancel = CancellationToken::new();
    let _guard = cancel.clone().drop_guard();
    let other = Executor::new(env.store().await);
    for executor in [&executor, &other] {
        tokio::spawn(poller(executor).run(cancel.clone()));
    }
    eventually("all have fired", || async { (expired(&env).await == COUNT).then_some(()) }).await;
    for executor in [&executor, &other] {
        poller(executor).fire_due().await.unwrap();
    }
    assert_eq!(expired(&env).await, COUNT, "each once");
    let left: i64 = sqlx::query_scalar("select (select count(*) from timers) + (select count(*) from claims where label like 'alias:%')")
        .fetch_one(&env.owner)
        .await
        .unwrap();
    assert_eq!(left, 0, "and the old slugs are free");
    assert_eq!(executor.store().audit(&mut |_| {}).await.unwrap().findings, vec![]);
}

#[tokio::test]
async fn a_poller_that_hangs_while_it_holds_timers_does_not_stall_the_log() {
    let env = Env::new().await;
    let executor = changed(&env).await;
    env.clock.advance(TimeDelta::days(30));
    // A poller in the middle of taking what is due, for as long as it likes.
    let mut hung = store::database::begin(&env.owner).await.unwrap();
    sqlx::query("insert into ops.timer_leases select aggregate_type, aggregate_id, name, due_at, gen_random_uuid(), now() + interval '1 hour' from timers").execute(&mut *hung).await.unwrap();
    let tenant: String = sqlx::query_scalar("select aggregate_id from timers order by 1 limit 1").fetch_one(&env.owner).await.unwrap();
    let since = std::time::Instant::now();
    let again = ChangeSlug { slug: Slug::parse("once-more").unwrap() };
    executor
        .execute(Request::<Tenant>::new(tenant.parse().unwrap(), again, system(), id()))
        .await
        .expect("sets another timer of the same stream");
    assert!(since.elapsed() < std::time::Duration::from_secs(1));
    hung.rollback().await.unwrap();
}

#[tokio::test]
async fn a_timer_that_was_moved_meanwhile_does_not_fire() {
    let env = Env::new().await;
    let executor = changed(&env).await;
    env.clock.advance(TimeDelta::days(29));
    let stream: StreamId = sqlx::query_scalar::<_, String>("select aggregate_id from timers where name = 'slug_alias:old-0'")
        .fetch_one(&env.owner)
        .await
        .unwrap()
        .parse()
        .unwrap();
    // Back to the old slug and away again: its alias now lasts 30 days from here.
    for slug in ["old-0", "new-0"] {
        executor.execute(Request::<Tenant>::new(stream, ChangeSlug { slug: Slug::parse(slug).unwrap() }, system(), id())).await.unwrap();
    }
    env.clock.advance(TimeDelta::days(1));
    TimerPoller::new(executor.clone()).fire_due().await.unwrap();
    assert_eq!(expired(&env).await, COUNT - 1);
    env.clock.advance(TimeDelta::days(29));
    TimerPoller::new(executor.clone()).fire_due().await.unwrap();
    assert_eq!(expired(&env).await, COUNT);
}
