//! Deliveries, over real servers.
