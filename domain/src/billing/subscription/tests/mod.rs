//! Given, when, then.

mod held;

use chrono::SubsecRound as _;
use cqrs_es::Aggregate as _;
use cqrs_es::test::{AggregateTestExecutor, TestFramework};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::Actor;
use crate::aggregate::{Aggregate as _, Context, Found, Offer};
use crate::billing::meter::Entitlement;
use crate::billing::money::{Currency, Money};
use crate::billing::period::Interval;
use crate::billing::plan::Terms;
use crate::error::{DomainError as _, Kind};
use crate::ids::{StreamId, TenantId};
use crate::text::{PlanCode, Reference};

/// The seconds of a day.
const DAY: i64 = 86_400;

fn day(n: i64) -> DateTime<Utc> {
    // The first of January 2026.
    DateTime::from_timestamp(1_767_225_600, 0).unwrap() + TimeDelta::days(n)
}

fn usd(amount: i64) -> Money {
    Money::new(amount, Currency::USD)
}

fn terms(price: i64, users: u64) -> Terms {
    let entitlements = [(Meter::Users, Entitlement::of(users))].into();
    Terms { price: usd(price), interval: Interval::Month, trial_days: 14, entitlements }
}

fn pinned(code: &str) -> Pinned {
    let offer = &offers()[code];
    Pinned { plan: offer.plan, code: code.into(), version: offer.version, terms: offer.terms.clone() }
}

fn offers() -> BTreeMap<String, Offer> {
    let offer = |n, price, users| Offer { plan: Uuid::from_u128(n), version: 1, terms: terms(price, users), retired: false };
    let yearly = Terms { interval: Interval::Year, ..terms(29_000, 5) };
    let euro = Terms { price: Money::new(100, Currency::try_from("EUR".to_owned()).unwrap()), ..terms(0, 5) };
    [
        ("starter", offer(1, 2_900, 5)),
        ("growth", offer(2, 9_900, 25)),
        ("yearly", Offer { terms: yearly, ..offer(3, 0, 5) }),
        ("euro", Offer { terms: euro, ..offer(4, 0, 5) }),
        ("old", Offer { retired: true, ..offer(5, 100, 5) }),
    ]
    .map(|(code, offer)| (code.to_owned(), offer))
    .into()
}

/// As the platform's timers would ask, with so many users.
fn with_users(users: i64, now: DateTime<Utc>, command: impl Into<Command>) -> Issued<Command> {
    let found = Found { plans: offers(), used: [(Meter::Users, users)].into(), ..Found::default() };
    let stream = StreamId::new(TenantId(Uuid::from_u128(7)), Uuid::from_u128(8));
    Issued { command: command.into(), ctx: Context { now, actor: Actor::system("test"), stream, fresh_id: Uuid::nil(), found } }
}

fn at(now: DateTime<Utc>, command: impl Into<Command>) -> Issued<Command> {
    with_users(3, now, command)
}

fn given(events: &[Event]) -> AggregateTestExecutor<Subscription> {
    TestFramework::<Subscription>::with(()).given(events.to_vec())
}

fn start(plan: &str) -> StartSubscription {
    StartSubscription {
        id: None,
        plan: PlanCode::parse(plan).unwrap(),
        trial_days: None,
        billing: Billing::Anniversary,
        time_zone: Tz::UTC,
        currency: None,
        quantity: 1,
    }
}

fn change(plan: &str, when: When) -> ChangePlan {
    ChangePlan { plan: PlanCode::parse(plan).unwrap(), when }
}

fn pause(reason: PauseReason, at: DateTime<Utc>) -> Event {
    Event::Paused { reason, at }
}

fn cancel(when: When) -> CancelSubscription {
    CancelSubscription { when }
}

fn trialing() -> Event {
    let trial = Some(Trial { ends_at: day(14), remind_at: Some(day(11)) });
    Event::Started { pinned: pinned("starter"), quantity: 1, billing: Billing::Anniversary, time_zone: Tz::UTC, trial, period: None }
}

fn january() -> Period {
    Period { start: day(0), end: day(31) }
}

fn active() -> Event {
    let (pinned, period) = (pinned("starter"), Some(january()));
    Event::Started { pinned, quantity: 1, billing: Billing::Anniversary, time_zone: Tz::UTC, trial: None, period }
}

fn method() -> Event {
    Event::PaymentMethodSet { reference: "pm_1".into(), occurred_at: day(0), in_use: Some("pm_1".into()) }
}

fn payment(id: &str, occurred_at: DateTime<Utc>) -> RecordPayment {
    RecordPayment { provider_event_id: Reference::parse(id).unwrap(), occurred_at: occurred_at.try_into().unwrap(), amount: None }
}

fn paid(id: &str, occurred_at: DateTime<Utc>) -> Event {
    Event::PaymentSucceeded {
        provider_event_id: id.into(),
        occurred_at,
        amount: None,
        invoice: None,
        partial: false,
        overage: vec![],
        paid_for: None,
    }
}

fn failed(id: &str, occurred_at: DateTime<Utc>) -> Event {
    Event::PaymentFailed { provider_event_id: id.into(), occurred_at, amount: None }
}

/// The events that bring a subscription into a status.
fn history(status: Status) -> Vec<Event> {
    match status {
        Status::Trialing => vec![trialing()],
        Status::Active => vec![active()],
        Status::PastDue => vec![active(), failed("f", day(1)), Event::BecamePastDue],
        Status::Unpaid => vec![active(), failed("f", day(1)), Event::BecamePastDue, Event::MarkedUnpaid { at: day(2), requested: true }],
        Status::Paused => vec![active(), Event::Paused { reason: PauseReason::Requested, at: day(1) }],
        Status::CancelScheduled => vec![active(), Event::CancelScheduled { at: day(31) }],
        Status::Cancelled => vec![active(), Event::Cancelled { at: day(1) }],
        Status::Expired => vec![active(), Event::Paused { reason: PauseReason::Requested, at: day(-100) }, Event::Expired { at: day(0) }],
    }
}

