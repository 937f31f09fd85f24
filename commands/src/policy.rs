//! Policies: what answers events. They are the members of one group ([`bus::group`]).
//!
//! A policy is brought every event once and in order, from where the log ended when it was introduced. It decides on a page of events, and what it decides is written in
//! the transaction that moves its checkpoint. It never goes back. One that answers with commands ([`Reaction`]) sends each under an id and a key made from the policy, the
//! event's position and the command's place in the answer: whatever is killed between a command and the checkpoint, the command is sent again and has been executed once.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use bus::feed::Feed;
use bus::group::{Advanced, Checkpoint, CheckpointMove, Checkpoints, Group, Member, Wait, Work};
use bus::subscription::HandlerError;
pub use bus::subscription::retry;
use domain::aggregate::Ask as _;
use domain::{Actor, Aggregate, StreamId};
use futures::future::BoxFuture;
use futures::{StreamExt as _, TryStreamExt as _};
use sqlx::{FromRow, PgConnection, PgPool};
use store::load::LoadError;
use store::{Hash, Head, Key, RawEvent, Store};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::error::CommandError;
use crate::execute::{Executor, Outcome, Request};

/// How many tenants' events are answered at a time.
const AT_A_TIME: usize = 32;

/// What answers events. Its row in `ops.policies` is made by a migration, at the log's end then.
pub trait Policy: Send + Sync + 'static {
    /// Its name: part of the identity of everything that it decides.
    const NAME: &'static str;

    /// What it has decided for a page of events.
    type Decided: Send + Sync;

    /// Whether it may have an answer to an event. It is asked about pages with such events only.
    fn concerns(&self, event: &RawEvent) -> bool;

    /// Decides. May be asked again for the same events.
    fn decide(&self, events: &[Arc<RawEvent>]) -> impl Future<Output = Result<Self::Decided, HandlerError>> + Send;

    /// Writes what was decided, in the transaction that moves the checkpoint. May be asked again, in another transaction.
    fn write(&self, decided: &Self::Decided, tx: &mut PgConnection) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
}

/// The checkpoints of the policies.
pub struct PolicyCheckpoints {
    pool: PgPool,
}

/// The group of the policies that this process runs.
pub type Policies = Group<PolicyCheckpoints>;

/// A group without policies that answers the log of `store`.
pub fn none(store: &Store, feed: &Feed, cancel: &CancellationToken) -> Policies {
    Group::new(PolicyCheckpoints { pool: store.pool().clone() }, store, feed, cancel)
}

impl Checkpoints for PolicyCheckpoints {
    const KIND: &'static str = "policy";

    fn pool(&self) -> &PgPool {
        &self.pool
    }

    async fn read(&self, names: &[&str]) -> Result<Vec<(String, Checkpoint)>, sqlx::Error> {
        let checkpoints: Vec<(String, i64, [u8; 32])> =
            sqlx::query_as("select name, position, log_hash from ops.policies where name = any($1)")
                .bind(names)
                .fetch_all(&self.pool)
                .await?;
        let checkpoint = |position, hash| Checkpoint { head: Head { position, log_hash: Hash(hash) }, generation: 0 };
        Ok(checkpoints.into_iter().map(|(name, position, hash)| (name, checkpoint(position, hash))).collect())
    }

    async fn advance(
        &self,
        connection: &mut PgConnection,
        wanted: &[CheckpointMove],
        from: i64,
        to: Head,
        wait: Wait,
    ) -> Result<Vec<(String, Advanced)>, sqlx::Error> {
        // Nobody else locks one for longer than a moment, so none is left out for that.
        let moved: Vec<(String, String)> = sqlx::query_as(
            "update ops.policies p set position = $4, log_hash = $5, epoch = m.epoch
               from unnest($1::text[], $2::bigint[]) m (name, epoch)
              where p.name = m.name and p.position = $3 and p.epoch <= m.epoch
             returning p.name, set_config('statement_timeout', $6, true)",
        )
        .bind(wanted.iter().map(|m| m.name).collect::<Vec<_>>())
        .bind(wanted.iter().map(|m| m.epoch).collect::<Vec<_>>())
        .bind(from)
        .bind(to.position)
        .bind(to.log_hash.0)
        .bind(wait.statement_timeout())
        .fetch_all(connection)
        .await?;
        Ok(moved.into_iter().map(|(name, _)| (name, Advanced::default())).collect())
    }

