//! The policy that answers events of subscriptions, tenants and quotas with what a provider has to be told.

use std::collections::BTreeSet;
use std::sync::Arc;

use bus::group::Member;
use bus::subscription::HandlerError;
use commands::policy::{self, Policy, retry, unreadable};
use cqrs_es::Aggregate as _;
use domain::billing::quota::{self, PricedSegment, Quota};
use domain::billing::subscription::{Event, Subscription};
use domain::identity::tenant::{self, Tenant};
use domain::{StreamId, TenantId};
use outbound::queue::{self, NewDelivery};
use sqlx::PgConnection;
use store::{RawEvent, Recorded, Store, database};
use uuid::Uuid;

use crate::channel::{Intent, KIND};
use crate::provider::Provider;

/// What a provider has to be told of an event, if anything.
pub fn answer(event: &Event) -> Option<Intent> {
    match event {
        Event::Started { .. } => Some(Intent::Customer),
        Event::CustomerLinked { .. } => Some(Intent::Subscription),
        Event::TrialExtended { .. }
        | Event::TrialConverted { .. }
        | Event::Paused { .. }
        | Event::Resumed { .. }
        | Event::PlanChanged { .. }
        | Event::PlanChangeScheduled { .. }
        | Event::ScheduledChangeCancelled
        | Event::QuantityChanged { .. }
        | Event::ChangeDeclined { .. }
        | Event::CancelScheduled { .. }
        | Event::Uncancelled
        | Event::Activated { .. }
        | Event::PaymentMethodSet { .. }
        | Event::ProviderLinked { .. } => Some(Intent::Update),
        Event::Cancelled { .. } | Event::Expired { .. } => Some(Intent::Cancel),
        Event::TrialEnding { .. }
        | Event::PeriodRenewed { .. }
        | Event::PaymentSucceeded { .. }
        | Event::PaymentFailed { .. }
        | Event::StandingReported { .. }
        | Event::PaymentRefunded { .. }
        | Event::PaymentDisputed { .. }
        | Event::DisputeClosed { .. }
        | Event::LimitsHeld { .. }
        | Event::LimitsReleased { .. }
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
    pub fn member(store: &Store, provider: Provider) -> Arc<dyn Member> {
        policy::member(Self { store: store.clone(), provider })
    }

    /// A tenant's subscriptions, in the order in which they began. Each has a customer at the provider, or is about to.
    async fn subscriptions(&self, tenant: TenantId) -> Result<Vec<Uuid>, sqlx::Error> {
        sqlx::query_scalar(
            "select split_part(aggregate_id, '/', 2)::uuid from events where tenant_id = $1 and event_type = 'subscription.started' order by position",
        )
        .bind(tenant.0)
        .fetch_all(self.store.pool())
        .await
    }

    fn intent<E>(&self, event: &Recorded<E>, intent: Intent, subscription: Uuid, which: &str) -> NewDelivery {
        NewDelivery {
            template: intent.as_str(),
            id: Uuid::new_v5(&event.event_id, format!("{} {}{which}", Self::NAME, event.position).as_bytes()),
            tenant: event.stream.tenant,
            kind: KIND,
            subject_id: subscription,
            intent: subscription,
            position: event.position,
            event: Some(event.event_id),
            at: self.store.clock().now(),
        }
    }
}

impl Policy for PaymentsPolicy {
    const NAME: &'static str = "payments";

    type Decided = Vec<NewDelivery>;

    fn concerns(&self, event: &RawEvent) -> bool {
        self.provider.is_some() && [Subscription::TYPE, Tenant::TYPE, Quota::TYPE].contains(&event.aggregate_type.as_str())
    }

    async fn decide(&self, events: &[Arc<RawEvent>]) -> Result<Vec<NewDelivery>, HandlerError> {
        let of = |kind: &'static str| events.iter().map(Arc::as_ref).filter(move |event| event.aggregate_type == kind).collect::<Vec<_>>();
        let subscriptions = self.store.typed::<Subscription>(&of(Subscription::TYPE)).await.map_err(unreadable)?;
        let told = subscriptions.iter().filter_map(|event| Some(self.intent(event, answer(&event.event)?, event.stream.id, "")));
        let mut told: Vec<_> = told.collect();
        for event in self.store.typed::<Tenant>(&of(Tenant::TYPE)).await.map_err(unreadable)? {
            let intent = if matches!(event.event, tenant::Event::Renamed { .. }) {
                Intent::Rename
            } else if matches!(event.event, tenant::Event::Deleted) {
                Intent::Forget
            } else {
                continue;
            };
            let subscriptions = self.subscriptions(event.stream.tenant).await.map_err(retry)?;
            told.extend(
                subscriptions.into_iter().map(|subscription| self.intent(&event, intent, subscription, &format!(" {subscription}"))),
            );
        }
        for event in self.store.typed::<Quota>(&of(Quota::TYPE)).await.map_err(unreadable)? {
            let quota::Event::PeriodClosed { amount, segments, .. } = &event.event else { continue };
            let owing = |segment: &&PricedSegment| segment.amount.is_some_and(|amount| amount.amount > 0);
            let mut owe: BTreeSet<Uuid> = segments.iter().filter(owing).filter_map(|segment| segment.subscription).collect();
            // Months that were closed before segments were told: of several subscriptions the last one pays.
            if segments.is_empty() && amount.is_some_and(|amount| amount.amount > 0) {
                owe.extend(self.subscriptions(event.stream.tenant).await.map_err(retry)?.pop());
            }
            told.extend(
                owe.into_iter().map(|subscription| self.intent(&event, Intent::Overage, subscription, &format!(" {subscription}"))),
            );
        }
        told.sort_by_key(|intent| intent.position);
        Ok(told)
    }

    async fn write(&self, intents: &Vec<NewDelivery>, tx: &mut PgConnection) -> Result<(), sqlx::Error> {
        queue::add(tx, intents).await
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
    let mut tx = database::begin(store.pool()).await?;
    queue::add(&mut tx, &[introduction]).await?;
    tx.commit().await
}
