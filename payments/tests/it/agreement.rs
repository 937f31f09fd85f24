//! Both sides agree: random histories of a subscription against an independent model of what is owed, given and when, and against a server that charges as Stripe does.
//!
//! The subscription's rules, what the policy has told, the adapter and the reading of messages are the real ones; a history runs without a database, so that there can be many.
//! Answers of Stripe are lost, what was made is not noted before it is asked for again, messages come late, twice and in any order, clocks strike here or there first.

use std::collections::{BTreeMap, VecDeque};

use chrono::{DateTime, Utc};
use cqrs_es::Aggregate as _;
use domain::aggregate::{Context, Found, Issued, Offer};
use domain::billing::meter::{Entitlement, Meter};
use domain::billing::money::{Currency, Money};
use domain::billing::period::{Billing, Interval};
use domain::billing::plan::Terms;
use domain::billing::subscription::{
    CancelScheduledChange, CancelSubscription, ChangePlan, ChangeQuantity, Command, ConvertTrial, EndTrialWithoutPayment, Event, Fact,
    PauseSubscription, Report, ResumeSubscription, StartSubscription, Status, Subscription, UncancelSubscription, When,
};
use domain::text::{PlanCode, Reference};
use domain::{Actor, Aggregate as _, Effect, Role, StreamId, TenantId};
use outbound::queue::Attempt;
use payments::channel::{Intent, Telling, tell};
use payments::inbox::{Counts, counts};
use payments::policy::answer;
use payments::provider::PaymentProvider as _;
use serde_json::{Value, json};
use testing::stripe::billing::{Invoice, State};
use testing::stripe::{Fault, Stripe};
use uuid::Uuid;

use crate::model::{Flaw, Model, PLANS, Standing, at};

/// Numbers that look random (xorshift, Marsaglia 2003), the same for a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % sides
    }

    fn one_in(&mut self, sides: usize) -> bool {
        self.roll(sides) == 0
    }
}

fn offers() -> BTreeMap<String, Offer> {
    let offer = |n: usize, (_, price, months, users): (&str, i64, i64, i64)| Offer {
        plan: Uuid::from_u128(n as u128 + 1),
        version: 1,
        terms: Terms {
            price: Money::new(price, Currency::USD),
            interval: if months == 12 { Interval::Year } else { Interval::Month },
            trial_days: 14,
            entitlements: [(Meter::Users, Entitlement::of(users.try_into().unwrap()))].into(),
        },
        retired: false,
    };
    PLANS.into_iter().enumerate().map(|(n, plan)| (plan.0.to_owned(), offer(n, plan))).collect()
}

/// A history.
pub(crate) struct World {
    seed: u64,
    dice: Dice,
    pub(crate) now: i64,
    pub(crate) server: Stripe,
    /// Nothing goes wrong, and everything comes at once.
    pub(crate) calm: bool,
    adapter: std::sync::Arc<payments::stripe::Stripe>,
    stream: StreamId,
    state: Subscription,
    timers: BTreeMap<String, DateTime<Utc>>,
    queue: VecDeque<(Intent, String, Subscription)>,
    mail: Vec<Value>,
    kept: Vec<Value>,
    model: Model,
    done: Vec<String>,
}

impl World {
    pub(crate) fn details(&self) -> &domain::billing::subscription::Details {
        self.state.details().unwrap()
    }

    fn status(&self) -> Status {
        self.details().status
    }

    /// Decides a command, applies its events, and queues what the policy would.
    pub(crate) fn execute(&mut self, command: impl Into<Command>, actor: Actor) -> Option<Vec<Event>> {
        let command = command.into();
        let said = format!("{} {command:?} by {actor:?}", at(self.now));
        let found = Found { plans: offers(), subscribable: Some(true), ..Found::default() };
        let ctx = Context { now: at(self.now), actor, stream: self.stream, fresh_id: Uuid::nil(), found };
        let events = self.state.decide(Issued { command, ctx });
        self.done.push(format!("{said} => {events:?}"));
        let events = events.ok()?;
        for event in &events {
            for effect in self.state.effects(event) {
                if let Effect::SetTimer { name, due } = effect {
                    self.timers.insert(name, due);
                } else if let Effect::CancelTimer { name } = effect {
                    self.timers.remove(&name);
                }
            }
            self.state.apply(event.clone());
        }
        let then = &self.state;
        self.queue.extend(events.iter().filter_map(answer).map(|intent| (intent, testing::id().to_string(), then.clone())));
        Some(events)
    }

