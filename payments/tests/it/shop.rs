//! A tenant whose payments Stripe collects, and messages of the shapes that Stripe sends.

use std::sync::Arc;

use axum::http::StatusCode;
use chrono::TimeDelta;
use domain::billing::period::Billing;
use domain::billing::subscription::{Details, LinkProvider, StartSubscription, Subscription};
use domain::text::PlanCode;
use domain::{Clock as _, StreamId, TenantId};
use outbound::worker::Worker;
use payments::channel::PaymentChannel;
use payments::policy::PaymentsPolicy;
use serde_json::{Value, json};
use testing::http::{Answer, Client};
use testing::node::Node;
use testing::stripe::{Stripe, sign};
use testing::{Env, eventually_else, id};

pub(crate) const PAID: &str = include_str!("../recorded/event_invoice_payment_succeeded.json");
pub(crate) const PAID_BASIL: &str = include_str!("../recorded/event_invoice_payment_succeeded_basil.json");
pub(crate) const FAILED: &str = include_str!("../recorded/event_invoice_payment_failed.json");
pub(crate) const FAILED_BASIL: &str = include_str!("../recorded/event_invoice_payment_failed_basil.json");
pub(crate) const UPDATED: &str = include_str!("../recorded/event_customer_subscription_updated.json");
pub(crate) const DELETED: &str = include_str!("../recorded/event_customer_subscription_deleted.json");
pub(crate) const SET_UP: &str = include_str!("../recorded/event_setup_intent_succeeded.json");
pub(crate) const ATTACHED: &str = include_str!("../recorded/event_payment_method_attached.json");
pub(crate) const UNKNOWN: &str = include_str!("../recorded/event_unknown.json");

/// A tenant that Stripe collects from.
pub(crate) struct Shop {
    pub(crate) env: Env,
    pub(crate) node: Node,
    pub(crate) client: Client,
    pub(crate) stripe: Stripe,
    pub(crate) tenant: TenantId,
    pub(crate) subscription: StreamId,
}

impl Shop {
    pub(crate) async fn new() -> Self {
        let env = Env::new().await;
        let mut node = Node::start(&env).await;
        let stripe = Stripe::start().await;
        node.payments = Some(stripe.adapter());
        node.react().await;
        node.policies.add(PaymentsPolicy::member(&node.store, node.payments.clone()));
        let client = Client::new(&env, &node);
        let tenant = node.provision("acme").await;
        let subscription = StreamId::new(tenant, id());
        Self { env, node, client, stripe, tenant, subscription }
    }

    /// One that has begun to pay: Stripe has its subscription and a payment method.
    pub(crate) async fn paying(billing: Billing) -> Self {
        let shop = Self::new().await;
        shop.start_by(billing, Some(0)).await;
        shop.told().await;
        shop.tells(SET_UP, "evt_setup", 0).await;
        shop.told().await;
        shop
    }

    /// One whose subscription at Stripe has this id.
    pub(crate) async fn linked(subscription: &str) -> Self {
        let shop = Self::new().await;
        shop.start(Some(0)).await;
        shop.told().await;
        shop.link(subscription).await;
        shop
    }

    pub(crate) async fn start(&self, trial_days: Option<u16>) {
        self.start_by(Billing::Anniversary, trial_days).await;
    }

    pub(crate) async fn start_by(&self, billing: Billing, trial_days: Option<u16>) {
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

    pub(crate) async fn execute(&self, command: impl Into<domain::billing::subscription::Command>) {
        self.node.execute_on::<Subscription>(self.subscription, command).await.unwrap();
    }

    pub(crate) fn worker(&self) -> Worker {
        let channel = PaymentChannel::new(self.node.executor.clone(), self.stripe.adapter());
        Worker::new(self.node.store.clone(), vec![Arc::new(channel)])
    }

    /// Until Stripe has been told everything, and nothing follows from that any more.
    pub(crate) async fn told(&self) {
        let worker = self.worker();
        eventually_else(|| async {
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
            if decided && attempted == 0 && pending == 0 && same {
                return Ok(());
            }
            Err(format!("at position {head}: {attempted} attempted, {pending} pending, log unchanged: {same}, {policies:?}"))
        })
        .await;
    }

    pub(crate) async fn details(&self) -> Details {
        self.node.store.current::<Subscription>(self.subscription).await.unwrap().state.details().unwrap().clone()
    }

    pub(crate) async fn customer(&self) -> String {
        self.details().await.customer.unwrap().1
    }

    /// Has a subscription of this id at Stripe noted as ours.
    pub(crate) async fn link(&self, subscription: &str) {
        let reference = |text: &str| domain::text::Reference::parse(text).unwrap();
        self.execute(LinkProvider { provider: reference("stripe"), subscription: reference(subscription) }).await;
    }

    /// What came of a message, and why it had no effect.
    pub(crate) async fn listed(&self, id: &str) -> (String, Option<String>) {
        let rows = self.client.naming(self.tenant).get("/v1/billing/provider-events").await;
        let row = rows.json["data"].as_array().unwrap().iter().find(|row| row["event_id"] == id).unwrap().clone();
        (row["outcome"].as_str().unwrap().to_owned(), row["reason"].as_str().map(str::to_owned))
    }

    /// What Stripe has of the subscription.
    pub(crate) fn theirs(&self) -> Value {
        let account = self.stripe.account();
        assert_eq!(account.subscriptions.len(), 1, "{:?}", account.subscriptions.keys());
        account.subscriptions.values().next().unwrap().clone()
    }

    /// A recorded message, as this customer's, with an id and a time of its own.
    pub(crate) async fn message(&self, recorded: &str, id: &str, seconds: i64) -> Value {
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
    pub(crate) async fn send(&self, message: &Value) -> Answer {
        let (body, now) = (message.to_string(), self.env.clock.now());
        let headers = [("stripe-signature", &*sign(&body, now)), ("content-type", "application/json; charset=utf-8")];
        let nobody = self.client.with_token(None);
        nobody.send(axum::http::Method::POST, "/v1/billing/providers/stripe/events", &headers, body).await
    }

    pub(crate) async fn tells(&self, recorded: &str, id: &str, seconds: i64) -> String {
        let answer = self.send(&self.message(recorded, id, seconds).await).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        answer.field("outcome").to_owned()
    }
}
