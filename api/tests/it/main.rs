//! The REST interface over real servers.
#![expect(clippy::unwrap_used, reason = "tests may")]

mod access_record;
mod admission;
mod api_key;
mod authorization;
mod bad_input;
mod completeness;
mod device;
mod erasure;
mod parties;
mod patches;
mod quota;
mod references;
mod repeats;
mod representations;
mod session;
mod tenant;
mod third;
mod ticket;
mod user;
mod values;
