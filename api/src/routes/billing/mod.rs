//! What tenants pay for.

pub mod entitlement;
pub mod outlet;
pub mod plan;
pub mod provider;
pub mod quota;
pub mod subscription;
pub mod usage;
