//! The tenant: a customer of the platform, and the owner of everything else.
//!
//! `provisioning → trialing | active`; `trialing | active → frozen | suspended | deactivated | cancelled`; `frozen | suspended | deactivated → active`;
//! `cancelled → active` within 30 days; `cancelled | deactivated → deleted`.

mod command;
mod event;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use command::*;
pub use event::{Event, Owner};

use crate::aggregate::{Ask as _, EventKind, Issued, changed};
use crate::effect::{Claim, Effect, Gate, Refusal, Scope};
use crate::ids::{SubjectId, TenantId};
use crate::personal::Personal;
use crate::text::JSON_OBJECT_MAX;

/// Slugs, unique over all tenants, aliases included.
pub const SLUG: Claim = Claim { namespace: "tenant_slug", scope: Scope::Installation, personal: false };

/// How long an old slug leads to its tenant.
pub const SLUG_ALIAS: TimeDelta = TimeDelta::days(30);

/// How long a cancelled tenant can come back.
pub const REACTIVATION_WINDOW: TimeDelta = TimeDelta::days(30);

/// What the timer of an old slug is called, before the slug.
const ALIAS_TIMER: &str = "slug_alias:";

/// A tenant as its events tell it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Tenant {
    /// Nothing has happened yet.
    #[default]
    Absent,
    /// It exists.
    Live(Box<Details>),
    /// It existed.
    Deleted,
}

/// What is known of a tenant that exists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Details {
    status: Status,
    name: String,
    slug: String,
    aliases: BTreeMap<String, DateTime<Utc>>,
    settings: Value,
    llm: Option<(String, String, String)>,
    branding: (Option<String>, Option<String>),
    cancelled_at: Option<DateTime<Utc>>,
}

/// Where a tenant stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Being set up.
    Provisioning,
    /// In its trial.
    Trialing,
    /// Working.
    Active,
    /// Read only.
    Frozen,
    /// Stopped by the platform.
    Suspended,
    /// Switched off.
    Deactivated,
    /// The contract has ended.
    Cancelled,
    /// Gone.
    Deleted,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Provisioning,
        Self::Trialing,
        Self::Active,
        Self::Frozen,
        Self::Suspended,
        Self::Deactivated,
        Self::Cancelled,
        Self::Deleted,
    ];

    /// As stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Provisioning => "provisioning",
            Self::Trialing => "trialing",
            Self::Active => "active",
            Self::Frozen => "frozen",
            Self::Suspended => "suspended",
            Self::Deactivated => "deactivated",
            Self::Cancelled => "cancelled",
            Self::Deleted => "deleted",
        }
    }

    /// Whether a tenant in this status may be changed.
    fn is_open(self) -> bool {
        matches!(self, Self::Provisioning | Self::Trialing | Self::Active)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Tenant {
    /// What people call it, while it exists.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Live(tenant) => Some(&tenant.name),
            Self::Absent | Self::Deleted => None,
        }
    }

    /// Where it stands; `None` when it does not exist.
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::Absent => None,
            Self::Live(t) => Some(t.status),
            Self::Deleted => Some(Status::Deleted),
        }
    }

    fn evolve(&mut self, event: Event) {
        if let Event::Provisioned { slug, name, .. } = event {
            *self = Self::Live(Box::new(Details {
                status: Status::Provisioning,
                name,
                slug,
                aliases: BTreeMap::new(),
                settings: Value::Object(serde_json::Map::new()),
                llm: None,
                branding: (None, None),
                cancelled_at: None,
            }));
            return;
        }
        let Self::Live(tenant) = self else { return };
        match event {
            Event::Provisioned { .. } => {}
            Event::ProvisioningCompleted { trialing } => tenant.status = if trialing { Status::Trialing } else { Status::Active },
            Event::Renamed { name } => tenant.name = name,
            Event::SlugChanged { from, to, alias_until } => {
                tenant.aliases.remove(&to);
                tenant.aliases.insert(from, alias_until);
                tenant.slug = to;
            }
            Event::SlugAliasExpired { slug } => {
                tenant.aliases.remove(&slug);
            }
            Event::SettingsUpdated { patch } => json_patch::merge(&mut tenant.settings, &patch),
            Event::LlmConfigSet { provider, model, secret_ref } => tenant.llm = Some((provider, model, secret_ref)),
            Event::BrandingSet { primary_color, logo_url } => tenant.branding = (primary_color, logo_url),
            Event::Suspended { .. } => tenant.status = Status::Suspended,
            Event::Frozen => tenant.status = Status::Frozen,
            Event::Deactivated => tenant.status = Status::Deactivated,
            Event::Cancelled { at } => {
                tenant.status = Status::Cancelled;
                tenant.cancelled_at = Some(at);
            }
            Event::Reactivated => {
                tenant.status = Status::Active;
                tenant.cancelled_at = None;
            }
            Event::Deleted => *self = Self::Deleted,
        }
    }
}

