//! Given, when, then.

use chrono::{DateTime, TimeDelta, Utc};
use cqrs_es::Aggregate as _;
use cqrs_es::test::{AggregateTestExecutor, TestFramework};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::Actor;
use crate::aggregate::{Aggregate as _, Context};
use crate::json::JsonObject;
use crate::text::{DisplayName, DomainName, Email, Reason, SecretRef, TxtRecord};
use crate::{StreamId, TenantId};

fn day(n: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::days(n)
}

fn at(now: DateTime<Utc>, command: impl Into<Command>) -> Issued<Command> {
    let id = Uuid::from_u128(7);
    Issued {
        command: command.into(),
        ctx: Context {
            now,
            actor: Actor::System { name: "test".into() },
            stream: StreamId::new(TenantId(id), id),
            fresh_id: Uuid::from_u128(9),
            found: crate::aggregate::Found::default(),
        },
    }
}

fn now(command: impl Into<Command>) -> Issued<Command> {
    at(day(1), command)
}

fn given(events: &[&Event]) -> AggregateTestExecutor<Tenant> {
    TestFramework::<Tenant>::with(()).given(events.iter().map(|e| (*e).clone()).collect())
}

fn slug(text: &str) -> Slug {
    Slug::parse(text).unwrap()
}

fn name(text: &str) -> DisplayName {
    DisplayName::parse(text).unwrap()
}

fn settings(json: serde_json::Value) -> UpdateSettings {
    UpdateSettings(JsonObject::try_from(json).unwrap())
}

fn suspend() -> SuspendTenant {
    SuspendTenant { reason: Reason::parse("unpaid").unwrap() }
}

fn provision() -> ProvisionTenant {
    ProvisionTenant { id: None, slug: slug("acme"), name: name("Acme"), plan: None, owner: None }
}

fn provisioned() -> Event {
    Event::Provisioned { slug: "acme".into(), name: "Acme".into(), plan: None, owner: None }
}

/// The events that bring a new tenant into a status.
fn history(status: Status) -> Vec<Event> {
    let active = Event::ProvisioningCompleted { trialing: false };
    let mut events = vec![provisioned()];
    match status {
        Status::Provisioning => {}
        Status::Trialing => events.push(Event::ProvisioningCompleted { trialing: true }),
        Status::Active => events.push(active),
        Status::PastDue => events.extend([active, Event::BecamePastDue]),
        Status::Frozen => events.extend([active, Event::Frozen]),
        Status::Suspended => events.extend([active, Event::Suspended { reason: "unpaid".into(), for_payment: false }]),
        Status::Deactivated => events.extend([active, Event::Deactivated]),
        Status::Cancelled => events.extend([active, Event::Cancelled { at: day(0), with_subscription: false }]),
        Status::Deleted => events.extend([active, Event::Deactivated, Event::Deleted]),
    }
    events
}

#[test]
fn a_tenant_is_provisioned_with_an_owner_whose_data_is_personal() {
    let owner = NewOwner { email: Email::parse("ada@example.com").unwrap(), name: name("Ada") };
    let subject = SubjectId(Uuid::from_u128(9));
    given(&[]).when(now(ProvisionTenant { owner: Some(owner), ..provision() })).then_expect_events(vec![Event::Provisioned {
        slug: "acme".into(),
        name: "Acme".into(),
        plan: None,
        owner: Some(Owner { subject, email: Personal::new(subject, "ada@example.com".into()), name: Personal::new(subject, "Ada".into()) }),
    }]);
}

/// The table of the design, written down apart from the code: what each lifecycle command does in each status.
#[derive(Debug, PartialEq)]
enum Then {
    Becomes(Status),
    AlreadySo,
    Refused,
    Gone,
}

