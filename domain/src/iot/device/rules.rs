//! Every rule about devices.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;

use super::{Command, Details, EXPIRY, Error, Event, MAX_GRACE, MAX_PENDING, MAX_TAGS, SendCommand, Status};
use crate::actor::Actor;
use crate::aggregate::{Ask as _, Context, Issued, changed};
use crate::json::{self, JSON_OBJECT_MAX, JsonObject};

/// The rules of a device that is not there yet.
pub(super) fn begin(command: Command) -> Result<Vec<Event>, Error> {
    match command {
        Command::Preregister(c) => Ok(vec![Event::Preregistered {
            serial: c.serial.into(),
            model: c.model.into(),
            metadata: c.metadata.into_value(),
            claim_digest: c.claim_digest.into(),
        }]),
        Command::Register(c) => Ok(vec![Event::Registered {
            serial: c.serial.into(),
            model: c.model.into(),
            metadata: c.metadata.into_value(),
            credential: c.credential,
        }]),
        Command::Claim(_) => Err(Error::NoSuchClaim),
        Command::Accept(_)
        | Command::Reject(_)
        | Command::Reconsider(_)
        | Command::Enable(_)
        | Command::Disable(_)
        | Command::Quarantine(_)
        | Command::Decommission(_)
        | Command::UpdateMetadata(_)
        | Command::Tag(_)
        | Command::Untag(_)
        | Command::AssignGroup(_)
        | Command::RotateCredential(_)
        | Command::RevokeCredential(_)
        | Command::SetDesiredState(_)
        | Command::ReportState(_)
        | Command::SendCommand(_)
        | Command::AcknowledgeCommand(_)
        | Command::ExpireCommand(_) => Err(Error::NotFound),
    }
}

/// Refuses whoever is not the device itself. For a device, others do not exist.
fn itself(ctx: &Context) -> Result<(), Error> {
    match &ctx.actor {
        Actor::Device { id, .. } if *id == ctx.stream.id => Ok(()),
        Actor::Device { .. } => Err(Error::NotFound),
        Actor::User { .. } | Actor::Service { .. } | Actor::System { .. } => Err(Error::DeviceOnly),
    }
}

/// What a merge patch leads to, and whether that is anything else; at most 64 KiB.
fn merged(state: &Value, patch: JsonObject, what: &'static str) -> Result<(bool, Value), Error> {
    let patch = patch.into_value();
    let mut after = state.clone();
    json_patch::merge(&mut after, &patch);
    if json::size(&after) > JSON_OBJECT_MAX { Err(Error::TooLarge { what }) } else { Ok((after != *state, patch)) }
}

