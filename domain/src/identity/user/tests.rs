//! Given, when, then.

use cqrs_es::Aggregate as _;
use cqrs_es::test::{AggregateTestExecutor, TestFramework};
use proptest::prelude::*;

use super::*;
use crate::actor::Actor;
use crate::aggregate::{Aggregate as _, Context, Found};
use crate::text::{DisplayName, Email, Reason};
use crate::{StreamId, TenantId, UserId};

const TENANT: TenantId = TenantId(Uuid::from_u128(7));
const ADA: UserId = UserId(Uuid::from_u128(100));
const GRACE: UserId = UserId(Uuid::from_u128(200));
const FRESH: Uuid = Uuid::from_u128(9);
const TOKEN: Uuid = Uuid::from_u128(10);
const HASH: Uuid = Uuid::from_u128(11);
const SESSION: Uuid = Uuid::from_u128(12);
const DISPATCHER: RoleId = RoleId(Uuid::from_u128(13));

fn hour(n: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::hours(n)
}

fn by(actor: Actor, command: impl Into<Command>) -> Issued<Command> {
    let ctx = Context { now: hour(1), actor, stream: StreamId::new(TENANT, ADA.0), fresh_id: FRESH, found: Found::default() };
    Issued { command: command.into(), ctx }
}

fn admin(command: impl Into<Command>) -> Issued<Command> {
    by(Actor::person(GRACE.to_string(), TENANT, Role::OrgAdmin), command)
}

fn herself(command: impl Into<Command>) -> Issued<Command> {
    by(Actor::person(ADA.to_string(), TENANT, Role::User), command)
}

fn tenure(command: impl Into<Command>) -> Issued<Command> {
    by(Actor::system("test"), command)
}

fn at(now: DateTime<Utc>, mut issued: Issued<Command>) -> Issued<Command> {
    issued.ctx.now = now;
    issued
}

fn given(events: Vec<Event>) -> AggregateTestExecutor<User> {
    TestFramework::<User>::with(()).given(events)
}

fn ada(text: &str) -> Personal<String> {
    Personal::new(ADA.into(), text.to_owned())
}

fn email(text: &str) -> Email {
    Email::parse(text).unwrap()
}

fn name(text: &str) -> DisplayName {
    DisplayName::parse(text).unwrap()
}

fn registered(role: Role) -> Event {
    Event::Registered { email: ada("ada@example.com"), email_verified: true, name: ada("Ada"), role }
}

fn register(role: Role) -> RegisterUser {
    RegisterUser { id: None, email: email("ada@example.com"), name: name("Ada"), role, email_verified: true, welcome: false }
}

fn invite(role: Role) -> InviteUser {
    InviteUser { id: None, email: email("ada@example.com"), name: None, role, expires_in_hours: 168 }
}

fn invited() -> Event {
    Event::Invited {
        email: ada("ada@example.com"),
        name: None,
        role: Role::User,
        token: TOKEN,
        expires_at: hour(169),
        hours: 168,
        invited_by: Some(GRACE),
    }
}

fn suspended() -> Event {
    Event::Suspended { reason: ada("asked to") }
}

fn suspend() -> SuspendUser {
    SuspendUser { reason: Reason::parse("asked to").unwrap() }
}

fn password() -> Event {
    Event::PasswordSet { credential: HASH, keeps: None, by_owner: true }
}

/// The events that bring a user into a status.
fn history(status: Status) -> Vec<Event> {
    match status {
        Status::Invited => vec![invited()],
        Status::Active => vec![registered(Role::User)],
        Status::Locked => vec![registered(Role::User), Event::Locked { until: hour(2) }],
        Status::Suspended => vec![registered(Role::User), suspended()],
        Status::Deactivated => vec![registered(Role::User), Event::Deactivated],
        Status::Deleted => vec![registered(Role::User), Event::Deleted { seats: -1 }],
    }
}

fn fold(events: &[Event]) -> User {
    let mut user = User::default();
    events.iter().for_each(|event| user.apply(event.clone()));
    user
}

