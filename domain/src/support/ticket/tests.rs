//! Given, when, then.

use chrono::{DateTime, TimeDelta, Utc};
use cqrs_es::Aggregate as _;
use cqrs_es::test::{AggregateTestExecutor, TestFramework};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::actor::{Actor, Grants, Role};
use crate::aggregate::{Aggregate as _, Context, Found, Person};
use crate::text::{FileName, Sha256, Tag};
use crate::{StreamId, TenantId};

const TENANT: TenantId = TenantId(Uuid::from_u128(7));
const TICKET: Uuid = Uuid::from_u128(1);
const OTHER: Uuid = Uuid::from_u128(2);
const FRESH: Uuid = Uuid::from_u128(9);
const ADA: UserId = UserId(Uuid::from_u128(100));
const GRACE: UserId = UserId(Uuid::from_u128(200));

fn day(n: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::days(n)
}

fn issued(user: UserId, role: Role, now: DateTime<Utc>, command: impl Into<Command>) -> Issued<Command> {
    let agent = || Person { active: true, deleted: false, role: Role::SupportAgent, grants: Grants::OfRole };
    let found = Found { users: [(ADA, agent()), (GRACE, agent())].into(), least_loaded: Some(GRACE), ..Found::default() };
    let actor = Actor::person(user.to_string(), TENANT, role);
    Issued { command: command.into(), ctx: Context { now, actor, stream: StreamId::new(TENANT, TICKET), fresh_id: FRESH, found } }
}

/// By Grace, who works on tickets.
fn agent(command: impl Into<Command>) -> Issued<Command> {
    issued(GRACE, Role::SupportAgent, day(1), command)
}

/// By Ada, who asked for help.
fn requester(command: impl Into<Command>) -> Issued<Command> {
    issued(ADA, Role::User, day(1), command)
}

fn given(events: Vec<Event>) -> AggregateTestExecutor<Ticket> {
    TestFramework::<Ticket>::with(()).given(events)
}

fn ada(text: &str) -> Personal<String> {
    Personal::new(ADA.into(), text.to_owned())
}

fn subject(text: &str) -> Subject {
    Subject::parse(text).unwrap()
}

fn message(text: &str) -> Message {
    Message::parse(text).unwrap()
}

fn tag(text: &str) -> Tag {
    Tag::parse(text).unwrap()
}

fn open_ticket() -> OpenTicket {
    OpenTicket {
        id: None,
        subject: subject("Help"),
        body: message("It is broken."),
        priority: Priority::Normal,
        channel: Channel::Api,
        requester: None,
        tags: vec![tag("broken"), tag("broken")],
    }
}

fn opened() -> Event {
    Event::Opened {
        number: 0,
        subject: ada("Help"),
        body: ada("It is broken."),
        priority: Priority::Normal,
        channel: Channel::Api,
        requester: ADA,
        opened_by: Some(ADA),
        tags: vec!["broken".into()],
    }
}

fn comment(visibility: Visibility) -> AddComment {
    AddComment { id: None, body: message("Have you tried turning it off?"), visibility }
}

fn commented(visibility: Visibility, by_agent: bool, first_response: bool) -> Event {
    let author = Some(if by_agent { GRACE } else { ADA });
    Event::CommentAdded { comment: FRESH, body: ada("Have you tried turning it off?"), visibility, author, by_agent, first_response }
}

fn attach() -> AttachFile {
    AttachFile {
        id: Some(FRESH),
        name: FileName::parse("log.txt").unwrap(),
        size: FileSize::try_from(12).unwrap(),
        sha256: Sha256::parse(&"Ab".repeat(32)).unwrap(),
        visibility: Visibility::Public,
    }
}

fn resolved(at: DateTime<Utc>) -> Event {
    Event::Resolved { at }
}

fn moved(from: Status, to: Status) -> Event {
    Event::StatusChanged { from, to }
}

