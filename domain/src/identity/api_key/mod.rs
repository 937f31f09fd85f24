//! The API key: what a program calls with. A person's own key acts as that person and may never more than they may; a service's key acts for itself.
//!
//! A key is a secret that is shown once. The log names the row in which its hash is; when it was last used is kept beside the log.

mod command;
mod event;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use command::*;
pub use event::Event;

use crate::actor::{Actor, Permissions, grantable};
use crate::aggregate::{Context, EventKind, Issued};
use crate::effect::Effect;
use crate::ids::UserId;
use crate::instant::Instant;

/// How long an old secret may be good beside the new one, at most.
pub const MAX_GRACE: TimeDelta = TimeDelta::days(7);

/// How many secrets are good beside the present one at most; the oldest ends when there is one more.
const MAX_PREVIOUS: usize = 4;

/// Whose a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A person's: it may what it was made for, as far as the person may.
    Personal,
    /// A program's.
    Service,
}

/// A key as its events tell it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum ApiKey {
    /// Nothing has happened yet.
    #[default]
    Absent,
    /// It exists, or existed.
    Created(Box<Details>),
}

/// What is known of a key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Details {
    /// Whose it is.
    pub kind: Kind,
    /// Who made it.
    pub owner: Option<UserId>,
    /// What it is for.
    pub scopes: Permissions,
    /// Until when it is good.
    pub expires_at: Option<DateTime<Utc>>,
    /// Whether it was revoked.
    pub revoked: bool,
    secret: Uuid,
    /// Those before it, and until when each is good too.
    previous: Vec<(Uuid, DateTime<Utc>)>,
}

impl Details {
    /// Which secrets may open something still.
    pub fn secrets(&self, now: DateTime<Utc>) -> Vec<Uuid> {
        let all = self.previous.iter().map(|(previous, _)| *previous).chain([self.secret]);
        all.filter(|secret| self.opens(*secret, now)).collect()
    }

    /// Whether a secret opens anything now.
    pub fn opens(&self, secret: Uuid, now: DateTime<Utc>) -> bool {
        let current = secret == self.secret || self.previous.iter().any(|(previous, until)| *previous == secret && now < *until);
        current && !self.revoked && self.expires_at.is_none_or(|at| now < at)
    }
}

impl ApiKey {
    /// What is known, if there is or was one.
    pub fn details(&self) -> Option<&Details> {
        match self {
            Self::Absent => None,
            Self::Created(details) => Some(details),
        }
    }

    fn evolve(&mut self, event: Event) {
        match (self, event) {
            (this, Event::Created { name: _, prefix: _, kind, owner, scopes, expires_at, secret }) => {
                let scopes = Arc::new(scopes);
                *this = Self::Created(Box::new(Details { kind, owner, scopes, expires_at, revoked: false, secret, previous: vec![] }));
            }
            (Self::Created(key), Event::Rotated { secret, prefix: _, previous_until }) => {
                // A rotation whose answer was lost is repeated, and must not end what is in use before its time.
                key.previous.push((key.secret, previous_until));
                if key.previous.len() > MAX_PREVIOUS {
                    key.previous.remove(0);
                }
                key.secret = secret;
            }
            (Self::Created(key), Event::Revoked) => key.revoked = true,
            (Self::Absent, Event::Rotated { .. } | Event::Revoked) => {}
        }
    }
}

