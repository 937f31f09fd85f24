//! The plan: what can be subscribed to. Plans belong to the platform (their streams to the system tenant); a version of one never changes.
//!
//! `offered → retired`.

mod command;
mod event;
#[cfg(test)]
mod tests;

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use command::*;
pub use event::{Event, Terms};

use super::meter::{Entitlement, Entitlements, Meter};
use super::money::{Currency, Money, UnitPrice};
use super::period::Interval;
use crate::aggregate::{EventKind, Issued, changed};
use crate::effect::{Claim, Effect, Refusal, Scope};
use crate::ids::TenantId;
use crate::text::{DisplayName, PlanCode, TextError};

/// Codes of plans, retired ones included.
pub const CODE: Claim = Claim { namespace: "plan_code", scope: Scope::Installation, personal: false };

/// The longest trial, in days.
const MAX_TRIAL: u16 = 365;
/// The highest price, in minor units: what is far above any real one, and far below what could overflow.
const MAX_PRICE: i64 = 1_000_000_000_000;

/// A plan as its events tell it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Plan {
    /// Nothing has happened yet.
    #[default]
    Absent,
    /// There is one.
    Defined(Box<Details>),
}

/// What is known of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Details {
    /// What it is called in requests.
    pub code: String,
    /// What people call it.
    pub name: String,
    /// The how-manieth version is the newest.
    pub version: u32,
    /// What that costs and gives.
    pub terms: Terms,
    /// Whether nobody can subscribe to it any more.
    pub retired: bool,
}

impl Plan {
    /// What is known, if there is one.
    pub fn details(&self) -> Option<&Details> {
        match self {
            Self::Absent => None,
            Self::Defined(details) => Some(details),
        }
    }

    fn evolve(&mut self, event: Event) {
        match (self, event) {
            (this, Event::Defined { code, name, terms }) => {
                *this = Self::Defined(Box::new(Details { code, name, version: 1, terms, retired: false }));
            }
            (Self::Defined(plan), Event::Revised { version, name, terms }) => {
                (plan.version, plan.name, plan.terms) = (version, name, terms);
            }
            (Self::Defined(plan), Event::Retired) => plan.retired = true,
            (Self::Absent, Event::Revised { .. } | Event::Retired) => {}
        }
    }
}

/// The largest quota: ten thousand times as much is still a number that can be counted to.
const MAX_QUOTA: u64 = 900_000_000_000_000;

fn checked(terms: Terms) -> Result<Terms, Error> {
    let need = |so: bool, what| if so { Ok(()) } else { Err(Error::BadTerms { what }) };
    need((0..=MAX_PRICE).contains(&terms.price.amount), "a price lies between 0 and 1 000 000 000 000 minor units")?;
    need(terms.trial_days <= MAX_TRIAL, "a trial lasts 365 days at most")?;
    need(terms.entitlements.values().all(|entitlement| entitlement.quota <= MAX_QUOTA), "a quota is 900000000000000 at most")?;
    let fair = |entitlement: &Entitlement| (100..=1000).contains(&entitlement.hard_percent);
    need(terms.entitlements.values().all(fair), "a meter stops at 100 to 1000 percent of its quota")?;
    Ok(terms)
}

crate::aggregate!(Plan, "plan", Command, Event, Error);

impl crate::Aggregate for Plan {
    type Ask = Command;

    const EVENTS: &'static [EventKind] = Event::KINDS;

    const PERSONAL: bool = false;

    fn decide(&self, Issued { command, ctx }: Issued<Command>) -> Result<Vec<Event>, Error> {
        if ctx.stream.tenant != TenantId::SYSTEM {
            return Err(Error::PlatformOnly);
        }
        match (self, command) {
            (Self::Absent, Command::Define(c)) => {
                let DefinePlan { id: _, code, name, price, interval, trial_days, entitlements } = c;
                let terms = checked(Terms { price, interval, trial_days, entitlements })?;
                Ok(vec![Event::Defined { code: code.into(), name: name.into(), terms }])
            }
            (Self::Absent, Command::Revise(_) | Command::Retire(_)) => Err(Error::NotFound),
            (Self::Defined(_), Command::Define(_)) => Err(Error::AlreadyExists),
            (Self::Defined(plan), Command::Revise(_)) if plan.retired => Err(Error::Retired),
            (Self::Defined(plan), Command::Revise(RevisePlan { name, price, interval, trial_days, entitlements })) => {
                let terms = checked(Terms { price, interval, trial_days, entitlements })?;
                if terms.price.currency != plan.terms.price.currency {
                    return Err(Error::CurrencyFixed);
                }
                let name = String::from(name);
                let differs = plan.name != name || plan.terms != terms;
                Ok(changed(differs, || Event::Revised { version: plan.version + 1, name, terms }))
            }
            (Self::Defined(plan), Command::Retire(_)) => Ok(changed(!plan.retired, || Event::Retired)),
        }
    }

    fn effects(&self, event: &Event) -> Vec<Effect> {
        match event {
            Event::Defined { code, .. } => vec![Effect::TakeClaim { claim: CODE, label: "code".into(), value: Some(code.clone()) }],
            Event::Revised { .. } | Event::Retired => vec![],
        }
    }

    fn refused(refusal: &Refusal) -> Option<Error> {
        matches!(refusal, Refusal::ClaimTaken { namespace } if namespace == CODE.namespace).then_some(Error::CodeTaken)
    }
}

/// The plans that come with Tenure, with the ids of their streams. An operator may revise or retire them.
pub fn shipped() -> Result<Vec<(Uuid, DefinePlan)>, TextError> {
    const GIB: u64 = 1 << 30;
    let plan = |code: &str, name: &str, price: i64, limits: [u64; 6], per_thousand: u32| {
        let [users, outlets, devices, messages, api_calls, storage] = limits;
        let per = NonZeroU32::MIN.saturating_add(999);
        let messages = Entitlement { quota: messages, hard_percent: 105, overage: Some(UnitPrice { amount: per_thousand, per }) };
        let entitlements = Entitlements::from([
            (Meter::Users, Entitlement::of(users)),
            (Meter::Outlets, Entitlement::of(outlets)),
            (Meter::Devices, Entitlement::of(devices)),
            (Meter::Messages, messages),
            (Meter::ApiCalls, Entitlement::of(api_calls)),
            (Meter::Storage, Entitlement::of(storage * GIB)),
        ]);
        let price = Money::new(price, Currency::USD);
        let (code, name) = (PlanCode::parse(code)?, DisplayName::parse(name)?);
        let id = Uuid::new_v5(&TenantId::SYSTEM.0, code.as_str().as_bytes());
        Ok((id, DefinePlan { id: None, code, name, price, interval: Interval::Month, trial_days: 14, entitlements }))
    };
    [
        plan("starter", "Starter", 2_900, [5, 1, 10, 1_000, 10_000, 1], 2_000),
        plan("growth", "Growth", 9_900, [25, 5, 100, 10_000, 100_000, 10], 1_500),
        plan("enterprise", "Enterprise", 49_900, [500, 50, 5_000, 100_000, 1_000_000, 100], 1_000),
    ]
    .into_iter()
    .collect()
}
