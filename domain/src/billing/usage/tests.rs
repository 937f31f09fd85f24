//! Given, when, then.

use std::collections::BTreeSet;

use cqrs_es::test::TestFramework;
use uuid::Uuid;

use super::*;
use crate::aggregate::{Context, Found};
use crate::ids::TenantId;
use crate::{Actor, Aggregate as _};

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn issued(now: &str, zone: Tz, command: impl Into<Command>) -> Issued<Command> {
    let found = Found { time_zone: Some(zone), ..Found::default() };
    let stream = StreamId::new(TenantId(Uuid::from_u128(7)), Uuid::from_u128(1));
    Issued { command: command.into(), ctx: Context { now: at(now), actor: Actor::system("test"), stream, fresh_id: Uuid::nil(), found } }
}

fn item(quantity: i64, used_at: Option<&str>) -> UsageItem {
    UsageItem { id: UsageId::parse("a").unwrap(), quantity, at: used_at.map(|n| at(n).try_into().unwrap()) }
}

fn record(meter: Meter, items: Vec<UsageItem>) -> RecordUsage {
    RecordUsage { meter, items, closed: BTreeSet::new() }
}

fn places(now: &str, zone: Tz, used_at: &str) -> Result<(String, Option<String>), Error> {
    let events = Usage::default().decide(issued(now, zone, record(Meter::Messages, vec![item(1, Some(used_at))])))?;
    let [Event::Recorded { period, adjusts, .. }] = events.as_slice() else { panic!("{events:?}") };
    Ok((period.to_string(), adjusts.map(|month| month.to_string())))
}

#[test]
fn use_counts_in_its_own_month_by_the_tenants_calendar_until_72_hours_after_that() {
    let (utc, kiritimati) = (Tz::UTC, Tz::Pacific__Kiritimati);
    let own = |month: &str| Ok((month.to_owned(), None));
    assert_eq!(places("2026-11-30T23:59:59Z", utc, "2026-11-30T23:59:58Z"), own("2026-11"));
    assert_eq!(places("2026-12-01T00:00:00Z", utc, "2026-12-01T00:00:00Z"), own("2026-12"));
    // There the month has begun 14 hours before.
    assert_eq!(places("2026-11-30T10:00:00Z", kiritimati, "2026-11-30T10:00:00Z"), own("2026-12"));
    assert_eq!(places("2026-11-30T10:00:00Z", kiritimati, "2026-11-30T09:59:59Z"), own("2026-11"));
    // Late, and too late for its own month.
    assert_eq!(places("2026-12-03T23:59:59Z", utc, "2026-11-30T23:00:00Z"), own("2026-11"));
    assert_eq!(places("2026-12-04T00:00:00Z", utc, "2026-11-30T23:00:00Z"), Ok(("2026-12".into(), Some("2026-11".into()))));
    assert_eq!(places("2026-12-03T10:00:00Z", kiritimati, "2026-11-30T09:00:00Z"), Ok(("2026-12".into(), Some("2026-11".into()))));
}

#[test]
fn use_is_refused_that_is_older_than_35_days_or_more_than_5_minutes_ahead() {
    let utc = Tz::UTC;
    assert!(places("2026-12-05T00:00:00Z", utc, "2026-10-31T00:00:00Z").is_ok());
    assert_eq!(places("2026-12-05T00:00:00Z", utc, "2026-10-30T23:59:59Z"), Err(Error::TooOld));
    assert!(places("2026-12-05T00:00:00Z", utc, "2026-12-05T00:05:00Z").is_ok());
    assert_eq!(places("2026-12-05T00:00:00Z", utc, "2026-12-05T00:05:01Z"), Err(Error::Ahead));
}

#[test]
fn what_makes_no_sense_is_not_recorded() {
    let refused =
        |meter, quantity| Usage::default().decide(issued("2026-11-05T00:00:00Z", Tz::UTC, record(meter, vec![item(quantity, None)])));
    for meter in [Meter::Users, Meter::Outlets, Meter::Devices] {
        assert_eq!(refused(meter, 1), Err(Error::NotRecorded { meter }));
    }
    for quantity in [0, -1, 1_000_000_000_001] {
        assert_eq!(refused(Meter::Messages, quantity), Err(Error::BadQuantity));
    }
    assert_eq!(refused(Meter::Storage, 0), Err(Error::BadQuantity));
    assert!(refused(Meter::Storage, -5).is_ok());
    assert!(UsageId::parse(" a").is_err() && UsageId::parse("").is_err() && UsageId::parse(&"x".repeat(101)).is_err());
}

#[test]
fn a_batch_is_counted_month_by_month() {
    let items = vec![item(1, Some("2026-11-30T23:00:00Z")), item(2, Some("2026-12-01T01:00:00Z")), item(4, Some("2026-11-29T23:00:00Z"))];
    let events = Usage::default().decide(issued("2026-12-01T02:00:00Z", Tz::UTC, record(Meter::ApiCalls, items))).unwrap();
    let totals: Vec<(String, i64)> = events
        .iter()
        .map(|event| {
            let Event::Recorded { period, total, .. } = event else { panic!("{event:?}") };
            (period.to_string(), *total)
        })
        .collect();
    assert_eq!(totals, [("2026-11".to_owned(), 5), ("2026-12".to_owned(), 2)]);
    let effects = Usage::default().effects(&events[0]);
    assert_eq!(effects, [Effect::Count { counter: Meter::ApiCalls.counter_in("2026-11".parse().unwrap()), delta: 5 }]);
}

