//! The one task of a process that writes the log.
//!
//! As long as no other process appends, a batch takes one statement: it is decided from memory while the one before it is being written (see [`super::memory`]).
//!
//! Otherwise it takes two round trips. The first reads, without any lock, what the requests are to be decided upon, all in one snapshot. The second, `append_batch`, takes the
//! head's lock, makes sure that the log has not moved since that snapshot, writes and commits, as one statement: the lock is never held across the network. Everything an
//! append looks at is changed by appends of events only, so an unmoved head proves that the whole snapshot still holds. (Idempotency records of requests without events
//! are the exception; their primary key stands guard.) If another process was quicker, the batch is
//! decided again with the lock held from the start, which cannot fail that way (see `docs/adr/0005-append-path.md`).

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use domain::Clock;
use futures::FutureExt as _;
use futures::future::{BoxFuture, MaybeDone, maybe_done};
use sqlx::postgres::{PgDatabaseError, PgSeverity};
use sqlx::{Connection as _, PgConnection};
use tokio::sync::watch;

use super::decide::{Plan, decide};
use super::memory::{Draft, Memory};
use super::queue::Queue;
use super::snapshot::read;
use super::statement::{Verdict, assuming, was_written, write};
use super::{AppendError, Outcome, Prepared};
use crate::database::{Database, DbRole};
use crate::history::History;
use crate::writable::LastWrite;
use crate::{Ceilings, Hash, Head};

/// A stuck writer, ours or another, may stall the log for no longer than this.
const STALL: &str = "2s";
/// For how long a batch is tried before its callers are told that the log cannot be reached.
const PATIENCE: Duration = Duration::from_secs(4);
/// For how long one attempt may go without an answer: longer than anything the server lets a statement take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Begins a transaction and locks the head, in one round trip.
const LOCKED: &str = "begin; select from log_head for update";
/// After another process was quicker, this many batches take the lock first.
const LOCK_FIRST: u32 = 16;

pub(crate) struct Writer {
    database: Database,
    queue: Arc<Queue>,
    clock: Arc<dyn Clock>,
    head: watch::Sender<i64>,
    last_write: Arc<LastWrite>,
    history: Arc<History>,
    connection: Option<PgConnection>,
    lock_first: u32,
    memory: Memory,
    ceilings: Arc<Ceilings>,
}

/// A batch that is being written.
struct Flight {
    batch: Vec<Prepared>,
    /// No task of its own: waking another thread takes longer than most of what there is to do.
    writing: Pin<Box<MaybeDone<BoxFuture<'static, Landed>>>>,
}

/// What came of it: its plan, its connection unless that is gone, and whether it was written.
struct Landed {
    plan: Plan,
    connection: Option<PgConnection>,
    verdict: Result<Verdict, Failure>,
}

enum Failure {
    /// The connection is gone, or there never was one; nobody knows whether a batch that was sent was written.
    Connection(sqlx::Error),
    /// The database answered with an error, so nothing was written.
    Database(sqlx::Error),
    /// The log was restored to an earlier state than the one that requests were decided upon.
    Rewound,
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
    pub(crate) fn new(
        database: Database,
        queue: Arc<Queue>,
        clock: Arc<dyn Clock>,
        head: watch::Sender<i64>,
        last_write: Arc<LastWrite>,
        history: Arc<History>,
        ceilings: Arc<Ceilings>,
    ) -> Self {
        Self { database, queue, clock, head, last_write, history, connection: None, lock_first: 0, memory: Memory::default(), ceilings }
    }

