//! The ticket: somebody asks for help, others work on it.
//!
//! `new → open`; `open ⇄ pending_customer | on_hold`; any of these `→ resolved → closed`; `resolved → open` within 14 days; any live one `→ deleted`.
//!
//! Those who have `ticket:work` act on every ticket of the tenant; everybody else on their own only, and for them other people's tickets do not exist.

mod command;
mod event;
#[cfg(test)]
mod tests;
mod value;

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use command::*;
pub use event::Event;
pub use value::{Channel, Priority, Relation, Status, Visibility};

use crate::aggregate::{Ask as _, Context, EventKind, Issued, Lookup, changed};
use crate::billing::meter::{self, Meter};
use crate::effect::{CounterName, Effect, Precondition, Refusal};
use crate::identity::user::STAFF;
use crate::ids::{StreamId, UserId};
use crate::personal::Personal;

/// How long a resolved ticket can be reopened.
pub const REOPEN_WINDOW: TimeDelta = TimeDelta::days(14);

/// How many tickets somebody works on that are neither resolved nor gone, for each.
pub const LOAD: &str = "agent_load";

/// The most comments that a ticket may have: each is folded whenever the ticket is loaded.
pub const MAX_COMMENTS: usize = 5_000;
/// The most tags, links, followers and attachments, of each.
pub const MAX_PARTS: usize = 50;

/// A ticket as its events tell it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Ticket {
    /// Nothing has happened yet.
    #[default]
    Absent,
    /// It exists; whatever its status, it can be read.
    Filed(Box<Details>),
}

/// What is known of a ticket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Details {
    status: Status,
    requester: UserId,
    subject: Personal<String>,
    priority: Priority,
    assignee: Option<UserId>,
    /// Each with whether it was redacted.
    comments: BTreeMap<Uuid, (Visibility, bool)>,
    responded: bool,
    resolved_at: Option<DateTime<Utc>>,
    tags: BTreeSet<String>,
    links: BTreeMap<Uuid, Relation>,
    /// Each with how many bytes it takes.
    attachments: BTreeMap<Uuid, (Visibility, u64)>,
    followers: BTreeSet<UserId>,
}

impl Ticket {
    /// Where it stands; `None` when it does not exist.
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::Absent => None,
            Self::Filed(ticket) => Some(ticket.status),
        }
    }

    fn evolve(&mut self, event: Event) {
        match (self, event) {
            (this, Event::Opened { subject, priority, requester, tags, .. }) => {
                *this = Self::Filed(Box::new(Details {
                    status: Status::New,
                    requester,
                    subject,
                    priority,
                    assignee: None,
                    comments: BTreeMap::new(),
                    responded: false,
                    resolved_at: None,
                    tags: tags.into_iter().collect(),
                    links: BTreeMap::new(),
                    attachments: BTreeMap::new(),
                    followers: BTreeSet::new(),
                }));
            }
            (Self::Filed(ticket), event) => ticket.evolve(event),
            (Self::Absent, _) => {}
        }
    }
}

/// One more of something, if there is room.
fn room(has: usize, limit: usize, what: &'static str) -> Result<(), Error> {
    if has < limit { Ok(()) } else { Err(Error::TooMany { what, limit }) }
}

/// Refuses somebody who is no user of the tenant, or no longer.
fn exists(user: UserId, ctx: &Context) -> Result<(), Error> {
    if ctx.found.users.get(&user).is_some_and(|user| !user.deleted) { Ok(()) } else { Err(Error::NoSuchUser) }
}

fn open(c: OpenTicket, ctx: &Context) -> Result<Vec<Event>, Error> {
    let caller = ctx.actor.user();
    let requester = c.requester.or(caller).ok_or(Error::NoRequester)?;
    if Some(requester) != caller && !ctx.actor.may("ticket:work") {
        return Err(Error::AgentsOnly);
    }
    if c.requester.is_some_and(|requester| Some(requester) != caller) {
        exists(requester, ctx)?;
    }
    let tags: BTreeSet<String> = c.tags.into_iter().map(String::from).collect();
    if tags.len() > MAX_PARTS {
        return Err(Error::TooMany { what: "tags", limit: MAX_PARTS });
    }
    Ok(vec![Event::Opened {
        number: 0,
        subject: Personal::new(requester.into(), c.subject.into()),
        body: Personal::new(requester.into(), c.body.into()),
        priority: c.priority,
        channel: c.channel,
        requester,
        opened_by: caller,
        tags: tags.into_iter().collect(),
    }])
}

