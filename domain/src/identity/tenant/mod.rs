//! The tenant: a customer of the platform, and the owner of everything else.
//!
//! `provisioning → trialing | active`; `trialing → active`; `active ⇄ past_due`; `trialing | active | past_due → frozen | suspended | deactivated | cancelled`;
//! `frozen | suspended | deactivated → active`; `cancelled → active` within 30 days; `cancelled | deactivated → deleted`. A tenant with a subscription follows it.

mod command;
mod event;
mod rules;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use command::*;
pub use event::{Event, Owner};

use uuid::Uuid;

use crate::aggregate::{EventKind, Issued, Lookup};
use crate::billing::meter::{self, Meter};
use crate::billing::subscription;
use crate::effect::{Claim, Effect, Gate, Precondition, Refusal, Scope};
use crate::ids::{StreamId, SubjectId, TenantId};
use crate::personal::Personal;

/// Slugs, unique over all tenants, aliases included.
pub const SLUG: Claim = Claim { namespace: "tenant_slug", scope: Scope::Installation, personal: false };

/// Verified domains, unique over all tenants.
pub const DOMAIN: Claim = Claim { namespace: "tenant_domain", scope: Scope::Installation, personal: false };
/// How many domains a tenant has at most.
const MAX_DOMAINS: usize = 20;

/// The setting with the time zone by whose calendar a tenant counts: a name of the IANA time zone database.
pub const TIME_ZONE: &str = "time_zone";

/// The largest limit: what JSON numbers can tell exactly (RFC 8259 section 6).
const MAX_LIMIT: u64 = 9_007_199_254_740_991;
/// What the timer of an override is called, before the meter.
const OVERRIDE_TIMER: &str = "limit_override:";

/// How long an old slug leads to its tenant.
pub const SLUG_ALIAS: TimeDelta = TimeDelta::days(30);

/// Old slugs that lead to a tenant at a time: each is kept from all others.
pub const MAX_ALIASES: usize = 3;

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
    /// Whether it is stopped or has ended by its subscription, and so comes back with it.
    by_subscription: bool,
    overrides: BTreeMap<Meter, (i64, Option<DateTime<Utc>>)>,
    domains: BTreeMap<String, Domain>,
}

/// A domain of a tenant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Domain {
    token: Uuid,
    verified: bool,
}

/// Where a tenant stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = TenantStatus)]
pub enum Status {
    /// Being set up.
    Provisioning,
    /// In its trial.
    Trialing,
    /// Working.
    Active,
    /// Working, and behind with paying.
    PastDue,
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
    pub const ALL: [Self; 9] = [
        Self::Provisioning,
        Self::Trialing,
        Self::Active,
        Self::PastDue,
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
            Self::PastDue => "past_due",
            Self::Frozen => "frozen",
            Self::Suspended => "suspended",
            Self::Deactivated => "deactivated",
            Self::Cancelled => "cancelled",
            Self::Deleted => "deleted",
        }
    }

    /// Whether a tenant in this status may be changed.
    fn is_open(self) -> bool {
        self == Self::Provisioning || self.is_working()
    }

    /// Whether it does what it is for.
    fn is_working(self) -> bool {
        matches!(self, Self::Trialing | Self::Active | Self::PastDue)
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

    /// Whether it is open, or would be with a subscription that is paid for.
    pub fn is_subscribable(&self, now: DateTime<Utc>) -> bool {
        match self {
            Self::Live(tenant) => tenant.status.is_open() || tenant.comes_back(now),
            Self::Absent | Self::Deleted => false,
        }
    }

    /// By whose calendar it counts, if it has set that.
    pub fn time_zone(&self) -> Option<Tz> {
        match self {
            Self::Live(tenant) => tenant.settings.get(TIME_ZONE)?.as_str()?.parse().ok(),
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
                by_subscription: false,
                overrides: BTreeMap::new(),
                domains: BTreeMap::new(),
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
            Event::Suspended { reason: _, for_payment } => {
                tenant.status = Status::Suspended;
                tenant.by_subscription = for_payment;
            }
            Event::Frozen => tenant.status = Status::Frozen,
            Event::Deactivated => tenant.status = Status::Deactivated,
            Event::Cancelled { at, with_subscription } => {
                tenant.status = Status::Cancelled;
                tenant.cancelled_at = Some(at);
                tenant.by_subscription = with_subscription;
            }
            Event::Reactivated | Event::Activated => {
                tenant.status = Status::Active;
                tenant.cancelled_at = None;
                tenant.by_subscription = false;
            }
            Event::BecamePastDue => tenant.status = Status::PastDue,
            Event::LimitOverridden { meter, limit, until } => {
                tenant.overrides.insert(meter, (limit, until));
            }
            Event::LimitOverrideCleared { meter } => {
                tenant.overrides.remove(&meter);
            }
            Event::DomainAdded { domain, token } => {
                tenant.domains.insert(domain, Domain { token, verified: false });
            }
            Event::DomainVerified { domain } => {
                if let Some(domain) = tenant.domains.get_mut(&domain) {
                    domain.verified = true;
                }
            }
            Event::DomainRemoved { domain } => {
                tenant.domains.remove(&domain);
            }
            Event::Deleted => *self = Self::Deleted,
        }
    }
}

