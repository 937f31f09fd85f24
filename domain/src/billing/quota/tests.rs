//! Given, when, then.

use std::num::NonZeroU32;

use cqrs_es::test::TestFramework;

use super::*;
use crate::aggregate::Found;
use crate::{Actor, Aggregate as _, CounterName};

const METER: Meter = Meter::Messages;

fn month() -> Month {
    "2026-11".parse().unwrap()
}

fn standing(used: i64, quota: i64, generation: i64) -> Standing {
    Standing { used, held: 0, quota: Some(quota), limit: Some(quota), generation }
}

fn ctx(now: &str, found: Found) -> Context {
    let tenant = TenantId(Uuid::from_u128(7));
    Context {
        now: now.parse().unwrap(),
        actor: Actor::system("test"),
        stream: stream(tenant, METER, month()),
        fresh_id: Uuid::nil(),
        found,
    }
}

fn assess(standing: Standing) -> Issued<Command> {
    let found = Found { standings: [((METER, month()), standing)].into(), ..Found::default() };
    Issued { command: AssessQuota { meter: METER, period: month() }.into(), ctx: ctx("2026-11-05T00:00:00Z", found) }
}

fn opened() -> Event {
    let ends_at = "2026-12-01T00:00:00Z".parse().unwrap();
    Event::PeriodOpened { meter: METER, period: month(), ends_at, closes_at: ends_at + CLOSING }
}

fn crossed(threshold: u16, standing: Standing, highest: bool) -> Event {
    let Standing { used, quota, generation, .. } = standing;
    Event::ThresholdCrossed { meter: METER, period: month(), threshold, generation, used, quota: quota.unwrap(), highest }
}

fn given(events: Vec<Event>) -> cqrs_es::test::AggregateTestExecutor<Quota> {
    TestFramework::<Quota>::with(()).given(events)
}

#[test]
fn a_jump_from_79_to_101_percent_crosses_three_thresholds_once_for_each_time_limits_were_set() {
    let (before, after, raised) = (standing(790, 1000, 1), standing(1010, 1000, 1), standing(1010, 1100, 2));
    let three = vec![crossed(80, after, false), crossed(90, after, false), crossed(100, after, true)];
    given(vec![]).when(assess(before)).then_expect_events(vec![opened()]);
    given(vec![opened()]).when(assess(before)).then_expect_events(vec![]);
    given(vec![opened()]).when(assess(after)).then_expect_events(three.clone());
    let told = [vec![opened()], three].concat();
    given(told.clone()).when(assess(after)).then_expect_events(vec![]);
    given(told.clone()).when(assess(standing(1049, 1000, 1))).then_expect_events(vec![]);
    given(told).when(assess(raised)).then_expect_events(vec![crossed(80, raised, false), crossed(90, raised, true)]);
}

#[test]
fn percentages_are_of_what_is_used_and_not_of_what_is_held() {
    let held = Standing { used: 700, held: 300, ..standing(0, 1000, 1) };
    given(vec![opened()]).when(assess(held)).then_expect_events(vec![]);
    let exactly = standing(800, 1000, 1);
    given(vec![opened()]).when(assess(standing(799, 1000, 1))).then_expect_events(vec![]);
    given(vec![opened()]).when(assess(exactly)).then_expect_events(vec![crossed(80, exactly, true)]);
    // Without a limit there is nothing to warn of; of nothing any use is too much.
    given(vec![opened()]).when(assess(Standing { quota: None, limit: None, ..exactly })).then_expect_events(vec![]);
    let nothing = standing(1, 0, 1);
    let all = vec![crossed(80, nothing, false), crossed(90, nothing, false), crossed(100, nothing, true)];
    given(vec![opened()]).when(assess(nothing)).then_expect_events(all);
    assert_eq!((standing(1, 0, 1).percent(), standing(999, 1000, 1).percent()), (None, Some(99)));
}

fn close(now: &str, used: i64, held: i64, included: Option<Included>) -> Issued<Command> {
    let counters: [(CounterName, i64); 2] = [(METER.counter_in(month()), used + held), (METER.held_in(month()), held)];
    let found = Found { counters: counters.into(), segments: vec![segment(1, 0, included)], ..Found::default() };
    Issued { command: ClosePeriod {}.into(), ctx: ctx(now, found) }
}

fn included(quota: i64, amount: u32, per: u32) -> Included {
    let price = UnitPrice { amount, per: NonZeroU32::new(per).unwrap() };
    Included { quota, overage: Some((price, Currency::USD)), by: Some((Uuid::from_u128(8), "starter".into(), 1)) }
}

/// From a day of the month on.
fn segment(day: u32, used: i64, included: Option<Included>) -> Segment {
    Segment { from: format!("2026-11-{day:02}T00:00:00Z").parse().unwrap(), included, used }
}

