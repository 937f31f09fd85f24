//! Read models: folds of the log, and the queries over them.
//!
//! # Adding a read model
//!
//! Take [`identity::tenant`] as the pattern.
//!
//! 1. A migration that creates `read.<name>_v1_g1` (its key begins with `tenant_id`, its columns are the row's fields) and calls `read.register('<name>_v1')`.
//! 2. The row struct and `impl ReadModel`: which keys an event touches, and what becomes of the row of such a key. No SQL, no async. Rows with personal data in clear name
//!    the column of their data subject (`SUBJECT`) and what is left of them (`erased`); rows that gather what many streams say wait by tenant (`PARTITION`).
//! 3. The queries beside it, each a function over [`query::Read`]; row-level security does the filtering by tenant.
//! 4. One line in [`for_each_read_model!`]. Checkpoints, batching, catching up, rebuilding and verifying need nothing more.
//!
//! A fold that changes its meaning is a new version (`<name>_v2`), never an edit of the old one.

pub mod billing;
pub mod cursor;
mod fold;
pub mod identity;
pub mod iot;
mod kept;
pub mod list;
pub mod model;
pub mod parking;
pub mod projector;
pub mod query;
pub mod rebuild;
pub mod row;
pub mod sql;
pub mod statistics;
pub mod status;
pub mod support;
pub mod tools;

pub use model::ReadModel;
pub use projector::{Progress, Projection, Projections};
pub use query::{ModelStatus, QueryError, Read, ReadSide, View};
pub use tools::Tools;

/// Calls a macro once with the list of all read models.
#[macro_export]
macro_rules! for_each_read_model {
    ($callback:ident) => {
        $callback! {
            $crate::identity::tenant::Tenants,
            $crate::identity::tenant_timeline::Timeline,
            $crate::identity::user::Users,
            $crate::identity::invitation::Invitations,
            $crate::identity::role::Roles,
            $crate::identity::api_key::ApiKeys,
            $crate::identity::access_record::AccessRecords,
            $crate::identity::domain::Domains,
            $crate::billing::plan::Plans,
            $crate::billing::subscription::Subscriptions,
            $crate::billing::subscription_timeline::Timeline,
            $crate::billing::payment::Payments,
            $crate::billing::entitlement::InForce,
            $crate::billing::usage::Months,
            $crate::billing::usage::Days,
            $crate::billing::outlet::Outlets,
            $crate::support::ticket::Tickets,
            $crate::support::ticket_thread::Thread,
            $crate::support::ticket_statistics::Statistics,
            $crate::iot::device::Devices,
            $crate::iot::device_twin::Twins,
            $crate::iot::device_command::Commands,
            $crate::iot::device_timeline::Timeline,
        }
    };
}
