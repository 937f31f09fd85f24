//! The REST interface over real servers.

mod bad_input;
mod completeness;
mod tenant;
