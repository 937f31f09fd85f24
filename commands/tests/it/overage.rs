//! What was used under a plan is priced by that plan.

use std::num::NonZeroU32;

use chrono::{DateTime, TimeDelta, Utc};
use commands::usage::Recording;
use domain::billing::meter::{Entitlement, Meter};
use domain::billing::money::{Currency, Money, UnitPrice};
use domain::billing::period::{Billing, Interval};
use domain::billing::plan::{DefinePlan, Plan};
use domain::billing::subscription::{CancelSubscription, ChangePlan, StartSubscription, Subscription, When};
use domain::billing::usage::{CommitUsage, ReserveUsage, Usage, UsageId, UsageItem};
use domain::identity::tenant::OverrideLimit;
use domain::text::{DisplayName, PlanCode};
use domain::{Clock as _, StreamId, TenantId};
use serde_json::{Value, json};
use testing::node::{Node, system};
use testing::{Env, id};

/// A tenant in its trial of `big`. Both plans let ten times their quota be used.
struct Shop {
    env: Env,
    node: Node,
    tenant: TenantId,
    subscription: StreamId,
}

fn code(plan: &str) -> PlanCode {
    PlanCode::parse(plan).unwrap()
}

impl Shop {
    async fn new() -> Self {
        let env = Env::new().await;
        let node = Node::start(&env).await;
        node.react().await;
        for (plan, quota, price) in [("big", 100_000, 1_500), ("small", 10_000, 2_000)] {
            let overage = Some(UnitPrice { amount: price, per: NonZeroU32::new(1_000).unwrap() });
            let messages = Entitlement { quota, hard_percent: 1_000, overage };
            let define = DefinePlan {
                id: None,
                code: code(plan),
                name: DisplayName::parse(plan).unwrap(),
                price: Money::new(1_000, Currency::USD),
                interval: Interval::Month,
                trial_days: 90,
                entitlements: [(Meter::Messages, messages)].into(),
            };
            node.execute_on::<Plan>(StreamId::new(TenantId::SYSTEM, id()), define).await.unwrap();
        }
        let tenant = node.provision("acme").await;
        let shop = Self { env, node, tenant, subscription: StreamId::new(tenant, id()) };
        shop.subscribe(shop.subscription, "big", None).await;
        shop
    }

    async fn subscribe(&self, stream: StreamId, plan: &str, trial_days: Option<u16>) {
        let (billing, time_zone) = (Billing::Anniversary, chrono_tz::Tz::UTC);
        let start = StartSubscription { id: None, plan: code(plan), trial_days, billing, time_zone, currency: None, quantity: 1 };
        self.node.execute_on::<Subscription>(stream, start).await.unwrap();
    }

    async fn change(&self, plan: &str) {
        let change = ChangePlan { plan: code(plan), when: When::Now };
        self.node.execute_on::<Subscription>(self.subscription, change).await.unwrap();
    }

    async fn use_at(&self, quantity: i64, at: &str) {
        let id = UsageId::parse(&format!("{at} {quantity}")).unwrap();
        let at = at.parse::<DateTime<Utc>>().unwrap();
        let items = vec![UsageItem { id, quantity, at: Some(at.try_into().unwrap()) }];
        let recording = Recording { tenant: self.tenant, meter: Meter::Messages, items, actor: system(), traceparent: None };
        self.node.executor.record_one(recording).await.unwrap();
    }

    async fn until(&self, time: &str) {
        self.env.clock.advance(time.parse::<DateTime<Utc>>().unwrap() - self.env.clock.now());
        while self.node.timers().fire_due().await.unwrap() > 0 {}
        self.node.settled().await;
    }

