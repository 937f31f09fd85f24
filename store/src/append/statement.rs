//! The statements that write a plan.

use chrono::{DateTime, Utc};
use sqlx::postgres::PgArguments;
use sqlx::query::QueryScalar;
use sqlx::types::Json;
use sqlx::{PgConnection, Postgres};

use super::decide::Plan;
use super::memory::Assumed;

/// What `append_assuming` answers.
pub(super) enum Verdict {
    Moved,
    Written,
    Mistaken,
}

/// Whether the plan's own events stand at its positions: the chain's hash at its last one covers all of them.
pub(super) async fn was_written(connection: &mut PgConnection, plan: &Plan) -> Result<bool, sqlx::Error> {
    if plan.rows.is_empty() {
        return Ok(false);
    }
    let found: Option<[u8; 32]> =
        sqlx::query_scalar("select log_hash from events where position = $1").bind(plan.after.position).fetch_optional(connection).await?;
    Ok(found == Some(plan.after.log_hash.0))
}

/// Writes a plan; false when the log is not where the plan was made for.
pub(super) async fn write(connection: &mut PgConnection, plan: &Plan, now: DateTime<Utc>) -> Result<bool, sqlx::Error> {
    let query = sqlx::query_scalar(
        "select append_batch($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30)",
    );
    bind(query, plan, now).fetch_one(connection).await
}

/// Writes a plan if what it assumes is so.
pub(super) async fn assuming(
    connection: &mut PgConnection,
    plan: &Plan,
    assumed: &Assumed,
    now: DateTime<Utc>,
) -> Result<Verdict, sqlx::Error> {
    let query = sqlx::query_scalar(
        "select append_assuming($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35)",
    )
    .bind(assumed.versions.iter().map(|a| a.0.0).collect::<Vec<_>>())
    .bind(assumed.versions.iter().map(|a| a.0.1.to_string()).collect::<Vec<_>>())
    .bind(assumed.versions.iter().map(|a| a.1).collect::<Vec<_>>())
    .bind(assumed.document().map(Json))
    .bind(plan.before.log_hash.0);
    match bind(query, plan, now).fetch_one(connection).await? {
        0_i32 => Ok(Verdict::Moved),
        1 => Ok(Verdict::Written),
        _ => Ok(Verdict::Mistaken),
    }
}

/// What `append_batch` takes.
fn bind<'q, T>(
    query: QueryScalar<'q, Postgres, T, PgArguments>,
    plan: &'q Plan,
    now: DateTime<Utc>,
) -> QueryScalar<'q, Postgres, T, PgArguments> {
    let rows = &plan.rows;
    // The gate and the chain stand in one row; each tenant that got an event changes it.
    let heads: Vec<_> = plan.guards.tenants.changes().filter_map(|change| change.after.map(|head| (change.key, head))).collect();
    let keys = &plan.keys;
    query
        .bind(plan.before.position)
        .bind(plan.after.position)
        .bind(plan.after.log_hash.0)
        .bind(rows.iter().map(|r| r.event_id).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.tenant.0).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.aggregate).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.stream.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.sequence).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.event_type.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.event_version.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.payload.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.metadata.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|_| now).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.digest.as_slice()).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.tenant_hash.as_slice()).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.log_hash.as_slice()).collect::<Vec<_>>())
        .bind(heads.iter().map(|h| h.0.0).collect::<Vec<_>>())
        .bind(heads.iter().map(|h| h.1.position).collect::<Vec<_>>())
        .bind(heads.iter().map(|h| h.1.hash.0.as_slice()).collect::<Vec<_>>())
        .bind(heads.iter().map(|h| h.1.gate.as_deref()).collect::<Vec<_>>())
        .bind(keys.iter().map(|k| k.0.tenant.0).collect::<Vec<_>>())
        .bind(keys.iter().map(|k| k.0.scope.as_str()).collect::<Vec<_>>())
        .bind(keys.iter().map(|k| k.0.key.as_str()).collect::<Vec<_>>())
        .bind(keys.iter().map(|k| k.0.fingerprint.as_slice()).collect::<Vec<_>>())
        .bind(keys.iter().map(|k| k.1.aggregate_id.as_str()).collect::<Vec<_>>())
        .bind(keys.iter().map(|k| k.1.version).collect::<Vec<_>>())
        .bind(keys.iter().map(|k| k.1.position).collect::<Vec<_>>())
        .bind(keys.iter().map(|k| k.1.created).collect::<Vec<_>>())
        .bind(keys.iter().map(|_| now).collect::<Vec<_>>())
        .bind(plan.guards.document().map(Json))
}
