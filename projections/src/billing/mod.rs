//! What tenants pay for.

pub mod entitlement;
pub mod outlet;
pub mod payment;
pub mod plan;
pub mod subscription;
pub mod subscription_timeline;
pub mod usage;
