//! The subscription: what a tenant pays for, and what it is entitled to by that.
//!
//! `trialing → active | past_due | paused | cancelled`; `active → past_due | paused | cancel_scheduled | cancelled`; `past_due → active | unpaid | cancel_scheduled | cancelled`;
//! `unpaid → active | expired | cancelled`; `paused → active | expired | cancelled`; `cancel_scheduled → active | unpaid | cancelled`; `cancelled` and `expired` are the end.
//!
//! What a plan gives is in force from the append of the event that says so: `effects` sets the ceilings of the tenant's counters.

mod command;
mod event;
mod held;
mod rules;
mod standing;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

pub use command::*;
pub use event::{CollectedOverage, Event, PaidFor, PauseReason, Pinned, Proration, Trial};
pub use standing::Standing;

use self::held::Held;
use self::standing::Marks;
use super::meter::{self, Entitlement, Meter};
use super::money::Money;
use super::period::{Billing, Period, Schedule};
use crate::aggregate::{EventKind, Issued, Lookup, Upcaster};
use crate::effect::{Claim, Effect, Refusal, Scope};

/// The one live subscription of a tenant.
pub const LIVE: Claim = Claim { namespace: "live_subscription", scope: Scope::Tenant, personal: false };
/// The one trial of a tenant.
pub const TRIAL: Claim = Claim { namespace: "subscription_trial", scope: Scope::Tenant, personal: false };
/// Who pays, by the provider's name and what it calls them: whom its messages are about.
pub const CUSTOMER: Claim = Claim { namespace: "payment_customer", scope: Scope::Installation, personal: false };
/// The value of the tenant's two.
pub const BASE: &str = "base";

/// How long before a trial's end it is reminded of.
pub const REMINDER: TimeDelta = TimeDelta::days(3);
/// How long a paused or unpaid subscription can be brought back.
pub const EXPIRY: TimeDelta = TimeDelta::days(90);
/// How far ahead of our clock a payment may have happened: clocks differ.
pub const AHEAD: TimeDelta = TimeDelta::minutes(5);

const TRIAL_TIMER: &str = "trial_end";
const REMINDER_TIMER: &str = "trial_reminder";
const PERIOD_TIMER: &str = "period_end";
const EXPIRY_TIMER: &str = "expiry";

/// Where a subscription stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = SubscriptionStatus)]
pub enum Status {
    /// It is tried for nothing.
    Trialing,
    /// It is paid for.
    Active,
    /// It is not paid for, and gives what it gives for a while.
    PastDue,
    /// It is not paid for, and gives nothing.
    Unpaid,
    /// It gives nothing and costs nothing for a while.
    Paused,
    /// It is paid for, and ends with the period.
    CancelScheduled,
    /// It was ended.
    Cancelled,
    /// Nobody brought it back in time.
    Expired,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Trialing, Self::Active, Self::PastDue, Self::Unpaid, Self::Paused, Self::CancelScheduled, Self::Cancelled, Self::Expired];

    /// As stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trialing => "trialing",
            Self::Active => "active",
            Self::PastDue => "past_due",
            Self::Unpaid => "unpaid",
            Self::Paused => "paused",
            Self::CancelScheduled => "cancel_scheduled",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    /// Whether it has not ended.
    pub fn is_live(self) -> bool {
        !matches!(self, Self::Cancelled | Self::Expired)
    }

    /// Whether its periods follow one another.
    fn runs(self) -> bool {
        matches!(self, Self::Active | Self::PastDue | Self::CancelScheduled)
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A subscription as its events tell it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Subscription {
    /// Nothing has happened yet.
    #[default]
    Absent,
    /// There is one, or was.
    Known(Box<Details>),
}

/// What is known of a subscription.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Details {
    /// Where it stands.
    pub status: Status,
    /// What it is to.
    pub pinned: Pinned,
    /// How many times.
    pub quantity: u32,
    billing: Billing,
    time_zone: Tz,
    /// Its trial, if it had one.
    pub trial: Option<Trial>,
    reminded: bool,
    /// Where its periods come from, once it is paid for.
    schedule: Option<Schedule>,
    /// The period that it is in, once it is paid for.
    pub period: Option<Period>,
    /// The plan that begins with the next period, and when that was said to be.
    pub scheduled: Option<(Pinned, DateTime<Utc>)>,
    /// What it is paid with, as the provider calls it.
    pub payment_method: Option<String>,
    /// Who pays: a provider, and what it calls them.
    pub customer: Option<(String, String)>,
    /// What collects the payments, as the provider calls it.
    pub provider_subscription: Option<String>,
    /// Why it is paused, and since when, or since when it is unpaid.
    stopped: Option<(Option<PauseReason>, DateTime<Utc>)>,
    marks: Marks,
    /// What was paid of what is owed, while that is less.
    paid_in_part: i64,
    /// The change that waits for its payment.
    held: Option<Held>,
    /// What was paid last, as far as that was said.
    paid_for: Option<PaidFor>,
    /// What its periods and their changes have come to and was not paid.
    unpaid: i64,
    /// What changes within the period have come to and was not paid yet.
    unpaid_changes: i64,
    /// From when on the last change within a period counts: what both sides prorate by.
    pub prorated_from: Option<DateTime<Utc>>,
    /// What was heard of payments, by the provider's ids, so that each counts once.
    heard: BTreeMap<String, Heard>,
}