    async fn note(&self, names: &[&str], fault: Option<&str>) -> Result<(), sqlx::Error> {
        let noted = sqlx::query("update ops.policies set fault = $2 where name = any($1) and fault is distinct from $2");
        noted.bind(names).bind(fault).execute(&self.pool).await.map(drop)
    }
}

/// A failure to read events, as the runtime is told of it.
pub fn unreadable(error: LoadError) -> HandlerError {
    match error {
        unknown @ LoadError::UnknownEvent { .. } => HandlerError::Unknown(unknown.to_string()),
        other @ (LoadError::Unavailable(_) | LoadError::Corrupt { .. }) => HandlerError::Retry(other.to_string()),
    }
}

/// A policy as a member of the group.
struct Answering<P>(P);

/// What a policy does with a page.
struct Answered<P: Policy> {
    policy: Arc<Answering<P>>,
    decided: P::Decided,
}

/// The policy as a member of the group.
pub fn member(policy: impl Policy) -> Arc<dyn Member> {
    Arc::new(Answering(policy))
}

impl<P: Policy> Member for Answering<P> {
    fn name(&self) -> &'static str {
        P::NAME
    }

    fn concerns(&self, event: &RawEvent) -> bool {
        self.0.concerns(event)
    }

    fn prepare<'a>(self: Arc<Self>, events: &'a [Arc<RawEvent>], _: u32) -> BoxFuture<'a, Result<Box<dyn Work + 'a>, HandlerError>> {
        Box::pin(async move {
            let decided = self.0.decide(events).await?;
            Ok(Box::new(Answered { policy: self, decided }) as Box<dyn Work + 'a>)
        })
    }
}

impl<P: Policy> Work for Answered<P> {
    fn write<'c>(&'c mut self, connection: &'c mut PgConnection, _: &'c Advanced) -> BoxFuture<'c, Result<(), HandlerError>> {
        Box::pin(async move { self.policy.0.write(&self.decided, connection).await.map_err(retry) })
    }
}

type Executing = Pin<Box<dyn Future<Output = Result<Outcome, CommandError>> + Send>>;

/// A command that answers an event.
pub struct Answer {
    name: String,
    execute: Box<dyn FnOnce(Executor, Sent) -> Executing + Send>,
}

/// What is said of every command of a policy.
struct Sent {
    actor: Actor,
    id: Uuid,
    causation: Uuid,
    key: Key,
}

impl Answer {
    /// A command for a stream.
    pub fn new<A: Aggregate>(stream: StreamId, command: impl Into<A::Ask>) -> Self {
        let command: A::Ask = command.into();
        let name = format!("{}.{}", A::TYPE, command.name());
        let execute = move |executor: Executor, sent: Sent| -> Executing {
            let mut request = Request::<A>::new(stream, command, sent.actor, sent.id);
            request.causation_id = Some(sent.causation);
            request.keys = vec![sent.key];
            Box::pin(async move { executor.execute(request).await })
        };
        Self { name, execute: Box::new(execute) }
    }
}

