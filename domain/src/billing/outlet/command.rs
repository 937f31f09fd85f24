//! What may be asked of an outlet, and why it may be refused.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::event::WhatsApp;
use crate::text::{DisplayName, SecretRef, TextError, line, not_null, removable};

/// Digits, as Meta's ids are.
fn digits(text: &str) -> Result<String, TextError> {
    let text = line(text, 32)?;
    if text.bytes().all(|byte| byte.is_ascii_digit()) { Ok(text) } else { Err(TextError::Malformed("must be digits only")) }
}

crate::text_types! {
    /// A phone number as ITU-T E.164 has it: a plus, then 7 to 15 digits, the first not 0.
    PhoneNumber { max: 16, example: "+4312345678", parse: |t| {
        let text: String = line(t, 40)?.chars().filter(|c| !matches!(c, ' ' | '-' | '(' | ')')).collect();
        match text.strip_prefix('+') {
            Some(number) if (7..=15).contains(&number.len()) && !number.starts_with('0') && number.bytes().all(|b| b.is_ascii_digit()) => Ok(text),
            _ => Err(TextError::Malformed("must be a phone number such as +4312345678 (E.164)")),
        }
    } }
    /// What Meta calls a phone number or an account: digits.
    MetaId { max: 32, example: "106540352242922", parse: digits }
}

/// How messages are sent by WhatsApp Business.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WhatsAppConfig {
    /// What Meta calls the phone number.
    pub phone_number_id: MetaId,
    /// What Meta calls the business account.
    pub account_id: MetaId,
    /// Where the access token is kept; never the token.
    pub secret_ref: SecretRef,
}

impl From<WhatsAppConfig> for WhatsApp {
    fn from(config: WhatsAppConfig) -> Self {
        Self { phone_number_id: config.phone_number_id.into(), account_id: config.account_id.into(), secret_ref: config.secret_ref.into() }
    }
}

/// Makes an outlet. It takes one of the plan's outlets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"name": "Vienna", "phone": "+4312345678",
    "whatsapp": {"phone_number_id": "106540352242922", "account_id": "102290129340398", "secret_ref": "vault:whatsapp/acme-vienna"}}))]
pub struct CreateOutlet {
    /// Its id, if the client chooses one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    /// What people call it.
    pub name: DisplayName,
    /// Where it is called; no two outlets of the installation have the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phone: Option<PhoneNumber>,
    /// How it sends messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whatsapp: Option<WhatsAppConfig>,
}

/// Changes an outlet (RFC 7396): what is not named stays, `null` takes away.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"name": "Vienna Central", "whatsapp": null}))]
pub struct UpdateOutlet {
    /// What people call it; cannot be `null`.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub name: Option<DisplayName>,
    /// Where it is called; `null` removes it.
    #[serde(default, deserialize_with = "removable", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<PhoneNumber>)]
    pub phone: Option<Option<PhoneNumber>>,
    /// How it sends messages; `null` removes it.
    #[serde(default, deserialize_with = "removable", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<WhatsAppConfig>)]
    pub whatsapp: Option<Option<WhatsAppConfig>>,
}

crate::bare_commands! {
    /// Removes an outlet, and gives back what it took of the plan.
    RemoveOutlet
}

crate::commands! { "outlet":
    Create(CreateOutlet) "create", "create";
    Update(UpdateOutlet) "update", "update";
    Remove(RemoveOutlet) "remove", "remove";
}

crate::errors! {
    /// Why an outlet refuses.
    Error {
        /// There is none.
        NotFound: NotFound "outlet.not_found", "there is no such outlet";
        /// The id is in use.
        AlreadyExists: Conflict "outlet.already_exists", "an outlet with this id exists already";
        /// Another outlet has the number.
        PhoneTaken: Conflict "outlet.phone_taken", "another outlet has this phone number";
    }
}
