//! Every rule about subscriptions.

use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};

use super::{
    AHEAD, Command, Details, EXPIRY, Error, Event, Fact, Heard, HeardKind, PaidFor, PaidItem, PauseReason, Pinned, Proration, REMINDER,
    Report, Standing, StartSubscription, Status, Trial, When,
};
use crate::Actor;
use crate::aggregate::{Ask as _, Context, Found, Issued, changed};
use crate::billing::meter::{Entitlements, Meter};
use crate::billing::money::Money;
use crate::billing::period::{Period, Schedule};
use crate::instant::Instant;

/// The longest trial, in days, and how far ahead one is extended.
const MAX_TRIAL: u16 = 365;
/// How long ago the first period of an invoice may have begun that pays it now.
const FRESH: TimeDelta = TimeDelta::days(3);
/// How many times a plan can be subscribed to.
const MAX_QUANTITY: u32 = 10_000;

/// The plan of this code, as it can be subscribed to now.
fn offered(code: &str, found: &Found) -> Result<Pinned, Error> {
    let offer = found.plans.get(code).ok_or_else(|| Error::NoSuchPlan { code: code.to_owned() })?;
    if offer.retired {
        return Err(Error::PlanRetired { code: code.to_owned() });
    }
    Ok(Pinned { plan: offer.plan, code: code.to_owned(), version: offer.version, terms: offer.terms.clone() })
}

fn trial(ends_at: DateTime<Utc>, now: DateTime<Utc>) -> Trial {
    Trial { ends_at, remind_at: Some(ends_at - REMINDER).filter(|at| *at > now) }
}

/// What is tried for nothing is tried once.
const ONE_TRIAL: Error = Error::OutOfBounds { what: "only the platform lets more than one be tried" };

/// What costs nothing is had once.
const ONE_FREE: Error = Error::OutOfBounds { what: "only the platform gives more than one of a plan that costs nothing" };

fn in_bounds(quantity: u32) -> Result<u32, Error> {
    let fine = (1..=MAX_QUANTITY).contains(&quantity);
    if fine { Ok(quantity) } else { Err(Error::OutOfBounds { what: "a plan is subscribed to 1 to 10000 times" }) }
}

/// The meters of which more is used than these would give, with how much of each is used and how much would be given.
fn over(entitlements: &Entitlements, quantity: u32, found: &Found) -> Vec<(Meter, i64, i64)> {
    let limit = |meter: Meter| entitlements.get(&meter).map_or(0, |entitlement| entitlement.hard_limit(quantity));
    let used = |meter: Meter| found.used.get(&meter).copied().unwrap_or(0);
    Meter::ALL.into_iter().map(|meter| (meter, used(meter), limit(meter))).filter(|(_, used, limit)| used > limit).collect()
}

fn fits(entitlements: &Entitlements, quantity: u32, found: &Found) -> Result<(), Error> {
    match over(entitlements, quantity, found).first() {
        None => Ok(()),
        Some((meter, used, limit)) => Err(Error::OverLimit { meter: meter.to_string(), used: *used, limit: *limit }),
    }
}

/// The rules of a subscription that is not there yet.
pub(super) fn begin(command: Command, ctx: &Context) -> Result<Vec<Event>, Error> {
    let Command::Start(c) = command else { return Err(Error::NotFound) };
    let StartSubscription { id: _, plan, trial_days, billing, time_zone, currency, quantity } = c;
    if ctx.found.subscribable == Some(false) {
        return Err(Error::TenantClosed);
    }
    let pinned = offered(plan.as_str(), &ctx.found)?;
    if currency.is_some_and(|currency| currency != pinned.terms.price.currency) {
        return Err(Error::CurrencyFixed);
    }
    let quantity = in_bounds(quantity)?;
    if pinned.is_free() && quantity > 1 && !ctx.actor.may("subscription:manage") {
        return Err(ONE_FREE);
    }
    let days = trial_days.unwrap_or(pinned.terms.trial_days);
    if days > MAX_TRIAL {
        return Err(Error::OutOfBounds { what: "a trial lasts 365 days at most" });
    }
    let platform = ctx.actor.may("subscription:manage");
    if days > pinned.terms.trial_days && !platform {
        return Err(Error::OutOfBounds { what: "only the platform gives a longer trial than the plan does" });
    }
    if days > 0 && quantity > 1 && !platform {
        return Err(ONE_TRIAL);
    }
    let trial = (days > 0).then(|| trial(ctx.now + TimeDelta::days(days.into()), ctx.now));
    let schedule = Schedule::beginning(ctx.now, billing, time_zone);
    // A tenant that subscribes without a trial gets what it pays for once it is paid, or at once where there is nothing to pay; the platform may decide otherwise.
    let trusted = platform || pinned.is_free();
    let period = (trial.is_none() && trusted).then(|| schedule.rest_from(ctx.now, pinned.terms.interval));
    let waits = (trial.is_none() && !trusted).then(|| pause(PauseReason::NoPaymentMethod, ctx.now));
    Ok([Event::Started { pinned, quantity, billing, time_zone, trial, period }].into_iter().chain(waits).collect())
}

