//! Who uses the platform: tenants.

pub mod tenant;