    /// Has Stripe told all that waits. Answers are lost, and what was made there is not noted here, before it is asked for again.
    async fn tell(&mut self) {
        let mut attempts = 0;
        while let Some((intent, key, then)) = self.queue.front().cloned() {
            attempts += 1;
            assert!(attempts < 200, "{}", self.story());
            if !self.calm && self.dice.one_in(12) {
                let fault = if self.dice.one_in(2) { Fault::AnswerLost } else { Fault::TooMany };
                self.server.account().faults.push_back(fault);
            }
            let (details, then, stream) = (self.details(), then.details().filter(|_| intent == Intent::Update), self.stream);
            let telling = Telling { intent, key: &key, stream, details, then, name: None, overage: None, now: at(self.now) };
            let told = tell(self.adapter.as_ref(), telling).await;
            self.done.push(format!("{} told {intent:?}: {told:?}", at(self.now)));
            match told {
                Err(Attempt::Failed(_)) => {}
                Ok(told) => {
                    let crashed = !self.calm && told.link.is_some() && self.dice.one_in(4);
                    if crashed {
                        continue;
                    }
                    self.queue.pop_front();
                    if let Some(events) = told.link.and_then(|link| self.execute(link, Actor::system("payments"))) {
                        if events.iter().any(|event| matches!(event, Event::MarkedUnpaid { .. })) {
                            self.model.standing = Standing::Unpaid;
                        }
                        if events.iter().any(|event| matches!(event, Event::ChangeDeclined { .. })) {
                            let before = self.model.before.take().expect("a change that waits");
                            self.model = Model { standing: self.model.standing, ends: self.model.ends, ..*before };
                        }
                        // What was made before that was made from what it had become.
                        if events.iter().any(|event| matches!(event, Event::ProviderLinked { .. })) {
                            self.queue.iter_mut().for_each(|(_, _, then)| *then = Subscription::default());
                        }
                    }
                    let kept = std::mem::take(&mut self.kept);
                    for message in kept {
                        self.hear(message);
                    }
                }
                Err(_) => drop(self.queue.pop_front()),
            }
        }
        self.server.account().faults.clear();
        let told: Vec<Value> = self.server.account().billing.as_mut().unwrap().outbox.drain(..).collect();
        self.mail.extend(told);
    }

    /// A message arrives.
    fn hear(&mut self, body: Value) {
        let paid = body["type"] == "invoice.paid" || body["type"] == "invoice.payment_succeeded";
        if paid && self.model.flaw == Flaw::DroppedMessage {
            return;
        }
        let message = self.adapter.reread(body.to_string().as_bytes()).unwrap();
        let Some(fact) = message.fact.clone() else { return };
        match counts(self.details().provider_subscription.as_deref(), self.stream, &message) {
            Counts::Yes => {}
            Counts::No(_) => return,
            Counts::NotYet => return self.kept.push(body),
        }
        let report = Report { provider_event_id: message.id, occurred_at: message.occurred_at, fact };
        let Some(events) = self.execute(report, Actor::system("stripe")) else { return };
        let invoice = &body["data"]["object"];
        let start = |of: &Value| of["lines"]["data"][0]["period"]["start"].as_i64().or(of["current_period_start"].as_i64());
        let begun = || start(invoice).unwrap();
        for event in &events {
            let activated = matches!(event, Event::Activated { .. });
            if activated && self.model.standing == Standing::Waits {
                // When the first period begins is the provider's to say.
                self.model.begin(begun());
                self.model.users = self.model.subscribed();
            } else if activated && self.model.standing == Standing::Unpaid {
                if begun() >= self.model.period.unwrap().1 {
                    // What was never charged gave nothing.
                    self.model.owed = 0;
                    self.model.go_on(begun());
                    // It is given from when that is heard, as of whichever message comes first.
                    let here = self.details().period.unwrap();
                    self.model.period = Some((here.start.timestamp(), self.model.period.unwrap().1));
                }
                self.model.standing = Standing::Runs;
            } else if matches!(event, Event::PaymentSucceeded { .. }) && self.model.waiting.is_none() {
                self.model.unpaid = 0;
            }
        }
        // What is paid is given: an invoice of just what is subscribed to, made since it is.
        let product = format!("tenure_{}_v1", Uuid::from_u128(self.model.plan as u128 + 1).simple());
        let of_it = |line: &Value| {
            line["amount"].as_i64() > Some(0)
                && line["price"]["product"] == json!(product)
                && (line["quantity"] == json!(self.model.quantity) || line["price"]["type"] == "one_time")
        };
        let since = self.model.waiting.is_some_and(|since| invoice["created"].as_i64() >= Some(since - 300));
        if paid && since && invoice["lines"]["data"].as_array().unwrap().iter().any(of_it) {
            self.model.release();
            self.model.unpaid = 0;
        }
    }

