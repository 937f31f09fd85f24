//! Tickets: by id, listed by status, priority, channel, assignee, requester, tag, number, time and what is said in them.

use chrono::{DateTime, Utc};
use domain::support::ticket::{Channel, Event, Priority, Relation, Status, Ticket, Visibility};
use domain::{Actor, TenantId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::json;
use store::Recorded;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::cursor::CursorKey;
use crate::list::{self, Column, Orders, Page, Paging};
use crate::model::{ReadModel, StreamKey};
use crate::query::{QueryError, Read};
use crate::row::Doc;
use crate::sql::Sql;

/// The read model.
pub struct Tickets;

/// A ticket as it is shown. What is internal is empty for all but those who work on tickets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Ticket)]
pub struct Row {
    /// Whose.
    pub tenant_id: TenantId,
    /// Its id.
    pub id: Uuid,
    /// Its version, as in the `ETag`: one for each event, internal ones too.
    #[schema(example = 7)]
    pub version: i64,
    /// Its number among the tenant's tickets, from 1 without a gap.
    #[schema(example = 42)]
    pub number: i64,
    /// What it is about; nothing once the requester's personal data has been erased.
    #[schema(example = "The invoice shows the wrong amount")]
    pub subject: Option<String>,
    /// Where it stands.
    pub status: Status,
    /// How soon it matters.
    pub priority: Priority,
    /// How it came in.
    pub channel: Channel,
    /// Who needs help.
    pub requester_id: UserId,
    /// Who works on it.
    pub assignee_id: Option<UserId>,
    /// What it is filed under. Internal.
    #[schema(example = json!(["billing"]))]
    pub tags: Vec<String>,
    /// Who wants to know how it goes on. Internal.
    pub followers: Vec<UserId>,
    /// The tickets that it has to do with. Internal.
    pub links: Vec<Link>,
    /// The files that belong to it.
    pub attachments: Vec<Attachment>,
    /// How many public comments it has.
    #[schema(example = 3)]
    pub public_comments: i64,
    /// How many internal comments it has. Internal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 1)]
    pub internal_comments: Option<i64>,
    /// When one of those who work on tickets first said something public.
    pub first_response_at: Option<DateTime<Utc>>,
    /// When it was resolved, unless it was reopened since.
    pub resolved_at: Option<DateTime<Utc>>,
    /// When it was opened.
    pub created_at: DateTime<Utc>,
    /// When anything of what the reader may see last changed.
    pub updated_at: DateTime<Utc>,
    /// When anything public last changed. Internal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_updated_at: Option<DateTime<Utc>>,
}

/// What a ticket has to do with another one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Link {
    /// The other one.
    pub ticket: Uuid,
    /// What this one is to it.
    pub relation: Relation,
}

/// A file that belongs to a ticket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Attachment {
    /// Its id.
    pub id: Uuid,
    /// Its name; nothing once the requester's personal data has been erased.
    #[schema(example = "invoice-2041.pdf")]
    pub name: Option<String>,
    /// Its size in bytes.
    #[schema(example = 48_213)]
    pub size: u64,
    /// The SHA-256 of its content.
    #[schema(example = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")]
    pub sha256: String,
    /// Who may see it.
    pub visibility: Visibility,
    /// Who attached it, if a person did.
    pub by: Option<UserId>,
    /// When.
    pub at: DateTime<Utc>,
}

impl ReadModel for Tickets {
    const NAME: &'static str = "tickets_v1";
    const SUBJECT: Option<&'static str> = Some("requester_id");
    type Events = Ticket;
    type Key = StreamKey;
    type Row = Row;

    fn keys(event: &Recorded<Event>) -> Vec<StreamKey> {
        StreamKey::of(event)
    }

    fn apply(key: &StreamKey, row: Option<Row>, event: &Recorded<Event>) -> Option<Row> {
        let at = event.recorded_at;
        let mut row = match (&event.event, row) {
            (Event::Opened { number, subject, body: _, priority, channel, requester, opened_by: _, tags }, _) => Row {
                tenant_id: key.tenant_id,
                id: key.id,
                version: 0,
                number: *number,
                subject: subject.known().cloned(),
                status: Status::New,
                priority: *priority,
                channel: *channel,
                requester_id: *requester,
                assignee_id: None,
                tags: tags.clone(),
                followers: vec![],
                links: vec![],
                attachments: vec![],
                public_comments: 0,
                internal_comments: Some(0),
                first_response_at: None,
                resolved_at: None,
                created_at: at,
                updated_at: at,
                public_updated_at: Some(at),
            },
            (_, row) => row?,
        };
        row.version = event.version;
        row.updated_at = at;
        if evolve(&mut row, &event.event, at) == Visibility::Public {
            row.public_updated_at = Some(at);
        }
        Some(row)
    }