/// What was heard under one id of a provider.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Heard {
    what: HeardKind,
    at: DateTime<Utc>,
    amount: Option<Money>,
}

/// What a message of a provider said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum HeardKind {
    Paid,
    NotPaid,
    Stands(Standing),
    Refunded,
    Disputed,
    DisputeEnded(bool),
}

impl Subscription {
    /// What is known, if there is or was one.
    pub fn details(&self) -> Option<&Details> {
        match self {
            Self::Absent => None,
            Self::Known(details) => Some(details),
        }
    }

    /// Whether it has begun and not ended.
    fn is_live(&self) -> bool {
        self.details().is_some_and(|details| details.status.is_live())
    }

    fn evolve(&mut self, event: Event) {
        match (self, event) {
            (this, Event::Started { pinned, quantity, billing, time_zone, trial, period }) => {
                let status = if trial.is_some() { Status::Trialing } else { Status::Active };
                let mut details = Details {
                    status,
                    pinned,
                    quantity,
                    billing,
                    time_zone,
                    trial,
                    reminded: false,
                    schedule: None,
                    period: None,
                    scheduled: None,
                    payment_method: None,
                    customer: None,
                    provider_subscription: None,
                    stopped: None,
                    marks: Marks::default(),
                    paid_in_part: 0,
                    held: None,
                    paid_for: None,
                    unpaid: 0,
                    unpaid_changes: 0,
                    prorated_from: None,
                    heard: BTreeMap::new(),
                };
                details.go_on(period);
                *this = Self::Known(Box::new(details));
            }
            (Self::Known(details), event) => details.evolve(event),
            (Self::Absent, _) => {}
        }
    }
}

impl Details {
    /// Takes up a period; the first one, and one after a period of another length, are where all others come from.
    fn enter(&mut self, period: Option<Period>) {
        let Some(period) = period else { return };
        self.period = Some(period);
        self.schedule.get_or_insert_with(|| Schedule::beginning(period.start, self.billing, self.time_zone));
    }

    /// Has the periods begin anew with the next one that is entered.
    fn leave_schedule(&mut self, pinned: &Pinned) {
        if pinned.terms.interval != self.pinned.terms.interval {
            self.schedule = None;
        }
    }

