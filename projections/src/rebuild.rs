//! Rebuilding a read model beside the serving one, and switching to it without a gap.
//!
//! The log is folded into the next generation's table until it has come as far as the serving one. Then both checkpoints are locked and made equal, the rows are
//! compared, and the view is switched, all in one transaction: a query sees the old rows or the new ones, at the same position, and never less than before.

use std::time::Duration;

use sqlx::{PgConnection, PgPool};
use store::{Hash, RawEvent, Store, lease};

use crate::fold::{FoldError, fold};
use crate::model::ReadModel;

/// Events folded in one transaction.
const PAGE: i64 = 2000;
/// How long a rebuild that died keeps the next one waiting.
const LEASE: Duration = Duration::from_secs(30);

/// What a rebuild came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebuilt {
    /// The generation that was built.
    pub generation: i32,
    /// Up to where.
    pub position: i64,
    /// How many rows only one of the two tables had.
    pub differences: i64,
    /// Whether it serves now.
    pub switched: bool,
}

/// What to do with a generation once it is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Switch to it if its rows equal those of the serving one.
    Switch,
    /// Switch to it in any case: the serving rows are known to be wrong.
    Replace,
    /// Compare, then drop it.
    Verify,
}

/// Why a rebuild ended early. Whatever it had built is dropped by the next one.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// Another one is going on.
    #[error("{0} is being rebuilt by another process")]
    Busy(&'static str),
    /// An event could not be folded.
    #[error(transparent)]
    Fold(#[from] FoldError),
    /// The database did not do it.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// Builds the next generation of a read model from the log. `progress` hears the position reached and the one to reach.
pub async fn rebuild<M: ReadModel>(
    store: &Store,
    pool: &PgPool,
    purpose: Purpose,
    progress: &mut (dyn FnMut(i64, i64) + Send),
) -> Result<Rebuilt, RebuildError> {
    let (owner, name) = (store.fresh_id(), format!("rebuild/{}", M::NAME));
    if lease::acquire(pool, &name, owner, LEASE).await?.is_none() {
        return Err(RebuildError::Busy(M::NAME));
    }
    let built = build::<M>(store, pool, purpose, (&name, owner), progress).await;
    let _ = lease::release(pool, &name, owner).await;
    built
}

async fn build<M: ReadModel>(
    store: &Store,
    pool: &PgPool,
    purpose: Purpose,
    lease: (&str, uuid::Uuid),
    progress: &mut (dyn FnMut(i64, i64) + Send),
) -> Result<Rebuilt, RebuildError> {
    let generation: i32 = sqlx::query_scalar("select read.new_generation($1)").bind(M::NAME).fetch_one(pool).await?;
    let mut position = 0;
    loop {
        if lease::acquire(pool, lease.0, lease.1, LEASE).await?.is_none() {
            return Err(RebuildError::Busy(M::NAME));
        }
        // Never past the serving one: the two have to be at the same position when they are compared.
        let serving: i64 = sqlx::query_scalar("select position from read.generations where name = $1 and state = 'serving'")
            .bind(M::NAME)
            .fetch_one(pool)
            .await?;
        progress(position, serving);
        if serving - position < PAGE {
            break;
        }
        let mut tx = pool.begin().await?;
        position = advance::<M>(store, &mut tx, generation, position, serving).await?;
        tx.commit().await?;
    }
    // The comparison can take a while.
    lease::acquire(pool, lease.0, lease.1, 20 * LEASE).await?;
    let mut tx = pool.begin().await?;
    // Once the serving checkpoint is locked the projector waits, so this part must be short.
    let serving: (i32, i64) =
        sqlx::query_as("select generation, position from read.generations where name = $1 and state = 'serving' for update")
            .bind(M::NAME)
            .fetch_one(&mut *tx)
            .await?;
    while position < serving.1 {
        position = advance::<M>(store, &mut tx, generation, position, serving.1).await?;
    }
    let (old, new) = (format!("read.{}_g{}", M::NAME, serving.0), format!("read.{}_g{generation}", M::NAME));
    let differences: i64 = sqlx::query_scalar(&format!(
        "select count(*) from ((table {old} except table {new}) union all (table {new} except table {old})) d"
    ))
    .fetch_one(&mut *tx)
    .await?;
    let switched = match purpose {
        Purpose::Switch => differences == 0,
        Purpose::Replace => true,
        Purpose::Verify => false,
    };
    sqlx::query(if switched { "select read.serve($1, $2)" } else { "select read.drop_generation($1, $2)" })
        .bind(M::NAME)
        .bind(generation)
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    progress(position, position);
    Ok(Rebuilt { generation, position, differences, switched })
}

/// Folds one page into a generation that is being built, but not past `end`.
async fn advance<M: ReadModel>(
    store: &Store,
    tx: &mut PgConnection,
    generation: i32,
    position: i64,
    end: i64,
) -> Result<i64, RebuildError> {
    let events = store.read_from(position, PAGE.min(end - position)).await?;
    let Some(RawEvent { position: reached, log_hash: Hash(log_hash), .. }) = events.last() else {
        return Err(sqlx::Error::RowNotFound.into());
    };
    fold::<M>(store, tx, &format!("{}_g{generation}", M::NAME), &events.iter().collect::<Vec<_>>()).await?;
    sqlx::query("update read.generations set position = $3, log_hash = $4 where name = $1 and generation = $2")
        .bind(M::NAME)
        .bind(generation)
        .bind(reached)
        .bind(log_hash)
        .execute(tx)
        .await?;
    Ok(*reached)
}
