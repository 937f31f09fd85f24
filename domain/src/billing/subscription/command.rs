//! What may be asked of a subscription, and why it may be refused.

use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{CollectedOverage, Standing, Status};
use crate::billing::money::{Currency, Money};
use crate::billing::period::Billing;
use crate::instant::Instant;
use crate::text::{PlanCode, Reference};

/// When something takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// At once.
    Now,
    /// When the period ends.
    PeriodEnd,
}

/// Subscribes a tenant to a plan. A tenant has one live subscription, and one trial in its life.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StartSubscription {
    /// Its id, if the client chooses one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    /// To what.
    pub plan: PlanCode,
    /// How many days of trial: as many as the plan says if nothing is said, or fewer; more only from the platform. 0: none; then it begins once it is paid, or at once when the
    /// platform starts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 365, example = 14)]
    pub trial_days: Option<u16>,
    /// Where its periods begin.
    #[serde(default)]
    pub billing: Billing,
    /// By whose calendar and clock.
    #[serde(default)]
    #[schema(value_type = String, default = "UTC", example = "Europe/Vienna")]
    pub time_zone: Tz,
    /// In which currency, if it matters that the plan is in that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "USD")]
    pub currency: Option<Currency>,
    /// How many times: price and quotas are multiplied by it.
    #[serde(default = "one")]
    #[schema(minimum = 1, maximum = 10000, default = 1)]
    pub quantity: u32,
}

fn one() -> u32 {
    1
}

/// Lets a trial last longer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExtendTrial {
    /// Until when: later than it ends now.
    #[schema(example = "2030-01-01T00:00:00Z")]
    pub until: Instant,
}

/// Changes the plan. What is used must fit into the new one, unless it begins with the next period.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangePlan {
    /// The new plan, in its newest version.
    #[schema(example = "growth")]
    pub plan: PlanCode,
    /// When.
    pub when: When,
}

/// Changes how many times it is subscribed to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeQuantity {
    /// How many times.
    #[schema(minimum = 1, maximum = 10000, example = 2)]
    pub quantity: u32,
}

/// Ends a subscription.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CancelSubscription {
    /// When; at the period's end it can be taken back until then.
    pub when: When,
}

/// Records that something was paid, or could not be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RecordPayment {
    /// What the provider calls its message. It is recorded once, however often it is sent; the same id with another content is refused.
    #[schema(example = "evt_1NG8Du2eZvKYlo2CUI79vXWy")]
    pub provider_event_id: Reference,
    /// When it happened there, at most 5 minutes from now. What happened later decides.
    #[schema(value_type = String, format = DateTime, example = "2026-01-01T09:00:00Z")]
    pub occurred_at: Instant,
    /// How much, in the currency of the subscription. A payment of less than what is owed is recorded as partial, and the subscription waits for the rest. Without an amount
    /// everything that is owed was paid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amount: Option<Money>,
}

/// Sets what is paid with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetPaymentMethod {
    /// What the provider calls it; never a card's number.
    pub reference: Reference,
}

/// What a payment provider reported, by a signed message.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// What the provider calls its message.
    pub provider_event_id: Reference,
    /// When it happened there.
    pub occurred_at: Instant,
    /// What.
    pub fact: Fact,
}

/// What can be reported.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact {
    /// An invoice is paid in full, by whatever means.
    Paid {
        /// How much was paid.
        amount: Option<Money>,
        /// What the provider calls the invoice. Several messages may say that it is paid.
        invoice: Option<Reference>,
        /// What it is for, and when it was made; `None`: the message does not say.
        items: Option<(Vec<PaidItem>, Instant)>,
        /// What it has collected of overage.
        overage: Vec<CollectedOverage>,
    },
    /// Something could not be paid.
    NotPaid(Option<Money>),
    /// How its own subscription stands.
    Stands(Standing),
    /// A payment was given back, in whole or in part.
    Refunded(Option<Money>),
    /// The payer's bank disputes a payment.
    Disputed(Option<Money>),
    /// A dispute has ended.
    DisputeClosed {
        /// How much it was about.
        amount: Option<Money>,
        /// Whether the money is gone.
        lost: bool,
    },
    /// There is something to pay with.
    MethodSet(Reference),
    /// There is nothing to pay with any more.
    MethodRemoved(Reference),
}

