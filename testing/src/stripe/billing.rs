//! What Stripe charges, by its documentation: periods from an anchor (docs.stripe.com/billing/subscriptions/billing-cycle), proration by the second
//! (docs.stripe.com/billing/subscriptions/prorations), trials, pauses that void invoices, schedules, items for the next invoice. Amounts are in cents, times in seconds of UTC. An
//! invoice is charged when it is made; Stripe waits an hour with those of renewals.

use std::collections::VecDeque;

use chrono::{DateTime, Datelike as _, Months, Timelike as _, Utc};
use serde_json::{Value, json};

use super::{Account, Fields, fresh};

/// The part of an account that charges.
#[derive(Default)]
pub struct Billing {
    /// Its clock.
    pub now: i64,
    /// The invoices of subscriptions, in the order in which they were made.
    pub invoices: Vec<Invoice>,
    /// What it has told and nobody was given yet.
    pub outbox: VecDeque<Value>,
    items: Vec<Fields>,
    told: i64,
}

/// What became of an invoice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is paid.
    Paid,
    /// It could not be paid.
    Open,
    /// Nobody has to pay it.
    Void,
}

/// An invoice.
#[derive(Clone, Debug)]
pub struct Invoice {
    /// Its id.
    pub id: String,
    /// Of which subscription.
    pub subscription: String,
    /// What it is over.
    pub lines: Vec<Line>,
    /// What became of it.
    pub state: State,
    /// When it was made.
    pub created: i64,
}

impl Invoice {
    /// What it comes to.
    pub fn total(&self) -> i64 {
        self.lines.iter().map(|line| line.amount).sum()
    }
}

/// A line of an invoice.
#[derive(Clone, Debug)]
pub struct Line {
    /// What it comes to.
    pub amount: i64,
    /// The product, if it is of one.
    pub product: Option<String>,
    /// How many times.
    pub quantity: i64,
    /// From when to when.
    pub period: (i64, i64),
    /// Whether it is charged once.
    once: bool,
    metadata: Value,
}

/// The terms of a subscription as Stripe has them.
#[derive(Clone, PartialEq)]
struct Terms {
    product: String,
    amount: i64,
    quantity: i64,
    months: u32,
}

fn terms(subscription: &Value) -> Terms {
    let item = &subscription["items"]["data"][0];
    Terms {
        product: item["price"]["product"].as_str().expect("a product").to_owned(),
        amount: item["price"]["unit_amount"].as_i64().expect("a price"),
        quantity: item["quantity"].as_i64().expect("a quantity"),
        months: if item["price"]["recurring"]["interval"] == "year" { 12 } else { 1 },
    }
}

fn time(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds, 0).expect("a time")
}

/// So many months after the anchor, on its day or the last one of a shorter month.
fn boundary(anchor: i64, months: i64) -> i64 {
    let (count, anchor) = (Months::new(u32::try_from(months.unsigned_abs()).expect("few")), time(anchor));
    let moved = if months < 0 { anchor.checked_sub_months(count) } else { anchor.checked_add_months(count) };
    moved.expect("a time").timestamp()
}

/// The anchor of a day of the month, before a time.
fn configured(now: i64, fields: &Fields) -> Option<i64> {
    let part = |name: &str| fields.get(&format!("billing_cycle_anchor_config[{name}]")).map(|part| part.parse::<u32>().expect("a number"));
    let day = part("day_of_month")?;
    let of = |date: DateTime<Utc>| {
        let date = date.with_day(1)?.with_month(part("month").unwrap_or(date.month()))?.with_day(day)?;
        date.with_hour(part("hour")?)?.with_minute(part("minute")?)?.with_second(part("second")?)
    };
    (0..60).filter_map(|months| of(time(now) - Months::new(months))).find(|date| date.timestamp() <= now).map(|date| date.timestamp())
}

/// The whole period of a schedule in which a time lies.
fn period_of(anchor: i64, months: u32, at: i64) -> (i64, i64) {
    let step = i64::from(months);
    let mut n = 0;
    while boundary(anchor, n * step) > at {
        n -= 1;
    }
    while boundary(anchor, (n + 1) * step) <= at {
        n += 1;
    }
    (boundary(anchor, n * step), boundary(anchor, (n + 1) * step))
}

/// A part of an amount, rounded half away from zero.
fn part(amount: i64, of: i64, whole: i64) -> i64 {
    let (exact, whole) = (i128::from(amount) * i128::from(of), i128::from(whole));
    i64::try_from((2 * exact + if exact < 0 { -whole } else { whole }) / (2 * whole)).expect("an amount")
}

