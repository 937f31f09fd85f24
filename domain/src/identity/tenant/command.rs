//! What may be asked of a tenant, and why it may be refused.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Status;
use crate::billing::meter::Meter;
use crate::instant::Instant;
use crate::json::JsonObject;
use crate::text::{DisplayName, DomainName, Email, HttpsUrl, PlanCode, Reason, SecretRef, TextError, TxtRecord, line, slug};

crate::text_types! {
    /// A tenant's short name in URLs: `^[a-z0-9](-?[a-z0-9])*$`, 3 to 63 characters, not a reserved word, not of the shape of a UUID, unique over all tenants.
    Slug { max: 63, example: "acme", parse: |t| {
        let text = slug(t, 3, 63)?;
        // A tenant is named by its slug or by its id, and nobody's slug may be taken for somebody else's id.
        if Uuid::try_parse(&text).is_ok() {
            return Err(TextError::Malformed("must not have the shape of a UUID"));
        }
        if RESERVED.contains(&text.as_str()) { Err(TextError::Malformed("is a reserved word")) } else { Ok(text) }
    } }
    /// A slug that a tenant has or had, reserved or not.
    SlugAlias { max: 63, example: "acme", parse: |t| slug(t, 1, 63) }
    /// A colour, `#rrggbb`.
    Color { max: 7, example: "#0a7cff", parse: |t| match t.strip_prefix('#') {
        Some(hex) if hex.len() == 6 && hex.bytes().all(|b| b.is_ascii_hexdigit()) => Ok(t.to_ascii_lowercase()),
        _ => Err(TextError::Malformed("must be a colour #rrggbb")),
    } }
    /// A short identifier of a vendor or a model.
    Identifier { max: 100, example: "gpt-4o", parse: |t| line(t, 100) }
}

/// Slugs that would collide with host names and paths of the platform.
pub const RESERVED: &[&str] = &[
    "admin",
    "api",
    "app",
    "assets",
    "auth",
    "billing",
    "blog",
    "cdn",
    "console",
    "dashboard",
    "docs",
    "ftp",
    "help",
    "localhost",
    "login",
    "mail",
    "metrics",
    "ns1",
    "ns2",
    "public",
    "root",
    "security",
    "signup",
    "smtp",
    "static",
    "status",
    "support",
    "system",
    "tenure",
    "test",
    "webmaster",
    "www",
];

/// Makes a tenant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProvisionTenant {
    /// Its id, if the client chooses one; the stream is made with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    /// Its short name in URLs.
    pub slug: Slug,
    /// What people call it.
    pub name: DisplayName,
    /// The plan to subscribe it to; without one it has no limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanCode>,
    /// The person to become its first org_admin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<NewOwner>,
}

/// The person to become a tenant's first org_admin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewOwner {
    /// Where to write to them.
    pub email: Email,
    /// What to call them.
    pub name: DisplayName,
}

/// Ends the setting up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CompleteProvisioning {
    /// Whether the tenant starts in its trial.
    #[serde(default)]
    pub trialing: bool,
}

/// Calls a tenant something else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenameTenant {
    /// The new name.
    pub name: DisplayName,
}

/// Gives a tenant another slug. The old one leads to it for 30 more days.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeSlug {
    /// The new slug.
    pub slug: Slug,
}

/// Frees an old slug; sent by its timer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExpireSlugAlias {
    /// That slug.
    pub slug: SlugAlias,
}

/// Changes a tenant's settings by a JSON merge patch (RFC 7396).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(example = json!({"theme": "dark", "beta": null}))]
pub struct UpdateSettings(pub JsonObject);

/// Sets the language model a tenant uses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetLlmConfig {
    /// The provider.
    pub provider: Identifier,
    /// The model.
    pub model: Identifier,
    /// Where the provider's key is kept.
    pub secret_ref: SecretRef,
}

/// Sets how a tenant looks; what is left out becomes the platform's own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetBranding {
    /// The main colour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary_color: Option<Color>,
    /// The logo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logo_url: Option<HttpsUrl>,
}

/// Stops a tenant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SuspendTenant {
    /// Why.
    pub reason: Reason,
}

/// Gives a tenant another limit than its subscription does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OverrideLimit {
    /// Of what.
    pub meter: Meter,
    /// How much.
    #[schema(minimum = 0, maximum = 9_007_199_254_740_991_i64, example = 50)]
    pub limit: u64,
    /// Until when; for ever, if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "2030-01-01T00:00:00Z")]
    pub until: Option<Instant>,
}

/// Gives a tenant the limit of its subscription again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClearLimitOverride {
    /// Of what.
    pub meter: Meter,
}

/// Ends an override whose time is over; sent by its timer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExpireLimitOverride {
    /// Of what.
    pub meter: Meter,
}

/// Says that a domain belongs to a tenant. It counts once it is verified.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddDomain {
    /// Which.
    pub domain: DomainName,
}

/// Verifies a domain by the record that stands in its DNS: `_tenure.<domain>` TXT `tenure-verification=<token>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyDomain {
    /// Which.
    pub domain: DomainName,
    /// What stands in its DNS: looked up, never said by whoever asks.
    #[serde(skip)]
    pub records: Vec<TxtRecord>,
}

/// Takes a domain off a tenant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveDomain {
    /// Which.
    pub domain: DomainName,
}

/// Has a tenant stand where its subscription stands; sent by the policy that follows that.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FollowSubscription {
    /// Where that is.
    pub standing: Standing,
}