impl Details {
    pub(super) fn decide(&self, Issued { command, ctx }: Issued<Command>) -> Result<Vec<Event>, Error> {
        let not_now = Error::NotWhile { command: command.name(), status: self.status };
        let status = self.status;
        // Where the provider's messages and what is asked meet: what was heard meanwhile counts as soon as it can.
        let settled = |events: Vec<Event>| self.settled(events, ctx.now, None);
        match command {
            Command::Start(_) => Err(Error::AlreadyExists),
            // What is heard of payments is recorded in every status; what follows from it depends on that.
            Command::RecordPaymentSucceeded(c) => self.reported(
                self.payment(c.0, |amount| Fact::Paid { amount, invoice: None, items: None, overage: vec![] })?,
                ctx.now,
                true,
            ),
            Command::RecordPaymentFailed(c) => self.reported(self.payment(c.0, Fact::NotPaid)?, ctx.now, true),
            Command::Report(report) => self.reported(report, ctx.now, false),
            Command::SetPaymentMethod(c) => {
                let reference = String::from(c.reference);
                Ok(changed(self.payment_method.as_ref() != Some(&reference), || self.method_set(reference, self.marks.not_before(ctx.now))))
            }
            Command::LinkCustomer(c) => {
                // The first one is kept: what was set up to pay with belongs to it.
                let known = self.customer.as_ref().is_some_and(|(provider, _)| provider == c.provider.as_str());
                Ok(changed(!known, || Event::CustomerLinked { provider: c.provider.into(), customer: c.customer.into() }))
            }
            Command::LinkProvider(c) => Ok(changed(self.provider_subscription.as_deref() != Some(c.subscription.as_str()), || {
                Event::ProviderLinked { provider: c.provider.into(), subscription: c.subscription.into() }
            })),
            Command::ExtendTrial(c) if status == Status::Trialing => {
                let end = self.trial.map_or(ctx.now, |trial| trial.ends_at);
                match c.until.time() {
                    until if until == end => Ok(vec![]),
                    until if until < end || until <= ctx.now || until > ctx.now + TimeDelta::days(MAX_TRIAL.into()) => {
                        Err(Error::OnlyForward)
                    }
                    until => Ok(vec![Event::TrialExtended { trial: trial(until, ctx.now) }]),
                }
            }
            Command::RemindOfTrialEnd(_) if status == Status::Trialing => match self.trial {
                Some(Trial { ends_at, remind_at: Some(at) }) if at <= ctx.now => {
                    Ok(changed(!self.reminded, || Event::TrialEnding { ends_at }))
                }
                Some(_) | None => Err(Error::NotDue),
            },
            Command::ConvertTrial(_) if status == Status::Trialing => self.end_trial(&ctx).map(settled),
            Command::ConvertTrial(_) | Command::Resume(_) if status == Status::Active => Ok(vec![]),
            // Where there is nothing to pay it goes on.
            Command::EndTrialWithoutPayment(_) if status == Status::Trialing && self.pinned.is_free() => self.end_trial(&ctx).map(settled),
            Command::EndTrialWithoutPayment(_) if status == Status::Trialing => {
                // Who could pay is not charged for what they were not to get.
                let reason = if self.payment_method.is_some() { PauseReason::Requested } else { PauseReason::NoPaymentMethod };
                Ok(settled(vec![pause(reason, ctx.now)]))
            }
            Command::EndTrialWithoutPayment(_) | Command::Pause(_) if status == Status::Paused => Ok(vec![]),
            Command::ChangePlan(c) if matches!(status, Status::Trialing | Status::Active) => {
                self.change_plan(c.plan.as_str(), c.when, &ctx)
            }
            Command::CancelScheduledChange(_) if status.is_live() => Ok(self.unscheduled().into_iter().collect()),
            Command::ChangeQuantity(c) if matches!(status, Status::Trialing | Status::Active) => self.change_quantity(c.quantity, &ctx),
            Command::Pause(_) if status == Status::Active => {
                Ok(self.unscheduled().into_iter().chain([pause(PauseReason::Requested, ctx.now)]).collect())
            }
            Command::Resume(_) if status == Status::Paused => {
                if self.is_paused_for(PauseReason::NoPaymentMethod) && self.payment_method.is_none() && !self.pinned.is_free() {
                    return Err(Error::NoPaymentMethod);
                }
                Ok(settled(vec![Event::Resumed { period: self.period_now(ctx.now) }]))
            }
            Command::Cancel(_) if status == Status::Cancelled => Ok(vec![]),
            Command::Cancel(c) if status.is_live() => self.cancel(c.when, ctx.now),
            Command::Uncancel(_) if status == Status::CancelScheduled => Ok(settled(vec![Event::Uncancelled])),
            Command::Uncancel(_) if status.is_live() => Ok(vec![]),
            Command::RenewPeriod(_) if status.runs() => self.renew(&ctx),
            Command::MarkUnpaid(_) if status == Status::CancelScheduled && self.marks.standing() != Standing::Active => {
                Ok(vec![Event::MarkedUnpaid { at: ctx.now, requested: true }])
            }
            Command::MarkUnpaid(_) if status == Status::PastDue => Ok(vec![Event::MarkedUnpaid { at: ctx.now, requested: true }]),
            Command::MarkUnpaid(_) if status == Status::Unpaid => Ok(vec![]),
            Command::TakeBackChange(_) => Ok(self.declined().into_iter().collect()),
            Command::Expire(_) => match self.stopped {
                Some((_, since)) if since + EXPIRY <= ctx.now => Ok(vec![Event::Expired { at: ctx.now }]),
                Some(_) | None => Err(Error::NotDue),
            },
            Command::ExtendTrial(_)
            | Command::RemindOfTrialEnd(_)
            | Command::ConvertTrial(_)
            | Command::EndTrialWithoutPayment(_)
            | Command::ChangePlan(_)
            | Command::CancelScheduledChange(_)
            | Command::ChangeQuantity(_)
            | Command::Pause(_)
            | Command::Resume(_)
            | Command::Cancel(_)
            | Command::Uncancel(_)
            | Command::RenewPeriod(_)
            | Command::MarkUnpaid(_) => Err(not_now),
        }
    }

