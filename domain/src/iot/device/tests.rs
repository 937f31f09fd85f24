//! Given, when, then.

use serde_json::json;

use super::*;
use crate::actor::Actor;
use crate::aggregate::{Context, Found};
use crate::ids::{StreamId, TenantId};
use crate::json::JsonObject;
use crate::text::{Reason, Sha256, Tag};
use crate::{Aggregate as _, Role};

const ID: Uuid = Uuid::from_u128(1);
const TENANT: TenantId = TenantId(Uuid::from_u128(7));
const SECRET: Uuid = Uuid::from_u128(100);

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)
}

fn itself() -> Actor {
    Actor::Device { id: ID, tenant: TENANT }
}

fn admin() -> Actor {
    Actor::person("ada", TENANT, Role::OrgAdmin)
}

fn decide(events: &[Event], seconds: i64, actor: Actor, command: impl Into<Command>) -> Result<Vec<Event>, Error> {
    let mut device = Device::default();
    events.iter().for_each(|event| device.evolve(event.clone()));
    let ctx = Context { now: at(seconds), actor, stream: StreamId::new(TENANT, ID), fresh_id: Uuid::from_u128(9), found: Found::default() };
    device.decide(Issued { command: command.into(), ctx })
}

fn object(value: Value) -> JsonObject {
    JsonObject::try_from(value).unwrap()
}

fn preregistered() -> Event {
    Event::Preregistered { serial: "S1".into(), model: "m".into(), metadata: json!({}), claim_digest: "d".repeat(64) }
}

fn registered() -> Event {
    Event::Registered { serial: "S1".into(), model: "m".into(), metadata: json!({}), credential: SECRET }
}

fn rejected() -> Event {
    Event::Rejected { reason: "no".into() }
}

fn quarantined() -> Event {
    Event::Quarantined { reason: "odd".into() }
}

fn decommissioned(released: u8) -> Event {
    Event::Decommissioned { released }
}

/// What leads to each status.
fn to(status: Status) -> Vec<Event> {
    match status {
        Status::Preregistered => vec![preregistered()],
        Status::Pending => vec![registered()],
        Status::Rejected => vec![registered(), rejected()],
        Status::Active => vec![registered(), Event::Accepted],
        Status::Disabled => vec![registered(), Event::Accepted, Event::Disabled],
        Status::Quarantined => vec![registered(), Event::Accepted, quarantined()],
        Status::Decommissioned => vec![registered(), Event::Accepted, decommissioned(1)],
    }
}

fn reason() -> Reason {
    Reason::parse("no").unwrap()
}

/// What the design says of each command in each status, apart from the code: `+` it is done, `=` it is so already, `-` it is refused.
const TABLE: [(&str, &str); 17] = [
    // In the order of the statuses: preregistered, pending, rejected, active, disabled, quarantined, decommissioned.
    ("claim", "+ - - - - - -"),
    ("accept", "- + - = - - -"),
    ("reject", "- + = - - - -"),
    ("reconsider", "- = + - - - -"),
    ("enable", "- - - = + + -"),
    ("disable", "- - - + = - -"),
    ("quarantine", "- - - + + = -"),
    ("decommission", "+ + + + + + ="),
    ("update_metadata", "+ + + + + + -"),
    ("tag", "+ + + + + + -"),
    ("assign_group", "+ + + + + + -"),
    ("rotate_credential", "- + + + + + -"),
    ("revoke_credential", "= + + + + + ="),
    ("set_desired_state", "+ + + + + + -"),
    ("report_state", "- - - + - - -"),
    ("send_command", "- - - + - - -"),
    ("acknowledge_command", "- - - - - - -"),
];

fn command(name: &str) -> (Actor, Command) {
    let by_admin = |command: Command| (admin(), command);
    match name {
        "claim" => (itself(), ClaimDevice { claim_digest: Sha256::parse(&"d".repeat(64)).unwrap(), credential: SECRET }.into()),
        "accept" => by_admin(AcceptDevice {}.into()),
        "reject" => by_admin(RejectDevice { reason: reason() }.into()),
        "reconsider" => by_admin(ReconsiderDevice {}.into()),
        "enable" => by_admin(EnableDevice {}.into()),
        "disable" => by_admin(DisableDevice {}.into()),
        "quarantine" => by_admin(QuarantineDevice { reason: reason() }.into()),
        "decommission" => by_admin(DecommissionDevice {}.into()),
        "update_metadata" => by_admin(UpdateMetadata(object(json!({"room": 1}))).into()),
        "tag" => by_admin(TagDevice { tag: Tag::parse("one").unwrap() }.into()),
        "assign_group" => by_admin(AssignGroup { group: Some(Some(GroupName::parse("g").unwrap())) }.into()),
        "rotate_credential" => by_admin(RotateCredential { credential: Uuid::from_u128(101), grace_seconds: 60 }.into()),
        "revoke_credential" => by_admin(RevokeCredential {}.into()),
        "set_desired_state" => by_admin(SetDesiredState(object(json!({"led": "on"}))).into()),
        "report_state" => (itself(), ReportState { seq: 1, state: object(json!({"led": "on"})) }.into()),
        "send_command" => {
            by_admin(SendCommand { id: None, method: Method::parse("reboot").unwrap(), params: object(json!({})), expires_at: None }.into())
        }
        "acknowledge_command" => {
            (itself(), AcknowledgeCommand { command: Uuid::from_u128(5), outcome: Outcome::Done, result: object(json!({})) }.into())
        }
        other => panic!("{other}"),
    }
}