#[expect(clippy::match_same_arms, reason = "a table, line by line")]
fn expected(status: Option<Status>, command: &Command) -> Then {
    use Status::{Active, Cancelled, Deactivated, Deleted, Frozen, PastDue, Provisioning, Suspended, Trialing};
    use Then::{AlreadySo, Becomes, Gone, Refused};
    let Some(status) = status else { return if matches!(command, Command::Provision(_)) { Becomes(Provisioning) } else { Gone } };
    match (command, status) {
        (Command::Provision(_), _) => Refused,
        (Command::Delete(_), Deleted)
        | (Command::CompleteProvisioning(_), Trialing | Active | PastDue)
        | (Command::Suspend(_), Suspended)
        | (Command::Freeze(_), Frozen)
        | (Command::Deactivate(_), Deactivated)
        | (Command::Cancel(_), Cancelled)
        | (Command::Reactivate(_), Active | PastDue) => AlreadySo,
        (_, Deleted) => Gone,
        (Command::CompleteProvisioning(c), Provisioning) => Becomes(if c.trialing { Trialing } else { Active }),
        (Command::Suspend(_), Trialing | Active | PastDue) => Becomes(Suspended),
        (Command::Freeze(_), Trialing | Active | PastDue) => Becomes(Frozen),
        (Command::Deactivate(_), Trialing | Active | PastDue) => Becomes(Deactivated),
        (Command::Cancel(_), Trialing | Active | PastDue) => Becomes(Cancelled),
        (Command::Reactivate(_), Frozen | Suspended | Deactivated | Cancelled) => Becomes(Active),
        (Command::Delete(_), Cancelled | Deactivated) => Becomes(Deleted),
        // Plain edits: allowed while the tenant is open, and then it stays what it is.
        (
            Command::Rename(_)
            | Command::ChangeSlug(_)
            | Command::UpdateSettings(_)
            | Command::SetLlmConfig(_)
            | Command::SetBranding(_)
            | Command::AddDomain(_),
            Provisioning | Trialing | Active | PastDue,
        ) => Becomes(status),
        (Command::OverrideLimit(_), _) => Becomes(status),
        (Command::RemoveDomain(_), Provisioning | Trialing | Active | PastDue) | (Command::ClearLimitOverride(_), _) => AlreadySo,
        // The table of the design of what a subscription's status means to its tenant.
        (Command::FollowSubscription(c), _) => match (c.standing, status) {
            (Standing::Active, Trialing | PastDue) => Becomes(Active),
            (Standing::PastDue, Trialing | Active) => Becomes(PastDue),
            (Standing::Stopped, Trialing | Active | PastDue) => Becomes(Suspended),
            (Standing::Cancelled, Trialing | Active | PastDue) => Becomes(Cancelled),
            _ => AlreadySo,
        },
        _ => Refused,
    }
}

fn every_command() -> Vec<Command> {
    vec![
        provision().into(),
        CompleteProvisioning { trialing: false }.into(),
        CompleteProvisioning { trialing: true }.into(),
        RenameTenant { name: name("Other") }.into(),
        ChangeSlug { slug: slug("other") }.into(),
        settings(serde_json::json!({"theme": "dark"})).into(),
        SetLlmConfig {
            provider: Identifier::parse("openai").unwrap(),
            model: Identifier::parse("gpt-4o").unwrap(),
            secret_ref: SecretRef::parse("env:KEY").unwrap(),
        }
        .into(),
        SetBranding { primary_color: Some(Color::parse("#0A7CFF").unwrap()), logo_url: None }.into(),
        suspend().into(),
        FreezeTenant {}.into(),
        DeactivateTenant {}.into(),
        CancelTenant {}.into(),
        ReactivateTenant {}.into(),
        DeleteTenant {}.into(),
        OverrideLimit { meter: Meter::Users, limit: 50, until: None }.into(),
        ClearLimitOverride { meter: Meter::Users }.into(),
        AddDomain { domain: domain() }.into(),
        VerifyDomain { domain: domain(), records: vec![] }.into(),
        RemoveDomain { domain: domain() }.into(),
        follow(Standing::Trialing),
        follow(Standing::Active),
        follow(Standing::PastDue),
        follow(Standing::Stopped),
        follow(Standing::Cancelled),
    ]
}

