//! The event log against a real PostgreSQL.
#![expect(clippy::unwrap_used, reason = "tests may")]

mod append;
mod catalogue;
mod database;
mod histories;
mod kit;
mod load;
mod memory;
mod seal;
