//! The REST interface over real servers.
#![expect(clippy::unwrap_used, reason = "tests may")]

mod bad_input;
mod completeness;
mod tenant;
mod third;
mod ticket;
