//! The queue: what is due, who attempts it, what came of it.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use domain::TenantId;
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use sqlx::{FromRow, PgConnection, PgPool};
use store::database;
use utoipa::ToSchema;
use uuid::Uuid;

/// The kind of mails.
pub(crate) const MAIL: &str = "mail";

/// After this many attempts, over some two days, a delivery is a dead letter.
pub const MAX_ATTEMPTS: i32 = 16;
/// The pause after the first attempt …
const FIRST_PAUSE: TimeDelta = TimeDelta::seconds(5);
/// … and the longest.
const LONGEST_PAUSE: TimeDelta = TimeDelta::hours(6);
/// How long a worker that died keeps a delivery from others: longer than any attempt.
pub(crate) const LEASE: Duration = Duration::from_secs(90);

/// Something to deliver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDelivery {
    /// Its identity, made from what it answers, so that the same is queued once.
    pub id: Uuid,
    /// Whose.
    pub tenant: TenantId,
    /// How it is delivered: which channel attempts it.
    pub kind: &'static str,
    /// Whom or what it is about.
    pub subject_id: Uuid,
    /// What it says.
    pub template: &'static str,
    /// What it is made of when it is attempted.
    pub intent: Uuid,
    /// The position of the event that it answers; 0 where it answers none.
    pub position: i64,
    /// The id of that event. A delivery whose event is not in the log at that position is never attempted.
    pub event: Option<Uuid>,
    /// When it was decided.
    pub at: DateTime<Utc>,
}

/// Queues deliveries, with whatever else the transaction does. A person who was erased meanwhile gets no mail.
pub async fn add(tx: &mut PgConnection, deliveries: &[NewDelivery]) -> Result<(), sqlx::Error> {
    for delivery in deliveries {
        sqlx::query(
            "insert into ops.deliveries (id, tenant_id, kind, subject_id, template, intent, position, event_id, next_attempt_at, created_at)
             select $1, $2, $3, $4, $5, $6, $7, $8, $9, $9
             where not exists (select from ops.subject_keys k where k.tenant_id = $2 and k.subject_id = $4 and k.wrapped_key is null and $3 = $10)
             on conflict (tenant_id, id) do nothing",
        )
        .bind(delivery.id)
        .bind(delivery.tenant.0)
        .bind(delivery.kind)
        .bind(delivery.subject_id)
        .bind(delivery.template)
        .bind(delivery.intent)
        .bind(delivery.position)
        .bind(delivery.event)
        .bind(delivery.at)
        .bind(MAIL)
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

/// Ends the deliveries whose events are not in the log: it was restored to an earlier state since they were queued. Returns how many.
pub async fn drop_orphans(pool: &PgPool, now: DateTime<Utc>) -> Result<u64, sqlx::Error> {
    let dropped = sqlx::query(
        "update ops.deliveries d set state = 'dropped', ended_at = $1, reason = 'the event that it answers is not in the log', leased_by = null, leased_until = null
         where state = 'pending' and position > 0
           and not exists (select from events e where e.position = d.position and (d.event_id is null or e.event_id = d.event_id))",
    );
    Ok(dropped.bind(now).execute(pool).await?.rows_affected())
}

/// A delivery that somebody has to attempt.
#[derive(Clone, Debug, FromRow)]
pub struct Due {
    /// Its identity, the same at every attempt.
    pub id: Uuid,
    /// Whose.
    pub tenant_id: Uuid,
    /// How it is delivered.
    pub kind: String,
    /// Whom or what it is about.
    pub subject_id: Uuid,
    /// What it says.
    pub template: String,
    /// What it is made of.
    pub intent: Uuid,
    /// The event that it answers.
    pub position: i64,
    /// How often it was attempted before.
    pub attempts: i32,
}

/// Where a delivery stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It is attempted until it succeeds.
    Pending,
    /// It was acknowledged.
    Delivered,
    /// It was no longer wanted when its turn came: its link is used up, or its receiver is gone.
    Dropped,
    /// It was refused for good, or attempted too often.
    Dead,
}

impl State {
    /// As stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Dropped => "dropped",
            Self::Dead => "dead",
        }
    }
}

