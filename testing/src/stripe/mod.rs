//! A server that speaks the part of Stripe's REST API that Tenure uses: the shapes are those of Stripe's published fixtures (github.com/stripe/openapi), the behaviour that of
//! its documentation, idempotency keys and refusals included. It remembers what it was asked.

pub mod billing;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Form, Json, Router};
use chrono::{DateTime, Utc};
use hmac::{Hmac, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;

/// The secret key that it knows.
pub const KEY: &str = "sk_test_tenure";
/// What its messages are signed with.
pub const SECRET: &str = "whsec_tenure";

const CUSTOMER: &str = include_str!("../../stripe/customer.json");
const PRODUCT: &str = include_str!("../../stripe/product.json");
const SUBSCRIPTION: &str = include_str!("../../stripe/subscription.json");
const SETUP_INTENT: &str = include_str!("../../stripe/setup_intent.json");
const EXISTS: &str = include_str!("../../stripe/error_resource_already_exists.json");
const REUSED: &str = include_str!("../../stripe/error_idempotency.json");
const MISSING: &str = include_str!("../../stripe/error_404.json");
const DECLINED: &str = r#"{"error": {"type": "card_error", "code": "card_declined", "decline_code": "generic_decline", "message": "Your card was declined."}}"#;
const NO_KEY: &str = include_str!("../../stripe/error_401.json");
const TOO_MANY: &str = include_str!("../../stripe/error_429.json");

/// The fields of a form.
pub type Fields = BTreeMap<String, String>;

/// How a request goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is refused for now, and nothing is done.
    TooMany,
    /// It is done, and the answer is lost.
    AnswerLost,
}

/// What it holds.
#[derive(Default)]
pub struct Account {
    /// The customers, by id.
    pub customers: BTreeMap<String, Value>,
    /// The products, by id.
    pub products: BTreeMap<String, Value>,
    /// The subscriptions, by id.
    pub subscriptions: BTreeMap<String, Value>,
    /// The subscription schedules, by id.
    pub schedules: BTreeMap<String, Value>,
    /// Items for the next invoices.
    pub invoice_items: Vec<Fields>,
    /// The invoices that were made besides those of subscriptions.
    pub invoices: Vec<Fields>,
    /// What was asked: `POST /v1/customers`, with its fields.
    pub asked: Vec<(String, Fields)>,
    /// What goes wrong with the next requests, one after the other.
    pub faults: VecDeque<Fault>,
    /// Whether charges are declined.
    pub declines: bool,
    /// What it charges, once it has a clock.
    pub billing: Option<billing::Billing>,
    /// The requests whose answers are all lost: `POST /v1/subscriptions`.
    pub losing: Option<&'static str>,
    keys: HashMap<String, (Fields, Value)>,
}

/// The server.
#[derive(Clone)]
pub struct Stripe {
    /// Where it is.
    pub url: String,
    account: Arc<Mutex<Account>>,
}

fn shape(text: &str) -> Value {
    serde_json::from_str(text).expect("a fixture")
}

fn refuse(status: StatusCode, body: &str) -> Response {
    (status, Json(shape(body))).into_response()
}

impl Stripe {
    /// Starts one; it ends with the test.
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let this = Self { url, account: Arc::default() };
        let router = Router::new()
            .route("/v1/customers", post(create_customer))
            .route("/v1/customers/{id}", post(update_customer).delete(delete_customer))
            .route("/v1/products", post(create_product))
            .route("/v1/subscriptions", get(list_subscriptions).post(create_subscription))
            .route("/v1/subscriptions/{id}", get(get_subscription).post(update_subscription).delete(cancel_subscription))
            .route("/v1/invoices/{id}/pay", post(pay_invoice))
            .route("/v1/invoiceitems", get(list_invoice_items).post(create_invoice_item))
            .route("/v1/invoices", post(create_invoice))
            .route("/v1/subscription_schedules", post(create_schedule))
            .route("/v1/subscription_schedules/{id}", get(get_schedule).post(update_schedule))
            .route("/v1/subscription_schedules/{id}/release", post(release_schedule))
            .route("/v1/setup_intents", post(create_setup_intent))
            .with_state(this.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        this
    }

