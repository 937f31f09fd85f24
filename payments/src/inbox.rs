//! What providers tell: each message taken in once, whatever it means, and whoever it is about.

use chrono::{DateTime, TimeDelta, Utc};
use commands::{CommandError, Executor, Request};
use domain::billing::subscription::{CUSTOMER, Report, Subscription};
use domain::{Actor, StreamId, TenantId};
use serde::Serialize;
use sqlx::FromRow;
use store::{Key, Store};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::provider::{Message, PaymentProvider};

/// How long the bodies of messages are kept.
pub const KEPT: TimeDelta = TimeDelta::days(90);

/// What came of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ProviderEventOutcome)]
pub enum Outcome {
    /// It was recorded, with what followed from it.
    Applied,
    /// The rules refused it.
    Refused,
    /// It means nothing here; it was kept.
    Kept,
    /// Nobody here is known to be whom it is about; it waits until somebody is.
    Waiting,
    /// It was taken in before.
    Duplicate,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Refused => "refused",
            Self::Kept => "kept",
            Self::Waiting => "waiting",
            Self::Duplicate => "duplicate",
        }
    }
}

/// A message that was taken in, without its body.
#[derive(Clone, Debug, PartialEq, Serialize, FromRow, ToSchema)]
pub struct TakenIn {
    /// From whom.
    #[schema(example = "stripe")]
    pub provider: String,
    /// The provider's id of it.
    #[schema(example = "evt_1NG8Du2eZvKYlo2CUI79vXWy")]
    pub event_id: String,
    /// What the provider calls it.
    #[schema(example = "invoice.payment_succeeded")]
    pub event_type: String,
    /// When it happened there.
    pub occurred_at: DateTime<Utc>,
    /// When it came.
    pub received_at: DateTime<Utc>,
    /// The subscription that it is about.
    pub subscription_id: Option<Uuid>,
    /// What came of it: `applied`, `refused`, `kept` or `waiting`.
    #[schema(example = "applied")]
    pub outcome: String,
}

/// Takes a message in. When this fails nothing is lost: the provider sends it again, and what was done already is not done twice.
pub async fn take_in(executor: &Executor, provider: &dyn PaymentProvider, message: &Message, body: &[u8]) -> Result<Outcome, CommandError> {
    let store = executor.store();
    let known: Option<String> = sqlx::query_scalar("select outcome from ops.provider_events where provider = $1 and event_id = $2")
        .bind(provider.name())
        .bind(message.id.as_str())
        .fetch_optional(store.pool())
        .await
        .map_err(unavailable)?;
    if known.is_some_and(|outcome| outcome != Outcome::Waiting.as_str()) {
        return Ok(Outcome::Duplicate);
    }
    let stream = find(store, provider.name(), message).await?;
    let outcome = apply(executor, provider.name(), stream, message).await?;
    keep(store, provider.name(), message, stream, outcome, body).await.map_err(unavailable)?;
    // Whoever it is about may have become known just before it was written down that nobody is.
    match find(store, provider.name(), message).await? {
        Some(stream) if outcome == Outcome::Waiting => {
            let outcome = apply(executor, provider.name(), Some(stream), message).await?;
            keep(store, provider.name(), message, Some(stream), outcome, body).await.map_err(unavailable)?;
            Ok(outcome)
        }
        Some(_) | None => Ok(outcome),
    }
}

/// Applies what was heard of a customer before they were known here.
pub async fn reconsider(executor: &Executor, provider: &dyn PaymentProvider, customer: &str) -> Result<(), CommandError> {
    let store = executor.store();
    let waiting: Vec<(String, Option<Vec<u8>>)> = sqlx::query_as(
        "select event_id, body from ops.provider_events where provider = $1 and customer = $2 and outcome = 'waiting' order by occurred_at, event_id",
    )
    .bind(provider.name())
    .bind(customer)
    .fetch_all(store.pool())
    .await
    .map_err(unavailable)?;
    for (id, body) in waiting {
        let Some(body) = body.and_then(|body| store.unwrap(BODY, &[provider.name(), &id], &body)) else { continue };
        match provider.reread(&body) {
            Ok(message) => drop(take_in(executor, provider, &message, &body).await?),
            Err(error) => tracing::error!(event = id, %error, "a message that was kept cannot be read any more"),
        }
    }
    Ok(())
}

