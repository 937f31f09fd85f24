//! What happens to tenants. Stored for ever: append only, a golden file per version under `domain/tests/golden/tenant/`.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::billing::meter::Meter;
use crate::ids::SubjectId;
use crate::personal::Personal;

/// Something that has happened to a tenant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// The tenant exists, and is being set up.
    Provisioned {
        /// Its short name in URLs.
        slug: String,
        /// What people call it.
        name: String,
        /// The code of the plan to subscribe it to.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        plan: Option<String>,
        /// The person to become its first org_admin.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<Owner>,
    },
    /// Everything it needs is there.
    ProvisioningCompleted {
        /// Whether it starts in its trial.
        trialing: bool,
    },
    /// It is called something else.
    Renamed {
        /// The new name.
        name: String,
    },
    /// It has another slug; the old one stays an alias for a while.
    SlugChanged {
        /// The old slug.
        from: String,
        /// The new slug.
        to: String,
        /// Until when the old one still leads here.
        alias_until: DateTime<Utc>,
    },
    /// An old slug is free for others.
    SlugAliasExpired {
        /// That slug.
        slug: String,
    },
    /// Its settings were changed.
    SettingsUpdated {
        /// The change, as a JSON merge patch (RFC 7396).
        #[serde(deserialize_with = "crate::json::stored")]
        patch: Value,
    },
    /// It uses another language model.
    LlmConfigSet {
        /// The provider, such as `openai`.
        provider: String,
        /// The model, such as `gpt-4o`.
        model: String,
        /// Where the provider's key is kept.
        secret_ref: String,
    },
    /// It looks different.
    BrandingSet {
        /// The main colour, `#rrggbb`.
        primary_color: Option<String>,
        /// The logo.
        logo_url: Option<String>,
    },
    /// It may do nothing until reactivated.
    Suspended {
        /// Why.
        reason: String,
        /// Whether its subscription is not paid for; then paying brings it back.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        for_payment: bool,
    },
    /// It may only read.
    Frozen,
    /// It was switched off.
    Deactivated,
    /// Its owner has left.
    Cancelled {
        /// When; it can come back for 30 days.
        at: DateTime<Utc>,
        /// Whether its subscription has ended; then another one brings it back.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        with_subscription: bool,
    },
    /// It works again.
    Reactivated,
    /// Its subscription is paid for.
    Activated,
    /// Its subscription is not paid for; it works for a while.
    BecamePastDue,
    /// A limit is another one than its subscription gives.
    LimitOverridden {
        /// Of what.
        meter: Meter,
        /// How much.
        limit: i64,
        /// Until when; for ever, if nothing is said.
        until: Option<DateTime<Utc>>,
    },
    /// A limit is what its subscription gives again.
    LimitOverrideCleared {
        /// Of what.
        meter: Meter,
    },
    /// It says that a domain is its own.
    DomainAdded {
        /// Which.
        domain: String,
        /// What has to stand in the domain's DNS to show it.
        token: Uuid,
    },
    /// The domain is its own.
    DomainVerified {
        /// Which.
        domain: String,
    },
    /// The domain is no longer its own.
    DomainRemoved {
        /// Which.
        domain: String,
    },
    /// It is gone for good.
    Deleted,
}

/// The person to become a tenant's first org_admin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The person, later also the id of their user.
    pub subject: SubjectId,
    /// Their e-mail address.
    pub email: Personal<String>,
    /// Their name.
    pub name: Personal<String>,
}

crate::event_kinds!(Event:
    Provisioned => "tenant.provisioned" "1",
    ProvisioningCompleted => "tenant.provisioning_completed" "1",
    Renamed => "tenant.renamed" "1",
    SlugChanged => "tenant.slug_changed" "1",
    SlugAliasExpired => "tenant.slug_alias_expired" "1",
    SettingsUpdated => "tenant.settings_updated" "1",
    LlmConfigSet => "tenant.llm_config_set" "1",
    BrandingSet => "tenant.branding_set" "1",
    Suspended => "tenant.suspended" "1",
    Frozen => "tenant.frozen" "1",
    Deactivated => "tenant.deactivated" "1",
    Cancelled => "tenant.cancelled" "1",
    Reactivated => "tenant.reactivated" "1",
    Activated => "tenant.activated" "1",
    BecamePastDue => "tenant.became_past_due" "1",
    LimitOverridden => "tenant.limit_overridden" "1",
    LimitOverrideCleared => "tenant.limit_override_cleared" "1",
    DomainAdded => "tenant.domain_added" "1",
    DomainVerified => "tenant.domain_verified" "1",
    DomainRemoved => "tenant.domain_removed" "1",
    Deleted => "tenant.deleted" "1",
);
