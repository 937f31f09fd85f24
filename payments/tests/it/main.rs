//! Payment providers: over a server that speaks Stripe's REST API, and messages of the shapes that Stripe sends.
#![expect(clippy::unwrap_used, reason = "tests may")]

mod agreement;
mod table;

use std::sync::Arc;

use axum::http::StatusCode;
use bus::subscription::run;
use chrono::TimeDelta;
use domain::billing::period::Billing;
use domain::billing::subscription::{
    CancelScheduledChange, CancelSubscription, ChangePlan, ChangeQuantity, Details, EndTrialWithoutPayment, LinkProvider,
    PauseSubscription, RecordPayment, RecordPaymentSucceeded, ResumeSubscription, StartSubscription, Status, Subscription,
    UncancelSubscription, When,
};
use domain::text::PlanCode;
use domain::{Clock as _, StreamId, TenantId};
use outbound::worker::Worker;
use payments::channel::PaymentChannel;
use payments::policy::PaymentsPolicy;
use serde_json::{Value, json};
use testing::http::{Answer, Client};
use testing::node::Node;
use testing::stripe::{Fault, Stripe, sign};
use testing::{Env, eventually, id};
use tokio_util::sync::{CancellationToken, DropGuard};

const PAID: &str = include_str!("../recorded/event_invoice_payment_succeeded.json");
const PAID_BASIL: &str = include_str!("../recorded/event_invoice_payment_succeeded_basil.json");
const FAILED: &str = include_str!("../recorded/event_invoice_payment_failed.json");
const FAILED_BASIL: &str = include_str!("../recorded/event_invoice_payment_failed_basil.json");
const UPDATED: &str = include_str!("../recorded/event_customer_subscription_updated.json");
const DELETED: &str = include_str!("../recorded/event_customer_subscription_deleted.json");
const SET_UP: &str = include_str!("../recorded/event_setup_intent_succeeded.json");
const ATTACHED: &str = include_str!("../recorded/event_payment_method_attached.json");
const UNKNOWN: &str = include_str!("../recorded/event_unknown.json");

/// A tenant that Stripe collects from.
struct Shop {
    env: Env,
    node: Node,
    client: Client,
    stripe: Stripe,
    tenant: TenantId,
    subscription: StreamId,
    _policy: DropGuard,
}

impl Shop {
    async fn new() -> Self {
        let env = Env::new().await;
        let mut node = Node::start(&env).await;
        let stripe = Stripe::start().await;
        node.payments = Some(stripe.adapter());
        node.react().await;
        let cancel = CancellationToken::new();
        let policy = PaymentsPolicy::runtime(&node.store, node.payments.clone());
        tokio::spawn(run(policy, node.store.clone(), node.feed.clone(), cancel.clone()));
        let client = Client::new(&env, &node);
        let tenant = node.provision("acme").await;
        let subscription = StreamId::new(tenant, id());
        Self { env, node, client, stripe, tenant, subscription, _policy: cancel.drop_guard() }
    }

    /// One that has begun to pay: Stripe has its subscription and a payment method.
    async fn paying(billing: Billing) -> Self {
        let shop = Self::new().await;
        shop.start_by(billing, Some(0)).await;
        shop.told().await;
        shop.tells(SET_UP, "evt_setup", 0).await;
        shop.told().await;
        shop
    }

    /// One whose subscription at Stripe has this id.
    async fn linked(subscription: &str) -> Self {
        let shop = Self::new().await;
        shop.start(Some(0)).await;
        shop.told().await;
        shop.link(subscription).await;
        shop
    }

    async fn start(&self, trial_days: Option<u16>) {
        self.start_by(Billing::Anniversary, trial_days).await;
    }

    async fn start_by(&self, billing: Billing, trial_days: Option<u16>) {
        let start = StartSubscription {
            id: None,
            plan: PlanCode::parse("starter").unwrap(),
            trial_days,
            billing,
            time_zone: chrono_tz::Tz::UTC,
            currency: None,
            quantity: 1,
        };
        self.execute(start).await;
    }

    async fn execute(&self, command: impl Into<domain::billing::subscription::Command>) {
        self.node.execute_on::<Subscription>(self.subscription, command).await.unwrap();
    }

    fn worker(&self) -> Worker {
        let channel = PaymentChannel::new(self.node.executor.clone(), self.stripe.adapter());
        Worker::new(self.node.store.clone(), vec![Arc::new(channel)])
    }

