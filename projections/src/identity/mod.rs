//! Who uses the platform.

pub mod access_record;
pub mod api_key;
pub mod domain;
pub mod invitation;
pub mod role;
pub mod tenant;
pub mod tenant_timeline;
pub mod user;