/// What is otherwise when it is its subscription that stopped or ended it.
fn expected_when_stopped(status: Option<Status>, command: &Command) -> Option<Then> {
    match (command, status?) {
        (
            Command::FollowSubscription(FollowSubscription { standing: Standing::Active | Standing::Trialing }),
            Status::Suspended | Status::Cancelled,
        ) => Some(Then::Becomes(Status::Active)),
        (Command::FollowSubscription(FollowSubscription { standing: Standing::Cancelled }), Status::Suspended) => {
            Some(Then::Becomes(Status::Cancelled))
        }
        (Command::Suspend(_), Status::Suspended) => Some(Then::Becomes(Status::Suspended)),
        _ => None,
    }
}

fn follow(standing: Standing) -> Command {
    FollowSubscription { standing }.into()
}

fn domain() -> DomainName {
    DomainName::parse("Acme.example").unwrap()
}

fn fold(events: &[Event]) -> Tenant {
    let mut tenant = Tenant::default();
    events.iter().for_each(|event| tenant.apply(event.clone()));
    tenant
}

/// What the command really does, in the words of the table.
fn actual(tenant: &Tenant, issued: Issued<Command>) -> Then {
    match tenant.decide(issued) {
        Ok(events) if events.is_empty() => Then::AlreadySo,
        Ok(events) => {
            let mut after = tenant.clone();
            events.into_iter().for_each(|event| after.apply(event));
            Then::Becomes(after.status().unwrap())
        }
        Err(Error::NotFound) => Then::Gone,
        Err(_) => Then::Refused,
    }
}

#[test]
fn every_transition_legal_and_illegal_is_as_the_design_says() {
    for status in [None].into_iter().chain(Status::ALL.map(Some)) {
        let tenant = fold(&status.map(history).unwrap_or_default());
        assert_eq!(tenant.status(), status);
        for command in every_command() {
            assert_eq!(actual(&tenant, now(command.clone())), expected(status, &command), "{status:?}: {command:?}");
        }
    }
}

#[test]
fn an_illegal_transition_has_a_code_that_names_state_and_command() {
    use crate::error::DomainError as _;
    let frozen = history(Status::Frozen);
    let error = fold(&frozen).decide(now(RenameTenant { name: name("Other") })).unwrap_err();
    assert_eq!((error.code().as_ref(), error.kind()), ("tenant.cannot_rename_while_frozen", crate::Kind::Conflict));
}

#[test]
fn a_cancelled_tenant_comes_back_within_30_days_and_not_later() {
    let cancelled = history(Status::Cancelled);
    let cancelled: Vec<_> = cancelled.iter().collect();
    given(&cancelled).when(at(day(30), ReactivateTenant {})).then_expect_events(vec![Event::Reactivated]);
    given(&cancelled).when(at(day(31), ReactivateTenant {})).then_expect_error(Error::ReactivationWindowPassed);
}

#[test]
fn an_old_slug_stays_an_alias_for_30_days() {
    let changed = Event::SlugChanged { from: "acme".into(), to: "other".into(), alias_until: day(31) };
    given(&[&provisioned()]).when(now(ChangeSlug { slug: slug("other") })).then_expect_events(vec![changed.clone()]);
    let expire = || ExpireSlugAlias { slug: SlugAlias::parse("acme").unwrap() };
    given(&[&provisioned(), &changed]).when(at(day(30), expire())).then_expect_error(Error::AliasNotExpired);
    given(&[&provisioned(), &changed])
        .when(at(day(31), expire()))
        .then_expect_events(vec![Event::SlugAliasExpired { slug: "acme".into() }]);
    let expired = Event::SlugAliasExpired { slug: "acme".into() };
    given(&[&provisioned(), &changed, &expired]).when(at(day(32), expire())).then_expect_error(Error::AliasNotExpired);
}