    /// Until Stripe has been told everything, and nothing follows from that any more.
    async fn told(&self) {
        let worker = self.worker();
        eventually("everything has been told", || async {
            self.node.settled().await;
            let head = self.node.store.head().await.unwrap().position;
            let policies = commands::policy::statuses(&self.node.store).await.unwrap();
            let decided = policies.iter().any(|policy| policy.name == "payments" && policy.position >= head);
            let attempted = worker.deliver_due().await.unwrap();
            let pending: i64 = sqlx::query_scalar("select count(*) from ops.deliveries where kind = 'payment' and state = 'pending'")
                .fetch_one(&self.env.owner)
                .await
                .unwrap();
            if pending > 0 && attempted == 0 {
                self.env.clock.advance(TimeDelta::minutes(1));
            }
            let same = self.node.store.head().await.unwrap().position == head;
            (decided && attempted == 0 && pending == 0 && same).then_some(())
        })
        .await;
    }

    async fn details(&self) -> Details {
        self.node.store.current::<Subscription>(self.subscription).await.unwrap().state.details().unwrap().clone()
    }

    async fn customer(&self) -> String {
        self.details().await.customer.unwrap().1
    }

    /// Has a subscription of this id at Stripe noted as ours.
    async fn link(&self, subscription: &str) {
        let reference = |text: &str| domain::text::Reference::parse(text).unwrap();
        self.execute(LinkProvider { provider: reference("stripe"), subscription: reference(subscription) }).await;
    }

    /// What came of a message, and why it had no effect.
    async fn listed(&self, id: &str) -> (String, Option<String>) {
        let rows = self.client.naming(self.tenant).get("/v1/billing/provider-events").await;
        let row = rows.json["data"].as_array().unwrap().iter().find(|row| row["event_id"] == id).unwrap().clone();
        (row["outcome"].as_str().unwrap().to_owned(), row["reason"].as_str().map(str::to_owned))
    }

    /// What Stripe has of the subscription.
    fn theirs(&self) -> Value {
        let account = self.stripe.account();
        assert_eq!(account.subscriptions.len(), 1, "{:?}", account.subscriptions.keys());
        account.subscriptions.values().next().unwrap().clone()
    }

    /// A recorded message, as this customer's, with an id and a time of its own.
    async fn message(&self, recorded: &str, id: &str, seconds: i64) -> Value {
        let mut message: Value = serde_json::from_str(recorded).unwrap();
        message["id"] = json!(id);
        message["created"] = json!(self.env.clock.now().timestamp() + seconds);
        message["data"]["object"]["customer"] = json!(self.customer().await);
        message["data"]["object"]["metadata"] = json!({});
        if let Some(linked) = self.details().await.provider_subscription {
            let object = &mut message["data"]["object"];
            match object["object"].as_str() {
                Some("subscription") => object["id"] = json!(linked),
                Some("invoice") if object["parent"].is_object() => object["parent"]["subscription_details"]["subscription"] = json!(linked),
                Some("invoice") => object["subscription"] = json!(linked),
                _ => {}
            }
            // Each invoice is another one.
            if object["object"] == "invoice" {
                (object["id"], object["charge"]) = (json!(format!("in_{id}")), json!(format!("ch_{id}")));
            }
        }
        message
    }

    /// Sends it as Stripe does.
    async fn send(&self, message: &Value) -> Answer {
        let (body, now) = (message.to_string(), self.env.clock.now());
        let headers = [("stripe-signature", &*sign(&body, now)), ("content-type", "application/json; charset=utf-8")];
        let nobody = self.client.with_token(None);
        nobody.send(axum::http::Method::POST, "/v1/billing/providers/stripe/events", &headers, body).await
    }