    fn cancel(&self, when: When, now: DateTime<Utc>) -> Result<Vec<Event>, Error> {
        match (when, self.period) {
            (When::Now, _) => Ok(vec![Event::Cancelled { at: now }]),
            (When::PeriodEnd, Some(period)) if matches!(self.status, Status::Active | Status::PastDue) => {
                Ok(self.unscheduled().into_iter().chain([Event::CancelScheduled { at: period.end }]).collect())
            }
            (When::PeriodEnd, _) if self.status == Status::CancelScheduled => Ok(vec![]),
            (When::PeriodEnd, _) => Err(Error::NoPeriod),
        }
    }

    /// That no other plan begins with the next period, if one was to.
    fn unscheduled(&self) -> Option<Event> {
        self.scheduled.is_some().then_some(Event::ScheduledChangeCancelled)
    }

    /// The trial's end: with something to pay with, or nothing to pay, it goes on, paid for from that moment; otherwise it is paused. Before its time only by those who can pay.
    fn end_trial(&self, ctx: &Context) -> Result<Vec<Event>, Error> {
        let end = self.trial.map_or(ctx.now, |trial| trial.ends_at);
        let due = end <= ctx.now;
        match (self.payment_method.is_some() || self.pinned.is_free(), due) {
            (true, _) => {
                // Paid for from the moment at which it ended, however late its timer was.
                let start = end.min(ctx.now);
                let schedule = Schedule::beginning(start, self.billing, self.time_zone);
                Ok(vec![Event::TrialConverted { period: schedule.rest_from(start, self.pinned.terms.interval) }])
            }
            (false, true) => Ok(vec![pause(PauseReason::NoPaymentMethod, ctx.now)]),
            (false, false) if matches!(ctx.actor, Actor::System { .. }) => Err(Error::NotDue),
            (false, false) => Err(Error::NoPaymentMethod),
        }
    }