    fn erased(row: Row) -> Row {
        let attachments = row.attachments.into_iter().map(|attachment| Attachment { name: None, ..attachment }).collect();
        Row { subject: None, attachments, ..row }
    }
}

/// Changes the row, and says who may see the change.
fn evolve(row: &mut Row, event: &Event, at: DateTime<Utc>) -> Visibility {
    use Visibility::{Internal, Public};
    match event {
        Event::Opened { .. } => {}
        Event::SubjectChanged { subject } => row.subject = subject.known().cloned(),
        Event::CommentAdded { visibility: Internal, .. } => {
            row.internal_comments = row.internal_comments.map(|count| count + 1);
            return Internal;
        }
        Event::CommentAdded { first_response, .. } => {
            row.public_comments += 1;
            if *first_response {
                row.first_response_at = Some(at);
            }
        }
        Event::CommentRedacted { comment: _, visibility } => return *visibility,
        Event::Assigned { from: _, to } => row.assignee_id = Some(*to),
        Event::Unassigned { from: _ } => row.assignee_id = None,
        Event::PriorityChanged { from: _, to } => row.priority = *to,
        Event::StatusChanged { from: _, to } => row.status = *to,
        Event::Resolved { at } => {
            row.status = Status::Resolved;
            row.resolved_at = Some(*at);
        }
        Event::Closed => row.status = Status::Closed,
        Event::Reopened => {
            row.status = Status::Open;
            row.resolved_at = None;
        }
        Event::Deleted { .. } => row.status = Status::Deleted,
        Event::Linked { ticket, relation } => {
            row.links.retain(|link| link.ticket != *ticket);
            row.links.push(Link { ticket: *ticket, relation: *relation });
            return Internal;
        }
        Event::Unlinked { ticket } => {
            row.links.retain(|link| link.ticket != *ticket);
            return Internal;
        }
        Event::Tagged { tag } => {
            row.tags.push(tag.clone());
            return Internal;
        }
        Event::Untagged { tag } => {
            row.tags.retain(|has| has != tag);
            return Internal;
        }
        Event::Attached { attachment, name, size, sha256, visibility, by } => {
            let name = name.known().cloned();
            row.attachments.push(Attachment {
                id: *attachment,
                name,
                size: *size,
                sha256: sha256.clone(),
                visibility: *visibility,
                by: *by,
                at,
            });
            return *visibility;
        }
        Event::Detached { attachment, visibility, .. } => {
            row.attachments.retain(|has| has.id != *attachment);
            return *visibility;
        }
        Event::FollowerAdded { user } => {
            row.followers.push(*user);
            return Internal;
        }
        Event::FollowerRemoved { user } => {
            row.followers.retain(|has| has != user);
            return Internal;
        }
    }
    Public
}

impl Row {
    /// The row as the audience may see it.
    fn seen_by(self, audience: Audience) -> Self {
        if audience.sees_internal() {
            return self;
        }
        Self {
            tags: vec![],
            followers: vec![],
            links: vec![],
            attachments: self.attachments.into_iter().filter(|attachment| attachment.visibility == Visibility::Public).collect(),
            internal_comments: None,
            updated_at: self.public_updated_at.unwrap_or(self.created_at),
            public_updated_at: None,
            ..self
        }
    }
}

/// What of the tickets somebody may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Those who work on tickets: everything.
    Agent,
    /// Those who only look: everybody's tickets, but nothing internal.
    Viewer,
    /// A requester: their own tickets, but nothing internal.
    Requester(UserId),
}

impl Audience {
    /// What the actor may see, by permission.
    pub fn of(actor: &Actor) -> Self {
        match actor.user() {
            Some(user) if !actor.may("ticket:read_all") => Self::Requester(user),
            Some(_) if !actor.may("ticket:work") => Self::Viewer,
            Some(_) | None => Self::Agent,
        }
    }

    /// Whether that includes what is internal.
    pub fn sees_internal(self) -> bool {
        self == Self::Agent
    }

    /// The one whose tickets they see, if not everybody's.
    pub(crate) fn only(self) -> Option<UserId> {
        match self {
            Self::Agent | Self::Viewer => None,
            Self::Requester(user) => Some(user),
        }
    }

    /// What waits may be somebody else's ticket, of which a requester must not learn: they are told only where it is certainly theirs.
    pub(crate) fn tell_only_what_concerns(self, read: &mut Read, theirs: bool) {
        if self.only().is_some() && !theirs {
            read.parked = None;
        }
    }

