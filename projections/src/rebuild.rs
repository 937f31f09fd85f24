//! Rebuilding a read model beside the serving one, comparing the two, and switching without a gap.
//!
//! The log is folded into the next generation's table until it has come as far as the serving one. Then both are brought to one position, a snapshot of that moment is
//! taken, and the rows are compared in it while both go on. At last the serving checkpoint is locked, the new one catches up on what little is missing, and the view is
//! switched, in one transaction: a query sees the old rows or the new ones, and never less than before. The generation that served until then stays for a way back.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use serde_json::Value;
use sqlx::{Connection as _, PgConnection, PgPool};
use store::{Disagreement, Hash, Head, RawEvent, Store, database, lease};

use crate::fold::FoldError;
use crate::fold::table;
use crate::kept::Rows;
use crate::model::ReadModel;
use crate::parking::{Generation, ParkingError, advance, retry_all};

/// Events folded in one transaction.
const PAGE: i64 = 2000;
/// How long a rebuild that died keeps the next one waiting.
const LEASE: Duration = Duration::from_secs(15);
/// How long the serving generation may take to come to the end of the log, before rows that differ are believed to.
const CATCH_UP: Duration = Duration::from_secs(10);
/// How long a switch waits for the view to be free of queries, at first and at last.
const SHORTEST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// How many differing rows are named.
const SAMPLES: i64 = 5;

/// What a rebuild came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Rebuilt {
    /// The generation that was built, or gone back to.
    pub generation: i32,
    /// Up to where.
    pub position: i64,
    /// How many rows are not the same in both tables; nothing when they were not compared.
    pub differences: Option<i64>,
    /// The keys of some of these.
    pub samples: Vec<Value>,
    /// Whether it serves now.
    pub switched: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Build a generation, and switch to it if its rows equal those of the serving one.
    Switch,
    /// Build a generation up to the log's head, and switch to it in any case: the serving rows are known to be wrong. Serving rows that were made from another log are
    /// neither compared nor kept for a way back.
    Replace,
    /// Build a generation, compare, then drop it.
    Verify,
    /// Bring the generation that served before up to date, and switch to it.
    Back,
}

