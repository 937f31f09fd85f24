//! Messages of Stripe: what counts, once, and for whom.

use axum::http::StatusCode;
use chrono::TimeDelta;
use domain::Clock as _;
use domain::billing::subscription::Status;
use serde_json::{Value, json};
use testing::stripe::sign;

use crate::shop::*;

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