const RESERVED_AT: &str = "2026-11-30T23:59:00Z";

fn reserved() -> Event {
    Event::Reserved {
        meter: Meter::Messages,
        period: "2026-11".parse().unwrap(),
        quantity: 20,
        expires_at: at("2026-12-01T00:04:00Z"),
        time_zone: Tz::UTC,
    }
}

fn given(events: Vec<Event>) -> cqrs_es::test::AggregateTestExecutor<Usage> {
    TestFramework::<Usage>::with(()).given(events)
}

fn when(now: &str, command: impl Into<Command>) -> Issued<Command> {
    issued(now, Tz::UTC, command)
}

#[test]
fn a_reservation_is_committed_released_or_expires_once() {
    let (meter, period, reserved_) = (Meter::Messages, "2026-11".parse().unwrap(), 20);
    let committed = |quantity| Event::Committed { meter, period, reserved: reserved_, quantity, time_zone: Tz::UTC };
    let (released, expired) =
        (Event::Released { meter, period, reserved: reserved_ }, Event::Expired { meter, period, reserved: reserved_ });
    let (soon, late) = ("2026-12-01T00:03:59Z", "2026-12-01T00:04:00Z");
    let reserve = ReserveUsage { id: None, meter, quantity: 20, ttl_seconds: 300 };
    let commit = |quantity| CommitUsage { quantity };
    given(vec![]).when(when(RESERVED_AT, reserve.clone())).then_expect_events(vec![reserved()]);
    given(vec![]).when(when(soon, commit(None))).then_expect_error(Error::NotFound);
    given(vec![reserved()]).when(when(soon, reserve)).then_expect_error(Error::AlreadyExists);
    // What was reserved in a month counts in it, whatever the month is when it is said to have been used.
    given(vec![reserved()]).when(when(soon, commit(None))).then_expect_events(vec![committed(20)]);
    given(vec![reserved()]).when(when(soon, commit(Some(7)))).then_expect_events(vec![committed(7)]);
    given(vec![reserved()]).when(when(soon, commit(Some(0)))).then_expect_events(vec![committed(0)]);
    given(vec![reserved()]).when(when(soon, commit(Some(21)))).then_expect_error(Error::MoreThanReserved { reserved: 20 });
    given(vec![reserved()]).when(when(soon, commit(Some(-1)))).then_expect_error(Error::BadQuantity);
    given(vec![reserved()]).when(when(late, commit(None))).then_expect_error(Error::Settled { how: "expired" });
    given(vec![reserved()]).when(when(soon, ReleaseUsage {})).then_expect_events(vec![released.clone()]);
    given(vec![reserved()]).when(when(soon, ExpireUsage {})).then_expect_error(Error::NotDue);
    given(vec![reserved()]).when(when(late, ExpireUsage {})).then_expect_events(vec![expired.clone()]);
    given(vec![reserved(), committed(7)]).when(when(late, commit(Some(7)))).then_expect_events(vec![]);
    given(vec![reserved(), committed(7)]).when(when(soon, commit(None))).then_expect_error(Error::Settled { how: "committed" });
    given(vec![reserved(), committed(7)]).when(when(soon, ReleaseUsage {})).then_expect_error(Error::Settled { how: "committed" });
    for end in [released, expired] {
        given(vec![reserved(), end.clone()]).when(when(soon, ReleaseUsage {})).then_expect_events(vec![]);
        let how = if matches!(end, Event::Released { .. }) { "released" } else { "expired" };
        given(vec![reserved(), end]).when(when(soon, commit(None))).then_expect_error(Error::Settled { how });
    }
}

#[test]
fn what_is_held_is_counted_until_it_is_used_or_not() {
    let counts = |before: &[Event], event: Event| -> (i64, i64) {
        let mut state = Usage::default();
        before.iter().for_each(|event| state.evolve(event.clone()));
        let (all, held) = (Meter::Messages.counter_in("2026-11".parse().unwrap()), Meter::Messages.held_in("2026-11".parse().unwrap()));
        let effects = state.effects(&event);
        let sum = |counter| {
            let of =
                |effect: &Effect| if let Effect::Count { counter: c, delta } = effect { if *c == counter { *delta } else { 0 } } else { 0 };
            effects.iter().map(of).sum()
        };
        (sum(all), sum(held))
    };
    let (meter, period) = (Meter::Messages, "2026-11".parse().unwrap());
    assert_eq!(counts(&[], reserved()), (20, 20));
    assert_eq!(counts(&[reserved()], Event::Committed { meter, period, reserved: 20, quantity: 7, time_zone: Tz::UTC }), (-13, -20));
    assert_eq!(counts(&[reserved()], Event::Committed { meter, period, reserved: 20, quantity: 20, time_zone: Tz::UTC }), (0, -20));
    assert_eq!(counts(&[reserved()], Event::Released { meter, period, reserved: 20 }), (-20, -20));
    assert_eq!(counts(&[reserved()], Event::Expired { meter, period, reserved: 20 }), (-20, -20));
}

#[test]
fn a_reservation_lasts_a_second_to_a_day() {
    let reserve = |ttl_seconds| when(RESERVED_AT, ReserveUsage { id: None, meter: Meter::Storage, quantity: 1, ttl_seconds });
    for bad in [0, 86_401] {
        given(vec![]).when(reserve(bad)).then_expect_error(Error::BadTimeToLive);
    }
    assert!(Usage::default().decide(reserve(1)).is_ok() && Usage::default().decide(reserve(86_400)).is_ok());
}
