//! What happens to tickets. Stored for ever: append only, a golden file per version under `domain/tests/golden/ticket/`.
//!
//! Subject, texts and file names are personal data of the requester.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Channel, Priority, Relation, Status, Visibility};
use crate::ids::UserId;
use crate::personal::Personal;

/// Something that has happened to a ticket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// Somebody asks for help.
    Opened {
        /// The tenant's next ticket number, from 1 without a gap; drawn under the log's lock, 0 until then.
        number: i64,
        /// What it is about.
        subject: Personal<String>,
        /// What is asked.
        body: Personal<String>,
        /// How soon it matters.
        priority: Priority,
        /// How it came in.
        channel: Channel,
        /// Who needs help.
        requester: UserId,
        /// Who opened it, if a person did.
        opened_by: Option<UserId>,
        /// What it is filed under.
        tags: Vec<String>,
    },
    /// It is about something else.
    SubjectChanged {
        /// What it is about now.
        subject: Personal<String>,
    },
    /// Somebody said something.
    CommentAdded {
        /// The comment's id.
        comment: Uuid,
        /// What was said.
        body: Personal<String>,
        /// Who may read it.
        visibility: Visibility,
        /// Who said it, if a person did.
        author: Option<UserId>,
        /// Whether that was one of those who work on tickets.
        by_agent: bool,
        /// Whether this is the first public comment by one of them.
        first_response: bool,
    },
    /// A comment's text is shown no more.
    CommentRedacted {
        /// Which.
        comment: Uuid,
        /// Who could read it.
        visibility: Visibility,
    },
    /// Somebody is to work on it.
    Assigned {
        /// Who was.
        from: Option<UserId>,
        /// Who is.
        to: UserId,
    },
    /// Nobody in particular is to work on it any more.
    Unassigned {
        /// Who was.
        from: UserId,
    },
    /// It matters more or less than before.
    PriorityChanged {
        /// How soon it mattered.
        from: Priority,
        /// How soon it matters.
        to: Priority,
    },
    /// Work on it goes on, or waits.
    StatusChanged {
        /// Where it stood.
        from: Status,
        /// Where it stands.
        to: Status,
    },
    /// It is done, unless somebody objects.
    Resolved {
        /// When; it can be reopened for 14 days.
        at: DateTime<Utc>,
    },
    /// It is done for good.
    Closed,
    /// It is not done after all.
    Reopened,
    /// It was spam.
    Deleted {
        /// How many bytes its files took.
        #[serde(default, skip_serializing_if = "is_zero")]
        freed: u64,
    },
    /// It has to do with another ticket.
    Linked {
        /// The other one, of the same tenant.
        ticket: Uuid,
        /// What this one is to the other.
        relation: Relation,
    },
    /// It has nothing to do with another ticket any more.
    Unlinked {
        /// The other one.
        ticket: Uuid,
    },
    /// It is filed under a word.
    Tagged {
        /// Which.
        tag: String,
    },
    /// It is no longer filed under a word.
    Untagged {
        /// Which.
        tag: String,
    },
    /// A file belongs to it. The file itself is kept elsewhere.
    Attached {
        /// The attachment's id.
        attachment: Uuid,
        /// The file's name.
        name: Personal<String>,
        /// Its size in bytes.
        size: u64,
        /// The SHA-256 of its content, in hexadecimal.
        sha256: String,
        /// Who may see it.
        visibility: Visibility,
        /// Who attached it, if a person did.
        by: Option<UserId>,
    },
    /// A file does not belong to it any more.
    Detached {
        /// Which.
        attachment: Uuid,
        /// Who could see it.
        visibility: Visibility,
        /// How many bytes it took.
        #[serde(default, skip_serializing_if = "is_zero")]
        size: u64,
    },
    /// Somebody wants to know how it goes on.
    FollowerAdded {
        /// Who.
        user: UserId,
    },
    /// Somebody does not want to know any more.
    FollowerRemoved {
        /// Who.
        user: UserId,
    },
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

crate::event_kinds!(Event:
    Opened => "ticket.opened" "1",
    SubjectChanged => "ticket.subject_changed" "1",
    CommentAdded => "ticket.comment_added" "1",
    CommentRedacted => "ticket.comment_redacted" "1",
    Assigned => "ticket.assigned" "1",
    Unassigned => "ticket.unassigned" "1",
    PriorityChanged => "ticket.priority_changed" "1",
    StatusChanged => "ticket.status_changed" "1",
    Resolved => "ticket.resolved" "1",
    Closed => "ticket.closed" "1",
    Reopened => "ticket.reopened" "1",
    Deleted => "ticket.deleted" "1",
    Linked => "ticket.linked" "1",
    Unlinked => "ticket.unlinked" "1",
    Tagged => "ticket.tagged" "1",
    Untagged => "ticket.untagged" "1",
    Attached => "ticket.attached" "1",
    Detached => "ticket.detached" "1",
    FollowerAdded => "ticket.follower_added" "1",
    FollowerRemoved => "ticket.follower_removed" "1",
);