    fn change_quantity(&self, quantity: u32, ctx: &Context) -> Result<Vec<Event>, Error> {
        let to = in_bounds(quantity)?;
        let platform = ctx.actor.may("subscription:manage");
        if self.status == Status::Trialing && to > self.quantity && !platform {
            return Err(ONE_TRIAL);
        }
        if self.pinned.is_free() && to > self.quantity && !platform {
            return Err(ONE_FREE);
        }
        let back = self.held.as_ref().is_none_or(|held| to == held.before.quantity && self.pinned == held.before.pinned);
        if to != self.quantity && !back {
            return Err(Error::ChangeWaits);
        }
        if to < self.quantity {
            fits(&self.pinned.terms.entitlements, to, &ctx.found)?;
        }
        let proration = self.prorated(&self.pinned, to, ctx.now);
        let events = changed(to != self.quantity, || Event::QuantityChanged { from: self.quantity, to, proration });
        Ok(self.given_when_paid(events, ctx.now, ctx))
    }

    fn change_plan(&self, code: &str, when: When, ctx: &Context) -> Result<Vec<Event>, Error> {
        let mut pinned = offered(code, &ctx.found)?;
        if let Some(held) = &self.held {
            // Back to just what it was; where the period is another one, the provider decides.
            let before = &held.before;
            let same = self.provider_subscription.is_none() || before.pinned.terms.interval == self.pinned.terms.interval;
            if pinned.plan == self.pinned.plan {
                pinned = self.pinned.clone();
            } else if when == When::Now && same && (pinned.plan, self.quantity) == (before.pinned.plan, before.quantity) {
                pinned = before.pinned.clone();
            } else {
                return Err(Error::ChangeWaits);
            }
        }
        if pinned.is_free() && self.quantity > 1 && !ctx.actor.may("subscription:manage") {
            return Err(ONE_FREE);
        }
        if pinned.terms.price.currency != self.pinned.terms.price.currency {
            return Err(Error::CurrencyFixed);
        }
        let trial_days = pinned.terms.trial_days;
        if self.status == Status::Trialing && trial_days < self.pinned.terms.trial_days && !ctx.actor.may("subscription:manage") {
            return Err(Error::OutOfBounds { what: "that plan cannot be tried for so long; convert the trial first" });
        }
        if self.begins_to_cost(&pinned) && !ctx.actor.may("subscription:manage") {
            return Err(Error::NoPaymentMethod);
        }
        match (when, self.period) {
            (When::Now, _) if pinned == self.pinned => Ok(self.unscheduled().into_iter().collect()),
            // A provider's new period would begin at the change, and the calendar's does not end there.
            (When::Now, _)
                if self.follows_calendar()
                    && self.provider_subscription.is_some()
                    && pinned.terms.interval != self.pinned.terms.interval =>
            {
                Err(Error::IntervalWithPeriod)
            }
            (When::Now, _) => {
                fits(&pinned.terms.entitlements, self.quantity, &ctx.found)?;
                let interval = pinned.terms.interval;
                // A period of another length begins at once; what is left of the old one is given back.
                let other = self.period.is_some() && interval != self.pinned.terms.interval;
                let period = other.then(|| Schedule::beginning(ctx.now, self.billing, self.time_zone).rest_from(ctx.now, interval));
                let proration = self.prorated(&pinned, self.quantity, ctx.now);
                let proration = proration.map(|it| match period {
                    Some(period) => Proration { charge: self.first_charge(&pinned, period), ..it },
                    None => it,
                });
                let changed = Event::PlanChanged { from: self.pinned.code.clone(), pinned, proration, period, over_limit: vec![] };
                Ok(self.given_when_paid(self.unscheduled().into_iter().chain([changed]).collect(), ctx.now, ctx))
            }
            (When::PeriodEnd, None) => Err(Error::NoPeriod),
            (When::PeriodEnd, Some(_)) if self.scheduled.as_ref().is_some_and(|(scheduled, _)| *scheduled == pinned) => Ok(vec![]),
            (When::PeriodEnd, Some(_)) if pinned == self.pinned => Ok(self.unscheduled().into_iter().collect()),
            (When::PeriodEnd, Some(period)) => {
                let over_limit = over(&pinned.terms.entitlements, self.quantity, &ctx.found).into_iter().map(|(meter, ..)| meter).collect();
                Ok(vec![Event::PlanChangeScheduled { pinned, at: period.end, over_limit }])
            }
        }
    }

