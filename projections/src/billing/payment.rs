//! What was collected, and what was given back: the payments of subscriptions, with what of them is overage.

use chrono::{DateTime, Utc};
use domain::TenantId;
use domain::billing::money::Money;
use domain::billing::subscription::{CollectedOverage, Event, Subscription};
use serde::{Deserialize, Serialize};
use serde_json::json;
use store::Recorded;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::cursor::CursorKey;
use crate::list::{self, Column, Orders, Page, Paging};
use crate::model::ReadModel;
use crate::query::{QueryError, Read};

/// The read model.
pub struct Payments;

/// The key of a payment.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Key {
    tenant_id: TenantId,
    position: i64,
}

/// What happened to money.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PaymentKind {
    /// It was paid.
    Paid,
    /// Less than what was owed was paid.
    PaidInPart,
    /// It could not be paid.
    Failed,
    /// It was given back, in whole or in part.
    Refunded,
    /// The payer's bank disputes it.
    Disputed,
    /// The dispute was won: it stays paid.
    DisputeWon,
    /// The dispute was lost: it is gone.
    DisputeLost,
}

impl PaymentKind {
    /// As stored and shown.
    fn as_str(self) -> &'static str {
        match self {
            Self::Paid => "paid",
            Self::PaidInPart => "paid_in_part",
            Self::Failed => "failed",
            Self::Refunded => "refunded",
            Self::Disputed => "disputed",
            Self::DisputeWon => "dispute_won",
            Self::DisputeLost => "dispute_lost",
        }
    }
}

/// A payment, or what became of one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Payment)]
pub struct Row {
    /// Whose.
    pub tenant_id: TenantId,
    /// Its place in the log.
    #[schema(example = 2041)]
    pub position: i64,
    /// Of which subscription.
    pub subscription_id: Uuid,
    /// What happened.
    pub kind: PaymentKind,
    /// How much, if that was said; of a refund, how much was given back of the payment so far.
    pub amount: Option<Money>,
    /// What of it is overage.
    pub overage: Vec<CollectedOverage>,
    /// What the provider calls the invoice.
    #[schema(example = "in_1MtHbELkdIwHu7ixl4OzzPMv")]
    pub invoice: Option<String>,
    /// What the provider calls its message, or whoever recorded it.
    #[schema(example = "evt_1NG8Du2eZvKYlo2CUI79vXWy")]
    pub provider_event_id: String,
    /// When it happened.
    pub occurred_at: DateTime<Utc>,
    /// When it was recorded here.
    pub recorded_at: DateTime<Utc>,
}

impl Row {
    fn of(event: &Recorded<Event>) -> Option<Self> {
        use PaymentKind as K;
        let (kind, (id, occurred_at, amount)) = match &event.event {
            Event::PaymentSucceeded { provider_event_id, occurred_at, amount, partial, .. } => {
                (if *partial { K::PaidInPart } else { K::Paid }, (provider_event_id, occurred_at, amount))
            }
            Event::PaymentFailed { provider_event_id, occurred_at, amount } => (K::Failed, (provider_event_id, occurred_at, amount)),
            Event::PaymentRefunded { provider_event_id, occurred_at, amount } => (K::Refunded, (provider_event_id, occurred_at, amount)),
            Event::PaymentDisputed { provider_event_id, occurred_at, amount } => (K::Disputed, (provider_event_id, occurred_at, amount)),
            Event::DisputeClosed { provider_event_id, occurred_at, amount, lost } => {
                (if *lost { K::DisputeLost } else { K::DisputeWon }, (provider_event_id, occurred_at, amount))
            }
            Event::Started { .. }
            | Event::TrialExtended { .. }
            | Event::TrialEnding { .. }
            | Event::TrialConverted { .. }
            | Event::Paused { .. }
            | Event::Resumed { .. }
            | Event::PlanChanged { .. }
            | Event::LimitsHeld { .. }
            | Event::LimitsReleased { .. }
            | Event::ChangeDeclined { .. }
            | Event::PlanChangeScheduled { .. }
            | Event::ScheduledChangeCancelled
            | Event::QuantityChanged { .. }
            | Event::PeriodRenewed { .. }
            | Event::CancelScheduled { .. }
            | Event::Uncancelled
            | Event::Cancelled { .. }
            | Event::Expired { .. }
            | Event::StandingReported { .. }
            | Event::Activated { .. }
            | Event::BecamePastDue
            | Event::MarkedUnpaid { .. }
            | Event::PaymentMethodSet { .. }
            | Event::PaymentMethodRemoved { .. }
            | Event::CustomerLinked { .. }
            | Event::ProviderLinked { .. } => return None,
        };
        let (mut invoice, mut overage) = (None, vec![]);
        if let Event::PaymentSucceeded { invoice: of, overage: collected, .. } = &event.event {
            invoice.clone_from(of);
            overage.clone_from(collected);
        }
        Some(Self {
            tenant_id: event.stream.tenant,
            position: event.position,
            subscription_id: event.stream.id,
            kind,
            amount: *amount,
            overage,
            invoice,
            provider_event_id: id.clone(),
            occurred_at: *occurred_at,
            recorded_at: event.recorded_at,
        })
    }
}

impl ReadModel for Payments {
    const NAME: &'static str = "payments_v1";
    type Events = Subscription;
    type Key = Key;
    type Row = Row;

    fn keys(event: &Recorded<Event>) -> Vec<Key> {
        Row::of(event).map(|row| Key { tenant_id: row.tenant_id, position: row.position }).into_iter().collect()
    }

    fn apply(_: &Key, _: Option<Row>, event: &Recorded<Event>) -> Option<Row> {
        Row::of(event)
    }
}

/// In which order: that of the log.
pub const ORDERS: Orders = Orders { columns: &[Column { name: "position", sql: "position", kind: "bigint" }], tie: ("position", "bigint") };

/// Which payments.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Filter {
    /// Of this subscription.
    pub subscription: Option<Uuid>,
    /// To which this happened.
    pub kind: Option<PaymentKind>,
}

/// One page of the payments that the view may see and the filter lets pass.
pub async fn list(read: &mut Read, cursors: &CursorKey, filter: Filter, paging: &Paging) -> Result<Page<Row>, QueryError> {
    let mut query = list::select(Payments::NAME, paging);
    if let Some(subscription) = filter.subscription {
        query.push(" and subscription_id = ").bind(subscription);
    }
    if let Some(kind) = filter.kind {
        query.push(" and kind = ").bind(kind.as_str());
    }
    list::page(read, cursors, query, &json!([Payments::NAME, filter]).to_string(), paging).await
}