/// Why a rebuild ended early. Whatever it had built is dropped by the next one.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// Another one is going on.
    #[error("{0} is being rebuilt by another process, or was by one that died within the last 15 s")]
    Busy(&'static str),
    /// The serving rows were made from another log than this one.
    #[error("{0}: {1}; `tenure log reconcile` replaces it")]
    Diverged(&'static str, Disagreement),
    /// No other generation has ever served.
    #[error("{0} has no earlier generation to go back to")]
    NoWayBack(&'static str),
    /// An event could not be folded.
    #[error(transparent)]
    Fold(#[from] FoldError),
    /// What waits in the new generation could not be retried.
    #[error(transparent)]
    Parking(#[from] ParkingError),
    /// The database did not do it.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// How far a generation has to come before it may serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    /// To the position of the serving one.
    Serving,
    /// To the head of the log, since the position of the serving one means nothing.
    Log,
}

/// Does it. `rate` bounds the events folded per second; `progress` hears the position reached and the one to reach.
pub async fn rebuild<M: ReadModel>(
    store: &Store,
    pool: &PgPool,
    purpose: Purpose,
    rate: Option<NonZeroU32>,
    progress: &(dyn Fn(i64, i64) + Send + Sync),
) -> Result<Rebuilt, RebuildError> {
    let mut build = Build::<M> {
        store,
        pool,
        rate: rate.map(|rate| RateLimiter::direct(Quota::per_second(rate))),
        page: rate.map_or(PAGE, |rate| PAGE.min(i64::from(rate.get()))),
        generation: Generation { number: 0, serving: false, holds: true },
        position: 0,
        goal: Goal::Serving,
        progress,
        model: std::marker::PhantomData,
    };
    let (name, owner) = (format!("rebuild/{}", M::NAME), store.fresh_id());
    lease::acquire(pool, &name, owner, LEASE).await?.ok_or(RebuildError::Busy(M::NAME))?;
    let lost = async {
        loop {
            let _ = tokio::time::timeout(LEASE / 3, std::future::pending::<()>()).await;
            if matches!(lease::acquire(pool, &name, owner, LEASE).await, Ok(None)) {
                return;
            }
        }
    };
    // Whoever does not notice in time is stopped by the checkpoint, which moves from where it was only, and by a number that is never given out again.
    let outcome = tokio::select! {
        outcome = build.run(purpose) => outcome,
        () = lost => Err(RebuildError::Busy(M::NAME)),
    };
    let _ = lease::release(pool, &name, owner).await;
    outcome
}

struct Build<'a, M> {
    store: &'a Store,
    pool: &'a PgPool,
    rate: Option<DefaultDirectRateLimiter>,
    page: i64,
    generation: Generation,
    position: i64,
    goal: Goal,
    progress: &'a (dyn Fn(i64, i64) + Send + Sync),
    model: std::marker::PhantomData<M>,
}

impl<M: ReadModel> Build<'_, M> {
    async fn run(&mut self, purpose: Purpose) -> Result<Rebuilt, RebuildError> {
        match self.disagreement("serving").await? {
            None => {}
            Some(_) if purpose == Purpose::Replace => self.goal = Goal::Log,
            Some(disagreement) => return Err(RebuildError::Diverged(M::NAME, disagreement)),
        }
        if purpose == Purpose::Back
            && let Some(disagreement) = self.disagreement("retired").await?
        {
            return Err(RebuildError::Diverged(M::NAME, disagreement));
        }
        (self.generation.number, self.position) = match purpose {
            Purpose::Switch | Purpose::Replace | Purpose::Verify => {
                (sqlx::query_scalar("select read.new_generation($1)").bind(M::NAME).fetch_one(self.pool).await?, 0)
            }
            Purpose::Back => sqlx::query_as("select generation, position from read.generations where name = $1 and state = 'retired'")
                .bind(M::NAME)
                .fetch_optional(self.pool)
                .await?
                .ok_or(RebuildError::NoWayBack(M::NAME))?,
        };
        self.follow().await?;
        retry_all::<M>(self.store, self.pool, self.generation).await?;
        let (differences, samples) = match purpose {
            Purpose::Back => (None, vec![]),
            Purpose::Replace if self.goal == Goal::Log => (None, vec![]),
            Purpose::Switch | Purpose::Replace | Purpose::Verify => {
                let (mut differences, mut samples) = self.compare().await?;
                // Of what has been erased, but not yet where the serving rows are, only these still know.
                if differences > 0 && self.serving_reaches_the_end().await? {
                    (differences, samples) = self.compare().await?;
                }
                (Some(differences), samples)
            }
        };
        let switched = match purpose {
            Purpose::Switch => differences == Some(0),
            Purpose::Replace | Purpose::Back => true,
            Purpose::Verify => false,
        };
        let position = self.finish(switched).await?;
        Ok(Rebuilt { generation: self.generation.number, position, differences, samples, switched })
    }

    /// How the checkpoint of the generation in a state disagrees with the log, if it does.
    async fn disagreement(&self, state: &str) -> Result<Option<Disagreement>, sqlx::Error> {
        let checkpoint: Option<(i64, [u8; 32])> =
            sqlx::query_as("select position, log_hash from read.generations where name = $1 and state = $2")
                .bind(M::NAME)
                .bind(state)
                .fetch_optional(self.pool)
                .await?;
        let Some((position, log_hash)) = checkpoint else { return Ok(None) };
        Ok(self.store.confirm(Head { position, log_hash: Hash(log_hash) }).await?.err())
    }

    /// The position that this generation has to reach before it may serve.
    async fn end(&self) -> Result<i64, sqlx::Error> {
        match self.goal {
            Goal::Serving => Ok(self.serving().await?.1),
            Goal::Log => Ok(self.store.head().await?.position),
        }
    }

    async fn serving(&self) -> Result<(i32, i64), sqlx::Error> {
        sqlx::query_as("select generation, position from read.generations where name = $1 and state = 'serving'")
            .bind(M::NAME)
            .fetch_one(self.pool)
            .await
    }

    /// Folds until less than a page is missing to the goal, and never past it.
    async fn follow(&mut self) -> Result<(), RebuildError> {
        loop {
            let end = self.end().await?;
            (self.progress)(self.position, end);
            if end - self.position < self.page {
                return Ok(());
            }
            if let (Some(rate), Some(count)) = (&self.rate, u32::try_from(self.page).ok().and_then(NonZeroU32::new)) {
                // More than fits at once it never is: a page is no larger than the rate.
                let _ = rate.until_n_ready(count).await;
            }
            self.catch_up(end).await?;
        }
    }

    /// Folds one page in a transaction of its own, but not past `end`.
    async fn catch_up(&mut self, end: i64) -> Result<(), RebuildError> {
        let mut tx = database::begin(self.pool).await?;
        let reached = self.page(&mut tx, end).await?;
        tx.commit().await?;
        self.position = reached;
        Ok(())
    }

    /// Folds one page, but not past `end`; answers where it ends.
    async fn page(&self, connection: &mut PgConnection, end: i64) -> Result<i64, RebuildError> {
        let events = self.store.read_from(self.position, self.page.min(end - self.position)).await?;
        let Some(RawEvent { position: reached, log_hash: Hash(log_hash), .. }) = events.last() else {
            return Err(sqlx::Error::RowNotFound.into());
        };
        self.checkpoint(connection, *reached, Some(*log_hash)).await?;
        let events: Vec<&RawEvent> = events.iter().collect();
        let mut attempt = connection.begin().await?;
        match advance::<M>(self.store, &mut attempt, self.generation, &events, false, &mut Rows::default()).await {
            Ok(()) => attempt.commit().await?,
            Err(error) if error.is_poison() => {
                attempt.rollback().await?;
                advance::<M>(self.store, connection, self.generation, &events, true, &mut Rows::default()).await?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(*reached)
    }

    /// Moves the checkpoint from where it is thought to be; fails when somebody else has got hold of the generation.
    async fn checkpoint(&self, connection: &mut PgConnection, position: i64, log_hash: Option<[u8; 32]>) -> Result<(), RebuildError> {
        let moved = sqlx::query(
            "update read.generations set position = $4, log_hash = coalesce($5, log_hash)
             where name = $1 and generation = $2 and position = $3 and state in ('building', 'retired')",
        )
        .bind(M::NAME)
        .bind(self.generation.number)
        .bind(self.position)
        .bind(position)
        .bind(log_hash)
        .execute(connection)
        .await?;
        if moved.rows_affected() == 1 { Ok(()) } else { Err(RebuildError::Busy(M::NAME)) }
    }

    /// Brings both generations to one position and compares their rows there, while the serving one goes on: how many differ, and the keys of some.
    async fn compare(&mut self) -> Result<(i64, Vec<Value>), RebuildError> {
        self.follow().await?;
        let mut held = database::begin(self.pool).await?;
        // While this is locked the projector waits, so this part must be short.
        let (serving, end): (i32, i64) =
            sqlx::query_as("select generation, position from read.generations where name = $1 and state = 'serving' for update")
                .bind(M::NAME)
                .fetch_one(&mut *held)
                .await?;
        while self.position < end {
            self.catch_up(end).await?;
        }
        let mut snapshot = database::snapshot(self.pool).await?;
        let keys: Vec<String> = sqlx::query_scalar(
            "select a.attname::text from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any(i.indkey)
             where i.indisprimary and i.indrelid = format('read.%I', $1)::regclass",
        )
        .bind(table::<M>(self.generation.number))
        .fetch_all(&mut *snapshot)
        .await?;
        held.rollback().await?;
        let (old, new) = (table::<M>(serving), table::<M>(self.generation.number));
        let keys = keys.join(", ");
        // A row from before rows had a text is as good as its columns.
        let (differences, samples): (i64, Value) = sqlx::query_as(&format!(
            "with differing as (select {keys} from read.{old} o full join read.{new} n using ({keys})
               where o is distinct from n and (o.doc is not null or o is null or n is null or to_jsonb(o) - 'doc' is distinct from to_jsonb(n) - 'doc'))
             select (select count(*) from differing), (select coalesce(json_agg(s), '[]') from (select * from differing order by {keys} limit {SAMPLES}) s)"
        ))
        .fetch_one(&mut *snapshot)
        .await?;
        Ok((differences, samples.as_array().cloned().unwrap_or_default()))
    }

    /// Waits until the serving generation is where the log ends now, for a while.
    async fn serving_reaches_the_end(&self) -> Result<bool, RebuildError> {
        let head = self.store.head().await?.position;
        let deadline = Instant::now() + CATCH_UP;
        while self.serving().await?.1 < head {
            if Instant::now() > deadline {
                return Ok(false);
            }
            let _ = tokio::time::timeout(Duration::from_millis(20), std::future::pending::<()>()).await;
        }
        Ok(true)
    }

    /// Brings the generation to where the serving one is and serves it, or drops it.
    async fn finish(&mut self, switch: bool) -> Result<i64, RebuildError> {
        if !switch {
            sqlx::query("select read.drop_generation($1, $2)").bind(M::NAME).bind(self.generation.number).execute(self.pool).await?;
            return Ok(self.position);
        }
        let mut patience = SHORTEST_WAIT;
        loop {
            self.follow().await?;
            match self.switch(patience).await {
                // A slow query holds the view, and others queue behind a switch that waits for it: not for long at first.
                Err(RebuildError::Database(error)) if is_lock_timeout(&error) && patience < LONGEST_WAIT => patience *= 2,
                switched => return switched,
            }
        }
    }

    /// Catches up on what is missing while the serving generation stands still, and serves.
    async fn switch(&mut self, patience: Duration) -> Result<i64, RebuildError> {
        let mut tx = database::begin(self.pool).await?;
        sqlx::query(&format!("set local lock_timeout = {}", patience.as_millis())).execute(&mut *tx).await?;
        let (old, mut end): (i32, i64) =
            sqlx::query_as("select generation, position from read.generations where name = $1 and state = 'serving' for update")
                .bind(M::NAME)
                .fetch_one(&mut *tx)
                .await?;
        if self.goal == Goal::Log {
            end = self.end().await?;
        }
        let start = self.position;
        let switched = async {
            while self.position < end {
                self.position = self.page(&mut tx, end).await?;
            }
            self.checkpoint(&mut tx, end, None).await?;
            sqlx::query("select read.serve($1, $2)").bind(M::NAME).bind(self.generation.number).execute(&mut *tx).await?;
            if self.goal == Goal::Log {
                sqlx::query("select read.drop_generation($1, $2)").bind(M::NAME).bind(old).execute(&mut *tx).await?;
            }
            Ok(tx.commit().await?)
        }
        .await;
        if let Err(error) = switched {
            self.position = start;
            return Err(error);
        }
        (self.progress)(end, end);
        Ok(end)
    }
}

/// SQLSTATE 55P03, lock_not_available.
fn is_lock_timeout(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|code| code == "55P03")
}
