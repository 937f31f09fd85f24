//! Payment providers: [`provider`] is what Tenure needs of one, [`stripe`] is one.
//!
//! * What a provider tells ([`inbox`]): signed messages, each taken in once and turned into a command on the subscription that it is about; in which order they come does not
//!   matter (see `domain::billing::subscription`).
//! * What a provider is told ([`policy`], [`channel`]): the policy queues an intent for every event that matters to it, and the outbound runtime attempts each until it is
//!   acknowledged.
//!
//! # Adding a provider
//!
//! A type that implements [`provider::PaymentProvider`], and its settings in `cli/src/site.rs`. Everything else goes by its name.

pub mod channel;
pub mod inbox;
pub mod policy;
pub mod provider;
pub mod stripe;

pub use provider::PaymentProvider;