    /// While one batch is being written, the next one is decided request by request as they come; the lock and the disk are never waited for with nothing else to do.
    pub(crate) async fn run(mut self) {
        let (mut draft, mut flight): (Option<Draft>, Option<Flight>) = (None, None);
        // What cannot be decided from memory waits for the batch before it, and keeps others from being taken meanwhile.
        let mut careful: VecDeque<Vec<Prepared>> = VecDeque::new();
        let mut open = true;
        loop {
            while flight.is_none() {
                if let Some(ready) = draft.take().filter(|draft| !draft.batch.is_empty()) {
                    flight = self.launch(ready, &mut careful).await;
                } else if let Some(batch) = careful.pop_front() {
                    self.serve(batch, Doubts::new()).await;
                } else {
                    break;
                }
            }
            if flight.is_none() && !open {
                break;
            }
            let room = draft.as_ref().is_none_or(|draft| draft.has_room(self.queue.batch()));
            tokio::select! {
                biased;
                (batch, landed) = land(&mut flight) => match self.landed(landed) {
                    Ok(answers) => {
                        // The next batch goes before anybody is answered: the database works while callers wake up.
                        if let Some(ready) = draft.take().filter(|draft| !draft.batch.is_empty()) {
                            flight = self.launch(ready, &mut careful).await;
                        }
                        answer(batch, answers);
                    }
                    // What was decided upon its success is decided again.
                    Err(doubts) => {
                        careful.extend(draft.take().map(|draft| draft.finish().0));
                        self.serve(batch, doubts).await;
                    }
                },
                taken = self.queue.take(), if open && room && careful.is_empty() => match taken {
                    None => open = false,
                    Some(batch) => {
                        let batch = self.current(batch);
                        self.decide(batch, &mut draft, &mut careful);
                    }
                },
            }
        }
        if let Some(connection) = self.connection.take() {
            let _ = connection.close().await;
        }
    }

    /// The requests of a batch that were made since the log was last restored to an earlier state. The others were decided upon a history that is gone, and fail.
    fn current(&self, batch: Vec<Prepared>) -> Vec<Prepared> {
        let generation = self.history.generation();
        let (current, gone): (Vec<_>, Vec<_>) = batch.into_iter().partition(|request| request.generation == generation);
        for request in gone {
            let _ = request.reply.send(Err(AppendError::Unavailable));
        }
        current
    }

    /// Decides what can be decided from memory; the rest has to be read for.
    fn decide(&mut self, batch: Vec<Prepared>, draft: &mut Option<Draft>, careful: &mut VecDeque<Vec<Prepared>>) {
        metrics::gauge!("tenure_append_queue").set(f64::from(u32::try_from(self.queue.len()).unwrap_or(u32::MAX)));
        if draft.is_none() && self.lock_first == 0 {
            *draft = Draft::after(&self.memory, self.clock.now(), self.ceilings.clone());
        }
        let Some(draft) = draft else { return careful.push_back(batch) };
        let rest: Vec<Prepared> = batch.into_iter().filter_map(|request| draft.add(request, &self.memory).err()).collect();
        if !rest.is_empty() {
            careful.push_back(rest);
        }
    }

    /// Sends a draft on its way. Without a connection, or when there is nothing to write and so nothing that would confirm what it was decided upon, it is left to be read for.
    async fn launch(&mut self, draft: Draft, careful: &mut VecDeque<Vec<Prepared>>) -> Option<Flight> {
        let now = draft.now;
        let (batch, plan, assumed) = draft.finish();
        let Some(mut connection) = self.connection.take_if(|_| !plan.is_empty()) else {
            careful.push_front(batch);
            return None;
        };
        self.memory.learn(&plan);
        let writing = async move {
            let sent = tokio::time::timeout(ATTEMPT, assuming(&mut connection, &plan, &assumed, now)).await;
            let verdict = sent.map_or_else(|_| Err(Failure::lost("no answer in time")), |sent| sent.map_err(Failure::from));
            let connection = if matches!(verdict, Err(Failure::Connection(_))) { None } else { Some(connection) };
            Landed { plan, connection, verdict }
        };
        let mut writing = Box::pin(maybe_done(writing.boxed()));
        // Nothing is sent before it is asked how far it is.
        let _ = futures::poll!(&mut writing);
        Some(Flight { batch, writing })
    }