/// The events that bring a new ticket into a status.
fn history(status: Status) -> Vec<Event> {
    let mut events = vec![opened()];
    match status {
        Status::New => {}
        Status::Open => events.push(moved(Status::New, Status::Open)),
        Status::PendingCustomer | Status::OnHold => events.extend([moved(Status::New, Status::Open), moved(Status::Open, status)]),
        Status::Resolved => events.push(resolved(day(0))),
        Status::Closed => events.extend([resolved(day(0)), Event::Closed]),
        Status::Deleted => events.push(Event::Deleted { freed: 0 }),
    }
    events
}

fn fold(events: &[Event]) -> Ticket {
    let mut ticket = Ticket::default();
    events.iter().for_each(|event| ticket.apply(event.clone()));
    ticket
}

#[test]
fn a_ticket_is_opened_for_the_caller_and_what_it_says_is_personal() {
    given(vec![]).when(requester(open_ticket())).then_expect_events(vec![opened()]);
}

#[test]
fn only_those_who_work_on_tickets_open_them_for_others() {
    let for_ada = || OpenTicket { requester: Some(ADA), ..open_ticket() };
    let Event::Opened { number, subject, body, priority, channel, requester: _, opened_by: _, tags } = opened() else { unreachable!() };
    let by_grace = Event::Opened { number, subject, body, priority, channel, requester: ADA, opened_by: Some(GRACE), tags };
    given(vec![]).when(agent(for_ada())).then_expect_events(vec![by_grace]);
    given(vec![]).when(issued(GRACE, Role::User, day(1), for_ada())).then_expect_error(Error::AgentsOnly);
    let mut system = agent(open_ticket());
    system.ctx.actor = Actor::System { name: "mail".into() };
    given(vec![]).when(system).then_expect_error(Error::NoRequester);
}

#[test]
fn only_an_active_user_who_works_on_tickets_can_be_assigned_one() {
    let assign = |person: Option<Person>| {
        let mut issued = agent(AssignTicket { assignee: ADA });
        issued.ctx.found.users = person.map(|person| (ADA, person)).into_iter().collect();
        given(vec![opened()]).when(issued)
    };
    let person = |active, role, grants| Some(Person { active, deleted: false, role, grants });
    let may = |permissions: &[&str]| Grants::Only(std::sync::Arc::new(permissions.iter().map(|p| (*p).to_owned()).collect()));
    let custom = Role::Custom(crate::RoleId(OTHER));
    assign(person(true, Role::SupportAgent, Grants::OfRole)).then_expect_events(vec![Event::Assigned { from: None, to: ADA }]);
    assign(person(true, custom, may(&["ticket:work"]))).then_expect_events(vec![Event::Assigned { from: None, to: ADA }]);
    assign(person(false, Role::SupportAgent, Grants::OfRole)).then_expect_error(Error::NotAnAgent);
    assign(person(true, Role::Viewer, Grants::OfRole)).then_expect_error(Error::NotAnAgent);
    assign(person(true, custom, may(&["ticket:read"]))).then_expect_error(Error::NotAnAgent);
    assign(None).then_expect_error(Error::NotAnAgent);
}

#[test]
fn automatic_assignment_takes_whom_it_is_told_has_the_least_load_unless_somebody_has_the_ticket() {
    given(vec![opened()]).when(agent(AutoAssignTicket {})).then_expect_events(vec![Event::Assigned { from: None, to: GRACE }]);
    given(vec![opened(), Event::Assigned { from: None, to: ADA }]).when(agent(AutoAssignTicket {})).then_expect_events(vec![]);
    let mut nobody = agent(AutoAssignTicket {});
    nobody.ctx.found.least_loaded = None;
    given(vec![opened()]).when(nobody).then_expect_error(Error::NobodyToAssign);
}

