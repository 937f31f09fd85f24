//! Who uses the platform: tenants, their users, the roles they define, the keys of their programs, and who tried what.

pub mod access_record;
pub mod api_key;
pub mod role;
pub mod tenant;
pub mod user;