    fn evolve(&mut self, event: Event) {
        match event {
            Event::Started { .. } => {}
            Event::TrialExtended { trial } => {
                self.trial = Some(trial);
                self.reminded = false;
            }
            Event::TrialEnding { ends_at: _ } => self.reminded = true,
            Event::TrialConverted { period } => {
                self.status = Status::Active;
                self.go_on(Some(period));
            }
            Event::Paused { reason, at } => {
                self.status = Status::Paused;
                self.stopped = Some((Some(reason), at));
                self.scheduled = None;
            }
            Event::Resumed { period } => self.activate(Some(period)),
            Event::Activated { period } => {
                self.activate(period);
                // What has made it active is the payment of that period.
                self.unpaid = 0;
            }
            Event::PlanChanged { from: _, pinned, proration, period, over_limit: _ } => {
                self.leave_schedule(&pinned);
                self.pinned = pinned;
                self.scheduled = None;
                self.owe(proration);
                self.enter(period);
            }
            Event::LimitsHeld { limits, at, due, within_period, base_unpaid } => {
                self.hold(limits, at, due, within_period, !base_unpaid);
            }
            Event::LimitsReleased { paid } => {
                self.held = None;
                self.unpaid_changes = if paid { 0 } else { self.unpaid_changes };
            }
            Event::ChangeDeclined { .. } => self.go_back(),
            Event::PlanChangeScheduled { pinned, at, over_limit: _ } => self.scheduled = Some((pinned, at)),
            Event::ScheduledChangeCancelled => self.scheduled = None,
            Event::QuantityChanged { from: _, to, proration } => {
                self.quantity = to;
                self.owe(proration);
            }
            Event::PeriodRenewed { period } => self.go_on(Some(period)),
            Event::CancelScheduled { at: _ } => self.status = Status::CancelScheduled,
            Event::Uncancelled => self.status = Status::Active,
            Event::Cancelled { at: _ } => self.end(Status::Cancelled),
            Event::Expired { at: _ } => self.end(Status::Expired),
            Event::PaymentSucceeded { provider_event_id, occurred_at, amount, invoice, partial, overage: _, paid_for } => {
                self.remember(provider_event_id, HeardKind::Paid, occurred_at, amount);
                if let Some(invoice) = invoice {
                    self.remember(invoice, HeardKind::Paid, occurred_at, amount);
                }
                if partial {
                    let amount = amount.map_or(0, |amount| amount.amount);
                    self.paid_in_part += amount;
                    self.unpaid -= amount;
                } else {
                    self.paid_in_full(paid_for);
                    self.marks.note_payment(occurred_at);
                }
            }
            Event::PaymentFailed { provider_event_id, occurred_at, amount } => {
                self.remember(provider_event_id, HeardKind::NotPaid, occurred_at, amount);
                self.marks.note(Standing::PastDue, occurred_at);
            }
            Event::StandingReported { provider_event_id, occurred_at, standing } => {
                self.remember(provider_event_id, HeardKind::Stands(standing), occurred_at, None);
                self.marks.note(standing, occurred_at);
            }
            Event::PaymentRefunded { provider_event_id, occurred_at, amount } => {
                self.remember(provider_event_id, HeardKind::Refunded, occurred_at, amount);
            }
            Event::PaymentDisputed { provider_event_id, occurred_at, amount } => {
                self.remember(provider_event_id, HeardKind::Disputed, occurred_at, amount);
            }
            Event::DisputeClosed { provider_event_id, occurred_at, amount, lost } => {
                self.remember(provider_event_id, HeardKind::DisputeEnded(lost), occurred_at, amount);
                if lost {
                    self.marks.note(Standing::PastDue, occurred_at);
                }
            }
            Event::BecamePastDue => self.status = Status::PastDue,
            Event::MarkedUnpaid { at, requested } => {
                self.status = Status::Unpaid;
                self.stopped = Some((None, at));
                if requested {
                    self.marks.note(Standing::Unpaid, at);
                }
            }
            Event::PaymentMethodSet { reference, occurred_at, in_use } => {
                self.marks.set_method(reference, occurred_at);
                self.payment_method = in_use;
            }
            Event::PaymentMethodRemoved { reference, occurred_at, in_use } => {
                self.marks.remove_method(reference, occurred_at);
                self.payment_method = in_use;
            }
            Event::CustomerLinked { provider, customer } => self.customer = Some((provider, customer)),
            Event::ProviderLinked { provider: _, subscription } => self.provider_subscription = Some(subscription),
        }
    }