/// What a subscription's status means to its tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It is tried.
    Trialing,
    /// It is paid for.
    Active,
    /// It is not paid for, and works for a while.
    PastDue,
    /// It gives nothing until it is paid for.
    Stopped,
    /// It has been ended.
    Cancelled,
}

crate::bare_commands! {
    /// Makes a tenant read only.
    FreezeTenant
    /// Switches a tenant off.
    DeactivateTenant
    /// Ends the contract; it can be taken back for 30 days.
    CancelTenant
    /// Brings a frozen, suspended, deactivated or cancelled tenant back.
    ReactivateTenant
    /// Deletes a cancelled or deactivated tenant for good: claims are released, timers cancelled, personal data erased.
    DeleteTenant
}

crate::commands! { "tenant":
    Provision(ProvisionTenant) "provision", "create";
    CompleteProvisioning(CompleteProvisioning) "complete_provisioning", "complete_provisioning";
    Rename(RenameTenant) "rename", "rename";
    ChangeSlug(ChangeSlug) "change_slug", "change_slug";
    ExpireSlugAlias(ExpireSlugAlias) "expire_slug_alias", "expire_slug_alias";
    UpdateSettings(UpdateSettings) "update_settings", "update_settings";
    SetLlmConfig(SetLlmConfig) "set_llm_config", "set_llm_config";
    SetBranding(SetBranding) "set_branding", "set_branding";
    Suspend(SuspendTenant) "suspend", "suspend";
    Freeze(FreezeTenant) "freeze", "freeze";
    Deactivate(DeactivateTenant) "deactivate", "deactivate";
    Cancel(CancelTenant) "cancel", "cancel";
    Reactivate(ReactivateTenant) "reactivate", "reactivate";
    OverrideLimit(OverrideLimit) "override_limit", "override_limit";
    ClearLimitOverride(ClearLimitOverride) "clear_limit_override", "override_limit";
    ExpireLimitOverride(ExpireLimitOverride) "expire_limit_override", "override_limit";
    AddDomain(AddDomain) "add_domain", "manage_domains";
    VerifyDomain(VerifyDomain) "verify_domain", "manage_domains";
    RemoveDomain(RemoveDomain) "remove_domain", "manage_domains";
    FollowSubscription(FollowSubscription) "follow_subscription", "follow_subscription";
    Delete(DeleteTenant) "delete", "delete";
}

crate::errors! {
    /// Why a tenant refuses.
    Error {
        /// There is none, or no longer.
        NotFound: NotFound "tenant.not_found", "there is no such tenant";
        /// The id is in use.
        AlreadyExists: Conflict "tenant.already_exists", "a tenant with this id exists already";
        /// The platform's own id.
        ReservedId: Invalid "tenant.reserved_id", "this id is reserved for the platform";
        /// Another tenant has or recently had this slug.
        SlugTaken: Conflict "tenant.slug_taken", "the slug is taken by another tenant";
        /// The status does not allow the command.
        NotWhile {
            /// The command's name.
            command: &'static str,
            /// The tenant's status.
            status: Status,
        }: Conflict "tenant.cannot_while", "a tenant that is {status} cannot {command}";
        /// It was cancelled too long ago.
        ReactivationWindowPassed: Conflict "tenant.reactivation_window_passed", "a cancelled tenant can come back within 30 days only";
        /// So many old slugs lead to the tenant that another one would keep too many from others.
        TooManyAliases: Conflict "tenant.too_many_aliases", "a tenant keeps at most 3 old slugs; the oldest is free 30 days after it was changed";
        /// The slug is not an alias of this tenant, or its time has not come.
        AliasNotExpired: Conflict "tenant.alias_not_expired", "this slug is not an alias that has expired";
        /// There is no plan of this code that can be subscribed to.
        NoSuchPlan { /// The code.
            code: String }: Invalid "tenant.no_such_plan", "there is no plan {code} that can be subscribed to";
        /// Its subscription has not ended.
        LiveSubscription: Conflict "tenant.live_subscription", "the tenant has a live subscription; cancel that first";
        /// The override would be over before it begins, or is too large.
        BadOverride: Invalid "tenant.bad_override", "a limit is at most 9007199254740991, and lasts until a time to come";
        /// The limit is not overridden, or its time has not come.
        OverrideNotExpired: Conflict "tenant.override_not_expired", "this limit has no override that has expired";
        /// The domain is not one of the tenant's.
        NoSuchDomain: Conflict "tenant.no_such_domain", "the tenant has no such domain";
        /// Another tenant has verified the domain.
        DomainTaken: Conflict "tenant.domain_taken", "the domain belongs to another tenant";
        /// Nothing in the domain's DNS shows that it is the tenant's.
        DomainNotProven { /// Where it has to stand.
            name: String, /// What has to stand there.
            value: String }: Conflict "tenant.domain_not_proven", "no TXT record {name} says {value}";
        /// No more domains.
        TooManyDomains: Conflict "tenant.too_many_domains", "a tenant has 20 domains at most";
        /// The settings would become too large.
        SettingsTooLarge: Invalid "tenant.settings_too_large", "the settings would be larger than 64 KiB";
        /// There is no such time zone.
        NoTimeZone: Invalid "tenant.no_time_zone", "time_zone is the name of a time zone, such as Europe/Vienna, or null";
    }
    code Self::NotWhile { command, status } => format!("tenant.cannot_{command}_while_{status}");
}