/// A policy that answers with commands.
pub trait Reaction: Send + Sync + 'static {
    /// Its name: part of the identity of every command that it sends.
    const NAME: &'static str;

    /// The aggregate types whose events it answers.
    const TYPES: &'static [&'static str];

    /// How many commands an event is answered with at most, one after the other; each is decided when those before it are done, so that it may depend on what they did.
    const STEPS: usize;

    /// Those of a tenant's events, in order, that are worth an answer: where what follows from one follows from a later one as well, it may be left out.
    fn worth(events: Vec<Arc<RawEvent>>) -> Vec<Arc<RawEvent>> {
        events
    }

    /// The command at this place of the answer, if there is one.
    fn step(&self, store: &Store, event: &RawEvent, n: usize) -> impl Future<Output = Result<Option<Answer>, HandlerError>> + Send;
}

/// Executes the commands of a reaction.
pub struct Commands<R> {
    reaction: R,
    executor: Executor,
}

impl<R: Reaction> Commands<R> {
    /// The policy in one process.
    pub fn member(reaction: R, executor: &Executor) -> Arc<dyn Member> {
        member(Self { reaction, executor: executor.clone() })
    }

    async fn answer(&self, event: &RawEvent, refusals: &mut Vec<Refusal>) -> Result<(), HandlerError> {
        for n in 0..R::STEPS {
            let Some(answer) = self.reaction.step(self.executor.store(), event, n).await? else { continue };
            let identity = format!("{} {} {n}", R::NAME, event.position);
            let id = Uuid::new_v5(&event.event_id, identity.as_bytes());
            let tenant = domain::TenantId(event.tenant_id);
            let key = Key { tenant, scope: format!("policy:{}", R::NAME), key: id.to_string(), fingerprint: [0; 32] };
            let actor = Actor::system(R::NAME);
            match (answer.execute)(self.executor.clone(), Sent { actor, id, causation: event.event_id, key }).await {
                Ok(_) => {}
                Err(
                    error @ (CommandError::Contended
                    | CommandError::Moved
                    | CommandError::Overloaded
                    | CommandError::Unavailable
                    | CommandError::Internal(_)),
                ) => {
                    return Err(retry(error));
                }
                // What the rules refuse now they would refuse again: that is recorded, and the policy goes on.
                Err(
                    error @ (CommandError::Rejected { .. }
                    | CommandError::Forbidden { .. }
                    | CommandError::QuotaExceeded(_)
                    | CommandError::MailLimit { .. }
                    | CommandError::MailPause { .. }
                    | CommandError::PeriodClosed(_)
                    | CommandError::VersionMismatch { .. }
                    | CommandError::KeysKnown
                    | CommandError::KeyReused),
                ) => {
                    tracing::warn!(policy = R::NAME, event.position, command = answer.name, %error, "refused");
                    let step = i32::try_from(n).unwrap_or(i32::MAX);
                    let (policy, command) = (R::NAME.to_owned(), answer.name);
                    let (tenant_id, position, event_id) = (event.tenant_id, event.position, Some(event.event_id));
                    let (reason, recorded_at) = (error.to_string(), self.executor.store().clock().now());
                    refusals.push(Refusal { policy, position, step, event_id, tenant_id, command, reason, recorded_at });
                }
            }
        }
        Ok(())
    }
}

/// A command of a policy that was refused.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct Refusal {
    /// Whose command.
    pub policy: String,
    /// The event that it was to answer.
    pub position: i64,
    /// Its place in the answer.
    pub step: i32,
    /// The id of that event; none for refusals from before ids were kept.
    pub event_id: Option<Uuid>,
    /// For whom.
    pub tenant_id: Uuid,
    /// Which command: `user.register`.
    pub command: String,
    /// Why.
    pub reason: String,
    /// When.
    pub recorded_at: chrono::DateTime<chrono::Utc>,
}

/// The refused commands of all policies, the newest first.
pub async fn refusals(store: &Store, limit: i64) -> Result<Vec<Refusal>, sqlx::Error> {
    let refusals = sqlx::query_as("select * from ops.policy_refusals order by position desc, policy, step limit $1");
    refusals.bind(limit).fetch_all(store.pool()).await
}

/// The checkpoint of a policy.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct PolicyStatus {
    /// The name of the policy.
    pub name: String,
    /// Everything up to here was answered.
    pub position: i64,
    /// Why it has stopped, if it has.
    pub fault: Option<String>,
}

