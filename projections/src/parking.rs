//! Parking: one event that cannot be folded stops its own partition and no other.
//!
//! A parked partition's later events are noted by position and wait in order, while all others go on. An operator fixes the cause and has them retried, or discards the
//! event that fails; a discarded event is left out of every later fold of the read model too, so that rebuilt = live still holds. Each generation has its own parked
//! partitions: they are part of what its rows say.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{Connection as _, FromRow, PgConnection, PgPool};
use store::{RawEvent, Store, database};
use uuid::Uuid;

use crate::fold::{FoldError, fold};
use crate::kept::Rows;
use crate::model::{ReadModel, Source};

/// Waiting events that a retry folds in one transaction.
const PAGE: i64 = 500;

/// A generation that events are folded into.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Generation {
    pub(crate) number: i32,
    /// Whether what an event erases is to be erased in generations that nobody folds into, too.
    pub(crate) serving: bool,
    /// Whether some of its events may be parked or discarded.
    pub(crate) holds: bool,
}

/// Whether a read model has anything to do with an event, or something to forget because of it.
pub(crate) fn concerns<M: ReadModel>(event: &RawEvent) -> bool {
    <M::Events as Source>::concerns(event) || (M::SUBJECT.is_some() && event.may_erase())
}

/// Folds a page of events into a generation. What belongs to a parked partition waits there; with `one_by_one`, so does what cannot be folded, and an error is not the
/// fault of any event. The caller moves the checkpoint in the same transaction.
pub(crate) async fn advance<M: ReadModel>(
    store: &Store,
    connection: &mut PgConnection,
    generation: Generation,
    events: &[&RawEvent],
    one_by_one: bool,
    rows: &mut Rows<M>,
) -> Result<(), FoldError> {
    let mine = |event: &RawEvent| <M::Events as Source>::concerns(event);
    if !events.iter().any(|event| concerns::<M>(event)) {
        return Ok(());
    }
    let erases = M::SUBJECT.is_some() && events.iter().any(|event| event.may_erase());
    if !generation.holds && !erases && !one_by_one {
        return fold::<M>(store, connection, generation.number, &[], events, &HashSet::new(), rows).await;
    }
    let partitions: HashSet<String> = events.iter().filter(|event| mine(event)).map(|event| M::PARTITION.of(event)).collect();
    // A generation that is being built comes across every erasure by itself.
    let (parked, discarded, copies): (Vec<String>, Vec<i64>, Vec<i32>) = sqlx::query_as(
        "select array(select partition from read.parked where name = $1 and generation = $2 and partition = any($3)),
                array(select d.position from read.discarded d join unnest($4::bigint[], $6::uuid[]) as e (position, id) on d.position = e.position and (d.event_id is null or d.event_id = e.id)
                      where d.name = $1),
                array(select generation from read.generations where $5 and name = $1 and generation <> $2
                      and (state <> 'building' or not exists (select from ops.leases where ops.leases.name = 'rebuild/' || $1 and until > now())))",
    )
    .bind(M::NAME)
    .bind(generation.number)
    .bind(partitions.into_iter().collect::<Vec<_>>())
    .bind(events.iter().map(|event| event.position).collect::<Vec<_>>())
    .bind(generation.serving)
    .bind(events.iter().map(|event| event.event_id).collect::<Vec<_>>())
    .fetch_one(&mut *connection)
    .await?;
    let mut parked: HashSet<String> = parked.into_iter().collect();
    let mut held: HashSet<i64> = discarded.into_iter().collect();
    let mut waiting: Vec<&RawEvent> = vec![];
    for event in events.iter().copied().filter(|event| mine(event) && parked.contains(&M::PARTITION.of(event))) {
        if held.insert(event.position) {
            waiting.push(event);
        }
    }
    if !one_by_one {
        fold::<M>(store, connection, generation.number, &copies, events, &held, rows).await?;
        return wait::<M>(connection, generation, &waiting).await;
    }
    for event in events {
        let partition = M::PARTITION.of(event);
        if mine(event) && parked.contains(&partition) && held.insert(event.position) {
            waiting.push(event);
        }
        let mut attempt = connection.begin().await?;
        match fold::<M>(store, &mut attempt, generation.number, &copies, &[event], &held, rows).await {
            Ok(()) => attempt.commit().await?,
            Err(error) if error.is_poison() => {
                attempt.rollback().await?;
                tracing::error!(model = M::NAME, %partition, position = event.position, %error, "the partition is parked");
                park::<M>(connection, generation, event, &partition, &error.without_values(), store.clock().now()).await?;
                parked.insert(partition);
                held.insert(event.position);
                waiting.push(event);
                // What it erases does not wait with it.
                fold::<M>(store, connection, generation.number, &copies, &[event], &held, rows).await?;
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
        // A partition may have gone meanwhile, with its tenant.
        "insert into read.parked_events (name, generation, partition, position)
         select p.name, p.generation, p.partition, w.position from unnest($3::text[], $4::bigint[]) w (partition, position)
         join read.parked p on (p.name, p.generation, p.partition) = ($1, $2, w.partition)",
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
    /// No such partition is parked, or not because of this event.
    #[error("{0} has no parked partition {1}, or it is held up by another event")]
    NotParked(&'static str, String),
    /// An event could not be read, for a reason that lies not in it.
    #[error(transparent)]
    Fold(#[from] FoldError),
    /// The database did not do it.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// Locks the serving generation, so that its projector waits and nothing comes in between, and tells the projector that others have written its rows.
async fn lock<M: ReadModel>(connection: &mut PgConnection) -> Result<Generation, sqlx::Error> {
    let number = sqlx::query_scalar(
        "update read.generations set revision = revision + 1 where name = $1 and state = 'serving' returning generation",
    )
    .bind(M::NAME)
    .fetch_one(connection)
    .await?;
    Ok(Generation { number, serving: true, holds: true })
}

/// Folds the events that wait in a partition of the serving generation, in order, until none is left or one fails again.
pub async fn retry<M: ReadModel>(store: &Store, pool: &PgPool, partition: &str) -> Result<Retried, ParkingError> {
    let mut retried = Retried { partition: partition.to_owned(), folded: 0, stuck: None };
    loop {
        let mut tx = database::begin(pool).await?;
        let generation = lock::<M>(&mut tx).await?;
        let left = drain::<M>(store, &mut tx, generation, &mut retried).await?;
        tx.commit().await?;
        match left {
            Drained::More => {}
            Drained::Stuck | Drained::Empty => return Ok(retried),
            Drained::Nothing => return Err(ParkingError::NotParked(M::NAME, partition.to_owned())),
        }
    }
}

/// Retries all parked partitions of a generation that is to serve next: what has been mended or discarded meanwhile must not come back with it.
pub(crate) async fn retry_all<M: ReadModel>(store: &Store, pool: &PgPool, generation: Generation) -> Result<(), ParkingError> {
    let partitions: Vec<String> =
        sqlx::query_scalar("select partition from read.parked where name = $1 and generation = $2 order by position")
            .bind(M::NAME)
            .bind(generation.number)
            .fetch_all(pool)
            .await?;
    for partition in partitions {
        let mut retried = Retried { partition, folded: 0, stuck: None };
        loop {
            let mut tx = database::begin(pool).await?;
            let left = drain::<M>(store, &mut tx, generation, &mut retried).await?;
            tx.commit().await?;
            if left != Drained::More {
                break;
            }
        }
    }
    Ok(())
}

/// What is left of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drained {
    /// Some events still wait.
    More,
    /// One fails still.
    Stuck,
    /// It is parked no longer.
    Empty,
    /// It was not parked.
    Nothing,
}

/// Folds a page of the events that wait in a partition. Those that were discarded no longer wait.
async fn drain<M: ReadModel>(
    store: &Store,
    connection: &mut PgConnection,
    generation: Generation,
    retried: &mut Retried,
) -> Result<Drained, ParkingError> {
    sqlx::query("delete from read.parked_events e using read.discarded d where (e.name, e.generation, e.partition) = ($1, $2, $3) and (d.name, d.position) = (e.name, e.position)")
        .bind(M::NAME)
        .bind(generation.number)
        .bind(&retried.partition)
        .execute(&mut *connection)
        .await?;
    let positions: Vec<i64> = sqlx::query_scalar(
        "select position from read.parked_events where name = $1 and generation = $2 and partition = $3 order by position limit $4",
    )
    .bind(M::NAME)
    .bind(generation.number)
    .bind(&retried.partition)
    .bind(PAGE)
    .fetch_all(&mut *connection)
    .await?;
    if positions.is_empty() {
        let gone = sqlx::query("delete from read.parked where name = $1 and generation = $2 and partition = $3")
            .bind(M::NAME)
            .bind(generation.number)
            .bind(&retried.partition)
            .execute(connection)
            .await?;
        return Ok(if gone.rows_affected() == 0 && retried.folded == 0 { Drained::Nothing } else { Drained::Empty });
    }
    let events = store.at_all(&positions).await?;
    let all: Vec<&RawEvent> = events.iter().collect();
    if !try_fold::<M>(store, connection, generation, &all, retried).await? {
        // One of them fails: which?
        for event in &all {
            if !try_fold::<M>(store, connection, generation, &[event], retried).await? {
                break;
            }
        }
    }
    let next = retried.stuck.as_ref().map_or(i64::MAX, |(position, _)| *position);
    sqlx::query("delete from read.parked_events where name = $1 and generation = $2 and position = any($3)")
        .bind(M::NAME)
        .bind(generation.number)
        .bind(positions.into_iter().filter(|position| *position < next).collect::<Vec<_>>())
        .execute(&mut *connection)
        .await?;
    let Some((position, reason)) = &retried.stuck else { return Ok(Drained::More) };
    sqlx::query("update read.parked set position = $4, reason = $5 where name = $1 and generation = $2 and partition = $3")
        .bind(M::NAME)
        .bind(generation.number)
        .bind(&retried.partition)
        .bind(position)
        .bind(reason)
        .execute(connection)
        .await?;
    Ok(Drained::Stuck)
}

/// Folds events that waited, if they can be.
async fn try_fold<M: ReadModel>(
    store: &Store,
    connection: &mut PgConnection,
    generation: Generation,
    events: &[&RawEvent],
    retried: &mut Retried,
) -> Result<bool, FoldError> {
    let mut attempt = connection.begin().await?;
    match fold::<M>(store, &mut attempt, generation.number, &[], events, &HashSet::new(), &mut Rows::default()).await {
        Ok(()) => {
            attempt.commit().await?;
            retried.folded += events.len();
            retried.stuck = None;
            Ok(true)
        }
        Err(error) if error.is_poison() => {
            attempt.rollback().await?;
            retried.stuck = events.first().map(|event| (event.position, error.without_values()));
            Ok(false)
        }
        Err(error) => Err(error),
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

/// Leaves out the event at `position`, which holds up a partition, in this read model and for good, and notes that it was. The others go on waiting until they are retried.
pub async fn discard<M: ReadModel>(
    store: &Store,
    pool: &PgPool,
    partition: &str,
    position: i64,
    reason: &str,
) -> Result<Discarded, ParkingError> {
    let event = store.at(position).await?.map(|event| event.event_id);
    let mut tx = database::begin(pool).await?;
    let generation = lock::<M>(&mut tx).await?;
    let discarded: Option<Discarded> = sqlx::query_as(
        "insert into read.discarded (name, position, partition, tenant_id, failure, reason, discarded_at, event_id)
         select name, position, partition, tenant_id, reason, $4, $5, $7 from read.parked where name = $1 and generation = $2 and partition = $3 and position = $6
         on conflict (name, position) do update set reason = excluded.reason
         returning name, position, partition, tenant_id, failure, reason, discarded_at",
    )
    .bind(M::NAME)
    .bind(generation.number)
    .bind(partition)
    .bind(reason)
    .bind(store.clock().now())
    .bind(position)
    .bind(event)
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

/// Forgets which events read models leave out, where these are not in the log: it was restored to an earlier state since. Returns how many.
pub async fn forget_discards(store: &Store, pool: &PgPool) -> Result<u64, sqlx::Error> {
    let discards: Vec<(String, i64, Option<Uuid>)> =
        sqlx::query_as("select name, position, event_id from read.discarded").fetch_all(pool).await?;
    let mut forgotten = 0;
    for (name, position, event_id) in discards {
        let there = store.at(position).await?.is_some_and(|event| event_id.is_none_or(|id| id == event.event_id));
        if !there {
            let gone = sqlx::query("delete from read.discarded where name = $1 and position = $2").bind(name).bind(position);
            forgotten += gone.execute(pool).await?.rows_affected();
        }
    }
    Ok(forgotten)
}

/// All events that read models leave out.
pub async fn discarded(pool: &PgPool) -> Result<Vec<Discarded>, sqlx::Error> {
    sqlx::query_as("select name, position, partition, tenant_id, failure, reason, discarded_at from read.discarded order by name, position")
        .fetch_all(pool)
        .await
}
