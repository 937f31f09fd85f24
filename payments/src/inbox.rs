//! What providers tell: each message taken in once, whatever it means, and whoever it is about.

use chrono::{DateTime, TimeDelta, Utc};
use commands::{CommandError, Executor, Request};
use domain::billing::subscription::{CUSTOMER, Report, Subscription};
use domain::text::Reference;
use domain::{Actor, StreamId, TenantId};
use serde::Serialize;
use sqlx::FromRow;
use store::{Key, Store};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::provider::{Message, Object, PaymentProvider};

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
    /// Why it had no effect, if it had none.
    #[schema(example = "it is about another subscription of the customer")]
    pub reason: Option<String>,
}

/// What came of a message, and why it had no effect.
type Concluded = (Outcome, Option<String>);

/// Takes a message in. When this fails nothing is lost: the provider sends it again, and what was done already is not done twice.
pub async fn take_in(executor: &Executor, provider: &dyn PaymentProvider, message: &Message, body: &[u8]) -> Result<Outcome, CommandError> {
    let outcome = take_one_in(executor, provider, message, body).await?;
    // Also of a message that was told before: what follows from it may have been cut off then.
    if matches!(outcome, Outcome::Applied | Outcome::Duplicate) && !message.names.is_empty() {
        let names: Vec<&str> = message.names.iter().map(Reference::as_str).collect();
        take_in_waiting(executor, provider, None, &names).await?;
    }
    Ok(outcome)
}

async fn take_one_in(executor: &Executor, provider: &dyn PaymentProvider, message: &Message, body: &[u8]) -> Result<Outcome, CommandError> {
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
    let mut concluded = (Outcome::Waiting, None);
    // What it is about may become known just before it is written down that it is not.
    for _ in 0..2 {
        let stream = find(store, provider.name(), message).await?;
        concluded = apply(executor, provider.name(), stream, message).await?;
        keep(store, provider.name(), message, stream, &concluded, body).await.map_err(unavailable)?;
        if concluded.0 != Outcome::Waiting {
            break;
        }
    }
    Ok(concluded.0)
}

/// Applies what was heard of a customer before they, or their subscription at the provider, were known here.
pub async fn reconsider(executor: &Executor, provider: &dyn PaymentProvider, customer: &str) -> Result<(), CommandError> {
    take_in_waiting(executor, provider, Some(customer), &[]).await
}

