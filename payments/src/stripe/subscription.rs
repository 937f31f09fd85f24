//! Subscriptions at Stripe: created, changed, paused, invoiced and cancelled as Tenure's are.

use chrono::{DateTime, Datelike as _, Timelike as _, Utc};
use domain::billing::money::Money;
use domain::billing::period::Interval;
use domain::billing::subscription::{Details, PauseReason, Pinned, Status};
use reqwest::{Method, StatusCode};
use serde_json::Value;

use super::client::{Form, Refused, digest, field, id_of, send};
use super::message::{self, ABOUT, OVERAGE, reference};
use super::{Stripe, units};
use crate::provider::{Charge, NewSubscription};

impl Stripe {
    /// A plan's version as Stripe's product. Both have the same id, and neither ever changes.
    pub(super) async fn product(&self, pinned: &Pinned) -> Result<String, Refused> {
        let id = message::product(pinned.plan, pinned.version);
        match self.post("products", None, &vec![field("id", &id), field("name", &pinned.code)]).await {
            Ok(_) => Ok(id),
            Err(refused) if refused.code.as_deref() == Some("resource_already_exists") => Ok(id),
            Err(refused) => Err(refused),
        }
    }

    /// The one item of a subscription, or of a phase of its schedule, which `of` says: `phases[1]`.
    pub(super) async fn item(&self, pinned: &Pinned, quantity: u32, of: &str) -> Result<Form, Refused> {
        let product = self.product(pinned).await?;
        let interval = match pinned.terms.interval {
            Interval::Month => "month",
            Interval::Year => "year",
        };
        let price = pinned.terms.price;
        let items = if of.is_empty() { "items".to_owned() } else { format!("{of}[items]") };
        Ok(vec![
            field(&format!("{items}[0][price_data][currency]"), price.currency.code().to_ascii_lowercase()),
            field(&format!("{items}[0][price_data][product]"), product),
            field(&format!("{items}[0][price_data][recurring][interval]"), interval),
            field(&format!("{items}[0][price_data][unit_amount]"), amount(price)?),
            field(&format!("{items}[0][quantity]"), quantity),
        ])
    }

    /// Has the plan change with the next period: a schedule of two phases, the present one and the one after it. The subscription is released from it when that one ends.
    pub(super) async fn schedule(&self, there: &Value, id: &str, scheduled: &Pinned, quantity: u32) -> Result<(), Refused> {
        let next = self.item(scheduled, quantity, "phases[1]").await?;
        let mark = digest(&next);
        if let Some(schedule) = reference(&there["schedule"]) {
            let path = format!("subscription_schedules/{schedule}");
            let known = send(self.request(Method::GET, &path)).await?;
            if known["metadata"][CHANGE].as_str() == Some(&mark) {
                return Ok(());
            }
            self.release(&schedule).await?;
        }
        let made = self.post("subscription_schedules", None, &vec![field("from_subscription", id)]).await?;
        let (schedule, present) = (id_of(&made)?, &made["phases"][0]);
        let text = |value: &Value| reference(value).map(String::from).or_else(|| value.as_i64().map(|number| number.to_string()));
        let mut form =
            vec![field("end_behavior", "release"), field("proration_behavior", "none"), field(&format!("metadata[{CHANGE}]"), &mark)];
        for (name, value) in [
            ("items][0][price", &present["items"][0]["price"]),
            ("items][0][quantity", &present["items"][0]["quantity"]),
            ("start_date", &present["start_date"]),
            ("end_date", &present["end_date"]),
        ] {
            form.extend(text(value).map(|value| field(&format!("phases[0][{name}]"), value)));
        }
        form.extend(next);
        form.extend([field("phases[1][iterations]", 1), field("phases[1][proration_behavior]", "none")]);
        self.post(&format!("subscription_schedules/{schedule}"), None, &form).await.map(drop)
    }

    /// Takes a subscription out of its schedule, so that it goes on as it is.
    pub(super) async fn release(&self, schedule: &str) -> Result<(), Refused> {
        self.post(&format!("subscription_schedules/{schedule}/release"), None, &vec![]).await.map(drop)
    }

    /// The subscriptions of a customer that have not ended: those that have are listed only when asked for.
    pub(super) async fn subscriptions_of(&self, customer: &str) -> Result<Vec<Value>, Refused> {
        let query = self.request(Method::GET, "subscriptions").query(&[("customer", customer), ("limit", "10")]);
        let mut found = match send(query).await {
            // Those of a customer that was deleted have ended with them.
            Err(refused) if refused.status == Some(StatusCode::NOT_FOUND) => return Ok(vec![]),
            found => found?,
        };
        Ok(found["data"].as_array_mut().map(std::mem::take).unwrap_or_default())
    }