    /// What January has come to: used, overage, cents, and of each segment what was used, what was beyond the quota and by which plan. It begins before the first plan does.
    async fn closed(&self) -> (Value, Value) {
        self.until("2026-02-04T00:00:00Z").await;
        let payload: String = sqlx::query_scalar("select payload::text from events where event_type = 'quota.period_closed'")
            .fetch_one(&self.env.owner)
            .await
            .unwrap();
        self.node.verified().await;
        let closed: Value = serde_json::from_str(&payload).unwrap();
        let segment = |segment: &Value| json!([segment["used"], segment["overage"], segment["plan"]]);
        let segments = closed["segments"].as_array().unwrap().iter().map(segment).collect();
        (json!([closed["used"], closed["overage"], closed["amount"]["amount"]]), segments)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_used_before_a_downgrade_costs_nothing_after_it_also_when_it_is_told_later() {
    let shop = Shop::new().await;
    shop.until("2026-01-10T00:00:00Z").await;
    shop.use_at(90_000, "2026-01-10T00:00:00Z").await;
    shop.until("2026-01-15T00:00:00Z").await;
    shop.change("small").await;
    shop.until("2026-01-16T00:00:00Z").await;
    shop.use_at(5_000, "2026-01-12T00:00:00Z").await;
    shop.until("2026-01-20T00:00:00Z").await;
    shop.use_at(100, "2026-01-20T00:00:00Z").await;
    assert_eq!(shop.closed().await, (json!([95_100, 100, 200]), json!([[0, 0, null], [95_000, 0, "big"], [100, 100, "small"]])));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_at_the_end_of_the_month_wipes_no_overage_and_a_reservation_is_used_when_that_is_said() {
    let shop = Shop::new().await;
    shop.change("small").await;
    shop.until("2026-01-10T00:00:00Z").await;
    shop.use_at(11_500, "2026-01-10T00:00:00Z").await;
    let held = StreamId::new(shop.tenant, id());
    let reserve = ReserveUsage { id: None, meter: Meter::Messages, quantity: 500, ttl_seconds: 3_600 };
    shop.node.execute_on::<Usage>(held, reserve).await.unwrap();
    shop.env.clock.advance(TimeDelta::minutes(30));
    shop.node.execute_on::<Usage>(held, CommitUsage { quantity: Some(500) }).await.unwrap();
    shop.until("2026-01-31T23:58:00Z").await;
    shop.change("big").await;
    let segments = json!([[0, 0, null], [12_000, 2_000, "small"], [0, 0, "big"]]);
    assert_eq!(shop.closed().await, (json!([12_000, 2_000, 4_000]), segments));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_subscription_of_a_month_pays_for_its_own_and_an_override_is_not_sold_beyond() {
    let shop = Shop::new().await;
    shop.change("small").await;
    shop.until("2026-01-05T00:00:00Z").await;
    shop.use_at(10_300, "2026-01-05T00:00:00Z").await;
    shop.until("2026-01-05T00:00:01Z").await;
    let until = Some("2026-01-07T00:00:00Z".parse::<DateTime<Utc>>().unwrap().try_into().unwrap());
    shop.node.execute(shop.tenant, OverrideLimit { meter: Meter::Messages, limit: 20_000, until }).await.unwrap();
    shop.until("2026-01-06T00:00:00Z").await;
    shop.use_at(700, "2026-01-06T00:00:00Z").await;
    shop.until("2026-01-08T00:00:00Z").await;
    shop.node.execute_on::<Subscription>(shop.subscription, CancelSubscription { when: When::Now }).await.unwrap();
    shop.node.settled().await;
    let other = StreamId::new(shop.tenant, id());
    shop.subscribe(other, "small", Some(0)).await;
    shop.node.settled().await;
    shop.use_at(50, "2026-01-08T00:00:00Z").await;
    let (total, segments) = shop.closed().await;
    assert_eq!(total, json!([11_050, 350, 700]));
    let small = json!("small");
    assert_eq!(segments, json!([[0, 0, null], [10_300, 300, small], [700, 0, null], [0, 0, small], [50, 50, small]]));
    let owed: Vec<Option<String>> = sqlx::query_scalar(
        "select segment ->> 'subscription' from events, json_array_elements(payload -> 'segments') segment
         where event_type = 'quota.period_closed' and (segment ->> 'overage')::int > 0",
    )
    .fetch_all(&shop.env.owner)
    .await
    .unwrap();
    assert_eq!(owed, [Some(shop.subscription.id.to_string()), Some(other.id.to_string())]);
}