/// What bodies are encrypted for.
const BODY: &str = "provider event";

fn unavailable(error: sqlx::Error) -> CommandError {
    store::load::LoadError::from(error).into()
}

/// The subscription that a message is about: that of the customer whom it names, or else, before that one is known, the one that the provider was told when it was made there.
async fn find(store: &Store, provider: &str, message: &Message) -> Result<Option<StreamId>, CommandError> {
    let Some(customer) = &message.customer else { return Ok(message.about) };
    let known = store.holder(&CUSTOMER, TenantId::SYSTEM, &format!("{provider}:{customer}")).await.map_err(unavailable)?;
    Ok(known.or(message.about))
}

async fn apply(executor: &Executor, provider: &str, stream: Option<StreamId>, message: &Message) -> Result<Outcome, CommandError> {
    let Some(fact) = message.fact.clone() else { return Ok(Outcome::Kept) };
    let Some(stream) = stream else { return Ok(Outcome::Waiting) };
    let report = Report { provider_event_id: message.id.clone(), occurred_at: message.occurred_at, fact };
    let store = executor.store();
    let mut request = Request::<Subscription>::new(stream, report, Actor::system(provider), store.fresh_id());
    request.keys =
        vec![Key { tenant: stream.tenant, scope: format!("provider:{provider}"), key: message.id.clone().into(), fingerprint: [0; 32] }];
    match executor.execute(request).await {
        Ok(_) => Ok(Outcome::Applied),
        Err(CommandError::Rejected { code, .. }) => {
            tracing::warn!(provider, event = message.id.as_str(), %code, "what a payment provider told was refused");
            Ok(Outcome::Refused)
        }
        Err(error) => Err(error),
    }
}

async fn keep(
    store: &Store,
    provider: &str,
    message: &Message,
    stream: Option<StreamId>,
    outcome: Outcome,
    body: &[u8],
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into ops.provider_events as e (provider, event_id, event_type, occurred_at, received_at, customer, tenant_id, subscription_id, outcome, body)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, case when not exists (select from tenant_heads where tenant_id = $7 and gate = 'deleted') then $10::bytea end)
         on conflict (provider, event_id) do update set tenant_id = excluded.tenant_id, subscription_id = excluded.subscription_id, outcome = excluded.outcome
           where e.outcome = 'waiting'",
    )
    .bind(provider)
    .bind(message.id.as_str())
    .bind(message.kind.as_str())
    .bind(message.occurred_at.time())
    .bind(store.clock().now())
    .bind(message.customer.as_deref())
    .bind(stream.map(|stream| stream.tenant.0))
    .bind(stream.map(|stream| stream.id))
    .bind(outcome.as_str())
    .bind(store.wrap(BODY, &[provider, &message.id], body))
    .execute(store.pool())
    .await
    .map(drop)
}

/// What was taken in for a tenant, the newest first; all of it, also what nobody is known for, where no tenant is named.
pub async fn list(store: &Store, tenant: Option<TenantId>, limit: i64) -> Result<Vec<TakenIn>, sqlx::Error> {
    sqlx::query_as(
        "select provider, event_id, event_type, occurred_at, received_at, subscription_id, outcome from ops.provider_events
         where $1::uuid is null or tenant_id = $1 order by received_at desc, event_id desc limit $2",
    )
    .bind(tenant.map(|tenant| tenant.0))
    .bind(limit)
    .fetch_all(store.pool())
    .await
}

/// Forgets the bodies of what came long ago.
pub async fn forget(store: &Store) -> Result<u64, sqlx::Error> {
    let forgotten = sqlx::query("update ops.provider_events set body = null where body is not null and received_at < $1");
    Ok(forgotten.bind(store.clock().now() - KEPT).execute(store.pool()).await?.rows_affected())
}
