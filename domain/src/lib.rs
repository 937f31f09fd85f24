//! Tenure's rules: aggregates with their commands, events and states, and the value types they are made of. Pure: no I/O, no clock, no randomness.
//!
//! # Adding an aggregate
//!
//! Take [`identity::tenant`] as the pattern.
//!
//! 1. `domain/src/<context>/<noun>/event.rs`: what has happened. This is a contract, stored for ever: append only, plain data, one golden file per event version
//!    under `domain/tests/golden/<noun>/`.
//! 2. `command.rs`: what may be asked (one struct each, validated newtypes, listed once in [`commands!`]) and why it may be refused (`Error`).
//! 3. `mod.rs`: the state (an enum per life stage), `decide`, `apply`, `effects`, then [`impl Aggregate`](Aggregate) and [`aggregate!`].
//! 4. One line in [`for_each_aggregate!`], and who may what in [`actor`]. The executor, timers, relay, audit and replay need nothing more.
//! 5. A read model (see the `projections` crate) and routes (see the `api` crate).
//!
//! The completeness test in `api/tests/it` names whatever was forgotten; `docs/ARCHITECTURE.md` lists the places.
//!
//! # What a rule may know
//!
//! `decide` sees the folded state of its own stream, the command, and a [`Context`] with the time, the actor and a fresh id. What other streams say is never read
//! beforehand and trusted: it is declared as an [`Effect`] (claims, counters, timers), a [`Precondition`], or a [`aggregate::Lookup`] whose answer must still hold, and checked
//! inside the append.

pub mod actor;
pub mod aggregate;
pub mod billing;
pub mod effect;
pub mod error;
pub mod identity;
pub mod ids;
pub mod instant;
pub mod iot;
pub mod json;
pub mod personal;
pub mod support;
pub mod text;
pub mod time;

pub use actor::{Actor, Role};
pub use aggregate::{Aggregate, Context, EventKind, Issued};
pub use effect::{Claim, CounterName, Effect, Gate, Precondition, Refusal, Scope, Which};
pub use error::{DomainError, Kind};
pub use ids::{RoleId, StreamId, SubjectId, TenantId, UserId};
pub use personal::Personal;
pub use time::{Clock, IdSource, ManualClock, SystemClock};

/// Calls a macro once with the list of all aggregates. What has to exist for every aggregate is generated from this list, so nothing can be forgotten.
#[macro_export]
macro_rules! for_each_aggregate {
    ($callback:ident) => {
        $callback! {
            $crate::identity::tenant::Tenant,
            $crate::identity::user::User,
            $crate::identity::role::Role,
            $crate::identity::api_key::ApiKey,
            $crate::identity::access_record::AccessRecord,
            $crate::billing::plan::Plan,
            $crate::billing::subscription::Subscription,
            $crate::billing::usage::Usage,
            $crate::billing::quota::Quota,
            $crate::billing::outlet::Outlet,
            $crate::support::ticket::Ticket,
            $crate::iot::device::Device,
        }
    };
}

macro_rules! types {
    ($($aggregate:ty,)*) => { &[$(<$aggregate as cqrs_es::Aggregate>::TYPE),*] };
}
macro_rules! metered {
    ($($aggregate:ty,)*) => { &[$(<$aggregate as Aggregate>::METERED),*] };
}

/// The types of all aggregates.
pub const TYPES: &[&str] = for_each_aggregate!(types);

/// The meter that an event uses more or less of, by the event's name, where that meter stands.
pub fn metered(event_type: &str) -> Option<billing::meter::Meter> {
    const METERED: &[&[(&str, billing::meter::Meter)]] = for_each_aggregate!(metered);
    METERED.iter().flat_map(|of| of.iter()).find(|(name, _)| *name == event_type).map(|(_, meter)| *meter)
}