/// The TXT record that shows a domain to be a tenant's: where, and what. An underscored name of its own (RFC 8552), so that it stands in nobody's way.
pub fn proof(domain: &str, token: Uuid) -> (String, String) {
    (format!("_tenure.{domain}"), format!("tenure-verification={token}"))
}

fn alias_label(slug: &str) -> String {
    format!("alias:{slug}")
}

fn override_timer(meter: Meter) -> String {
    format!("{OVERRIDE_TIMER}{meter}")
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

    fn looks_up(&self, command: &Command) -> Vec<Lookup> {
        let Command::Provision(ProvisionTenant { plan: Some(plan), .. }) = command else { return vec![] };
        vec![Lookup::Plan(plan.as_str().to_owned())]
    }

    fn decide(&self, issued: Issued<Command>) -> Result<Vec<Event>, Error> {
        match (self, issued.command) {
            (Self::Absent, Command::Provision(_)) if issued.ctx.stream.tenant == TenantId::SYSTEM => Err(Error::ReservedId),
            (Self::Absent, Command::Provision(c)) => {
                rules::subscribable(&c, &issued.ctx)?;
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
            Event::LimitOverridden { meter, limit, until } => {
                let timer = match until {
                    Some(until) => Effect::SetTimer { name: override_timer(*meter), due: *until },
                    None => Effect::CancelTimer { name: override_timer(*meter) },
                };
                meter::override_with(*meter, Some(*limit)).chain([timer]).collect()
            }
            Event::LimitOverrideCleared { meter } => {
                meter::override_with(*meter, None).chain([Effect::CancelTimer { name: override_timer(*meter) }]).collect()
            }
            Event::DomainVerified { domain } => {
                vec![Effect::TakeClaim { claim: DOMAIN, label: domain.clone(), value: Some(domain.clone()) }]
            }
            Event::DomainRemoved { domain } => vec![Effect::ReleaseClaim { claim: DOMAIN, label: domain.clone() }],
            Event::ProvisioningCompleted { .. }
            | Event::Activated
            | Event::BecamePastDue
            | Event::DomainAdded { .. }
            | Event::Renamed { .. }
            | Event::SettingsUpdated { .. }
            | Event::LlmConfigSet { .. }
            | Event::BrandingSet { .. } => vec![],
        }
    }

    /// Nothing is deleted that is still to be paid for.
    fn requires(event: &Event, _: StreamId) -> Vec<Precondition> {
        let free = || Precondition::ClaimFree { claim: subscription::LIVE, value: subscription::BASE.to_owned() };
        if matches!(event, Event::Deleted) { vec![free()] } else { vec![] }
    }

    fn timer(name: &str) -> Option<Command> {
        let slug = name.strip_prefix(ALIAS_TIMER).and_then(|slug| SlugAlias::parse(slug).ok()).map(|slug| ExpireSlugAlias { slug }.into());
        let meter = name.strip_prefix(OVERRIDE_TIMER).and_then(|meter| meter.parse().ok());
        slug.or_else(|| meter.map(|meter| ExpireLimitOverride { meter }.into()))
    }

    fn refused(refusal: &Refusal) -> Option<Error> {
        let Refusal::ClaimTaken { namespace } = refusal else { return None };
        match namespace.as_str() {
            name if name == SLUG.namespace => Some(Error::SlugTaken),
            name if name == DOMAIN.namespace => Some(Error::DomainTaken),
            name if name == subscription::LIVE.namespace => Some(Error::LiveSubscription),
            _ => None,
        }
    }
}
