//! Relay and feed against a real nats-server.
#![expect(clippy::unwrap_used, reason = "tests may")]

mod feed;
mod relay;