#[test]
fn every_transition_legal_and_illegal_is_as_the_design_says() {
    for (name, row) in TABLE {
        for (status, expected) in Status::ALL.into_iter().zip(row.split(' ')) {
            let (actor, command) = command(name);
            let outcome = match decide(&to(status), 1, actor, command) {
                Ok(events) if events.is_empty() => "=",
                Ok(_) => "+",
                Err(_) => "-",
            };
            assert_eq!(outcome, expected, "{name} while {status}");
        }
        let (actor, command) = command(name);
        let error = decide(&[], 1, actor, command).unwrap_err();
        assert!(matches!(error, Error::NotFound | Error::NoSuchClaim), "{name} of nothing: {error}");
    }
}

#[test]
fn each_transition_leads_to_its_status() {
    let after = |status: Status, name: &str| {
        let (actor, command) = command(name);
        let mut events = to(status);
        events.extend(decide(&events.clone(), 1, actor, command).unwrap());
        let mut device = Device::default();
        events.into_iter().for_each(|event| device.evolve(event));
        device.details().unwrap().status
    };
    for (from, name, to) in [
        (Status::Preregistered, "claim", Status::Pending),
        (Status::Pending, "accept", Status::Active),
        (Status::Pending, "reject", Status::Rejected),
        (Status::Rejected, "reconsider", Status::Pending),
        (Status::Active, "disable", Status::Disabled),
        (Status::Disabled, "enable", Status::Active),
        (Status::Active, "quarantine", Status::Quarantined),
        (Status::Disabled, "quarantine", Status::Quarantined),
        (Status::Quarantined, "enable", Status::Active),
    ] {
        assert_eq!(after(from, name), to, "{name} while {from}");
    }
    assert!(Status::ALL.into_iter().all(|status| after(status, "decommission") == Status::Decommissioned));
}

#[test]
fn a_device_holds_one_of_the_plan_from_acceptance_to_decommissioning() {
    let counted = |status: Status, event: Event| -> i64 {
        let mut device = Device::default();
        to(status).into_iter().for_each(|event| device.evolve(event));
        let of = |effect: &Effect| {
            if let Effect::Count { counter, delta } = effect { (*counter == Meter::Devices.counter()).then_some(*delta) } else { None }
        };
        device.effects(&event).iter().filter_map(of).sum()
    };
    assert_eq!(counted(Status::Pending, Event::Accepted), 1);
    for (status, event) in [
        (Status::Active, Event::Disabled),
        (Status::Disabled, Event::Enabled),
        (Status::Active, quarantined()),
        (Status::Pending, rejected()),
    ] {
        assert_eq!(counted(status, event), 0);
    }
    for status in Status::ALL {
        for event in decide(&to(status), 1, admin(), DecommissionDevice {}).unwrap() {
            let holds = matches!(status, Status::Active | Status::Disabled | Status::Quarantined);
            assert_eq!(counted(status, event), -i64::from(holds), "{status}");
        }
    }
}

#[test]
fn a_report_that_is_late_or_a_duplicate_changes_nothing() {
    let reported = |seq| Event::StateReported { patch: json!({"t": seq}), seq };
    let report = |seq| ReportState { seq, state: object(json!({"t": seq})) };
    let active = [to(Status::Active), vec![reported(5)]].concat();
    assert_eq!(decide(&active, 1, itself(), report(6)), Ok(vec![reported(6)]));
    assert_eq!(decide(&active, 1, itself(), report(5)), Ok(vec![]));
    assert_eq!(decide(&active, 1, itself(), report(4)), Ok(vec![]));
    assert_eq!(decide(&active, 1, itself(), report(0)), Err(Error::BadSequence));
}

#[test]
fn only_the_device_itself_reports_and_acknowledges() {
    let other = Actor::Device { id: Uuid::from_u128(2), tenant: TENANT };
    for name in ["report_state", "acknowledge_command"] {
        let of = |actor| decide(&to(Status::Active), 1, actor, command(name).1);
        assert_eq!(of(admin()), Err(Error::DeviceOnly));
        assert_eq!(of(Actor::system("test")), Err(Error::DeviceOnly));
        assert_eq!(of(other.clone()), Err(Error::NotFound));
    }
}

