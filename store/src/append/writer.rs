//! The one task of a process that writes the log.
//!
//! A batch takes two round trips. The first reads, without any lock, what the requests are to be decided upon, all in one snapshot. The second, `append_batch`, takes the
//! head's lock, makes sure that the log has not moved since that snapshot, writes and commits, as one statement: the lock is never held across the network. Everything an
//! append looks at is changed by appends of events only, so an unmoved head proves that the whole snapshot still holds. (Idempotency records of requests without events
//! are the exception; their primary key stands guard.) If another process was quicker, the batch is
//! decided again with the lock held from the start, which cannot fail that way (see `docs/adr/0005-append-path.md`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use domain::Clock;
use sqlx::postgres::{PgDatabaseError, PgSeverity};
use sqlx::types::Json;
use sqlx::{Connection as _, PgConnection};
use tokio::sync::watch;

use super::decide::{Plan, decide};
use super::queue::Queue;
use super::snapshot::read;
use super::{AppendError, Outcome, Prepared};
use crate::database::{Database, DbRole};

/// A stuck writer, ours or another, may stall the log for no longer than this.
const STALL: &str = "2s";
/// For how long a batch is tried before its callers are told that the log cannot be reached.
const PATIENCE: Duration = Duration::from_secs(4);
/// For how long one attempt may go without an answer: longer than anything the server lets a statement take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// After another process was quicker, this many batches take the lock first.
const LOCK_FIRST: u32 = 16;

pub(crate) struct Writer {
    database: Database,
    queue: Arc<Queue>,
    clock: Arc<dyn Clock>,
    head: watch::Sender<i64>,
    connection: Option<PgConnection>,
    lock_first: u32,
}

enum Failure {
    /// The connection is gone, or there never was one; nobody knows whether a batch that was sent was written.
    Connection(sqlx::Error),
    /// The database answered with an error, so nothing was written.
    Database(sqlx::Error),
}

impl Failure {
    fn lost(why: &str) -> Self {
        Self::Connection(sqlx::Error::Protocol(why.to_owned()))
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        let lost = match error.as_database_error().and_then(|e| e.try_downcast_ref::<PgDatabaseError>()) {
            // A session that ends, a pooler that lost its server (class 08), a primary that has become a standby (25006).
            Some(e) => matches!(e.severity(), PgSeverity::Fatal | PgSeverity::Panic) || e.code().starts_with("08") || e.code() == "25006",
            None => matches!(
                error,
                sqlx::Error::Io(_)
                    | sqlx::Error::Tls(_)
                    | sqlx::Error::Protocol(_)
                    | sqlx::Error::PoolTimedOut
                    | sqlx::Error::PoolClosed
                    | sqlx::Error::WorkerCrashed
            ),
        };
        if lost { Self::Connection(error) } else { Self::Database(error) }
    }
}

/// Plans that were sent and not answered: each may have been written, or may yet be.
type Doubts = Vec<Plan>;

impl Drop for Writer {
    /// However the writer ends, nobody waits for it any more.
    fn drop(&mut self) {
        self.queue.abandon();
    }
}

impl Writer {
    pub(crate) fn new(database: Database, queue: Arc<Queue>, clock: Arc<dyn Clock>, head: watch::Sender<i64>) -> Self {
        Self { database, queue, clock, head, connection: None, lock_first: 0 }
    }

    pub(crate) async fn run(mut self) {
        while let Some(batch) = self.queue.take().await {
            metrics::histogram!("tenure_append_batch_requests").record(u32::try_from(batch.len()).unwrap_or(u32::MAX));
            metrics::gauge!("tenure_append_queue").set(f64::from(u32::try_from(self.queue.len()).unwrap_or(u32::MAX)));
            self.serve(batch).await;
        }
        if let Some(connection) = self.connection.take() {
            let _ = connection.close().await;
        }
    }

