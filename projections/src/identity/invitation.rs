//! Invitations: who was asked to become a user, and what they answered.

use chrono::{DateTime, Utc};
use domain::identity::user::{Event, User};
use domain::{Role, TenantId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::json;
use store::Recorded;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::cursor::CursorKey;
use crate::list::{self, Column, Orders, Page, Paging};
use crate::model::{ReadModel, StreamKey};
use crate::query::{QueryError, Read};

/// The read model.
pub struct Invitations;

/// What became of an invitation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Nothing yet.
    Pending,
    /// They have become a user.
    Accepted,
    /// They do not want to.
    Declined,
    /// They are no longer wanted.
    Revoked,
    /// They did not answer in time.
    Expired,
}

impl Answer {
    fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Accepted => "accepted",
            Self::Declined => "declined",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
        }
    }
}

/// An invitation as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Invitation)]
pub struct Row {
    /// Whose.
    pub tenant_id: TenantId,
    /// The user that they are, or would have become.
    pub id: Uuid,
    /// Where it was sent to; nothing once their personal data has been erased.
    #[schema(example = "grace@example.com")]
    pub email: Option<String>,
    /// What they may, or would have been allowed.
    pub role: Role,
    /// What became of it.
    pub answer: Answer,
    /// Who asked them, if a person did.
    pub invited_by: Option<UserId>,
    /// Until when it can be accepted.
    pub expires_at: DateTime<Utc>,
    /// How often it was sent.
    #[schema(example = 1)]
    pub sent: i64,
    /// When they were first asked.
    pub created_at: DateTime<Utc>,
    /// When it was answered, or ended otherwise.
    pub answered_at: Option<DateTime<Utc>>,
}

impl ReadModel for Invitations {
    const NAME: &'static str = "invitations_v1";
    const SUBJECT: Option<&'static str> = Some("id");
    type Events = User;
    type Key = StreamKey;
    type Row = Row;

    fn keys(event: &Recorded<Event>) -> Vec<StreamKey> {
        if answer(&event.event).is_some() { StreamKey::of(event) } else { vec![] }
    }

    fn apply(key: &StreamKey, row: Option<Row>, event: &Recorded<Event>) -> Option<Row> {
        let at = event.recorded_at;
        if let Event::Invited { email, role, expires_at, invited_by, .. } = &event.event {
            return Some(Row {
                tenant_id: key.tenant_id,
                id: key.id,
                email: email.known().cloned(),
                role: *role,
                answer: Answer::Pending,
                invited_by: *invited_by,
                expires_at: *expires_at,
                sent: 1,
                created_at: at,
                answered_at: None,
            });
        }
        let row = row?;
        if let Event::InvitationResent { expires_at, .. } = &event.event {
            return Some(Row { expires_at: *expires_at, sent: row.sent + 1, ..row });
        }
        Some(Row { answer: answer(&event.event)?, answered_at: Some(at), ..row })
    }

    fn erased(row: Row) -> Row {
        Row { email: None, ..row }
    }
}

/// What an event makes of an invitation, if it has to do with one.
fn answer(event: &Event) -> Option<Answer> {
    match event {
        Event::Invited { .. } | Event::InvitationResent { .. } => Some(Answer::Pending),
        Event::InvitationAccepted { .. } => Some(Answer::Accepted),
        Event::InvitationDeclined => Some(Answer::Declined),
        Event::InvitationRevoked => Some(Answer::Revoked),
        Event::InvitationExpired => Some(Answer::Expired),
        Event::Registered { .. }
        | Event::EmailVerificationRequested { .. }
        | Event::EmailVerified
        | Event::EmailChanged { .. }
        | Event::ProfileUpdated { .. }
        | Event::RoleChanged { .. }
        | Event::PasswordSet { .. }
        | Event::PasswordResetRequested { .. }
        | Event::LoggedIn { .. }
        | Event::LoginFailed { .. }
        | Event::LoginAttemptsLimited { .. }
        | Event::Locked { .. }
        | Event::Unlocked
        | Event::Suspended { .. }
        | Event::Reactivated { .. }
        | Event::Deactivated
        | Event::Deleted { .. }
        | Event::Erased { .. } => None,
    }
}

/// In which order.
pub const ORDERS: Orders =
    Orders { columns: &[Column { name: "created_at", sql: "created_at", kind: "timestamptz" }], tie: ("id", "uuid") };

/// One page of the invitations that the view may see, all or those with this answer.
pub async fn list(read: &mut Read, cursors: &CursorKey, answer: Option<Answer>, paging: &Paging) -> Result<Page<Row>, QueryError> {
    let mut query = list::select(Invitations::NAME, paging);
    if let Some(answer) = answer {
        query.push(" and answer = ").bind(answer.as_str());
    }
    list::page(read, cursors, query, &json!([Invitations::NAME, answer]).to_string(), paging).await
}