    /// Messages arrive in any order, some twice; all of them, or some.
    pub(crate) async fn listen(&mut self, all: bool) {
        for _ in 0..100 {
            self.tell().await;
            let mut later = vec![];
            let mut mail = std::mem::take(&mut self.mail);
            while !mail.is_empty() {
                let message = mail.swap_remove(self.dice.roll(mail.len()));
                if !all && self.dice.one_in(3) {
                    later.push(message);
                    continue;
                }
                if !self.calm && self.dice.one_in(5) {
                    self.hear(message.clone());
                }
                self.hear(message);
            }
            self.mail = later;
            if self.queue.is_empty() && (!all || self.mail.is_empty()) {
                return;
            }
        }
        panic!("it does not come to rest\n{}", self.story());
    }

    /// Time passes: timers here and periods there end in their order, those of the same second in any.
    async fn pass(&mut self, seconds: i64) {
        let to = self.now + seconds;
        loop {
            let timer = self.timers.values().min().map(DateTime::timestamp);
            let boundary = self.server.account().next_boundary();
            let next = [timer, boundary].into_iter().flatten().min().filter(|next| *next <= to).unwrap_or(to);
            // What is heard of a period is heard before the next one ends.
            let all = next - self.now > 43_200;
            self.listen(all).await;
            // Whose first payment of a change was declined pays otherwise before the next period.
            if all && self.status() == Status::PastDue && self.details().provider_subscription.is_none() {
                self.server.account().declines = false;
                self.set_method("pm_good");
                self.listen(true).await;
            }
            self.now = self.now.max(next);
            self.server.account().billing.as_mut().unwrap().now = self.now;
            let here_first = self.dice.one_in(2);
            if here_first {
                self.fire().await;
            }
            self.server.account().advance(self.now);
            if !here_first {
                self.fire().await;
            }
            self.tell().await;
            let due = self.timers.values().any(|due| due.timestamp() <= self.now);
            if self.now >= to && !due && self.server.account().next_boundary().is_none_or(|next| next > to) {
                return;
            }
        }
    }

    /// Lets time pass without the model.
    pub(crate) async fn pass_alone(&mut self, seconds: i64) {
        let to = self.now + seconds;
        loop {
            let timer = self.timers.values().min().map(DateTime::timestamp);
            let next = [timer, self.server.account().next_boundary()].into_iter().flatten().min().filter(|next| *next <= to);
            self.now = self.now.max(next.unwrap_or(to));
            self.server.account().advance(self.now);
            while let Some((name, due)) = self.timers.iter().find(|(_, due)| due.timestamp() <= self.now).map(|(n, d)| (n.clone(), *d)) {
                self.execute(Subscription::timer(&name).unwrap(), Actor::system("timers")).unwrap();
                if self.timers.get(&name) == Some(&due) {
                    self.timers.remove(&name);
                }
            }
            self.listen(true).await;
            if next.is_none() {
                return;
            }
        }
    }