const ALL: [Status; 6] = [Status::Invited, Status::Active, Status::Locked, Status::Suspended, Status::Deactivated, Status::Deleted];

/// The table of the design, written down apart from the code: the status that each command leads to, `None` where it is refused.
#[test]
fn every_command_leads_from_every_status_to_where_the_table_says_or_is_refused() {
    use Status::{Active as A, Deactivated as D, Deleted as X, Locked as L, Suspended as S};
    let reject = None;
    let table: [(Command, [Option<Status>; 6]); 8] = [
        // invited, active, locked, suspended, deactivated, deleted
        (LockUser {}.into(), [reject, Some(L), Some(L), reject, reject, reject]),
        (UnlockUser {}.into(), [Some(Status::Invited), Some(A), Some(A), Some(S), Some(D), reject]),
        (suspend().into(), [reject, Some(S), Some(S), Some(S), reject, reject]),
        (ReactivateUser {}.into(), [reject, Some(A), Some(L), Some(A), Some(A), reject]),
        (DeactivateUser {}.into(), [reject, Some(D), Some(D), Some(D), Some(D), reject]),
        (DeleteUser {}.into(), [Some(X), Some(X), Some(X), Some(X), Some(X), Some(X)]),
        (EraseUser {}.into(), [Some(X), Some(X), Some(X), Some(X), Some(X), Some(X)]),
        (SetPassword { credential: HASH, keeps: None, proven: false }.into(), [reject, Some(A), Some(L), reject, reject, reject]),
    ];
    for (command, becomes) in table {
        for (status, expected) in ALL.into_iter().zip(becomes) {
            let user = fold(&history(status));
            let decided = user.decide(admin(command.clone()));
            let after = decided.ok().map(|events| fold(&[history(status), events].concat()).details().unwrap().status);
            assert_eq!(after, expected, "{command:?} while {status}");
        }
    }
}

#[test]
fn an_invitation_is_accepted_once_in_time_with_the_newest_link_only() {
    let accept = |token| tenure(AcceptInvitation { token, name: Some(name("Ada")), credential: HASH });
    let accepted = || Event::InvitationAccepted { name: ada("Ada") };
    given(vec![]).when(admin(invite(Role::User))).then_expect_events(vec![Event::Invited {
        email: ada("ada@example.com"),
        name: None,
        role: Role::User,
        token: FRESH,
        expires_at: hour(169),
        hours: 168,
        invited_by: Some(GRACE),
    }]);
    given(vec![invited()]).when(accept(TOKEN)).then_expect_events(vec![accepted(), password()]);
    given(vec![invited()]).when(accept(FRESH)).then_expect_error(Error::LinkNotGood);
    given(vec![invited()]).when(at(hour(169), accept(TOKEN))).then_expect_error(Error::LinkNotGood);
    given(vec![invited(), accepted(), password()]).when(accept(TOKEN)).then_expect_error(Error::LinkNotGood);
    let resent = || Event::InvitationResent { token: FRESH, expires_at: hour(169) };
    given(vec![invited(), resent()]).when(accept(TOKEN)).then_expect_error(Error::LinkNotGood);
    for end in [Event::InvitationRevoked, Event::InvitationDeclined, Event::InvitationExpired] {
        given(vec![invited(), end]).when(accept(TOKEN)).then_expect_error(Error::LinkNotGood);
    }
    let nameless = tenure(AcceptInvitation { token: TOKEN, name: None, credential: HASH });
    given(vec![invited()]).when(nameless).then_expect_error(Error::NameNeeded);
    given(vec![invited()])
        .when(tenure(ExpireInvitation {}))
        .then_expect_error(Error::NotWhile { command: "expire_invitation", status: Status::Invited });
    given(vec![invited()]).when(at(hour(169), tenure(ExpireInvitation {}))).then_expect_events(vec![Event::InvitationExpired]);
    let never = InviteUser { expires_in_hours: 0, ..invite(Role::User) };
    given(vec![]).when(admin(never)).then_expect_error(Error::BadExpiry);
}

