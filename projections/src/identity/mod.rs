//! Who uses the platform.

pub mod tenant;
pub mod tenant_timeline;