    pub(super) async fn subscribe(&self, intent: &str, new: &NewSubscription<'_>) -> Result<String, Refused> {
        let NewSubscription { subscription, details, customer, now } = *new;
        // Whoever pays has one of ours; if an earlier attempt was answered and the answer lost, it is there.
        if let Some(there) = self.subscriptions_of(customer).await?.first() {
            return id_of(there);
        }
        let mut form = self.item(&details.pinned, details.quantity, "").await?;
        form.extend([
            field("customer", customer),
            field(&format!("metadata[{ABOUT}]"), subscription),
            // A first invoice that cannot be paid leaves nothing behind; another payment method makes it anew.
            field("payment_behavior", "error_if_incomplete"),
        ]);
        if let Some((period, anchor)) = details.period_at(now).filter(|_| details.status != Status::Trialing) {
            form.extend(boundaries(period.end, anchor, details.pinned.terms.interval));
            // It runs already, since it cost nothing, or somebody else collected until now: what was not paid is charged at once, and nothing else before the next period.
            if details.period == Some(period) {
                form.push(field("proration_behavior", "none"));
                form.extend(self.unpaid(details).await?);
            }
        }
        form.extend(trial_end(details, now));
        form.extend(details.payment_method.as_ref().map(|method| field("default_payment_method", method)));
        // Other parameters under the same key would be refused for a day, so what they are made from is part of the key.
        let made_from = digest(&form);
        id_of(&self.post("subscriptions", Some(&format!("{intent}:{made_from}")), &form).await?)
    }

    /// What was not paid so far, as an item of the first invoice.
    pub(super) async fn unpaid(&self, details: &Details) -> Result<Form, Refused> {
        let unpaid = details.unpaid();
        let written = units::nearest(unpaid).map_err(unpayable)?;
        if written == 0 {
            return Ok(vec![]);
        }
        let of = |name: &str| format!("add_invoice_items[0]{name}");
        Ok(vec![
            field(&of("[price_data][currency]"), unpaid.currency.code().to_ascii_lowercase()),
            field(&of("[price_data][product]"), self.product(&details.pinned).await?),
            field(&of("[price_data][unit_amount]"), written),
            field(&of("[quantity]"), 1),
        ])
    }