#[test]
fn somebodys_load_is_the_number_of_their_tickets_that_are_neither_resolved_nor_gone() {
    let assigned = || Event::Assigned { from: None, to: GRACE };
    let load = |history: &[Event], event: Event| -> i64 {
        let own = CounterName::of(LOAD, GRACE.0);
        let effects = fold(history).effects(&event).into_iter();
        effects
            .map(|effect| {
                if let Effect::Count { counter, delta } = effect
                    && counter == own
                {
                    delta
                } else {
                    0
                }
            })
            .sum()
    };
    assert_eq!(load(&[opened()], assigned()), 1);
    assert_eq!(load(&[opened(), assigned()], Event::Assigned { from: Some(GRACE), to: ADA }), -1);
    assert_eq!(load(&[opened(), assigned()], Event::Unassigned { from: GRACE }), -1);
    assert_eq!(load(&[opened(), assigned()], resolved(day(1))), -1);
    assert_eq!(load(&[opened(), assigned(), resolved(day(1))], Event::Closed), 0);
    assert_eq!(load(&[opened(), assigned(), resolved(day(1))], Event::Reopened), 1);
    assert_eq!(load(&[opened(), assigned(), resolved(day(1))], Event::Deleted { freed: 0 }), 0);
    assert_eq!(load(&[opened(), resolved(day(1))], assigned()), 0);
    assert_eq!(load(&[opened(), assigned()], Event::Deleted { freed: 0 }), -1);
}

/// The table of the design, written down apart from the code: what each command does in each status.
#[derive(Debug, PartialEq)]
enum Then {
    Becomes(Status),
    AlreadySo,
    Refused,
    Gone,
}

fn expected(status: Option<Status>, command: &Command) -> Then {
    use Status::{Closed, Deleted, New, OnHold, Open, PendingCustomer, Resolved};
    use Then::{AlreadySo, Becomes, Gone, Refused};
    let Some(status) = status else { return if matches!(command, Command::Open(_)) { Becomes(New) } else { Gone } };
    // A command that aims at a status, and the statuses it may start from.
    let (to, from): (Status, &[Status]) = match command {
        Command::ChangeStatus(ChangeStatus { status: WorkStatus::Open }) => (Open, &[New, PendingCustomer, OnHold]),
        Command::ChangeStatus(ChangeStatus { status: WorkStatus::PendingCustomer }) => (PendingCustomer, &[Open]),
        Command::ChangeStatus(ChangeStatus { status: WorkStatus::OnHold }) => (OnHold, &[Open]),
        Command::Resolve(_) => (Resolved, &[New, Open, PendingCustomer, OnHold]),
        Command::Reopen(_) => (Open, &[Resolved]),
        Command::Close(_) => (Closed, &[Resolved]),
        Command::Delete(_) => (Deleted, &[New, Open, PendingCustomer, OnHold, Resolved]),
        Command::Open(_) => return Refused,
        // A text that should not be read should not be read in whatever status.
        Command::RedactComment(_) => return Becomes(status),
        Command::Edit(_)
        | Command::AddComment(_)
        | Command::Assign(_)
        | Command::Unassign(_)
        | Command::ChangePriority(_)
        | Command::Link(_)
        | Command::Unlink(_)
        | Command::Tag(_)
        | Command::Untag(_)
        | Command::Attach(_)
        | Command::Detach(_)
        | Command::AddFollower(_)
        | Command::RemoveFollower(_) => return if matches!(status, Closed | Deleted) { Refused } else { Becomes(status) },
        // A user who is gone works on no ticket and follows none, in whatever status.
        Command::ReleaseUser(_) => return if status == Deleted { AlreadySo } else { Becomes(status) },
        // Somebody has the ticket already.
        Command::AutoAssign(_) => return if matches!(status, Closed | Deleted) { Refused } else { AlreadySo },
    };
    if to == status {
        AlreadySo
    } else if from.contains(&status) {
        Becomes(to)
    } else {
        Refused
    }
}

