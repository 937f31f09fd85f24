//! Every rule about subscriptions.

use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};

use super::{
    Command, Details, EXPIRY, Error, Event, Fact, PauseReason, Pinned, Proration, REMINDER, Report, Standing, StartSubscription, Status,
    Trial, When,
};
use crate::Actor;
use crate::aggregate::{Ask as _, Context, Found, Issued, changed};
use crate::billing::meter::{Entitlements, Meter};
use crate::billing::period::{Period, Schedule};

/// The longest trial, in days, and how far ahead one is extended.
const MAX_TRIAL: u16 = 365;
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
    // Who subscribes without a trial gets what is paid for once it is paid; the platform may trust somebody.
    let period = (trial.is_none() && platform).then(|| schedule.rest_from(ctx.now, pinned.terms.interval));
    let waits = (trial.is_none() && !platform).then(|| pause(PauseReason::NoPaymentMethod, ctx.now));
    Ok([Event::Started { pinned, quantity, billing, time_zone, trial, period }].into_iter().chain(waits).collect())
}

impl Details {
    pub(super) fn decide(&self, Issued { command, ctx }: Issued<Command>) -> Result<Vec<Event>, Error> {
        let not_now = Error::NotWhile { command: command.name(), status: self.status };
        let status = self.status;
        // Where the provider's messages and what is asked meet: what was heard meanwhile counts as soon as it can.
        let settled = |events: Vec<Event>| self.settled(events, ctx.now);
        match command {
            Command::Start(_) => Err(Error::AlreadyExists),
            // What is heard of payments is recorded in every status; what follows from it depends on that.
            Command::RecordPaymentSucceeded(c) => Ok(self.reported(payment(c.0, Fact::Paid), ctx.now)),
            Command::RecordPaymentFailed(c) => Ok(self.reported(payment(c.0, Fact::NotPaid), ctx.now)),
            Command::Report(report) => Ok(self.reported(report, ctx.now)),
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
            Command::EndTrialWithoutPayment(_) if status == Status::Trialing => {
                // Who could pay is not charged for what they were not to get.
                let reason = if self.payment_method.is_some() { PauseReason::Requested } else { PauseReason::NoPaymentMethod };
                Ok(settled(vec![pause(reason, ctx.now)]))
            }
            Command::EndTrialWithoutPayment(_) | Command::Pause(_) if status == Status::Paused => Ok(vec![]),
            Command::ChangePlan(c) if matches!(status, Status::Trialing | Status::Active) => {
                self.change_plan(c.plan.as_str(), c.when, &ctx)
            }
            Command::CancelScheduledChange(_) if status.is_live() => {
                Ok(changed(self.scheduled.is_some(), || Event::ScheduledChangeCancelled))
            }
            Command::ChangeQuantity(c) if matches!(status, Status::Trialing | Status::Active) => {
                let to = in_bounds(c.quantity)?;
                if status == Status::Trialing && to > self.quantity && !ctx.actor.may("subscription:manage") {
                    return Err(ONE_TRIAL);
                }
                if to < self.quantity {
                    fits(&self.pinned.terms.entitlements, to, &ctx.found)?;
                }
                let proration = self.prorated(&self.pinned, to, ctx.now);
                Ok(changed(to != self.quantity, || Event::QuantityChanged { from: self.quantity, to, proration }))
            }
            Command::Pause(_) if status == Status::Active => Ok(vec![pause(PauseReason::Requested, ctx.now)]),
            Command::Resume(_) if status == Status::Paused => {
                if matches!(self.stopped, Some((Some(PauseReason::NoPaymentMethod), _))) && self.payment_method.is_none() {
                    return Err(Error::NoPaymentMethod);
                }
                Ok(settled(vec![Event::Resumed { period: self.period_now(ctx.now) }]))
            }
            Command::Cancel(_) if status == Status::Cancelled => Ok(vec![]),
            Command::Cancel(c) if status.is_live() => self.cancel(c.when, ctx.now),
            Command::Uncancel(_) if status == Status::CancelScheduled => Ok(settled(vec![Event::Uncancelled])),
            Command::Uncancel(_) if status.is_live() => Ok(vec![]),
            Command::RenewPeriod(_) if status.runs() => self.renew(&ctx),
            Command::MarkUnpaid(_) if status == Status::PastDue => Ok(vec![Event::MarkedUnpaid { at: ctx.now, requested: true }]),
            Command::MarkUnpaid(_) if status == Status::Unpaid => Ok(vec![]),
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
            (When::PeriodEnd, Some(period)) if self.status == Status::Active => {
                let kept = self.scheduled.is_some().then_some(Event::ScheduledChangeCancelled);
                Ok([kept, Some(Event::CancelScheduled { at: period.end })].into_iter().flatten().collect())
            }
            (When::PeriodEnd, _) if self.status == Status::CancelScheduled => Ok(vec![]),
            (When::PeriodEnd, _) => Err(Error::NoPeriod),
        }
    }