    /// What it holds.
    pub fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The adapter that speaks to it.
    pub fn adapter(&self) -> Arc<payments::stripe::Stripe> {
        Arc::new(payments::stripe::Stripe::new(KEY, vec![SECRET.to_owned()], Some(&self.url)).expect("settings"))
    }

    /// Answers a request: who asks, what goes wrong, whether it was answered before, and only then what it does.
    fn answer(
        &self,
        what: &str,
        headers: &HeaderMap,
        fields: &Fields,
        act: impl FnOnce(&mut Account) -> Result<Value, Response>,
    ) -> Response {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        if header("authorization") != Some(format!("Bearer {KEY}")) || header("stripe-version").is_none() {
            return refuse(StatusCode::UNAUTHORIZED, NO_KEY);
        }
        let mut account = self.account();
        account.asked.push((what.to_owned(), fields.clone()));
        let fault = account.faults.pop_front();
        if fault == Some(Fault::TooMany) {
            return refuse(StatusCode::TOO_MANY_REQUESTS, TOO_MANY);
        }
        let key = header("idempotency-key");
        let answer = match key.as_ref().and_then(|key| account.keys.get(key)) {
            Some((before, _)) if before != fields => return refuse(StatusCode::BAD_REQUEST, REUSED),
            Some((_, answer)) => answer.clone(),
            None => match act(&mut account) {
                Ok(answer) => answer,
                Err(refused) => return refused,
            },
        };
        if let Some(key) = key {
            account.keys.insert(key, (fields.clone(), answer.clone()));
        }
        if fault == Some(Fault::AnswerLost) || account.losing == Some(what) {
            return StatusCode::BAD_GATEWAY.into_response();
        }
        Json(answer).into_response()
    }
}

/// `metadata[name]` and the like.
fn nested(fields: &Fields, of: &str) -> Value {
    let inner = |name: &str| name.strip_prefix(of)?.strip_prefix('[')?.strip_suffix(']').map(str::to_owned);
    Value::Object(fields.iter().filter_map(|(name, value)| Some((inner(name)?, json!(value)))).collect())
}

fn fresh(prefix: &str) -> String {
    format!("{prefix}_{}", &crate::id().simple().to_string()[12..])
}

async fn create_customer(State(stripe): State<Stripe>, headers: HeaderMap, Form(fields): Form<Fields>) -> Response {
    stripe.answer("POST /v1/customers", &headers, &fields, |account| {
        let (id, mut customer) = (fresh("cus"), shape(CUSTOMER));
        customer["id"] = json!(id);
        customer["metadata"] = nested(&fields, "metadata");
        account.customers.insert(id, customer.clone());
        Ok(customer)
    })
}

async fn update_customer(State(stripe): State<Stripe>, Path(id): Path<String>, headers: HeaderMap, Form(fields): Form<Fields>) -> Response {
    stripe.answer("POST /v1/customers/{id}", &headers, &fields, |account| {
        let customer = account.customers.get_mut(&id).ok_or_else(|| refuse(StatusCode::NOT_FOUND, MISSING))?;
        for (name, value) in &fields {
            customer[name] = json!(value);
        }
        Ok(customer.clone())
    })
}

async fn delete_customer(State(stripe): State<Stripe>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    stripe.answer("DELETE /v1/customers/{id}", &headers, &Fields::new(), |account| {
        account.customers.remove(&id).ok_or_else(|| refuse(StatusCode::NOT_FOUND, MISSING))?;
        for subscription in account.subscriptions.values_mut().filter(|subscription| subscription["customer"] == json!(id)) {
            subscription["status"] = json!("canceled");
        }
        Ok(json!({"id": id, "object": "customer", "deleted": true}))
    })
}

async fn create_invoice_item(State(stripe): State<Stripe>, headers: HeaderMap, Form(fields): Form<Fields>) -> Response {
    stripe.answer("POST /v1/invoiceitems", &headers, &fields, |account| {
        account.invoice_items.push(fields.clone());
        let id = fresh("ii");
        account.add_item(&id, &fields);
        Ok(json!({"id": id, "object": "invoiceitem"}))
    })
}