    /// What to answer to a batch that was written; otherwise, what is in doubt before it is tried with care.
    fn landed(&mut self, Landed { plan, connection, verdict }: Landed) -> Result<Vec<Outcome>, Doubts> {
        self.connection = connection;
        match verdict {
            Ok(Verdict::Written) => return Ok(self.done(&mut vec![plan])),
            Ok(Verdict::Mistaken) => {
                self.memory.unlearn(&plan);
                return Err(Doubts::new());
            }
            Ok(Verdict::Moved) => self.lock_first = LOCK_FIRST,
            Err(Failure::Rewound) => {}
            Err(Failure::Database(error)) => tracing::warn!(%error, "a batch failed"),
            Err(Failure::Connection(error)) => {
                tracing::warn!(%error, "the connection to the log was lost");
                self.memory.forget();
                return Err(vec![plan]);
            }
        }
        self.memory.forget();
        Err(Doubts::new())
    }

    /// Writes a batch and answers everybody in it. Whoever asked may have gone by then; that changes nothing.
    async fn serve(&mut self, batch: Vec<Prepared>, doubts: Doubts) {
        let failure = match self.commit(&batch.iter().collect::<Vec<_>>(), doubts).await {
            Ok(answers) => return answer(batch, answers),
            Err(failure) => failure,
        };
        self.memory.forget();
        let mut reachable = match &failure {
            Failure::Rewound => false,
            Failure::Connection(error) => {
                tracing::warn!(%error, requests = batch.len(), "the log cannot be reached");
                self.last_write.failed(error.to_string());
                false
            }
            Failure::Database(error) => {
                tracing::warn!(%error, requests = batch.len(), "a batch failed");
                if is_transient(error) {
                    self.last_write.failed(error.to_string());
                }
                !is_transient(error)
            }
        };
        // Something in this batch made the database fail. One by one, only the guilty one does; but what is wrong with the database itself is not tried again for each.
        for request in batch {
            let answer = if reachable {
                match self.commit(&[&request], Doubts::new()).await {
                    Ok(mut one) => one.pop().unwrap_or(Err(AppendError::Unavailable)),
                    Err(Failure::Database(error)) if !is_transient(&error) => Err(AppendError::Failed(error.to_string())),
                    Err(Failure::Rewound) => {
                        reachable = false;
                        Err(AppendError::Unavailable)
                    }
                    Err(Failure::Database(error) | Failure::Connection(error)) => {
                        self.last_write.failed(error.to_string());
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
    async fn commit(&mut self, batch: &[&Prepared], mut doubts: Doubts) -> Result<Vec<Outcome>, Failure> {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_millis(10);
        loop {
            if batch.iter().any(|request| request.generation != self.history.generation()) {
                return Err(Failure::Rewound);
            }
            let attempt = tokio::time::timeout(ATTEMPT, self.attempt(batch, &mut doubts)).await;
            let attempt = attempt.unwrap_or_else(|_| Err(Failure::lost("no answer in time")));
            if attempt.is_err() {
                // If `LOCKED` failed after its `begin`, the connection is in a transaction that sqlx does not know of.
                self.connection = None;
            }
            let error = match attempt {
                Ok(answers) => return Ok(answers),
                // As long as an earlier try may have been written, no other failure is the last word.
                Err(Failure::Database(error)) if doubts.is_empty() && !(is_transient(&error) && Instant::now() < deadline) => {
                    return Err(Failure::Database(error));
                }
                Err(Failure::Rewound) => return Err(Failure::Rewound),
                Err(Failure::Database(error) | Failure::Connection(error)) => error,
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
        if self.connection.is_none() {
            let mut connection = connect(&self.database).await.map_err(Failure::Connection)?;
            self.recognise(&mut connection).await?;
            self.connection = Some(connection);
        }
        let Some(connection) = &mut self.connection else { return Err(Failure::lost("no connection")) };
        if doubts.is_empty() && self.lock_first == 0 {
            let snapshot = read(connection, batch, self.ceilings.clone()).await?;
            self.history.saw(snapshot.head);
            self.memory.confirm(snapshot.head);
            let plan = decide(snapshot, batch, now);
            if plan.is_empty() {
                self.memory.learn(&plan);
                return Ok(plan.answers);
            }
            if send(connection, plan, now, doubts).await? {
                self.memory.learn(&doubts[0]);
                return Ok(self.done(doubts));
            }
            doubts.clear();
            self.lock_first = LOCK_FIRST;
        }
        self.lock_first = self.lock_first.saturating_sub(1);
        let Some(connection) = &mut self.connection else { return Err(Failure::lost("no connection")) };
        let mut tx = connection.begin_with(LOCKED).await?;
        // The lock is ours, so whatever was in doubt has been written by now, or has not begun.
        for n in 0..doubts.len() {
            if was_written(&mut tx, &doubts[n]).await? {
                tx.rollback().await?;
                doubts.truncate(n + 1);
                self.memory.forget();
                return Ok(self.done(doubts));
            }
        }
        let snapshot = read(&mut tx, batch, self.ceilings.clone()).await?;
        // What was made for an earlier position never will be; and without events there is nothing that could happen twice: the records' primary key stands guard.
        doubts.retain(|plan| plan.before.position == snapshot.head.position && !plan.rows.is_empty());
        self.history.saw(snapshot.head);
        self.memory.confirm(snapshot.head);
        let plan = decide(snapshot, batch, now);
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
        doubts.last().into_iter().for_each(|plan| self.memory.learn(plan));
        Ok(self.done(doubts))
    }

    /// Makes sure that the log behind a new connection still has what this process has seen. Otherwise the requests that wait were decided upon, and sealed for, another history:
    /// they fail, and are decided anew when they come again.
    async fn recognise(&mut self, connection: &mut PgConnection) -> Result<(), Failure> {
        let seen = self.history.seen();
        let (position, log_hash, then): (i64, [u8; 32], Option<[u8; 32]>) = sqlx::query_as(
            "select position, log_hash, (select log_hash from events where position = $1 and position <= log_head.position) from log_head",
        )
        .bind(seen.position)
        .fetch_one(connection)
        .await?;
        if seen.position == 0 || then == Some(seen.log_hash.0) {
            return Ok(());
        }
        self.memory.forget();
        self.history.rewind(seen, Head { position, log_hash: Hash(log_hash) });
        Err(Failure::Rewound)
    }

    /// The last of the plans is written, and so none of the others ever will be.
    fn done(&mut self, doubts: &mut Doubts) -> Vec<Outcome> {
        let Some(plan) = doubts.pop() else { return vec![] };
        doubts.clear();
        self.last_write.succeeded();
        self.history.saw(plan.after);
        metrics::histogram!("tenure_append_batch_requests").record(u32::try_from(plan.answers.len()).unwrap_or(u32::MAX));
        metrics::counter!("tenure_events_appended_total").increment(plan.rows.len() as u64);
        self.head.send_if_modified(|head| {
            let moved = plan.after.position > *head;
            *head = plan.after.position.max(*head);
            moved
        });
        plan.answers
    }
}

/// Tells everybody in a batch what came of it. Whoever asked may have gone by then; that changes nothing.
fn answer(batch: Vec<Prepared>, answers: Vec<Outcome>) {
    for (request, answer) in batch.into_iter().zip(answers) {
        let _ = request.reply.send(answer);
    }
}

/// What came of the batch that is being written; nothing ever does when there is none.
async fn land(flight: &mut Option<Flight>) -> (Vec<Prepared>, Landed) {
    if let Some(flying) = flight {
        (&mut flying.writing).await;
    }
    match flight.take().and_then(|mut flight| Some((flight.batch, flight.writing.as_mut().take_output()?))) {
        Some(landed) => landed,
        None => std::future::pending().await,
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