    /// Timers that are due.
    async fn fire(&mut self) {
        while let Some((name, due)) = self.timers.iter().find(|(_, due)| due.timestamp() <= self.now).map(|(n, d)| (n.clone(), *d)) {
            let before = self.status();
            let command = Subscription::timer(&name).unwrap();
            let events = self.execute(command, Actor::system("timers")).unwrap_or_else(|| panic!("{name}\n{}", self.story()));
            if self.timers.get(&name) == Some(&due) {
                self.timers.remove(&name);
            }
            match name.as_str() {
                "trial_end" => self.trial_ended(due.timestamp(), &events),
                "period_end" => self.period_ended(due.timestamp()),
                "expiry" => self.end(),
                _ => assert_eq!(before, self.status()),
            }
            self.tell().await;
        }
    }

    /// It ends at once. What was begun and never paid gave nothing; a first payment that is made and not heard of yet is not given back.
    fn end(&mut self) {
        if matches!(self.model.standing, Standing::Waits | Standing::Unpaid) {
            self.model.owed = self.charged();
        }
        self.model.standing = Standing::Ended;
    }

    fn trial_ended(&mut self, time: i64, events: &[Event]) {
        if events.iter().any(|event| matches!(event, Event::Paused { .. })) {
            assert!(self.model.price() > 0, "what costs nothing goes on\n{}", self.story());
            self.model.standing = Standing::Waits;
        } else {
            self.model.begin(time);
        }
    }

    fn period_ended(&mut self, time: i64) {
        if self.model.ends {
            self.model.standing = Standing::Ended;
            return;
        }
        let (rate, months) = (self.model.yearly(), PLANS[self.model.plan].2);
        let changes = self.model.scheduled.take();
        self.model.plan = changes.unwrap_or(self.model.plan);
        if PLANS[self.model.plan].2 == months {
            self.model.go_on(time);
        } else {
            self.model.begin(time);
        }
        if changes.is_some() {
            let costs_more = self.model.yearly() > rate;
            self.model.give(time, costs_more);
        }
    }

    pub(crate) fn story(&self) -> String {
        format!("seed {}\n{}", self.seed, self.done.join("\n"))
    }

    async fn act(&mut self) {
        let owner = Actor::person("ada", self.stream.tenant, Role::OrgAdmin);
        let platform = Actor::system("platform");
        let plan = self.dice.roll(PLANS.len());
        let code = || PlanCode::parse(PLANS[plan].0).unwrap();
        let now = self.now;
        match self.dice.roll(22) {
            0..=3 => {
                let changed = self.execute(ChangePlan { plan: code(), when: When::Now }, owner);
                if changed.is_some_and(|events| events.iter().any(|event| matches!(event, Event::PlanChanged { .. }))) {
                    self.model.scheduled = None;
                    self.model.change(now, plan, self.model.quantity);
                } else if self.details().scheduled.is_none() {
                    self.model.scheduled = None;
                }
            }
            4..=5 => {
                if let Some(events) = self.execute(ChangePlan { plan: code(), when: When::PeriodEnd }, owner) {
                    self.model.scheduled = match events.first() {
                        Some(Event::PlanChangeScheduled { .. }) => Some(plan),
                        Some(Event::ScheduledChangeCancelled) => None,
                        _ => self.model.scheduled,
                    };
                }
            }
            6 => {
                if self.execute(CancelScheduledChange {}, owner).is_some() {
                    self.model.scheduled = None;
                }
            }
            7..=9 => {
                let quantity = 1 + self.dice.roll(4);
                let changed = self.execute(ChangeQuantity { quantity: u32::try_from(quantity).unwrap() }, owner);
                if changed.is_some_and(|events| !events.is_empty()) {
                    self.model.change(now, self.model.plan, i64::try_from(quantity).unwrap());
                }
            }
            10 => {
                // As before an end.
                self.tell().await;
                if self.execute(PauseSubscription {}, platform).is_some_and(|events| !events.is_empty()) {
                    (self.model.standing, self.model.scheduled) = (Standing::Paused, None);
                }
            }
            11..=12 => {
                if self.execute(ResumeSubscription {}, platform).is_some_and(|events| !events.is_empty()) {
                    match self.model.period {
                        Some(period) if now < period.1 => self.model.standing = Standing::Runs,
                        Some(_) => self.model.go_on(now),
                        None => self.model.begin(now),
                    }
                }
            }
            13 => {
                if self.execute(CancelSubscription { when: When::PeriodEnd }, owner).is_some() {
                    (self.model.ends, self.model.scheduled) = (true, None);
                }
            }
            14..=15 => {
                if self.execute(UncancelSubscription {}, owner).is_some() {
                    self.model.ends = false;
                }
            }
            16 if self.dice.one_in(6) => {
                // What was changed in the same moment is told before; of what was not there would be nothing to charge.
                self.tell().await;
                if self.execute(CancelSubscription { when: When::Now }, owner).is_some() {
                    self.end();
                }
            }
            17 => {
                if let Some(events) = self.execute(ConvertTrial {}, owner).filter(|events| !events.is_empty()) {
                    self.trial_ended(now, &events);
                }
            }
            18 if self.dice.one_in(3) => {
                if self.execute(EndTrialWithoutPayment {}, platform).is_some_and(|events| !events.is_empty()) {
                    let asked = self.details().payment_method.is_some();
                    match self.model.price() {
                        0 => self.model.begin(now),
                        _ => self.model.standing = if asked { Standing::Paused } else { Standing::Waits },
                    }
                }
            }
            19 => {
                let declines = self.dice.one_in(3);
                self.server.account().declines = declines;
            }
            20 => {
                let method = format!("pm_{}", self.dice.roll(3));
                self.set_method(&method);
            }
            _ => {
                self.server.account().retry();
            }
        }
    }