    fn activate(&mut self, period: Option<Period>) {
        self.status = Status::Active;
        self.stopped = None;
        self.paid_in_part = 0;
        self.go_on(period);
    }

    /// Takes up a period that is to be paid. What waits for a payment waits for that one too.
    fn go_on(&mut self, period: Option<Period>) {
        let begins = period.filter(|_| self.period != period);
        self.enter(period);
        if let Some(period) = begins {
            let charge = self.first_charge(&self.pinned, period).amount;
            self.unpaid = self.unpaid.saturating_add(charge);
            self.held.iter_mut().for_each(|held| held.due = held.due.saturating_add(charge));
        }
    }

    /// Notes what a change within the period is worth.
    fn owe(&mut self, proration: Option<Proration>) {
        let net = proration.map_or(0, |it| it.charge.amount.saturating_sub(it.credit.amount));
        self.unpaid = self.unpaid.saturating_add(net);
        self.unpaid_changes = self.unpaid_changes.saturating_add(net).max(0);
        let from = self.period.zip(proration).map(|(period, proration)| period.end - TimeDelta::seconds(proration.seconds_left));
        self.prorated_from = from.or(self.prorated_from);
    }

    /// What its plan says of a meter.
    pub fn entitlement(&self, meter: Meter) -> Entitlement {
        self.pinned.terms.entitlements.get(&meter).copied().unwrap_or(Entitlement::of(0))
    }

    fn end(&mut self, status: Status) {
        self.status = status;
        self.scheduled = None;
        self.stopped = None;
    }

    fn remember(&mut self, id: String, what: HeardKind, at: DateTime<Utc>, amount: Option<Money>) {
        self.heard.insert(id, Heard { what, at, amount });
    }

    /// Whether it is paused for this.
    pub fn is_paused_for(&self, reason: PauseReason) -> bool {
        self.status == Status::Paused && matches!(self.stopped, Some((Some(why), _)) if why == reason)
    }

    /// The period in which it goes on at a time, and the beginning of a period from which its boundaries are counted; `None` where both begin at that time.
    pub fn period_at(&self, now: DateTime<Utc>) -> Option<(Period, DateTime<Utc>)> {
        let begins = || (self.billing == Billing::Calendar).then(|| Schedule::beginning(now, self.billing, self.time_zone));
        let schedule = self.schedule.or_else(begins)?;
        Some((self.period_now(now), schedule.anchor()))
    }

    /// As it was at an earlier time, for a provider that is told one change after the other: with what it is paid with, and what the provider calls it, now.
    #[must_use]
    pub fn as_then(&self, then: &Self) -> Self {
        let Self { payment_method, customer, provider_subscription, .. } = self.clone();
        Self { payment_method, customer, provider_subscription, ..then.clone() }
    }

    /// Whether its periods begin with the calendar's months.
    pub fn follows_calendar(&self) -> bool {
        self.billing == Billing::Calendar
    }

    /// The timers that are set while it is so.
    fn timers(&self) -> BTreeMap<&'static str, DateTime<Utc>> {
        let trial = self.trial.filter(|_| self.status == Status::Trialing);
        let reminder = trial.and_then(|trial| trial.remind_at).filter(|_| !self.reminded);
        let period = self.period.filter(|_| self.status.runs());
        let expiry = self.stopped.map(|(_, since)| since + EXPIRY);
        let timers = [
            (TRIAL_TIMER, trial.map(|trial| trial.ends_at)),
            (REMINDER_TIMER, reminder),
            (PERIOD_TIMER, period.map(|period| period.end)),
            (EXPIRY_TIMER, expiry),
        ];
        timers.into_iter().filter_map(|(name, due)| due.map(|due| (name, due))).collect()
    }
}

crate::aggregate!(Subscription, "subscription", Command, Event, Error);

impl crate::Aggregate for Subscription {
    type Ask = Command;

    const EVENTS: &'static [EventKind] = Event::KINDS;

