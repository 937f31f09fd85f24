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

/// Takes or renews the leases `<kind>/<name>` for `owner` in one statement, and answers the epochs of those that it holds, by name. `wanted` are taken as soon as nobody holds them, `others`
/// only when nobody has for as long as `orphaned`: whoever should have them does not want them.
pub async fn acquire_all(
    pool: &PgPool,
    kind: &str,
    wanted: &[&str],
    others: &[&str],
    owner: Uuid,
    (ttl, orphaned): (Duration, Duration),
) -> Result<Vec<(String, i64)>, sqlx::Error> {
    sqlx::query_as(
        // In the order of the names, so that two owners never wait for each other.
        "insert into ops.leases as l (name, owner, epoch, until)
         select $1 || '/' || w.name, $2, 1, now() + $3 * interval '1 second'
           from (select unnest($5::text[]) as name union all
                 select o.name from unnest($6::text[]) o (name)
                  where not exists (select from ops.leases f where f.name = $1 || '/' || o.name and f.until > now() - $4 * interval '1 second')) w
          order by 1
         on conflict (name) do update set owner = excluded.owner, until = excluded.until, epoch = l.epoch + (l.owner <> excluded.owner)::int
           where l.owner = excluded.owner or l.until < now()
         returning substr(name, length($1) + 2), epoch",
    )
    .bind(kind)
    .bind(owner)
    .bind(ttl.as_secs_f64())
    .bind(orphaned.as_secs_f64())
    .bind(wanted)
    .bind(others)
    .fetch_all(pool)
    .await
}

/// Gives back the leases `<kind>/<name>` of these names.
pub async fn release_all(pool: &PgPool, kind: &str, names: &[&str], owner: Uuid) -> Result<(), sqlx::Error> {
    // Locked in the order of the names, as they are taken.
    sqlx::query(
        "with mine as (select name from ops.leases where owner = $1 and until > now() and name in (select $2 || '/' || n from unnest($3::text[]) n) order by name for update)
         update ops.leases l set until = now() from mine where l.name = mine.name",
    )
        .bind(owner)
        .bind(kind)
        .bind(names)
        .execute(pool)
        .await?;
    Ok(())
}

/// The owners of all leases whose names begin like this. Leases of that kind that ran out an hour ago are forgotten.
pub async fn owners(pool: &PgPool, beginning: &str) -> Result<Vec<Uuid>, sqlx::Error> {
    sqlx::query_scalar(
        "with gone as (delete from ops.leases where starts_with(name, $1) and until < now() - interval '1 hour')
         select owner from ops.leases where starts_with(name, $1) and until > now() order by owner",
    )
    .bind(beginning)
    .fetch_all(pool)
    .await
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
