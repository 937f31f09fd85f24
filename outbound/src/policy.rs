//! The policy that answers events with mails.

use std::sync::Arc;
use std::time::Duration;

use bus::subscription::{Checkpoint, Handler, HandlerError};
use cqrs_es::Aggregate as _;
use domain::identity::user::{Event, User};
use store::load::LoadError;
use store::{Hash, RawEvent, Recorded, Store, lease};
use uuid::Uuid;

use crate::mail::Template;

/// Its name: part of the identity of everything that it has decided.
pub const NAME: &str = "mail";
/// How long one that died keeps others waiting.
const LEASE: Duration = Duration::from_secs(10);

/// Which mail an event asks for, and what its link is made of.
fn answer(event: &Event) -> Option<(Template, Uuid)> {
    match event {
        Event::Invited { token, .. } | Event::InvitationResent { token, .. } => Some((Template::Invitation, *token)),
        Event::EmailVerificationRequested { token, .. } => Some((Template::Verification, *token)),
        Event::PasswordResetRequested { token, .. } => Some((Template::Reset, *token)),
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
        | Event::Reactivated
        | Event::Deactivated
        | Event::Deleted
        | Event::Erased { .. } => None,
    }
}

/// The policy in one process.
pub struct MailPolicy {
    store: Store,
    owner: Uuid,
    epoch: i64,
}

impl MailPolicy {
    /// One that answers the log of `store`.
    pub fn new(store: Store) -> Self {
        let owner = store.fresh_id();
        Self { store, owner, epoch: 0 }
    }

    async fn decide(&self, events: &[Arc<RawEvent>]) -> Result<(), HandlerError> {
        let (Some(first), Some(last)) = (events.first(), events.last()) else { return Ok(()) };
        let mine: Vec<&RawEvent> = events.iter().map(Arc::as_ref).filter(|event| event.aggregate_type == User::TYPE).collect();
        let typed = self.store.typed::<User>(&mine).await.map_err(unreadable)?;
        let now = self.store.clock().now();
        let mut tx = self.store.pool().begin().await.map_err(retry)?;
        for (event, (template, intent)) in typed.iter().filter_map(|event| answer(&event.event).map(|answer| (event, answer))) {
            sqlx::query(
                "insert into ops.deliveries (id, tenant_id, kind, subject_id, template, intent, position, next_attempt_at, created_at)
                 values ($1, $2, 'mail', $3, $4, $5, $6, $7, $7) on conflict (id) do nothing",
            )
            .bind(identity(event))
            .bind(event.stream.tenant.0)
            .bind(event.stream.id)
            .bind(template.as_str())
            .bind(intent)
            .bind(event.position)
            .bind(now)
            .execute(&mut *tx)
            .await
            .map_err(retry)?;
        }
        let moved = sqlx::query(
            "update ops.policies set position = $3, log_hash = $4, epoch = $5 where name = $1 and position = $2 and epoch <= $5",
        )
        .bind(NAME)
        .bind(first.position - 1)
        .bind(last.position)
        .bind(last.log_hash.0)
        .bind(self.epoch)
        .execute(&mut *tx)
        .await
        .map_err(retry)?;
        if moved.rows_affected() != 1 {
            return Err(HandlerError::Retry(format!("{NAME} is no longer at {} in this process's hands", first.position - 1)));
        }
        tx.commit().await.map_err(retry)
    }
}

/// The identity of the one delivery that answers an event.
fn identity(event: &Recorded<Event>) -> Uuid {
    Uuid::new_v5(&event.event_id, format!("{NAME} {} 0", event.position).as_bytes())
}

fn retry(error: impl std::fmt::Display) -> HandlerError {
    HandlerError::Retry(error.to_string())
}

impl Handler for MailPolicy {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn begin(&mut self) -> Result<Option<Checkpoint>, HandlerError> {
        let pool = self.store.pool();
        let name = format!("policy/{NAME}");
        let Some(lease) = lease::acquire(pool, &name, self.owner, LEASE).await.map_err(retry)? else { return Ok(None) };
        self.epoch = lease.epoch;
        // Its row was made with the table, at the log's end then: what happened before is not answered. It never goes back either.
        let (position, log_hash): (i64, [u8; 32]) = sqlx::query_as("select position, log_hash from ops.policies where name = $1")
            .bind(NAME)
            .fetch_one(pool)
            .await
            .map_err(retry)?;
        Ok(Some(Checkpoint { position, log_hash: Hash(log_hash) }))
    }

    async fn handle(&mut self, events: &[Arc<RawEvent>]) -> Result<(), HandlerError> {
        self.decide(events).await
    }

    async fn release(&mut self) {
        let _ = lease::release(self.store.pool(), &format!("policy/{NAME}"), self.owner).await;
    }
}

/// How far the policy has come.
pub async fn position(store: &Store) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar("select position from ops.policies where name = $1").bind(NAME).fetch_optional(store.pool()).await
}

/// A failure to read events, as the runtime is told of it.
fn unreadable(error: LoadError) -> HandlerError {
    match error {
        unknown @ LoadError::UnknownEvent { .. } => HandlerError::Unknown(unknown.to_string()),
        other @ (LoadError::Unavailable(_) | LoadError::Corrupt { .. }) => HandlerError::Retry(other.to_string()),
    }
}
