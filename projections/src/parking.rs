//! Parking: one event that cannot be folded stops its own partition and no other.
//!
//! A parked partition's later events are noted by position and wait in order, while all others go on. An operator fixes the cause and has them retried, or discards the
//! event that fails; a discarded event is left out of every later fold of the read model too, so that rebuilt = live still holds. Each generation has its own parked
//! partitions: they are part of what its rows say.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{Connection as _, FromRow, PgConnection, PgPool};
use store::{RawEvent, Store};
use uuid::Uuid;

use crate::fold::{FoldError, fold};
use crate::model::ReadModel;

/// Waiting events that a retry folds in one transaction.
const PAGE: i64 = 500;

/// A table that events are folded into.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Generation {
    pub(crate) number: i32,
    /// Whether other generations may still hold what an event erases. A rebuild comes across every erasure by itself.
    pub(crate) serving: bool,
}

impl Generation {
    /// Its table, without the schema.
    pub(crate) fn table<M: ReadModel>(self) -> String {
        format!("{}_g{}", M::NAME, self.number)
    }
}

/// Folds a page of events into a generation. What belongs to a parked partition waits there; with `one_by_one`, so does what cannot be folded, and an error is not the
/// fault of any event. The caller moves the checkpoint in the same transaction.
pub(crate) async fn advance<M: ReadModel>(
    store: &Store,
    connection: &mut PgConnection,
    generation: Generation,
    events: &[&RawEvent],
    one_by_one: bool,
) -> Result<(), FoldError> {
    let (Some(first), Some(last)) = (events.first(), events.last()) else { return Ok(()) };
    let (parked, discarded, copies): (Vec<String>, Vec<i64>, Vec<i32>) = sqlx::query_as(
        "select array(select partition from read.parked where name = $1 and generation = $2),
                array(select position from read.discarded where name = $1 and position between $3 and $4),
                array(select generation from read.generations where name = $1 and generation <> $2)",
    )
    .bind(M::NAME)
    .bind(generation.number)
    .bind(first.position)
    .bind(last.position)
    .fetch_one(&mut *connection)
    .await?;
    let mut parked: HashSet<String> = parked.into_iter().collect();
    let copies: Vec<String> = if generation.serving {
        copies.into_iter().map(|number| Generation { number, serving: false }.table::<M>()).collect()
    } else {
        vec![]
    };
    let table = generation.table::<M>();
    let mine = |event: &RawEvent| event.aggregate_type == <M::Aggregate as cqrs_es::Aggregate>::TYPE;
    let mut waiting: Vec<&RawEvent> =
        events.iter().copied().filter(|event| mine(event) && parked.contains(&M::PARTITION.of(event))).collect();
    waiting.retain(|event| !discarded.contains(&event.position));
    let mut held: HashSet<i64> = discarded.iter().copied().chain(waiting.iter().map(|event| event.position)).collect();
    if !one_by_one {
        fold::<M>(store, connection, &table, &copies, events, &held).await?;
        return wait::<M>(connection, generation, &waiting).await;
    }
    for event in events {
        let partition = M::PARTITION.of(event);
        if mine(event) && parked.contains(&partition) && held.insert(event.position) {
            waiting.push(event);
        }
        let mut attempt = connection.begin().await?;
        let folded = fold::<M>(store, &mut attempt, &table, &copies, &[event], &held).await;
        match folded {
            Ok(()) => attempt.commit().await?,
            Err(error) if error.is_poison() => {
                attempt.rollback().await?;
                tracing::error!(model = M::NAME, %partition, position = event.position, %error, "the partition is parked");
                park::<M>(connection, generation, event, &partition, &error.to_string(), store.clock().now()).await?;
                parked.insert(partition);
                held.insert(event.position);
                waiting.push(event);
                // What it erases does not wait with it.
                fold::<M>(store, connection, &table, &copies, &[event], &held).await?;
            }
            Err(error) => return Err(error),
        }
    }
    wait::<M>(connection, generation, &waiting).await
}

