//! Things that are connected.

pub mod device;
