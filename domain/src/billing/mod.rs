//! What tenants pay for: plans, the subscriptions to them, what those entitle to, and how much of it is used.

pub mod meter;
pub mod money;
pub mod outlet;
pub mod period;
pub mod plan;
pub mod quota;
pub mod subscription;
pub mod usage;