fn fold(events: &[Event]) -> Subscription {
    let mut subscription = Subscription::default();
    events.iter().for_each(|event| subscription.apply(event.clone()));
    subscription
}

fn status(subscription: &Subscription) -> Option<Status> {
    subscription.details().map(|details| details.status)
}

/// The commands, by a word for each.
fn command(word: &str) -> Command {
    match word {
        "start" => start("starter").into(),
        "extend_trial" => ExtendTrial { until: day(20).try_into().unwrap() }.into(),
        "convert_trial" => ConvertTrial {}.into(),
        "end_trial" => EndTrialWithoutPayment {}.into(),
        "upgrade" => change("growth", When::Now).into(),
        "change_later" => change("growth", When::PeriodEnd).into(),
        "keep_plan" => CancelScheduledChange {}.into(),
        "quantity" => ChangeQuantity { quantity: 2 }.into(),
        "pause" => PauseSubscription {}.into(),
        "resume" => ResumeSubscription {}.into(),
        "cancel_now" => cancel(When::Now).into(),
        "cancel_later" => cancel(When::PeriodEnd).into(),
        "uncancel" => UncancelSubscription {}.into(),
        "renew" => RenewPeriod {}.into(),
        "paid" => RecordPaymentSucceeded(payment("p", day(5))).into(),
        "failed" => RecordPaymentFailed(payment("q", day(5))).into(),
        "mark_unpaid" => MarkUnpaid {}.into(),
        "method" => SetPaymentMethod { reference: Reference::parse("pm_2").unwrap() }.into(),
        "expire" => ExpireSubscription {}.into(),
        "ended_there" => {
            let fact = Fact::Stands(Standing::Ended);
            Report { provider_event_id: Reference::parse("e").unwrap(), occurred_at: day(5).try_into().unwrap(), fact }.into()
        }
        other => panic!("{other}"),
    }
}

/// The table of the design, written down apart from the code: what each command does in each status, on the fifth day of a paid January with nothing to pay with.
/// `-`: refused; `=`: already so; a status: it becomes or stays that, with events.
const TABLE: &str = "
              trialing  active           past_due  unpaid    paused    cancel_scheduled cancelled expired
start         -         -                -         -         -         -                -         -
extend_trial  trialing  -                -         -         -         -                -         -
convert_trial -         =                -         -         -         -                -         -
end_trial     paused    -                -         -         =         -                -         -
upgrade       trialing  active           -         -         -         -                -         -
change_later  -         active           -         -         -         -                -         -
keep_plan     =         =                =         =         =         =                -         -
quantity      trialing  active           -         -         -         -                -         -
pause         -         paused           -         -         =         -                -         -
resume        -         =                -         -         active    -                -         -
cancel_now    cancelled cancelled        cancelled cancelled cancelled cancelled        =         -
cancel_later  -         cancel_scheduled cancel_scheduled -         -         =                =         -
uncancel      =         =                =         =         =         active           -         -
renew         -         -                -         -         -         -                -         -
paid          trialing  active           active    active    paused    cancel_scheduled cancelled expired
failed        trialing  past_due         past_due  unpaid    paused    cancel_scheduled cancelled expired
mark_unpaid   -         -                unpaid    =         -         -                -         -
method        trialing  active           past_due  unpaid    paused    cancel_scheduled cancelled expired
expire        -         -                -         -         -         -                -         -
ended_there   cancelled cancelled        cancelled cancelled cancelled cancelled        cancelled expired
";

#[test]
fn every_transition_legal_and_illegal_is_as_the_design_says() {
    let mut lines = TABLE.trim_start_matches('\n').lines();
    let statuses: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(statuses, Status::ALL.map(Status::as_str));
    let mut known = 0;
    for line in lines {
        let mut cells = line.split_whitespace();
        let word = cells.next().unwrap();
        known += 1;
        for (from, expected) in Status::ALL.into_iter().zip(cells) {
            let before = fold(&history(from));
            assert_eq!(status(&before), Some(from));
            let came = match before.decide(at(day(5), command(word))) {
                Ok(events) if events.is_empty() => "=".to_owned(),
                Ok(events) => {
                    let mut after = before.clone();
                    events.into_iter().for_each(|event| after.apply(event));
                    status(&after).unwrap().to_string()
                }
                Err(error) => {
                    assert!(matches!(error.kind(), Kind::Conflict), "{error}");
                    "-".to_owned()
                }
            };
            assert_eq!(came, expected, "{word} while {from}");
        }
        if word != "start" {
            let nothing = Subscription::default().decide(at(day(5), command(word)));
            assert_eq!(nothing, Err(Error::NotFound), "{word}");
        }
    }
    assert_eq!(known, 20);
}

#[test]
fn an_illegal_transition_has_a_code_that_names_state_and_command() {
    let error = fold(&history(Status::Cancelled)).decide(at(day(5), PauseSubscription {})).unwrap_err();
    assert_eq!((error.code().as_ref(), error.page()), ("subscription.cannot_pause_while_cancelled", "subscription.cannot_while"));
}

