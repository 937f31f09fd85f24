//! What is given beyond what was paid for waits for the payment.

use super::*;
use crate::billing::meter::Limit;

/// How many users the events give.
fn users(events: &[Event]) -> i64 {
    fold(events).details().unwrap().in_force()[&Meter::Users].limit
}

/// The events after a command.
fn then(events: &[Event], issued: Issued<Command>) -> Vec<Event> {
    let decided = fold(events).decide(issued).unwrap();
    events.iter().cloned().chain(decided).collect()
}

fn invoice(now: DateTime<Utc>, id: &str, made: DateTime<Utc>, items: &[(&str, u32)]) -> Issued<Command> {
    let item = |(plan, quantity): &(&str, u32)| PaidItem {
        plan: pinned(plan).plan,
        version: 1,
        quantity: Some(*quantity),
        from: None,
        costs: true,
    };
    let items = Some((items.iter().map(item).collect(), made.try_into().unwrap()));
    let fact = Fact::Paid { amount: Some(usd(1)), invoice: Some(Reference::parse(id).unwrap()), items, overage: vec![] };
    at(now, Report { provider_event_id: Reference::parse(&format!("evt_{id}")).unwrap(), occurred_at: now.try_into().unwrap(), fact })
}

#[test]
fn what_is_given_beyond_what_was_paid_for_waits_for_the_invoice_of_just_that() {
    let upgraded = then(&[active(), method()], at(day(10), change("growth", When::Now)));
    assert_eq!(users(&upgraded), 5, "nothing was paid for growth");
    let five = Limit { quota: 5, limit: 5 };
    let held = upgraded.iter().find(|event| matches!(event, Event::LimitsHeld { .. }));
    assert!(matches!(held, Some(Event::LimitsHeld { limits, at, .. }) if limits[&Meter::Users] == five && *at == day(10)));
    // Invoices of the present plan as it was, of the new one that were made before, and of another quantity are for something else.
    for (id, made, items) in [
        ("in_old_plan", day(10), vec![("starter", 1)]),
        ("in_before", day(9), vec![("growth", 1)]),
        ("in_more", day(10), vec![("growth", 2)]),
        ("in_nothing", day(10), vec![]),
    ] {
        assert_eq!(users(&then(&upgraded, invoice(day(11), id, made, &items))), 5, "{id}");
    }
    let paid = then(&upgraded, invoice(day(10), "in_growth", day(10), &[("growth", 1)]));
    assert_eq!((users(&paid), fold(&paid).details().unwrap().is_held()), (25, false));
    // What is given at the change and at the release is in force by their effects.
    let ceilings = |from: usize| {
        let mut state = fold(&paid[..from]);
        let mut ceilings = vec![];
        for event in &paid[from..] {
            for effect in state.effects(event) {
                if let Effect::Bound { counter, ceiling: Some(ceiling), .. } = effect
                    && counter == "users".into()
                {
                    ceilings.push(ceiling);
                }
            }
            state.apply(event.clone());
        }
        ceilings
    };
    assert_eq!(ceilings(2), [5, 25], "what was given, and when it is paid what is subscribed to");
}

#[test]
fn less_is_given_at_once_and_what_costs_no_more_does_not_wait() {
    let growth = [Event::Started {
        pinned: pinned("growth"),
        quantity: 2,
        billing: Billing::Anniversary,
        time_zone: Tz::UTC,
        trial: None,
        period: Some(january()),
    }];
    assert_eq!(users(&growth), 50);
    let fewer = then(&growth, at(day(5), ChangeQuantity { quantity: 1 }));
    assert_eq!(users(&fewer), 25);
    let lower = then(&fewer, at(day(6), change("starter", When::Now)));
    assert_eq!(users(&lower), 5);
    assert!(!lower.iter().any(|event| matches!(event, Event::LimitsHeld { .. })));
    // What was paid for before, and given back, is to be paid for again.
    assert_eq!(users(&then(&lower, at(day(7), change("growth", When::Now)))), 5);
    // In a trial nothing is paid.
    assert_eq!(users(&then(&[trialing()], at(day(1), change("growth", When::Now)))), 25);
    // A plan that gives more for the same price.
    let mut more = at(day(5), change("starter", When::Now));
    let offer = more.ctx.found.plans.get_mut("starter").unwrap();
    (offer.version, offer.terms.entitlements) = (2, [(Meter::Users, Entitlement::of(9))].into());
    assert_eq!(users(&then(&[active()], more)), 9);
}

#[test]
fn the_platform_may_let_so_much_be_unpaid_and_all_that_is_unpaid_counts() {
    let change = |events: &[Event], quantity, ceiling| {
        let mut issued = at(day(1), ChangeQuantity { quantity });
        issued.ctx.found.unpaid_ceiling = ceiling;
        then(events, issued)
    };
    // 2 900 for 30 of 31 days, rounded: 5 613 less 2 806, then 8 419 less 5 613.
    let second = change(&[active()], 2, 2_807);
    assert_eq!(users(&second), 10);
    assert_eq!(users(&change(&[active()], 2, 2_806)), 5);
    assert_eq!(users(&change(&second, 3, 5_612)), 10);
    assert_eq!(users(&change(&second, 3, 5_613)), 15);
}

