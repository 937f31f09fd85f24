//! Who uses the platform.

pub mod access_record;
pub mod api_key;
pub mod me;
pub mod role;
pub mod session;
pub mod tenant;
pub mod user;
