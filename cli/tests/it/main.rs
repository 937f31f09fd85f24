//! The binary, as real processes.
#![expect(clippy::unwrap_used, reason = "tests may")]

mod access;
mod backup;
mod crowd;
mod faults;
mod privacy;
mod process;
mod projections;
mod restore;
mod secrets;
mod seed;
mod serve;
mod site;
mod tools;
mod up;
