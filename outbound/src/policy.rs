//! The policy that answers events with mails.

use std::sync::Arc;

use bus::group::Member;
use bus::subscription::HandlerError;
use commands::lookup;
use commands::policy::{self, Policy, retry, unreadable};
use cqrs_es::Aggregate as _;
use domain::UserId;
use domain::billing::quota::{self, Quota};
use domain::billing::subscription::{self, Subscription};
use domain::identity::user::{Event, PAYERS, User};
use sqlx::PgConnection;
use store::{RawEvent, Recorded, Store};
use uuid::Uuid;

use crate::mail::Template;
use crate::queue::{self, MAIL, NewDelivery};

/// Which mail an event asks for, and what its link is made of.
fn answer(event: &Event) -> Option<(Template, Uuid)> {
    match event {
        Event::Invited { token, .. } | Event::InvitationResent { token, .. } => Some((Template::Invitation, *token)),
        Event::EmailVerificationRequested { token, .. } => Some((Template::Verification, *token)),
        Event::PasswordResetRequested { token, .. } => Some((Template::Reset, *token)),
        // The mail has no link that is good once.
        Event::LoginAttemptsLimited { .. } => Some((Template::LoginAttempts, Uuid::nil())),
        Event::Registered { .. }
        | Event::InvitationAccepted { .. }
        | Event::InvitationDeclined
        | Event::InvitationRevoked
        | Event::InvitationExpired
        | Event::EmailVerified
        | Event::EmailChanged { .. }
        | Event::ProfileUpdated { .. }
        | Event::RoleChanged { .. }
        | Event::PasswordSet { .. }
        | Event::LoggedIn { .. }
        | Event::LoginFailed { .. }
        | Event::Locked { .. }
        | Event::Unlocked
        | Event::Suspended { .. }
        | Event::Reactivated { .. }
        | Event::Deactivated
        | Event::Deleted { .. }
        | Event::Erased { .. } => None,
    }
}

/// The policy.
pub struct MailPolicy {
    store: Store,
}

impl MailPolicy {
    /// The policy in one process.
    pub fn member(store: &Store) -> Arc<dyn Member> {
        policy::member(Self { store: store.clone() })
    }

    /// All who manage the billing of the tenant are told that the trial ends, of refunds and disputes, and of changes that could not be paid.
    async fn billing(&self, events: &[&RawEvent]) -> Result<Vec<NewDelivery>, HandlerError> {
        let mut mails = Vec::new();
        for event in &self.store.typed::<Subscription>(events).await.map_err(unreadable)? {
            let template = if matches!(event.event, subscription::Event::TrialEnding { .. }) {
                Template::TrialEnding
            } else if matches!(event.event, subscription::Event::PaymentDisputed { .. }) {
                Template::PaymentDisputed
            } else if matches!(event.event, subscription::Event::DisputeClosed { lost: true, .. }) {
                Template::DisputeLost
            } else if matches!(event.event, subscription::Event::PaymentRefunded { .. }) {
                Template::PaymentRefunded
            } else if matches!(event.event, subscription::Event::ChangeDeclined { .. }) {
                Template::ChangeDeclined
            } else {
                continue;
            };
            let payers = self.store.holders(&PAYERS, event.stream.tenant).await.map_err(retry)?;
            mails.extend(payers.into_iter().map(|payer| self.mail(event, payer, template, event.stream.id, &payer.to_string())));
        }
        Ok(mails)
    }

    /// Those who run the tenant are told that much of a quota is used: once of several thresholds that were crossed at once.
    async fn warnings(&self, events: &[&RawEvent]) -> Result<Vec<NewDelivery>, HandlerError> {
        let mut mails = Vec::new();
        let told = |event: &&Recorded<quota::Event>| matches!(event.event, quota::Event::ThresholdCrossed { highest: true, .. });
        for event in self.store.typed::<Quota>(events).await.map_err(unreadable)?.iter().filter(told) {
            let tenant = event.stream.tenant;
            for payer in self.store.holders(&PAYERS, tenant).await.map_err(retry)? {
                let (user, _) = lookup::user(&self.store, tenant, UserId(payer)).await.map_err(retry)?;
                if user.is_some_and(|(_, person)| person.role.is_admin()) {
                    mails.push(self.mail(event, payer, Template::QuotaWarning, event.stream.id, &payer.to_string()));
                }
            }
        }
        Ok(mails)
    }

    fn mail<E>(&self, event: &Recorded<E>, subject_id: Uuid, template: Template, intent: Uuid, which: &str) -> NewDelivery {
        NewDelivery {
            id: Uuid::new_v5(&event.event_id, format!("{} {} {which}", Self::NAME, event.position).as_bytes()),
            tenant: event.stream.tenant,
            kind: MAIL,
            subject_id,
            template: template.as_str(),
            intent,
            position: event.position,
            event: Some(event.event_id),
            at: self.store.clock().now(),
        }
    }
}

impl Policy for MailPolicy {
    const NAME: &'static str = "mail";

    type Decided = Vec<NewDelivery>;

    fn concerns(&self, event: &RawEvent) -> bool {
        [User::TYPE, Subscription::TYPE, Quota::TYPE].contains(&event.aggregate_type.as_str())
    }

    async fn decide(&self, events: &[Arc<RawEvent>]) -> Result<Vec<NewDelivery>, HandlerError> {
        let of = |kind: &'static str| events.iter().map(Arc::as_ref).filter(move |event| event.aggregate_type == kind);
        let users: Vec<_> = of(User::TYPE).collect();
        let users = self.store.typed::<User>(&users).await.map_err(unreadable)?;
        let mails = users.iter().filter_map(|event| {
            let (template, intent) = answer(&event.event)?;
            Some(self.mail(event, event.stream.id, template, intent, "0"))
        });
        let subscriptions: Vec<_> = of(Subscription::TYPE).collect();
        let quotas: Vec<_> = of(Quota::TYPE).collect();
        Ok(mails.chain(self.billing(&subscriptions).await?).chain(self.warnings(&quotas).await?).collect())
    }

    async fn write(&self, mails: &Vec<NewDelivery>, tx: &mut PgConnection) -> Result<(), sqlx::Error> {
        queue::add(tx, mails).await
    }
}
