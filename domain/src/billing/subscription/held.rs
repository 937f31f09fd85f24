//! Limits follow payments (docs/adr/0038-limits-follow-payments.md): what a change gives more, and costs more, waits until it is paid.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{AHEAD, Details, Event, PaidFor, Pinned, Proration, Status};
use crate::aggregate::Context;
use crate::billing::meter::{self, Limits};
use crate::billing::money::Money;
use crate::billing::period::{Period, Schedule};
use crate::billing::plan::Terms;

/// A change whose limits are held back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Held {
    /// No more than this is in force.
    pub(super) limits: Limits,
    /// Since when.
    pub(super) at: DateTime<Utc>,
    /// What has to be paid.
    pub(super) due: i64,
    /// Whether what it was before is paid: the change gives that back.
    pub(super) base_paid: bool,
    /// Whether the change is.
    change_paid: bool,
    /// What it was before.
    pub(super) before: Before,
    /// Whether the change came within a period. It can be taken back.
    pub(super) within_period: bool,
}

/// What a subscription was before a change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Before {
    pub(super) pinned: Pinned,
    pub(super) quantity: u32,
    pub(super) period: Option<Period>,
    schedule: Option<Schedule>,
    unpaid: i64,
    unpaid_changes: i64,
}

impl Details {
    /// Holds what is in force now.
    pub(super) fn hold(&mut self, limits: Limits, at: DateTime<Utc>, due: i64, within_period: bool, base_paid: bool) {
        let before = Before {
            pinned: self.pinned.clone(),
            quantity: self.quantity,
            period: self.period,
            schedule: self.schedule,
            unpaid: self.unpaid,
            unpaid_changes: self.unpaid_changes,
        };
        self.held = Some(Held { limits, at, due, base_paid, change_paid: false, before, within_period });
    }

    /// Goes back to what it was before the change that is held.
    pub(super) fn go_back(&mut self) {
        let Some(Held { before, .. }) = self.held.take() else { return };
        (self.pinned, self.quantity) = (before.pinned, before.quantity);
        (self.period, self.schedule) = (before.period, before.schedule);
        (self.unpaid, self.unpaid_changes) = (before.unpaid, before.unpaid_changes);
    }

    /// That the change that is held could not be paid, if one within a period is.
    pub(super) fn declined(&self) -> Option<Event> {
        let Held { before, .. } = self.held.as_ref().filter(|held| held.within_period && self.status.is_live())?;
        Some(Event::ChangeDeclined { pinned: before.pinned.clone(), quantity: before.quantity, period: before.period })
    }

    /// Whether what it is now is paid for, or costs nothing.
    fn is_base_paid(&self) -> bool {
        self.pinned.is_free() || self.unpaid <= 0 || self.period.is_none_or(|period| self.is_paid(period))
    }

    /// Whether something was paid since a period began.
    pub fn is_paid(&self, period: Period) -> bool {
        self.marks.payment.is_some_and(|at| at >= period.start)
    }

    /// How much of each meter it gives: what it is subscribed to, or less of it while that is not paid for.
    pub fn in_force(&self) -> Limits {
        let subscribed = meter::limits(&self.pinned.terms.entitlements, self.quantity);
        match &self.held {
            None => subscribed,
            Some(held) => {
                let lesser = |(meter, limit)| (meter, held.limits.get(&meter).map_or(limit, |held| held.and(limit)));
                subscribed.into_iter().map(lesser).collect()
            }
        }
    }