impl Details {
    fn evolve(&mut self, event: Event) {
        match event {
            Event::Opened { .. } => {}
            Event::SubjectChanged { subject } => self.subject = subject,
            Event::CommentAdded { comment, visibility, first_response, .. } => {
                self.comments.insert(comment, (visibility, false));
                self.responded |= first_response;
            }
            Event::CommentRedacted { comment, visibility } => {
                self.comments.insert(comment, (visibility, true));
            }
            Event::Assigned { from: _, to } => self.assignee = Some(to),
            Event::Unassigned { from: _ } => self.assignee = None,
            Event::PriorityChanged { from: _, to } => self.priority = to,
            Event::StatusChanged { from: _, to } => self.status = to,
            Event::Resolved { at } => {
                self.status = Status::Resolved;
                self.resolved_at = Some(at);
            }
            Event::Closed => self.status = Status::Closed,
            Event::Reopened => {
                self.status = Status::Open;
                self.resolved_at = None;
            }
            Event::Deleted { .. } => self.status = Status::Deleted,
            Event::Linked { ticket, relation } => {
                self.links.insert(ticket, relation);
            }
            Event::Unlinked { ticket } => {
                self.links.remove(&ticket);
            }
            Event::Tagged { tag } => {
                self.tags.insert(tag);
            }
            Event::Untagged { tag } => {
                self.tags.remove(&tag);
            }
            Event::Attached { attachment, visibility, size, .. } => {
                self.attachments.insert(attachment, (visibility, size));
            }
            Event::Detached { attachment, .. } => {
                self.attachments.remove(&attachment);
            }
            Event::FollowerAdded { user } => {
                self.followers.insert(user);
            }
            Event::FollowerRemoved { user } => {
                self.followers.remove(&user);
            }
        }
    }

    /// The rules of a ticket that exists.
    fn decide(&self, Issued { command, ctx }: Issued<Command>) -> Result<Vec<Event>, Error> {
        let agent = ctx.actor.may("ticket:work");
        let caller = ctx.actor.user();
        if !agent && caller != Some(self.requester) {
            return Err(if matches!(command, Command::Open(_)) { Error::AlreadyExists } else { Error::NotFound });
        }
        let not_now = Error::NotWhile { command: command.name(), status: self.status };
        match command {
            Command::Open(_) => Err(Error::AlreadyExists),
            // What should not be read should not be read in a closed ticket either.
            Command::RedactComment(c) => match self.comments.get(&c.comment) {
                Some((_, true)) => Ok(vec![]),
                Some((visibility, false)) => Ok(vec![Event::CommentRedacted { comment: c.comment, visibility: *visibility }]),
                None => Err(Error::NoSuchComment),
            },
            Command::Close(_) => match self.status {
                Status::Closed => Ok(vec![]),
                Status::Resolved => Ok(vec![Event::Closed]),
                Status::New | Status::Open | Status::PendingCustomer | Status::OnHold | Status::Deleted => Err(not_now),
            },
            Command::Delete(_) | Command::ReleaseUser(_) if self.status == Status::Deleted => Ok(vec![]),
            // Whoever is gone works on no ticket, in whatever status it is.
            Command::ReleaseUser(c) => Ok(self.release(&c)),
            _ if !self.status.is_live() => Err(not_now),
            Command::Delete(_) => Ok(vec![Event::Deleted { freed: self.attachments.values().map(|(_, size)| size).sum() }]),
            Command::Resolve(_) => Ok(changed(self.status != Status::Resolved, || Event::Resolved { at: ctx.now })),
            Command::Reopen(_) => match self.status {
                Status::Open => Ok(vec![]),
                Status::Resolved if self.resolved_at.is_some_and(|at| ctx.now > at + REOPEN_WINDOW) => Err(Error::ReopenWindowPassed),
                Status::Resolved => Ok(vec![Event::Reopened]),
                Status::New | Status::PendingCustomer | Status::OnHold | Status::Closed | Status::Deleted => Err(not_now),
            },
            Command::ChangeStatus(c) => match c.status.into() {
                to if to == self.status => Ok(vec![]),
                to if self.status.may_become(to) => Ok(vec![Event::StatusChanged { from: self.status, to }]),
                _ => Err(not_now),
            },
            Command::AddComment(AddComment { visibility: Visibility::Internal, .. })
            | Command::Attach(AttachFile { visibility: Visibility::Internal, .. })
                if !agent =>
            {
                Err(Error::AgentsOnly)
            }
            Command::AddComment(c) => self.comment(c, &ctx),
            Command::Attach(c) => self.attach(c, &ctx),
            Command::Edit(c) => Ok(c
                .subject
                .map(String::from)
                .filter(|subject| self.subject.known() != Some(subject))
                .map(|subject| Event::SubjectChanged { subject: self.personal(subject) })
                .into_iter()
                .collect()),
            Command::Assign(c) if self.assignee == Some(c.assignee) => Ok(vec![]),
            Command::Assign(c) => {
                let works = ctx.found.users.get(&c.assignee).is_some_and(|user| user.may("ticket:work"));
                if works { Ok(vec![Event::Assigned { from: self.assignee, to: c.assignee }]) } else { Err(Error::NotAnAgent) }
            }
            Command::AutoAssign(_) if self.assignee.is_some() => Ok(vec![]),
            Command::AutoAssign(_) => {
                let to = ctx.found.least_loaded.ok_or(Error::NobodyToAssign)?;
                Ok(vec![Event::Assigned { from: None, to }])
            }
            Command::Unassign(_) => Ok(self.assignee.map(|from| Event::Unassigned { from }).into_iter().collect()),
            Command::ChangePriority(c) => {
                Ok(changed(self.priority != c.priority, || Event::PriorityChanged { from: self.priority, to: c.priority }))
            }
            Command::Link(c) if c.ticket == ctx.stream.id => Err(Error::LinkedToItself),
            Command::Link(c) if self.links.get(&c.ticket) == Some(&c.relation) => Ok(vec![]),
            Command::Link(c) => {
                room(self.links.len() - usize::from(self.links.contains_key(&c.ticket)), MAX_PARTS, "links")?;
                Ok(vec![Event::Linked { ticket: c.ticket, relation: c.relation }])
            }
            Command::Unlink(c) => Ok(changed(self.links.contains_key(&c.ticket), || Event::Unlinked { ticket: c.ticket })),
            Command::Tag(c) if self.tags.contains(c.tag.as_str()) => Ok(vec![]),
            Command::Tag(c) => {
                room(self.tags.len(), MAX_PARTS, "tags")?;
                Ok(vec![Event::Tagged { tag: c.tag.into() }])
            }
            Command::Untag(c) => Ok(changed(self.tags.contains(c.tag.as_str()), || Event::Untagged { tag: c.tag.into() })),
            Command::Detach(c) => {
                let detached = |(visibility, size): &(Visibility, u64)| Event::Detached {
                    attachment: c.attachment,
                    visibility: *visibility,
                    size: *size,
                };
                Ok(self.attachments.get(&c.attachment).map(detached).into_iter().collect())
            }
            Command::AddFollower(c) if self.followers.contains(&c.user) => Ok(vec![]),
            Command::AddFollower(c) => {
                room(self.followers.len(), MAX_PARTS, "followers")?;
                exists(c.user, &ctx)?;
                Ok(vec![Event::FollowerAdded { user: c.user }])
            }
            Command::RemoveFollower(c) => Ok(changed(self.followers.contains(&c.user), || Event::FollowerRemoved { user: c.user })),
        }
    }