/// What an invoice is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PaidItem {
    /// A plan,
    pub plan: Uuid,
    /// in this version,
    pub version: u32,
    /// so many times, or as often as it was subscribed to,
    pub quantity: Option<u32>,
    /// from this time on, if that is said.
    pub from: Option<Instant>,
    /// Whether that costs something.
    pub costs: bool,
}

/// Notes who pays at a provider; sent by the policy that made them known there.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LinkCustomer {
    /// Which one.
    pub provider: Reference,
    /// What it calls them.
    pub customer: Reference,
}

/// Notes what collects the payments at a provider; sent by the policy that made it there.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LinkProvider {
    /// Which one.
    pub provider: Reference,
    /// What it calls its own subscription.
    pub subscription: Reference,
}

crate::bare_commands! {
    /// Makes a trial a paid subscription; sent by its timer, or before by whoever does not want to wait.
    ConvertTrial
    /// Ends a trial at once: the subscription is paused until it is paid.
    EndTrialWithoutPayment
    /// Reminds of a trial's end; sent by its timer.
    RemindOfTrialEnd
    /// Takes back a change of the plan that has not taken effect.
    CancelScheduledChange
    /// Pauses a subscription: it gives nothing and costs nothing.
    PauseSubscription
    /// Lets a paused subscription go on.
    ResumeSubscription
    /// Takes back the end of a subscription before it has come.
    UncancelSubscription
    /// Begins the next period; sent by its timer.
    RenewPeriod
    /// Gives up waiting for a payment: it gives nothing until it is paid.
    MarkUnpaid
    /// Takes back a change whose payment was declined; sent by the policy that asked for it.
    TakeBackChange
    /// Ends what nobody brought back; sent by its timer.
    ExpireSubscription
}

crate::commands! { "subscription":
    Start(StartSubscription) "start", "start";
    ExtendTrial(ExtendTrial) "extend_trial", "manage";
    ConvertTrial(ConvertTrial) "convert_trial", "change";
    EndTrialWithoutPayment(EndTrialWithoutPayment) "end_trial_without_payment", "manage";
    RemindOfTrialEnd(RemindOfTrialEnd) "remind_of_trial_end", "manage";
    ChangePlan(ChangePlan) "change_plan", "change";
    CancelScheduledChange(CancelScheduledChange) "cancel_scheduled_change", "change";
    ChangeQuantity(ChangeQuantity) "change_quantity", "change";
    Pause(PauseSubscription) "pause", "manage";
    Resume(ResumeSubscription) "resume", "manage";
    Cancel(CancelSubscription) "cancel", "cancel";
    Uncancel(UncancelSubscription) "uncancel", "cancel";
    RenewPeriod(RenewPeriod) "renew_period", "manage";
    RecordPaymentSucceeded(RecordPaymentSucceeded) "record_payment_succeeded", "record_payment";
    RecordPaymentFailed(RecordPaymentFailed) "record_payment_failed", "record_payment";
    MarkUnpaid(MarkUnpaid) "mark_unpaid", "record_payment";
    SetPaymentMethod(SetPaymentMethod) "set_payment_method", "record_payment";
    Report(Report) "report", "record_payment";
    LinkCustomer(LinkCustomer) "link_customer", "record_payment";
    LinkProvider(LinkProvider) "link_provider", "record_payment";
    TakeBackChange(TakeBackChange) "take_back_change", "record_payment";
    Expire(ExpireSubscription) "expire", "manage";
}

