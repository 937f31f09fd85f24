//! How many tickets were opened, resolved and so on, per tenant and day (UTC).

use chrono::NaiveDate;
use domain::TenantId;
use domain::support::ticket::{Event, Ticket, Visibility};
use serde::{Deserialize, Serialize};
use serde_json::json;
use store::Recorded;
use utoipa::ToSchema;

use super::ticket::Audience;
use crate::cursor::CursorKey;
use crate::list::{self, Column, Orders, Page, Paging};
use crate::model::{Partition, ReadModel};
use crate::query::{QueryError, Read};

/// The read model.
pub struct Statistics;

/// The key of a row.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Key {
    tenant_id: TenantId,
    day: NaiveDate,
}

/// What happened on one day. Days on which nothing did have no row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = TicketDay)]
pub struct Row {
    /// Whose.
    pub tenant_id: TenantId,
    /// The day, in UTC.
    pub day: NaiveDate,
    /// Tickets opened.
    #[schema(example = 12)]
    pub opened: i64,
    /// Tickets that somebody who works on tickets first answered.
    #[schema(example = 11)]
    pub first_responses: i64,
    /// Tickets resolved, again ones too.
    #[schema(example = 9)]
    pub resolved: i64,
    /// Tickets reopened.
    #[schema(example = 1)]
    pub reopened: i64,
    /// Tickets closed.
    #[schema(example = 8)]
    pub closed: i64,
    /// Tickets deleted as spam.
    #[schema(example = 1)]
    pub deleted: i64,
    /// Public comments.
    #[schema(example = 31)]
    pub public_comments: i64,
    /// Internal comments; only for those who work on tickets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 5)]
    pub internal_comments: Option<i64>,
}

impl ReadModel for Statistics {
    const NAME: &'static str = "ticket_statistics_v1";
    const PARTITION: Partition = Partition::Tenant;
    type Events = Ticket;
    type Key = Key;
    type Row = Row;

    fn keys(event: &Recorded<Event>) -> Vec<Key> {
        let key = Key { tenant_id: event.stream.tenant, day: event.recorded_at.date_naive() };
        if count(&mut blank(&key), &event.event) { vec![key] } else { vec![] }
    }

    fn apply(key: &Key, row: Option<Row>, event: &Recorded<Event>) -> Option<Row> {
        let mut row = row.unwrap_or_else(|| blank(key));
        count(&mut row, &event.event);
        Some(row)
    }
}

fn blank(key: &Key) -> Row {
    Row {
        tenant_id: key.tenant_id,
        day: key.day,
        opened: 0,
        first_responses: 0,
        resolved: 0,
        reopened: 0,
        closed: 0,
        deleted: 0,
        public_comments: 0,
        internal_comments: Some(0),
    }
}

/// Counts the event, if it is one of those that are.
fn count(row: &mut Row, event: &Event) -> bool {
    match event {
        Event::Opened { .. } => row.opened += 1,
        Event::CommentAdded { visibility: Visibility::Internal, .. } => {
            row.internal_comments = row.internal_comments.map(|count| count + 1);
        }
        Event::CommentAdded { first_response, .. } => {
            row.public_comments += 1;
            row.first_responses += i64::from(*first_response);
        }
        Event::Resolved { .. } => row.resolved += 1,
        Event::Reopened => row.reopened += 1,
        Event::Closed => row.closed += 1,
        Event::Deleted { .. } => row.deleted += 1,
        Event::SubjectChanged { .. }
        | Event::CommentRedacted { .. }
        | Event::Assigned { .. }
        | Event::Unassigned { .. }
        | Event::PriorityChanged { .. }
        | Event::StatusChanged { .. }
        | Event::Linked { .. }
        | Event::Unlinked { .. }
        | Event::Tagged { .. }
        | Event::Untagged { .. }
        | Event::Attached { .. }
        | Event::Detached { .. }
        | Event::FollowerAdded { .. }
        | Event::FollowerRemoved { .. } => return false,
    }
    true
}

/// In which order: by day.
pub const ORDERS: Orders = Orders { columns: &[Column { name: "day", sql: "day", kind: "date" }], tie: ("day", "date") };

/// One page of the tenant's days, from one day to another, both included.
pub async fn list(
    read: &mut Read,
    cursors: &CursorKey,
    audience: Audience,
    from: Option<NaiveDate>,
    to: Option<NaiveDate>,
    paging: &Paging,
) -> Result<Page<Row>, QueryError> {
    let mut query = list::select(Statistics::NAME, paging);
    if let Some(from) = from {
        query.push(" and day >= ").bind(from);
    }
    if let Some(to) = to {
        query.push(" and day <= ").bind(to);
    }
    if !audience.sees_internal() {
        // A day with nothing but internal comments is one on which nothing happened.
        query.push(" and opened + first_responses + resolved + reopened + closed + deleted + public_comments > 0");
    }
    let identity = json!([Statistics::NAME, from, to, audience.sees_internal()]).to_string();
    let page = list::page::<Row>(read, cursors, query, &identity, paging).await?;
    if audience.sees_internal() { Ok(page) } else { page.map(|row| Row { internal_comments: None, ..row }) }
}
