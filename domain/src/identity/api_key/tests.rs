//! Given, when, then.

use cqrs_es::Aggregate as _;
use cqrs_es::test::{AggregateTestExecutor, TestFramework};

use super::*;
use crate::actor::Role;
use crate::aggregate::Found;
use crate::text::{DisplayName, Permission, Reference};
use crate::{StreamId, TenantId};

const TENANT: TenantId = TenantId(Uuid::from_u128(7));
const ADA: UserId = UserId(Uuid::from_u128(100));
const GRACE: UserId = UserId(Uuid::from_u128(200));
const FIRST: Uuid = Uuid::from_u128(1);
const SECOND: Uuid = Uuid::from_u128(2);

fn day(n: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::days(n)
}

fn by(user: UserId, role: Role, command: impl Into<Command>) -> Issued<Command> {
    let stream = StreamId::new(TENANT, Uuid::from_u128(9));
    let actor = Actor::person(user.to_string(), TENANT, role);
    Issued { command: command.into(), ctx: Context { now: day(1), actor, stream, fresh_id: Uuid::nil(), found: Found::default() } }
}

fn given(events: Vec<Event>) -> AggregateTestExecutor<ApiKey> {
    TestFramework::<ApiKey>::with(()).given(events)
}

fn create(kind: Kind, scope: &str) -> CreateKey {
    let name = DisplayName::parse("export").unwrap();
    CreateKey {
        name,
        prefix: Reference::parse("tnr_abc").unwrap(),
        kind,
        scopes: [Permission::parse(scope).unwrap()].into(),
        expires_at: Some(day(10).try_into().unwrap()),
        secret: FIRST,
    }
}

fn created(kind: Kind) -> Event {
    Event::Created {
        name: "export".into(),
        prefix: "tnr_abc".into(),
        kind,
        owner: Some(ADA),
        scopes: ["ticket:read".to_owned()].into(),
        expires_at: Some(day(10)),
        secret: FIRST,
    }
}

#[test]
fn a_key_may_no_more_than_whoever_makes_it() {
    given(vec![]).when(by(ADA, Role::User, create(Kind::Personal, "ticket:read"))).then_expect_events(vec![created(Kind::Personal)]);
    given(vec![])
        .when(by(ADA, Role::User, create(Kind::Personal, "ticket:work")))
        .then_expect_error(Error::BeyondYou { scope: "ticket:work".into() });
    given(vec![])
        .when(by(ADA, Role::OrgAdmin, create(Kind::Personal, "tenant:create")))
        .then_expect_error(Error::NoSuchScope { scope: "tenant:create".into() });
    given(vec![]).when(by(ADA, Role::User, create(Kind::Service, "ticket:read"))).then_expect_error(Error::ServiceKeysOnly);
    given(vec![]).when(by(ADA, Role::OrgAdmin, create(Kind::Service, "ticket:read"))).then_expect_events(vec![created(Kind::Service)]);
    let mut with_a_key = by(ADA, Role::User, create(Kind::Personal, "ticket:read"));
    if let Actor::User { key, .. } = &mut with_a_key.ctx.actor {
        *key = Some(SECOND);
    }
    given(vec![]).when(with_a_key).then_expect_error(Error::PeopleOnly);
}

#[test]
fn the_old_secret_is_good_for_its_grace_time_only_and_none_after_revocation_or_expiry() {
    let mut key = ApiKey::default();
    key.apply(created(Kind::Personal));
    key.apply(Event::Rotated { secret: SECOND, prefix: "tnr_def".into(), previous_until: day(2) });
    let opens = |key: &ApiKey, secret, now| key.details().unwrap().opens(secret, now);
    assert!(opens(&key, FIRST, day(1)) && opens(&key, SECOND, day(1)));
    assert!(!opens(&key, FIRST, day(2)) && opens(&key, SECOND, day(2)));
    assert!(!opens(&key, SECOND, day(10)));
    // Rotated once more before the first grace time is over: all three are good, and of many the newest.
    let nth = |n: u128| Uuid::from_u128(100 + n);
    key.apply(Event::Rotated { secret: nth(0), prefix: "tnr_x".into(), previous_until: day(3) });
    assert!(opens(&key, FIRST, day(1)) && opens(&key, SECOND, day(2)) && opens(&key, nth(0), day(3)) && !opens(&key, SECOND, day(3)));
    for n in 1..10 {
        key.apply(Event::Rotated { secret: nth(n), prefix: "tnr_x".into(), previous_until: day(9) });
    }
    assert!(!opens(&key, nth(4), day(1)) && opens(&key, nth(5), day(1)) && opens(&key, nth(9), day(1)));
    assert_eq!(key.details().unwrap().secrets(day(1)).len(), 5);
    key.apply(Event::Revoked);
    assert!(!opens(&key, SECOND, day(1)) && key.details().unwrap().secrets(day(1)).is_empty());
}

#[test]
fn somebody_elses_key_does_not_exist_but_for_those_who_manage_keys_and_they_only_end_it() {
    let rotate = |seconds| RotateKey { secret: SECOND, prefix: Reference::parse("tnr_def").unwrap(), grace_seconds: seconds };
    let rotated = Event::Rotated { secret: SECOND, prefix: "tnr_def".into(), previous_until: day(1) + TimeDelta::seconds(60) };
    let personal = || vec![created(Kind::Personal)];
    given(personal()).when(by(ADA, Role::User, rotate(60))).then_expect_events(vec![rotated.clone()]);
    given(personal()).when(by(ADA, Role::User, rotate(9_999_999))).then_expect_error(Error::GraceTooLong);
    given(personal()).when(by(GRACE, Role::User, RevokeKey {})).then_expect_error(Error::NotFound);
    given(personal()).when(by(GRACE, Role::OrgAdmin, RevokeKey {})).then_expect_events(vec![Event::Revoked]);
    given(personal()).when(by(GRACE, Role::OrgAdmin, rotate(60))).then_expect_error(Error::NotFound);
    given(vec![created(Kind::Service)]).when(by(GRACE, Role::OrgAdmin, rotate(60))).then_expect_events(vec![rotated]);
    given(vec![created(Kind::Personal), Event::Revoked]).when(by(ADA, Role::User, rotate(60))).then_expect_error(Error::NotLive);
}