    pub(super) async fn update(&self, details: &Details, id: &str, now: DateTime<Utc>) -> Result<(), Refused> {
        let path = format!("subscriptions/{id}");
        let there = send(self.request(Method::GET, &path)).await?;
        if there["status"] == "canceled" {
            return Ok(());
        }
        let mut form = self.item(&details.pinned, details.quantity, "").await?;
        let item = &there["items"]["data"][0];
        let is = |form: &Form, of: &str| {
            let value = |name: &str| form.iter().find(|(field, _)| *field == format!("{of}{name}")).map(|(_, value)| value.clone());
            value("[0][price_data][product]") == item["price"]["product"].as_str().map(str::to_owned)
                && value("[0][quantity]") == item["quantity"].as_u64().map(|quantity| quantity.to_string())
        };
        let same = is(&form, "items");
        let begun = details.period.map(|period| period.start.timestamp());
        // Whether Stripe's next period has begun by itself, before it was heard of here.
        let mut is_ahead = false;
        if let Some(schedule) = reference(&there["schedule"]) {
            let known = send(self.request(Method::GET, &format!("subscription_schedules/{schedule}"))).await?;
            let mark = known["metadata"][CHANGE].as_str();
            // The change has come here with the period, and there it comes at this moment by itself.
            let coming = digest(&self.item(&details.pinned, details.quantity, "phases[1]").await?);
            if !same && mark == Some(&coming) && begun >= there["current_period_end"].as_i64() {
                return Ok(());
            }
            match &details.scheduled {
                None => self.release(&schedule).await?,
                Some((scheduled, _)) => {
                    let next = self.item(scheduled, details.quantity, "phases[1]").await?;
                    is_ahead = mark == Some(&digest(&next)) && is(&next, "phases[1][items]");
                }
            }
        }
        if is_ahead {
            form.clear();
        } else {
            // Without the item's id Stripe would add a second one.
            form.extend(item["id"].as_str().map(|item| field("items[0][id]", item)));
        }
        let ends = details.status == Status::CancelScheduled;
        if there["cancel_at_period_end"].as_bool() != Some(ends) {
            form.push(field("cancel_at_period_end", ends));
        }
        // What waits for a payment is not paused there once there is something to pay with: that is how it is paid.
        let waits = details.is_paused_for(PauseReason::NoPaymentMethod) && details.payment_method.is_some();
        let paused = details.status == Status::Paused && !waits;
        form.push(if paused { field("pause_collection[behavior]", "void") } else { field("pause_collection", "") });
        // A trial that has ended here has ended there.
        let ended = there["status"] == "trialing" && !paused;
        let trial = trial_end(details, now).filter(|_| there["status"] == "trialing");
        form.extend(trial.or_else(|| ended.then(|| field("trial_end", "now"))));
        form.extend(details.payment_method.as_ref().map(|method| field("default_payment_method", method)));
        // What goes on after a pause is charged as of now, where the period is another one than Stripe has, or was never paid for. Once: that it is being done, and was, is noted there.
        let noted = |what: &str| there["metadata"][what].as_str().and_then(|noted| noted.parse().ok());
        let anew = waits || begun > there["current_period_start"].as_i64().max(noted(PERIOD));
        let resumes = there["pause_collection"].is_object() || begun.is_some() && begun == noted(RESUMES);
        let mut prorated = !same && !is_ahead;
        if !paused && resumes && there["status"] == "active" && anew {
            let ends = details.period.map(|period| period.end.timestamp());
            // Stripe's clock was a little later than ours when a trial was ended early.
            let same_end = ends.zip(there["current_period_end"].as_i64()).is_some_and(|(here, there)| (here - there).abs() <= CLOCKS);
            match details.charge().filter(|_| !waits && same_end) {
                // Both periods end at the same time: what is left of it is invoiced, at the present price so that no difference is left, and after the pause, in which invoices are void.
                Some(rest) => {
                    let from = begun.unwrap_or_default();
                    let no_pause = vec![field("pause_collection", ""), field(&format!("metadata[{RESUMES}]"), from)];
                    self.post(&path, None, &no_pause).await?;
                    let customer = reference(&there["customer"]);
                    let charge = Charge {
                        customer: customer.as_deref().unwrap_or_default(),
                        subscription: Some(id),
                        amount: rest,
                        description: format!("{} for the rest of the period after a pause", details.pinned.code),
                        overage: None,
                        method: None,
                    };
                    self.invoice_item(&format!("{id}:resumed:{from}"), &charge).await?;
                    self.invoice_what_waits(charge.customer, id).await?;
                    form.extend([field("proration_behavior", "none"), field(&format!("metadata[{PERIOD}]"), from)]);
                }
                // Of the period that was not paid nothing is given back.
                None => form.extend([field("billing_cycle_anchor", "now"), field("proration_behavior", "none")]),
            }
            prorated = false;
        }
        if prorated {
            // The difference is paid at once: a customer who leaves before the period's end would not pay it otherwise.
            form.push(field("proration_behavior", "always_invoice"));
            // What waits for its payment is not changed without it.
            form.extend(details.is_held().then(|| field("payment_behavior", "error_if_incomplete")));
            // From the second on from which it was prorated here, so that the invoice is over what was previewed.
            let (start, end) = (there["current_period_start"].as_i64(), there["current_period_end"].as_i64());
            let from = details.prorated_from.map(|from| from.timestamp()).filter(|from| Some(*from) >= start && Some(*from) < end);
            form.extend(from.map(|from| field("proration_date", from)));
        }
        if paused && !there["pause_collection"].is_object() {
            let customer = reference(&there["customer"]);
            self.invoice_what_waits(customer.as_deref().unwrap_or_default(), id).await?;
        }
        if paused && prorated {
            // What the change is worth is invoiced before the pause, in which invoices are void.
            let pause = form.iter().position(|(name, _)| name == "pause_collection[behavior]").map(|pause| form.remove(pause));
            self.post(&path, None, &form).await?;
            form = pause.into_iter().collect();
        }
        self.post(&path, None, &form).await?;
        if let Some((scheduled, _)) = &details.scheduled {
            self.schedule(&there, id, scheduled, details.quantity).await?;
        }
        self.pay_again(&there, details).await
    }

