//! What tenants pay for: plans, the subscriptions to them, and what those entitle to.

pub mod meter;
pub mod money;
pub mod period;
pub mod plan;
pub mod subscription;