#[test]
fn a_trial_begins_with_what_the_plan_gives_in_force_and_converts_at_its_end_exactly_once() {
    given(&[]).when(at(day(0), start("starter"))).then_expect_events(vec![trialing()]);
    let mut longer = at(day(0), start("starter"));
    longer.ctx.found.plans.get_mut("starter").unwrap().terms.trial_days = 30;
    let begun = Subscription::default().decide(longer).unwrap();
    assert!(matches!(&begun[0], Event::Started { trial: Some(trial), .. } if trial.ends_at == day(30)), "as long as the plan says");
    let effects = Subscription::default().effects(&trialing());
    assert!(effects.contains(&Effect::Bound { counter: "users".into(), floor: None, ceiling: Some(5) }));
    assert!(
        effects.contains(&Effect::Bound { counter: "devices".into(), floor: None, ceiling: Some(0) }),
        "what is not named is not given"
    );
    assert!(effects.contains(&Effect::SetTimer { name: "trial_end".into(), due: day(14) }));
    let converted = Event::TrialConverted { period: Period { start: day(14), end: day(45) } };
    // However late the timer is, it is paid for from the trial's end on.
    given(&[trialing(), method()]).when(at(day(16), ConvertTrial {})).then_expect_events(vec![converted.clone()]);
    given(&[trialing(), method(), converted]).when(at(day(16), ConvertTrial {})).then_expect_events(vec![]);
    given(&[trialing()]).when(at(day(13), ConvertTrial {})).then_expect_error(Error::NotDue);
    let early = Event::TrialConverted { period: Period { start: day(5), end: day(36) } };
    given(&[trialing(), method()]).when(at(day(5), ConvertTrial {})).then_expect_events(vec![early]);
}

#[test]
fn a_trial_without_a_payment_method_pauses_and_paying_brings_it_back() {
    let paused = Event::Paused { reason: PauseReason::NoPaymentMethod, at: day(14) };
    given(&[trialing()]).when(at(day(14), ConvertTrial {})).then_expect_events(vec![paused.clone()]);
    given(&[trialing(), paused.clone()]).when(at(day(15), ResumeSubscription {})).then_expect_error(Error::NoPaymentMethod);
    let period = Period { start: day(20), end: day(51) };
    let activated = Event::Activated { period: Some(period) };
    let recorded = paid("p", day(20));
    given(&[trialing(), paused.clone()])
        .when(at(day(20), RecordPaymentSucceeded(payment("p", day(20)))))
        .then_expect_events(vec![recorded, activated]);
    given(&[trialing(), paused.clone(), method()])
        .when(at(day(20), ResumeSubscription {}))
        .then_expect_events(vec![Event::Resumed { period }]);
    // What was paid before, for whatever, does not.
    given(&[trialing(), paid("early", day(3)), paused])
        .when(at(day(20), RecordPaymentSucceeded(payment("p", day(4)))))
        .then_expect_events(vec![paid("p", day(4))]);
}

#[test]
fn an_extended_trial_ends_at_its_new_end_only_and_is_reminded_of_again() {
    let extended = Event::TrialExtended { trial: Trial { ends_at: day(20), remind_at: Some(day(17)) } };
    given(&[trialing()]).when(at(day(12), ExtendTrial { until: day(20).try_into().unwrap() })).then_expect_events(vec![extended.clone()]);
    let effects = fold(&[trialing(), Event::TrialEnding { ends_at: day(14) }]).effects(&extended);
    assert_eq!(
        effects,
        [Effect::SetTimer { name: "trial_end".into(), due: day(20) }, Effect::SetTimer { name: "trial_reminder".into(), due: day(17) },]
    );
    given(&[trialing(), extended.clone()]).when(at(day(14), ConvertTrial {})).then_expect_error(Error::NotDue);
    given(&[trialing(), extended]).when(at(day(17), RemindOfTrialEnd {})).then_expect_events(vec![Event::TrialEnding { ends_at: day(20) }]);
    for until in [day(13), day(380)] {
        given(&[trialing()]).when(at(day(12), ExtendTrial { until: until.try_into().unwrap() })).then_expect_error(Error::OnlyForward);
    }
    given(&[trialing()]).when(at(day(10), RemindOfTrialEnd {})).then_expect_error(Error::NotDue);
    given(&[trialing(), Event::TrialEnding { ends_at: day(14) }]).when(at(day(11), RemindOfTrialEnd {})).then_expect_events(vec![]);
}

#[test]
fn a_tenant_has_one_live_subscription_and_one_trial() {
    let take = |claim| Effect::TakeClaim { claim, label: "base".into(), value: Some("base".into()) };
    let effects = Subscription::default().effects(&trialing());
    assert!(effects.contains(&take(LIVE)) && effects.contains(&take(TRIAL)));
    assert!(!Subscription::default().effects(&active()).contains(&take(TRIAL)));
    let ends = fold(&[trialing()]).effects(&Event::Cancelled { at: day(1) });
    assert!(ends.contains(&Effect::ReleaseClaim { claim: LIVE, label: "base".into() }));
    assert!(!ends.iter().any(|effect| matches!(effect, Effect::ReleaseClaim { claim, .. } if *claim == TRIAL)), "the trial is used up");
    let taken = |claim: Claim| Subscription::refused(&Refusal::ClaimTaken { namespace: claim.namespace.into() });
    assert_eq!((taken(LIVE), taken(TRIAL)), (Some(Error::AnotherIsLive), Some(Error::TrialUsed)));
}

#[test]
fn who_subscribes_without_a_trial_waits_for_the_payment_and_gives_themselves_no_longer_trial() {
    let by_admin = |command: StartSubscription| {
        let mut issued = at(day(0), command);
        issued.ctx.actor = Actor::person("ada", issued.ctx.stream.tenant, crate::Role::OrgAdmin);
        issued
    };
    let without = StartSubscription { trial_days: Some(0), ..start("starter") };
    let started = Event::Started {
        pinned: pinned("starter"),
        quantity: 1,
        billing: Billing::Anniversary,
        time_zone: Tz::UTC,
        trial: None,
        period: None,
    };
    let waits = Event::Paused { reason: PauseReason::NoPaymentMethod, at: day(0) };
    given(&[]).when(by_admin(without.clone())).then_expect_events(vec![started.clone(), waits.clone()]);
    let activated = Event::Activated { period: Some(january()) };
    given(&[started, waits])
        .when(at(day(0), RecordPaymentSucceeded(payment("p", day(0)))))
        .then_expect_events(vec![paid("p", day(0)), activated]);
    given(&[]).when(at(day(0), without)).then_expect_events(vec![active()]);
    let longer = StartSubscription { trial_days: Some(15), ..start("starter") };
    assert!(matches!(Subscription::default().decide(by_admin(longer.clone())), Err(Error::OutOfBounds { .. })));
    assert!(Subscription::default().decide(at(day(0), longer)).is_ok());
}

