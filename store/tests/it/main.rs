//! The event log against a real PostgreSQL.
#![allow(missing_docs, clippy::missing_panics_doc, clippy::allow_attributes, reason = "tests")]

mod append;
mod kit;
