//! What may be asked of a plan, and why it may be refused.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::billing::meter::Entitlements;
use crate::billing::money::Money;
use crate::billing::period::Interval;
use crate::text::{DisplayName, PlanCode};

/// Makes a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"code": "team", "name": "Team", "price": {"amount": 4900, "currency": "USD"}, "interval": "month", "trial_days": 14,
    "entitlements": {"users": {"quota": 10}, "messages": {"quota": 5000, "hard_percent": 105, "overage": {"amount": 150, "per": 100}}}}))]
pub struct DefinePlan {
    /// Its id, if the client chooses one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    /// What it is called in requests; unique, for ever.
    pub code: PlanCode,
    /// What people call it.
    pub name: DisplayName,
    /// What it costs for one period.
    pub price: Money,
    /// How long a period is.
    pub interval: Interval,
    /// How many days it can be tried for nothing.
    #[serde(default = "fortnight")]
    #[schema(default = 14, maximum = 365)]
    pub trial_days: u16,
    /// What it gives: a meter that is not named is not included.
    #[schema(value_type = Object)]
    pub entitlements: Entitlements,
}

/// Makes another version of a plan. Who has subscribed to an earlier one keeps that.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"name": "Team", "price": {"amount": 5900, "currency": "USD"}, "interval": "month", "trial_days": 14, "entitlements": {"users": {"quota": 12}}}))]
pub struct RevisePlan {
    /// What people call it.
    pub name: DisplayName,
    /// What it costs for one period; in the same currency as ever.
    pub price: Money,
    /// How long a period is.
    pub interval: Interval,
    /// How many days it can be tried for nothing.
    #[serde(default = "fortnight")]
    #[schema(default = 14, maximum = 365)]
    pub trial_days: u16,
    /// What it gives: a meter that is not named is not included.
    #[schema(value_type = Object)]
    pub entitlements: Entitlements,
}

fn fortnight() -> u16 {
    14
}

crate::bare_commands! {
    /// Lets nobody subscribe to a plan any more. Who has keeps it.
    RetirePlan
}

crate::commands! { "plan":
    Define(DefinePlan) "define", "define";
    Revise(RevisePlan) "revise", "define";
    Retire(RetirePlan) "retire", "retire";
}

crate::errors! {
    /// Why a plan refuses.
    Error {
        /// There is none.
        NotFound: NotFound "plan.not_found", "there is no such plan";
        /// The id is in use.
        AlreadyExists: Conflict "plan.already_exists", "a plan with this id exists already";
        /// Another plan has or had this code.
        CodeTaken: Conflict "plan.code_taken", "another plan has this code";
        /// It can no longer be changed.
        Retired: Conflict "plan.retired", "the plan is retired";
        /// Plans belong to the platform.
        PlatformOnly: Forbidden "plan.platform_only", "plans belong to the platform, not to a tenant";
        /// A plan has one currency for life.
        CurrencyFixed: Invalid "plan.currency_fixed", "a plan keeps its currency; define another plan for another one";
        /// A number that makes no sense.
        BadTerms { /// What.
            what: &'static str }: Invalid "plan.bad_terms", "{what}";
    }
}
