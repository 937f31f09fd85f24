//! The port: what Tenure needs of a payment provider.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use domain::StreamId;
use domain::billing::meter::Meter;
use domain::billing::money::Money;
use domain::billing::period::Month;
use domain::billing::subscription::{Details, Fact};
use domain::instant::Instant;
use domain::text::Reference;
use futures::future::BoxFuture;

/// A payment provider. Each call is made again until it is answered, so each has to be harmless when it is repeated.
pub trait PaymentProvider: Send + Sync + 'static {
    /// Its name in paths and events: `stripe`.
    fn name(&self) -> &'static str;

    /// Makes known who pays for a subscription, and answers what the provider calls them. `intent` is the same at every attempt.
    fn create_customer<'a>(&'a self, intent: &'a str, subscription: StreamId, name: Option<&'a str>) -> Answer<'a, String>;

    /// Has the payments of a subscription collected, which has something to pay with, and answers what the provider calls its own subscription.
    fn create_subscription<'a>(&'a self, intent: &'a str, new: &'a NewSubscription<'a>) -> Answer<'a, String>;

    /// Makes the provider's subscription what this one is: plan, quantity, trial, payment method, pause, end.
    fn update_subscription<'a>(&'a self, details: &'a Details, provider_subscription: &'a str, now: DateTime<Utc>) -> Answer<'a, ()>;

    /// Ends whatever the provider has of a customer's subscription, whether we know of it or not. One that has ended is no error.
    fn cancel_subscription<'a>(&'a self, customer: &'a str) -> Answer<'a, ()>;

    /// Calls a customer by another name, or by none.
    fn rename_customer<'a>(&'a self, customer: &'a str, name: Option<&'a str>) -> Answer<'a, ()>;

    /// Deletes a customer, with all that is collected from them. One that is gone is no error.
    fn forget_customer<'a>(&'a self, customer: &'a str) -> Answer<'a, ()>;

    /// Collects an amount besides the subscription: with its next invoice, or at once where it has ended. `intent` is the same at every attempt.
    fn collect<'a>(&'a self, intent: &'a str, charge: &'a Charge<'a>) -> Answer<'a, ()>;

    /// Whether the provider can charge this amount; if not, why.
    fn can_charge(&self, amount: Money) -> Result<(), String>;

    /// Begins to set up what a customer pays with, and answers the secret by which the product's own page goes on with the provider.
    fn set_up_payment<'a>(&'a self, subscription: StreamId, customer: &'a str) -> Answer<'a, String>;

    /// Checks the signature of a message over its body as it came, and reads it.
    fn read(&self, signature: Option<&str>, body: &[u8], now: DateTime<Utc>) -> Result<Message, MessageError>;

    /// Reads a message again whose signature was good when it came.
    fn reread(&self, body: &[u8]) -> Result<Message, MessageError>;
}

/// What a provider is to collect.
#[derive(Clone, Copy)]
pub struct NewSubscription<'a> {
    /// Which one it is here.
    pub subscription: StreamId,
    /// What is known of it.
    pub details: &'a Details,
    /// What the provider calls whoever pays.
    pub customer: &'a str,
    /// Now.
    pub now: DateTime<Utc>,
}

/// An amount to be collected besides the subscription.
pub struct Charge<'a> {
    /// From which customer.
    pub customer: &'a str,
    /// With which of the provider's subscriptions, while it runs.
    pub subscription: Option<&'a str>,
    /// How much.
    pub amount: Money,
    /// What for, on the invoice.
    pub description: String,
    /// The meter and the month of which it is the overage, if it is that.
    pub overage: Option<(Meter, Month)>,
    /// What it is paid with, where that is not the subscription's.
    pub method: Option<&'a str>,
}

/// What a provider answers.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, ProviderError>>;

/// The provider of an installation, if it has one.
pub type Provider = Option<Arc<dyn PaymentProvider>>;

/// Why a provider did not do what it was asked. Names nothing personal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// It may another time.
    #[error("{0}")]
    Later(String),
    /// It never will.
    #[error("{0}")]
    Never(String),
    /// What is paid with was declined.
    #[error("{0}")]
    Declined(String),
}

/// What a provider tells.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Its own id of the message.
    pub id: Reference,
    /// Its own name of what happened.
    pub kind: Reference,
    /// When it happened, in whole seconds mostly.
    pub occurred_at: Instant,
    /// The subscription that it is about, where the provider was told so.
    pub about: Option<StreamId>,
    /// What the provider calls whoever pays.
    pub customer: Option<Reference>,
    /// What the provider calls the object that it is about.
    pub object: Object,
    /// What the provider calls the invoice, the charge and the payment that it names: by these, what is heard of a charge later is recognised.
    pub names: Vec<Reference>,
    /// What it means here; `None`: nothing.
    pub fact: Option<Fact>,
}

/// What a message of a provider is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// The customer: what they pay with.
    Customer,
    /// A subscription.
    Subscription(Reference),
    /// An invoice, and the subscription that it is of, if it is of one.
    Invoice(Option<Reference>),
    /// A charge of an invoice that was heard of before.
    Charge,
}

/// Why a message was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// It is not signed by the provider, or was signed too long ago.
    #[error("{0}")]
    BadSignature(&'static str),
    /// It is signed, and makes no sense.
    #[error("{0}")]
    Malformed(String),
}
