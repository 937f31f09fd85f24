//! The policy that answers events of subscriptions with what a provider has to be told.

use std::sync::Arc;

use bus::subscription::HandlerError;
use commands::policy::{Policy, Runtime, unreadable};
use cqrs_es::Aggregate as _;
use domain::StreamId;
use domain::billing::subscription::{Event, Subscription};
use outbound::queue::{self, NewDelivery};
use sqlx::PgConnection;
use store::{RawEvent, Store};
use uuid::Uuid;

use crate::channel::{Intent, KIND};
use crate::provider::Provider;

/// What a provider has to be told of an event, if anything.
fn answer(event: &Event) -> Option<Intent> {
    match event {
        Event::Started { .. } => Some(Intent::Customer),
        Event::CustomerLinked { .. } => Some(Intent::Subscription),
        Event::TrialExtended { .. }
        | Event::TrialConverted { .. }
        | Event::Paused { .. }
        | Event::Resumed { .. }
        | Event::PlanChanged { .. }
        | Event::QuantityChanged { .. }
        | Event::CancelScheduled { .. }
        | Event::Uncancelled
        | Event::Activated { .. }
        | Event::PaymentMethodSet { .. }
        | Event::ProviderLinked { .. } => Some(Intent::Update),
        Event::Cancelled { .. } | Event::Expired { .. } => Some(Intent::Cancel),
        Event::TrialEnding { .. }
        | Event::PlanChangeScheduled { .. }
        | Event::ScheduledChangeCancelled
        | Event::PeriodRenewed { .. }
        | Event::PaymentSucceeded { .. }
        | Event::PaymentFailed { .. }
        | Event::StandingReported { .. }
        | Event::BecamePastDue
        | Event::MarkedUnpaid { .. }
        | Event::PaymentMethodRemoved { .. } => None,
    }
}

/// The policy. Without a provider it follows the log and queues nothing.
pub struct PaymentsPolicy {
    store: Store,
    provider: Provider,
}

impl PaymentsPolicy {
    /// The policy in one process.
    pub fn runtime(store: &Store, provider: Provider) -> Runtime<Self> {
        Runtime::new(Self { store: store.clone(), provider }, store.clone())
    }
}

impl Policy for PaymentsPolicy {
    const NAME: &'static str = "payments";

    type Decided = Vec<NewDelivery>;

    async fn decide(&self, events: &[Arc<RawEvent>]) -> Result<Vec<NewDelivery>, HandlerError> {
        if self.provider.is_none() {
            return Ok(vec![]);
        }
        let mine: Vec<_> = events.iter().map(Arc::as_ref).filter(|event| event.aggregate_type == Subscription::TYPE).collect();
        let typed = self.store.typed::<Subscription>(&mine).await.map_err(unreadable)?;
        let intents = typed.iter().filter_map(|event| {
            Some(NewDelivery {
                template: answer(&event.event)?.as_str(),
                id: Uuid::new_v5(&event.event_id, format!("{} {}", Self::NAME, event.position).as_bytes()),
                tenant: event.stream.tenant,
                kind: KIND,
                subject_id: event.stream.id,
                intent: event.stream.id,
                position: event.position,
                event: Some(event.event_id),
                at: self.store.clock().now(),
            })
        });
        Ok(intents.collect())
    }

    async fn write(&self, intents: Vec<NewDelivery>, tx: &mut PgConnection) -> Result<(), sqlx::Error> {
        queue::add(tx, &intents).await
    }
}

/// Has a subscription made known to the provider that began before there was one. Once, however often it is asked.
pub async fn introduce(store: &Store, subscription: StreamId) -> Result<(), sqlx::Error> {
    let introduction = NewDelivery {
        id: Uuid::new_v5(&subscription.id, format!("introduce {}", subscription.tenant).as_bytes()),
        tenant: subscription.tenant,
        kind: KIND,
        subject_id: subscription.id,
        template: Intent::Customer.as_str(),
        intent: subscription.id,
        position: 0,
        event: None,
        at: store.clock().now(),
    };
    let mut tx = store.pool().begin().await?;
    queue::add(&mut tx, &[introduction]).await?;
    tx.commit().await
}