#[test]
fn what_cannot_be_subscribed_to_is_refused() {
    let euro = Currency::try_from("EUR".to_owned()).unwrap();
    given(&[]).when(at(day(0), start("nothing"))).then_expect_error(Error::NoSuchPlan { code: "nothing".into() });
    given(&[]).when(at(day(0), start("old"))).then_expect_error(Error::PlanRetired { code: "old".into() });
    let in_euro = StartSubscription { currency: Some(euro), ..start("starter") };
    given(&[]).when(at(day(0), in_euro)).then_expect_error(Error::CurrencyFixed);
    for refused in [StartSubscription { quantity: 0, ..start("starter") }, StartSubscription { trial_days: Some(366), ..start("starter") }]
    {
        assert!(matches!(Subscription::default().decide(at(day(0), refused)), Err(Error::OutOfBounds { .. })));
    }
    given(&[active()]).when(at(day(1), change("euro", When::Now))).then_expect_error(Error::CurrencyFixed);
    given(&[active()]).when(at(day(1), change("old", When::Now))).then_expect_error(Error::PlanRetired { code: "old".into() });
}

#[test]
fn a_change_is_prorated_by_the_second_and_what_it_gives_is_in_force_when_it_is_paid() {
    // At the beginning of the 16th of January 16 of 31 days are left.
    let proration = Some(Proration { credit: usd(1_497), charge: usd(5_110), seconds_left: 16 * DAY, seconds: 31 * DAY });
    let changed = Event::PlanChanged { from: "starter".into(), pinned: pinned("growth"), proration, period: None, over_limit: vec![] };
    let limits = fold(&[active()]).details().unwrap().in_force();
    let waits = Event::LimitsHeld { limits: limits.clone(), at: day(15), due: 5_110 - 1_497, within_period: true, base_unpaid: false };
    given(&[active()]).when(at(day(15), change("growth", When::Now))).then_expect_events(vec![waits.clone(), changed.clone()]);
    let effects = fold(&[active(), waits.clone(), changed.clone()]).effects(&Event::LimitsReleased { paid: true });
    assert!(effects.contains(&Effect::Bound { counter: "users".into(), floor: None, ceiling: Some(25) }));
    let more = Event::QuantityChanged {
        from: 1,
        to: 3,
        proration: Some(Proration { credit: usd(1_497), charge: usd(4_490), seconds_left: 16 * DAY, seconds: 31 * DAY }),
    };
    let waits_for_more = Event::LimitsHeld { limits, at: day(15), due: 4_490 - 1_497, within_period: true, base_unpaid: false };
    given(&[active()]).when(at(day(15), ChangeQuantity { quantity: 3 })).then_expect_events(vec![waits_for_more.clone(), more.clone()]);
    let effects = fold(&[active(), waits_for_more, more]).effects(&Event::LimitsReleased { paid: true });
    assert!(effects.contains(&Effect::Bound { counter: "users".into(), floor: None, ceiling: Some(15) }));
    // Another interval begins a period of its own, and is paid in full.
    let year = Period { start: day(15), end: day(15 + 365) };
    let yearly = Event::PlanChanged {
        from: "starter".into(),
        pinned: pinned("yearly"),
        proration: Some(Proration { credit: usd(1_497), charge: usd(29_000), seconds_left: 16 * DAY, seconds: 31 * DAY }),
        period: Some(year),
        over_limit: vec![],
    };
    given(&[active()]).when(at(day(15), change("yearly", When::Now))).then_expect_events(vec![yearly.clone()]);
    let effects = fold(&[active()]).effects(&yearly);
    assert!(effects.contains(&Effect::SetTimer { name: "period_end".into(), due: year.end }));
    let next = Event::PeriodRenewed { period: Period { start: year.end, end: day(15 + 2 * 365) } };
    given(&[active(), yearly]).when(at(year.end, RenewPeriod {})).then_expect_events(vec![next]);
}

#[test]
fn a_first_period_of_a_calendar_is_shorter_and_costs_as_much_less() {
    let calendar = StartSubscription { billing: Billing::Calendar, trial_days: Some(0), ..start("starter") };
    let begun = Subscription::default().decide(at(day(19), calendar)).unwrap();
    let rest = Period { start: day(19), end: day(31) };
    assert!(matches!(&begun[0], Event::Started { period: Some(period), .. } if *period == rest));
    // At the beginning of the 25th 7 of 31 days are left, of the 12 that were paid.
    let changed = fold(&begun).decide(at(day(24), change("growth", When::Now))).unwrap();
    let proration = Proration { credit: usd(655), charge: usd(2_235), seconds_left: 7 * DAY, seconds: 31 * DAY };
    assert!(matches!(changed.last(), Some(Event::PlanChanged { proration: Some(is), .. }) if *is == proration), "{changed:?}");
    let renewed = fold(&begun).decide(at(day(31), RenewPeriod {})).unwrap();
    assert_eq!(renewed, [Event::PeriodRenewed { period: Period { start: day(31), end: day(59) } }]);
}