fn every_command() -> Vec<Command> {
    vec![
        open_ticket().into(),
        EditTicket { subject: Some(subject("Still broken")) }.into(),
        comment(Visibility::Public).into(),
        RedactComment { comment: OTHER }.into(),
        AssignTicket { assignee: GRACE }.into(),
        AutoAssignTicket {}.into(),
        UnassignTicket {}.into(),
        ChangePriority { priority: Priority::Urgent }.into(),
        ChangeStatus { status: WorkStatus::Open }.into(),
        ChangeStatus { status: WorkStatus::PendingCustomer }.into(),
        ChangeStatus { status: WorkStatus::OnHold }.into(),
        ResolveTicket {}.into(),
        CloseTicket {}.into(),
        ReopenTicket {}.into(),
        DeleteTicket {}.into(),
        LinkTicket { ticket: OTHER, relation: Relation::Blocks }.into(),
        UnlinkTicket { ticket: FRESH }.into(),
        TagTicket { tag: tag("urgent") }.into(),
        UntagTicket { tag: tag("broken") }.into(),
        attach().into(),
        DetachFile { attachment: OTHER }.into(),
        AddFollower { user: GRACE }.into(),
        RemoveFollower { user: ADA }.into(),
        ReleaseUser { user: ADA, gone: true }.into(),
    ]
}

/// A ticket that has one of everything that can be taken away, then what brings it into the status.
fn furnished(status: Status) -> Ticket {
    let mut events = history(status);
    let has = [
        Event::CommentAdded {
            comment: OTHER,
            body: ada("x"),
            visibility: Visibility::Internal,
            author: None,
            by_agent: true,
            first_response: false,
        },
        Event::Assigned { from: None, to: ADA },
        Event::Linked { ticket: FRESH, relation: Relation::RelatesTo },
        Event::Attached { attachment: OTHER, name: ada("x"), size: 1, sha256: String::new(), visibility: Visibility::Public, by: None },
        Event::FollowerAdded { user: ADA },
    ];
    events.splice(1..1, has);
    fold(&events)
}

/// What the command really does, in the words of the table.
fn actual(ticket: &Ticket, issued: Issued<Command>) -> Then {
    match ticket.decide(issued) {
        Ok(events) if events.is_empty() => Then::AlreadySo,
        Ok(events) => {
            let mut after = ticket.clone();
            events.into_iter().for_each(|event| after.apply(event));
            Then::Becomes(after.status().unwrap())
        }
        Err(Error::NotFound) => Then::Gone,
        Err(_) => Then::Refused,
    }
}

#[test]
fn every_transition_legal_and_illegal_is_as_the_design_says() {
    for status in [None].into_iter().chain(Status::ALL.iter().copied().map(Some)) {
        let ticket = status.map(furnished).unwrap_or_default();
        assert_eq!(ticket.status(), status);
        for command in every_command() {
            assert_eq!(actual(&ticket, agent(command.clone())), expected(status, &command), "{status:?}: {command:?}");
        }
    }
}

#[test]
fn an_illegal_transition_has_a_code_that_names_state_and_command() {
    use crate::error::DomainError as _;
    let error = fold(&history(Status::Closed)).decide(agent(ReopenTicket {})).unwrap_err();
    assert_eq!(
        (error.code().as_ref(), error.page(), error.kind()),
        ("ticket.cannot_reopen_while_closed", "ticket.cannot_while", crate::Kind::Conflict)
    );
}

#[test]
fn a_resolved_ticket_is_reopened_within_14_days_and_not_later() {
    let ada_says = |now| issued(ADA, Role::User, now, ReopenTicket {});
    given(history(Status::Resolved)).when(ada_says(day(14))).then_expect_events(vec![Event::Reopened]);
    given(history(Status::Resolved)).when(ada_says(day(15))).then_expect_error(Error::ReopenWindowPassed);
    // The window begins anew with every resolution.
    let again = vec![opened(), resolved(day(0)), Event::Reopened, resolved(day(10))];
    given(again).when(ada_says(day(24))).then_expect_events(vec![Event::Reopened]);
}

#[test]
fn the_first_response_is_the_first_public_comment_by_somebody_who_works_on_tickets() {
    let first = commented(Visibility::Public, true, true);
    given(vec![opened()]).when(agent(comment(Visibility::Public))).then_expect_events(vec![first]);
    given(vec![opened()]).when(agent(comment(Visibility::Internal))).then_expect_events(vec![commented(Visibility::Internal, true, false)]);
    given(vec![opened()]).when(requester(comment(Visibility::Public))).then_expect_events(vec![commented(
        Visibility::Public,
        false,
        false,
    )]);
    let answered = Event::CommentAdded {
        comment: OTHER,
        body: ada("x"),
        visibility: Visibility::Public,
        author: Some(GRACE),
        by_agent: true,
        first_response: true,
    };
    given(vec![opened(), answered]).when(agent(comment(Visibility::Public))).then_expect_events(vec![commented(
        Visibility::Public,
        true,
        false,
    )]);
}

