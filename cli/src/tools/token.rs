//! `tenure dev-token`.

use std::path::Path;

use chrono::TimeDelta;
use domain::{Clock as _, Role, SystemClock, TenantId};

/// A token signed with the key in the environment or the data directory.
pub(crate) fn dev_token(dir: &Path, tenant: TenantId, role: Role, ttl: TimeDelta) -> anyhow::Result<String> {
    anyhow::ensure!(
        (role == Role::SuperAdmin) == (tenant == TenantId::SYSTEM),
        "super_admin is the role of the system tenant, and its only one"
    );
    Ok(crate::site::token_key(dir)?.sign("dev", tenant, role, SystemClock.now(), ttl)?)
}