#[test]
fn what_a_provider_says_to_be_in_order_is_not_paid_for_that() {
    let paused = [trialing(), Event::Paused { reason: PauseReason::NoPaymentMethod, at: day(14) }];
    let said = Report {
        provider_event_id: Reference::parse("e").unwrap(),
        occurred_at: day(15).try_into().unwrap(),
        fact: Fact::Stands(Standing::Active),
    };
    let events = fold(&paused).decide(at(day(15), said)).unwrap();
    assert!(matches!(events[..], [Event::StandingReported { .. }]), "{events:?}");
}

#[test]
fn a_downgrade_below_what_is_used_is_refused_now_or_begins_with_the_next_period_and_says_so() {
    let grown = [
        active(),
        Event::PlanChanged { from: "starter".into(), pinned: pinned("growth"), proration: None, period: None, over_limit: vec![] },
    ];
    let over = Error::OverLimit { meter: "users".into(), used: 6, limit: 5 };
    given(&grown).when(with_users(6, day(5), change("starter", When::Now))).then_expect_error(over);
    assert!(fold(&grown).decide(with_users(5, day(5), change("starter", When::Now))).is_ok());
    let scheduled = Event::PlanChangeScheduled { pinned: pinned("starter"), at: day(31), over_limit: vec![Meter::Users] };
    given(&grown).when(with_users(6, day(5), change("starter", When::PeriodEnd))).then_expect_events(vec![scheduled.clone()]);
    let waiting = [&grown[..], &[scheduled]].concat();
    given(&waiting).when(at(day(6), CancelScheduledChange {})).then_expect_events(vec![Event::ScheduledChangeCancelled]);
    let changed = Event::PlanChanged {
        from: "growth".into(),
        pinned: pinned("starter"),
        proration: None,
        period: None,
        over_limit: vec![Meter::Users],
    };
    let next = Event::PeriodRenewed { period: Period { start: day(31), end: day(59) } };
    given(&waiting).when(with_users(6, day(31), RenewPeriod {})).then_expect_events(vec![changed, next]);
    given(&waiting).when(with_users(6, day(30), RenewPeriod {})).then_expect_error(Error::NotDue);
    let kept = [Event::ScheduledChangeCancelled, Event::CancelScheduled { at: day(31) }];
    given(&waiting).when(at(day(6), cancel(When::PeriodEnd))).then_expect_events(kept.to_vec());
}

#[test]
fn a_subscription_ends_with_its_period_unless_that_is_taken_back() {
    let scheduled = [active(), Event::CancelScheduled { at: day(31) }];
    given(&scheduled).when(at(day(31), RenewPeriod {})).then_expect_events(vec![Event::Cancelled { at: day(31) }]);
    given(&scheduled).when(at(day(30), UncancelSubscription {})).then_expect_events(vec![Event::Uncancelled]);
    // What was heard meanwhile counts as soon as it can.
    let bad = [&scheduled[..], &[failed("f", day(20))]].concat();
    given(&bad).when(at(day(30), UncancelSubscription {})).then_expect_events(vec![Event::Uncancelled, Event::BecamePastDue]);
    given(&history(Status::Trialing)).when(at(day(5), cancel(When::PeriodEnd))).then_expect_error(Error::NoPeriod);
}

#[test]
fn what_nobody_brings_back_in_90_days_expires() {
    for (status, since) in [(Status::Paused, 1), (Status::Unpaid, 2)] {
        let events = history(status);
        assert_eq!(fold(&events).details().unwrap().timers()["expiry"], day(since) + EXPIRY);
        given(&events).when(at(day(since + 89), ExpireSubscription {})).then_expect_error(Error::NotDue);
        given(&events).when(at(day(since + 90), ExpireSubscription {})).then_expect_events(vec![Event::Expired { at: day(since + 90) }]);
    }
}

#[test]
fn a_provider_event_counts_once_and_one_that_is_older_is_recorded_without_effect() {
    let bad = [active(), failed("f1", day(3)), Event::BecamePastDue];
    let record = |id: &str, on| at(day(6), RecordPaymentSucceeded(payment(id, day(on))));
    given(&bad).when(record("p1", 4)).then_expect_events(vec![paid("p1", day(4)), Event::Activated { period: None }]);
    given(&bad).when(record("p0", 2)).then_expect_events(vec![paid("p0", day(2))]);
    let good = [&bad[..], &[paid("p1", day(4)), Event::Activated { period: None }]].concat();
    given(&good).when(record("p1", 4)).then_expect_events(vec![]);
    given(&good).when(at(day(6), RecordPaymentFailed(payment("f0", day(2))))).then_expect_events(vec![failed("f0", day(2))]);
}

#[test]
fn a_payment_by_hand_is_compared_with_what_is_owed_and_its_id_with_what_was_heard_before() {
    let record = |id: &str, amount: Option<Money>, on: DateTime<Utc>| {
        at(day(6), RecordPaymentSucceeded(RecordPayment { amount, ..payment(id, on) }))
    };
    let bad = [active(), failed("f1", day(3)), Event::BecamePastDue];
    let euro = Money::new(2_900, Currency::try_from("EUR".to_owned()).unwrap());
    given(&bad).when(record("p", Some(euro), day(4))).then_expect_error(Error::WrongCurrency);
    given(&bad).when(record("p", Some(usd(2_900)), day(6) + AHEAD + TimeDelta::microseconds(1))).then_expect_error(Error::InTheFuture);
    assert!(matches!(fold(&bad).decide(record("p", Some(usd(-1)), day(4))), Err(Error::OutOfBounds { .. })));
    // A cent less than what is owed, and then the cent.
    let part = fold(&bad).decide(record("p1", Some(usd(2_899)), day(4))).unwrap();
    assert!(matches!(part[..], [Event::PaymentSucceeded { partial: true, .. }]), "{part:?}");
    let paid_in_part = [&bad[..], &part[..]].concat();
    assert_eq!(status(&fold(&paid_in_part)), Some(Status::PastDue));
    let rest = fold(&paid_in_part).decide(record("p2", Some(usd(1)), day(4))).unwrap();
    assert!(matches!(rest[..], [Event::PaymentSucceeded { partial: false, .. }, Event::Activated { .. }]), "{rest:?}");
    // The same id again, also after many others: the same payment counts once, another one is refused.
    let mut long = bad.to_vec();
    long.extend((0..300).map(|n| paid(&format!("p{n}"), day(4))));
    given(&long).when(record("p0", None, day(4))).then_expect_events(vec![]);
    given(&long).when(record("p0", Some(usd(2_900)), day(4))).then_expect_error(Error::PaymentDiffers);
    given(&long).when(record("p0", None, day(5))).then_expect_error(Error::PaymentDiffers);
    given(&long).when(at(day(6), RecordPaymentFailed(payment("p0", day(4))))).then_expect_error(Error::PaymentDiffers);
}

