//! The device: a thing that is connected, with a credential of its own and a twin of its state.
//!
//! `preregistered → pending → active`; `pending → rejected → pending`; `active ⇄ disabled`; `active | disabled → quarantined → active`; any `→ decommissioned`.
//!
//! A device holds one of the plan's devices from its acceptance until it is decommissioned. Heartbeats are no events: they are kept beside the log.

mod command;
mod event;
mod rules;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

pub use command::*;
pub use event::{Event, Outcome};

use crate::aggregate::{EventKind, Issued};
use crate::billing::meter::{self, Meter};
use crate::effect::{Claim, Effect, Refusal, Scope};

/// Serial numbers.
pub const SERIAL: Claim = Claim { namespace: "device_serial", scope: Scope::Tenant, personal: false };
/// The digests of codes that devices will show.
pub const CLAIM_CODE: Claim = Claim { namespace: "device_claim_code", scope: Scope::Installation, personal: false };

/// How long an old secret may be good beside the new one, at most.
pub const MAX_GRACE: TimeDelta = TimeDelta::days(7);
/// How long a command waits if nothing else is said, and at most.
const EXPIRY: (TimeDelta, TimeDelta) = (TimeDelta::hours(1), TimeDelta::days(30));
/// The most commands that wait for a device.
pub const MAX_PENDING: usize = 100;
/// The most tags.
const MAX_TAGS: usize = 50;
/// How many secrets are good beside the present one at most; the one that ends first does when there is one more.
const MAX_PREVIOUS: usize = 4;
/// How many of the commands are remembered that wait no more.
const REMEMBERED: usize = 200;

const COMMAND_TIMER: &str = "command:";

/// Where a device stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = DeviceStatus)]
pub enum Status {
    /// It is expected.
    Preregistered,
    /// It wants to be accepted.
    Pending,
    /// It was not accepted.
    Rejected,
    /// It works.
    Active,
    /// It does not work for now.
    Disabled,
    /// Something is wrong with it.
    Quarantined,
    /// It is gone for good.
    Decommissioned,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Preregistered, Self::Pending, Self::Rejected, Self::Active, Self::Disabled, Self::Quarantined, Self::Decommissioned];

    /// As stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Preregistered => "preregistered",
            Self::Pending => "pending",
            Self::Rejected => "rejected",
            Self::Active => "active",
            Self::Disabled => "disabled",
            Self::Quarantined => "quarantined",
            Self::Decommissioned => "decommissioned",
        }
    }

    /// Whether it holds one of the plan's devices.
    fn is_counted(self) -> bool {
        matches!(self, Self::Active | Self::Disabled | Self::Quarantined)
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A device as its events tell it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Device {
    /// Nothing has happened yet.
    #[default]
    Absent,
    /// There is one, or was.
    Known(Box<Details>),
}

/// What is known of a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Details {
    /// Where it stands.
    pub status: Status,
    claim_digest: Option<String>,
    metadata: Value,
    tags: BTreeSet<String>,
    group: Option<String>,
    credential: Option<Uuid>,
    /// Those before it, and until when each is good too.
    previous: Vec<(Uuid, DateTime<Utc>)>,
    desired: Value,
    desired_version: i64,
    reported: Value,
    seq: i64,
    /// The commands that wait, and until when.
    pending: BTreeMap<Uuid, DateTime<Utc>>,
    /// Those that wait no more, and what became of them; the newest last.
    settled: VecDeque<(Uuid, Option<Outcome>)>,
}

impl Device {
    /// What is known, if there is or was one.
    pub fn details(&self) -> Option<&Details> {
        match self {
            Self::Absent => None,
            Self::Known(details) => Some(details),
        }
    }

    fn evolve(&mut self, event: Event) {
        let begin = |status, metadata, claim_digest, credential| {
            let empty = || Value::Object(Map::new());
            Self::Known(Box::new(Details {
                status,
                claim_digest,
                metadata,
                tags: BTreeSet::new(),
                group: None,
                credential,
                previous: vec![],
                desired: empty(),
                desired_version: 0,
                reported: empty(),
                seq: 0,
                pending: BTreeMap::new(),
                settled: VecDeque::new(),
            }))
        };
        match (self, event) {
            (this, Event::Preregistered { metadata, claim_digest, .. }) => {
                *this = begin(Status::Preregistered, metadata, Some(claim_digest), None);
            }
            (this, Event::Registered { metadata, credential, .. }) => *this = begin(Status::Pending, metadata, None, Some(credential)),
            (Self::Known(device), event) => device.evolve(event),
            (Self::Absent, _) => {}
        }
    }
}

impl Details {
    /// Which secrets may open something still.
    pub fn secrets(&self, now: DateTime<Utc>) -> Vec<Uuid> {
        let previous = self.previous.iter().filter(|(_, until)| now < *until).map(|(previous, _)| *previous);
        previous.chain(self.credential).collect()
    }

    /// Whether a command waits for it.
    pub fn waits(&self, command: Uuid, now: DateTime<Utc>) -> bool {
        self.pending.get(&command).is_some_and(|until| now < *until)
    }

