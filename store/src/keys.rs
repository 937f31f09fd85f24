//! Idempotency keys: what is kept of them, and for how long.

use chrono::TimeDelta;

use crate::Store;

/// How long a key is known: 35 days at least, and longer than any clock is wrong.
pub const KEPT: TimeDelta = TimeDelta::days(36);

/// How many are forgotten at a time.
pub const AT_A_TIME: u64 = 10_000;

impl Store {
    /// Forgets keys and kept answers that are older than [`KEPT`], some at a time, and answers how many.
    pub async fn expire_keys(&self) -> Result<u64, sqlx::Error> {
        let gone = sqlx::query("delete from ops.idempotency_keys where ctid = any(array(select ctid from ops.idempotency_keys where recorded_at < $1 limit $2))")
            .bind(self.inner.clock.now() - KEPT)
        .bind(i64::try_from(AT_A_TIME).unwrap_or(i64::MAX))
            .execute(&self.inner.pool)
            .await?;
        let answers = sqlx::query(
            "delete from ops.kept_answers where ctid = any(array(select ctid from ops.kept_answers where recorded_at < $1 limit $2))",
        )
        .bind(self.inner.clock.now() - KEPT)
        .bind(i64::try_from(AT_A_TIME).unwrap_or(i64::MAX))
        .execute(&self.inner.pool)
        .await?;
        Ok(gone.rows_affected().max(answers.rows_affected()))
    }
}