#[test]
fn an_invoice_that_is_paid_counts_once_whatever_says_so_and_without_money_too() {
    let bad = [active(), failed("f1", day(3)), Event::BecamePastDue];
    let report = |id: &str, amount| Report {
        provider_event_id: Reference::parse(id).unwrap(),
        occurred_at: day(4).try_into().unwrap(),
        fact: Fact::Paid { amount: Some(usd(amount)), invoice: Some(Reference::parse("in_1").unwrap()), items: None, overage: vec![] },
    };
    // A coupon, a balance, or paid out of band: the invoice is paid, and that is what counts.
    let events = fold(&bad).decide(at(day(4), report("e1", 0))).unwrap();
    assert!(matches!(events[..], [Event::PaymentSucceeded { partial: false, .. }, Event::Activated { .. }]), "{events:?}");
    let after = [&bad[..], &events[..]].concat();
    given(&after).when(at(day(4), report("e2", 0))).then_expect_events(vec![]);
    // A trial begins with an invoice over nothing.
    given(&[trialing()]).when(at(day(4), report("e1", 0))).then_expect_events(vec![]);
}

#[test]
fn what_costs_nothing_is_active_without_a_payment_method() {
    let free = |event: Event| {
        let mut stored = serde_json::to_value(event).unwrap();
        stored["pinned"]["terms"]["price"]["amount"] = 0.into();
        serde_json::from_value::<Event>(stored).unwrap()
    };
    let period = Period { start: day(14), end: day(45) };
    given(&[free(trialing())]).when(at(day(14), ConvertTrial {})).then_expect_events(vec![Event::TrialConverted { period }]);
    given(&[trialing()]).when(at(day(14), ConvertTrial {})).then_expect_events(vec![pause(PauseReason::NoPaymentMethod, day(14))]);
}

#[test]
fn a_plan_that_costs_something_is_not_had_by_way_of_one_that_costs_nothing() {
    let by_admin = |command: Command| {
        let mut issued = at(day(5), command);
        issued.ctx.actor = Actor::person("ada", issued.ctx.stream.tenant, crate::Role::OrgAdmin);
        issued
    };
    let free = |event: Event| {
        let mut stored = serde_json::to_value(event).unwrap();
        stored["pinned"]["terms"]["price"]["amount"] = 0.into();
        serde_json::from_value::<Event>(stored).unwrap()
    };
    for when in [When::Now, When::PeriodEnd] {
        given(&[free(active())]).when(by_admin(change("growth", when).into())).then_expect_error(Error::NoPaymentMethod);
        assert!(fold(&[free(active()), method()]).decide(by_admin(change("growth", when).into())).is_ok());
    }
    // The payment method was removed meanwhile.
    let waiting = [free(active()), Event::PlanChangeScheduled { pinned: pinned("growth"), at: day(31), over_limit: vec![] }];
    let next = Event::PeriodRenewed { period: Period { start: day(31), end: day(59) } };
    given(&waiting).when(at(day(31), RenewPeriod {})).then_expect_events(vec![Event::ScheduledChangeCancelled, next]);
}

#[test]
fn a_scheduled_change_follows_the_period_and_each_loss_of_it_is_an_event() {
    let scheduled = |at| Event::PlanChangeScheduled { pinned: pinned("growth"), at, over_limit: vec![] };
    let waiting = [active(), scheduled(day(31))];
    let lost = [Event::ScheduledChangeCancelled, pause(PauseReason::Requested, day(6))];
    given(&waiting).when(at(day(6), PauseSubscription {})).then_expect_events(lost.to_vec());
    let now = fold(&waiting).decide(at(day(6), change("yearly", When::Now))).unwrap();
    assert!(matches!(now[..], [Event::ScheduledChangeCancelled, Event::PlanChanged { .. }]), "{now:?}");
    // It is not paid until after the period's end, and goes on in another period.
    let unpaid =
        [&waiting[..], &[failed("f", day(30)), Event::BecamePastDue, Event::MarkedUnpaid { at: day(30), requested: false }]].concat();
    let brought_back = fold(&unpaid).decide(at(day(40), RecordPaymentSucceeded(payment("p", day(40))))).unwrap();
    let period = Period { start: day(40), end: day(59) };
    assert_eq!(brought_back, [paid("p", day(40)), Event::Activated { period: Some(period) }, scheduled(day(59))]);
    let failed = [active(), failed("f", day(3)), Event::BecamePastDue];
    given(&failed).when(at(day(6), cancel(When::PeriodEnd))).then_expect_events(vec![Event::CancelScheduled { at: day(31) }]);
}