/// What each part of a month comes to, and all of it.
fn overages(segments: Vec<Segment>) -> (Vec<i64>, i64) {
    let mut quota = Quota::default();
    quota.evolve(opened());
    let mut closing = close("2026-12-04T00:00:00Z", segments.iter().map(|segment| segment.used).sum(), 0, None);
    closing.ctx.found.segments = segments;
    let events = quota.decide(closing).unwrap();
    let [Event::PeriodClosed { overage, segments, .. }] = events.as_slice() else { panic!("{events:?}") };
    (segments.iter().map(|segment| segment.overage).collect(), *overage)
}

#[test]
fn what_was_used_under_a_plan_is_priced_by_that_plan() {
    let plan = |quota| Some(included(quota, 1500, 100));
    // Paid for and used before a downgrade.
    assert_eq!(overages(vec![segment(1, 90_000, plan(100_000)), segment(15, 0, plan(1_000))]), (vec![0, 0], 0));
    // Used after it: the month's use is beyond the lower quota, as it is beyond the lower limit.
    assert_eq!(overages(vec![segment(1, 90_000, plan(100_000)), segment(15, 50, plan(1_000))]), (vec![0, 50], 50));
    // Beyond the quota before an upgrade for two minutes at midnight.
    assert_eq!(overages(vec![segment(1, 12_000, plan(10_000)), segment(30, 0, plan(100_000))]), (vec![2_000, 0], 2_000));
    // There and back: no quota is had twice.
    let there_and_back = vec![segment(1, 9_000, plan(10_000)), segment(2, 3_000, plan(50_000)), segment(3, 500, plan(10_000))];
    assert_eq!(overages(there_and_back), (vec![0, 0, 500], 500));
    // What the platform has set instead is not sold beyond; without a limit nothing is beyond it.
    assert_eq!(overages(vec![segment(1, 50, None), segment(2, 50, plan(60))]), (vec![0, 40], 40));
}

#[test]
fn a_month_is_closed_72_hours_after_its_end_and_takes_nothing_in_any_more() {
    let closed = |used, quota: Option<i64>, overage, amount: Option<i64>| Event::PeriodClosed {
        meter: METER,
        period: month(),
        used,
        quota,
        overage,
        unit_price: amount.map(|_| included(0, 2000, 1000).overage.unwrap().0),
        amount: amount.map(|amount| Money::new(amount, Currency::USD)),
        plan: amount.map(|_| "starter".into()),
        plan_version: amount.map(|_| 1),
        segments: vec![PricedSegment {
            from: "2026-11-01T00:00:00Z".parse().unwrap(),
            used,
            quota,
            overage,
            unit_price: amount.map(|_| included(0, 2000, 1000).overage.unwrap().0),
            amount: amount.map(|amount| Money::new(amount, Currency::USD)),
            subscription: amount.map(|_| Uuid::from_u128(8)),
            plan: amount.map(|_| "starter".into()),
            plan_version: amount.map(|_| 1),
        }],
    };
    let due = "2026-12-04T00:00:00Z";
    let plan = || Some(included(1000, 2000, 1000));
    given(vec![]).when(close(due, 0, 0, None)).then_expect_error(Error::NotOpened);
    given(vec![opened()]).when(close("2026-12-03T23:59:59Z", 0, 0, None)).then_expect_error(Error::NotDue);
    given(vec![opened()]).when(close(due, 1049, 0, plan())).then_expect_events(vec![closed(1049, Some(1000), 49, Some(98))]);
    // What is still held by then was not used.
    given(vec![opened()]).when(close(due, 900, 100, plan())).then_expect_events(vec![closed(900, Some(1000), 0, Some(0))]);
    given(vec![opened()]).when(close(due, 5000, 0, None)).then_expect_events(vec![closed(5000, None, 0, None)]);
    given(vec![opened(), closed(1, None, 0, None)]).when(close(due, 2, 0, None)).then_expect_events(vec![]);
    let effects = Quota::default().effects(&closed(1, None, 0, None));
    assert_eq!(effects[1], Effect::Bound { counter: METER.counter_in(month()), floor: None, ceiling: Some(CLOSED) });
}

#[test]
fn what_overage_comes_to_equals_an_independent_table_to_the_cent() {
    let table = include_str!("../../../tests/overage/overage.csv");
    let mut rows = 0;
    for row in table.lines().skip(1) {
        let fields: Vec<&str> = row.split(',').collect();
        let [used, quota, amount, per, overage, cents] = fields.as_slice() else { panic!("{row}") };
        let mut quota_state = Quota::default();
        quota_state.evolve(opened());
        let included = included(quota.parse().unwrap(), amount.parse().unwrap(), per.parse().unwrap());
        let events = quota_state.decide(close("2026-12-04T00:00:00Z", used.parse().unwrap(), 0, Some(included))).unwrap();
        let [Event::PeriodClosed { overage: was, amount: Some(money), .. }] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!((was.to_string().as_str(), money.amount.to_string().as_str()), (*overage, *cents), "{row}");
        rows += 1;
    }
    assert!(rows > 1000, "{rows}");
}