#[test]
fn a_requester_says_nothing_internal() {
    given(vec![opened()]).when(requester(comment(Visibility::Internal))).then_expect_error(Error::AgentsOnly);
    let secret = AttachFile { visibility: Visibility::Internal, ..attach() };
    given(vec![opened()]).when(requester(secret)).then_expect_error(Error::AgentsOnly);
}

#[test]
fn for_somebody_else_who_does_not_work_on_tickets_there_is_no_such_ticket() {
    for command in every_command() {
        let opens = matches!(command, Command::Open(_));
        let error = furnished(Status::Open).decide(issued(GRACE, Role::User, day(1), command)).unwrap_err();
        assert_eq!(error, if opens { Error::AlreadyExists } else { Error::NotFound });
    }
}

#[test]
fn asking_for_what_is_already_so_is_no_event() {
    let ticket = furnished(Status::Open);
    for command in [
        Command::from(EditTicket { subject: Some(subject(" Help ")) }),
        EditTicket::default().into(),
        AssignTicket { assignee: ADA }.into(),
        ChangePriority { priority: Priority::Normal }.into(),
        LinkTicket { ticket: FRESH, relation: Relation::RelatesTo }.into(),
        UnlinkTicket { ticket: OTHER }.into(),
        TagTicket { tag: tag("broken") }.into(),
        UntagTicket { tag: tag("other") }.into(),
        DetachFile { attachment: FRESH }.into(),
        AddFollower { user: ADA }.into(),
        RemoveFollower { user: GRACE }.into(),
    ] {
        assert_eq!(ticket.decide(agent(command.clone())).unwrap(), vec![], "{command:?}");
    }
}

#[test]
fn a_comment_is_redacted_once_and_must_exist() {
    let history = |redacted: bool| {
        let redaction = Event::CommentRedacted { comment: FRESH, visibility: Visibility::Public };
        [opened(), commented(Visibility::Public, false, false)].into_iter().chain(redacted.then_some(redaction)).collect::<Vec<_>>()
    };
    let redact = |comment| agent(RedactComment { comment });
    let redacted = Event::CommentRedacted { comment: FRESH, visibility: Visibility::Public };
    given(history(false)).when(redact(FRESH)).then_expect_events(vec![redacted]);
    given(history(true)).when(redact(FRESH)).then_expect_events(vec![]);
    given(history(true)).when(redact(OTHER)).then_expect_error(Error::NoSuchComment);
}

#[test]
fn an_id_that_is_in_use_is_refused() {
    let again = AddComment { id: Some(FRESH), ..comment(Visibility::Public) };
    given(vec![opened(), commented(Visibility::Public, false, false)]).when(agent(again)).then_expect_error(Error::PartExists);
    let opening = AddComment { id: Some(TICKET), ..comment(Visibility::Public) };
    given(vec![opened()]).when(agent(opening)).then_expect_error(Error::PartExists);
    let attached =
        Event::Attached { attachment: FRESH, name: ada("x"), size: 1, sha256: String::new(), visibility: Visibility::Public, by: None };
    given(vec![opened(), attached]).when(agent(attach())).then_expect_error(Error::PartExists);
}

#[test]
fn a_link_names_another_ticket_of_the_same_tenant_that_exists() {
    let link = LinkTicket { ticket: TICKET, relation: Relation::Duplicates };
    given(vec![opened()]).when(agent(link)).then_expect_error(Error::LinkedToItself);
    let linked = Event::Linked { ticket: OTHER, relation: Relation::Duplicates };
    assert_eq!(
        Ticket::requires(&linked, StreamId::new(TENANT, TICKET)),
        [Precondition::StreamExists { aggregate: "ticket", stream: StreamId::new(TENANT, OTHER) }]
    );
    assert_eq!(Ticket::requires(&opened(), StreamId::new(TENANT, TICKET)), []);
}