/// Takes in again what waits, of a customer or of an invoice, a charge or a payment.
async fn take_in_waiting(
    executor: &Executor,
    provider: &dyn PaymentProvider,
    customer: Option<&str>,
    names: &[&str],
) -> Result<(), CommandError> {
    let store = executor.store();
    let waiting: Vec<(String, Option<Vec<u8>>)> = sqlx::query_as(
        "select event_id, body from ops.provider_events where provider = $1 and (customer = $2 or names && $3) and outcome = 'waiting'
         order by occurred_at, event_id",
    )
    .bind(provider.name())
    .bind(customer)
    .bind(names)
    .fetch_all(store.pool())
    .await
    .map_err(unavailable)?;
    for (id, body) in waiting {
        let Some(body) = body.and_then(|body| store.unwrap(BODY, &[provider.name(), &id], &body)) else { continue };
        match provider.reread(&body) {
            Ok(message) => drop(take_one_in(executor, provider, &message, &body).await?),
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

/// The subscription that a message may be about: that of the customer whom it names; of a charge, the one that an invoice with it was of; or else, before the customer is known,
/// the one that the provider was told when it was made there.
async fn find(store: &Store, provider: &str, message: &Message) -> Result<Option<StreamId>, CommandError> {
    let known = match &message.customer {
        Some(customer) => store.holder(&CUSTOMER, TenantId::SYSTEM, &format!("{provider}:{customer}")).await.map_err(unavailable)?,
        None => None,
    };
    match known {
        None if message.object == Object::Charge => named_before(store, provider, message).await,
        known => Ok(known.or(message.about)),
    }
}

/// The subscription to which a message was applied that names the same invoice, charge or payment.
async fn named_before(store: &Store, provider: &str, message: &Message) -> Result<Option<StreamId>, CommandError> {
    let names: Vec<&str> = message.names.iter().map(Reference::as_str).collect();
    let before: Option<(Uuid, Uuid)> = sqlx::query_as(
        "select tenant_id, subscription_id from ops.provider_events
         where provider = $1 and names && $2 and event_id <> $3 and outcome = 'applied' and subscription_id is not null limit 1",
    )
    .bind(provider)
    .bind(names)
    .bind(message.id.as_str())
    .fetch_optional(store.pool())
    .await
    .map_err(unavailable)?;
    Ok(before.map(|(tenant, id)| StreamId::new(TenantId(tenant), id)))
}

/// Whether a message counts for a subscription: only what is about its own object at the provider does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// It does.
    Yes,
    /// It is about another object.
    No(&'static str),
    /// The object is not known yet.
    NotYet,
}

/// Whether a message counts for a subscription that is linked with one at the provider, or is not yet. Of charges the invoice says more.
pub fn counts(linked: Option<&str>, stream: StreamId, message: &Message) -> Counts {
    let of = match &message.object {
        Object::Customer => return Counts::Yes,
        Object::Invoice(None) => return Counts::No("the invoice is of no subscription"),
        Object::Charge => return Counts::NotYet,
        Object::Subscription(of) | Object::Invoice(Some(of)) => of,
    };
    match linked {
        Some(linked) if linked == of.as_str() => Counts::Yes,
        Some(_) => Counts::No("it is about another subscription of the customer"),
        // Made by us, and not noted yet.
        None if message.about == Some(stream) => Counts::Yes,
        None => Counts::NotYet,
    }
}

async fn counts_for(store: &Store, provider: &str, stream: StreamId, message: &Message) -> Result<Counts, CommandError> {
    if message.object == Object::Charge {
        let known = named_before(store, provider, message).await?;
        return Ok(if known == Some(stream) { Counts::Yes } else { Counts::NotYet });
    }
    let loaded = store.current::<Subscription>(stream).await?;
    let linked = loaded.state.details().and_then(|details| details.provider_subscription.as_deref());
    Ok(counts(linked, stream, message))
}

async fn apply(executor: &Executor, provider: &str, stream: Option<StreamId>, message: &Message) -> Result<Concluded, CommandError> {
    let kept = |why: &str| Ok((Outcome::Kept, Some(why.to_owned())));
    let Some(fact) = message.fact.clone() else { return kept("it has no meaning here") };
    let Some(stream) = stream else { return Ok((Outcome::Waiting, None)) };
    let store = executor.store();
    match counts_for(store, provider, stream, message).await? {
        Counts::Yes => {}
        Counts::No(why) => return kept(why),
        Counts::NotYet => return Ok((Outcome::Waiting, None)),
    }
    let report = Report { provider_event_id: message.id.clone(), occurred_at: message.occurred_at, fact };
    let mut request = Request::<Subscription>::new(stream, report, Actor::system(provider), store.fresh_id());
    request.keys =
        vec![Key { tenant: stream.tenant, scope: format!("provider:{provider}"), key: message.id.clone().into(), fingerprint: [0; 32] }];
    match executor.execute(request).await {
        Ok(_) => Ok((Outcome::Applied, None)),
        Err(CommandError::Rejected { code, detail, .. }) => {
            tracing::warn!(provider, event = message.id.as_str(), %code, "what a payment provider told was refused");
            Ok((Outcome::Refused, Some(detail)))
        }
        Err(error) => Err(error),
    }
}

async fn keep(
    store: &Store,
    provider: &str,
    message: &Message,
    stream: Option<StreamId>,
    (outcome, reason): &Concluded,
    body: &[u8],
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into ops.provider_events as e (provider, event_id, event_type, occurred_at, received_at, customer, tenant_id, subscription_id, outcome, reason, names, body)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, case when not exists (select from tenant_heads where tenant_id = $7 and gate = 'deleted') then $12::bytea end)
         on conflict (provider, event_id) do update
           set tenant_id = excluded.tenant_id, subscription_id = excluded.subscription_id, outcome = excluded.outcome, reason = excluded.reason
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
    .bind(reason)
    .bind(message.names.iter().map(Reference::as_str).collect::<Vec<_>>())
    .bind(store.wrap(BODY, &[provider, &message.id], body))
    .execute(store.pool())
    .await
    .map(drop)
}

/// What was taken in for a tenant, the newest first; all of it, also what nobody is known for, where no tenant is named.
pub async fn list(store: &Store, tenant: Option<TenantId>, limit: i64) -> Result<Vec<TakenIn>, sqlx::Error> {
    sqlx::query_as(
        "select provider, event_id, event_type, occurred_at, received_at, subscription_id, outcome, reason from ops.provider_events
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
