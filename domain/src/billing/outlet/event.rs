//! What happens to outlets. Stored for ever: append only, a golden file per version under `domain/tests/golden/outlet/`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How messages of an outlet are sent by WhatsApp Business.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WhatsApp {
    /// What Meta calls the phone number.
    #[schema(example = "106540352242922")]
    pub phone_number_id: String,
    /// What Meta calls the business account.
    #[schema(example = "102290129340398")]
    pub account_id: String,
    /// Where the access token is kept.
    #[schema(example = "vault:whatsapp/acme-vienna")]
    pub secret_ref: String,
}

/// Something that has happened to an outlet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// There is one.
    Created {
        /// What people call it.
        name: String,
        /// Where it is called, as E.164 has it; unique over all tenants.
        phone: Option<String>,
        /// How it sends messages.
        whatsapp: Option<WhatsApp>,
    },
    /// It is another now.
    Updated {
        /// What people call it.
        name: String,
        /// Where it is called.
        phone: Option<String>,
        /// How it sends messages.
        whatsapp: Option<WhatsApp>,
    },
    /// There is none any more.
    Removed,
}

crate::event_kinds!(Event:
    Created => "outlet.created" "1",
    Updated => "outlet.updated" "1",
    Removed => "outlet.removed" "1",
);
