//! Who uses the platform.

pub mod tenant;
