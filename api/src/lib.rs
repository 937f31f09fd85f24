//! The REST interface.
//!
//! A handler is one expression over two extractors: [`Write`](extract::Write) executes a command, [`Query`](extract::Query) opens a read model. Everything else
//! (authentication, tenants, idempotency keys, versions, positions, problems) happens in them, once for all routes. Conventions: `docs/API.md`.
//!
//! # Adding routes
//!
//! `routes/<context>/<noun>.rs` has a `routes()`; a command is one line of [`commands!`](crate::commands), a query one function. Merge it in [`routes`].

pub mod app;
pub mod client_address;
mod document;
pub mod extract;
pub mod health;
pub mod problem;
pub mod routes;
pub mod serve;
mod share;

pub use app::{App, Limits, router};
pub use problem::Problem;