impl Details {
    /// The rules of a tenant that exists.
    fn decide(&self, Issued { command, ctx }: Issued<Command>) -> Result<Vec<Event>, Error> {
        let not_now = Err(Error::NotWhile { command: command.name(), status: self.status });
        let open = self.status.is_open();
        let working = matches!(self.status, Status::Trialing | Status::Active);
        match command {
            Command::Provision(_) => Err(Error::AlreadyExists),
            Command::CompleteProvisioning(_) if working => Ok(vec![]),
            Command::CompleteProvisioning(c) if self.status == Status::Provisioning => {
                Ok(vec![Event::ProvisioningCompleted { trialing: c.trialing }])
            }
            Command::Rename(c) if open => Ok(changed(self.name != c.name.as_str(), || Event::Renamed { name: c.name.into() })),
            Command::ChangeSlug(c) if open => Ok(changed(self.slug != c.slug.as_str(), || Event::SlugChanged {
                from: self.slug.clone(),
                to: c.slug.into(),
                alias_until: ctx.now + SLUG_ALIAS,
            })),
            // Time passes for a closed tenant too, so this one is legal in every status.
            Command::ExpireSlugAlias(c) => match self.aliases.get(&c.slug) {
                Some(until) if *until <= ctx.now => Ok(vec![Event::SlugAliasExpired { slug: c.slug }]),
                Some(_) | None => Err(Error::AliasNotExpired),
            },
            Command::UpdateSettings(c) if open => {
                let patch = c.0.into_value();
                let mut merged = self.settings.clone();
                json_patch::merge(&mut merged, &patch);
                if merged.to_string().len() > JSON_OBJECT_MAX {
                    return Err(Error::SettingsTooLarge);
                }
                Ok(changed(merged != self.settings, || Event::SettingsUpdated { patch }))
            }
            Command::SetLlmConfig(c) if open => {
                let wanted = (c.provider.into(), c.model.into(), c.secret_ref.into());
                Ok(changed(self.llm.as_ref() != Some(&wanted), || {
                    let (provider, model, secret_ref) = wanted;
                    Event::LlmConfigSet { provider, model, secret_ref }
                }))
            }
            Command::SetBranding(c) if open => {
                let wanted = (c.primary_color.map(String::from), c.logo_url.map(String::from));
                Ok(changed(self.branding != wanted, || Event::BrandingSet { primary_color: wanted.0, logo_url: wanted.1 }))
            }
            Command::Suspend(_) if self.status == Status::Suspended => Ok(vec![]),
            Command::Suspend(c) if working => Ok(vec![Event::Suspended { reason: c.reason.into() }]),
            Command::Freeze(_) if self.status == Status::Frozen => Ok(vec![]),
            Command::Freeze(_) if working => Ok(vec![Event::Frozen]),
            Command::Deactivate(_) if self.status == Status::Deactivated => Ok(vec![]),
            Command::Deactivate(_) if working => Ok(vec![Event::Deactivated]),
            Command::Cancel(_) if self.status == Status::Cancelled => Ok(vec![]),
            Command::Cancel(_) if working => Ok(vec![Event::Cancelled { at: ctx.now }]),
            Command::Reactivate(_) => match self.status {
                Status::Active => Ok(vec![]),
                Status::Cancelled if self.cancelled_at.is_some_and(|at| ctx.now > at + REACTIVATION_WINDOW) => {
                    Err(Error::ReactivationWindowPassed)
                }
                Status::Cancelled | Status::Frozen | Status::Suspended | Status::Deactivated => Ok(vec![Event::Reactivated]),
                Status::Provisioning | Status::Trialing | Status::Deleted => not_now,
            },
            Command::Delete(_) if matches!(self.status, Status::Cancelled | Status::Deactivated) => Ok(vec![Event::Deleted]),
            Command::CompleteProvisioning(_)
            | Command::Rename(_)
            | Command::ChangeSlug(_)
            | Command::UpdateSettings(_)
            | Command::SetLlmConfig(_)
            | Command::SetBranding(_)
            | Command::Suspend(_)
            | Command::Freeze(_)
            | Command::Deactivate(_)
            | Command::Cancel(_)
            | Command::Delete(_) => not_now,
        }
    }
}

