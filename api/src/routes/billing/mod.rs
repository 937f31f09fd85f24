//! What tenants pay for.

pub mod entitlement;
pub mod plan;
pub mod provider;
pub mod subscription;