#[test]
fn wrong_passwords_lock_nobody_and_their_owner_is_told_once_a_day() {
    let mut events = vec![registered(Role::User), password()];
    let fail = |events: &Vec<Event>, now, limited| fold(events).decide(at(now, tenure(RecordLoginFailure { limited }))).unwrap();
    for n in 1..100 {
        let failed = fail(&events, hour(1), false);
        assert_eq!(failed, [Event::LoginFailed { failures: n }]);
        events.extend(failed);
    }
    let limited = fail(&events, hour(1), true);
    assert_eq!(limited, [Event::LoginFailed { failures: 100 }, Event::LoginAttemptsLimited { until: hour(1) + LOCK }]);
    events.extend(limited);
    assert_eq!(fold(&events).details().unwrap().status, Status::Active);
    assert_eq!(fail(&events, hour(24), true).len(), 1, "they have been told");
    assert_eq!(fail(&events, hour(25), true).len(), 2);
    let login = tenure(RecordLogin { session: SESSION, credential: Some(HASH) });
    events.extend(fold(&events).decide(login.clone()).unwrap());
    assert_eq!(fail(&events, hour(2), false), [Event::LoginFailed { failures: 1 }], "the right one begins again");
    // A lock by somebody who manages users keeps everybody out who logs in.
    let until = hour(1) + LOCK;
    let locked = fold(&events).effects(&Event::Locked { until });
    assert!(locked.contains(&Effect::SetTimer { name: "lock".into(), due: until }));
    events.push(Event::Locked { until });
    assert!(fold(&events).decide(login).is_err());
    assert_eq!(fail(&events, hour(1), true), []);
    assert_eq!(User::timer("lock"), Some(UnlockUser {}.into()));
}

#[test]
fn nobody_gives_or_takes_what_they_do_not_have() {
    let custom = |permissions: &[&str]| {
        let mut found = Found::default();
        found.roles.insert(DISPATCHER, std::sync::Arc::new(permissions.iter().map(|p| (*p).to_owned()).collect()));
        found
    };
    let with = |mut issued: Issued<Command>, found| {
        issued.ctx.found = found;
        issued
    };
    let dispatcher = Role::Custom(DISPATCHER);
    let own = |key| Actor::User { id: ADA.to_string(), tenant: TENANT, role: Role::User, key, grants: crate::actor::Grants::OfRole };
    let change = |proven| ChangeEmail { email: email("a@example.org"), proven };
    // A token alone, or a key of theirs, gives nobody the account.
    given(vec![registered(Role::User)]).when(by(own(None), change(false))).then_expect_error(Error::PasswordNeeded);
    given(vec![registered(Role::User)]).when(by(own(Some(TOKEN)), change(true))).then_expect_error(Error::PasswordNeeded);
    given(vec![registered(Role::User)]).when(by(own(Some(TOKEN)), UpdateProfile::default())).then_expect_error(Error::NotYourself);
    given(vec![]).when(admin(register(Role::SuperAdmin))).then_expect_error(Error::WrongTenant);
    given(vec![]).when(admin(register(dispatcher))).then_expect_error(Error::NoSuchRole);
    given(vec![]).when(with(tenure(register(dispatcher)), custom(&["ticket:read"]))).then_expect_events(vec![registered(dispatcher)]);
    // Nobody but Tenure itself says whose an address is.
    let unverified = User::default().decide(admin(register(Role::User))).unwrap();
    assert!(matches!(unverified[..], [Event::Registered { email_verified: false, .. }, Event::EmailVerificationRequested { .. }]));
    // A manager of people who does not work on tickets cannot let others, nor touch those who do.
    let grants = crate::actor::Grants::Only(std::sync::Arc::new(
        ["user:manage", "user:register", "user:change_role", "user:update", "tenant:read", "api_key:create", "api_key:read"]
            .map(String::from)
            .into(),
    ));
    let manager = || Actor::User { id: GRACE.to_string(), tenant: TENANT, role: dispatcher, key: None, grants: grants.clone() };
    given(vec![]).when(by(manager(), register(Role::SupportAgent))).then_expect_error(Error::BeyondYou);
    given(vec![registered(Role::OrgAdmin)]).when(by(manager(), ChangeRole { role: dispatcher })).then_expect_error(Error::BeyondYou);
    given(vec![registered(Role::OrgAdmin)])
        .when(by(manager(), SetPassword { credential: HASH, keeps: None, proven: false }))
        .then_expect_error(Error::BeyondYou);
    // People act on their own account, and on no other.
    given(vec![registered(Role::User)]).when(herself(ChangeEmail { email: email("a@example.org"), proven: true })).then_expect_events(
        vec![
            Event::EmailChanged { email: ada("a@example.org") },
            Event::EmailVerificationRequested { token: FRESH, expires_at: hour(1) + VERIFICATION_WINDOW },
        ],
    );
    let other = Actor::person(GRACE.to_string(), TENANT, Role::User);
    given(vec![registered(Role::User)])
        .when(by(other, ChangeEmail { email: email("a@example.org"), proven: true }))
        .then_expect_error(Error::NotYourself);
    // Somebody of another tenant with the same id is somebody else.
    let namesake = Actor::person(ADA.to_string(), TenantId(FRESH), Role::User);
    given(vec![registered(Role::User)])
        .when(by(namesake, ChangeEmail { email: email("a@example.org"), proven: true }))
        .then_expect_error(Error::NotYourself);
    // The platform's own people.
    let mut platform = by(Actor::person("root", TenantId::SYSTEM, Role::SuperAdmin), register(Role::SuperAdmin));
    platform.ctx.stream.tenant = TenantId::SYSTEM;
    assert!(User::default().decide(platform).is_ok());
}