#[test]
fn what_is_left_of_a_period_after_a_pause_is_priced_as_a_part_of_the_whole_one() {
    // Paused on the 5th of January and resumed on the 20th of February, 9 days before the month's end.
    for (billing, began, seconds_left) in [(Billing::Calendar, day(0), 9 * DAY), (Billing::Anniversary, day(9), 18 * DAY)] {
        let begun = StartSubscription { billing, trial_days: Some(0), ..start("starter") };
        let mut events = Subscription::default().decide(at(began, begun)).unwrap();
        events.push(pause(PauseReason::Requested, began + TimeDelta::days(4)));
        events.extend(fold(&events).decide(at(day(50), ResumeSubscription {})).unwrap());
        let changed = fold(&events).decide(at(day(50), change("growth", When::Now))).unwrap();
        let share = |amount: i64| usd(amount).share(1, seconds_left, 28 * DAY);
        let expected = Proration { credit: share(2_900), charge: share(9_900), seconds_left, seconds: 28 * DAY };
        assert!(matches!(changed.last(), Some(Event::PlanChanged { proration: Some(is), .. }) if *is == expected), "{changed:?}");
    }
}

#[test]
fn a_dispute_that_is_lost_is_a_payment_that_is_missing() {
    let report =
        |id: &str, on, fact| Report { provider_event_id: Reference::parse(id).unwrap(), occurred_at: day(on).try_into().unwrap(), fact };
    let events = |fact| fold(&[active()]).decide(at(day(9), report("e", 9, fact))).unwrap();
    assert!(matches!(events(Fact::Refunded(Some(usd(500))))[..], [Event::PaymentRefunded { .. }]));
    assert!(matches!(events(Fact::Disputed(Some(usd(500))))[..], [Event::PaymentDisputed { .. }]));
    assert!(matches!(events(Fact::DisputeClosed { amount: None, lost: false })[..], [Event::DisputeClosed { .. }]));
    assert!(matches!(events(Fact::DisputeClosed { amount: None, lost: true })[..], [Event::DisputeClosed { .. }, Event::BecamePastDue]));
}

#[test]
fn a_proration_of_whole_days_from_before_is_read_as_one_of_seconds() {
    let upcast = Subscription::UPCASTERS.iter().find(|upcaster| upcaster.event == "subscription.plan_changed").unwrap().upcast;
    let stored = include_str!("../../../../tests/golden/subscription/plan_changed.v1.json");
    let event: Event = serde_json::from_value(upcast(serde_json::from_str(stored).unwrap())).unwrap();
    assert!(
        matches!(event, Event::PlanChanged { proration: Some(Proration { seconds_left, seconds, .. }), .. } if (seconds_left, seconds) == (15 * DAY, 31 * DAY))
    );
    let stored = include_str!("../../../../tests/golden/subscription/quantity_changed.v1.json");
    assert!(serde_json::from_value::<Event>(upcast(serde_json::from_str(stored).unwrap())).is_ok());
}

/// What a provider may have told, from its log of four weeks: payments, standings, payment methods.
fn told() -> Vec<Report> {
    let report = |n: i64, hour: i64, fact| Report {
        provider_event_id: Reference::parse(&format!("evt_{n}")).unwrap(),
        occurred_at: (day(1) + TimeDelta::hours(hour)).trunc_subsecs(0).try_into().unwrap(),
        fact,
    };
    vec![
        report(1, 1, Fact::MethodSet(Reference::parse("pm_1").unwrap())),
        report(2, 2, Fact::Paid { amount: Some(usd(2_900)), invoice: None, items: None, overage: vec![] }),
        report(3, 2, Fact::Stands(Standing::Active)),
        report(4, 200, Fact::NotPaid(Some(usd(2_900)))),
        report(5, 200, Fact::Stands(Standing::PastDue)),
        report(6, 272, Fact::NotPaid(None)),
        report(7, 300, Fact::MethodRemoved(Reference::parse("pm_1").unwrap())),
        report(8, 301, Fact::MethodSet(Reference::parse("pm_2").unwrap())),
        report(9, 340, Fact::Stands(Standing::Unpaid)),
        report(10, 341, Fact::NotPaid(None)),
        report(11, 400, Fact::Paid { amount: Some(usd(2_900)), invoice: None, items: None, overage: vec![] }),
        report(12, 400, Fact::Stands(Standing::Active)),
        report(13, 410, Fact::NotPaid(Some(usd(500)))),
        report(14, 411, Fact::Stands(Standing::PastDue)),
    ]
}

/// What is left when all of them have been heard in this order.
fn after_hearing(events: &[Event], reports: &[Report]) -> (Option<Status>, Option<String>, BTreeMap<&'static str, DateTime<Utc>>) {
    let mut subscription = fold(events);
    for report in reports {
        let now = day(20);
        for event in subscription.decide(at(now, report.clone())).unwrap() {
            subscription.apply(event);
        }
    }
    let details = subscription.details().unwrap();
    (Some(details.status), details.payment_method.clone(), details.timers())
}

#[test]
fn a_recorded_sequence_of_provider_events_ends_in_the_same_state_in_a_thousand_random_orders_with_doubles() {
    use proptest::test_runner::{Config, TestRunner};
    let paused = || vec![trialing(), Event::Paused { reason: PauseReason::NoPaymentMethod, at: day(1) }];
    let ended = || {
        let mut all = told();
        all.push(Report {
            provider_event_id: Reference::parse("evt_15").unwrap(),
            occurred_at: day(19).try_into().unwrap(),
            fact: Fact::Stands(Standing::Ended),
        });
        all
    };
    let cases = [
        (history(Status::Active), told(), Status::PastDue),
        (history(Status::Active), told()[..12].to_vec(), Status::Active),
        (history(Status::Active), told()[..10].to_vec(), Status::Unpaid),
        (history(Status::PastDue), told(), Status::PastDue),
        (history(Status::CancelScheduled), told(), Status::CancelScheduled),
        (paused(), told()[..12].to_vec(), Status::Active),
        (paused(), ended(), Status::Cancelled),
        (history(Status::Trialing), ended(), Status::Cancelled),
    ];
    for (events, reports, status) in cases {
        let expected = after_hearing(&events, &reports);
        assert_eq!(expected.0, Some(status), "in its own order");
        let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(1_000) });
        let doubled: Vec<Report> = reports.iter().chain(&reports).cloned().collect();
        runner
            .run(&Just(doubled).prop_shuffle(), |order| {
                prop_assert_eq!(after_hearing(&events, &order), expected.clone());
                Ok(())
            })
            .unwrap();
    }
}

