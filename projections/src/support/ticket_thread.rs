//! What is said in a ticket: the opening, then the comments.

use chrono::{DateTime, Utc};
use domain::support::ticket::{Event, Ticket, Visibility};
use domain::{Personal, TenantId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::json;
use store::Recorded;
use utoipa::ToSchema;
use uuid::Uuid;

use super::ticket::Audience;
use crate::cursor::CursorKey;
use crate::list::{self, Column, Orders, Page, Paging};
use crate::model::ReadModel;
use crate::query::{QueryError, Read};

/// The read model.
pub struct Thread;

/// The key of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Key {
    tenant_id: TenantId,
    ticket_id: Uuid,
    id: Uuid,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = ThreadEntry)]
pub struct Row {
    /// Whose.
    pub tenant_id: TenantId,
    /// The ticket's id.
    pub ticket_id: Uuid,
    /// The comment's id; the ticket's for the opening.
    pub id: Uuid,
    /// Its place in the log.
    #[schema(example = 7)]
    pub position: i64,
    /// What was said; nothing when it was redacted, or once the requester's personal data has been erased.
    #[schema(example = "Invoice 2041 says 99.00 USD, our plan is 29.00.")]
    pub body: Option<String>,
    /// Who may read it.
    pub visibility: Visibility,
    /// Whose ticket it is.
    pub requester_id: UserId,
    /// Who said it, if a person did.
    pub author_id: Option<UserId>,
    /// Whether that was one of those who work on tickets.
    #[schema(example = false)]
    pub by_agent: bool,
    /// When it was said.
    pub created_at: DateTime<Utc>,
    /// When its text was taken out of sight.
    pub redacted_at: Option<DateTime<Utc>>,
}

impl ReadModel for Thread {
    const NAME: &'static str = "ticket_thread_v1";
    const SUBJECT: Option<&'static str> = Some("requester_id");
    type Events = Ticket;
    type Key = Key;
    type Row = Row;

    fn keys(event: &Recorded<Event>) -> Vec<Key> {
        let Some(Entry::Said { id, .. } | Entry::Redacted { id }) = entry(event) else { return vec![] };
        vec![Key { tenant_id: event.stream.tenant, ticket_id: event.stream.id, id }]
    }

    fn apply(key: &Key, row: Option<Row>, event: &Recorded<Event>) -> Option<Row> {
        match entry(event) {
            Some(Entry::Said { id: _, body, visibility, author_id, by_agent }) => Some(Row {
                tenant_id: key.tenant_id,
                ticket_id: key.ticket_id,
                id: key.id,
                position: event.position,
                body: body.known().cloned(),
                visibility,
                requester_id: UserId(body.subject().0),
                author_id,
                by_agent,
                created_at: event.recorded_at,
                redacted_at: None,
            }),
            Some(Entry::Redacted { id: _ }) => row.map(|row| Row { body: None, redacted_at: Some(event.recorded_at), ..row }),
            None => row,
        }
    }

    fn erased(row: Row) -> Row {
        Row { body: None, ..row }
    }
}

/// What an event means for the thread.
enum Entry<'a> {
    Said { id: Uuid, body: &'a Personal<String>, visibility: Visibility, author_id: Option<UserId>, by_agent: bool },
    Redacted { id: Uuid },
}

fn entry(event: &Recorded<Event>) -> Option<Entry<'_>> {
    match &event.event {
        Event::Opened { body, opened_by, requester, .. } => Some(Entry::Said {
            id: event.stream.id,
            body,
            visibility: Visibility::Public,
            author_id: *opened_by,
            by_agent: opened_by.is_some_and(|by| by != *requester),
        }),
        Event::CommentAdded { comment, body, visibility, author, by_agent, first_response: _ } => {
            Some(Entry::Said { id: *comment, body, visibility: *visibility, author_id: *author, by_agent: *by_agent })
        }
        Event::CommentRedacted { comment, visibility: _ } => Some(Entry::Redacted { id: *comment }),
        Event::SubjectChanged { .. }
        | Event::Assigned { .. }
        | Event::Unassigned { .. }
        | Event::PriorityChanged { .. }
        | Event::StatusChanged { .. }
        | Event::Resolved { .. }
        | Event::Closed
        | Event::Reopened
        | Event::Deleted { .. }
        | Event::Linked { .. }
        | Event::Unlinked { .. }
        | Event::Tagged { .. }
        | Event::Untagged { .. }
        | Event::Attached { .. }
        | Event::Detached { .. }
        | Event::FollowerAdded { .. }
        | Event::FollowerRemoved { .. } => None,
    }
}

/// In which order: that of the log.
pub const ORDERS: Orders =
    Orders { columns: &[Column { name: "created_at", sql: "position", kind: "bigint" }], tie: ("position", "bigint") };

/// One page of what is said in a ticket, as far as the audience may read it. Nothing at all when there is no such ticket for them.
pub async fn list(
    read: &mut Read,
    cursors: &CursorKey,
    audience: Audience,
    ticket: Uuid,
    paging: &Paging,
) -> Result<Page<Row>, QueryError> {
    let mut query = list::select(Thread::NAME, paging);
    query.push(" and ticket_id = ").bind(ticket);
    if !audience.sees_internal() {
        query.push(" and visibility = 'public'");
    }
    if let Some(user) = audience.only() {
        query.push(" and requester_id = ").bind(user.0);
    }
    let identity = json!([Thread::NAME, ticket, audience.only(), audience.sees_internal()]).to_string();
    let page: Page<Row> = list::page(read, cursors, query, &identity, paging).await?;
    audience.tell_only_what_concerns(read, !page.rows.is_empty());
    Ok(page)
}
