//! The one task of a process that writes the log.
//!
//! A batch takes two round trips. The first reads, without any lock, what the requests are to be decided upon, all in one snapshot. The second, `append_batch`, takes the
//! head's lock, makes sure that the log has not moved since that snapshot, writes and commits, as one statement: the lock is never held across the network. Everything an
//! append looks at is changed by appends only, so an unmoved head proves that the whole snapshot still holds. If another process was quicker, the batch is
//! decided again with the lock held from the start, which cannot fail that way (see `docs/adr/0005-append-path.md`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use domain::Clock;
use sqlx::types::Json;
use sqlx::{Connection as _, Executor as _, PgConnection};
use tokio::sync::watch;
use uuid::Uuid;

use super::decide::{Plan, decide};
use super::queue::Queue;
use super::snapshot::read;
use super::{AppendError, Outcome, Prepared};
use crate::database::{Database, DbRole};

/// A stuck writer, ours or another, may stall the log for no longer than this.
const STALL: &str = "2s";
/// For how long a batch is tried before its callers are told that the log cannot be reached.
const PATIENCE: Duration = Duration::from_secs(4);
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
    /// The connection is gone; nobody knows whether the batch was written, unless it was never sent.
    Connection(sqlx::Error),
    /// The database answered with an error, so nothing was written.
    Database(sqlx::Error),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        // SQLSTATE class 57P: the server is shutting down or the backend was terminated; 25P03: it idled in a transaction.
        let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        let lost = match code {
            Some(code) => code.starts_with("57P") || code == "25P03",
            None => {
                matches!(
                    error,
                    sqlx::Error::Io(_)
                        | sqlx::Error::Tls(_)
                        | sqlx::Error::Protocol(_)
                        | sqlx::Error::PoolTimedOut
                        | sqlx::Error::PoolClosed
                        | sqlx::Error::WorkerCrashed
                )
            }
        };
        if lost { Self::Connection(error) } else { Self::Database(error) }
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

    /// Writes a batch and answers everybody in it.
    async fn serve(&mut self, batch: Vec<Prepared>) {
        let requests: Vec<&Prepared> = batch.iter().collect();
        let mut answers = Vec::with_capacity(batch.len());
        match self.commit(&requests).await {
            Ok(all) => answers = all,
            Err(Failure::Connection(error)) => {
                tracing::warn!(error = %error, requests = batch.len(), "the log cannot be reached");
                answers.resize_with(batch.len(), || Err(AppendError::Unavailable));
            }
            // Something in this batch made the database fail. One by one, only the guilty one does.
            Err(Failure::Database(error)) => {
                tracing::warn!(error = %error, requests = batch.len(), "a batch failed; its requests are tried one by one");
                for request in requests {
                    answers.push(match self.commit(&[request]).await {
                        Ok(mut one) => one.pop().unwrap_or(Err(AppendError::Unavailable)),
                        Err(Failure::Connection(_)) => Err(AppendError::Unavailable),
                        Err(Failure::Database(error)) if is_transient(&error) => Err(AppendError::Unavailable),
                        Err(Failure::Database(error)) => Err(AppendError::Failed(error.to_string())),
                    });
                }
            }
        }
        for (request, answer) in batch.into_iter().zip(answers) {
            // Whoever asked may have gone; that changes nothing.
            let _ = request.reply.send(answer);
        }
    }

    /// Writes a batch exactly once, through broken connections and quicker processes.
    async fn commit(&mut self, batch: &[&Prepared]) -> Result<Vec<Outcome>, Failure> {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_millis(10);
        // A plan that was sent when the connection broke: it may have been written.
        let mut doubtful: Option<Plan> = None;
        loop {
            let error = match self.attempt(batch, &mut doubtful).await {
                Ok(answers) => return Ok(answers),
                Err(Failure::Database(error)) => {
                    if is_transient(&error) && Instant::now() < deadline {
                        error
                    } else {
                        return Err(Failure::Database(error));
                    }
                }
                Err(Failure::Connection(error)) => {
                    self.connection = None;
                    error
                }
            };
            if Instant::now() + pause > deadline {
                return Err(Failure::Connection(error));
            }
            backoff(pause).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    async fn attempt(&mut self, batch: &[&Prepared], doubtful: &mut Option<Plan>) -> Result<Vec<Outcome>, Failure> {
        let now = self.clock.now();
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => self.connection.insert(connect(&self.database).await?),
        };
        if doubtful.is_none() && self.lock_first == 0 {
            let plan = decide(read(connection, batch).await?, batch, now);
            if plan.is_empty() {
                return Ok(plan.answers);
            }
            match write(connection, &plan, now).await {
                Ok(true) => return Ok(self.done(plan)),
                Ok(false) => self.lock_first = LOCK_FIRST,
                Err(error) => return Err(keep_doubt(error.into(), plan, doubtful)),
            }
        }
        self.lock_first = self.lock_first.saturating_sub(1);
        let Some(connection) = &mut self.connection else { return Err(Failure::Connection(sqlx::Error::PoolClosed)) };
        let mut tx = connection.begin().await?;
        tx.execute("select 1 from log_head for update").await?;
        if let Some(plan) = doubtful.take() {
            // The lock is ours, so the broken attempt has either committed or never will: it was bound to the position it was made for.
            if was_written(&mut tx, &plan).await? {
                tx.rollback().await?;
                return Ok(self.done(plan));
            }
        }
        let plan = decide(read(&mut tx, batch).await?, batch, now);
        if plan.is_empty() {
            tx.rollback().await?;
            return Ok(plan.answers);
        }
        let written = match write(&mut tx, &plan, now).await {
            Ok(written) => written,
            Err(error) => return Err(error.into()),
        };
        debug_assert!(written, "the head moved under its lock");
        match tx.commit().await {
            Ok(()) => Ok(self.done(plan)),
            Err(error) => Err(keep_doubt(error.into(), plan, doubtful)),
        }
    }

    fn done(&self, plan: Plan) -> Vec<Outcome> {
        metrics::counter!("tenure_events_appended_total").increment(plan.rows.len() as u64);
        self.head.send_if_modified(|head| {
            let moved = plan.after.position > *head;
            *head = plan.after.position.max(*head);
            moved
        });
        plan.answers
    }
}

