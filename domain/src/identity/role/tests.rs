//! Given, when, then.

use cqrs_es::test::{AggregateTestExecutor, TestFramework};
use uuid::Uuid;

use super::*;
use crate::actor::{Actor, Role as BuiltIn};
use crate::aggregate::Found;

fn wanted(permissions: &[&str]) -> BTreeSet<Permission> {
    permissions.iter().map(|permission| Permission::parse(permission).unwrap()).collect()
}

fn by(role: BuiltIn, command: impl Into<Command>) -> Issued<Command> {
    let tenant = TenantId(Uuid::from_u128(7));
    let stream = StreamId::new(tenant, Uuid::from_u128(1));
    let ctx = Context {
        now: chrono::DateTime::UNIX_EPOCH,
        actor: Actor::person("x", tenant, role),
        stream,
        fresh_id: Uuid::nil(),
        found: Found::default(),
    };
    Issued { command: command.into(), ctx }
}

fn given(events: Vec<Event>) -> AggregateTestExecutor<Role> {
    TestFramework::<Role>::with(()).given(events)
}

fn set(permissions: &[&str]) -> BTreeSet<String> {
    permissions.iter().map(|p| (*p).to_owned()).collect()
}

fn define(permissions: &[&str]) -> DefineRole {
    DefineRole { id: None, name: RoleName::parse("Dispatcher").unwrap(), permissions: wanted(permissions) }
}

fn defined(permissions: &[&str]) -> Event {
    Event::Defined { name: "Dispatcher".into(), permissions: set(permissions) }
}

#[test]
fn a_role_holds_permissions_that_exist_and_that_its_maker_has() {
    given(vec![]).when(by(BuiltIn::OrgAdmin, define(&["ticket:read"]))).then_expect_events(vec![defined(&["ticket:read"])]);
    given(vec![])
        .when(by(BuiltIn::OrgAdmin, define(&["tenant:suspend"])))
        .then_expect_error(Error::NoSuchPermission { permission: "tenant:suspend".into() });
    given(vec![])
        .when(by(BuiltIn::Viewer, define(&["ticket:work"])))
        .then_expect_error(Error::BeyondYou { permission: "ticket:work".into() });
    given(vec![defined(&["ticket:work"])])
        .when(by(BuiltIn::Viewer, ChangePermissions { permissions: wanted(&["ticket:read"]) }))
        .then_expect_error(Error::BeyondYou { permission: "ticket:work".into() });
}

#[test]
fn a_role_is_renamed_changed_and_deleted_once() {
    let admin = |command: Command| by(BuiltIn::OrgAdmin, command);
    let changed = Event::PermissionsChanged { permissions: set(&["ticket:read", "ticket:open"]) };
    let change = || ChangePermissions { permissions: wanted(&["ticket:read", "ticket:open"]) };
    given(vec![defined(&["ticket:read"])]).when(admin(change().into())).then_expect_events(vec![changed.clone()]);
    given(vec![defined(&[]), changed]).when(admin(change().into())).then_expect_events(vec![]);
    let rename = |name: &str| RenameRole { name: RoleName::parse(name).unwrap() };
    given(vec![defined(&[])]).when(admin(rename("Dispatcher").into())).then_expect_events(vec![]);
    given(vec![defined(&[])]).when(admin(rename("Router").into())).then_expect_events(vec![Event::Renamed { name: "Router".into() }]);
    given(vec![defined(&[])]).when(admin(DeleteRole {}.into())).then_expect_events(vec![Event::Deleted]);
    given(vec![defined(&[]), Event::Deleted]).when(admin(DeleteRole {}.into())).then_expect_events(vec![]);
    given(vec![defined(&[]), Event::Deleted]).when(admin(change().into())).then_expect_error(Error::NotFound);
    given(vec![defined(&[]), Event::Deleted]).when(admin(define(&[]).into())).then_expect_error(Error::AlreadyExists);
}
