//! A tenant stands where its subscription stands; and a tenant that ends its contract ends what it pays for.

use bus::subscription::HandlerError;
use cqrs_es::Aggregate as _;
use domain::billing::subscription::{self, BASE, CancelSubscription, LIVE, Status, Subscription, When};
use domain::identity::tenant::{Event, FollowSubscription, Standing, Tenant};
use domain::{StreamId, TenantId};
use store::{RawEvent, Store};

use crate::policy::{Answer, Reaction, retry, unreadable};

/// The policy.
pub struct Tenancy;

/// What a subscription's status means to its tenant.
pub(super) fn standing(status: Status) -> Standing {
    match status {
        Status::Trialing => Standing::Trialing,
        Status::Active | Status::CancelScheduled => Standing::Active,
        Status::PastDue => Standing::PastDue,
        Status::Unpaid | Status::Paused | Status::Expired => Standing::Stopped,
        Status::Cancelled => Standing::Cancelled,
    }
}

/// The status that an event of a subscription brings about, if it does.
fn becomes(event: &subscription::Event) -> Option<Status> {
    use subscription::Event as E;
    match event {
        E::Started { trial: Some(_), .. } => Some(Status::Trialing),
        E::Started { trial: None, period, .. } => period.map(|_| Status::Active),
        E::TrialConverted { .. } | E::Activated { .. } | E::Resumed { .. } => Some(Status::Active),
        E::BecamePastDue => Some(Status::PastDue),
        E::MarkedUnpaid { .. } => Some(Status::Unpaid),
        E::Paused { .. } => Some(Status::Paused),
        E::Expired { .. } => Some(Status::Expired),
        E::Cancelled { .. } => Some(Status::Cancelled),
        E::TrialExtended { .. }
        | E::TrialEnding { .. }
        | E::PlanChanged { .. }
        | E::LimitsHeld { .. }
        | E::LimitsReleased { .. }
        | E::ChangeDeclined { .. }
        | E::PlanChangeScheduled { .. }
        | E::ScheduledChangeCancelled
        | E::QuantityChanged { .. }
        | E::PeriodRenewed { .. }
        | E::CancelScheduled { .. }
        | E::Uncancelled
        | E::PaymentSucceeded { .. }
        | E::PaymentFailed { .. }
        | E::StandingReported { .. }
        | E::PaymentRefunded { .. }
        | E::PaymentDisputed { .. }
        | E::DisputeClosed { .. }
        | E::PaymentMethodSet { .. }
        | E::PaymentMethodRemoved { .. }
        | E::CustomerLinked { .. }
        | E::ProviderLinked { .. } => None,
    }
}

impl Reaction for Tenancy {
    const NAME: &'static str = "tenancy";
    const TYPES: &'static [&'static str] = &[Subscription::TYPE, Tenant::TYPE];
    const STEPS: usize = 1;

    async fn step(&self, store: &Store, event: &RawEvent, _: usize) -> Result<Option<Answer>, HandlerError> {
        let tenant = TenantId(event.tenant_id);
        if event.aggregate_type == Subscription::TYPE {
            let typed = store.typed::<Subscription>(&[event]).await.map_err(unreadable)?;
            let standing = typed.first().and_then(|event| becomes(&event.event)).map(standing);
            return Ok(standing.map(|standing| Answer::new::<Tenant>(StreamId::new(tenant, tenant.0), FollowSubscription { standing })));
        }
        let typed = store.typed::<Tenant>(&[event]).await.map_err(unreadable)?;
        let Some(recorded) = typed.first() else { return Ok(None) };
        let ended = matches!(recorded.event, Event::Cancelled { with_subscription: false, .. });
        // Brought back by somebody: what became of the subscription meanwhile counts from now on.
        let back = matches!(recorded.event, Event::Reactivated) && recorded.actor.name() != Self::NAME;
        if !ended && !back {
            return Ok(None);
        }
        let Some(live) = store.holder(&LIVE, tenant, BASE).await.map_err(retry)? else { return Ok(None) };
        if ended {
            return Ok(Some(Answer::new::<Subscription>(live, CancelSubscription { when: When::Now })));
        }
        let subscription = store.current::<Subscription>(live).await.map_err(unreadable)?;
        let standing = subscription.state.details().map(|details| standing(details.status));
        Ok(standing.map(|standing| Answer::new::<Tenant>(StreamId::new(tenant, tenant.0), FollowSubscription { standing })))
    }
}