    /// The trial's end: with something to pay with it goes on, paid for from that moment; without it is paused. Before its time only by whoever can pay.
    fn end_trial(&self, ctx: &Context) -> Result<Vec<Event>, Error> {
        let end = self.trial.map_or(ctx.now, |trial| trial.ends_at);
        let due = end <= ctx.now;
        match (&self.payment_method, due) {
            (Some(_), _) => {
                // Paid for from the moment at which it ended, however late its timer was.
                let start = end.min(ctx.now);
                let schedule = Schedule::beginning(start, self.billing, self.time_zone);
                Ok(vec![Event::TrialConverted { period: schedule.rest_from(start, self.pinned.terms.interval) }])
            }
            (None, true) => Ok(vec![pause(PauseReason::NoPaymentMethod, ctx.now)]),
            (None, false) if matches!(ctx.actor, Actor::System { .. }) => Err(Error::NotDue),
            (None, false) => Err(Error::NoPaymentMethod),
        }
    }

    fn change_plan(&self, code: &str, when: When, ctx: &Context) -> Result<Vec<Event>, Error> {
        let pinned = offered(code, &ctx.found)?;
        if pinned.terms.price.currency != self.pinned.terms.price.currency {
            return Err(Error::CurrencyFixed);
        }
        let trial_days = pinned.terms.trial_days;
        if self.status == Status::Trialing && trial_days < self.pinned.terms.trial_days && !ctx.actor.may("subscription:manage") {
            return Err(Error::OutOfBounds { what: "that plan cannot be tried for so long; convert the trial first" });
        }
        match (when, self.period) {
            (When::Now, _) if pinned == self.pinned => Ok(changed(self.scheduled.is_some(), || Event::ScheduledChangeCancelled)),
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
                Ok(vec![Event::PlanChanged { from: self.pinned.code.clone(), pinned, proration, period, over_limit: vec![] }])
            }
            (When::PeriodEnd, None) => Err(Error::NoPeriod),
            (When::PeriodEnd, Some(_)) if self.scheduled.as_ref() == Some(&pinned) => Ok(vec![]),
            (When::PeriodEnd, Some(_)) if pinned == self.pinned => {
                Ok(changed(self.scheduled.is_some(), || Event::ScheduledChangeCancelled))
            }
            (When::PeriodEnd, Some(period)) => {
                let over_limit = over(&pinned.terms.entitlements, self.quantity, &ctx.found).into_iter().map(|(meter, ..)| meter).collect();
                Ok(vec![Event::PlanChangeScheduled { pinned, at: period.end, over_limit }])
            }
        }
    }

    /// The period of full length that ends with this one, which is shorter where it is the first one of a calendar.
    fn whole(&self, period: Period) -> Period {
        Period { start: Schedule::beginning(period.start, self.billing, self.time_zone).anchor, end: period.end }
    }

    /// What a first period costs: where it is shorter than others, as much less.
    fn first_charge(&self, pinned: &Pinned, period: Period) -> crate::billing::money::Money {
        let (days, days_left) = self.whole(period).days(period.start, self.time_zone);
        pinned.terms.price.share(self.quantity, days_left, days)
    }

    /// What the days that are left of the period are worth, before and after a change.
    fn prorated(&self, pinned: &Pinned, quantity: u32, now: DateTime<Utc>) -> Option<Proration> {
        let period = self.period?;
        let (days, days_left) = self.whole(period).days(now, self.time_zone);
        let credit = self.pinned.terms.price.share(self.quantity, days_left, days);
        let charge = pinned.terms.price.share(quantity, days_left, days);
        Some(Proration { credit, charge, days_left, days })
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
        let Some(pinned) = self.scheduled.clone() else {
            return Ok(vec![Event::PeriodRenewed { period: schedule.from(period.end, self.pinned.terms.interval) }]);
        };
        let same = pinned.terms.interval == self.pinned.terms.interval;
        let schedule = if same { schedule } else { Schedule::beginning(period.end, self.billing, self.time_zone) };
        let next =
            if same { schedule.from(period.end, pinned.terms.interval) } else { schedule.rest_from(period.end, pinned.terms.interval) };
        let over_limit = over(&pinned.terms.entitlements, self.quantity, &ctx.found).into_iter().map(|(meter, ..)| meter).collect();
        let changed = Event::PlanChanged { from: self.pinned.code.clone(), pinned, proration: None, period: None, over_limit };
        Ok(vec![changed, Event::PeriodRenewed { period: next }])
    }

    /// The period in which it goes on now: the one that it was in while that lasts, otherwise what is left of the one that would have come.
    fn period_now(&self, now: DateTime<Utc>) -> Period {
        match (self.period, self.schedule) {
            (Some(period), _) if now < period.end => period,
            (_, Some(schedule)) => schedule.rest_from(now, self.pinned.terms.interval),
            (_, None) => Schedule::beginning(now, self.billing, self.time_zone).rest_from(now, self.pinned.terms.interval),
        }
    }

    /// What a provider's message comes to: it is recorded once, and what follows from all that were heard so far happens.
    fn reported(&self, report: Report, now: DateTime<Utc>) -> Vec<Event> {
        let Report { provider_event_id, occurred_at, fact } = report;
        let (provider_event_id, occurred_at) = (String::from(provider_event_id), occurred_at.time());
        let event = match fact {
            Fact::MethodSet(reference) => {
                let reference = String::from(reference);
                return changed(self.marks.is_newer(occurred_at, &reference), || self.method_set(reference, occurred_at));
            }
            Fact::MethodRemoved(reference) => {
                let reference = String::from(reference);
                return changed(!self.marks.is_removed(&reference, occurred_at), || {
                    let mut marks = self.marks.clone();
                    marks.remove_method(reference.clone(), occurred_at);
                    Event::PaymentMethodRemoved { reference, occurred_at, in_use: marks.method().cloned() }
                });
            }
            Fact::Paid(_) | Fact::NotPaid(_) | Fact::Stands(_) if self.seen.contains(&provider_event_id) => return vec![],
            Fact::Paid(amount) => Event::PaymentSucceeded { provider_event_id, occurred_at, amount },
            Fact::NotPaid(amount) => Event::PaymentFailed { provider_event_id, occurred_at, amount },
            Fact::Stands(standing) => Event::StandingReported { provider_event_id, occurred_at, standing },
        };
        self.settled(vec![event], now)
    }

    fn method_set(&self, reference: String, occurred_at: DateTime<Utc>) -> Event {
        let mut marks = self.marks.clone();
        marks.set_method(reference.clone(), occurred_at);
        Event::PaymentMethodSet { reference, occurred_at, in_use: marks.method().cloned() }
    }

    /// The events, and what follows from them by what the provider has said.
    fn settled(&self, mut events: Vec<Event>, now: DateTime<Utc>) -> Vec<Event> {
        let mut after = self.clone();
        events.iter().for_each(|event| after.evolve(event.clone()));
        while let Some(event) = after.settles(now) {
            after.evolve(event.clone());
            events.push(event);
        }
        events
    }

    /// The next step to where the provider says that it stands.
    fn settles(&self, now: DateTime<Utc>) -> Option<Event> {
        let standing = self.marks.standing();
        let activated = || {
            let period = self.period_now(now);
            Event::Activated { period: (self.period != Some(period)).then_some(period) }
        };
        match (self.status, standing) {
            (Status::Cancelled | Status::Expired, _) => None,
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

fn payment(payment: super::RecordPayment, fact: impl FnOnce(Option<crate::billing::money::Money>) -> Fact) -> Report {
    Report { provider_event_id: payment.provider_event_id, occurred_at: payment.occurred_at, fact: fact(payment.amount) }
}

fn pause(reason: PauseReason, at: DateTime<Utc>) -> Event {
    Event::Paused { reason, at }
}