impl Details {
    /// The rules of a device that exists.
    pub(super) fn decide(&self, Issued { command, ctx }: Issued<Command>) -> Result<Vec<Event>, Error> {
        use Status::{Active, Decommissioned, Disabled, Pending, Preregistered, Quarantined, Rejected};
        let not_now = Error::NotWhile { command: command.name(), status: self.status };
        match (command, self.status) {
            (Command::Preregister(_) | Command::Register(_), _) => Err(Error::AlreadyExists),
            // It is so already.
            (Command::Decommission(_), Decommissioned)
            | (Command::Accept(_) | Command::Enable(_), Active)
            | (Command::Reject(_), Rejected)
            | (Command::Reconsider(_), Pending)
            | (Command::Disable(_), Disabled)
            | (Command::Quarantine(_), Quarantined) => Ok(vec![]),
            (Command::RevokeCredential(_), _) => {
                Ok(changed(self.credential.is_some() || !self.previous.is_empty(), || Event::CredentialRevoked))
            }
            (Command::ExpireCommand(c), _) => match self.pending.get(&c.command) {
                Some(until) if *until <= ctx.now => Ok(vec![Event::CommandExpired { command: c.command }]),
                Some(_) | None => Err(Error::CommandNotDue),
            },
            (Command::ReportState(_) | Command::AcknowledgeCommand(_), status) if status != Active => itself(&ctx).and(Err(not_now)),
            // A device that has not shown its code has no credential to be replaced: whoever has the code gets the first one.
            (_, Decommissioned) | (Command::RotateCredential(_), Preregistered) => Err(not_now),
            (Command::Claim(c), Preregistered) if self.claim_digest.as_deref() == Some(c.claim_digest.as_str()) => {
                Ok(vec![Event::Claimed { credential: c.credential }])
            }
            (Command::Claim(_), _) => Err(Error::NoSuchClaim),
            (Command::Accept(_), Pending) => Ok(vec![Event::Accepted]),
            (Command::Reject(c), Pending) => Ok(vec![Event::Rejected { reason: c.reason.into() }]),
            (Command::Reconsider(_), Rejected) => Ok(vec![Event::Reconsidered]),
            (Command::Enable(_), Disabled | Quarantined) => Ok(vec![Event::Enabled]),
            (Command::Disable(_), Active) => Ok(vec![Event::Disabled]),
            (Command::SendCommand(c), Active) => self.send(c, &ctx),
            (Command::Quarantine(c), Active | Disabled) => Ok(vec![Event::Quarantined { reason: c.reason.into() }]),
            (
                Command::Accept(_)
                | Command::Reject(_)
                | Command::Reconsider(_)
                | Command::Enable(_)
                | Command::Disable(_)
                | Command::Quarantine(_)
                | Command::SendCommand(_),
                _,
            ) => Err(not_now),
            (Command::Decommission(_), status) => {
                let waiting = self.pending.keys().map(|command| Event::CommandExpired { command: *command });
                Ok(waiting.chain([Event::Decommissioned { released: u8::from(status.is_counted()) }]).collect())
            }
            (Command::UpdateMetadata(c), _) => {
                let (differs, patch) = merged(&self.metadata, c.0, "what is known of the device")?;
                Ok(changed(differs, || Event::MetadataUpdated { patch }))
            }
            (Command::Tag(c), _) if self.tags.contains(c.tag.as_str()) => Ok(vec![]),
            (Command::Tag(_), _) if self.tags.len() >= MAX_TAGS => Err(Error::TooManyTags),
            (Command::Tag(c), _) => Ok(vec![Event::Tagged { tag: c.tag.into() }]),
            (Command::Untag(c), _) => Ok(changed(self.tags.contains(c.tag.as_str()), || Event::Untagged { tag: c.tag.into() })),
            (Command::AssignGroup(c), _) => {
                let group = c.group.flatten().map(String::from);
                Ok(changed(self.group != group, || Event::GroupAssigned { group }))
            }
            (Command::RotateCredential(c), _) => {
                let grace = TimeDelta::seconds(c.grace_seconds.into());
                if grace > MAX_GRACE {
                    return Err(Error::GraceTooLong);
                }
                Ok(vec![Event::CredentialRotated { credential: c.credential, previous_until: ctx.now + grace }])
            }
            (Command::SetDesiredState(c), _) => {
                let (differs, patch) = merged(&self.desired, c.0, "the desired state")?;
                Ok(changed(differs, || Event::DesiredStateSet { patch, version: self.desired_version + 1 }))
            }
            (Command::ReportState(c), _) => {
                itself(&ctx)?;
                if c.seq < 1 {
                    return Err(Error::BadSequence);
                }
                if c.seq <= self.seq {
                    return Ok(vec![]);
                }
                let (_, patch) = merged(&self.reported, c.state, "the reported state")?;
                Ok(vec![Event::StateReported { patch, seq: c.seq }])
            }
            (Command::AcknowledgeCommand(c), _) => {
                itself(&ctx)?;
                match (self.pending.get(&c.command), self.settled.iter().find(|(command, _)| *command == c.command)) {
                    // The timer may be late.
                    (Some(until), _) if *until <= ctx.now => Err(Error::CommandExpired),
                    (Some(_), _) => {
                        Ok(vec![Event::CommandAcknowledged { command: c.command, outcome: c.outcome, result: c.result.into_value() }])
                    }
                    (None, Some((_, Some(_)))) => Ok(vec![]),
                    (None, Some((_, None))) => Err(Error::CommandExpired),
                    (None, None) => Err(Error::NoSuchCommand),
                }
            }
        }
    }

    fn send(&self, c: SendCommand, ctx: &Context) -> Result<Vec<Event>, Error> {
        let command = c.id.unwrap_or(ctx.fresh_id);
        if self.pending.contains_key(&command) || self.settled.iter().any(|(settled, _)| *settled == command) {
            return Err(Error::CommandExists);
        }
        if self.pending.len() >= MAX_PENDING {
            return Err(Error::TooManyCommands);
        }
        let (usual, longest) = EXPIRY;
        let expires_at: DateTime<Utc> = c.expires_at.map_or(ctx.now + usual, Into::into);
        if expires_at <= ctx.now || expires_at > ctx.now + longest {
            return Err(Error::BadExpiry);
        }
        Ok(vec![Event::CommandSent { command, method: c.method.into(), params: c.params.into_value(), expires_at }])
    }
}
