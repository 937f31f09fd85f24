//! Every rule about tenants that exist.

use chrono::{DateTime, Utc};
use chrono_tz::Tz;

use super::{
    Command, Details, Error, Event, MAX_ALIASES, MAX_DOMAINS, MAX_LIMIT, OverrideLimit, ProvisionTenant, REACTIVATION_WINDOW, SLUG_ALIAS,
    Standing, Status, TIME_ZONE, VerifyDomain, proof,
};
use crate::aggregate::{Ask as _, Context, Issued, changed};
use crate::instant::Instant;
use crate::json::{self, JSON_OBJECT_MAX, JsonObject};

impl Details {
    fn settle_in(&self, patch: JsonObject) -> Result<Vec<Event>, Error> {
        let patch = patch.into_value();
        let mut merged = self.settings.clone();
        json_patch::merge(&mut merged, &patch);
        let zone = &merged[TIME_ZONE];
        if patch.get(TIME_ZONE).is_some() && !zone.is_null() && zone.as_str().is_none_or(|zone| zone.parse::<Tz>().is_err()) {
            return Err(Error::NoTimeZone);
        }
        if json::size(&merged) > JSON_OBJECT_MAX {
            return Err(Error::SettingsTooLarge);
        }
        Ok(changed(merged != self.settings, || Event::SettingsUpdated { patch }))
    }

    /// The rules of a tenant that exists.
    pub(super) fn decide(&self, Issued { command, ctx }: Issued<Command>) -> Result<Vec<Event>, Error> {
        let not_now = Err(Error::NotWhile { command: command.name(), status: self.status });
        let open = self.status.is_open();
        let working = self.status.is_working();
        match command {
            Command::Provision(_) => Err(Error::AlreadyExists),
            Command::CompleteProvisioning(_) if working => Ok(vec![]),
            Command::CompleteProvisioning(c) if self.status == Status::Provisioning => {
                Ok(vec![Event::ProvisioningCompleted { trialing: c.trialing }])
            }
            Command::Rename(c) if open => Ok(changed(self.name != c.name.as_str(), || Event::Renamed { name: c.name.into() })),
            Command::ChangeSlug(c) if open => {
                let kept = self.aliases.keys().filter(|alias| *alias != c.slug.as_str()).count();
                let differs = self.slug != c.slug.as_str();
                if differs && kept >= MAX_ALIASES {
                    return Err(Error::TooManyAliases);
                }
                Ok(changed(differs, || Event::SlugChanged {
                    from: self.slug.clone(),
                    to: c.slug.into(),
                    alias_until: ctx.now + SLUG_ALIAS,
                }))
            }
            // Time passes for a closed tenant too, so this one is legal in every status.
            Command::ExpireSlugAlias(c) => match self.aliases.get(c.slug.as_str()) {
                Some(until) if *until <= ctx.now => Ok(vec![Event::SlugAliasExpired { slug: c.slug.into() }]),
                Some(_) | None => Err(Error::AliasNotExpired),
            },
            Command::UpdateSettings(c) if open => self.settle_in(c.0),
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
            // What the platform stops, paying does not bring back.
            Command::Suspend(c) if working || (self.status == Status::Suspended && self.by_subscription) => {
                Ok(vec![Event::Suspended { reason: c.reason.into(), for_payment: false }])
            }
            Command::Suspend(_) if self.status == Status::Suspended => Ok(vec![]),
            Command::Freeze(_) if self.status == Status::Frozen => Ok(vec![]),
            Command::Freeze(_) if working => Ok(vec![Event::Frozen]),
            Command::Deactivate(_) if self.status == Status::Deactivated => Ok(vec![]),
            Command::Deactivate(_) if working => Ok(vec![Event::Deactivated]),
            Command::Cancel(_) if self.status == Status::Cancelled => Ok(vec![]),
            Command::Cancel(_) if working => Ok(vec![Event::Cancelled { at: ctx.now, with_subscription: false }]),
            Command::Reactivate(_) => match self.status {
                Status::Active | Status::PastDue => Ok(vec![]),
                Status::Cancelled if self.cancelled_at.is_some_and(|at| ctx.now > at + REACTIVATION_WINDOW) => {
                    Err(Error::ReactivationWindowPassed)
                }
                Status::Cancelled | Status::Frozen | Status::Suspended | Status::Deactivated => Ok(vec![Event::Reactivated]),
                Status::Provisioning | Status::Trialing | Status::Deleted => not_now,
            },
            Command::FollowSubscription(c) => Ok(self.follow(c.standing, ctx.now)),
            Command::OverrideLimit(c) => self.override_limit(&c, ctx.now),
            Command::ClearLimitOverride(c) => {
                Ok(changed(self.overrides.contains_key(&c.meter), || Event::LimitOverrideCleared { meter: c.meter }))
            }
            Command::ExpireLimitOverride(c) => match self.overrides.get(&c.meter) {
                Some((_, Some(until))) if *until <= ctx.now => Ok(vec![Event::LimitOverrideCleared { meter: c.meter }]),
                Some(_) | None => Err(Error::OverrideNotExpired),
            },
            Command::AddDomain(c) if open => {
                let domain = String::from(c.domain);
                if self.domains.contains_key(&domain) {
                    return Ok(vec![]);
                }
                if self.domains.len() == MAX_DOMAINS {
                    return Err(Error::TooManyDomains);
                }
                Ok(vec![Event::DomainAdded { domain, token: ctx.fresh_id }])
            }
            Command::VerifyDomain(c) if open => self.verify(c),
            Command::RemoveDomain(c) if open => {
                let domain = String::from(c.domain);
                Ok(changed(self.domains.contains_key(&domain), || Event::DomainRemoved { domain }))
            }
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
            | Command::AddDomain(_)
            | Command::VerifyDomain(_)
            | Command::RemoveDomain(_)
            | Command::Delete(_) => not_now,
        }
    }