    /// Whether a change to this plan makes something of nothing to pay, with nothing to pay with. A trial pays when it ends.
    fn begins_to_cost(&self, pinned: &Pinned) -> bool {
        self.status != Status::Trialing && self.pinned.is_free() && !pinned.is_free() && self.payment_method.is_none()
    }

    /// What the present period costs.
    pub fn charge(&self) -> Option<Money> {
        self.period.map(|period| self.first_charge(&self.pinned, period))
    }

    /// What a period costs: where it is shorter than a whole one, as much less, by the second.
    pub(super) fn first_charge(&self, pinned: &Pinned, period: Period) -> Money {
        let whole = self.schedule_of(period).whole(period, pinned.terms.interval);
        pinned.terms.price.share(self.quantity, period.seconds(), whole.seconds())
    }

    /// The schedule that a period is of: the present one, or that of a period that begins another one.
    fn schedule_of(&self, period: Period) -> Schedule {
        let begins_anew = self.schedule.is_none_or(|schedule| !schedule.has_boundary(period.end));
        self.schedule.filter(|_| !begins_anew).unwrap_or_else(|| Schedule::beginning(period.start, self.billing, self.time_zone))
    }

    /// What the rest of the period is worth, before and after a change. By the second, as Stripe prorates.
    fn prorated(&self, pinned: &Pinned, quantity: u32, now: DateTime<Utc>) -> Option<Proration> {
        let period = self.period?;
        let whole = self.schedule_of(period).whole(period, self.pinned.terms.interval);
        let (seconds, seconds_left) = (whole.seconds(), period.seconds_left(now));
        let credit = self.pinned.terms.price.share(self.quantity, seconds_left, seconds);
        let charge = pinned.terms.price.share(quantity, seconds_left, seconds);
        Some(Proration { credit, charge, seconds_left, seconds })
    }

    /// The end of a period: the end of the subscription, or the next period, with the plan that was to begin with it.
    fn renew(&self, ctx: &Context) -> Result<Vec<Event>, Error> {
        let (Some(period), Some(schedule)) = (self.period, self.schedule) else { return Err(Error::NoPeriod) };
        if ctx.now < period.end {
            return Err(Error::NotDue);
        }
        if self.status == Status::CancelScheduled {
            return Ok(vec![Event::Cancelled { at: period.end }]);
        }
        let renewed = || Event::PeriodRenewed { period: schedule.from(period.end, self.pinned.terms.interval) };
        let Some((pinned, _)) = self.scheduled.clone() else { return Ok(vec![renewed()]) };
        if self.begins_to_cost(&pinned) {
            return Ok(vec![Event::ScheduledChangeCancelled, renewed()]);
        }
        let same = pinned.terms.interval == self.pinned.terms.interval;
        let schedule = if same { schedule } else { Schedule::beginning(period.end, self.billing, self.time_zone) };
        let next =
            if same { schedule.from(period.end, pinned.terms.interval) } else { schedule.rest_from(period.end, pinned.terms.interval) };
        let over_limit = over(&pinned.terms.entitlements, self.quantity, &ctx.found).into_iter().map(|(meter, ..)| meter).collect();
        let changed = Event::PlanChanged { from: self.pinned.code.clone(), pinned, proration: None, period: None, over_limit };
        // However late the timer is: what was paid for the next period may have been heard of before.
        let events = self.given_when_paid(vec![changed, Event::PeriodRenewed { period: next }], period.end, ctx);
        Ok(self.settled(events, ctx.now, None))
    }

    /// The period in which it goes on now: the one that it was in while that lasts, otherwise what is left of the one that would have come.
    pub(super) fn period_now(&self, now: DateTime<Utc>) -> Period {
        match (self.period, self.schedule) {
            (Some(period), _) if now < period.end => period,
            (_, Some(schedule)) => schedule.rest_from(now, self.pinned.terms.interval),
            (_, None) => Schedule::beginning(now, self.billing, self.time_zone).rest_from(now, self.pinned.terms.interval),
        }
    }