#[test]
fn an_alias_expires_in_every_status_or_its_slug_would_be_held_for_ever() {
    let changed = Event::SlugChanged { from: "acme".into(), to: "other".into(), alias_until: day(31) };
    for status in [
        Event::Frozen,
        Event::Suspended { reason: "unpaid".into(), for_payment: false },
        Event::Deactivated,
        Event::Cancelled { at: day(2), with_subscription: false },
    ] {
        let events = [&provisioned(), &Event::ProvisioningCompleted { trialing: false }, &changed, &status];
        given(&events)
            .when(at(day(40), ExpireSlugAlias { slug: SlugAlias::parse("acme").unwrap() }))
            .then_expect_events(vec![Event::SlugAliasExpired { slug: "acme".into() }]);
    }
}

#[test]
fn going_back_to_an_alias_of_ones_own_makes_it_current_again_and_cancels_its_timer() {
    let there = Event::SlugChanged { from: "acme".into(), to: "other".into(), alias_until: day(31) };
    let back = Event::SlugChanged { from: "other".into(), to: "acme".into(), alias_until: day(31) };
    let tenant = fold(&[provisioned(), there]);
    let effects = tenant.effects(&back);
    assert!(effects.contains(&Effect::ReleaseClaim { claim: SLUG, label: "alias:acme".into() }));
    assert!(effects.contains(&Effect::CancelTimer { name: "slug_alias:acme".into() }));
    assert!(effects.contains(&Effect::SetTimer { name: "slug_alias:other".into(), due: day(31) }));
}

#[test]
fn asking_for_what_is_already_so_is_no_event() {
    let p = provisioned();
    let set = Event::SettingsUpdated { patch: serde_json::json!({"a": 1}) };
    given(&[&p]).when(now(RenameTenant { name: name(" Acme ") })).then_expect_events(vec![]);
    given(&[&p]).when(now(ChangeSlug { slug: slug("acme") })).then_expect_events(vec![]);
    given(&[&p, &set]).when(now(settings(serde_json::json!({"a": 1, "b": null})))).then_expect_events(vec![]);
}

#[test]
fn settings_are_bounded_however_many_patches_they_are_made_of() {
    let part = |key: &str| serde_json::json!({ key: "x".repeat(40_000) });
    let first = Event::SettingsUpdated { patch: part("a") };
    given(&[&provisioned(), &first]).when(now(settings(part("b")))).then_expect_error(Error::SettingsTooLarge);
}

#[test]
fn values_that_make_no_sense_cannot_even_be_said() {
    for bad in ["", "ab", "Acme", "-acme", "acme-", "ac--me", "acme!", "admin", "ac\0me", &"a".repeat(64)] {
        assert!(Slug::parse(bad).is_err(), "{bad:?}");
    }
    for good in ["abc", "a-b-c", "4you", &"a".repeat(63)] {
        assert!(Slug::parse(good).is_ok(), "{good:?}");
    }
    assert!(DisplayName::parse("a\0b").is_err());
    assert!(SecretRef::parse("sk-live-123456").is_err(), "a secret is not a reference");
    assert!(Email::parse("ada").is_err() && Email::parse("a@b").is_err() && Email::parse("ada@example.com").is_ok());
    for bad in [serde_json::json!([]), serde_json::json!({"a": {"$sealed": {}}}), serde_json::json!({"a": "\0"})] {
        assert!(JsonObject::try_from(bad.clone()).is_err(), "{bad}");
    }
}