    async fn tells(&self, recorded: &str, id: &str, seconds: i64) -> String {
        let answer = self.send(&self.message(recorded, id, seconds).await).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        answer.field("outcome").to_owned()
    }
}

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
async fn a_signed_message_counts_once_an_unsigned_or_old_one_not_at_all_and_unknown_ones_are_kept() {
    let shop = Shop::new().await;
    shop.start(None).await;
    shop.told().await;
    shop.link("sub_1").await;
    let message = shop.message(PAID, "evt_1", 0).await;
    let (body, now) = (message.to_string(), shop.env.clock.now());
    let send = async |signature: Option<String>, body: &str| {
        let signature = signature.as_deref().map(|signature| ("stripe-signature", signature));
        let headers: Vec<_> = signature.into_iter().chain([("content-type", "application/json")]).collect();
        let nobody = shop.client.with_token(None);
        nobody.send(axum::http::Method::POST, "/v1/billing/providers/stripe/events", &headers, body.to_owned()).await
    };
    let old = sign(&body, now - TimeDelta::minutes(6));
    let other = body.replace("evt_1", "evt_2");
    for (signature, body) in [(None, &body), (Some("t=1,v1=00".to_owned()), &body), (Some(old), &body), (Some(sign(&body, now)), &other)] {
        let refused = send(signature, body).await;
        assert_eq!((refused.status, refused.field("code")), (StatusCode::BAD_REQUEST, "billing.bad_signature"), "{}", refused.text);
    }
    let nonsense = send(Some(sign("{}", now)), "{}").await;
    assert_eq!((nonsense.status, nonsense.field("code")), (StatusCode::BAD_REQUEST, "request.malformed"));
    let elsewhere = shop.client.with_token(None).post("/v1/billing/providers/other/events", json!({})).await;
    assert_eq!(elsewhere.status, StatusCode::NOT_FOUND);
    assert_eq!(shop.tells(PAID, "evt_1", 0).await, "applied");
    assert_eq!(shop.tells(PAID, "evt_1", 0).await, "duplicate");
    // Also when the process died between the command and the note of it.
    sqlx::query("delete from ops.provider_events").execute(&shop.env.owner).await.unwrap();
    assert_eq!(shop.tells(PAID, "evt_1", 0).await, "applied");
    assert_eq!(shop.tells(UNKNOWN, "evt_3", 0).await, "kept");
    let paid: i64 = sqlx::query_scalar("select count(*) from events where event_type = 'subscription.payment_succeeded'")
        .fetch_one(&shop.env.owner)
        .await
        .unwrap();
    assert_eq!(paid, 1);
    let listed = shop.client.naming(shop.tenant).get("/v1/billing/provider-events").await;
    let mut outcomes: Vec<_> = listed.json["data"].as_array().unwrap().iter().map(|row| row["outcome"].as_str().unwrap()).collect();
    outcomes.sort_unstable();
    assert_eq!(outcomes, ["applied", "kept"]);
    // What came is kept as it came, and nobody can read it without the key.
    let bodies: Vec<Vec<u8>> = sqlx::query_scalar("select body from ops.provider_events").fetch_all(&shop.env.owner).await.unwrap();
    assert!(bodies.iter().all(|body| !String::from_utf8_lossy(body).contains("evt_")));
    shop.env.clock.advance(payments::inbox::KEPT + TimeDelta::days(1));
    assert_eq!(payments::inbox::forget(&shop.node.store).await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_messages_of_both_shapes_in_any_order_bring_the_subscription_where_stripe_has_it() {
    let shop = Shop::linked("sub_1").await;
    let status = || async { shop.details().await.status };
    assert_eq!(status().await, Status::Active, "started by the platform");
    assert_eq!(shop.tells(FAILED_BASIL, "evt_1", 10).await, "applied");
    assert_eq!(status().await, Status::PastDue);
    assert_eq!(shop.tells(PAID_BASIL, "evt_2", 20).await, "applied");
    assert_eq!(status().await, Status::Active);
    // Older than what was heard: acknowledged, recorded, without effect.
    assert_eq!(shop.tells(FAILED, "evt_3", 15).await, "applied");
    assert_eq!(shop.tells(UPDATED, "evt_4", 16).await, "applied");
    assert_eq!(status().await, Status::Active);
    assert_eq!(shop.tells(UPDATED, "evt_5", 30).await, "applied");
    assert_eq!(status().await, Status::PastDue);
    let mut unpaid = shop.message(UPDATED, "evt_6", 40).await;
    unpaid["data"]["object"]["status"] = json!("unpaid");
    assert_eq!(shop.send(&unpaid).await.field("outcome"), "applied");
    shop.node.settled().await;
    let tenant = shop.client.get(&format!("/v1/tenants/{}", shop.tenant)).await;
    assert_eq!((status().await, tenant.field("status")), (Status::Unpaid, "suspended"));
    assert_eq!(shop.tells(PAID, "evt_7", 50).await, "applied");
    shop.node.settled().await;
    let tenant = shop.client.get(&format!("/v1/tenants/{}", shop.tenant)).await;
    assert_eq!((status().await, tenant.field("status")), (Status::Active, "active"));
    // A payment method, and its removal.
    assert_eq!(shop.tells(ATTACHED, "evt_8", 60).await, "applied");
    let method = shop.details().await.payment_method.unwrap();
    let mut detached = shop.message(ATTACHED, "evt_9", 70).await;
    let customer = detached["data"]["object"]["customer"].take();
    (detached["type"], detached["data"]["previous_attributes"]) = (json!("payment_method.detached"), json!({"customer": customer}));
    assert_eq!(detached["data"]["object"]["id"], json!(method));
    assert_eq!(shop.send(&detached).await.field("outcome"), "applied");
    assert_eq!(shop.details().await.payment_method, None);
    assert_eq!(shop.tells(DELETED, "evt_10", 80).await, "applied");
    shop.node.settled().await;
    let tenant = shop.client.get(&format!("/v1/tenants/{}", shop.tenant)).await;
    assert_eq!((status().await, tenant.field("status")), (Status::Cancelled, "cancelled"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_quicker_than_our_own_note_of_the_customer_waits_for_it() {
    let shop = Shop::new().await;
    shop.start(None).await;
    // Stripe makes the customer, and tells of its payment method before we know whose it is.
    let mut message: Value = serde_json::from_str(ATTACHED).unwrap();
    message["created"] = json!(shop.env.clock.now().timestamp());
    let customer = message["data"]["object"]["customer"].as_str().unwrap().to_owned();
    // Whoever writes somebody's subscription into a payment method gets nothing by it.
    message["data"]["object"]["metadata"] = json!({"tenure_subscription": shop.subscription.to_string()});
    assert_eq!(shop.send(&message).await.field("outcome"), "waiting");
    assert_eq!(shop.details().await.payment_method, None);
    let reference = |text: &str| domain::text::Reference::parse(text).unwrap();
    let link = domain::billing::subscription::LinkCustomer { provider: reference("stripe"), customer: reference(&customer) };
    shop.execute(link).await;
    // The process that noted it died before it looked at what waits: whoever tells it again does.
    let (executor, adapter) = (shop.node.executor.clone(), shop.stripe.adapter());
    payments::inbox::reconsider(&executor, adapter.as_ref(), &customer).await.unwrap();
    assert_eq!(shop.details().await.payment_method.as_deref(), message["data"]["object"]["id"].as_str());
    assert_eq!(shop.send(&message).await.field("outcome"), "duplicate");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stripe_tells_counts_for_the_linked_subscription_its_invoices_and_its_customer_only() {
    let shop = Shop::linked("sub_ours").await;
    let status = || async { shop.details().await.status };
    // Of the same customer, and about something else: kept without effect, with the reason.
    let other = Some("it is about another subscription of the customer".to_owned());
    let none = Some("the invoice is of no subscription".to_owned());
    let cases = [
        (DELETED, "", json!("sub_OTHER"), &other),
        (UPDATED, "incomplete_expired", json!("sub_OTHER"), &other),
        (UPDATED, "unpaid", json!("sub_OTHER"), &other),
        (FAILED, "", json!("sub_OTHER"), &other),
        (FAILED_BASIL, "", json!("sub_OTHER"), &other),
        (FAILED, "", Value::Null, &none),
        (FAILED_BASIL, "", Value::Null, &none),
        (PAID, "", Value::Null, &none),
    ];
    for (n, (recorded, becomes, of, reason)) in cases.into_iter().enumerate() {
        let id = format!("evt_{n}");
        let mut message = shop.message(recorded, &id, 0).await;
        let object = &mut message["data"]["object"];
        if !becomes.is_empty() {
            object["status"] = json!(becomes);
        }
        match object["object"].as_str() {
            Some("subscription") => object["id"] = of,
            _ if object["parent"].is_object() => object["parent"]["subscription_details"]["subscription"] = of,
            _ => object["subscription"] = of,
        }
        // What anybody at Stripe can write does not make it ours.
        object["metadata"] = json!({"tenure_subscription": shop.subscription.to_string()});
        assert_eq!(shop.send(&message).await.field("outcome"), "kept", "{id}");
        assert_eq!(shop.listed(&id).await, ("kept".to_owned(), reason.clone()), "{id}");
        assert_eq!(status().await, Status::Active, "{id}");
    }
    // Unpaid, and a one-off invoice of the customer is paid.
    assert_eq!(shop.tells(FAILED, "evt_f", 1).await, "applied");
    let mut one_off = shop.message(PAID, "evt_p", 2).await;
    one_off["data"]["object"]["subscription"] = Value::Null;
    assert_eq!(shop.send(&one_off).await.field("outcome"), "kept");
    assert_eq!(status().await, Status::PastDue);
    // A message from the future is refused, so that no later one is outdone by it.
    assert_eq!(shop.tells(PAID, "evt_future", 301).await, "refused");
    assert_eq!(status().await, Status::PastDue);
    // Paid out of band or by the balance: no money, and paid all the same; said twice, and counted once.
    let mut balance = shop.message(PAID, "evt_b1", 3).await;
    (balance["type"], balance["data"]["object"]["amount_paid"]) = (json!("invoice.paid"), json!(0));
    assert_eq!(shop.send(&balance).await.field("outcome"), "applied");
    assert_eq!(status().await, Status::Active);
    (balance["id"], balance["type"]) = (json!("evt_b2"), json!("invoice.payment_succeeded"));
    assert_eq!(shop.send(&balance).await.field("outcome"), "applied");
    let paid = "select count(*) from events where event_type = 'subscription.payment_succeeded'";
    assert_eq!(sqlx::query_scalar::<_, i64>(paid).fetch_one(&shop.env.owner).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_about_a_subscription_that_is_not_noted_yet_waits_for_that() {
    let shop = Shop::new().await;
    shop.start(Some(0)).await;
    shop.told().await;
    let mut message = shop.message(FAILED, "evt_1", 0).await;
    message["data"]["object"]["subscription"] = json!("sub_1");
    assert_eq!(shop.send(&message).await.field("outcome"), "waiting");
    shop.link("sub_1").await;
    let (executor, adapter) = (shop.node.executor.clone(), shop.stripe.adapter());
    payments::inbox::reconsider(&executor, adapter.as_ref(), &shop.customer().await).await.unwrap();
    assert_eq!((shop.details().await.status, shop.listed("evt_1").await.0.as_str()), (Status::PastDue, "applied"));
}

#[tokio::test(flavor = "multi_thread")]
async fn refunds_and_disputes_are_events_and_a_dispute_that_is_lost_is_past_due() {
    let shop = Shop::linked("sub_1").await;
    let message = |id: &str, kind: &str, object: Value| json!({"id": id, "object": "event", "type": kind, "created": shop.env.clock.now().timestamp(), "data": {"object": object}});
    // A dispute names its charge alone, and comes before the invoice is heard of.
    let dispute = |status: &str| json!({"object": "dispute", "id": "dp_1", "charge": "ch_evt_paid", "amount": 2900, "currency": "usd", "status": status});
    assert_eq!(shop.send(&message("evt_d1", "charge.dispute.created", dispute("needs_response"))).await.field("outcome"), "waiting");
    assert_eq!(shop.tells(PAID, "evt_paid", 0).await, "applied");
    assert_eq!(shop.listed("evt_d1").await.0, "applied");
    let refund = json!({"object": "charge", "id": "ch_evt_paid", "customer": shop.customer().await, "invoice": "in_evt_paid",
        "amount": 2900, "amount_refunded": 500, "currency": "usd"});
    assert_eq!(shop.send(&message("evt_r", "charge.refunded", refund)).await.field("outcome"), "applied");
    // Where two things are of the same second, being paid prevails.
    shop.env.clock.advance(TimeDelta::seconds(1));
    assert_eq!(shop.send(&message("evt_d2", "charge.dispute.closed", dispute("lost"))).await.field("outcome"), "applied");
    assert_eq!(shop.details().await.status, Status::PastDue);
    // Another charge of the same customer is none of ours.
    let other = json!({"object": "charge", "id": "ch_other", "customer": shop.customer().await, "amount": 1, "amount_refunded": 1, "currency": "usd"});
    assert_eq!(shop.send(&message("evt_o", "charge.refunded", other)).await.field("outcome"), "waiting");
    let kinds: Vec<String> = sqlx::query_scalar(
        "select event_type from events where event_type in ('subscription.payment_refunded', 'subscription.payment_disputed', 'subscription.dispute_closed') order by position",
    )
    .fetch_all(&shop.env.owner)
    .await
    .unwrap();
    assert_eq!(kinds, ["subscription.payment_disputed", "subscription.payment_refunded", "subscription.dispute_closed"]);
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