    fn evolve(&mut self, event: Event) {
        match event {
            Event::Preregistered { .. } | Event::Registered { .. } => {}
            Event::Claimed { credential } => {
                self.status = Status::Pending;
                self.claim_digest = None;
                self.credential = Some(credential);
            }
            Event::Accepted | Event::Enabled => self.status = Status::Active,
            Event::Rejected { .. } => self.status = Status::Rejected,
            Event::Reconsidered => self.status = Status::Pending,
            Event::Disabled => self.status = Status::Disabled,
            Event::Quarantined { .. } => self.status = Status::Quarantined,
            Event::Decommissioned { .. } => {
                self.status = Status::Decommissioned;
                self.revoke();
            }
            Event::MetadataUpdated { patch } => json_patch::merge(&mut self.metadata, &patch),
            Event::Tagged { tag } => drop(self.tags.insert(tag)),
            Event::Untagged { tag } => drop(self.tags.remove(&tag)),
            Event::GroupAssigned { group } => self.group = group,
            Event::CredentialRotated { credential, previous_until } => {
                self.previous.extend(self.credential.map(|old| (old, previous_until)));
                if self.previous.len() > MAX_PREVIOUS {
                    self.previous.sort_by_key(|(_, until)| *until);
                    self.previous.remove(0);
                }
                self.credential = Some(credential);
            }
            Event::CredentialRevoked => self.revoke(),
            Event::DesiredStateSet { patch, version } => {
                json_patch::merge(&mut self.desired, &patch);
                self.desired_version = version;
            }
            Event::StateReported { patch, seq } => {
                json_patch::merge(&mut self.reported, &patch);
                self.seq = seq;
            }
            Event::CommandSent { command, expires_at, .. } => drop(self.pending.insert(command, expires_at)),
            Event::CommandAcknowledged { command, outcome, .. } => self.settle(command, Some(outcome)),
            Event::CommandExpired { command } => self.settle(command, None),
        }
    }

    fn revoke(&mut self) {
        self.credential = None;
        self.previous.clear();
    }

    fn settle(&mut self, command: Uuid, outcome: Option<Outcome>) {
        self.pending.remove(&command);
        if self.settled.len() == REMEMBERED {
            self.settled.pop_front();
        }
        self.settled.push_back((command, outcome));
    }
}

fn command_timer(command: Uuid) -> String {
    format!("{COMMAND_TIMER}{command}")
}

crate::aggregate!(Device, "device", Command, Event, Error);

impl crate::Aggregate for Device {
    type Ask = Command;

    const EVENTS: &'static [EventKind] = Event::KINDS;

    const PERSONAL: bool = false;

    const METERED: &'static [(&'static str, Meter)] = &[("device.accepted", Meter::Devices), ("device.decommissioned", Meter::Devices)];

    fn metered(event: &Event) -> i64 {
        if let Event::Decommissioned { released } = event { -i64::from(*released) } else { i64::from(matches!(event, Event::Accepted)) }
    }

    /// What takes a device's access away works always.
    fn gated(command: &Command) -> bool {
        !matches!(command, Command::RevokeCredential(_) | Command::Decommission(_) | Command::ExpireCommand(_))
    }

    fn decide(&self, issued: Issued<Command>) -> Result<Vec<Event>, Error> {
        match self {
            Self::Absent => rules::begin(issued.command),
            Self::Known(device) => device.decide(issued),
        }
    }

    fn effects(&self, event: &Event) -> Vec<Effect> {
        let take = |claim, label: &str, value: &str| Effect::TakeClaim { claim, label: label.to_owned(), value: Some(value.to_owned()) };
        let release = |claim, label: &str| Effect::ReleaseClaim { claim, label: label.to_owned() };
        let counted = meter::count(Meter::Devices, Self::metered(event));
        match event {
            Event::Preregistered { serial, claim_digest, .. } => {
                vec![take(SERIAL, "serial", serial), take(CLAIM_CODE, "claim_code", claim_digest)]
            }
            Event::Registered { serial, .. } => vec![take(SERIAL, "serial", serial)],
            Event::Claimed { .. } => vec![release(CLAIM_CODE, "claim_code")],
            Event::Accepted => counted.into_iter().collect(),
            Event::Decommissioned { .. } => {
                counted.into_iter().chain([release(SERIAL, "serial"), release(CLAIM_CODE, "claim_code")]).collect()
            }
            Event::CommandSent { command, expires_at, .. } => vec![Effect::SetTimer { name: command_timer(*command), due: *expires_at }],
            Event::CommandAcknowledged { command, .. } | Event::CommandExpired { command } => {
                vec![Effect::CancelTimer { name: command_timer(*command) }]
            }
            Event::Rejected { .. }
            | Event::Reconsidered
            | Event::Enabled
            | Event::Disabled
            | Event::Quarantined { .. }
            | Event::MetadataUpdated { .. }
            | Event::Tagged { .. }
            | Event::Untagged { .. }
            | Event::GroupAssigned { .. }
            | Event::CredentialRotated { .. }
            | Event::CredentialRevoked
            | Event::DesiredStateSet { .. }
            | Event::StateReported { .. } => vec![],
        }
    }

    fn timer(name: &str) -> Option<Command> {
        let command = name.strip_prefix(COMMAND_TIMER)?.parse().ok()?;
        Some(ExpireCommand { command }.into())
    }

    fn refused(refusal: &Refusal) -> Option<Error> {
        matches!(refusal, Refusal::ClaimTaken { namespace } if namespace == SERIAL.namespace).then_some(Error::SerialTaken)
    }
}
