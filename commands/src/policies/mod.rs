//! The policies that answer events with commands.
//!
//! # Adding one
//!
//! 1. A type here that implements [`Reaction`](crate::policy::Reaction): whose events, and which commands they lead to.
//! 2. A line in [`for_each_reaction!`](crate::for_each_reaction).
//! 3. A row in `ops.policies`, by a migration: `insert into ops.policies … select '<name>', position, log_hash, 0 from log_head`.

pub mod catalogue;
pub mod provisioning;
pub mod quotas;
pub mod references;
pub mod tenancy;

/// Calls a macro once with the list of all of them.
#[macro_export]
macro_rules! for_each_reaction {
    ($callback:ident) => {
        $callback! {
            $crate::policies::provisioning::Provisioning,
            $crate::policies::quotas::Quotas,
            $crate::policies::references::References::default(),
            $crate::policies::tenancy::Tenancy,
        }
    };
}
