//! Given, when, then.

use cqrs_es::test::TestFramework;

use super::*;
use crate::Actor;
use crate::aggregate::{Context, Found};
use crate::ids::StreamId;
use crate::{Aggregate as _, Effect};

fn issued(tenant: TenantId, command: impl Into<Command>) -> Issued<Command> {
    let stream = StreamId::new(tenant, Uuid::from_u128(1));
    let ctx =
        Context { now: chrono::DateTime::UNIX_EPOCH, actor: Actor::system("test"), stream, fresh_id: Uuid::nil(), found: Found::default() };
    Issued { command: command.into(), ctx }
}

fn system(command: impl Into<Command>) -> Issued<Command> {
    issued(TenantId::SYSTEM, command)
}

fn growth() -> DefinePlan {
    shipped().unwrap().remove(1).1
}

fn revised(price: Money) -> RevisePlan {
    let DefinePlan { id: _, code: _, name, price: _, interval, trial_days, entitlements } = growth();
    RevisePlan { name, price, interval, trial_days, entitlements }
}

fn defined() -> Event {
    let DefinePlan { id: _, code, name, price, interval, trial_days, entitlements } = growth();
    Event::Defined { code: code.into(), name: name.into(), terms: Terms { price, interval, trial_days, entitlements } }
}

fn given(events: Vec<Event>) -> cqrs_es::test::AggregateTestExecutor<Plan> {
    TestFramework::<Plan>::with(()).given(events)
}

#[test]
fn every_command_leads_from_every_status_to_where_the_design_says() {
    let cheaper = Money::new(8_900, Currency::USD);
    let DefinePlan { name, interval, trial_days, entitlements, .. } = growth();
    let terms = Terms { price: cheaper, interval, trial_days, entitlements };
    let second = Event::Revised { version: 2, name: name.into(), terms };
    given(vec![]).when(system(growth())).then_expect_events(vec![defined()]);
    given(vec![]).when(system(revised(cheaper))).then_expect_error(Error::NotFound);
    given(vec![]).when(system(RetirePlan {})).then_expect_error(Error::NotFound);
    given(vec![defined()]).when(system(growth())).then_expect_error(Error::AlreadyExists);
    given(vec![defined()]).when(system(revised(cheaper))).then_expect_events(vec![second.clone()]);
    given(vec![defined()]).when(system(revised(growth().price))).then_expect_events(vec![]);
    given(vec![defined(), second]).when(system(revised(cheaper))).then_expect_events(vec![]);
    given(vec![defined()]).when(system(RetirePlan {})).then_expect_events(vec![Event::Retired]);
    given(vec![defined(), Event::Retired]).when(system(RetirePlan {})).then_expect_events(vec![]);
    given(vec![defined(), Event::Retired]).when(system(revised(cheaper))).then_expect_error(Error::Retired);
    given(vec![defined(), Event::Retired]).when(system(growth())).then_expect_error(Error::AlreadyExists);
}

#[test]
fn plans_belong_to_the_platform_and_keep_their_code_and_their_currency() {
    given(vec![]).when(issued(TenantId(Uuid::from_u128(7)), growth())).then_expect_error(Error::PlatformOnly);
    let yen = Money::new(9_900, Currency::try_from("JPY".to_owned()).unwrap());
    given(vec![defined()]).when(system(revised(yen))).then_expect_error(Error::CurrencyFixed);
    let effects = Plan::default().effects(&defined());
    assert_eq!(effects, [Effect::TakeClaim { claim: CODE, label: "code".into(), value: Some("growth".into()) }]);
}

#[test]
fn terms_that_make_no_sense_are_refused() {
    let refused = |plan: DefinePlan| assert!(matches!(Plan::default().decide(system(plan)), Err(Error::BadTerms { .. })));
    refused(DefinePlan { price: Money::new(-1, Currency::USD), ..growth() });
    refused(DefinePlan { price: Money::new(MAX_PRICE + 1, Currency::USD), ..growth() });
    refused(DefinePlan { trial_days: 366, ..growth() });
    refused(DefinePlan { entitlements: [(Meter::Users, Entitlement::of(u64::MAX))].into(), ..growth() });
    let percent = |hard_percent| [(Meter::Users, Entitlement { quota: 1, hard_percent, overage: None })].into();
    refused(DefinePlan { entitlements: percent(99), ..growth() });
    refused(DefinePlan { entitlements: percent(1001), ..growth() });
}

#[test]
fn the_shipped_plans_are_those_of_the_design() {
    let shown: Vec<String> = shipped()
        .unwrap()
        .into_iter()
        .map(|(_, plan)| {
            let limit = |meter| plan.entitlements[&meter].hard_limit(1);
            let overage = plan.entitlements[&Meter::Messages].overage.unwrap();
            let limits = Meter::ALL.map(limit);
            format!("{} {} {limits:?} {}/{}", plan.code.as_str(), plan.price, overage.amount, overage.per)
        })
        .collect();
    assert_eq!(
        shown,
        [
            "starter 29.00 USD [1050, 10000, 1073741824, 5, 1, 10] 2000/1000",
            "growth 99.00 USD [10500, 100000, 10737418240, 25, 5, 100] 1500/1000",
            "enterprise 499.00 USD [105000, 1000000, 107374182400, 500, 50, 5000] 1000/1000",
        ]
    );
}