impl Terms {
    fn line(&self, amount: i64, period: (i64, i64)) -> Line {
        Line { amount, product: Some(self.product.clone()), quantity: self.quantity, period, once: false, metadata: json!({}) }
    }

    /// What a part of a whole period costs.
    fn charge(&self, period: (i64, i64), whole: (i64, i64)) -> Line {
        self.line(part(self.amount * self.quantity, period.1 - period.0, whole.1 - whole.0), period)
    }
}

impl Account {
    /// Gives it a clock: from now on it charges, and tells.
    pub fn begin_billing(&mut self, now: DateTime<Utc>) {
        self.billing = Some(Billing { now: now.timestamp(), ..Billing::default() });
    }

    fn there(&mut self, id: &str) -> &mut Value {
        self.subscriptions.get_mut(id).expect("a subscription")
    }

    fn bill(&mut self) -> &mut Billing {
        self.billing.as_mut().expect("a clock")
    }

    /// Items that no invoice has taken in yet.
    pub fn pending_items(&self) -> &[Fields] {
        self.billing.as_ref().map_or(&[], |billing| &billing.items)
    }

    pub(super) fn add_item(&mut self, id: &str, fields: &Fields) {
        if let Some(billing) = &mut self.billing {
            let id = ("id".to_owned(), id.to_owned());
            billing.items.push(fields.clone().into_iter().chain([id]).collect());
        }
    }

    /// What waits for an invoice of this subscription.
    fn take_items(&mut self, subscription: Option<&str>) -> Vec<Line> {
        let now = self.bill().now;
        let (taken, left) = std::mem::take(&mut self.bill().items)
            .into_iter()
            .partition(|item| item.get("subscription").map(String::as_str) == subscription);
        self.bill().items = left;
        let line = |item: Fields| Line {
            amount: item["amount"].parse().expect("an amount"),
            product: None,
            quantity: 1,
            period: (now, now),
            once: true,
            metadata: super::nested(&item, "metadata"),
        };
        taken.into_iter().map(line).collect()
    }

    /// Makes an invoice over what waits.
    pub(super) fn invoice_items_of(&mut self, subscription: Option<&str>) {
        if self.billing.is_some() {
            let lines = self.take_items(subscription);
            self.invoice(subscription.unwrap_or_default(), lines);
        }
    }

    /// Tells what happened.
    fn tell(&mut self, kind: &str, object: &Value) {
        let billing = self.bill();
        billing.told += 1;
        let message = json!({
            "id": format!("evt_{}_{}", fresh("m"), billing.told), "object": "event", "api_version": "2024-06-20", "created": billing.now, "type": kind,
            "data": {"object": object}, "livemode": false, "pending_webhooks": 1, "request": {"id": null, "idempotency_key": null},
        });
        billing.outbox.push_back(message);
    }

    fn tell_subscription(&mut self, kind: &str, id: &str) {
        let object = self.there(id).clone();
        self.tell(kind, &object);
    }

    fn tell_invoice(&mut self, kind: &str, invoice: &Invoice) {
        let customer = self.subscriptions.get(&invoice.subscription).map(|there| there["customer"].clone()).unwrap_or_default();
        let paid = invoice.state == State::Paid;
        let line = |line: &Line| {
            json!({
                "id": "il_1", "object": "line_item", "amount": line.amount, "currency": "usd", "quantity": line.quantity, "metadata": line.metadata,
                "period": {"start": line.period.0, "end": line.period.1}, "subscription": invoice.subscription,
                "price": line.product.as_ref().map(|product| json!({"object": "price", "product": product, "type": if line.once { "one_time" } else { "recurring" }})),
            })
        };
        let lines: Vec<Value> = invoice.lines.iter().map(line).collect();
        let object = json!({
            "id": invoice.id, "object": "invoice", "customer": customer, "subscription": invoice.subscription, "created": invoice.created, "currency": "usd",
            "total": invoice.total(), "amount_due": invoice.total().max(0), "amount_paid": if paid { invoice.total().max(0) } else { 0 }, "paid": paid,
            "status": if paid { "paid" } else { "open" }, "charge": format!("ch_{}", invoice.id), "metadata": {},
            "lines": {"object": "list", "has_more": false, "data": lines},
        });
        self.tell(kind, &object);
    }

