//! Relay and feed against a real nats-server.

mod feed;
mod relay;