fn keep_doubt(failure: Failure, plan: Plan, doubtful: &mut Option<Plan>) -> Failure {
    if matches!(failure, Failure::Connection(_)) {
        *doubtful = Some(plan);
    }
    failure
}

#[expect(clippy::disallowed_methods, reason = "the pause between two attempts to reach the database")]
async fn backoff(pause: Duration) {
    tokio::time::sleep(pause).await;
}

/// Timeouts, deadlocks and a lack of resources pass by themselves (SQLSTATE classes 40, 53, 55, and 57014 query_canceled).
fn is_transient(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .is_some_and(|c| c.starts_with("40") || c.starts_with("53") || c.starts_with("55") || c == "57014")
}

async fn connect(database: &Database) -> Result<PgConnection, sqlx::Error> {
    database
        .connect(
            DbRole::Writer,
            &[
                ("lock_timeout", STALL),
                ("statement_timeout", STALL),
                ("idle_in_transaction_session_timeout", STALL),
                // Every look-up here is by primary key; a plan made while a table was still small must not scan it for ever.
                ("enable_seqscan", "off"),
                ("enable_hashjoin", "off"),
                ("enable_mergejoin", "off"),
            ],
        )
        .await
}

/// Whether the plan's own events stand at its positions.
async fn was_written(connection: &mut PgConnection, plan: &Plan) -> Result<bool, sqlx::Error> {
    match (plan.rows.first(), plan.keys.first()) {
        (Some(row), _) => {
            let found: Option<Uuid> = sqlx::query_scalar("select event_id from events where position = $1")
                .bind(plan.before + 1)
                .fetch_optional(connection)
                .await?;
            Ok(found == Some(row.event_id))
        }
        // Without events there is nothing that could happen twice.
        (None, _) => Ok(false),
    }
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