async fn park<M: ReadModel>(
    connection: &mut PgConnection,
    generation: Generation,
    event: &RawEvent,
    partition: &str,
    reason: &str,
    now: DateTime<Utc>,
) -> Result<(), FoldError> {
    sqlx::query(
        "insert into read.parked (name, generation, partition, tenant_id, position, reason, parked_at) values ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(M::NAME)
    .bind(generation.number)
    .bind(partition)
    .bind(event.tenant_id)
    .bind(event.position)
    .bind(reason)
    .bind(now)
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes that these events wait for their partitions.
async fn wait<M: ReadModel>(connection: &mut PgConnection, generation: Generation, events: &[&RawEvent]) -> Result<(), FoldError> {
    if events.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "insert into read.parked_events (name, generation, partition, position) select $1, $2, * from unnest($3::text[], $4::bigint[])",
    )
    .bind(M::NAME)
    .bind(generation.number)
    .bind(events.iter().map(|event| M::PARTITION.of(event)).collect::<Vec<_>>())
    .bind(events.iter().map(|event| event.position).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// A parked partition of a serving generation.
#[derive(Clone, Debug, PartialEq, Serialize, FromRow)]
pub struct Parked {
    /// The read model.
    pub name: String,
    /// `<tenant>/<id>`, or `<tenant>` where rows gather what many streams say.
    pub partition: String,
    /// Whose.
    pub tenant_id: Uuid,
    /// The event that could not be folded.
    pub position: i64,
    /// Why, the last time.
    pub reason: String,
    /// How many events wait, this one included.
    pub waiting: i64,
    /// Since when.
    pub parked_at: DateTime<Utc>,
}

/// All parked partitions of the serving generations.
pub async fn parked(pool: &PgPool) -> Result<Vec<Parked>, sqlx::Error> {
    sqlx::query_as(
        "select p.name, p.partition, p.tenant_id, p.position, p.reason, p.parked_at,
           (select count(*) from read.parked_events e where (e.name, e.generation, e.partition) = (p.name, p.generation, p.partition)) as waiting
         from read.parked p join read.generations g using (name, generation) where g.state = 'serving' order by p.name, p.position",
    )
    .fetch_all(pool)
    .await
}

/// What a retry came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Retried {
    /// The partition.
    pub partition: String,
    /// How many of its events were folded.
    pub folded: usize,
    /// The event that still cannot be folded, and why; nothing when the partition is parked no longer.
    pub stuck: Option<(i64, String)>,
}

/// Why nothing was retried or discarded.
#[derive(Debug, thiserror::Error)]
pub enum ParkingError {
    /// No such partition is parked.
    #[error("{0} has no parked partition {1}")]
    NotParked(&'static str, String),
    /// An event could not be read, for a reason that lies not in it.
    #[error(transparent)]
    Fold(#[from] FoldError),
    /// The database did not do it.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// Locks the serving generation, so that its projector waits and nothing comes in between.
async fn lock<M: ReadModel>(connection: &mut PgConnection) -> Result<Generation, sqlx::Error> {
    let number = sqlx::query_scalar("select generation from read.generations where name = $1 and state = 'serving' for update")
        .bind(M::NAME)
        .fetch_one(connection)
        .await?;
    Ok(Generation { number, serving: true })
}

/// Folds the events that wait in a partition, in order, until none is left or one fails again.
pub async fn retry<M: ReadModel>(store: &Store, pool: &PgPool, partition: &str) -> Result<Retried, ParkingError> {
    let mut retried = Retried { partition: partition.to_owned(), folded: 0, stuck: None };
    loop {
        let mut tx = pool.begin().await?;
        let generation = lock::<M>(&mut tx).await?;
        let positions: Vec<i64> = sqlx::query_scalar(
            "select position from read.parked_events where name = $1 and generation = $2 and partition = $3 order by position limit $4",
        )
        .bind(M::NAME)
        .bind(generation.number)
        .bind(partition)
        .bind(PAGE)
        .fetch_all(&mut *tx)
        .await?;
        if positions.is_empty() {
            let gone = sqlx::query("delete from read.parked where name = $1 and generation = $2 and partition = $3")
                .bind(M::NAME)
                .bind(generation.number)
                .bind(partition)
                .execute(&mut *tx)
                .await?;
            tx.commit().await?;
            if gone.rows_affected() == 0 && retried.folded == 0 {
                return Err(ParkingError::NotParked(M::NAME, partition.to_owned()));
            }
            return Ok(retried);
        }
        let events = store.at_all(&positions).await?;
        let table = generation.table::<M>();
        for event in &events {
            let mut attempt = tx.begin().await?;
            match fold::<M>(store, &mut attempt, &table, &[], &[event], &HashSet::new()).await {
                Ok(()) => attempt.commit().await?,
                Err(error) if error.is_poison() => {
                    attempt.rollback().await?;
                    retried.stuck = Some((event.position, error.to_string()));
                    break;
                }
                Err(error) => return Err(error.into()),
            }
            retried.folded += 1;
        }
        let next = retried.stuck.as_ref().map_or(i64::MAX, |(position, _)| *position);
        let done: Vec<i64> = positions.into_iter().filter(|position| *position < next).collect();
        sqlx::query("delete from read.parked_events where name = $1 and generation = $2 and position = any($3)")
            .bind(M::NAME)
            .bind(generation.number)
            .bind(done)
            .execute(&mut *tx)
            .await?;
        if let Some((position, reason)) = &retried.stuck {
            sqlx::query("update read.parked set position = $4, reason = $5 where name = $1 and generation = $2 and partition = $3")
                .bind(M::NAME)
                .bind(generation.number)
                .bind(partition)
                .bind(position)
                .bind(reason)
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        if retried.stuck.is_some() {
            return Ok(retried);
        }
    }
}

/// An event that a read model leaves out.
#[derive(Clone, Debug, PartialEq, Serialize, FromRow)]
pub struct Discarded {
    /// The read model.
    pub name: String,
    /// The event.
    pub position: i64,
    /// The partition that it held up.
    pub partition: String,
    /// Whose.
    pub tenant_id: Uuid,
    /// Why it could not be folded.
    pub failure: String,
    /// Why it was discarded, in the words of whoever did.
    pub reason: String,
    /// When.
    pub discarded_at: DateTime<Utc>,
}

/// Leaves out the event that holds up a partition, in this read model and for good, and notes that it was. The others go on waiting until they are retried.
pub async fn discard<M: ReadModel>(store: &Store, pool: &PgPool, partition: &str, reason: &str) -> Result<Discarded, ParkingError> {
    let mut tx = pool.begin().await?;
    let generation = lock::<M>(&mut tx).await?;
    let discarded: Option<Discarded> = sqlx::query_as(
        "insert into read.discarded (name, position, partition, tenant_id, failure, reason, discarded_at)
         select name, position, partition, tenant_id, reason, $4, $5 from read.parked where name = $1 and generation = $2 and partition = $3
         on conflict (name, position) do update set reason = excluded.reason
         returning name, position, partition, tenant_id, failure, reason, discarded_at",
    )
    .bind(M::NAME)
    .bind(generation.number)
    .bind(partition)
    .bind(reason)
    .bind(store.clock().now())
    .fetch_optional(&mut *tx)
    .await?;
    let Some(discarded) = discarded else { return Err(ParkingError::NotParked(M::NAME, partition.to_owned())) };
    sqlx::query("delete from read.parked_events where name = $1 and generation = $2 and position = $3")
        .bind(M::NAME)
        .bind(generation.number)
        .bind(discarded.position)
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(discarded)
}

/// All events that read models leave out.
pub async fn discarded(pool: &PgPool) -> Result<Vec<Discarded>, sqlx::Error> {
    sqlx::query_as("select name, position, partition, tenant_id, failure, reason, discarded_at from read.discarded order by name, position")
        .fetch_all(pool)
        .await
}
