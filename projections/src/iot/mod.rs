//! Things that are connected.

pub mod device;
pub mod device_command;
pub mod device_timeline;
pub mod device_twin;