#[test]
fn the_desired_version_rises_by_one_with_each_change() {
    let set = |patch: Value| SetDesiredState(object(patch));
    let wish = |patch: Value, version| Event::DesiredStateSet { patch, version };
    let first = wish(json!({"led": "on", "fan": {"speed": 2}}), 1);
    let known = [to(Status::Active), vec![first.clone()]].concat();
    assert_eq!(decide(&to(Status::Active), 1, admin(), set(json!({"led": "on", "fan": {"speed": 2}}))), Ok(vec![first]));
    assert_eq!(decide(&known, 1, admin(), set(json!({"fan": {"speed": 2}}))), Ok(vec![]));
    assert_eq!(decide(&known, 1, admin(), set(json!({"fan": null}))), Ok(vec![wish(json!({"fan": null}), 2)]));
    let large = object(json!({"text": "x".repeat(40_000)}));
    let two = [known, vec![wish(json!({"other": "y".repeat(40_000)}), 2)]].concat();
    assert_eq!(decide(&two, 1, admin(), SetDesiredState(large)), Err(Error::TooLarge { what: "the desired state" }));
}

#[test]
fn a_rotated_credential_is_good_in_its_grace_time_and_a_revoked_one_never() {
    let other = Uuid::from_u128(101);
    let mut events = to(Status::Active);
    events.extend(decide(&events.clone(), 10, admin(), RotateCredential { credential: other, grace_seconds: 60 }).unwrap());
    let secrets = |events: &[Event], seconds| {
        let mut device = Device::default();
        events.iter().for_each(|event| device.evolve(event.clone()));
        device.details().unwrap().secrets(at(seconds))
    };
    assert_eq!(secrets(&events, 69), [SECRET, other]);
    assert_eq!(secrets(&events, 70), [other]);
    let week = u32::try_from(MAX_GRACE.num_seconds()).unwrap();
    let too_long = RotateCredential { credential: other, grace_seconds: week + 1 };
    assert_eq!(decide(&events, 10, admin(), too_long), Err(Error::GraceTooLong));
    for end in [Event::CredentialRevoked, decommissioned(1)] {
        assert!(secrets(&[events.clone(), vec![end]].concat(), 20).is_empty());
    }
}

#[test]
fn a_command_is_acknowledged_once_or_expires() {
    let id = Uuid::from_u128(5);
    let send = |expires_at| SendCommand { id: Some(id), method: Method::parse("reboot").unwrap(), params: object(json!({})), expires_at };
    let waits = Event::CommandSent { command: id, method: "reboot".into(), params: json!({}), expires_at: at(100) };
    let acknowledged = Event::CommandAcknowledged { command: id, outcome: Outcome::Done, result: json!({}) };
    let ack = || AcknowledgeCommand { command: id, outcome: Outcome::Done, result: object(json!({})) };
    let active = to(Status::Active);
    assert_eq!(decide(&active, 1, admin(), send(Some(at(100).try_into().unwrap()))), Ok(vec![waits.clone()]));
    assert_eq!(decide(&active, 1, admin(), send(Some(at(1).try_into().unwrap()))), Err(Error::BadExpiry));
    assert_eq!(decide(&active, 1, admin(), send(Some((at(1) + TimeDelta::days(31)).try_into().unwrap()))), Err(Error::BadExpiry));
    let waiting = [active.clone(), vec![waits]].concat();
    assert_eq!(decide(&waiting, 1, admin(), send(Some(at(100).try_into().unwrap()))), Err(Error::CommandExists));
    assert_eq!(decide(&waiting, 99, itself(), ack()), Ok(vec![acknowledged.clone()]));
    assert_eq!(decide(&waiting, 100, itself(), ack()), Err(Error::CommandExpired));
    assert_eq!(decide(&waiting, 99, Actor::system("timers"), ExpireCommand { command: id }), Err(Error::CommandNotDue));
    let expired = Event::CommandExpired { command: id };
    assert_eq!(decide(&waiting, 100, Actor::system("timers"), ExpireCommand { command: id }), Ok(vec![expired.clone()]));
    assert_eq!(decide(&waiting, 50, admin(), DecommissionDevice {}), Ok(vec![expired.clone(), decommissioned(1)]));
    let done = [waiting.clone(), vec![acknowledged]].concat();
    assert_eq!(decide(&done, 99, itself(), ack()), Ok(vec![]));
    assert_eq!(decide(&done, 200, Actor::system("timers"), ExpireCommand { command: id }), Err(Error::CommandNotDue));
    assert_eq!(decide(&[waiting, vec![expired]].concat(), 100, itself(), ack()), Err(Error::CommandExpired));
    assert_eq!(decide(&active, 1, itself(), ack()), Err(Error::NoSuchCommand));
    let full: Vec<Event> = (0..MAX_PENDING)
        .map(|n| Event::CommandSent {
            command: Uuid::from_u128(1000 + n as u128),
            method: "m".into(),
            params: json!({}),
            expires_at: at(100),
        })
        .collect();
    assert_eq!(decide(&[active, full].concat(), 1, admin(), send(None)), Err(Error::TooManyCommands));
}
