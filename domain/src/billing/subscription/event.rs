//! What happens to subscriptions. Stored for ever: append only, a golden file per version under `domain/tests/golden/subscription/`.

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Standing;
use crate::aggregate::Upcaster;
use crate::billing::meter::{Limits, Meter};
use crate::billing::money::Money;
use crate::billing::period::{Billing, Month, Period};
use crate::billing::plan::Terms;

/// What is subscribed to: a plan in one of its versions, which stays what it is whatever becomes of the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pinned {
    /// The plan.
    pub plan: Uuid,
    /// Its code.
    #[schema(example = "growth")]
    pub code: String,
    /// Its version.
    #[schema(example = 1)]
    pub version: u32,
    /// What that costs and gives.
    pub terms: Terms,
}

impl Pinned {
    /// Whether there is nothing to pay.
    pub fn is_free(&self) -> bool {
        self.terms.price.amount == 0
    }
}

/// A trial's end, and when to remind of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// When it ends.
    pub ends_at: DateTime<Utc>,
    /// When to remind of that; `None`: it ends too soon for a reminder.
    pub remind_at: Option<DateTime<Utc>>,
}

/// What a change within a period is worth, by the seconds that are left of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Proration {
    /// What the rest of the period costs under the present plan and quantity, and is given back.
    pub credit: Money,
    /// What the rest of the period costs from now on.
    pub charge: Money,
    /// The seconds that are left of the period.
    #[schema(example = 1_425_600)]
    pub seconds_left: i64,
    /// The seconds of a whole period.
    #[schema(example = 2_678_400)]
    pub seconds: i64,
}

/// Version 1 counted whole days.
fn prorated_by_the_second(mut payload: Value) -> Value {
    if let Some(proration) = payload.get_mut("proration").and_then(Value::as_object_mut) {
        for (days, seconds) in [("days_left", "seconds_left"), ("days", "seconds")] {
            if let Some(days) = proration.remove(days).and_then(|days| days.as_i64()) {
                proration.insert(seconds.to_owned(), (days * 86_400).into());
            }
        }
    }
    payload
}

const fn by_the_second(event: &'static str) -> Upcaster {
    Upcaster { event, from: "1", to: "2", upcast: prorated_by_the_second }
}

/// How events of earlier versions are read.
pub(super) const UPCASTERS: &[Upcaster] = &[by_the_second("subscription.plan_changed"), by_the_second("subscription.quantity_changed")];

/// What was collected of a month's overage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CollectedOverage {
    /// Of which meter.
    pub meter: Meter,
    /// Of which month.
    pub period: Month,
    /// How much.
    pub amount: Money,
}

/// What an invoice was for that was paid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PaidFor {
    /// The plan.
    pub plan: Uuid,
    /// In which version.
    pub version: u32,
    /// How many times; `None`: as often as it was subscribed to.
    pub quantity: Option<u32>,
    /// When the invoice was made.
    pub made_at: DateTime<Utc>,
}

/// Why a subscription is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PauseReason {
    /// Somebody asked for it.
    Requested,
    /// The trial has ended, and there is nothing to pay with.
    NoPaymentMethod,
}

