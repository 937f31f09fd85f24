//! Forgetting old idempotency keys.

use chrono::TimeDelta;

use crate::Store;

/// How long a key is known at least.
pub const KEPT: TimeDelta = TimeDelta::days(35);

impl Store {
    /// Forgets keys that are older than [`KEPT`], some at a time, and answers how many.
    pub async fn expire_keys(&self) -> Result<u64, sqlx::Error> {
        let gone = sqlx::query("delete from ops.idempotency_keys where ctid = any(array(select ctid from ops.idempotency_keys where recorded_at < $1 limit 10000))")
            .bind(self.inner.clock.now() - KEPT)
            .execute(&self.inner.pool)
            .await?;
        Ok(gone.rows_affected())
    }
}
