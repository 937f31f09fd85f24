//! `tenure dev-token`.

use std::path::Path;

use chrono::TimeDelta;
use domain::{Clock as _, Role, SystemClock, TenantId};

/// A token signed with the key in the environment or the data directory.
pub(crate) fn dev_token(dir: &Path, tenant: TenantId, role: Role, user: &str, ttl: TimeDelta) -> anyhow::Result<String> {
    anyhow::ensure!(
        (role == Role::SuperAdmin) == (tenant == TenantId::SYSTEM),
        "super_admin is the role of the system tenant, and its only one"
    );
    anyhow::ensure!(
        (1..=200).contains(&user.len()) && !user.contains(char::is_control),
        "a user is named by 1 to 200 bytes without control characters"
    );
    // Who acts stands in the log in clear.
    anyhow::ensure!(!user.contains('@'), "a user is named by an id or a word, not by an address");
    Ok(crate::site::token_key(dir)?.sign(user, tenant, role, SystemClock.now(), ttl)?)
}