#[test]
fn a_change_a_moment_before_the_next_period_waits_until_that_is_paid_too() {
    let last_second = day(31) - TimeDelta::milliseconds(600);
    let changed = then(&[active(), method()], at(last_second, change("growth", When::Now)));
    assert_eq!(users(&changed), 5, "what is left of the period costs nothing, and nothing was paid");
    let renewed = then(&changed, at(day(31), RenewPeriod {}));
    assert_eq!((users(&renewed), fold(&renewed).details().unwrap().owed(day(31)).amount), (5, 9_900));
    // By hand: less than that is partial.
    let by_hand = |amount| {
        let payment = RecordPayment { amount: Some(usd(amount)), ..payment("p", day(32)) };
        then(&renewed, at(day(32), RecordPaymentSucceeded(payment)))
    };
    assert_eq!((users(&by_hand(9_899)), users(&by_hand(9_900))), (5, 25));
    // So does a change that begins with a period.
    let scheduled = then(&[active(), method()], at(day(10), change("growth", When::PeriodEnd)));
    let begun = then(&scheduled, at(day(31), RenewPeriod {}));
    assert_eq!(users(&begun), 5);
    assert_eq!(users(&then(&begun, invoice(day(31), "in_1", day(31), &[("growth", 1)]))), 25);
}

#[test]
fn while_a_change_waits_it_can_only_be_taken_back_and_what_is_declined_is_taken_back() {
    let upgraded = then(&[active(), paid("first", day(0)), method()], at(day(10), change("growth", When::Now)));
    for refused in [
        at(day(10), ChangeQuantity { quantity: 2 }),
        at(day(10), change("yearly", When::Now)),
        at(day(10), change("starter", When::PeriodEnd)),
    ] {
        assert_eq!(fold(&upgraded).decide(refused), Err(Error::ChangeWaits));
    }
    let back = then(&upgraded, at(day(10), change("starter", When::Now)));
    let details = fold(&back).details().unwrap().clone();
    assert_eq!((users(&back), details.is_held(), details.owed(day(10)).amount), (5, false, 0));
    // The provider could not collect it: everything is as it was.
    let declined = then(&upgraded, at(day(10), TakeBackChange {}));
    let details = fold(&declined).details().unwrap().clone();
    assert_eq!((&*details.pinned.code, details.quantity, details.period, users(&declined)), ("starter", 1, Some(january()), 5));
    assert_eq!((details.status, details.is_held(), details.unpaid().amount), (Status::Active, false, 0));
    assert_eq!(then(&declined, at(day(11), TakeBackChange {})), declined, "once");
    // Also where a period of another length had begun.
    let mut yearly = at(day(10), change("yearly", When::Now));
    yearly.ctx.found.plans.get_mut("yearly").unwrap().terms.entitlements = [(Meter::Users, Entitlement::of(9))].into();
    let declined = then(&then(&[active(), method()], yearly), at(day(10), TakeBackChange {}));
    let renewed = then(&declined, at(day(31), RenewPeriod {}));
    assert_eq!(fold(&renewed).details().unwrap().period, Some(Period { start: day(31), end: day(59) }));
}

#[test]
fn what_was_not_paid_pays_for_no_other_plan() {
    // A year that is not paid, and a month that gives more and costs less than what is left of the year.
    let year = Some(Period { start: day(0), end: day(365) });
    let pinned = pinned("yearly");
    let begun = Event::Started { pinned, quantity: 1, billing: Billing::Anniversary, time_zone: Tz::UTC, trial: None, period: year };
    let changed = then(&[begun.clone(), method()], at(day(0), change("growth", When::Now)));
    assert_eq!(users(&changed), 5);
    let other = then(&changed, invoice(day(1), "in_growth", day(0), &[("growth", 1)]));
    assert_eq!(users(&other), 5, "only the difference to an unpaid year was paid");
    let paid_both = then(&other, invoice(day(1), "in_yearly", day(0), &[("yearly", 1)]));
    assert_eq!(users(&paid_both), 25);
    // Of a year that is paid.
    assert_eq!(users(&then(&[begun, paid("p", day(0)), method()], at(day(10), change("growth", When::Now)))), 25);
}

#[test]
fn a_subscription_that_has_ended_sets_no_limits_and_what_is_free_is_had_once() {
    let ended = then(&then(&[active(), method()], at(day(10), change("growth", When::Now))), at(day(10), cancel(When::Now)));
    let late = fold(&ended).decide(invoice(day(11), "in_growth", day(10), &[("growth", 1)])).unwrap();
    let mut state = fold(&ended);
    for event in late {
        assert!(!state.effects(&event).iter().any(|effect| matches!(effect, Effect::Bound { .. })));
        state.apply(event);
    }
    let by_admin = |mut issued: Issued<Command>| {
        issued.ctx.actor = Actor::person("ada", issued.ctx.stream.tenant, crate::Role::OrgAdmin);
        issued.ctx.found.plans.get_mut("starter").unwrap().terms.price = usd(0);
        issued
    };
    let ten = by_admin(at(day(0), StartSubscription { quantity: 10, trial_days: Some(0), ..start("starter") }));
    assert!(matches!(Subscription::default().decide(ten), Err(Error::OutOfBounds { .. })));
    let one = by_admin(at(day(0), StartSubscription { trial_days: Some(0), ..start("starter") }));
    let one = Subscription::default().decide(one).unwrap();
    assert!(matches!(fold(&one).decide(by_admin(at(day(1), ChangeQuantity { quantity: 2 }))), Err(Error::OutOfBounds { .. })));
}

#[test]
fn what_was_paid_for_the_next_period_is_given_however_late_the_timer_is() {
    let scheduled = then(&[active(), method()], at(day(10), change("growth", When::PeriodEnd)));
    let heard = then(&scheduled, invoice(day(31) + TimeDelta::hours(1), "in_1", day(31), &[("growth", 1)]));
    let renewed = then(&heard, at(day(31) + TimeDelta::hours(3), RenewPeriod {}));
    assert_eq!((users(&renewed), fold(&renewed).details().unwrap().is_held()), (25, false));
}