    /// Whether some of what it is subscribed to waits for a payment.
    pub fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Whether what it was before a change that waits for its payment costs nothing, or is paid.
    pub fn could_go_back(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.within_period && (held.base_paid || held.before.pinned.is_free()))
    }

    /// What was not paid of its periods and their changes.
    pub fn unpaid(&self) -> Money {
        Money { amount: self.unpaid.max(0), ..self.pinned.terms.price }
    }

    /// Whether a payment was for this, or for whatever it was then.
    fn is_for(paid: &PaidFor, pinned: &Pinned, quantity: u32) -> bool {
        (paid.plan, paid.version) == (pinned.plan, pinned.version) && paid.quantity.is_none_or(|times| times == quantity)
    }

    /// Notes a payment in full: of what it was before the change, or of the change.
    pub(super) fn paid_in_full(&mut self, paid_for: Option<PaidFor>) {
        (self.paid_in_part, self.unpaid) = (0, 0);
        match &mut self.held {
            None => self.unpaid_changes = 0,
            Some(held) => {
                // What was charged once, in the middle of a period, is all that was unpaid.
                let of_base = |paid: &PaidFor| paid.quantity.is_none() || Self::is_for(paid, &held.before.pinned, held.before.quantity);
                held.base_paid |= paid_for.as_ref().is_none_or(of_base);
            }
        }
        self.paid_for = paid_for.or(self.paid_for.take());
        let change_paid = self.is_invoice_paid();
        self.held.iter_mut().for_each(|held| held.change_paid |= change_paid);
    }

    /// Whether the last payment is of the change that is held: of an invoice that is for what is subscribed to now, and was made since. Its amount may be another one by taxes and
    /// discounts.
    fn is_invoice_paid(&self) -> bool {
        let for_change =
            |(held, paid): (&Held, &PaidFor)| Self::is_for(paid, &self.pinned, self.quantity) && paid.made_at + AHEAD >= held.at;
        self.held.as_ref().zip(self.paid_for.as_ref()).is_some_and(for_change)
    }

    /// Whether the change that is held is paid.
    pub(super) fn is_change_paid(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.base_paid && (held.due == 0 || held.change_paid || self.is_invoice_paid()))
    }

    /// The events of a change, with what holds its limits back until it is paid, or releases them. What gives more than before and costs more waits for the payment of that,
    /// unless all that is unpaid of changes is within the platform's ceiling; in a trial nothing is paid.
    pub(super) fn given_when_paid(&self, mut events: Vec<Event>, at: DateTime<Utc>, ctx: &Context) -> Vec<Event> {
        let mut after = self.clone();
        after.held = None;
        events.iter().for_each(|event| after.evolve(event.clone()));
        let (before, then) = (self.in_force(), after.in_force());
        let gives_more = then.iter().any(|(meter, given)| before.get(meter).is_some_and(|was| was.and(*given) != *given));
        let proration = events.iter().find_map(Event::proration);
        let dearer = after.rate() > self.rate();
        let other_interval = after.pinned.terms.interval != self.pinned.terms.interval;
        // What has to be paid, and what would be given unpaid.
        let waits = match proration {
            // A moment before the next period nothing is left to pay of this one, and the next one costs more.
            Some(Proration { credit, charge, .. }) if charge == credit && dearer => Some((0, after.unpaid_changes.max(1))),
            Some(Proration { credit, charge, .. }) if charge.amount > credit.amount => {
                Some((charge.amount - credit.amount, after.unpaid_changes))
            }
            // What is given back for a period that begins now was not paid.
            Some(Proration { charge, .. }) if other_interval && !self.is_base_paid() && charge.amount > 0 => Some((0, charge.amount)),
            None if dearer => after.charge().map(|charge| (charge.amount, charge.amount)),
            Some(_) | None => None,
        };
        match waits.filter(|(_, unpaid)| self.status != Status::Trialing && gives_more && *unpaid > ctx.found.unpaid_ceiling) {
            Some((due, _)) => {
                // Of the same period the difference is paid by itself; where there is none, the next payment decides.
                let within_period = proration.is_some();
                let base_unpaid = within_period && (due == 0 || other_interval && !self.is_base_paid());
                events.insert(0, Event::LimitsHeld { limits: before, at, due, within_period, base_unpaid });
            }
            None if self.held.is_some() && !events.is_empty() => events.push(Event::LimitsReleased { paid: false }),
            None => {}
        }
        events
    }

    /// What it costs by the year.
    fn rate(&self) -> i64 {
        let Terms { price, interval, .. } = &self.pinned.terms;
        price.share(self.quantity, 12, interval.months().into()).amount
    }
}