/// Something that has happened to a subscription.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// It has begun; what the plan gives is in force.
    Started {
        /// To what.
        pinned: Pinned,
        /// How many times.
        quantity: u32,
        /// Where its periods begin.
        billing: Billing,
        /// By whose calendar and clock.
        time_zone: Tz,
        /// The trial that it begins with, if it does.
        trial: Option<Trial>,
        /// Its first period, without a trial.
        period: Option<Period>,
    },
    /// The trial lasts longer.
    TrialExtended {
        /// Until when.
        trial: Trial,
    },
    /// The trial ends soon.
    TrialEnding {
        /// When.
        ends_at: DateTime<Utc>,
    },
    /// The trial has become a paid subscription.
    TrialConverted {
        /// Its first period.
        period: Period,
    },
    /// It gives nothing until it is resumed or paid.
    Paused {
        /// Why.
        reason: PauseReason,
        /// Since when.
        at: DateTime<Utc>,
    },
    /// It goes on after a pause.
    Resumed {
        /// The period that it goes on in.
        period: Period,
    },
    /// It has another plan; what that gives is in force.
    PlanChanged {
        /// The plan before.
        from: String,
        /// What it is to now.
        pinned: Pinned,
        /// What the rest of the period is worth, within one.
        proration: Option<Proration>,
        /// The period that begins with it, when a period of another length does.
        period: Option<Period>,
        /// The meters of which more is used than it gives.
        over_limit: Vec<Meter>,
    },
    /// What follows costs more than was paid for: until that is paid no more is given than this.
    LimitsHeld {
        /// How much of each meter.
        limits: Limits,
        /// Since when.
        at: DateTime<Utc>,
        /// What has to be paid, in the minor unit of the currency.
        due: i64,
        /// Whether it is a change within a period.
        within_period: bool,
        /// Whether what is given back for the change was not paid either, and has to be before.
        base_unpaid: bool,
    },
    /// All that is subscribed to is in force.
    LimitsReleased {
        /// Whether what was changed is paid for; otherwise it was taken back.
        paid: bool,
    },
    /// What was changed could not be paid: it is again what it was before.
    ChangeDeclined {
        /// To what it is subscribed again.
        pinned: Pinned,
        /// How many times.
        quantity: u32,
        /// In which period it is again.
        period: Option<Period>,
    },
    /// It will have another plan when the period ends.
    PlanChangeScheduled {
        /// What it will be to.
        pinned: Pinned,
        /// From when on.
        at: DateTime<Utc>,
        /// The meters of which more is used now than it will give.
        over_limit: Vec<Meter>,
    },
    /// It keeps its plan.
    ScheduledChangeCancelled,
    /// It is subscribed to another number of times; what that gives is in force.
    QuantityChanged {
        /// How many it were.
        from: u32,
        /// How many it are.
        to: u32,
        /// What the rest of the period is worth, within one.
        proration: Option<Proration>,
    },
    /// Another period has begun.
    PeriodRenewed {
        /// That one.
        period: Period,
    },
    /// It ends with the period.
    CancelScheduled {
        /// When.
        at: DateTime<Utc>,
    },
    /// It does not end with the period.
    Uncancelled,
    /// It has ended.
    Cancelled {
        /// When.
        at: DateTime<Utc>,
    },
    /// Nobody brought it back in time.
    Expired {
        /// When.
        at: DateTime<Utc>,
    },
    /// Something was paid.
    PaymentSucceeded {
        /// What the provider calls its message.
        provider_event_id: String,
        /// When it happened there.
        occurred_at: DateTime<Utc>,
        /// How much.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        amount: Option<Money>,
        /// What the provider calls the invoice.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        invoice: Option<String>,
        /// Whether it is less than what was owed, together with what was paid in part before.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        partial: bool,
        /// What of it is overage.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        overage: Vec<CollectedOverage>,
        /// What it was for, if that was said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        paid_for: Option<PaidFor>,
    },
    /// A payment was given back, in whole or in part.
    PaymentRefunded {
        /// What the provider calls its message.
        provider_event_id: String,
        /// When it happened there.
        occurred_at: DateTime<Utc>,
        /// How much was given back of the payment so far.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        amount: Option<Money>,
    },
    /// The payer's bank disputes a payment.
    PaymentDisputed {
        /// What the provider calls its message.
        provider_event_id: String,
        /// When it happened there.
        occurred_at: DateTime<Utc>,
        /// How much.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        amount: Option<Money>,
    },
    /// A dispute has ended.
    DisputeClosed {
        /// What the provider calls its message.
        provider_event_id: String,
        /// When it happened there.
        occurred_at: DateTime<Utc>,
        /// How much.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        amount: Option<Money>,
        /// Whether the money is gone.
        lost: bool,
    },
    /// Something could not be paid.
    PaymentFailed {
        /// What the provider calls its message.
        provider_event_id: String,
        /// When it happened there.
        occurred_at: DateTime<Utc>,
        /// How much.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        amount: Option<Money>,
    },
    /// The provider said how its own subscription stands.
    StandingReported {
        /// What the provider calls its message.
        provider_event_id: String,
        /// When it happened there.
        occurred_at: DateTime<Utc>,
        /// How.
        standing: Standing,
    },
    /// It is paid for, and gives what it gives.
    Activated {
        /// The period that begins with it, if one does.
        period: Option<Period>,
    },
    /// It is not paid for; it still gives what it gives.
    BecamePastDue,
    /// It is not paid for, and gives nothing until it is.
    MarkedUnpaid {
        /// Since when.
        at: DateTime<Utc>,
        /// Whether somebody here has decided that, and not the provider; then what was paid before does not undo it.
        requested: bool,
    },
    /// There is something to pay with.
    PaymentMethodSet {
        /// What the provider calls it.
        reference: String,
        /// When it happened there.
        occurred_at: DateTime<Utc>,
        /// What is paid with after that: nothing, if it was heard before that this one was removed later.
        in_use: Option<String>,
    },
    /// Something cannot be paid with any more.
    PaymentMethodRemoved {
        /// What the provider calls it.
        reference: String,
        /// When it happened there.
        occurred_at: DateTime<Utc>,
        /// What is paid with after that.
        in_use: Option<String>,
    },
    /// A provider knows who pays.
    CustomerLinked {
        /// Which one.
        provider: String,
        /// What it calls them.
        customer: String,
    },
    /// A provider collects what is to be paid.
    ProviderLinked {
        /// Which one.
        provider: String,
        /// What it calls its own subscription.
        subscription: String,
    },
}

