//! What a subscription owes, gives and when its periods end: an independent model for the histories, which shares no code with Tenure.

use chrono::{DateTime, Datelike as _, Months, TimeZone as _, Utc};

/// A plan: its code, price in cents, months and users.
pub(crate) const PLANS: [(&str, i64, i64, i64); 5] =
    [("free", 0, 1, 2), ("starter", 2_900, 1, 5), ("growth", 9_900, 1, 25), ("enterprise", 49_900, 1, 500), ("yearly", 29_000, 12, 5)];

/// A fault that is put in on purpose, which a history has to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    None,
    /// The model prorates by days.
    ProrationByDays,
    /// Of the messages that something is paid none arrives.
    DroppedMessage,
    /// Periods are by the other calendar.
    SwappedCalendar,
}

pub(crate) fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds, 0).unwrap()
}

/// What ought to be, worked out apart from the code.
#[derive(Clone)]
pub(crate) struct Model {
    pub(crate) flaw: Flaw,
    pub(crate) calendar: bool,
    pub(crate) plan: usize,
    pub(crate) quantity: i64,
    pub(crate) standing: Standing,
    pub(crate) anchor: i64,
    pub(crate) period: Option<(i64, i64)>,
    pub(crate) scheduled: Option<usize>,
    pub(crate) ends: bool,
    /// Cents.
    pub(crate) owed: i64,
    /// What is given.
    pub(crate) users: i64,
    /// Since when more waits for a payment.
    pub(crate) waiting: Option<i64>,
    /// What changes have come to since the last payment.
    pub(crate) unpaid: i64,
    /// What it was before a change that waits for its payment.
    pub(crate) before: Option<Box<Model>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Trial,
    /// For its first payment.
    Waits,
    Runs,
    /// For the payment of what it has begun.
    Unpaid,
    Paused,
    Ended,
}

impl Model {
    pub(crate) fn price(&self) -> i64 {
        PLANS[self.plan].1 * self.quantity
    }

    pub(crate) fn subscribed(&self) -> i64 {
        PLANS[self.plan].3 * self.quantity
    }

    /// The whole period around a time.
    pub(crate) fn around(&self, time: i64) -> (i64, i64) {
        let months = PLANS[self.plan].2;
        let bound = |n: i64| {
            let anchor = at(self.anchor);
            let by = Months::new(u32::try_from(n.abs() * months).unwrap());
            (if n < 0 { anchor - by } else { anchor + by }).timestamp()
        };
        let n = (-40..400).find(|n| bound(n + 1) > time).unwrap();
        (bound(n), bound(n + 1))
    }

    /// What a part of a period costs, to the cent.
    pub(crate) fn part(&self, (from, to): (i64, i64), whole: (i64, i64)) -> i64 {
        let (mut left, mut all) = (to - from, whole.1 - whole.0);
        if self.flaw == Flaw::ProrationByDays {
            (left, all) = ((left + 86_399) / 86_400, (all + 86_399) / 86_400);
        }
        let exact = i128::from(self.price()) * i128::from(left) * 2 + i128::from(all);
        i64::try_from(exact / (i128::from(all) * 2)).unwrap()
    }

    /// A first period begins, or one of another length.
    pub(crate) fn begin(&mut self, time: i64) {
        let first = at(time);
        let calendar = self.calendar != (self.flaw == Flaw::SwappedCalendar);
        self.anchor = if calendar { Utc.with_ymd_and_hms(first.year(), first.month(), 1, 0, 0, 0).unwrap().timestamp() } else { time };
        self.go_on(time);
    }

    /// What is left of the period at a time is to be paid.
    pub(crate) fn go_on(&mut self, time: i64) {
        let whole = self.around(time);
        self.period = Some((time, whole.1));
        self.standing = Standing::Runs;
        let due = self.part((time, whole.1), whole);
        self.owed += due;
        if self.waiting.is_some() {
            self.unpaid += due;
        }
    }

    /// The plan or the quantity changes now.
    pub(crate) fn change(&mut self, time: i64, plan: usize, quantity: i64) {
        let (was, before) = (self.clone(), (self.price(), self.owed));
        let months = PLANS[self.plan].2;
        if let Some(period) = self.period {
            self.owed -= self.part((time, period.1), self.around(period.1 - 1));
        }
        (self.plan, self.quantity) = (plan, quantity);
        match self.period {
            Some(_) if PLANS[plan].2 != months => {
                let waiting = self.waiting.take();
                self.begin(time);
                self.waiting = waiting;
            }
            Some(period) => self.owed += self.part((time, period.1), self.around(period.1 - 1)),
            None => {}
        }
        let dearer = self.yearly() > before.0 * 12 / months;
        self.unpaid = (self.unpaid + self.owed - before.1).max(0);
        self.give(time, self.owed > before.1 || self.owed == before.1 && dearer);
        self.before = self.waiting.map(|_| Box::new(Self { before: None, ..was }));
    }

    pub(crate) fn yearly(&self) -> i64 {
        self.price() * 12 / PLANS[self.plan].2
    }

    pub(crate) fn release(&mut self) {
        (self.users, self.waiting, self.before) = (self.subscribed(), None, None);
    }

    /// What costs more and gives more waits; what gives less is given at once.
    pub(crate) fn give(&mut self, time: i64, costs_more: bool) {
        let more = self.subscribed() > self.users;
        if self.standing == Standing::Trial || !more || !costs_more {
            self.release();
        } else {
            self.waiting = Some(time);
        }
    }
}