    const UPCASTERS: &'static [Upcaster] = event::UPCASTERS;

    const PERSONAL: bool = false;

    /// Paying is what brings a closed tenant back.
    fn gated(_: &Command) -> bool {
        false
    }

    fn looks_up(&self, command: &Command) -> Vec<Lookup> {
        let mut plan = None;
        if let Command::Start(StartSubscription { plan: code, .. }) | Command::ChangePlan(ChangePlan { plan: code, .. }) = command {
            plan = Some(Lookup::Plan(code.as_str().to_owned()));
        }
        let renews = matches!(command, Command::RenewPeriod(_)) && self.details().is_some_and(|details| details.scheduled.is_some());
        let changes = renews || matches!(command, Command::ChangePlan(_) | Command::ChangeQuantity(_));
        let used = changes.then(|| Meter::ALL.map(Lookup::Used));
        let tenant = matches!(command, Command::Start(_)).then_some(Lookup::Subscribable);
        let ceiling = changes.then_some(Lookup::UnpaidCeiling);
        plan.into_iter().chain(tenant).chain(ceiling).chain(used.into_iter().flatten()).collect()
    }

    fn decide(&self, issued: Issued<Command>) -> Result<Vec<Event>, Error> {
        match self {
            Self::Absent => rules::begin(issued.command, &issued.ctx),
            Self::Known(details) => details.decide(issued),
        }
    }

    fn effects(&self, event: &Event) -> Vec<Effect> {
        let mut after = self.clone();
        after.evolve(event.clone());
        let mut effects = Vec::new();
        let base = || "base".to_owned();
        match (self.is_live(), after.is_live()) {
            (false, true) => effects.push(Effect::TakeClaim { claim: LIVE, label: base(), value: Some(BASE.to_owned()) }),
            (true, false) => effects.push(Effect::ReleaseClaim { claim: LIVE, label: base() }),
            (false, false) | (true, true) => {}
        }
        if let Event::Started { trial: Some(_), .. } = event {
            effects.push(Effect::TakeClaim { claim: TRIAL, label: base(), value: Some(BASE.to_owned()) });
        }
        if let Event::CustomerLinked { provider, customer } = event {
            let value = Some(format!("{provider}:{customer}"));
            effects.push(Effect::TakeClaim { claim: CUSTOMER, label: "customer".to_owned(), value });
        }
        // Whose plan or quantity changes has limits set, also where they come to the same.
        let given = |subscription: &Self| {
            let details = subscription.details()?;
            Some((details.pinned.terms.entitlements.clone(), details.quantity, details.in_force()))
        };
        if let Some((.., limits)) = given(&after).filter(|now| after.is_live() && given(self).as_ref() != Some(now)) {
            effects.extend(meter::in_force(&limits));
        }
        let timers = |subscription: &Self| subscription.details().map(Details::timers).unwrap_or_default();
        let (were, are) = (timers(self), timers(&after));
        let gone = were.keys().filter(|name| !are.contains_key(*name));
        effects.extend(gone.map(|name| Effect::CancelTimer { name: (*name).to_owned() }));
        let set = are.iter().filter(|(name, due)| were.get(*name) != Some(due));
        effects.extend(set.map(|(name, due)| Effect::SetTimer { name: (*name).to_owned(), due: *due }));
        effects
    }

    fn timer(name: &str) -> Option<Command> {
        match name {
            TRIAL_TIMER => Some(ConvertTrial {}.into()),
            REMINDER_TIMER => Some(RemindOfTrialEnd {}.into()),
            PERIOD_TIMER => Some(RenewPeriod {}.into()),
            EXPIRY_TIMER => Some(ExpireSubscription {}.into()),
            _ => None,
        }
    }

    fn refused(refusal: &Refusal) -> Option<Error> {
        let Refusal::ClaimTaken { namespace } = refusal else { return None };
        match namespace.as_str() {
            name if name == LIVE.namespace => Some(Error::AnotherIsLive),
            name if name == TRIAL.namespace => Some(Error::TrialUsed),
            _ => None,
        }
    }
}
