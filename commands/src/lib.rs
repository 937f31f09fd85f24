//! Executing commands: [`execute`] (load, decide, append, retry), [`authorize`] (who may), [`lookup`] (what rules have to know of others), [`timers`] (what falls due),
//! [`usage`] and [`quota`] (recording what is used, and how much of it may be), [`mails`] (how many may be caused), [`policy`] (what answers events) and [`policies`] (those that answer with commands). Generic over aggregates: a new one needs nothing here.

pub mod authorize;
pub mod error;
pub mod execute;
pub mod lookup;
pub mod mails;
pub mod policies;
pub mod policy;
pub mod quota;
pub mod timers;
pub mod usage;

pub use error::CommandError;
pub use execute::{Executor, Outcome, Request};
pub use store::Key;
pub use store::answers::KeepError;