    /// In which order. When a ticket was last changed is another time for those who do not see everything.
    pub fn ticket_orders(self) -> Orders {
        const INTERNAL: [Column; 4] = orders("updated_at");
        const PUBLIC: [Column; 4] = orders("public_updated_at");
        Orders { columns: if self.sees_internal() { &INTERNAL } else { &PUBLIC }, tie: ("id", "uuid") }
    }
}

/// Which tickets a list shows; all that is given must hold. Deleted ones are shown only when asked for by status.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Filter {
    /// In this status.
    pub status: Option<Status>,
    /// Of this priority.
    pub priority: Option<Priority>,
    /// That came in this way.
    pub channel: Option<Channel>,
    /// That this one works on; `Some(None)`: that nobody works on.
    pub assignee: Option<Option<UserId>>,
    /// Of this requester.
    pub requester: Option<UserId>,
    /// Filed under this word. Only those who see what is internal may ask.
    pub tag: Option<String>,
    /// With this number.
    pub number: Option<i64>,
    /// In which somebody says this, as far as the audience may read it: words, "phrases", -exclusions.
    pub q: Option<String>,
    /// Opened at or after.
    pub created_from: Option<DateTime<Utc>>,
    /// Opened before.
    pub created_to: Option<DateTime<Utc>>,
}

const fn orders(updated_at: &'static str) -> [Column; 4] {
    [
        Column { name: "created_at", sql: "created_at", kind: "timestamptz" },
        Column { name: "updated_at", sql: updated_at, kind: "timestamptz" },
        Column { name: "number", sql: "number", kind: "bigint" },
        Column { name: "priority", sql: "priority_rank", kind: "int" },
    ]
}

/// The column `priority_rank` of a priority: the higher, the sooner it matters.
fn rank(priority: Priority) -> u8 {
    match priority {
        Priority::Low => 1,
        Priority::Normal => 2,
        Priority::High => 3,
        Priority::Urgent => 4,
    }
}

/// One ticket, if it exists and the audience may see it.
pub async fn by_id(read: &mut Read, audience: Audience, id: Uuid) -> Result<Option<Doc<Row>>, QueryError> {
    let mut sql = Sql::rows(Tickets::NAME);
    sql.push(" and id = ").bind(id);
    if let Some(user) = audience.only() {
        sql.push(" and requester_id = ").bind(user);
    }
    let row: Option<Doc<Row>> = read.one(&sql).await?;
    audience.tell_only_what_concerns(read, row.is_some());
    if audience.sees_internal() {
        return Ok(row);
    }
    row.map(|row| Doc::of(&row.read()?.seen_by(audience))).transpose()
}

/// One page of the tickets that the audience may see and the filter lets pass. Reads the thread too.
pub async fn list(
    read: &mut Read,
    cursors: &CursorKey,
    audience: Audience,
    filter: &Filter,
    paging: &Paging,
) -> Result<Page<Row>, QueryError> {
    let mut query = list::select(Tickets::NAME, paging);
    if let Some(user) = audience.only() {
        query.push(" and requester_id = ").bind(user.0);
    }
    match filter.status {
        Some(status) => query.push(" and status = ").bind(status.as_str()),
        None => query.push(" and status <> 'deleted'"),
    };
    if let Some(priority) = filter.priority {
        query.push(&format!(" and priority_rank = {}", rank(priority)));
    }
    if let Some(channel) = filter.channel {
        query.push(" and channel = ").bind(channel.as_str());
    }
    match filter.assignee {
        Some(Some(user)) => drop(query.push(" and assignee_id = ").bind(user.0)),
        Some(None) => drop(query.push(" and assignee_id is null")),
        None => {}
    }
    if let Some(user) = filter.requester {
        query.push(" and requester_id = ").bind(user.0);
    }
    if let Some(number) = filter.number {
        query.push(" and number = ").bind(number);
    }
    if let Some(q) = &filter.q {
        let internal = audience.sees_internal();
        query.search(
            "few_tickets_saying",
            q,
            &format!(" and id in (select read.tickets_saying($value, {internal}))"),
            &format!(" and read.ticket_says(id, subject, read.wanted($value), {internal})"),
        );
    }
    if let Some(tag) = &filter.tag {
        query.search("few_tickets_tagged", tag, " and id in (select read.tickets_tagged($value))", " and tags @> array[$value]");
    }
    if let Some(from) = filter.created_from {
        query.push(" and created_at >= ").bind(from);
    }
    if let Some(to) = filter.created_to {
        query.push(" and created_at < ").bind(to);
    }
    let identity = json!([Tickets::NAME, filter, audience.only(), audience.sees_internal()]).to_string();
    let page: Page<Row> = list::page(read, cursors, query, &identity, paging).await?;
    audience.tell_only_what_concerns(read, false);
    if audience.sees_internal() { Ok(page) } else { page.map(|row| row.seen_by(audience)) }
}