#[test]
fn everything_that_a_ticket_has_is_bounded() {
    let tags = (0..MAX_PARTS).map(|n| Event::Tagged { tag: format!("t{n}") });
    let full: Vec<_> = [opened(), Event::Untagged { tag: "broken".into() }].into_iter().chain(tags).collect();
    given(full).when(agent(TagTicket { tag: tag("more") })).then_expect_error(Error::TooMany { what: "tags", limit: MAX_PARTS });
    let links: Vec<_> =
        (0..MAX_PARTS).map(|n| Event::Linked { ticket: Uuid::from_u128(n as u128 + 50), relation: Relation::Blocks }).collect();
    let another = |n: u128| LinkTicket { ticket: Uuid::from_u128(n), relation: Relation::Duplicates };
    let full: Vec<_> = [opened()].into_iter().chain(links).collect();
    given(full.clone()).when(agent(another(49))).then_expect_error(Error::TooMany { what: "links", limit: MAX_PARTS });
    let changed = Event::Linked { ticket: Uuid::from_u128(50), relation: Relation::Duplicates };
    given(full).when(agent(another(50))).then_expect_events(vec![changed]);
    let many = OpenTicket { tags: (0..=MAX_PARTS).map(|n| tag(&format!("t{n}"))).collect(), ..open_ticket() };
    given(vec![]).when(agent(many)).then_expect_error(Error::TooMany { what: "tags", limit: MAX_PARTS });
}

#[test]
fn values_that_make_no_sense_cannot_even_be_said() {
    for bad in ["", "  ", "two\nlines", "nul\0", &"x".repeat(301)] {
        assert!(Subject::parse(bad).is_err(), "{bad:?}");
    }
    assert!(Message::parse(" \n ").is_err() && Message::parse("a\0b").is_err() && Message::parse(&"x".repeat(50_001)).is_err());
    assert_eq!(Message::parse("a\r\nb\tc").unwrap().as_str(), "a\nb\tc");
    assert!(Tag::parse("Two Words").is_err() && Tag::parse("two-words").is_ok());
    assert!(Sha256::parse("abc").is_err() && FileSize::try_from(1_u64 << 53).is_err());
    let patch = |json| serde_json::from_value::<EditTicket>(json);
    assert!(patch(serde_json::json!({"subject": null})).is_err(), "a subject cannot be removed");
    assert_eq!(patch(serde_json::json!({})).unwrap(), EditTicket::default());
}

/// A ticket as plain as can be, to compare with.
#[derive(Default)]
struct Model {
    status: Option<Status>,
    resolved: i64,
    redacted: BTreeMap<Uuid, bool>,
    attachments: BTreeSet<Uuid>,
    links: BTreeSet<Uuid>,
    has: BTreeSet<String>,
}