#[test]
fn a_password_ends_all_sessions_but_the_one_in_which_it_was_changed() {
    let user = fold(&[registered(Role::User), password()]);
    let before = user.details().unwrap().epoch;
    let mut after = user.clone();
    after.apply(Event::PasswordSet { credential: FRESH, keeps: Some(SESSION), by_owner: true });
    let details = after.details().unwrap();
    assert!(user.details().unwrap().continues(TOKEN, before));
    assert!(!details.continues(TOKEN, before) && details.continues(SESSION, before) && details.continues(TOKEN, details.epoch));
    for end in [suspended(), Event::Deactivated, Event::Deleted { seats: -1 }] {
        let mut ended = after.clone();
        ended.apply(end);
        ended.apply(Event::Reactivated { seats: 0 });
        assert!(!ended.details().unwrap().continues(SESSION, details.epoch), "not even after coming back");
    }
}

#[test]
fn a_reset_needs_the_newest_link_in_time_and_unlocks() {
    let requested = || Event::PasswordResetRequested { token: TOKEN, expires_at: hour(2), welcome: false };
    let reset = |token| tenure(ResetPassword { token, credential: HASH });
    let locked = || vec![registered(Role::User), Event::Locked { until: hour(9) }, requested()];
    given(locked()).when(reset(TOKEN)).then_expect_events(vec![password(), Event::Unlocked]);
    given(locked()).when(reset(FRESH)).then_expect_error(Error::LinkNotGood);
    given(locked()).when(at(hour(2), reset(TOKEN))).then_expect_error(Error::LinkNotGood);
    given([locked(), vec![password()]].concat()).when(reset(TOKEN)).then_expect_error(Error::LinkNotGood);
    let moved = vec![registered(Role::User), requested(), Event::EmailChanged { email: ada("x@example.com") }];
    given(moved).when(reset(TOKEN)).then_expect_error(Error::LinkNotGood);
    given(vec![registered(Role::User), requested()])
        .when(at(hour(1) + TimeDelta::minutes(9), tenure(RequestPasswordReset {})))
        .then_expect_events(vec![]);
}