#[test]
fn what_a_subscription_stopped_it_brings_back_and_what_the_platform_stopped_it_does_not() {
    let active = Event::ProvisioningCompleted { trialing: false };
    let unpaid = Event::Suspended { reason: "its subscription is not paid for".into(), for_payment: true };
    let paid = || at(day(1), FollowSubscription { standing: Standing::Active });
    given(&[&provisioned(), &active, &unpaid]).when(paid()).then_expect_events(vec![Event::Reactivated]);
    // Stopped by the platform meanwhile: that holds.
    let stopped = Event::Suspended { reason: "unpaid".into(), for_payment: false };
    given(&[&provisioned(), &active, &unpaid]).when(now(suspend())).then_expect_events(vec![stopped.clone()]);
    given(&[&provisioned(), &active, &unpaid, &stopped]).when(paid()).then_expect_events(vec![]);
    // Ended with its subscription, and another one within 30 days.
    let ended = Event::Cancelled { at: day(0), with_subscription: true };
    given(&[&provisioned(), &active, &ended]).when(paid()).then_expect_events(vec![Event::Reactivated]);
    given(&[&provisioned(), &active, &ended])
        .when(at(day(31), FollowSubscription { standing: Standing::Active }))
        .then_expect_events(vec![]);
    given(&[&provisioned(), &active, &unpaid])
        .when(now(FollowSubscription { standing: Standing::Cancelled }))
        .then_expect_events(vec![Event::Cancelled { at: day(1), with_subscription: true }]);
}

#[test]
fn a_tenant_keeps_three_old_slugs_at_most_and_none_of_the_shape_of_an_id() {
    let moved = |from: &str, to: &str| Event::SlugChanged { from: from.into(), to: to.into(), alias_until: day(30) };
    let change = |to: &str| now(ChangeSlug { slug: slug(to) });
    let three = [provisioned(), moved("acme", "two"), moved("two", "three"), moved("three", "four")];
    let three: Vec<&Event> = three.iter().collect();
    given(&three).when(change("five")).then_expect_error(Error::TooManyAliases);
    // Going back to one's own old slug keeps as many as before, and an expired one makes room.
    assert!(fold(&three.iter().map(|event| (*event).clone()).collect::<Vec<_>>()).decide(change("two")).is_ok());
    given(&three).when(change("four")).then_expect_events(vec![]);
    let expired = Event::SlugAliasExpired { slug: "acme".into() };
    assert!(fold(&three.iter().map(|event| (*event).clone()).chain([expired]).collect::<Vec<_>>()).decide(change("five")).is_ok());
    for shape in ["01900000-0000-7000-8000-000000000001", "01900000000070008000000000000001", "ffffffffffffffffffffffffffffffff"] {
        assert!(Slug::parse(shape).is_err(), "{shape}");
    }
    assert!(Slug::parse("01900000-0000-7000-8000-00000000000").is_ok(), "too short for one");
}

#[test]
fn a_tenant_is_deleted_only_without_a_live_subscription() {
    let needs = Tenant::requires(&Event::Deleted, StreamId::new(TenantId(Uuid::nil()), Uuid::nil()));
    assert_eq!(needs, [Precondition::ClaimFree { claim: subscription::LIVE, value: subscription::BASE.into() }]);
}

#[test]
fn an_overridden_limit_stands_instead_of_the_subscriptions_until_its_time() {
    let until = Some(day(5));
    let set = Event::LimitOverridden { meter: Meter::Users, limit: 7, until };
    let override_limit =
        || OverrideLimit { meter: Meter::Users, limit: 7, until: until.map(|until: DateTime<Utc>| until.try_into().unwrap()) };
    given(&[&provisioned()]).when(now(override_limit())).then_expect_events(vec![set.clone()]);
    given(&[&provisioned(), &set]).when(now(override_limit())).then_expect_events(vec![]);
    given(&[&provisioned()]).when(at(day(5), override_limit())).then_expect_error(Error::BadOverride);
    let counter = Meter::Users.overriding().unwrap();
    let effects = fold(&[provisioned()]).effects(&set);
    assert!(effects.contains(&Effect::Bound { counter, floor: None, ceiling: Some(7) }));
    let name = "limit_override:users".to_owned();
    assert!(effects.contains(&Effect::SetTimer { name: name.clone(), due: day(5) }));
    let due = |n| Issued { command: Tenant::timer(&name).unwrap(), ..at(day(n), ClearLimitOverride { meter: Meter::Users }) };
    given(&[&provisioned(), &set]).when(due(4)).then_expect_error(Error::OverrideNotExpired);
    let cleared = Event::LimitOverrideCleared { meter: Meter::Users };
    given(&[&provisioned(), &set]).when(due(5)).then_expect_events(vec![cleared.clone()]);
    let effects = fold(&[provisioned(), set]).effects(&cleared);
    let again = Effect::Count { counter: Meter::Users.generation(), delta: 1 };
    assert_eq!(effects, [Effect::Bound { counter, floor: None, ceiling: None }, again, Effect::CancelTimer { name }]);
}

