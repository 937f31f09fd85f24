//! The statistics that PostgreSQL plans queries with, kept up to date while read models grow.

use std::time::Duration;

use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

/// How often the sizes of the tables are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Analyzes the tables of read models that have doubled since they were last analyzed, and returns how many these are. Plans that were made for a smaller table are made again.
pub async fn refresh(pool: &PgPool) -> Result<i32, sqlx::Error> {
    sqlx::query_scalar("select read.analyze_grown()").fetch_one(pool).await
}

/// Refreshes the statistics until cancelled.
pub async fn keep(pool: PgPool, cancel: CancellationToken) {
    while !cancel.is_cancelled() {
        match refresh(&pool).await {
            Ok(0) => {}
            Ok(analyzed) => tracing::debug!(analyzed, "tables of read models have grown"),
            Err(error) => tracing::warn!(%error, "tables of read models cannot be analyzed"),
        }
        let _ = tokio::time::timeout(LOOK, cancel.cancelled()).await;
    }
}