    /// Whether a subscription brings it back, since the want of one has closed it.
    pub(super) fn comes_back(&self, now: DateTime<Utc>) -> bool {
        let in_time = self.cancelled_at.is_none_or(|at| now <= at + REACTIVATION_WINDOW);
        matches!(self.status, Status::Suspended | Status::Cancelled) && self.by_subscription && in_time
    }

    fn override_limit(&self, c: &OverrideLimit, now: DateTime<Utc>) -> Result<Vec<Event>, Error> {
        let limit = i64::try_from(c.limit.min(MAX_LIMIT)).unwrap_or(i64::MAX);
        let until = c.until.map(Instant::time);
        if c.limit > MAX_LIMIT || until.is_some_and(|until| until <= now) {
            return Err(Error::BadOverride);
        }
        let differs = self.overrides.get(&c.meter) != Some(&(limit, until));
        Ok(changed(differs, || Event::LimitOverridden { meter: c.meter, limit, until }))
    }

    /// What its subscription means to it. Whatever the platform or its own admins did to it stays.
    fn follow(&self, standing: Standing, now: DateTime<Utc>) -> Vec<Event> {
        let (status, working) = (self.status, self.status.is_working());
        match standing {
            Standing::Trialing => changed(self.comes_back(now), || Event::Reactivated),
            Standing::Active if matches!(status, Status::Trialing | Status::PastDue) => vec![Event::Activated],
            Standing::Active => changed(self.comes_back(now), || Event::Reactivated),
            Standing::PastDue if status == Status::Trialing => vec![Event::Activated, Event::BecamePastDue],
            Standing::PastDue => changed(status == Status::Active, || Event::BecamePastDue),
            Standing::Stopped => {
                changed(working, || Event::Suspended { reason: "its subscription is not paid for".to_owned(), for_payment: true })
            }
            Standing::Cancelled => {
                let ends = working || (status == Status::Suspended && self.by_subscription);
                changed(ends, || Event::Cancelled { at: now, with_subscription: true })
            }
        }
    }

    fn verify(&self, c: VerifyDomain) -> Result<Vec<Event>, Error> {
        let domain = String::from(c.domain);
        let known = self.domains.get(&domain).ok_or(Error::NoSuchDomain)?;
        let (name, value) = proof(&domain, known.token);
        if !known.verified && c.records.iter().all(|record| record.as_str() != value) {
            return Err(Error::DomainNotProven { name, value });
        }
        Ok(changed(!known.verified, || Event::DomainVerified { domain }))
    }
}

/// A plan that is asked for must be one that can be subscribed to.
pub(super) fn subscribable(c: &ProvisionTenant, ctx: &Context) -> Result<(), Error> {
    let Some(code) = &c.plan else { return Ok(()) };
    let offered = ctx.found.plans.get(code.as_str()).is_some_and(|offer| !offer.retired);
    if offered { Ok(()) } else { Err(Error::NoSuchPlan { code: code.as_str().to_owned() }) }
}