    /// Writes a batch and answers everybody in it. Whoever asked may have gone by then; that changes nothing.
    async fn serve(&mut self, batch: Vec<Prepared>) {
        let failure = match self.commit(&batch.iter().collect::<Vec<_>>()).await {
            Ok(answers) => {
                for (request, answer) in batch.into_iter().zip(answers) {
                    let _ = request.reply.send(answer);
                }
                return;
            }
            Err(failure) => failure,
        };
        let mut reachable = match &failure {
            Failure::Connection(error) => {
                tracing::warn!(%error, requests = batch.len(), "the log cannot be reached");
                false
            }
            Failure::Database(error) => {
                tracing::warn!(%error, requests = batch.len(), "a batch failed");
                !is_transient(error)
            }
        };
        // Something in this batch made the database fail. One by one, only the guilty one does; but what is wrong with the database itself is not tried again for each.
        for request in batch {
            let answer = if reachable {
                match self.commit(&[&request]).await {
                    Ok(mut one) => one.pop().unwrap_or(Err(AppendError::Unavailable)),
                    Err(Failure::Database(error)) if !is_transient(&error) => Err(AppendError::Failed(error.to_string())),
                    Err(Failure::Database(_) | Failure::Connection(_)) => {
                        reachable = false;
                        Err(AppendError::Unavailable)
                    }
                }
            } else {
                Err(AppendError::Unavailable)
            };
            let _ = request.reply.send(answer);
        }
    }