proptest! {
    /// Whatever is asked in whatever order while time passes: the status follows the table of the design, timers are set exactly where something is to come, periods are
    /// contiguous, and the guards are what the state says.
    #[test]
    fn random_sequences_of_commands_and_timers_follow_the_model(steps in proptest::collection::vec((0..20_usize, 0..200_i64), 1..80)) {
        let words: Vec<&str> = TABLE.lines().skip(2).filter_map(|line| line.split_whitespace().next()).collect();
        let (mut subscription, mut now) = (fold(&[trialing()]), day(0));
        let (mut expected, mut payable) = (Status::Trialing, false);
        let mut events = vec![trialing()];
        for (n, (word, hours)) in steps.into_iter().enumerate() {
            now += TimeDelta::hours(hours);
            // What is due happens first, as the timers see to it.
            while let Some((name, due)) = subscription.details().unwrap().timers().into_iter().find(|(_, due)| *due <= now) {
                let fired = subscription.decide(at(now, Subscription::timer(name).unwrap())).unwrap();
                prop_assert!(!fired.is_empty(), "{name} clears or moves itself");
                for event in fired {
                    subscription.apply(event.clone());
                    events.push(event);
                }
                prop_assert!(subscription.details().unwrap().timers().get(name) != Some(&due), "{name} fired and is set still");
                match name {
                    "trial_end" => expected = if payable { Status::Active } else { Status::Paused },
                    "period_end" if expected == Status::CancelScheduled => expected = Status::Cancelled,
                    "expiry" => expected = Status::Expired,
                    _ => {}
                }
                // Payments that had failed before count once they can.
                if status(&subscription) == Some(Status::PastDue) && expected == Status::Active {
                    expected = Status::PastDue;
                }
                prop_assert_eq!(status(&subscription), Some(expected), "after {}", name);
            }
            let mut issued = at(now, command(words[word]));
            if let Command::RecordPaymentSucceeded(RecordPaymentSucceeded(payment)) | Command::RecordPaymentFailed(RecordPaymentFailed(payment)) =
                &mut issued.command
            {
                *payment = RecordPayment { provider_event_id: Reference::parse(&format!("evt_{n}")).unwrap(), occurred_at: now.try_into().unwrap(), amount: None };
            } else if let Command::Report(report) = &mut issued.command {
                report.provider_event_id = Reference::parse(&format!("evt_{n}")).unwrap();
            } else if let Command::ExtendTrial(extend) = &mut issued.command {
                extend.until = (now + TimeDelta::days(20)).try_into().unwrap();
            }
            let before = status(&subscription).unwrap();
            let decided = subscription.decide(issued);
            if let Ok(new) = decided {
                for event in new {
                    let effects = subscription.effects(&event);
                    let (was, set) = (subscription.details().unwrap().timers(), |effect: &Effect| matches!(effect, Effect::SetTimer { .. }));
                    subscription.apply(event.clone());
                    let are = subscription.details().unwrap().timers();
                    prop_assert_eq!(effects.iter().any(set), are.iter().any(|(name, due)| was.get(name) != Some(due)));
                    events.push(event);
                }
            }
            let after = status(&subscription).unwrap();
            prop_assert!(legal(before, after), "{before} → {after} by {}", words[word]);
            let details = subscription.details().unwrap();
            (expected, payable) = (after, details.payment_method.is_some());
            prop_assert_eq!(after.is_live(), subscription.is_live());
            prop_assert_eq!(details.timers().contains_key("trial_end"), after == Status::Trialing);
            prop_assert_eq!(details.timers().contains_key("period_end"), after.runs());
            prop_assert_eq!(details.timers().contains_key("expiry"), matches!(after, Status::Paused | Status::Unpaid));
        }
        prop_assert_eq!(&fold(&events), &subscription);
        // A renewed period begins where the one before ended.
        let mut end = None;
        for event in &events {
            if let Event::PeriodRenewed { period } = event {
                prop_assert_eq!(Some(period.start), end);
            }
            let mut begun = None;
            if let Event::TrialConverted { period } | Event::Resumed { period } | Event::PeriodRenewed { period } = event {
                begun = Some(*period);
            } else if let Event::Activated { period } | Event::PlanChanged { period, .. } = event {
                begun = *period;
            }
            end = begun.map(|period| period.end).or(end);
        }
    }
}

/// The transitions of the design, in as many steps as one command may take (a payment that failed in a trial counts when it ends).
fn legal(before: Status, after: Status) -> bool {
    use Status::{Active, CancelScheduled, Cancelled, PastDue, Paused, Trialing, Unpaid};
    let after_that: &[Status] = match before {
        Trialing => &[Active, Paused, PastDue, Cancelled],
        Active => &[PastDue, Paused, CancelScheduled, Cancelled],
        PastDue => &[Active, Unpaid, CancelScheduled, Cancelled],
        Unpaid => &[Active, Cancelled],
        // With what was heard while it could not count.
        Paused => &[Active, PastDue, Cancelled],
        CancelScheduled => &[Active, PastDue, Unpaid, Cancelled],
        Cancelled | Status::Expired => &[],
    };
    before == after || after_that.contains(&after)
}
