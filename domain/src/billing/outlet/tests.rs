//! Given, when, then.

use cqrs_es::test::TestFramework;
use uuid::Uuid;

use super::*;
use crate::aggregate::{Context, Found};
use crate::ids::{StreamId, TenantId};
use crate::text::DisplayName;
use crate::{Actor, Aggregate as _};

fn when(command: impl Into<Command>) -> Issued<Command> {
    let stream = StreamId::new(TenantId(Uuid::from_u128(7)), Uuid::from_u128(1));
    let now = chrono::DateTime::UNIX_EPOCH;
    Issued {
        command: command.into(),
        ctx: Context { now, actor: Actor::system("test"), stream, fresh_id: Uuid::nil(), found: Found::default() },
    }
}

fn given(events: Vec<Event>) -> cqrs_es::test::AggregateTestExecutor<Outlet> {
    TestFramework::<Outlet>::with(()).given(events)
}

const NUMBER: &str = "+4312345678";

fn created(phone: Option<String>) -> Event {
    Event::Created { name: "Vienna".into(), phone, whatsapp: None }
}

fn create() -> CreateOutlet {
    CreateOutlet {
        id: None,
        name: DisplayName::parse("Vienna").unwrap(),
        phone: Some(PhoneNumber::parse("+43 (1) 234-5678").unwrap()),
        whatsapp: None,
    }
}

fn update(body: serde_json::Value) -> UpdateOutlet {
    serde_json::from_value(body).unwrap()
}

#[test]
fn every_command_leads_from_every_state_to_where_the_design_says() {
    let renamed = Event::Updated { name: "Central".into(), phone: Some(NUMBER.into()), whatsapp: None };
    let silent = Event::Updated { name: "Vienna".into(), phone: None, whatsapp: None };
    let rename = || update(serde_json::json!({"name": "Central"}));
    given(vec![]).when(when(create())).then_expect_events(vec![created(Some(NUMBER.into()))]);
    given(vec![]).when(when(rename())).then_expect_error(Error::NotFound);
    given(vec![]).when(when(RemoveOutlet {})).then_expect_error(Error::NotFound);
    given(vec![created(Some(NUMBER.into()))]).when(when(create())).then_expect_error(Error::AlreadyExists);
    given(vec![created(Some(NUMBER.into()))]).when(when(rename())).then_expect_events(vec![renamed.clone()]);
    given(vec![created(Some(NUMBER.into())), renamed]).when(when(rename())).then_expect_events(vec![]);
    given(vec![created(Some(NUMBER.into()))]).when(when(update(serde_json::json!({"phone": null})))).then_expect_events(vec![silent]);
    given(vec![created(Some(NUMBER.into()))]).when(when(RemoveOutlet {})).then_expect_events(vec![Event::Removed]);
    given(vec![created(Some(NUMBER.into())), Event::Removed]).when(when(RemoveOutlet {})).then_expect_events(vec![]);
    given(vec![created(Some(NUMBER.into())), Event::Removed]).when(when(rename())).then_expect_error(Error::NotFound);
    given(vec![created(Some(NUMBER.into())), Event::Removed]).when(when(create())).then_expect_error(Error::AlreadyExists);
}

#[test]
fn an_outlet_takes_one_of_the_plan_and_its_number_until_it_is_removed() {
    let count = |delta| Effect::Count { counter: Meter::Outlets.counter(), delta };
    let take = Effect::TakeClaim { claim: PHONE, label: "phone".into(), value: Some(NUMBER.into()) };
    let release = Effect::ReleaseClaim { claim: PHONE, label: "phone".into() };
    assert_eq!(Outlet::default().effects(&created(Some(NUMBER.into()))), [count(1), take.clone()]);
    assert_eq!(Outlet::default().effects(&created(None)), [count(1)]);
    let mut outlet = Outlet::default();
    outlet.evolve(created(None));
    let called = Event::Updated { name: "Vienna".into(), phone: Some(NUMBER.into()), whatsapp: None };
    assert_eq!(outlet.effects(&called), std::slice::from_ref(&take));
    outlet.evolve(called.clone());
    assert_eq!(outlet.effects(&called), []);
    assert_eq!(outlet.effects(&Event::Updated { name: "Vienna".into(), phone: None, whatsapp: None }), std::slice::from_ref(&release));
    assert_eq!(outlet.effects(&Event::Removed), [count(-1), release]);
}

#[test]
fn phone_numbers_are_kept_as_e164_has_them() {
    assert_eq!(PhoneNumber::parse("+43 (1) 234-5678").unwrap().as_str(), "+4312345678");
    for bad in ["12345678", "+0123456789", "+123456", "+1234567890123456", "+43x1234567", ""] {
        assert!(PhoneNumber::parse(bad).is_err(), "{bad}");
    }
    assert!(MetaId::parse("106540352242922").is_ok() && MetaId::parse("10a").is_err());
}