    pub(crate) fn set_method(&mut self, method: &str) {
        let fact = Fact::MethodSet(Reference::parse(method).unwrap());
        let id = Reference::parse(&format!("evt_method_{}", self.done.len())).unwrap();
        let report = Report { provider_event_id: id, occurred_at: at(self.now).try_into().unwrap(), fact };
        self.execute(report, Actor::system("stripe"));
    }

    /// What Stripe has charged, or will with the next invoice.
    pub(crate) fn charged(&self) -> i64 {
        let account = self.server.account();
        let billing = account.billing.as_ref().unwrap();
        let invoices = billing.invoices.iter().filter(|invoice| invoice.state != State::Void);
        let waits = account.pending_items().iter().map(|item| item["amount"].parse::<i64>().unwrap());
        invoices.map(Invoice::total).chain(waits).sum()
    }

    /// Whether both sides and the model agree, once all is told and heard and paid.
    async fn agree(&mut self) {
        self.listen(true).await;
        self.server.account().declines = false;
        self.server.account().retry();
        self.listen(true).await;
        if matches!(self.status(), Status::PastDue | Status::Unpaid) && self.details().provider_subscription.is_none() {
            self.set_method(&format!("pm_{}", self.done.len()));
            self.listen(true).await;
        }
        let charged = self.charged();
        self.done.push(format!("{} charged {charged}, owed {}", at(self.now), self.model.owed));
        let (model, details) = (&self.model, self.details());
        let story = || self.story();
        let account = self.server.account();
        let live: Vec<&Value> = account.subscriptions.values().filter(|there| there["status"] != "canceled").collect();
        assert!(live.len() <= 1, "one live subscription there\n{}", story());
        assert_eq!(charged, model.owed, "what is charged is what is owed\n{}", story());
        let here = details.period.map(|period| (period.start.timestamp(), period.end.timestamp()));
        assert_eq!(here, model.period, "the period here\n{}", story());
        if model.standing == Standing::Ended {
            assert!(live.is_empty() && !details.status.is_live(), "it has ended on both sides\n{}", story());
            return;
        }
        let given = details.in_force()[&Meter::Users].limit;
        assert_eq!(given, model.users, "what is given\n{}", story());
        assert_eq!((&*details.pinned.code, i64::from(details.quantity)), (PLANS[model.plan].0, model.quantity), "{}", story());
        let Some(there) = live.first() else {
            let unpaid = model.price() == 0 || matches!(model.standing, Standing::Waits | Standing::Trial | Standing::Paused);
            assert!(unpaid || details.payment_method.is_none(), "something there charges\n{}", story());
            return;
        };
        let item = &there["items"]["data"][0];
        assert_eq!(item["price"]["unit_amount"], json!(PLANS[model.plan].1), "the price there\n{}", story());
        assert_eq!(item["quantity"], json!(model.quantity), "the quantity there\n{}", story());
        if model.standing == Standing::Runs {
            assert!(matches!(details.status, Status::Active | Status::CancelScheduled), "all is paid\n{}", story());
            assert_eq!(model.waiting, None, "what is paid is given\n{}", story());
            assert_eq!(there["current_period_end"].as_i64(), model.period.map(|period| period.1), "the period there\n{}", story());
            assert_eq!(there["cancel_at_period_end"], json!(model.ends), "{}", story());
            assert_eq!((&there["pause_collection"], &there["status"]), (&Value::Null, &json!("active")), "{}", story());
        }
    }
}