/// The checkpoints of all policies.
pub async fn statuses(store: &Store) -> Result<Vec<PolicyStatus>, sqlx::Error> {
    sqlx::query_as("select name, position, fault from ops.policies order by name").fetch_all(store.pool()).await
}

/// Sets policies whose checkpoints the log does not confirm back to `agreed`, up to where what they answered is in the log, and forgets refusals of commands that answered
/// other events. Returns the names of these policies, each with the position that it had. What was answered once is not answered again: the ids of commands and deliveries
/// are made from the ids of events.
pub async fn reconcile(store: &Store, agreed: Head) -> Result<Vec<(String, i64)>, sqlx::Error> {
    let checkpoints: Vec<(String, i64, [u8; 32])> =
        sqlx::query_as("select name, position, log_hash from ops.policies order by name").fetch_all(store.pool()).await?;
    let mut reset = Vec::new();
    for (name, position, log_hash) in checkpoints {
        if store.confirm(Head { position, log_hash: Hash(log_hash) }).await?.is_ok() {
            continue;
        }
        // Guarded by what was read: a policy that moved meanwhile was confirmed by its own process.
        let moved = sqlx::query(
            "update ops.policies set position = $3, log_hash = $4, fault = null where name = $1 and position = $2 and log_hash = $5",
        )
        .bind(&name)
        .bind(position)
        .bind(agreed.position)
        .bind(agreed.log_hash.0)
        .bind(log_hash)
        .execute(store.pool())
        .await?;
        if moved.rows_affected() == 1 {
            reset.push((name, position));
        }
    }
    sqlx::query(
        "delete from ops.policy_refusals r
         where not exists (select from events e where e.position = r.position and (r.event_id is null or e.event_id = r.event_id))",
    )
    .execute(store.pool())
    .await?;
    Ok(reset)
}

impl<R: Reaction> Policy for Commands<R> {
    const NAME: &'static str = R::NAME;

    type Decided = Vec<Refusal>;

    fn concerns(&self, event: &RawEvent) -> bool {
        R::TYPES.contains(&event.aggregate_type.as_str())
    }

    async fn decide(&self, events: &[Arc<RawEvent>]) -> Result<Vec<Refusal>, HandlerError> {
        // A tenant's events are answered in order; tenants do not wait for one another.
        let mut by_tenant: BTreeMap<Uuid, Vec<Arc<RawEvent>>> = BTreeMap::new();
        for event in events.iter().filter(|event| R::TYPES.contains(&event.aggregate_type.as_str())) {
            by_tenant.entry(event.tenant_id).or_default().push(event.clone());
        }
        let answered = futures::stream::iter(by_tenant.into_values().map(|events| async move {
            let mut refusals = Vec::new();
            for event in &R::worth(events) {
                self.answer(event, &mut refusals).await?;
            }
            Ok::<_, HandlerError>(refusals)
        }));
        let refusals: Vec<Vec<Refusal>> = answered.buffer_unordered(AT_A_TIME).try_collect().await?;
        Ok(refusals.concat())
    }

    async fn write(&self, refusals: &Vec<Refusal>, tx: &mut PgConnection) -> Result<(), sqlx::Error> {
        for refusal in refusals {
            sqlx::query(
                "insert into ops.policy_refusals (policy, position, step, tenant_id, command, reason, recorded_at, event_id)
                 values ($1, $2, $3, $4, $5, $6, $7, $8) on conflict do nothing",
            )
            .bind(&refusal.policy)
            .bind(refusal.position)
            .bind(refusal.step)
            .bind(refusal.tenant_id)
            .bind(&refusal.command)
            .bind(&refusal.reason)
            .bind(refusal.recorded_at)
            .bind(refusal.event_id)
            .execute(&mut *tx)
            .await?;
        }
        Ok(())
    }
}
