//! What may be asked of a tenant, and why it may be refused.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Status;
use crate::error::{DomainError, Kind};
use crate::text::{DisplayName, Email, JsonObject, PlanCode, Reason, SecretRef, TextError, line, slug};

crate::text_types! {
    /// A tenant's short name in URLs: `^[a-z0-9](-?[a-z0-9])*$`, 3 to 63 characters, not a reserved word, unique over all tenants.
    Slug { max: 63, example: "acme", parse: |t| {
        let text = slug(t, 3, 63)?;
        if RESERVED.contains(&text.as_str()) { Err(TextError::Malformed("is a reserved word")) } else { Ok(text) }
    } }
    /// A colour, `#rrggbb`.
    Color { max: 7, example: "#0a7cff", parse: |t| match t.strip_prefix('#') {
        Some(hex) if hex.len() == 6 && hex.bytes().all(|b| b.is_ascii_hexdigit()) => Ok(t.to_ascii_lowercase()),
        _ => Err(TextError::Malformed("must be a colour #rrggbb")),
    } }
    /// An `https` address.
    HttpsUrl { max: 2000, example: "https://cdn.example.com/logo.svg", parse: |t| {
        let text = line(t, 2000)?;
        if text.starts_with("https://") && text.len() > 8 && !text.contains(' ') { Ok(text) } else { Err(TextError::Malformed("must be an https:// address")) }
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
    pub slug: String,
}

/// Changes a tenant's settings by a JSON merge patch (RFC 7396).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
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

macro_rules! bare {
    ($($(#[$doc:meta])* $name:ident)*) => { $(
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name {}
    )* };
}

bare! {
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
    Delete(DeleteTenant) "delete", "delete";
}

/// Why a tenant refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is none, or no longer.
    #[error("there is no such tenant")]
    NotFound,
    /// The id is in use.
    #[error("a tenant with this id exists already")]
    AlreadyExists,
    /// The platform's own id.
    #[error("this id is reserved for the platform")]
    ReservedId,
    /// Another tenant has or recently had this slug.
    #[error("the slug is taken by another tenant")]
    SlugTaken,
    /// The status does not allow the command.
    #[error("a tenant that is {status} cannot {command}")]
    NotWhile {
        /// The command's name.
        command: &'static str,
        /// The tenant's status.
        status: Status,
    },
    /// It was cancelled too long ago.
    #[error("a cancelled tenant can come back within 30 days only")]
    ReactivationWindowPassed,
    /// The slug is not an alias of this tenant, or its time has not come.
    #[error("this slug is not an alias that has expired")]
    AliasNotExpired,
    /// The settings would become too large.
    #[error("the settings would be larger than 64 KiB")]
    SettingsTooLarge,
}

impl DomainError for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::NotFound => Kind::NotFound,
            Self::AlreadyExists | Self::SlugTaken | Self::NotWhile { .. } | Self::ReactivationWindowPassed | Self::AliasNotExpired => {
                Kind::Conflict
            }
            Self::SettingsTooLarge | Self::ReservedId => Kind::Invalid,
        }
    }

    fn code(&self) -> Cow<'static, str> {
        match self {
            Self::NotFound => "tenant.not_found".into(),
            Self::AlreadyExists => "tenant.already_exists".into(),
            Self::ReservedId => "tenant.reserved_id".into(),
            Self::SlugTaken => "tenant.slug_taken".into(),
            Self::NotWhile { command, status } => format!("tenant.cannot_{command}_while_{status}").into(),
            Self::ReactivationWindowPassed => "tenant.reactivation_window_passed".into(),
            Self::AliasNotExpired => "tenant.alias_not_expired".into(),
            Self::SettingsTooLarge => "tenant.settings_too_large".into(),
        }
    }

    fn page(&self) -> Cow<'static, str> {
        match self {
            Self::NotWhile { .. } => "tenant.cannot_while".into(),
            Self::NotFound
            | Self::AlreadyExists
            | Self::ReservedId
            | Self::SlugTaken
            | Self::ReactivationWindowPassed
            | Self::AliasNotExpired
            | Self::SettingsTooLarge => self.code(),
        }
    }
}