impl Event {
    /// What a change within a period is worth, if this is one.
    pub(super) fn proration(&self) -> Option<Proration> {
        if let Self::PlanChanged { proration, .. } | Self::QuantityChanged { proration, .. } = self { *proration } else { None }
    }
}

crate::event_kinds!(Event:
    Started => "subscription.started" "1",
    TrialExtended => "subscription.trial_extended" "1",
    TrialEnding => "subscription.trial_ending" "1",
    TrialConverted => "subscription.trial_converted" "1",
    Paused => "subscription.paused" "1",
    Resumed => "subscription.resumed" "1",
    PlanChanged => "subscription.plan_changed" "2",
    LimitsHeld => "subscription.limits_held" "1",
    LimitsReleased => "subscription.limits_released" "1",
    ChangeDeclined => "subscription.change_declined" "1",
    PlanChangeScheduled => "subscription.plan_change_scheduled" "1",
    ScheduledChangeCancelled => "subscription.scheduled_change_cancelled" "1",
    QuantityChanged => "subscription.quantity_changed" "2",
    PeriodRenewed => "subscription.period_renewed" "1",
    CancelScheduled => "subscription.cancel_scheduled" "1",
    Uncancelled => "subscription.uncancelled" "1",
    Cancelled => "subscription.cancelled" "1",
    Expired => "subscription.expired" "1",
    PaymentSucceeded => "subscription.payment_succeeded" "1",
    PaymentFailed => "subscription.payment_failed" "1",
    PaymentRefunded => "subscription.payment_refunded" "1",
    PaymentDisputed => "subscription.payment_disputed" "1",
    DisputeClosed => "subscription.dispute_closed" "1",
    StandingReported => "subscription.standing_reported" "1",
    Activated => "subscription.activated" "1",
    BecamePastDue => "subscription.became_past_due" "1",
    MarkedUnpaid => "subscription.marked_unpaid" "1",
    PaymentMethodSet => "subscription.payment_method_set" "1",
    PaymentMethodRemoved => "subscription.payment_method_removed" "1",
    CustomerLinked => "subscription.customer_linked" "1",
    ProviderLinked => "subscription.provider_linked" "1",
);
