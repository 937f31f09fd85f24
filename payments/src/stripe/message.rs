//! What Stripe tells: its signature, and what its events mean here.

use chrono::{DateTime, TimeDelta, Utc};
use domain::billing::money::{Currency, Money};
use domain::billing::subscription::{CollectedOverage, Fact, PaidItem, Standing};
use domain::instant::Instant;
use domain::text::Reference;
use hmac::{Hmac, Mac as _};
use serde_json::Value;
use sha2::Sha256;
use uuid::Uuid;

use super::units;
use crate::provider::{Message, MessageError, Object};

/// How old a signature may be (Stripe's own default), and how far ahead of our clock.
const TOLERANCE: TimeDelta = TimeDelta::minutes(5);
/// What Stripe's objects carry to say what they are about.
pub(super) const ABOUT: &str = "tenure_subscription";
/// What an invoice item carries to say of which meter and month it is the overage: `messages:2026-11`.
pub(super) const OVERAGE: &str = "tenure_overage";

/// Checks a `Stripe-Signature` header, `t=<unix seconds>,v1=<hex>…`: HMAC-SHA256 of `<t>.<body>` under one of the secrets; other schemes are ignored, so that nobody can
/// choose a weaker one.
pub(super) fn verify(header: Option<&str>, body: &[u8], secrets: &[String], now: DateTime<Utc>) -> Result<(), MessageError> {
    let header = header.ok_or(MessageError::BadSignature("there is no Stripe-Signature"))?;
    let parts = || header.split(',').filter_map(|part| part.trim().split_once('='));
    let timestamp = parts().find(|(name, _)| *name == "t").map(|(_, value)| value);
    let timestamp = timestamp.ok_or(MessageError::BadSignature("the signature has no time"))?;
    let signed = |secret: &String, signature: &[u8]| {
        let Ok(mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else { return false };
        mac.chain_update(timestamp).chain_update(".").chain_update(body).verify_slice(signature).is_ok()
    };
    let genuine = parts()
        .filter(|(name, _)| *name == "v1")
        .filter_map(|(_, value)| hex::decode(value).ok())
        .any(|signature| secrets.iter().any(|secret| signed(secret, &signature)));
    if !genuine {
        return Err(MessageError::BadSignature("the signature is not the provider's"));
    }
    let at = timestamp.parse().ok().and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    match at {
        Some(at) if (now - at).abs() <= TOLERANCE => Ok(()),
        Some(_) | None => Err(MessageError::BadSignature("the signature is not of these five minutes")),
    }
}

/// An id, or an object that has one (Stripe expands what it is asked to).
pub(super) fn reference(value: &Value) -> Option<Reference> {
    value.as_str().or_else(|| value["id"].as_str()).and_then(|text| Reference::parse(text).ok())
}

fn money(amount: &Value, currency: &Value) -> Option<Money> {
    let currency = Currency::try_from(currency.as_str()?.to_ascii_uppercase()).ok()?;
    units::from_stripe(amount.as_i64()?, currency)
}

pub(super) fn parse(body: &[u8]) -> Result<Message, MessageError> {
    let event: Value = serde_json::from_slice(body).map_err(|error| MessageError::Malformed(error.to_string()))?;
    let missing = |what: &str| MessageError::Malformed(format!("the event has no {what}"));
    let text = |name: &str| {
        let text = event[name].as_str().ok_or_else(|| missing(name))?;
        Reference::parse(text).map_err(|error| MessageError::Malformed(format!("the event's {name} {error}")))
    };
    let created = event["created"].as_i64().and_then(|seconds| Instant::try_from(DateTime::from_timestamp(seconds, 0)?).ok());
    let (id, kind, occurred_at) = (text("id")?, text("type")?, created.ok_or_else(|| missing("created"))?);
    let object = &event["data"]["object"];
    // Newer versions of Stripe's interface keep the invoice's subscription in its parent.
    let metadata =
        [&object["metadata"], &object["subscription_details"]["metadata"], &object["parent"]["subscription_details"]["metadata"]];
    let about = metadata.iter().find_map(|metadata| metadata[ABOUT].as_str()?.parse().ok());
    // A payment method is made in the browser, where anybody may write into it.
    let about = about.filter(|_| !kind.starts_with("payment_method."));
    let customer = reference(&object["customer"]).or_else(|| reference(&event["data"]["previous_attributes"]["customer"]));
    Ok(Message { fact: fact(&kind, object), id, kind, occurred_at, about, customer, object: concerns(object), names: names(object) })
}

/// What an event is about.
fn concerns(object: &Value) -> Object {
    match object["object"].as_str() {
        Some("subscription") => reference(object).map_or(Object::Customer, Object::Subscription),
        Some("invoice") => {
            // Newer versions of Stripe's interface keep it in the invoice's parent.
            let of = [&object["subscription"], &object["parent"]["subscription_details"]["subscription"]];
            Object::Invoice(of.into_iter().find_map(reference))
        }
        Some("charge" | "dispute") => Object::Charge,
        Some(_) | None => Object::Customer,
    }
}

/// The invoice, the charge and the payment that an event names.
fn names(object: &Value) -> Vec<Reference> {
    let own = matches!(object["object"].as_str(), Some("invoice" | "charge")).then_some(object);
    let payments = object["payments"]["data"].as_array().into_iter().flatten().map(|payment| &payment["payment"]);
    let of_payments = payments.flat_map(|payment| [&payment["charge"], &payment["payment_intent"]]);
    let named = own.into_iter().chain([&object["invoice"], &object["charge"], &object["payment_intent"]]).chain(of_payments);
    named.filter_map(reference).collect()
}

/// What an invoice is for, of our products, and when it was made; `None` where it does not show all of its lines.
fn items(invoice: &Value) -> Option<(Vec<PaidItem>, Instant)> {
    let lines = invoice["lines"]["data"].as_array().filter(|lines| !lines.is_empty() && invoice["lines"]["has_more"] != true)?;
    let time = |value: &Value| Instant::try_from(DateTime::from_timestamp(value.as_i64()?, 0)?).ok();
    let made = time(&invoice["created"])?;
    let item = |line: &Value| {
        // What is given back of an earlier plan is below zero. Newer versions of Stripe's interface tell the product with the pricing.
        let costs = line["amount"].as_i64().filter(|amount| *amount >= 0)? > 0;
        let products = [&line["pricing"]["price_details"]["product"], &line["price"]["product"], &line["plan"]["product"]];
        let (plan, version) = products.into_iter().find_map(reference).and_then(|product| plan_of(product.as_str()))?;
        // What was made once, when the subscription was made in the middle of a period, is for all of it.
        let of_item = &line["parent"]["invoice_item_details"];
        let once = line["price"]["type"] == "one_time" || of_item.is_object() && of_item["proration"] != true;
        let quantity = if once { None } else { Some(u32::try_from(line["quantity"].as_u64()?).ok()?) };
        Some(PaidItem { plan, version, quantity, from: time(&line["period"]["start"]), costs })
    };
    Some((lines.iter().filter_map(item).collect(), made))
}

/// What an invoice has collected of overage.
fn overage(invoice: &Value) -> Vec<CollectedOverage> {
    let lines = invoice["lines"]["data"].as_array().into_iter().flatten();
    let collected = |line: &Value| {
        let (meter, period) = line["metadata"][OVERAGE].as_str()?.split_once(':')?;
        Some(CollectedOverage {
            meter: meter.parse().ok()?,
            period: period.parse().ok()?,
            amount: money(&line["amount"], &line["currency"])?,
        })
    };
    lines.filter_map(collected).collect()
}

/// A plan's version as Stripe's product.
pub(super) fn product(plan: Uuid, version: u32) -> String {
    format!("tenure_{}_v{version}", plan.simple())
}

/// The plan and its version that a product is, if it is one of ours.
fn plan_of(product: &str) -> Option<(Uuid, u32)> {
    let (plan, version) = product.strip_prefix("tenure_")?.split_once("_v")?;
    Some((plan.parse().ok()?, version.parse().ok()?))
}

/// What an event means; `None`: nothing here.
fn fact(kind: &str, object: &Value) -> Option<Fact> {
    match kind {
        // An invoice below nothing: that it is settled says nothing about what is owed.
        "invoice.paid" | "invoice.payment_succeeded" if object["total"].as_i64().is_some_and(|total| total < 0) => None,
        // Both are told of an invoice that a payment settles; only `invoice.paid` of one that was paid out of band, or by the customer's balance.
        "invoice.paid" | "invoice.payment_succeeded" => Some(Fact::Paid {
            amount: money(&object["amount_paid"], &object["currency"]),
            invoice: reference(object),
            items: items(object),
            overage: overage(object),
        }),
        "invoice.payment_failed" => Some(Fact::NotPaid(money(&object["amount_due"], &object["currency"]))),
        "customer.subscription.created" | "customer.subscription.updated" => match object["status"].as_str()? {
            "active" => Some(Fact::Stands(Standing::Active)),
            "past_due" => Some(Fact::Stands(Standing::PastDue)),
            "unpaid" => Some(Fact::Stands(Standing::Unpaid)),
            "canceled" | "incomplete_expired" => Some(Fact::Stands(Standing::Ended)),
            _ => None,
        },
        "customer.subscription.deleted" => Some(Fact::Stands(Standing::Ended)),
        "charge.refunded" => Some(Fact::Refunded(money(&object["amount_refunded"], &object["currency"]))),
        "charge.dispute.created" => Some(Fact::Disputed(money(&object["amount"], &object["currency"]))),
        "charge.dispute.closed" => {
            let lost = object["status"] == "lost";
            Some(Fact::DisputeClosed { amount: money(&object["amount"], &object["currency"]), lost })
        }
        "setup_intent.succeeded" => reference(&object["payment_method"]).map(Fact::MethodSet),
        "payment_method.attached" => reference(object).map(Fact::MethodSet),
        "payment_method.detached" => reference(object).map(Fact::MethodRemoved),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = br#"{"object":"event","id":"evt_1"}"#;
    /// Made by Stripe's own library for this body and the secret `whsec_test`.
    const HEADER: &str = "t=1700000000,v1=762bb6d5561a2acf6f56f409c36d351ab1204816cfa4c17b699b799950da8a7d";

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + seconds, 0).unwrap()
    }

    #[test]
    fn a_signature_of_the_providers_own_library_is_accepted_within_five_minutes_and_no_other_is() {
        let secrets = ["whsec_old".to_owned(), "whsec_test".to_owned()];
        for seconds in [-300, 0, 300] {
            assert_eq!(verify(Some(HEADER), BODY, &secrets, at(seconds)), Ok(()));
        }
        let several = format!("v0=00,{},v1=00", HEADER.replace("v1=", "v1=ffff,v1="));
        assert_eq!(verify(Some(&several), BODY, &secrets, at(0)), Ok(()));
        let refused = |header: Option<&str>, body: &[u8], secrets: &[String], now| {
            assert!(matches!(verify(header, body, secrets, now), Err(MessageError::BadSignature(_))), "{header:?}");
        };
        refused(Some(HEADER), BODY, &secrets, at(301));
        refused(Some(HEADER), BODY, &secrets, at(-301));
        refused(Some(HEADER), b"{}", &secrets, at(0));
        refused(Some(HEADER), BODY, &secrets[..1], at(0));
        refused(Some(&HEADER.replace("t=1700000000", "t=1700000001")), BODY, &secrets, at(0));
        refused(Some(&HEADER.replace("v1=", "v0=")), BODY, &secrets, at(0));
        for header in [None, Some(""), Some("t=1700000000"), Some("v1=00"), Some("t=x,v1=00"), Some("t=1700000000,v1=zz")] {
            refused(header, BODY, &secrets, at(0));
        }
    }
}