fn any_event() -> impl Strategy<Value = Command> {
    let roles = prop_oneof![Just(Role::OrgAdmin), Just(Role::User), Just(Role::SupportAgent), Just(Role::Custom(DISPATCHER))];
    prop_oneof![
        roles.clone().prop_map(|role| register(role).into()),
        roles.clone().prop_map(|role| invite(role).into()),
        roles.prop_map(|role| ChangeRole { role }.into()),
        Just(AcceptInvitation { token: FRESH, name: Some(name("Ada")), credential: HASH }.into()),
        Just(DeclineInvitation { token: FRESH }.into()),
        Just(RevokeInvitation {}.into()),
        Just(LockUser {}.into()),
        Just(UnlockUser {}.into()),
        Just(suspend().into()),
        Just(ReactivateUser {}.into()),
        Just(DeactivateUser {}.into()),
        Just(DeleteUser {}.into()),
        Just(EraseUser {}.into()),
        Just(ChangeEmail { email: email("b@example.com"), proven: true }.into()),
        Just(RecordLoginFailure { limited: true }.into()),
    ]
}

proptest! {
    /// What a user takes up in the guards follows from their state alone, however they came into it.
    #[test]
    fn whatever_happens_to_a_user_their_seat_their_address_and_their_counters_are_what_their_status_says(commands in prop::collection::vec(any_event(), 1..40)) {
        let mut user = User::default();
        let (mut counters, mut claims, mut timers) = (std::collections::BTreeMap::<String, i64>::new(), std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
        for command in commands {
            let mut issued = tenure(command);
            issued.ctx.found.roles.insert(DISPATCHER, std::sync::Arc::new(["ticket:work".to_owned()].into()));
            for event in user.decide(issued).unwrap_or_default() {
                for effect in user.effects(&event) {
                    match effect {
                        Effect::Count { counter, delta } => *counters.entry(counter.to_string()).or_default() += delta,
                        Effect::TakeClaim { claim, .. } => drop(claims.insert(claim.namespace)),
                        Effect::ReleaseClaim { claim, .. } => drop(claims.remove(claim.namespace)),
                        Effect::SetTimer { name, .. } => drop(timers.insert(name)),
                        Effect::CancelTimer { name } => drop(timers.remove(&name)),
                        Effect::Bound { .. } | Effect::Allocate { .. } | Effect::Gate(_) | Effect::Erase(_) | Effect::EndTenant => {}
                    }
                }
                user.apply(event);
            }
        }
        counters.retain(|_, value| *value != 0);
        let Some(details) = user.details() else { return Ok(()) };
        let (status, role) = (details.status, details.role);
        let acts = matches!(status, Status::Active | Status::Locked);
        let mut expected = std::collections::BTreeMap::new();
        if acts || status == Status::Suspended { expected.insert("users".to_owned(), 1); }
        if acts && role == Role::OrgAdmin { expected.insert("active_org_admins".to_owned(), 1); }
        if status != Status::Deleted && role == Role::Custom(DISPATCHER) { expected.insert(format!("role_users:{DISPATCHER}"), 1); }
        prop_assert_eq!(counters, expected);
        prop_assert_eq!(claims.contains("user_email"), status != Status::Deleted);
        prop_assert_eq!(claims.contains("staff"), acts && role != Role::User);
        prop_assert_eq!(claims.contains("payers"), acts && role == Role::OrgAdmin);
        prop_assert_eq!(timers.contains("invitation"), status == Status::Invited);
        prop_assert_eq!(timers.contains("lock"), status == Status::Locked);
    }
}

#[test]
fn what_events_say_of_seats_is_what_their_effects_count() {
    let commands: [Command; 3] = [DeleteUser {}.into(), DeactivateUser {}.into(), ReactivateUser {}.into()];
    for status in ALL {
        for command in &commands {
            let user = fold(&history(status));
            for event in user.decide(admin(command.clone())).unwrap_or_default() {
                let of = |effect: &Effect| {
                    if let Effect::Count { counter, delta } = effect { (*counter == SEATS.into()).then_some(*delta) } else { None }
                };
                let counted: i64 = user.effects(&event).iter().filter_map(of).sum();
                assert_eq!(User::metered(&event), counted, "{event:?} while {status}");
            }
        }
    }
}
