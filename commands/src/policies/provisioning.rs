//! A new tenant gets what it needs: the subscription to the plan that it was made for, its owner, and then it is provisioned.

use bus::subscription::HandlerError;
use cqrs_es::Aggregate as _;
use domain::billing::subscription::{StartSubscription, Status, Subscription};
use domain::identity::tenant::{CompleteProvisioning, Event, FollowSubscription, Tenant};
use domain::identity::user::{RegisterUser, User};
use domain::text::{DisplayName, Email, PlanCode};
use domain::{Role, StreamId, TenantId};
use store::{RawEvent, Store};
use uuid::Uuid;

use super::tenancy;
use crate::policy::{Answer, Reaction, unreadable};

/// The policy.
pub struct Provisioning;

/// The subscription that a tenant begins with.
fn first_subscription(tenant: TenantId) -> StreamId {
    StreamId::new(tenant, Uuid::new_v5(&tenant.0, b"subscription"))
}

fn subscribe(tenant: TenantId, plan: &str) -> Option<Answer> {
    let start = StartSubscription {
        id: None,
        plan: PlanCode::parse(plan).ok()?,
        trial_days: None,
        billing: domain::billing::period::Billing::default(),
        time_zone: chrono_tz::Tz::UTC,
        currency: None,
        quantity: 1,
    };
    Some(Answer::new::<Subscription>(first_subscription(tenant), start))
}

fn register(tenant: TenantId, owner: &domain::identity::tenant::Owner) -> Option<Answer> {
    // Who was erased meanwhile is nobody's owner.
    let (email, name) = (Email::parse(owner.email.known()?).ok()?, DisplayName::parse(owner.name.known()?).ok()?);
    let owner_id = StreamId::new(tenant, owner.subject.0);
    let user = RegisterUser { id: None, email, name, role: Role::OrgAdmin, email_verified: false, welcome: true };
    Some(Answer::new::<User>(owner_id, user))
}

impl Reaction for Provisioning {
    const NAME: &'static str = "provisioning";
    const TYPES: &'static [&'static str] = &[Tenant::TYPE];
    const STEPS: usize = 4;

    async fn step(&self, store: &Store, event: &RawEvent, n: usize) -> Result<Option<Answer>, HandlerError> {
        if event.event_type != "tenant.provisioned" {
            return Ok(None);
        }
        let typed = store.typed::<Tenant>(&[event]).await.map_err(unreadable)?;
        let Some(Event::Provisioned { plan, owner, .. }) = typed.first().map(|event| &event.event) else { return Ok(None) };
        let tenant = TenantId(event.tenant_id);
        if n == 0 {
            return Ok(plan.as_ref().and_then(|plan| subscribe(tenant, plan)));
        }
        let subscription = store.current::<Subscription>(first_subscription(tenant)).await.map_err(unreadable)?;
        let status = subscription.state.details().map(|details| details.status);
        // Without the subscription that it was made for it would have no limits at all: nobody is let in, and somebody has to look at the refusal.
        if plan.is_some() && status.is_none() {
            return Ok(None);
        }
        if n == 1 {
            return Ok(owner.as_ref().and_then(|owner| register(tenant, owner)));
        }
        let me = StreamId::new(tenant, tenant.0);
        // It may have moved on already, if this policy was away for long.
        if n == 2 {
            return Ok(Some(Answer::new::<Tenant>(me, CompleteProvisioning { trialing: status == Some(Status::Trialing) })));
        }
        Ok(status.map(tenancy::standing).map(|standing| Answer::new::<Tenant>(me, FollowSubscription { standing })))
    }
}
