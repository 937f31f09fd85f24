//! Stripe, over its REST API and its webhooks (docs.stripe.com/api, docs.stripe.com/webhooks).

mod client;
mod message;
mod subscription;
pub mod units;

use std::time::Duration;

use chrono::{DateTime, Utc};
use domain::StreamId;
use domain::billing::money::Money;
use domain::billing::subscription::Details;
use reqwest::{Client, Method, StatusCode};

use self::client::{Refused, field, id_of, send};
use self::message::ABOUT;
use crate::provider::{Answer, Charge, Message, MessageError, NewSubscription, PaymentProvider};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// How Stripe is reached.
pub struct Stripe {
    client: Client,
    base: String,
    key: String,
    secrets: Vec<String>,
}

/// Stripe cannot be reached so.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadSettings(String);

impl Stripe {
    /// With a secret key, the secrets that its webhooks are signed with (several while they are rotated), at `base`, or at Stripe's own address.
    pub fn new(key: &str, secrets: Vec<String>, base: Option<&str>) -> Result<Self, BadSettings> {
        if secrets.is_empty() || secrets.iter().any(String::is_empty) || key.is_empty() {
            return Err(BadSettings("Stripe needs a key, and a secret for its webhooks".into()));
        }
        let client = Client::builder().timeout(PATIENCE).build().map_err(|error| BadSettings(error.to_string()))?;
        let base = base.unwrap_or("https://api.stripe.com").trim_end_matches('/').to_owned();
        Ok(Self { client, base, key: key.to_owned(), secrets })
    }
}

impl PaymentProvider for Stripe {
    fn name(&self) -> &'static str {
        "stripe"
    }

    fn create_customer<'a>(&'a self, intent: &'a str, subscription: StreamId, name: Option<&'a str>) -> Answer<'a, String> {
        Box::pin(async move {
            // The same parameters at every attempt, or the key would be refused; what may change meanwhile is said after that.
            let form = vec![field(&format!("metadata[{ABOUT}]"), subscription), field("metadata[tenure_tenant]", subscription.tenant)];
            let customer = id_of(&self.post("customers", Some(intent), &form).await?)?;
            if let Some(name) = name {
                self.post(&format!("customers/{customer}"), None, &vec![field("name", name)]).await?;
            }
            Ok(customer)
        })
    }

    fn create_subscription<'a>(&'a self, intent: &'a str, new: &'a NewSubscription<'a>) -> Answer<'a, String> {
        Box::pin(async move { Ok(self.subscribe(intent, new).await?) })
    }

    fn update_subscription<'a>(&'a self, details: &'a Details, provider_subscription: &'a str, now: DateTime<Utc>) -> Answer<'a, ()> {
        Box::pin(async move { Ok(self.update(details, provider_subscription, now).await?) })
    }

    fn cancel_subscription<'a>(&'a self, customer: &'a str) -> Answer<'a, ()> {
        Box::pin(async move { Ok(self.cancel(customer).await?) })
    }

    fn rename_customer<'a>(&'a self, customer: &'a str, name: Option<&'a str>) -> Answer<'a, ()> {
        Box::pin(async move {
            let form = vec![field("name", name.unwrap_or_default())];
            match self.post(&format!("customers/{customer}"), None, &form).await {
                // A customer that was deleted has no name.
                Err(refused) if refused.status != Some(StatusCode::NOT_FOUND) => Err(refused.into()),
                Ok(_) | Err(_) => Ok(()),
            }
        })
    }

    fn forget_customer<'a>(&'a self, customer: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            match send(self.request(Method::DELETE, &format!("customers/{customer}"))).await {
                Err(refused) if refused.status != Some(StatusCode::NOT_FOUND) => Err(refused.into()),
                Ok(_) | Err(_) => Ok(()),
            }
        })
    }

    fn collect<'a>(&'a self, intent: &'a str, charge: &'a Charge<'a>) -> Answer<'a, ()> {
        Box::pin(async move {
            // Under another key where it is made in another way, since the same key with other parameters is refused.
            self.invoice_item(&format!("{intent}:item:{}", charge.subscription.unwrap_or("customer")), charge).await?;
            if charge.subscription.is_none() {
                // No invoice of a subscription will take it in.
                let mut form = vec![
                    field("customer", charge.customer),
                    field("auto_advance", true),
                    field("pending_invoice_items_behavior", "include"),
                ];
                form.extend(charge.method.map(|method| field("default_payment_method", method)));
                self.post("invoices", Some(&format!("{intent}:invoice")), &form).await?;
            }
            Ok(())
        })
    }

    fn can_charge(&self, amount: Money) -> Result<(), String> {
        units::to_stripe(amount).map(drop).map_err(|unpayable| unpayable.to_string())
    }

    fn set_up_payment<'a>(&'a self, subscription: StreamId, customer: &'a str) -> Answer<'a, String> {
        Box::pin(async move {
            let form = vec![
                field("customer", customer),
                field("usage", "off_session"),
                field("automatic_payment_methods[enabled]", true),
                field(&format!("metadata[{ABOUT}]"), subscription),
            ];
            let intent = self.post("setup_intents", None, &form).await?;
            let secret = intent["client_secret"].as_str().map(str::to_owned);
            Ok(secret.ok_or_else(|| Refused { status: None, code: Some("Stripe's answer has no client_secret".into()), later: true })?)
        })
    }

    fn read(&self, signature: Option<&str>, body: &[u8], now: DateTime<Utc>) -> Result<Message, MessageError> {
        message::verify(signature, body, &self.secrets, now)?;
        message::parse(body)
    }

    fn reread(&self, body: &[u8]) -> Result<Message, MessageError> {
        message::parse(body)
    }
}