    /// Makes an invoice, and charges it.
    fn invoice(&mut self, subscription: &str, lines: Vec<Line>) {
        if lines.is_empty() {
            return;
        }
        let void = self.subscriptions.get(subscription).is_some_and(|there| there["pause_collection"].is_object());
        let invoice = Invoice {
            id: fresh("in"),
            subscription: subscription.to_owned(),
            lines,
            state: if void { State::Void } else { State::Open },
            created: self.bill().now,
        };
        if let Some(there) = self.subscriptions.get_mut(subscription) {
            there["latest_invoice"] = json!(invoice.id);
        }
        self.bill().invoices.push(invoice.clone());
        if void {
            return;
        }
        if self.declines && invoice.total() > 0 {
            self.tell_invoice("invoice.payment_failed", &invoice);
            if self.subscriptions.get(subscription).is_some_and(|there| there["status"] == "active") {
                self.there(subscription)["status"] = json!("past_due");
                self.tell_subscription("customer.subscription.updated", subscription);
            }
        } else {
            self.pay(&invoice.id);
        }
    }

    /// Pays an invoice; when none is open any more the subscription is in order.
    pub(super) fn pay(&mut self, id: &str) {
        let Some(invoice) = self.bill().invoices.iter_mut().find(|invoice| invoice.id == id && invoice.state == State::Open) else {
            return;
        };
        invoice.state = State::Paid;
        let invoice = invoice.clone();
        self.tell_invoice("invoice.paid", &invoice);
        self.tell_invoice("invoice.payment_succeeded", &invoice);
        let latest = self.subscriptions.get(&invoice.subscription).is_some_and(|there| there["latest_invoice"] == json!(id));
        if latest && matches!(self.there(&invoice.subscription)["status"].as_str(), Some("past_due" | "unpaid")) {
            self.there(&invoice.subscription)["status"] = json!("active");
            self.tell_subscription("customer.subscription.updated", &invoice.subscription);
        }
    }

    /// Tries everything again that is open.
    pub fn retry(&mut self) {
        let open: Vec<String> =
            self.bill().invoices.iter().filter(|invoice| invoice.state == State::Open).map(|invoice| invoice.id.clone()).collect();
        if !self.declines {
            open.iter().for_each(|id| self.pay(id));
        }
    }

    /// A subscription has been made.
    pub(super) fn begin(&mut self, id: &str, fields: &Fields) {
        if self.billing.is_none() {
            return;
        }
        let now = self.bill().now;
        let trial_end = self.there(id)["trial_end"].as_i64().filter(|_| fields.contains_key("trial_end"));
        let anchor = fields.get("billing_cycle_anchor").map(|anchor| anchor.parse().expect("seconds"));
        let anchor = anchor.or_else(|| configured(now, fields)).unwrap_or(trial_end.unwrap_or(now));
        let there = self.there(id);
        there["status"] = json!(if trial_end.is_some() { "trialing" } else { "active" });
        there["trial_end"] = json!(trial_end);
        (there["billing_cycle_anchor"], there["created"]) = (json!(anchor), json!(now));
        (there["pause_collection"], there["schedule"]) = (Value::Null, Value::Null);
        self.tell_subscription("customer.subscription.created", id);
        match trial_end {
            Some(end) => {
                let free = terms(self.there(id)).line(0, (now, end));
                self.enter(id, (now, end));
                self.invoice(id, vec![free]);
            }
            // Nothing is charged before the anchor.
            None if fields.get("proration_behavior").map(String::as_str) == Some("none") => {
                let months = terms(self.there(id)).months;
                let period = (now, period_of(anchor, months, now).1);
                self.enter(id, period);
                let item = |name: &str| fields.get(&format!("add_invoice_items[0]{name}")).cloned();
                let line = item("[price_data][product]").map(|product| Line {
                    amount: item("[price_data][unit_amount]").expect("a price").parse().expect("an amount"),
                    product: Some(product),
                    quantity: 1,
                    period,
                    once: true,
                    metadata: json!({}),
                });
                self.invoice(id, line.into_iter().collect());
            }
            None => self.start_at(id, now),
        }
    }

    fn enter(&mut self, id: &str, (start, end): (i64, i64)) {
        let there = self.there(id);
        (there["current_period_start"], there["current_period_end"]) = (json!(start), json!(end));
    }

    /// Begins to charge: what is left of the period of the anchor.
    fn start_at(&mut self, id: &str, at: i64) {
        let there = self.there(id);
        let (terms, anchor) = (terms(there), there["billing_cycle_anchor"].as_i64().expect("an anchor"));
        let whole = period_of(anchor, terms.months, at);
        self.enter(id, (at, whole.1));
        let mut lines = vec![terms.charge((at, whole.1), whole)];
        lines.extend(self.take_items(Some(id)));
        self.invoice(id, lines);
    }

