//! The binary, as real processes.

mod process;
mod serve;
mod up;
