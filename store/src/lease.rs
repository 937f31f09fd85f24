//! Leases: one owner at a time for a relay or a projection.
//!
//! Time is the database's own, the only clock that all processes share. A lease alone does not stop a former owner that has not noticed: whatever it guards also compares
//! the epoch, or (the relay) is fenced by the stream's last sequence.

use std::time::Duration;

use sqlx::PgPool;
use uuid::Uuid;

/// A lease held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Rises whenever the owner changes.
    pub epoch: i64,
}

/// Takes or renews the lease `name` for `owner`; `None` while somebody else holds it.
pub async fn acquire(pool: &PgPool, name: &str, owner: Uuid, ttl: Duration) -> Result<Option<Lease>, sqlx::Error> {
    let epoch: Option<i64> = sqlx::query_scalar(
        "insert into ops.leases as l (name, owner, epoch, until) values ($1, $2, 1, now() + $3 * interval '1 second')
         on conflict (name) do update set owner = excluded.owner, until = excluded.until, epoch = l.epoch + (l.owner <> excluded.owner)::int
           where l.owner = excluded.owner or l.until < now()
         returning epoch",
    )
    .bind(name)
    .bind(owner)
    .bind(ttl.as_secs_f64())
    .fetch_optional(pool)
    .await?;
    Ok(epoch.map(|epoch| Lease { epoch }))
}

/// Gives the lease back, so that the next one need not wait.
pub async fn release(pool: &PgPool, name: &str, owner: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query("update ops.leases set until = now() where name = $1 and owner = $2").bind(name).bind(owner).execute(pool).await?;
    Ok(())
}

/// Whether somebody holds a lease whose name begins like this.
pub async fn is_held(pool: &PgPool, beginning: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select exists (select from ops.leases where starts_with(name, $1) and until > now())")
        .bind(beginning)
        .fetch_one(pool)
        .await
}

/// Ends all leases, also those of timers: for a process that knows itself to be the only one, so that it need not wait for what a killed one held.
pub async fn expire_all(pool: &PgPool) -> Result<(), sqlx::Error> {
    sqlx::query("update ops.leases set until = now() where until > now()").execute(pool).await?;
    sqlx::query("update ops.timer_leases set until = now() where until > now()").execute(pool).await?;
    Ok(())
}