    /// What a provider's message, or a payment that was recorded by hand, comes to: it is recorded once, and what follows from all that were heard so far happens. A payment by
    /// hand is compared with what is owed; an invoice that the provider calls paid is paid.
    fn reported(&self, report: Report, now: DateTime<Utc>, by_hand: bool) -> Result<Vec<Event>, Error> {
        let Report { provider_event_id, occurred_at, fact } = report;
        let (provider_event_id, occurred_at) = (String::from(provider_event_id), occurred_at.time());
        if occurred_at > now + AHEAD {
            return Err(Error::InTheFuture);
        }
        let (what, amount) = match &fact {
            Fact::MethodSet(reference) => {
                let reference = String::from(reference.clone());
                return Ok(changed(self.marks.is_newer(occurred_at, &reference), || self.method_set(reference, occurred_at)));
            }
            Fact::MethodRemoved(reference) => {
                let reference = String::from(reference.clone());
                return Ok(changed(!self.marks.is_removed(&reference, occurred_at), || {
                    let mut marks = self.marks.clone();
                    marks.remove_method(reference.clone(), occurred_at);
                    Event::PaymentMethodRemoved { reference, occurred_at, in_use: marks.method().cloned() }
                }));
            }
            Fact::Paid { amount, .. } => (HeardKind::Paid, *amount),
            Fact::NotPaid(amount) => (HeardKind::NotPaid, *amount),
            Fact::Stands(standing) => (HeardKind::Stands(*standing), None),
            Fact::Refunded(amount) => (HeardKind::Refunded, *amount),
            Fact::Disputed(amount) => (HeardKind::Disputed, *amount),
            Fact::DisputeClosed { amount, lost } => (HeardKind::DisputeEnded(*lost), *amount),
        };
        match self.heard.get(&provider_event_id) {
            Some(heard) if *heard == (Heard { what, at: occurred_at, amount }) => return Ok(vec![]),
            Some(_) => return Err(Error::PaymentDiffers),
            None => {}
        }
        // A first period begins where the invoice that pays it says, so that it ends where the provider's does.
        let told_items = matches!(&fact, Fact::Paid { items: Some(_), .. });
        let items = if let Fact::Paid { items: Some((items, _)), .. } = &fact { &**items } else { &[] };
        let begins = items.iter().filter_map(|item| item.from).map(Instant::time).max();
        let begins = begins.filter(|from| *from <= now && *from > now - FRESH);
        let event = match fact {
            // A trial begins with an invoice over nothing.
            Fact::Paid { .. } if self.status == Status::Trialing && amount.is_some_and(|amount| amount.amount == 0) => return Ok(vec![]),
            Fact::Paid { invoice: Some(invoice), .. } if self.heard.contains_key(invoice.as_str()) => return Ok(vec![]),
            Fact::Paid { amount, invoice, items, overage } => {
                let paid_for = items.and_then(|(items, made)| paid_for(&items, made));
                let partial = by_hand && amount.is_some_and(|amount| self.paid_in_part + amount.amount < self.owed(now).amount);
                Event::PaymentSucceeded {
                    provider_event_id,
                    occurred_at,
                    amount,
                    invoice: invoice.map(String::from),
                    partial,
                    overage,
                    paid_for,
                }
            }
            Fact::NotPaid(amount) => Event::PaymentFailed { provider_event_id, occurred_at, amount },
            Fact::Stands(standing) => Event::StandingReported { provider_event_id, occurred_at, standing },
            Fact::Refunded(amount) => Event::PaymentRefunded { provider_event_id, occurred_at, amount },
            Fact::Disputed(amount) => Event::PaymentDisputed { provider_event_id, occurred_at, amount },
            Fact::DisputeClosed { amount, lost } => Event::DisputeClosed { provider_event_id, occurred_at, amount, lost },
            Fact::MethodSet(_) | Fact::MethodRemoved(_) => return Ok(vec![]),
        };
        // A payment that does not say what it is for is for all that is owed.
        let all = matches!(&event, Event::PaymentSucceeded { partial: false, paid_for: None, .. }) && !told_items;
        let released = (all && self.held.is_some() && self.status.is_live()).then_some(Event::LimitsReleased { paid: true });
        Ok(self.settled([event].into_iter().chain(released).collect(), now, begins))
    }