#[test]
fn a_domain_counts_once_its_record_was_found() {
    let token = Uuid::from_u128(9);
    let added = Event::DomainAdded { domain: "acme.example".into(), token };
    given(&[&provisioned()]).when(now(AddDomain { domain: domain() })).then_expect_events(vec![added.clone()]);
    let (name, value) = proof("acme.example", token);
    assert_eq!(name, "_tenure.acme.example");
    let verify = |records: Vec<String>| {
        now(VerifyDomain { domain: domain(), records: records.iter().map(|record| TxtRecord::parse(record).unwrap()).collect() })
    };
    let not_proven = Error::DomainNotProven { name, value: value.clone() };
    given(&[&provisioned(), &added]).when(verify(vec!["v=spf1".into()])).then_expect_error(not_proven);
    let verified = Event::DomainVerified { domain: "acme.example".into() };
    given(&[&provisioned(), &added]).when(verify(vec!["v=spf1".into(), value])).then_expect_events(vec![verified.clone()]);
    given(&[&provisioned(), &added, &verified]).when(verify(vec![])).then_expect_events(vec![]);
    given(&[&provisioned()]).when(verify(vec![])).then_expect_error(Error::NoSuchDomain);
    for bad in ["acme", "acme..example", "-a.example", "1.2.3.4", "a b.example", "acme.example.", &format!("{}.example", "a".repeat(64))] {
        assert!(DomainName::parse(bad).is_err(), "{bad}");
    }
}

proptest! {
    /// Whatever is asked in whatever order: each answer is the one of the table, and the state is a fold of the events.
    #[test]
    fn random_sequences_of_commands_follow_the_model(choices in proptest::collection::vec((0..24_usize, 0..3_usize), 1..60)) {
        let slugs = ["acme", "beta", "gamma"];
        let (mut tenant, mut events, mut status, mut stopped) = (Tenant::default(), Vec::new(), None, false);
        for (n, variant) in choices {
            let mut command = every_command().swap_remove(n);
            if matches!(command, Command::ChangeSlug(_)) {
                command = ChangeSlug { slug: slug(slugs[variant]) }.into();
            }
            let issued = at(day(1), command.clone());
            let model = if stopped { expected_when_stopped(status, &command) } else { None }.unwrap_or_else(|| expected(status, &command));
            let real = actual(&tenant, issued.clone());
            // Plain edits may also be so already; the table does not know the values.
            let edit = |then: &Then| matches!(then, Then::Becomes(s) if Some(*s) == status);
            let so = |then: &Then| *then == Then::AlreadySo;
            prop_assert!(model == real || (edit(&model) && so(&real)) || (so(&model) && edit(&real)), "{status:?} {command:?}: {model:?} {real:?}");
            if let Then::Becomes(next) = real {
                let new = tenant.decide(issued.clone()).unwrap();
                new.iter().for_each(|event| tenant.apply(event.clone()));
                events.extend(new);
                if status != Some(next) || matches!(command, Command::Suspend(_)) {
                    stopped = matches!(&command, Command::FollowSubscription(c) if matches!(c.standing, Standing::Stopped | Standing::Cancelled));
                }
                status = Some(next);
                // Asked again at once, it is already so, or no longer allowed; never done twice.
                prop_assert!(!matches!(actual(&tenant, issued), Then::Becomes(_)), "{command:?} twice");
            }
            if let Tenant::Live(details) = &tenant {
                prop_assert!(!details.aliases.contains_key(&details.slug));
            }
        }
        prop_assert_eq!(fold(&events), tenant);
    }
}