async fn list_invoice_items(State(stripe): State<Stripe>, headers: HeaderMap, Query(fields): Query<Fields>) -> Response {
    stripe.answer("GET /v1/invoiceitems", &headers, &fields, |account| {
        let of = |item: &&Fields| item.get("customer") == fields.get("customer");
        let data: Vec<Value> = account.pending_items().iter().filter(of).map(|item| json!(item)).collect();
        Ok(json!({"object": "list", "url": "/v1/invoiceitems", "has_more": false, "data": data}))
    })
}

async fn create_invoice(State(stripe): State<Stripe>, headers: HeaderMap, Form(fields): Form<Fields>) -> Response {
    stripe.answer("POST /v1/invoices", &headers, &fields, |account| {
        account.invoices.push(fields.clone());
        account.invoice_items_of(fields.get("subscription").map(String::as_str));
        Ok(json!({"id": fresh("in"), "object": "invoice"}))
    })
}

async fn create_schedule(State(stripe): State<Stripe>, headers: HeaderMap, Form(fields): Form<Fields>) -> Response {
    stripe.answer("POST /v1/subscription_schedules", &headers, &fields, |account| {
        let of = account.subscriptions.get_mut(&fields["from_subscription"]).ok_or_else(|| refuse(StatusCode::NOT_FOUND, MISSING))?;
        if !of["schedule"].is_null() {
            return Err(refuse(StatusCode::BAD_REQUEST, EXISTS));
        }
        let id = fresh("sub_sched");
        of["schedule"] = json!(id);
        let item = &of["items"]["data"][0];
        let phase = json!({
            "items": [{"price": item["price"]["id"], "quantity": item["quantity"]}],
            "start_date": of["current_period_start"], "end_date": of["current_period_end"],
        });
        let schedule = json!({"id": id, "object": "subscription_schedule", "subscription": of["id"], "metadata": {}, "phases": [phase]});
        account.schedules.insert(id, schedule.clone());
        Ok(schedule)
    })
}

async fn get_schedule(State(stripe): State<Stripe>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    stripe.answer("GET /v1/subscription_schedules/{id}", &headers, &Fields::new(), |account| {
        account.schedules.get(&id).cloned().ok_or_else(|| refuse(StatusCode::NOT_FOUND, MISSING))
    })
}

/// The present phase has to stay as it is.
async fn update_schedule(State(stripe): State<Stripe>, Path(id): Path<String>, headers: HeaderMap, Form(fields): Form<Fields>) -> Response {
    stripe.answer("POST /v1/subscription_schedules/{id}", &headers, &fields, |account| {
        let schedule = account.schedules.get_mut(&id).ok_or_else(|| refuse(StatusCode::NOT_FOUND, MISSING))?;
        let present = &schedule["phases"][0];
        let same = |name: &str, value: &Value| fields.get(name).map(String::as_str) == Some(value.to_string().trim_matches('"'));
        assert!(same("phases[0][start_date]", &present["start_date"]) && same("phases[0][end_date]", &present["end_date"]), "{fields:?}");
        assert!(same("phases[0][items][0][price]", &present["items"][0]["price"]), "{fields:?}");
        schedule["metadata"] = nested(&fields, "metadata");
        schedule["next"] = json!({
            "product": fields["phases[1][items][0][price_data][product]"],
            "unit_amount": fields["phases[1][items][0][price_data][unit_amount]"].parse::<i64>().expect("a number"),
            "quantity": fields["phases[1][items][0][quantity]"].parse::<i64>().expect("a number"),
            "interval": fields["phases[1][items][0][price_data][recurring][interval]"],
        });
        Ok(schedule.clone())
    })
}

async fn release_schedule(State(stripe): State<Stripe>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    stripe.answer("POST /v1/subscription_schedules/{id}/release", &headers, &Fields::new(), |account| {
        let schedule = account.schedules.remove(&id).ok_or_else(|| refuse(StatusCode::NOT_FOUND, MISSING))?;
        let of = schedule["subscription"].as_str().and_then(|of| account.subscriptions.get_mut(of));
        of.ok_or_else(|| refuse(StatusCode::NOT_FOUND, MISSING))?["schedule"] = Value::Null;
        Ok(schedule)
    })
}