impl Model {
    /// What the command must do now: nothing (no such ticket, or refused), or so many events.
    fn expects(&mut self, agent: bool, today: i64, command: &Command) -> Option<usize> {
        let then = expected(self.status, command);
        let Some(status) = self.status else {
            self.status = (then == Then::Becomes(Status::New)).then_some(Status::New);
            self.has.insert("tag:broken".into());
            return self.status.map(|_| 1);
        };
        let mut set = |name: &str, there: bool| Some(usize::from(if there { self.has.insert(name.into()) } else { self.has.remove(name) }));
        let changed = match command {
            // Whoever resolved it 15 days ago has no second thoughts.
            Command::Reopen(_) if status == Status::Resolved && today > self.resolved + 14 => None,
            _ if then == Then::Refused && !matches!(command, Command::RedactComment(_)) => None,
            Command::AutoAssign(_) => set("assignee", true),
            _ if then == Then::AlreadySo => Some(0),
            Command::RedactComment(c) => self.redacted.get_mut(&c.comment).map(|redacted| usize::from(!std::mem::replace(redacted, true))),
            Command::AddComment(c) if c.visibility == Visibility::Internal && !agent => None,
            Command::AddComment(c) => self.redacted.insert(c.id.unwrap(), false).map_or(Some(1), |before| {
                self.redacted.insert(c.id.unwrap(), before);
                None
            }),
            Command::Attach(c) => self.attachments.insert(c.id.unwrap()).then_some(1),
            Command::Detach(c) => Some(usize::from(self.attachments.remove(&c.attachment))),
            Command::Link(c) => Some(usize::from(self.links.insert(c.ticket))),
            Command::Unlink(c) => Some(usize::from(self.links.remove(&c.ticket))),
            Command::Tag(c) => set(&format!("tag:{}", c.tag.as_str()), true),
            Command::Untag(c) => set(&format!("tag:{}", c.tag.as_str()), false),
            Command::AddFollower(c) => set(&format!("follower:{}", c.user), true),
            Command::RemoveFollower(c) => set(&format!("follower:{}", c.user), false),
            Command::Edit(_) => set("subject", true),
            Command::ChangePriority(_) => set("priority", true),
            Command::Assign(_) => set("assignee", true),
            Command::Unassign(_) => set("assignee", false),
            Command::Resolve(_) => {
                self.resolved = today;
                Some(1)
            }
            Command::ReleaseUser(_) => unreachable!("sent by a policy only"),
            Command::Open(_) | Command::ChangeStatus(_) | Command::Close(_) | Command::Reopen(_) | Command::Delete(_) => Some(1),
        };
        if let (Some(_), Then::Becomes(next)) = (changed, then) {
            self.status = Some(next);
        }
        changed
    }
}

proptest! {
    /// Whatever is asked in whatever order, by those who work on it and by the requester, as days go by: each answer is the one of the model, and the state is a fold of the
    /// events.
    #[test]
    fn random_sequences_of_commands_follow_the_model(choices in proptest::collection::vec((0..22_usize, 0..3_u128, any::<bool>(), 0..9_i64), 1..80)) {
        let (mut ticket, mut events, mut model, mut today) = (Ticket::default(), Vec::new(), Model::default(), 0);
        for (n, id, by_agent, days) in choices {
            today += days;
            let mut command = every_command().swap_remove(n);
            let id = Uuid::from_u128(id + 2);
            if let Command::AddComment(AddComment { id: named, .. }) | Command::Attach(AttachFile { id: named, .. }) = &mut command {
                *named = Some(id);
            }
            if let Command::RedactComment(RedactComment { comment: named })
            | Command::Detach(DetachFile { attachment: named })
            | Command::Link(LinkTicket { ticket: named, .. })
            | Command::Unlink(UnlinkTicket { ticket: named }) = &mut command
            {
                *named = id;
            }
            if let Command::AddComment(c) = &mut command {
                c.visibility = if days % 2 == 0 { Visibility::Internal } else { Visibility::Public };
            }
            if let Command::Open(c) = &mut command {
                c.requester = Some(ADA);
            }
            let (user, role) = if by_agent { (GRACE, Role::SupportAgent) } else { (ADA, Role::User) };
            let issued = issued(user, role, day(today), command.clone());
            // Somebody else sees nothing of it.
            let stranger = ticket.decide(self::issued(UserId(OTHER), Role::User, day(today), command.clone()));
            prop_assert!(stranger.is_err(), "{command:?}");
            let (wanted, real) = (model.expects(by_agent, today, &command), ticket.decide(issued.clone()));
            prop_assert_eq!(wanted, real.as_ref().ok().map(Vec::len), "{:?} {:?}: {:?}", model.status, command, real);
            for event in real.unwrap_or_default() {
                ticket.apply(event.clone());
                events.push(event);
            }
            prop_assert_eq!(ticket.status(), model.status);
        }
        prop_assert_eq!(&fold(&events), &ticket);
        let responses = events.iter().filter(|e| matches!(e, Event::CommentAdded { first_response: true, .. })).count();
        prop_assert!(responses <= 1);
    }
}
