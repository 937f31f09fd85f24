//! Executing commands against a real log.
#![expect(clippy::unwrap_used, reason = "tests may")]

mod execute;
mod overage;
mod policies;
mod quotas;
mod timers;
