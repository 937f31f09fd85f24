//! Timers that are due. They are set, moved and cancelled by the effects of events only; here they are just found.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{FromRow, PgPool};
use uuid::Uuid;

/// A timer that is due.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct Due {
    /// The aggregate type that set it.
    pub aggregate_type: String,
    /// The stream that set it.
    pub aggregate_id: String,
    /// Its name.
    pub name: String,
    /// When it was due.
    pub due_at: DateTime<Utc>,
}

/// Takes up to `limit` timers due at `now` for `owner`, who has `ttl` to fire them before others may. Reads the timers without locking them.
pub async fn take_due(pool: &PgPool, now: DateTime<Utc>, owner: Uuid, ttl: Duration, limit: i64) -> Result<Vec<Due>, sqlx::Error> {
    sqlx::query_as(
        "insert into ops.timer_leases as l (aggregate_type, aggregate_id, name, due_at, owner, until)
         select t.aggregate_type, t.aggregate_id, t.name, t.due_at, $2, now() + $3 * interval '1 second'
           from timers t left join lateral (
             -- One look by key for each timer, in the order of the index, and never a join over all of them, whatever the statistics are.
             select l.until, l.due_at from ops.timer_leases l
              where (l.aggregate_type, l.aggregate_id, l.name) = (t.aggregate_type, t.aggregate_id, t.name) limit 1
           ) taken on true
          where t.due_at <= $1 and (taken.until is null or taken.until < now() or taken.due_at <> t.due_at)
          order by t.due_at limit $4
         on conflict (aggregate_type, aggregate_id, name) do update set due_at = excluded.due_at, owner = excluded.owner, until = excluded.until
           where l.until < now() or l.due_at <> excluded.due_at
         returning aggregate_type, aggregate_id, name, due_at",
    )
    .bind(now)
    .bind(owner)
    .bind(ttl.as_secs_f64())
    .bind(limit)
    .fetch_all(pool)
    .await
}

/// Gives back the leases of timers that are gone or have moved. One that is still set stays leased for a while, so that it is not tried again at once.
pub async fn done(pool: &PgPool, fired: &[Due], owner: Uuid) -> Result<(), sqlx::Error> {
    let column = |of: fn(&Due) -> &String| fired.iter().map(of).cloned().collect::<Vec<_>>();
    sqlx::query(
        "delete from ops.timer_leases l using unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[]) as f (aggregate_type, aggregate_id, name, due_at)
         where (l.aggregate_type, l.aggregate_id, l.name, l.due_at) = (f.aggregate_type, f.aggregate_id, f.name, f.due_at) and l.owner = $5
           and not exists (select from timers t where (t.aggregate_type, t.aggregate_id, t.name, t.due_at) = (l.aggregate_type, l.aggregate_id, l.name, l.due_at))",
    )
    .bind(column(|due| &due.aggregate_type))
    .bind(column(|due| &due.aggregate_id))
    .bind(column(|due| &due.name))
    .bind(fired.iter().map(|due| due.due_at).collect::<Vec<_>>())
    .bind(owner)
    .execute(pool)
    .await?;
    Ok(())
}

/// Forgets leases whose timers are gone, such as those of a tenant that was deleted.
pub async fn forget_leases(pool: &PgPool) -> Result<(), sqlx::Error> {
    sqlx::query(
        "delete from ops.timer_leases l where until < now()
           and not exists (select from timers t where (t.aggregate_type, t.aggregate_id, t.name) = (l.aggregate_type, l.aggregate_id, l.name))",
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// When the next timer is due, if any.
pub async fn next_due(pool: &PgPool) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    sqlx::query_scalar("select min(due_at) from timers").fetch_one(pool).await
}