    /// Adds an amount to the next invoice, rounded to what can be charged.
    pub(super) async fn invoice_item(&self, key: &str, charge: &Charge<'_>) -> Result<(), Refused> {
        let mut form = vec![
            field("customer", charge.customer),
            field("amount", units::nearest(charge.amount).map_err(unpayable)?),
            field("currency", charge.amount.currency.code().to_ascii_lowercase()),
            field("description", &charge.description),
        ];
        form.extend(charge.subscription.map(|subscription| field("subscription", subscription)));
        form.extend(charge.overage.map(|(meter, month)| field(&format!("metadata[{OVERAGE}]"), format!("{meter}:{month}"))));
        self.post("invoiceitems", Some(key), &form).await.map(drop)
    }

    /// Has an invoice that is open tried again with what there is to pay with now. That it cannot be paid Stripe tells by itself.
    pub(super) async fn pay_again(&self, there: &Value, details: &Details) -> Result<(), Refused> {
        let owes = matches!(there["status"].as_str(), Some("past_due" | "unpaid"));
        let other = details.payment_method.as_deref() != there["default_payment_method"].as_str();
        let Some(invoice) = reference(&there["latest_invoice"]).filter(|_| owes && other && details.payment_method.is_some()) else {
            return Ok(());
        };
        self.pay(&invoice).await
    }

    /// Has an invoice paid, if it can be.
    pub(super) async fn pay(&self, invoice: &str) -> Result<(), Refused> {
        match self.post(&format!("invoices/{invoice}/pay"), None, &vec![]).await {
            Err(refused) if refused.later => Err(refused),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Invoices what waits for the next invoice of a subscription, of which there will be none, or a void one.
    pub(super) async fn invoice_what_waits(&self, customer: &str, subscription: &str) -> Result<(), Refused> {
        let waiting = self.request(Method::GET, "invoiceitems").query(&[("customer", customer), ("pending", "true"), ("limit", "100")]);
        let items = send(waiting).await?;
        let mut own =
            items["data"].as_array().into_iter().flatten().filter(|item| reference(&item["subscription"]).as_deref() == Some(subscription));
        let Some(first) = own.next() else { return Ok(()) };
        let first = id_of(first)?;
        let form = vec![
            field("customer", customer),
            field("subscription", subscription),
            field("auto_advance", true),
            field("pending_invoice_items_behavior", "include"),
        ];
        let invoice = id_of(&self.post("invoices", Some(&format!("{subscription}:{first}")), &form).await?)?;
        // Before the subscription ends, or is paused. That it cannot be paid Stripe tells by itself.
        self.pay(&invoice).await
    }

    pub(super) async fn cancel(&self, customer: &str) -> Result<(), Refused> {
        for there in self.subscriptions_of(customer).await? {
            let id = id_of(&there)?;
            self.invoice_what_waits(customer, &id).await?;
            let ended = send(self.request(Method::DELETE, &format!("subscriptions/{id}"))).await;
            if let Err(refused) = ended
                && refused.status != Some(StatusCode::NOT_FOUND)
            {
                return Err(refused);
            }
        }
        Ok(())
    }
}

/// A price as Stripe writes it.
fn amount(price: Money) -> Result<i64, Refused> {
    units::to_stripe(price).map_err(unpayable)
}

pub(super) fn unpayable(why: units::Unpayable) -> Refused {
    Refused { status: None, code: Some(why.to_string()), later: false }
}

/// What a subscription carries to say which period, begun in the middle of one of Stripe's, is charged: its beginning.
const PERIOD: &str = "tenure_period";

/// What it carries while that is being done.
const RESUMES: &str = "tenure_resumes";

/// How many seconds two ends of the same period may be apart.
const CLOCKS: i64 = 3_600;

/// What a schedule carries to say which change it is for.
const CHANGE: &str = "tenure_change";

/// Where a subscription's periods end. Stripe counts months from the day of the first end: from a 28th of February on always the 28th, unless it is told the day that was meant.
fn boundaries(end: DateTime<Utc>, anchor: DateTime<Utc>, interval: Interval) -> Form {
    if anchor.day() <= 28 {
        return vec![field("billing_cycle_anchor", end.timestamp())];
    }
    let part = |name: &str, value: u32| field(&format!("billing_cycle_anchor_config[{name}]"), value);
    let mut form =
        vec![part("day_of_month", anchor.day()), part("hour", end.hour()), part("minute", end.minute()), part("second", end.second())];
    form.extend((interval == Interval::Year).then(|| part("month", end.month())));
    form
}

/// When a trial ends, while it lasts; one that ended before this is told is none.
fn trial_end(details: &Details, now: DateTime<Utc>) -> Option<(String, String)> {
    let trial = details.trial.filter(|trial| details.status == Status::Trialing && trial.ends_at > now)?;
    Some(field("trial_end", trial.ends_at.timestamp()))
}