/// A delivery as it is shown. Where it goes to is not kept.
#[derive(Clone, Debug, PartialEq, Serialize, FromRow, ToSchema)]
pub struct Delivery {
    /// Its identity; the message carries it.
    pub id: Uuid,
    /// Of which kind.
    #[schema(example = "mail")]
    pub kind: String,
    /// What it says.
    #[schema(example = "invitation")]
    pub template: String,
    /// The user whom it is for, or the subscription that it is about.
    pub subject_id: Uuid,
    /// `pending`, `delivered`, `dropped` or `dead`.
    #[schema(example = "delivered")]
    pub state: String,
    /// How often it was attempted since it was queued, or last retried by command.
    #[schema(example = 1)]
    pub attempts: i32,
    /// When it is attempted next, while it is pending.
    pub next_attempt_at: DateTime<Utc>,
    /// When it was decided.
    pub created_at: DateTime<Utc>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
    /// Why it was dropped or is dead, or why the last attempt failed.
    #[schema(example = "the server answered 550")]
    pub reason: Option<String>,
}

/// What came of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// It was acknowledged.
    Delivered,
    /// It may work another time.
    Failed(String),
    /// It will never work.
    Refused(String),
    /// It is no longer wanted.
    Dropped(String),
}

/// Takes deliveries that are due for `owner`, who alone attempts them for a while. Of the kinds that are `ordered`, only the first one that is pending of each subject.
pub(crate) async fn take(
    pool: &PgPool,
    owner: Uuid,
    kinds: &[&str],
    ordered: &[&str],
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<Due>, sqlx::Error> {
    sqlx::query_as(
        "update ops.deliveries d set leased_by = $1, leased_until = now() + $4 * interval '1 second'
         from (select tenant_id, id from ops.deliveries p where state = 'pending' and kind = any($5) and next_attempt_at <= $2 and (leased_until is null or leased_until < now())
                 and (position = 0 or exists (select from events e where e.position = p.position and (p.event_id is null or e.event_id = p.event_id)))
                 and (kind <> all($6) or not exists (select from ops.deliveries o where o.tenant_id = p.tenant_id and o.kind = p.kind and o.subject_id = p.subject_id
                   and o.id <> p.id
                   and o.state = 'pending' and ((o.position, o.id) < (p.position, p.id) or o.leased_until >= now())))
               order by next_attempt_at limit $3 for update skip locked) due
         where d.tenant_id = due.tenant_id and d.id = due.id returning d.id, d.tenant_id, d.kind, d.subject_id, d.template, d.intent, d.position, d.attempts",
    )
    .bind(owner)
    .bind(now)
    .bind(limit)
    .bind(LEASE.as_secs_f64())
    .bind(kinds)
    .bind(ordered)
    .fetch_all(pool)
    .await
}

/// The pause after so many attempts: doubled each time, and anywhere between a half and the whole of it, so that what failed together is not tried together.
fn pause(attempts: i32) -> TimeDelta {
    let doubled = FIRST_PAUSE * 2_i32.pow(attempts.clamp(0, 20).unsigned_abs());
    let whole = doubled.min(LONGEST_PAUSE).num_milliseconds();
    TimeDelta::milliseconds(rand::thread_rng().gen_range(whole / 2..=whole))
}

/// Records what came of an attempt. One that somebody else has recorded meanwhile, whose lease had run out, stays as it is.
pub(crate) async fn record(
    pool: &PgPool,
    owner: Uuid,
    due: &Due,
    began: DateTime<Utc>,
    ended: DateTime<Utc>,
    attempt: &Attempt,
) -> Result<(), sqlx::Error> {
    let attempts = due.attempts + 1;
    let (state, outcome, reason) = match attempt {
        Attempt::Delivered => (State::Delivered, Some("delivered"), None),
        Attempt::Failed(why) if attempts >= MAX_ATTEMPTS => (State::Dead, Some("failed"), Some(why)),
        Attempt::Failed(why) => (State::Pending, Some("failed"), Some(why)),
        Attempt::Refused(why) => (State::Dead, Some("refused"), Some(why)),
        Attempt::Dropped(why) => (State::Dropped, None, Some(why)),
    };
    let mut tx = database::begin(pool).await?;
    let recorded = sqlx::query(
        "update ops.deliveries set state = $3, attempts = attempts + $4, next_attempt_at = $5, ended_at = $6, reason = $7, leased_by = null, leased_until = null
         where id = $1 and leased_by = $2 and state = 'pending' and tenant_id = $8",
    )
    .bind(due.id)
    .bind(owner)
    .bind(state.as_str())
    .bind(i32::from(outcome.is_some()))
    .bind(ended + pause(due.attempts))
    .bind((state != State::Pending).then_some(ended))
    .bind(reason)
    .bind(due.tenant_id)
    .execute(&mut *tx)
    .await?;
    if let (1, Some(outcome)) = (recorded.rows_affected(), outcome) {
        // A dead letter that is retried has been attempted before.
        sqlx::query(
            "insert into ops.delivery_attempts (tenant_id, delivery_id, attempt, began_at, ended_at, outcome, reason)
             select $6, $1, coalesce(max(attempt), 0) + 1, $2, $3, $4, $5 from ops.delivery_attempts where tenant_id = $6 and delivery_id = $1",
        )
        .bind(due.id)
        .bind(began)
        .bind(ended)
        .bind(outcome)
        .bind(reason)
        .bind(due.tenant_id)
        .execute(&mut *tx)
        .await?;
    }
    tx.commit().await
}

/// A tenant's deliveries, all or in one state, the newest first; those before `before`, if it is given.
pub async fn list(
    pool: &PgPool,
    tenant: TenantId,
    state: Option<State>,
    before: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Delivery>, sqlx::Error> {
    sqlx::query_as(
        "select id, kind, template, subject_id, state, attempts, next_attempt_at, created_at, ended_at, reason from ops.deliveries d
         where tenant_id = $1 and ($2::text is null or state = $2)
           and ($3::uuid is null or (created_at, id) < (select created_at, id from ops.deliveries where id = $3 and tenant_id = $1))
         order by created_at desc, id desc limit $4",
    )
    .bind(tenant.0)
    .bind(state.map(State::as_str))
    .bind(before)
    .bind(limit)
    .fetch_all(pool)
    .await
}

/// What came of the attempts of a delivery.
#[derive(Clone, Debug, PartialEq, Serialize, FromRow, ToSchema)]
pub struct Attempted {
    /// The how-manieth it was.
    #[schema(example = 1)]
    pub attempt: i32,
    /// When it began.
    pub began_at: DateTime<Utc>,
    /// When it ended.
    pub ended_at: DateTime<Utc>,
    /// `delivered`, `failed` or `refused`.
    #[schema(example = "failed")]
    pub outcome: String,
    /// Why.
    #[schema(example = "the server answered 451")]
    pub reason: Option<String>,
}

/// The attempts of a tenant's delivery.
pub async fn attempts(pool: &PgPool, tenant: TenantId, delivery: Uuid) -> Result<Vec<Attempted>, sqlx::Error> {
    sqlx::query_as(
        "select attempt, began_at, ended_at, outcome, reason from ops.delivery_attempts where tenant_id = $1 and delivery_id = $2 order by attempt",
    )
    .bind(tenant.0)
    .bind(delivery)
    .fetch_all(pool)
    .await
}

/// Has a dead letter attempted again, or all of a tenant's. How many that were.
pub async fn retry(pool: &PgPool, tenant: Option<TenantId>, delivery: Option<Uuid>, now: DateTime<Utc>) -> Result<u64, sqlx::Error> {
    let retried = sqlx::query(
        "update ops.deliveries set state = 'pending', attempts = 0, next_attempt_at = $3, ended_at = null
         where state = 'dead' and ($1::uuid is null or tenant_id = $1) and ($2::uuid is null or id = $2)",
    );
    Ok(retried.bind(tenant.map(|tenant| tenant.0)).bind(delivery).bind(now).execute(pool).await?.rows_affected())
}

/// Forgets what ended long ago.
pub async fn forget(pool: &PgPool, before: DateTime<Utc>) -> Result<u64, sqlx::Error> {
    let forgotten = sqlx::query("delete from ops.deliveries where state in ('delivered', 'dropped') and ended_at < $1");
    Ok(forgotten.bind(before).execute(pool).await?.rows_affected())
}

/// When the next delivery is due.
pub(crate) async fn next_due(pool: &PgPool, kinds: &[&str]) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    let next = sqlx::query_scalar("select min(next_attempt_at) from ops.deliveries where state = 'pending' and kind = any($1)");
    next.bind(kinds).fetch_one(pool).await
}
