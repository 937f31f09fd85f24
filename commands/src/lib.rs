//! Executing commands: [`execute`] (load, decide, append, retry), [`authorize`] (who may), [`lookup`] (what rules have to know of others), [`timers`] (what falls due),
//! [`policy`] (what answers events) and [`policies`] (those that answer with commands). Generic over aggregates: a new one needs nothing here.

pub mod authorize;
pub mod error;
pub mod execute;
pub mod lookup;
pub mod policies;
pub mod policy;
pub mod timers;

pub use error::CommandError;
pub use execute::{Executor, Outcome, Request};
pub use store::Key;