/// A subscription that begins now.
pub(crate) fn world(server: &Stripe, seed: u64, now: i64, plan: &str, calendar: bool, trial: bool, flaw: Flaw) -> World {
    let plan = PLANS.iter().position(|(code, ..)| *code == plan).unwrap();
    *server.account() = testing::stripe::Account::default();
    server.account().begin_billing(at(now));
    let stream = StreamId::new(TenantId(Uuid::from_u128(7)), Uuid::from_u128(8));
    let mut model = Model {
        flaw,
        calendar,
        plan,
        quantity: 1,
        standing: if trial { Standing::Trial } else { Standing::Waits },
        anchor: now,
        period: None,
        scheduled: None,
        ends: false,
        owed: 0,
        users: PLANS[plan].3,
        waiting: None,
        unpaid: 0,
        before: None,
    };
    if !trial && PLANS[plan].1 == 0 {
        model.begin(now);
    }
    let mut world = World {
        seed,
        dice: Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
        now,
        server: server.clone(),
        calm: false,
        adapter: server.adapter(),
        stream,
        state: Subscription::default(),
        timers: BTreeMap::new(),
        queue: VecDeque::new(),
        mail: vec![],
        kept: vec![],
        model,
        done: vec![],
    };
    let start = StartSubscription {
        id: None,
        plan: PlanCode::parse(PLANS[plan].0).unwrap(),
        trial_days: if trial { None } else { Some(0) },
        billing: if calendar { Billing::Calendar } else { Billing::Anniversary },
        time_zone: chrono_tz::Tz::UTC,
        currency: None,
        quantity: 1,
    };
    world.execute(start, Actor::person("ada", stream.tenant, Role::OrgAdmin)).unwrap();
    world
}

async fn history(server: &Stripe, seed: u64, flaw: Flaw) {
    let mut dice = Dice((!seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let now = 1_767_225_600 + i64::try_from(dice.roll(365 * 86_400)).unwrap();
    let (plan, calendar, trial) = (PLANS[dice.roll(PLANS.len())].0, dice.one_in(2), dice.one_in(2));
    let mut world = world(server, seed, now, plan, calendar, trial, flaw);
    if !world.dice.one_in(4) {
        world.set_method("pm_0");
    }
    world.tell().await;
    for _ in 0..20 {
        for _ in 0..=world.dice.roll(2) {
            world.act().await;
        }
        world.listen(false).await;
        let seconds = [1, 1, 3_600, 86_400, 10 * 86_400, 40 * 86_400][world.dice.roll(6)];
        let seconds = seconds * (1 + i64::try_from(world.dice.roll(3)).unwrap());
        world.pass(seconds).await;
        world.agree().await;
        if world.model.standing == Standing::Ended {
            break;
        }
    }
}

/// How many histories are tried.
fn histories() -> u64 {
    std::env::var("TENURE_TEST_HISTORIES").ok().and_then(|number| number.parse().ok()).unwrap_or(1_000)
}

#[tokio::test(flavor = "multi_thread")]
async fn after_random_histories_what_is_owed_charged_paid_and_given_agree_on_both_sides() {
    let server = Stripe::start().await;
    for seed in 0..histories() {
        history(&server, seed, Flaw::None).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_proration_a_dropped_message_and_a_swapped_calendar_are_each_found_by_the_histories() {
    for flaw in [Flaw::ProrationByDays, Flaw::DroppedMessage, Flaw::SwappedCalendar] {
        let found = tokio::spawn(async move {
            let server = Stripe::start().await;
            for seed in 0..50 {
                history(&server, seed, flaw).await;
            }
        });
        let panicked = found.await.expect_err("a history finds it");
        assert!(panicked.is_panic(), "{flaw:?}");
    }
}
