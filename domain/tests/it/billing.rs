use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta};
use chrono_tz::Tz;
use domain::Aggregate as _;
use domain::billing::meter::{Entitlement, Limit, Meter};
use domain::billing::money::{Currency, Money, UnitPrice};
use domain::billing::period::{Billing, Interval, Period};
use domain::billing::plan::{Event as PlanEvent, Plan, Terms};
use domain::billing::subscription::{Event, PauseReason, Pinned, Proration, Standing, Subscription, Trial};
use uuid::Uuid;

#[test]
fn every_event_of_plans_and_subscriptions_is_stored_as_it_always_was() {
    let at = DateTime::from_timestamp(1_767_225_600, 0).unwrap();
    let later = at + TimeDelta::days(31);
    let usd = |amount| Money::new(amount, Currency::USD);
    let overage = UnitPrice { amount: 1_500, per: 1_000.try_into().unwrap() };
    let messages = Entitlement { quota: 10_000, hard_percent: 105, overage: Some(overage) };
    let entitlements = BTreeMap::from([(Meter::Messages, messages), (Meter::Users, Entitlement::of(25))]);
    let terms = || Terms { price: usd(9_900), interval: Interval::Month, trial_days: 14, entitlements: entitlements.clone() };
    let plans = [
        PlanEvent::Defined { code: "growth".into(), name: "Growth".into(), terms: terms() },
        PlanEvent::Revised { version: 2, name: "Growth".into(), terms: terms() },
        PlanEvent::Retired,
    ];
    crate::check("plan", Plan::EVENTS, &plans);
    let pinned = || Pinned { plan: Uuid::from_u128(1), code: "growth".into(), version: 1, terms: terms() };
    let (period, trial) = (Period { start: at, end: later }, Trial { ends_at: later, remind_at: Some(at) });
    let proration = Some(Proration { credit: usd(4_790), charge: usd(24_145), seconds_left: 1_296_000, seconds: 2_678_400 });
    let (provider_event_id, occurred_at) = ("evt_1".to_owned(), at);
    let reference = || "pm_1".to_owned();
    let subscriptions = [
        Event::Started {
            pinned: pinned(),
            quantity: 1,
            billing: Billing::Anniversary,
            time_zone: Tz::Europe__Vienna,
            trial: Some(trial),
            period: None,
        },
        Event::TrialExtended { trial },
        Event::TrialEnding { ends_at: later },
        Event::TrialConverted { period },
        Event::Paused { reason: PauseReason::NoPaymentMethod, at },
        Event::Resumed { period },
        Event::PlanChanged { from: "starter".into(), pinned: pinned(), proration, period: Some(period), over_limit: vec![Meter::Users] },
        Event::PlanChangeScheduled { pinned: pinned(), at: later, over_limit: vec![] },
        Event::ScheduledChangeCancelled,
        Event::LimitsHeld {
            limits: [(Meter::Users, Limit { quota: 5, limit: 5 })].into(),
            at,
            due: 3_613,
            within_period: true,
            base_unpaid: false,
        },
        Event::LimitsReleased { paid: true },
        Event::ChangeDeclined { pinned: pinned(), quantity: 1, period: Some(period) },
        Event::QuantityChanged { from: 1, to: 2, proration },
        Event::PeriodRenewed { period },
        Event::CancelScheduled { at: later },
        Event::Uncancelled,
        Event::Cancelled { at },
        Event::Expired { at },
        Event::PaymentSucceeded {
            provider_event_id: provider_event_id.clone(),
            occurred_at,
            amount: Some(usd(9_900)),
            invoice: None,
            partial: false,
            overage: vec![],
            paid_for: None,
        },
        Event::PaymentRefunded { provider_event_id: provider_event_id.clone(), occurred_at, amount: Some(usd(9_900)) },
        Event::PaymentDisputed { provider_event_id: provider_event_id.clone(), occurred_at, amount: Some(usd(9_900)) },
        Event::DisputeClosed { provider_event_id: provider_event_id.clone(), occurred_at, amount: Some(usd(9_900)), lost: true },
        Event::PaymentFailed { provider_event_id: provider_event_id.clone(), occurred_at, amount: None },
        Event::StandingReported { provider_event_id, occurred_at, standing: Standing::PastDue },
        Event::Activated { period: Some(period) },
        Event::BecamePastDue,
        Event::MarkedUnpaid { at, requested: false },
        Event::PaymentMethodSet { reference: reference(), occurred_at, in_use: Some(reference()) },
        Event::PaymentMethodRemoved { reference: reference(), occurred_at, in_use: None },
        Event::CustomerLinked { provider: "stripe".into(), customer: "cus_1".into() },
        Event::ProviderLinked { provider: "stripe".into(), subscription: "sub_1".into() },
    ];
    crate::check("subscription", Subscription::EVENTS, &subscriptions);
}