fn create(c: CreateKey, ctx: &Context) -> Result<Vec<Event>, Error> {
    if c.kind == Kind::Service && !ctx.actor.may("api_key:create_service") {
        return Err(Error::ServiceKeysOnly);
    }
    // A key does not make keys: whoever took one could never be got rid of.
    if !matches!(ctx.actor, Actor::User { key: None, .. }) {
        return Err(Error::PeopleOnly);
    }
    if ctx.actor.tenant().is_some_and(|own| own != ctx.stream.tenant) && c.kind == Kind::Personal {
        return Err(Error::PeopleOnly);
    }
    let known = grantable();
    if let Some(scope) = c.scopes.iter().find(|scope| !known.contains(scope.as_str())) {
        return Err(Error::NoSuchScope { scope: scope.clone().into() });
    }
    if let Some(scope) = c.scopes.iter().find(|scope| !ctx.actor.may(scope.as_str())) {
        return Err(Error::BeyondYou { scope: scope.clone().into() });
    }
    let expires_at = c.expires_at.map(Instant::time);
    if expires_at.is_some_and(|at| at <= ctx.now) {
        return Err(Error::ExpiresInThePast);
    }
    Ok(vec![Event::Created {
        name: c.name.into(),
        prefix: c.prefix.into(),
        kind: c.kind,
        owner: ctx.actor.user(),
        scopes: c.scopes.into_iter().map(String::from).collect(),
        expires_at,
        secret: c.secret,
    }])
}

impl Details {
    fn decide(&self, Issued { command, ctx }: Issued<Command>) -> Result<Vec<Event>, Error> {
        let person = matches!(ctx.actor, Actor::User { .. });
        let own = person && self.kind == Kind::Personal && self.owner.is_some() && ctx.actor.user() == self.owner;
        if !own && !ctx.actor.may("api_key:manage") {
            return Err(if matches!(command, Command::Create(_)) { Error::AlreadyExists } else { Error::NotFound });
        }
        match command {
            Command::Create(_) => Err(Error::AlreadyExists),
            Command::Revoke(_) => Ok(if self.revoked { vec![] } else { vec![Event::Revoked] }),
            Command::Rotate(_) if self.revoked || self.expires_at.is_some_and(|at| at <= ctx.now) => Err(Error::NotLive),
            Command::Rotate(_) if !matches!(ctx.actor, Actor::User { key: None, .. }) => Err(Error::PeopleOnly),
            // Whoever rotates a key reads the new secret: they have to have what it opens, and a person's is theirs alone.
            Command::Rotate(_) if self.kind == Kind::Personal && !own => Err(Error::NotFound),
            Command::Rotate(c) => {
                if let Some(scope) = self.scopes.iter().find(|scope| !ctx.actor.may(scope)) {
                    return Err(Error::BeyondYou { scope: scope.clone() });
                }
                let grace = TimeDelta::seconds(c.grace_seconds.into());
                if grace > MAX_GRACE {
                    return Err(Error::GraceTooLong);
                }
                Ok(vec![Event::Rotated { secret: c.secret, prefix: c.prefix.into(), previous_until: ctx.now + grace }])
            }
        }
    }
}

crate::aggregate!(ApiKey, "api_key", Command, Event, Error);

impl crate::Aggregate for ApiKey {
    type Ask = Command;

    const EVENTS: &'static [EventKind] = Event::KINDS;

    /// What takes a key away works always.
    fn gated(command: &Command) -> bool {
        !matches!(command, Command::Revoke(_))
    }

    fn decide(&self, issued: Issued<Command>) -> Result<Vec<Event>, Error> {
        match (self, issued.command) {
            (Self::Absent, Command::Create(c)) => create(c, &issued.ctx),
            (Self::Absent, Command::Rotate(_) | Command::Revoke(_)) => Err(Error::NotFound),
            (Self::Created(key), command) => key.decide(Issued { command, ctx: issued.ctx }),
        }
    }

    fn effects(&self, event: &Event) -> Vec<Effect> {
        match event {
            Event::Created { .. } | Event::Rotated { .. } | Event::Revoked => vec![],
        }
    }
}

/// The scopes of a key, as far as its owner may.
pub fn within(scopes: &Permissions, may: impl Fn(&str) -> bool) -> Permissions {
    Arc::new(scopes.iter().filter(|scope| may(scope)).cloned().collect::<BTreeSet<_>>())
}