/// Records that something was paid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(title = "RecordPaymentSucceeded", example = json!({"provider_event_id": "evt_1", "occurred_at": "2026-01-01T09:00:00Z", "amount": {"amount": 2900, "currency": "USD"}}))]
pub struct RecordPaymentSucceeded(pub RecordPayment);

/// Records that something could not be paid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(title = "RecordPaymentFailed", example = json!({"provider_event_id": "evt_2", "occurred_at": "2026-01-01T09:00:00Z", "amount": {"amount": 2900, "currency": "USD"}}))]
pub struct RecordPaymentFailed(pub RecordPayment);

crate::errors! {
    /// Why a subscription refuses.
    Error {
        /// There is none.
        NotFound: NotFound "subscription.not_found", "there is no such subscription";
        /// The id is in use.
        AlreadyExists: Conflict "subscription.already_exists", "a subscription with this id exists already";
        /// The tenant has a live one.
        AnotherIsLive: Conflict "subscription.another_is_live", "the tenant has a live subscription already";
        /// The tenant's trial is used up.
        TrialUsed: Conflict "subscription.trial_used", "the tenant has had its trial; start without one (trial_days 0)";
        /// The tenant is closed, and no subscription would open it.
        TenantClosed: Conflict "subscription.tenant_closed", "the tenant is closed for another reason than the want of a subscription";
        /// There is no plan of this code.
        NoSuchPlan { /// The code.
            code: String }: Invalid "subscription.no_such_plan", "there is no plan {code}";
        /// Nobody can subscribe to the plan any more.
        PlanRetired { /// The code.
            code: String }: Conflict "subscription.plan_retired", "the plan {code} is retired";
        /// A subscription keeps its currency.
        CurrencyFixed: Invalid "subscription.currency_fixed", "the plan is in another currency, and a subscription keeps its own";
        /// A number out of bounds.
        OutOfBounds { /// What.
            what: &'static str }: Invalid "subscription.out_of_bounds", "{what}";
        /// A trial only gets longer.
        OnlyForward: Conflict "subscription.trial_only_forward", "a trial is extended to a time after its end, which is not over a year away";
        /// There is nothing to pay with.
        NoPaymentMethod: Conflict "subscription.no_payment_method", "there is no payment method";
        /// Its time has not come.
        NotDue: Conflict "subscription.not_due", "its time has not come";
        /// There is no paid period whose end could be waited for.
        NoPeriod: Conflict "subscription.no_period", "it is in no period that is paid for, whose end could be waited for";
        /// The provider cannot begin a period in the middle of a calendar's.
        IntervalWithPeriod: Conflict "subscription.interval_with_period", "with calendar billing the provider changes between months and years only when a period ends; let the change begin with the next period";
        /// The last change is not paid yet.
        ChangeWaits: Conflict "subscription.change_waits", "the last change waits for its payment; until it is paid it can only be taken back";
        /// A payment lies in the future.
        InTheFuture: Invalid "subscription.payment_in_the_future", "a payment cannot have happened later than 5 minutes from now";
        /// A payment in another currency.
        WrongCurrency: Invalid "subscription.payment_in_another_currency", "the subscription is paid in another currency";
        /// An id that was used for another payment.
        PaymentDiffers: Invalid "subscription.payment_differs", "a payment with this id and another content was recorded before";
        /// More is used than the plan gives.
        OverLimit {
            /// Of what.
            meter: String,
            /// How much is used.
            used: i64,
            /// How much the plan gives.
            limit: i64,
        }: Conflict "subscription.over_limit", "{used} {meter} are in use, and the plan gives {limit}; let it begin with the next period, or use less";
        /// The status does not allow the command.
        NotWhile {
            /// The command's name.
            command: &'static str,
            /// The subscription's status.
            status: Status,
        }: Conflict "subscription.cannot_while", "a subscription that is {status} cannot {command}";
    }
    code Self::NotWhile { command, status } => format!("subscription.cannot_{command}_while_{status}");
}