impl Account {
    /// The next period begins: what is scheduled takes effect, and what the renewal is charged at is answered, in Stripe's units.
    pub fn renew(&mut self, subscription: &str) -> i64 {
        let there = self.subscriptions.get_mut(subscription).expect("a subscription");
        if let Some(schedule) = there["schedule"].as_str().map(str::to_owned) {
            let next = self.schedules[&schedule]["next"].clone();
            let item = &mut there["items"]["data"][0];
            (item["price"]["product"], item["price"]["unit_amount"]) = (next["product"].clone(), next["unit_amount"].clone());
            item["price"]["recurring"]["interval"] = next["interval"].clone();
            item["quantity"] = next["quantity"].clone();
        }
        let item = &there["items"]["data"][0];
        item["price"]["unit_amount"].as_i64().expect("a price") * item["quantity"].as_i64().expect("a number")
    }
}

async fn create_product(State(stripe): State<Stripe>, headers: HeaderMap, Form(fields): Form<Fields>) -> Response {
    stripe.answer("POST /v1/products", &headers, &fields, |account| {
        let (id, mut product) = (fields["id"].clone(), shape(PRODUCT));
        if account.products.contains_key(&id) {
            return Err(refuse(StatusCode::BAD_REQUEST, EXISTS));
        }
        (product["id"], product["name"]) = (json!(id), json!(fields["name"]));
        account.products.insert(id, product.clone());
        Ok(product)
    })
}

async fn list_subscriptions(State(stripe): State<Stripe>, headers: HeaderMap, Query(fields): Query<Fields>) -> Response {
    stripe.answer("GET /v1/subscriptions", &headers, &fields, |account| {
        let of = |subscription: &&Value| subscription["customer"] == json!(fields["customer"]) && subscription["status"] != "canceled";
        let data: Vec<&Value> = account.subscriptions.values().filter(of).take(1).collect();
        Ok(json!({"object": "list", "url": "/v1/subscriptions", "has_more": false, "data": data}))
    })
}

/// Sets what the fields say; an item without an id is one more.
fn change(subscription: &mut Value, fields: &Fields) {
    let field = |name: &str| fields.get(name).cloned();
    if let Some(product) = field("items[0][price_data][product]") {
        let items = subscription["items"]["data"].as_array_mut().expect("items");
        let mut item = items[0].clone();
        let given = field("items[0][id]");
        item["id"] = json!(given.clone().unwrap_or_else(|| fresh("si")));
        item["quantity"] = json!(field("items[0][quantity]").map_or(1, |n| n.parse().expect("a number")));
        item["price"]["product"] = json!(product);
        item["price"]["unit_amount"] =
            json!(field("items[0][price_data][unit_amount]").expect("a price").parse::<i64>().expect("a number"));
        item["price"]["recurring"]["interval"] = json!(field("items[0][price_data][recurring][interval]").expect("an interval"));
        match items.iter_mut().find(|item| given.as_ref().is_some_and(|id| item["id"] == json!(id))) {
            Some(there) => *there = item,
            None => items.push(item),
        }
    }
    match field("trial_end").as_deref() {
        Some("now") => (subscription["trial_end"], subscription["status"]) = (Value::Null, json!("active")),
        Some(end) => {
            (subscription["trial_end"], subscription["status"]) = (json!(end.parse::<i64>().expect("seconds")), json!("trialing"));
        }
        None => {}
    }
    if let (Value::Object(metadata), Some(there)) = (nested(fields, "metadata"), subscription["metadata"].as_object_mut()) {
        there.extend(metadata);
    }
    if let Some(method) = field("default_payment_method") {
        subscription["default_payment_method"] = json!(method);
    }
    if let Some(ends) = field("cancel_at_period_end") {
        subscription["cancel_at_period_end"] = json!(ends == "true");
    }
    if let Some(behavior) = field("pause_collection[behavior]") {
        subscription["pause_collection"] = json!({"behavior": behavior});
    } else if field("pause_collection").is_some() {
        subscription["pause_collection"] = Value::Null;
    }
}

