//! Payment providers: over a server that speaks Stripe's REST API, and messages of the shapes that Stripe sends.
#![expect(clippy::unwrap_used, reason = "tests may")]

mod agreement;
mod messages;
mod model;
mod shop;
mod table;

use axum::http::StatusCode;
use chrono::TimeDelta;
use domain::Clock as _;
use domain::billing::period::Billing;
use domain::billing::subscription::{
    CancelScheduledChange, CancelSubscription, ChangePlan, ChangeQuantity, EndTrialWithoutPayment, PauseSubscription, RecordPayment,
    RecordPaymentSucceeded, ResumeSubscription, Status, UncancelSubscription, When,
};
use domain::text::PlanCode;
use serde_json::{Value, json};
use testing::eventually;
use testing::stripe::Fault;

use shop::*;

#[tokio::test(flavor = "multi_thread")]
async fn stripe_is_told_of_customer_subscription_and_changes_though_answers_are_lost_and_too_many_are_refused() {
    let shop = Shop::new().await;
    // The customer is made, and the answer lost; and asked too often.
    shop.stripe.account().faults.extend([Fault::TooMany, Fault::AnswerLost, Fault::TooMany]);
    shop.start(None).await;
    shop.told().await;
    assert_eq!(shop.stripe.account().customers.len(), 1);
    assert!(shop.stripe.account().subscriptions.is_empty(), "there is nothing to pay with");
    // The product's own page sets up a payment method; Stripe tells us.
    let set_up =
        shop.client.naming(shop.tenant).post(&format!("/v1/subscriptions/{}/set-up-payment", shop.subscription.id), json!({})).await;
    assert_eq!((set_up.status, set_up.field("provider")), (StatusCode::OK, "stripe"), "{}", set_up.text);
    assert!(set_up.field("client_secret").contains("_secret_"));
    // The subscription is made, and the answer lost: it is found, not made again.
    assert_eq!(shop.tells(SET_UP, "evt_setup", 0).await, "applied");
    let method = shop.details().await.payment_method.unwrap();
    shop.node.settled().await;
    shop.stripe.account().faults.extend([Fault::TooMany, Fault::TooMany, Fault::TooMany, Fault::AnswerLost]);
    shop.told().await;
    let theirs = shop.theirs();
    let item = &theirs["items"]["data"][0];
    assert_eq!((theirs["status"].as_str(), theirs["default_payment_method"].as_str()), (Some("trialing"), Some(method.as_str())));
    assert_eq!(theirs["trial_end"], json!(shop.details().await.trial.unwrap().ends_at.timestamp()));
    assert_eq!((item["price"]["unit_amount"].as_i64(), item["quantity"].as_i64()), (Some(2_900), Some(1)));
    assert_eq!(shop.details().await.provider_subscription.as_deref(), theirs["id"].as_str());
    // What changes here changes there, and stays one item.
    shop.execute(ChangePlan { plan: PlanCode::parse("growth").unwrap(), when: When::Now }).await;
    shop.execute(ChangeQuantity { quantity: 3 }).await;
    shop.told().await;
    let theirs = shop.theirs();
    assert_eq!(theirs["items"]["data"].as_array().unwrap().len(), 1);
    let item = &theirs["items"]["data"][0];
    assert_eq!((item["price"]["unit_amount"].as_i64(), item["quantity"].as_i64()), (Some(9_900), Some(3)));
    // The trial becomes a paid subscription, is to end, and is not to end.
    shop.env.clock.advance(TimeDelta::days(14));
    while shop.node.timers().fire_due().await.unwrap() > 0 {}
    shop.execute(CancelSubscription { when: When::PeriodEnd }).await;
    shop.told().await;
    assert_eq!((shop.theirs()["cancel_at_period_end"].as_bool(), shop.theirs()["status"].as_str()), (Some(true), Some("active")));
    shop.execute(UncancelSubscription {}).await;
    shop.told().await;
    assert_eq!(shop.theirs()["cancel_at_period_end"].as_bool(), Some(false));
    // The end.
    shop.execute(CancelSubscription { when: When::Now }).await;
    shop.told().await;
    assert_eq!(shop.theirs()["status"].as_str(), Some("canceled"));
    let dead: i64 =
        sqlx::query_scalar("select count(*) from ops.deliveries where state = 'dead'").fetch_one(&shop.env.owner).await.unwrap();
    assert_eq!(dead, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cancelled_while_stripe_makes_it_does_not_live_on_there() {
    let shop = Shop::new().await;
    shop.start(None).await;
    shop.told().await;
    // The subscription is made there, the answer is lost, and meanwhile it is cancelled here.
    assert_eq!(shop.tells(SET_UP, "evt_setup", 0).await, "applied");
    shop.node.settled().await;
    let policies = || async { commands::policy::statuses(&shop.node.store).await.unwrap() };
    let head = shop.node.store.head().await.unwrap().position;
    eventually("it is decided upon", || async {
        policies().await.iter().any(|policy| policy.name == "payments" && policy.position >= head).then_some(())
    })
    .await;
    // The list and the product are answered, the subscription is made, and that answer is lost.
    shop.stripe.account().losing = Some("POST /v1/subscriptions");
    while shop.worker().deliver_due().await.unwrap() > 0 {}
    assert_eq!((shop.theirs()["status"].as_str(), shop.details().await.provider_subscription), (Some("trialing"), None));
    shop.stripe.account().losing = None;
    shop.execute(CancelSubscription { when: When::Now }).await;
    shop.told().await;
    assert_eq!(shop.theirs()["status"].as_str(), Some("canceled"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_ends_a_trial_without_payment_is_not_charged_and_goes_on_when_resumed() {
    let shop = Shop::new().await;
    shop.start(None).await;
    shop.told().await;
    shop.tells(SET_UP, "evt_setup", 0).await;
    shop.told().await;
    shop.execute(EndTrialWithoutPayment {}).await;
    shop.told().await;
    assert_eq!(
        (shop.theirs()["status"].as_str(), shop.theirs()["pause_collection"]["behavior"].as_str()),
        (Some("trialing"), Some("void"))
    );
    shop.execute(ResumeSubscription {}).await;
    shop.told().await;
    assert_eq!((shop.theirs()["status"].as_str(), &shop.theirs()["pause_collection"]), (Some("active"), &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_that_is_declined_leaves_nothing_behind_and_another_one_is_charged() {
    let shop = Shop::new().await;
    shop.start(None).await;
    shop.told().await;
    shop.env.clock.advance(TimeDelta::days(14));
    while shop.node.timers().fire_due().await.unwrap() > 0 {}
    assert_eq!(shop.details().await.status, Status::Paused);
    shop.stripe.account().declines = true;
    shop.tells(SET_UP, "evt_1", 0).await;
    shop.told().await;
    assert!(shop.stripe.account().subscriptions.is_empty());
    // Another one, which is good: only what is paid brings it back, not what Stripe calls active.
    shop.stripe.account().declines = false;
    let mut other = shop.message(SET_UP, "evt_2", 1).await;
    other["data"]["object"]["payment_method"] = json!("pm_other");
    shop.send(&other).await;
    shop.told().await;
    assert_eq!(shop.theirs()["default_payment_method"], json!("pm_other"));
    let mut active = shop.message(UPDATED, "evt_3", 2).await;
    active["data"]["object"]["status"] = json!("active");
    shop.send(&active).await;
    assert_eq!(shop.details().await.status, Status::Paused);
    shop.tells(PAID, "evt_4", 3).await;
    assert_eq!(shop.details().await.status, Status::Active);
    // What Stripe could not collect is tried again with a new card.
    shop.stripe.account().subscriptions.values_mut().for_each(|theirs| theirs["status"] = json!("past_due"));
    other["id"] = json!("evt_5");
    other["created"] = json!(shop.env.clock.now().timestamp() + 4);
    other["data"]["object"]["payment_method"] = json!("pm_third");
    shop.send(&other).await;
    shop.told().await;
    assert_eq!((shop.theirs()["status"].as_str(), shop.theirs()["default_payment_method"].as_str()), (Some("active"), Some("pm_third")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_with_the_next_period_is_told_before_it_so_that_the_renewal_is_charged_right() {
    let shop = Shop::paying(Billing::Anniversary).await;
    let id = shop.theirs()["id"].as_str().unwrap().to_owned();
    let change = |plan: &str| ChangePlan { plan: PlanCode::parse(plan).unwrap(), when: When::PeriodEnd };
    // The answer to the schedule is lost, and it is made anew.
    shop.stripe.account().losing = Some("POST /v1/subscription_schedules");
    shop.execute(change("growth")).await;
    shop.node.settled().await;
    eventually("a schedule was made", || async {
        while shop.worker().deliver_due().await.unwrap() > 0 {}
        (!shop.stripe.account().schedules.is_empty()).then_some(())
    })
    .await;
    shop.stripe.account().losing = None;
    shop.told().await;
    assert_eq!(shop.stripe.account().schedules.len(), 1);
    assert_eq!(shop.theirs()["items"]["data"][0]["price"]["unit_amount"], json!(2_900), "the present period stays as it is");
    // Taken back, and asked again.
    shop.execute(CancelScheduledChange {}).await;
    shop.told().await;
    assert!(shop.stripe.account().schedules.is_empty() && shop.theirs()["schedule"].is_null());
    shop.execute(change("growth")).await;
    shop.told().await;
    // Stripe renews before Tenure's timer.
    assert_eq!(shop.stripe.account().renew(&id), 9_900);
    let asked = shop.stripe.account().asked.len();
    shop.env.clock.advance(TimeDelta::days(31));
    while shop.node.timers().fire_due().await.unwrap() > 0 {}
    assert_eq!(shop.details().await.pinned.code, "growth");
    shop.told().await;
    let account = shop.stripe.account();
    let prorated =
        account.asked[asked..].iter().any(|(_, fields)| fields.get("proration_behavior").is_some_and(|how| how == "always_invoice"));
    assert!(!prorated, "what changed by itself is not charged once more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_comes_here_a_moment_before_it_comes_at_stripe_is_left_to_the_schedule() {
    let shop = Shop::paying(Billing::Anniversary).await;
    shop.execute(ChangePlan { plan: PlanCode::parse("growth").unwrap(), when: When::PeriodEnd }).await;
    shop.told().await;
    shop.env.clock.advance(TimeDelta::days(31));
    while shop.node.timers().fire_due().await.unwrap() > 0 {}
    let asked = shop.stripe.account().asked.len();
    shop.told().await;
    let id = shop.theirs()["id"].as_str().unwrap().to_owned();
    let changed = shop.stripe.account().asked[asked..].iter().any(|(what, _)| what == "POST /v1/subscriptions/{id}");
    assert!(!changed);
    assert_eq!(shop.stripe.account().renew(&id), 9_900);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_is_renamed_or_deleted_is_so_at_stripe() {
    let shop = Shop::new().await;
    shop.start(None).await;
    shop.told().await;
    let customer = shop.customer().await;
    let tenant = shop.client.naming(shop.tenant);
    let renamed = tenant.post(&format!("/v1/tenants/{}/rename", shop.tenant), json!({"name": "Acme Renamed"})).await;
    assert_eq!(renamed.status, StatusCode::OK, "{}", renamed.text);
    shop.told().await;
    assert_eq!(shop.stripe.account().customers[&customer]["name"], json!("Acme Renamed"));
    shop.execute(CancelSubscription { when: When::Now }).await;
    shop.node.settled().await;
    let deleted = shop.client.post(&format!("/v1/tenants/{}/delete", shop.tenant), json!({})).await;
    assert_eq!(deleted.status, StatusCode::OK, "{}", deleted.text);
    shop.told().await;
    assert!(shop.stripe.account().customers.is_empty());
}

/// All that is owed was paid.
fn paid_by_hand(id: &str, at: chrono::DateTime<chrono::Utc>) -> RecordPayment {
    RecordPayment { provider_event_id: domain::text::Reference::parse(id).unwrap(), occurred_at: at.try_into().unwrap(), amount: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_used_beyond_a_quota_is_an_item_of_the_next_invoice_once() {
    let shop = Shop::paying(Billing::Anniversary).await;
    shop.execute(ChangePlan { plan: PlanCode::parse("growth").unwrap(), when: When::Now }).await;
    shop.execute(RecordPaymentSucceeded(paid_by_hand("by hand", shop.env.clock.now()))).await;
    shop.node.settled().await;
    let client = shop.client.naming(shop.tenant);
    let used = client.post("/v1/quota/usage/messages", json!({"id": "m1", "quantity": 10_400})).await;
    assert!(used.status.is_success(), "{}", used.text);
    shop.node.settled().await;
    shop.env.clock.advance(TimeDelta::days(35));
    while shop.node.timers().fire_due().await.unwrap() > 0 {}
    shop.node.settled().await;
    // The answer is lost, and it is asked again under the same key.
    shop.stripe.account().losing = Some("POST /v1/invoiceitems");
    eventually("it was asked", || async {
        shop.worker().deliver_due().await.unwrap();
        (!shop.stripe.account().invoice_items.is_empty()).then_some(())
    })
    .await;
    shop.stripe.account().losing = None;
    shop.told().await;
    let account = shop.stripe.account();
    assert_eq!(account.invoice_items.len(), 1, "{:?}", account.invoice_items);
    let item = &account.invoice_items[0];
    assert_eq!((item["amount"].as_str(), item["currency"].as_str()), ("600", "usd"));
    assert_eq!(Some(item["subscription"].as_str()), account.subscriptions.keys().next().map(String::as_str));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_whose_price_stripe_cannot_charge_is_refused() {
    let shop = Shop::new().await;
    let plan = |code: &str, amount: i64, currency: &str| json!({"code": code, "name": code, "price": {"amount": amount, "currency": currency}, "interval": "month", "entitlements": {}});
    for (n, (amount, currency)) in [(2_905, "KWD"), (1_000_050, "MGA"), (100, "IQD")].into_iter().enumerate() {
        let refused = shop.client.post("/v1/plans", plan(&format!("plan-{n}"), amount, currency)).await;
        assert_eq!(
            (refused.status, refused.field("code")),
            (StatusCode::UNPROCESSABLE_ENTITY, "billing.amount_not_payable"),
            "{}",
            refused.text
        );
    }
    let fine = shop.client.post("/v1/plans", plan("ariary", 1_000_000, "MGA")).await;
    assert_eq!(fine.status, StatusCode::CREATED, "{}", fine.text);
    let revised = plan("ariary", 1_000_050, "MGA")
        .as_object()
        .unwrap()
        .iter()
        .filter(|(name, _)| *name != "code")
        .map(|(n, v)| (n.clone(), v.clone()))
        .collect();
    let refused = shop.client.post(&format!("/v1/plans/{}/revise", fine.field("id")), Value::Object(revised)).await;
    assert_eq!(refused.field("code"), "billing.amount_not_payable", "{}", refused.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_pause_both_calendars_are_one_and_the_rest_of_the_period_is_charged_once() {
    let shop = Shop::paying(Billing::Calendar).await;
    shop.env.clock.advance(TimeDelta::days(4));
    shop.execute(PauseSubscription {}).await;
    shop.told().await;
    // Until the 20th of February; Stripe's periods went on.
    shop.env.clock.advance(TimeDelta::days(46));
    let month = |month: u32| chrono::TimeZone::with_ymd_and_hms(&chrono::Utc, 2026, month, 1, 0, 0, 0).unwrap();
    for theirs in shop.stripe.account().subscriptions.values_mut() {
        (theirs["current_period_start"], theirs["current_period_end"]) = (json!(month(2).timestamp()), json!(month(3).timestamp()));
    }
    shop.execute(ResumeSubscription {}).await;
    let resumed = shop.env.clock.now();
    shop.stripe.account().losing = Some("POST /v1/invoiceitems");
    shop.node.settled().await;
    eventually("it was asked", || async {
        shop.worker().deliver_due().await.unwrap();
        (!shop.stripe.account().invoice_items.is_empty()).then_some(())
    })
    .await;
    shop.stripe.account().losing = None;
    shop.told().await;
    assert_eq!(shop.details().await.period.map(|period| (period.start, period.end)), Some((resumed, month(3))));
    let account = shop.stripe.account();
    let (left, whole) = ((month(3) - resumed).num_seconds(), (month(3) - month(2)).num_seconds());
    let price = domain::billing::money::Money::new(2_900, domain::billing::money::Currency::USD);
    let rest = price.share(1, left, whole).amount.to_string();
    let items: Vec<_> = account.invoice_items.iter().map(|item| (item["amount"].as_str(), item["currency"].as_str())).collect();
    assert_eq!(items, [(rest.as_str(), "usd")]);
    assert!(account.asked.iter().all(|(_, fields)| fields.get("billing_cycle_anchor").is_none_or(|anchor| anchor != "now")));
    assert!(account.subscriptions.values().all(|theirs| theirs["pause_collection"].is_null()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_upgrade_gives_is_in_force_when_its_invoice_is_paid_and_what_was_collected_is_listed() {
    let shop = Shop::paying(Billing::Anniversary).await;
    let client = shop.client.naming(shop.tenant);
    shop.tells(PAID, "evt_first", 0).await;
    shop.execute(ChangePlan { plan: PlanCode::parse("growth").unwrap(), when: When::Now }).await;
    shop.told().await;
    let limit = || async {
        let after = shop.node.store.head().await.unwrap().position;
        let rows = client.get(&format!("/v1/entitlements?after={after}")).await;
        let row = rows.json["data"].as_array().unwrap().iter().find(|row| row["meter"] == "messages").unwrap().clone();
        (row["effective_limit"].as_i64(), row["held_limit"].as_i64())
    };
    assert_eq!(limit().await, (Some(1_050), Some(1_050)));
    let use_more = |id: &str| client.post("/v1/quota/usage/messages", json!({"id": id, "quantity": 2_000}));
    assert_eq!(use_more("a").await.field("code"), "quota.exceeded");
    // An invoice of something else says nothing of the upgrade; the one over growth does, and collects the overage of a month with it.
    shop.tells(PAID, "evt_other", 1).await;
    assert_eq!(use_more("b").await.field("code"), "quota.exceeded");
    let pinned = shop.details().await.pinned;
    let product = format!("tenure_{}_v{}", pinned.plan.simple(), pinned.version);
    let mut paid = shop.message(PAID, "evt_growth", 2).await;
    let invoice = &mut paid["data"]["object"];
    invoice["created"] = json!(shop.env.clock.now().timestamp());
    let mut line = invoice["lines"]["data"][0].clone();
    line["price"]["product"] = json!(product);
    let mut overage = line.clone();
    (overage["amount"], overage["price"], overage["plan"]) = (json!(600), Value::Null, Value::Null);
    overage["metadata"] = json!({"tenure_overage": "messages:2025-12"});
    invoice["lines"]["data"] = json!([line, overage]);
    assert_eq!(shop.send(&paid).await.field("outcome"), "applied");
    assert_eq!(limit().await, (Some(10_500), None));
    assert!(use_more("c").await.status.is_success());
    let after = shop.node.store.head().await.unwrap().position;
    let listed = client.get(&format!("/v1/billing/payments?kind=paid&subscription_id={}&after={after}", shop.subscription.id)).await;
    let newest = &listed.json["data"][0];
    let collected = json!([{"meter": "messages", "period": "2025-12", "amount": {"amount": 600, "currency": "USD"}}]);
    assert_eq!((&newest["invoice"], &newest["overage"]), (&json!("in_evt_growth"), &collected), "{}", listed.text);
    assert_eq!(listed.json["data"].as_array().unwrap().len(), 3);
    // The invoice of the present quantity in the shape of newer versions of Stripe's interface.
    shop.execute(ChangeQuantity { quantity: 3 }).await;
    assert_eq!(limit().await.0, Some(10_500));
    let mut paid = shop.message(PAID_BASIL, "evt_three", 3).await;
    let invoice = &mut paid["data"]["object"];
    invoice["created"] = json!(shop.env.clock.now().timestamp());
    let line = &mut invoice["lines"]["data"][0];
    (line["pricing"]["price_details"]["product"], line["quantity"]) = (json!(product), json!(3));
    assert_eq!(shop.send(&paid).await.field("outcome"), "applied");
    assert_eq!(limit().await, (Some(31_500), None));
}