    /// Writes a batch exactly once, through broken connections and quicker processes.
    async fn commit(&mut self, batch: &[&Prepared]) -> Result<Vec<Outcome>, Failure> {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_millis(10);
        let mut doubts = Doubts::new();
        loop {
            let attempt = tokio::time::timeout(ATTEMPT, self.attempt(batch, &mut doubts)).await;
            let error = match attempt.unwrap_or_else(|_| Err(Failure::lost("no answer in time"))) {
                Ok(answers) => return Ok(answers),
                // As long as an earlier try may have been written, no other failure is the last word.
                Err(Failure::Database(error)) if doubts.is_empty() && !(is_transient(&error) && Instant::now() < deadline) => {
                    return Err(Failure::Database(error));
                }
                Err(Failure::Database(error)) => error,
                Err(Failure::Connection(error)) => {
                    self.connection = None;
                    error
                }
            };
            if Instant::now() + pause > deadline {
                return Err(if doubts.is_empty() { error.into() } else { Failure::Connection(error) });
            }
            backoff(pause).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    async fn attempt(&mut self, batch: &[&Prepared], doubts: &mut Doubts) -> Result<Vec<Outcome>, Failure> {
        let now = self.clock.now();
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => self.connection.insert(connect(&self.database).await.map_err(Failure::Connection)?),
        };
        if doubts.is_empty() && self.lock_first == 0 {
            let plan = decide(read(connection, batch).await?, batch, now);
            if plan.is_empty() {
                return Ok(plan.answers);
            }
            if send(connection, plan, now, doubts).await? {
                return Ok(self.done(doubts));
            }
            doubts.clear();
            self.lock_first = LOCK_FIRST;
        }
        self.lock_first = self.lock_first.saturating_sub(1);
        let Some(connection) = &mut self.connection else { return Err(Failure::lost("no connection")) };
        let mut tx = connection.begin().await?;
        let head: i64 = sqlx::query_scalar("select position from log_head for update").fetch_one(&mut *tx).await?;
        // The lock is ours, so whatever was in doubt has been written by now, or has not begun.
        for n in 0..doubts.len() {
            if was_written(&mut tx, &doubts[n]).await? {
                tx.rollback().await?;
                doubts.truncate(n + 1);
                return Ok(self.done(doubts));
            }
        }
        // What was made for an earlier position never will be; and without events there is nothing that could happen twice: the records' primary key stands guard.
        doubts.retain(|plan| plan.before == head && !plan.rows.is_empty());
        let plan = decide(read(&mut tx, batch).await?, batch, now);
        if plan.rows.is_empty() && !doubts.is_empty() {
            // Nothing here moves the head, so the doubtful statement might still be executed after this answer.
            return Err(Failure::lost("an earlier attempt is still in doubt"));
        }
        if plan.is_empty() {
            tx.rollback().await?;
            return Ok(plan.answers);
        }
        if !send(&mut tx, plan, now, doubts).await? {
            return Err(Failure::lost("the head moved under its lock"));
        }
        tx.commit().await?;
        Ok(self.done(doubts))
    }

    /// The last of the plans is written, and so none of the others ever will be.
    fn done(&self, doubts: &mut Doubts) -> Vec<Outcome> {
        let Some(plan) = doubts.pop() else { return vec![] };
        doubts.clear();
        metrics::counter!("tenure_events_appended_total").increment(plan.rows.len() as u64);
        self.head.send_if_modified(|head| {
            let moved = plan.after.position > *head;
            *head = plan.after.position.max(*head);
            moved
        });
        plan.answers
    }
}

/// Sends a plan. It is in doubt until there is an answer, and stays so when there is none, also when this future is dropped.
async fn send(connection: &mut PgConnection, plan: Plan, now: DateTime<Utc>, doubts: &mut Doubts) -> Result<bool, Failure> {
    doubts.push(plan);
    let Some(plan) = doubts.last() else { return Ok(false) };
    match write(connection, plan, now).await.map_err(Failure::from) {
        Err(Failure::Database(error)) => {
            doubts.pop();
            Err(Failure::Database(error))
        }
        other => other,
    }
}

#[expect(clippy::disallowed_methods, reason = "the pause between two attempts to reach the database")]
async fn backoff(pause: Duration) {
    tokio::time::sleep(pause).await;
}

/// What is the database's own trouble and not a request's: deadlocks, a lack of resources, locks, I/O errors, bugs (SQLSTATE classes 40, 53, 55, 58, XX), timeouts (57014).
fn is_transient(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .is_some_and(|code| code == "57014" || ["40", "53", "55", "58", "XX"].iter().any(|class| code.starts_with(class)))
}

async fn connect(database: &Database) -> Result<PgConnection, sqlx::Error> {
    database
        .connect(
            DbRole::Writer,
            &[
                ("lock_timeout", STALL),
                ("statement_timeout", STALL),
                ("idle_in_transaction_session_timeout", STALL),
                // Acknowledged means durable, whatever the server's default is.
                ("synchronous_commit", "on"),
                // Every look-up here is by primary key; a plan made while a table was still small must not scan it for ever.
                ("enable_seqscan", "off"),
                ("enable_hashjoin", "off"),
                ("enable_mergejoin", "off"),
                // Planning the statement that reads a batch takes longer than executing it, and the plan is always the same.
                ("plan_cache_mode", "force_generic_plan"),
            ],
        )
        .await
}

/// Whether the plan's own events stand at its positions: the chain's hash at its last one covers all of them.
async fn was_written(connection: &mut PgConnection, plan: &Plan) -> Result<bool, sqlx::Error> {
    if plan.rows.is_empty() {
        return Ok(false);
    }
    let found: Option<[u8; 32]> =
        sqlx::query_scalar("select log_hash from events where position = $1").bind(plan.after.position).fetch_optional(connection).await?;
    Ok(found == Some(plan.after.log_hash.0))
}

/// Writes a plan; false when the log is not where the plan was made for.
async fn write(connection: &mut PgConnection, plan: &Plan, now: DateTime<Utc>) -> Result<bool, sqlx::Error> {
    let rows = &plan.rows;
    // The gate and the chain stand in one row; each tenant that got an event changes it.
    let heads: Vec<_> = plan.guards.tenants.changes().filter_map(|(tenant, _, head)| head.map(|head| (tenant, head))).collect();
    let keys = &plan.keys;
    sqlx::query_scalar(
        "select append_batch($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30)",
    )
    .bind(plan.before)
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
    .fetch_one(connection)
    .await
}