    /// A subscription has been changed; false: what that costs cannot be paid, and it is to be left as it was.
    pub(super) fn changed(&mut self, id: &str, before: &Value, fields: &Fields) -> bool {
        if self.billing.is_none() {
            return true;
        }
        let now = self.bill().now;
        let field = |name: &str| fields.get(name).map(String::as_str);
        let there = self.there(id);
        if field("default_payment_method").is_some() && there["status"] == "incomplete" {
            there["status"] = json!("active");
        }
        match field("trial_end") {
            Some("now") if before["status"] == "trialing" => {
                // Without an anchor of its own the billing begins now.
                if before["billing_cycle_anchor"] == before["trial_end"] {
                    there["billing_cycle_anchor"] = json!(now);
                }
                there["trial_end"] = Value::Null;
                self.start_at(id, now);
                return true;
            }
            Some("now") | None => {}
            Some(end) => {
                let end: i64 = end.parse().expect("seconds");
                if before["billing_cycle_anchor"] == before["trial_end"] {
                    there["billing_cycle_anchor"] = json!(end);
                }
                there["current_period_end"] = json!(end);
            }
        }
        if there["status"] == "trialing" {
            return true;
        }
        let (old, new) = (terms(before), terms(there));
        if field("billing_cycle_anchor") == Some("now") {
            assert_eq!(field("proration_behavior"), Some("none"), "what is given back of the old period is not meant");
            there["billing_cycle_anchor"] = json!(now);
            self.start_at(id, now);
            return true;
        }
        if old == new || field("proration_behavior") == Some("none") {
            return true;
        }
        assert_eq!(field("proration_behavior"), Some("always_invoice"), "{fields:?}");
        let from = field("proration_date").map_or(now, |date| date.parse().expect("seconds"));
        let anchor = before["billing_cycle_anchor"].as_i64().expect("an anchor");
        let end = before["current_period_end"].as_i64().expect("a period");
        let whole = period_of(anchor, old.months, end - 1);
        let mut back = old.charge((from, end), whole);
        back.amount = -back.amount;
        let next = (old.months != new.months).then(|| period_of(from, new.months, from));
        let charge = next.map_or_else(|| new.charge((from, end), whole), |next| new.charge(next, next));
        if field("payment_behavior") == Some("error_if_incomplete") && self.declines && back.amount + charge.amount > 0 {
            return false;
        }
        if let Some(next) = next {
            // Another interval begins a period of its own.
            self.there(id)["billing_cycle_anchor"] = json!(from);
            self.enter(id, next);
        }
        self.invoice(id, vec![back, charge]);
        true
    }

    /// A subscription has ended: what is still to be paid of it is not tried again.
    pub(super) fn ended(&mut self, id: &str) {
        if self.billing.is_some() {
            self.bill().items.retain(|item| item.get("subscription").map(String::as_str) != Some(id));
            self.tell_subscription("customer.subscription.deleted", id);
        }
    }

    /// When something happens next by itself.
    pub fn next_boundary(&self) -> Option<i64> {
        let live = self.subscriptions.values().filter(|there| there["status"] != "canceled");
        live.filter_map(|there| there["current_period_end"].as_i64()).min()
    }

    /// Lets time pass up to then.
    pub fn advance(&mut self, to: i64) {
        while let Some(at) = self.next_boundary().filter(|at| *at <= to) {
            self.bill().now = at;
            let due = |there: &&Value| there["status"] != "canceled" && there["current_period_end"] == json!(at);
            let id = self.subscriptions.values().find(due).expect("it is due")["id"].as_str().expect("an id").to_owned();
            self.pass(&id, at);
        }
        self.bill().now = to;
    }

    /// A period has ended.
    fn pass(&mut self, id: &str, at: i64) {
        let there = self.there(id);
        if there["cancel_at_period_end"] == json!(true) {
            there["status"] = json!("canceled");
            // Items that wait are charged at the end of the period all the same.
            let lines = self.take_items(Some(id));
            self.invoice(id, lines);
            return self.ended(id);
        }
        if there["status"] == "trialing" {
            (there["status"], there["trial_end"]) = (json!("active"), Value::Null);
            self.tell_subscription("customer.subscription.updated", id);
            return self.start_at(id, at);
        }
        let months = terms(there).months;
        if let Some(schedule) = there["schedule"].as_str().map(str::to_owned) {
            self.renew(id);
            self.schedules.remove(&schedule);
            self.there(id)["schedule"] = Value::Null;
        }
        let there = self.there(id);
        if terms(there).months != months {
            there["billing_cycle_anchor"] = json!(at);
        }
        self.start_at(id, at);
    }
}