    /// What has to be paid before the subscription gives anything again, goes on giving it, or gives more: the period that it would go on in, the present one that is not paid, or
    /// what was changed within it.
    pub fn owed(&self, now: DateTime<Utc>) -> Money {
        let period = match self.status {
            Status::Paused if self.is_paused_for(PauseReason::NoPaymentMethod) => Some(self.period_now(now)),
            Status::PastDue | Status::Unpaid => self.period.or_else(|| Some(self.period_now(now))),
            Status::Trialing | Status::Active | Status::Paused | Status::CancelScheduled | Status::Cancelled | Status::Expired => None,
        };
        let of_period = period.map_or(0, |period| self.first_charge(&self.pinned, period).amount);
        let of_change = self.held.as_ref().map_or(0, |held| held.due);
        Money { amount: of_period.max(of_change), ..self.pinned.terms.price }
    }

    /// A payment that is recorded by hand.
    fn payment(&self, payment: super::RecordPayment, fact: impl FnOnce(Option<Money>) -> Fact) -> Result<Report, Error> {
        let super::RecordPayment { provider_event_id, occurred_at, amount } = payment;
        match amount {
            Some(amount) if amount.currency != self.pinned.terms.price.currency => Err(Error::WrongCurrency),
            Some(amount) if amount.amount < 0 => Err(Error::OutOfBounds { what: "a payment is not below zero" }),
            Some(_) | None => Ok(Report { provider_event_id, occurred_at, fact: fact(amount) }),
        }
    }

    fn method_set(&self, reference: String, occurred_at: DateTime<Utc>) -> Event {
        let mut marks = self.marks.clone();
        marks.set_method(reference.clone(), occurred_at);
        Event::PaymentMethodSet { reference, occurred_at, in_use: marks.method().cloned() }
    }

    /// The events, and what follows from them by what the provider has said.
    fn settled(&self, mut events: Vec<Event>, now: DateTime<Utc>, begins: Option<DateTime<Utc>>) -> Vec<Event> {
        let mut after = self.clone();
        events.iter().for_each(|event| after.evolve(event.clone()));
        while let Some(event) = after.settles(now, begins) {
            after.evolve(event.clone());
            events.push(event);
        }
        // A change of the plan follows the period that it waits for.
        if let (Some((pinned, at)), Some(period)) = (&after.scheduled, after.period)
            && *at != period.end
        {
            events.push(Event::PlanChangeScheduled { pinned: pinned.clone(), at: period.end, over_limit: vec![] });
        }
        events
    }

    /// The next step to where the provider says that it stands.
    fn settles(&self, now: DateTime<Utc>, begins: Option<DateTime<Utc>>) -> Option<Event> {
        let standing = self.marks.standing();
        let activated = || {
            let period = self.period_now(begins.unwrap_or(now));
            Event::Activated { period: (self.period != Some(period)).then_some(period) }
        };
        match (self.status, standing) {
            (Status::Cancelled | Status::Expired, _) => None,
            (_, Standing::Active) if self.is_change_paid() => Some(Event::LimitsReleased { paid: true }),
            (_, Standing::Ended) => Some(Event::Cancelled { at: now }),
            // Paid, not only said to be in order; and providers tell whole seconds.
            (Status::Paused, _) => match self.stopped {
                Some((Some(PauseReason::NoPaymentMethod), since)) if self.marks.payment >= Some(since.trunc_subsecs(0)) => {
                    Some(activated())
                }
                Some(_) | None => None,
            },
            (Status::Active, Standing::PastDue | Standing::Unpaid) => Some(Event::BecamePastDue),
            (Status::PastDue, Standing::Unpaid) => Some(Event::MarkedUnpaid { at: now, requested: false }),
            // One that stands past due now was paid after it was given up, and failed again after that.
            (Status::PastDue, Standing::Active) | (Status::Unpaid, Standing::Active | Standing::PastDue) => Some(activated()),
            (Status::Trialing | Status::CancelScheduled, _)
            | (Status::Active, Standing::Active)
            | (Status::PastDue, Standing::PastDue)
            | (Status::Unpaid, Standing::Unpaid) => None,
        }
    }
}

/// What of our plans an invoice is for.
fn paid_for(items: &[PaidItem], made: Instant) -> Option<PaidFor> {
    let PaidItem { plan, version, quantity, .. } = items.iter().find(|item| item.costs)?;
    Some(PaidFor { plan: *plan, version: *version, quantity: *quantity, made_at: made.time() })
}

fn pause(reason: PauseReason, at: DateTime<Utc>) -> Event {
    Event::Paused { reason, at }
}
