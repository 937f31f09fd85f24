//! The binary, as real processes.
#![expect(clippy::unwrap_used, reason = "tests may")]

mod process;
mod serve;
mod up;
