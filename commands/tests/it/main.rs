//! Executing commands against a real log.

mod execute;
mod timers;