fn alias_label(slug: &str) -> String {
    format!("alias:{slug}")
}

fn alias_timer(slug: &str) -> String {
    format!("{ALIAS_TIMER}{slug}")
}

crate::aggregate!(Tenant, "tenant", Command, Event, Error);

impl crate::Aggregate for Tenant {
    type Ask = Command;

    const EVENTS: &'static [EventKind] = Event::KINDS;

    /// A tenant has to be reachable while it is closed, or nothing could open it again; its own rules say what is refused then.
    fn gated(_: &Command) -> bool {
        false
    }

    fn decide(&self, issued: Issued<Command>) -> Result<Vec<Event>, Error> {
        match (self, issued.command) {
            (Self::Absent, Command::Provision(_)) if issued.ctx.stream.tenant == TenantId::SYSTEM => Err(Error::ReservedId),
            (Self::Absent, Command::Provision(c)) => {
                let owner = c.owner.map(|owner| {
                    let subject = SubjectId(issued.ctx.fresh_id);
                    Owner { subject, email: Personal::new(subject, owner.email.into()), name: Personal::new(subject, owner.name.into()) }
                });
                Ok(vec![Event::Provisioned { slug: c.slug.into(), name: c.name.into(), plan: c.plan.map(String::from), owner }])
            }
            (Self::Live(tenant), command) => tenant.decide(Issued { command, ctx: issued.ctx }),
            (Self::Deleted, Command::Provision(_)) => Err(Error::AlreadyExists),
            (Self::Deleted, Command::Delete(_)) => Ok(vec![]),
            (Self::Absent | Self::Deleted, _) => Err(Error::NotFound),
        }
    }

    fn effects(&self, event: &Event) -> Vec<Effect> {
        let current = || "current".to_owned();
        match event {
            Event::Provisioned { slug, .. } => {
                vec![Effect::TakeClaim { claim: SLUG, label: current(), value: Some(slug.clone()) }, Effect::Gate(Gate::Open)]
            }
            Event::SlugChanged { from, to, alias_until } => vec![
                // Going back to a slug that is still an alias of one's own: it is the current one again.
                Effect::ReleaseClaim { claim: SLUG, label: alias_label(to) },
                Effect::CancelTimer { name: alias_timer(to) },
                Effect::TakeClaim { claim: SLUG, label: current(), value: Some(to.clone()) },
                Effect::TakeClaim { claim: SLUG, label: alias_label(from), value: Some(from.clone()) },
                Effect::SetTimer { name: alias_timer(from), due: *alias_until },
            ],
            Event::SlugAliasExpired { slug } => {
                vec![Effect::ReleaseClaim { claim: SLUG, label: alias_label(slug) }, Effect::CancelTimer { name: alias_timer(slug) }]
            }
            Event::Suspended { .. } => vec![Effect::Gate(Gate::Closed(Status::Suspended.as_str()))],
            Event::Frozen => vec![Effect::Gate(Gate::Closed(Status::Frozen.as_str()))],
            Event::Deactivated => vec![Effect::Gate(Gate::Closed(Status::Deactivated.as_str()))],
            Event::Cancelled { .. } => vec![Effect::Gate(Gate::Closed(Status::Cancelled.as_str()))],
            Event::Reactivated => vec![Effect::Gate(Gate::Open)],
            Event::Deleted => vec![Effect::Gate(Gate::Closed(Status::Deleted.as_str())), Effect::EndTenant],
            Event::ProvisioningCompleted { .. }
            | Event::Renamed { .. }
            | Event::SettingsUpdated { .. }
            | Event::LlmConfigSet { .. }
            | Event::BrandingSet { .. } => vec![],
        }
    }

    fn timer(name: &str) -> Option<Command> {
        name.strip_prefix(ALIAS_TIMER).map(|slug| Command::ExpireSlugAlias(ExpireSlugAlias { slug: slug.to_owned() }))
    }

    fn refused(refusal: &Refusal) -> Option<Error> {
        matches!(refusal, Refusal::ClaimTaken { namespace } if namespace == SLUG.namespace).then_some(Error::SlugTaken)
    }
}