async fn create_subscription(State(stripe): State<Stripe>, headers: HeaderMap, Form(fields): Form<Fields>) -> Response {
    stripe.answer("POST /v1/subscriptions", &headers, &fields, |account| {
        if !account.customers.contains_key(&fields["customer"]) || !account.products.contains_key(&fields["items[0][price_data][product]"])
        {
            return Err(refuse(StatusCode::NOT_FOUND, MISSING));
        }
        if account.declines && !fields.contains_key("trial_end") {
            return Err(refuse(StatusCode::PAYMENT_REQUIRED, DECLINED));
        }
        let (id, mut subscription) = (fresh("sub"), shape(SUBSCRIPTION));
        (subscription["id"], subscription["customer"]) = (json!(id), json!(fields["customer"]));
        subscription["metadata"] = nested(&fields, "metadata");
        // The fixture's item is the one that is asked for.
        let own = subscription["items"]["data"][0]["id"].as_str().expect("an item").to_owned();
        change(&mut subscription, &fields.iter().map(|(n, v)| (n.clone(), v.clone())).chain([("items[0][id]".to_owned(), own)]).collect());
        account.subscriptions.insert(id.clone(), subscription);
        account.begin(&id, &fields);
        Ok(account.subscriptions[&id].clone())
    })
}

async fn get_subscription(State(stripe): State<Stripe>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    stripe.answer("GET /v1/subscriptions/{id}", &headers, &Fields::new(), |account| {
        account.subscriptions.get(&id).cloned().ok_or_else(|| refuse(StatusCode::NOT_FOUND, MISSING))
    })
}

async fn update_subscription(
    State(stripe): State<Stripe>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Form(fields): Form<Fields>,
) -> Response {
    stripe.answer("POST /v1/subscriptions/{id}", &headers, &fields, |account| {
        let subscription = account.subscriptions.get_mut(&id).ok_or_else(|| refuse(StatusCode::NOT_FOUND, MISSING))?;
        let before = subscription.clone();
        change(subscription, &fields);
        if !account.changed(&id, &before, &fields) {
            account.subscriptions.insert(id, before);
            return Err(refuse(StatusCode::PAYMENT_REQUIRED, DECLINED));
        }
        Ok(account.subscriptions[&id].clone())
    })
}

async fn cancel_subscription(State(stripe): State<Stripe>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    stripe.answer("DELETE /v1/subscriptions/{id}", &headers, &Fields::new(), |account| {
        let live = account.subscriptions.get_mut(&id).filter(|subscription| subscription["status"] != "canceled");
        let subscription = live.ok_or_else(|| refuse(StatusCode::NOT_FOUND, MISSING))?;
        subscription["status"] = json!("canceled");
        account.ended(&id);
        Ok(account.subscriptions[&id].clone())
    })
}

async fn pay_invoice(State(stripe): State<Stripe>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    stripe.answer("POST /v1/invoices/{id}/pay", &headers, &Fields::new(), |account| {
        if account.declines {
            return Err(refuse(StatusCode::PAYMENT_REQUIRED, DECLINED));
        }
        if account.billing.is_some() {
            account.pay(&id);
            return Ok(json!({"id": id, "object": "invoice", "status": "paid"}));
        }
        let of = |subscription: &&mut Value| subscription["latest_invoice"] == json!(id);
        let subscription = account.subscriptions.values_mut().find(of).ok_or_else(|| refuse(StatusCode::NOT_FOUND, MISSING))?;
        subscription["status"] = json!("active");
        Ok(json!({"id": id, "object": "invoice", "status": "paid"}))
    })
}

async fn create_setup_intent(State(stripe): State<Stripe>, headers: HeaderMap, Form(fields): Form<Fields>) -> Response {
    stripe.answer("POST /v1/setup_intents", &headers, &fields, |_| {
        let mut intent = shape(SETUP_INTENT);
        (intent["customer"], intent["metadata"]) = (json!(fields["customer"]), nested(&fields, "metadata"));
        Ok(intent)
    })
}

/// The `Stripe-Signature` of a body.
pub fn sign(body: &str, at: DateTime<Utc>) -> String {
    let mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("any key will do");
    let mac = mac.chain_update(format!("{}.{body}", at.timestamp())).finalize().into_bytes();
    let hex = mac.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    format!("t={},v1={hex}", at.timestamp())
}