    /// What it takes to let go of a user.
    fn release(&self, c: &ReleaseUser) -> Vec<Event> {
        let unassigned = self.assignee.filter(|assignee| *assignee == c.user).map(|from| Event::Unassigned { from });
        let unfollowed = (c.gone && self.followers.contains(&c.user)).then_some(Event::FollowerRemoved { user: c.user });
        unassigned.into_iter().chain(unfollowed).collect()
    }

    fn comment(&self, c: AddComment, ctx: &Context) -> Result<Vec<Event>, Error> {
        let comment = c.id.unwrap_or(ctx.fresh_id);
        // The ticket's own id is that of the opening in the thread.
        if comment == ctx.stream.id || self.comments.contains_key(&comment) {
            return Err(Error::PartExists);
        }
        room(self.comments.len(), MAX_COMMENTS, "comments")?;
        let author = ctx.actor.user();
        // What Tenure itself says is no answer of a person.
        let by_agent = ctx.actor.may("ticket:work") && author.is_some_and(|author| author != self.requester);
        Ok(vec![Event::CommentAdded {
            comment,
            body: self.personal(c.body.into()),
            visibility: c.visibility,
            author,
            by_agent,
            first_response: by_agent && !self.responded && c.visibility == Visibility::Public,
        }])
    }

    fn attach(&self, c: AttachFile, ctx: &Context) -> Result<Vec<Event>, Error> {
        let attachment = c.id.unwrap_or(ctx.fresh_id);
        if self.attachments.contains_key(&attachment) {
            return Err(Error::PartExists);
        }
        room(self.attachments.len(), MAX_PARTS, "attachments")?;
        Ok(vec![Event::Attached {
            attachment,
            name: self.personal(c.name.into()),
            size: c.size.into(),
            sha256: c.sha256.into(),
            visibility: c.visibility,
            by: ctx.actor.user(),
        }])
    }

