//! Planner statistics of the read models' tables.

use std::time::Duration;

use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

/// Interval between checks of the table sizes.
const INTERVAL: Duration = Duration::from_secs(2);

/// Runs `analyze` for each table that has doubled in size since the last `analyze`, and returns the number of these tables. PostgreSQL then replans cached statements on them.
pub async fn refresh(pool: &PgPool) -> Result<i32, sqlx::Error> {
    sqlx::query_scalar("select read.analyze_grown()").fetch_one(pool).await
}

/// Calls [`refresh`] periodically until cancelled.
pub async fn keep(pool: PgPool, cancel: CancellationToken) {
    while !cancel.is_cancelled() {
        match refresh(&pool).await {
            Ok(0) => {}
            Ok(analyzed) => tracing::debug!(analyzed, "analyzed tables of read models that have grown"),
            Err(error) => tracing::warn!(%error, "tables of read models cannot be analyzed"),
        }
        let _ = tokio::time::timeout(INTERVAL, cancel.cancelled()).await;
    }
}