    /// What is said in a ticket is about its requester.
    fn personal(&self, text: String) -> Personal<String> {
        Personal::new(self.requester.into(), text)
    }
}

crate::aggregate!(Ticket, "ticket", Command, Event, Error);

impl crate::Aggregate for Ticket {
    type Ask = Command;

    const EVENTS: &'static [EventKind] = Event::KINDS;

    const METERED: &'static [(&'static str, Meter)] =
        &[("ticket.attached", Meter::Storage), ("ticket.detached", Meter::Storage), ("ticket.deleted", Meter::Storage)];

    const NAMES_USERS: &'static [(&'static str, &'static str)] = &[("ticket.assigned", "to"), ("ticket.follower_added", "user")];

    fn releases(&self, user: UserId, gone: bool) -> Option<Command> {
        let Self::Filed(ticket) = self else { return None };
        let command = ReleaseUser { user, gone };
        let left = ticket.status != Status::Deleted && !ticket.release(&command).is_empty();
        left.then(|| command.into())
    }

    fn metered(event: &Event) -> i64 {
        let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        if let Event::Detached { size: freed, .. } | Event::Deleted { freed } = event {
            -bytes(*freed)
        } else if let Event::Attached { size, .. } = event {
            bytes(*size)
        } else {
            0
        }
    }

    /// Nobody is kept as an assignee because the tenant is closed.
    fn gated(command: &Command) -> bool {
        !matches!(command, Command::ReleaseUser(_))
    }

    fn decide(&self, issued: Issued<Command>) -> Result<Vec<Event>, Error> {
        match (self, issued.command) {
            (Self::Absent, Command::Open(c)) => open(c, &issued.ctx),
            (Self::Absent, _) => Err(Error::NotFound),
            (Self::Filed(ticket), command) => ticket.decide(Issued { command, ctx: issued.ctx }),
        }
    }

    fn looks_up(&self, command: &Command) -> Vec<Lookup> {
        if let Command::Assign(AssignTicket { assignee: user })
        | Command::AddFollower(AddFollower { user })
        | Command::Open(OpenTicket { requester: Some(user), .. }) = command
        {
            vec![Lookup::User(*user)]
        } else if matches!(command, Command::AutoAssign(_)) {
            vec![Lookup::LeastLoaded { claim: STAFF, counter: LOAD, permission: "ticket:work" }]
        } else {
            vec![]
        }
    }

    fn effects(&self, event: &Event) -> Vec<Effect> {
        let load = |user: UserId, delta| Effect::Count { counter: CounterName::of(LOAD, user.0), delta };
        let stored = meter::count(Meter::Storage, Self::metered(event));
        let (working, assignee) = match self {
            Self::Absent => (false, None),
            Self::Filed(ticket) => (ticket.status.is_live() && ticket.status != Status::Resolved, ticket.assignee),
        };
        match event {
            Event::Opened { .. } => vec![Effect::Allocate { sequence: "ticket_number", pointer: "/number" }],
            Event::Assigned { from, to } if working => from.iter().map(|from| load(*from, -1)).chain([load(*to, 1)]).collect(),
            Event::Unassigned { from } if working => vec![load(*from, -1)],
            Event::Resolved { .. } if working => assignee.iter().map(|to| load(*to, -1)).collect(),
            Event::Deleted { .. } => assignee.filter(|_| working).map(|to| load(to, -1)).into_iter().chain(stored).collect(),
            Event::Attached { .. } | Event::Detached { .. } => stored.into_iter().collect(),
            Event::Reopened => assignee.iter().map(|to| load(*to, 1)).collect(),
            Event::Assigned { .. }
            | Event::Unassigned { .. }
            | Event::Resolved { .. }
            | Event::SubjectChanged { .. }
            | Event::CommentAdded { .. }
            | Event::CommentRedacted { .. }
            | Event::PriorityChanged { .. }
            | Event::StatusChanged { .. }
            | Event::Closed
            | Event::Linked { .. }
            | Event::Unlinked { .. }
            | Event::Tagged { .. }
            | Event::Untagged { .. }
            | Event::FollowerAdded { .. }
            | Event::FollowerRemoved { .. } => vec![],
        }
    }

    fn requires(event: &Event, stream: StreamId) -> Vec<Precondition> {
        let Event::Linked { ticket, .. } = event else { return vec![] };
        vec![Precondition::StreamExists { aggregate: "ticket", stream: StreamId::new(stream.tenant, *ticket) }]
    }

    fn refused(refusal: &Refusal) -> Option<Error> {
        matches!(refusal, Refusal::NoSuchStream { .. }).then_some(Error::NothingToLink)
    }
}
