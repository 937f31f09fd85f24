//! What may be asked of a ticket, and why it may be refused.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Channel, Priority, Relation, Status, Visibility};
use crate::ids::UserId;
use crate::text::{FileName, Sha256, Tag, TextError, block, line, not_null};

crate::text_types! {
    /// What a ticket is about, in one line.
    Subject { max: 300, example: "The invoice shows the wrong amount", parse: |t| line(t, 300) }
    /// What somebody says, in any number of lines.
    Message { max: 50_000, example: "Invoice 2041 says 99.00 USD, our plan is 29.00.", parse: |t| block(t, 50_000) }
}

/// Asks for help.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OpenTicket {
    /// The ticket's id, if the client chooses one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    /// What it is about.
    pub subject: Subject,
    /// What is asked.
    pub body: Message,
    /// How soon it matters.
    #[serde(default)]
    pub priority: Priority,
    /// How it came in.
    #[serde(default)]
    pub channel: Channel,
    /// Who needs help: the caller, unless somebody who works on tickets says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requester: Option<UserId>,
    /// What to file it under.
    #[serde(default)]
    #[schema(max_items = 50)]
    pub tags: Vec<Tag>,
}

/// Changes plain fields by a JSON merge patch (RFC 7396); what is left out stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EditTicket {
    /// What it is about; cannot be `null`.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub subject: Option<Subject>,
}

/// Says something.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddComment {
    /// The comment's id, if the client chooses one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    /// What.
    pub body: Message,
    /// Who may read it; `internal` is for those who work on tickets.
    #[serde(default)]
    pub visibility: Visibility,
}

/// Takes a comment's text out of sight for good.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RedactComment {
    /// Which comment.
    pub comment: Uuid,
}

/// Has somebody work on a ticket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AssignTicket {
    /// Who.
    pub assignee: UserId,
}

/// Says how soon a ticket matters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangePriority {
    /// How soon.
    pub priority: Priority,
}

/// Goes on with a ticket, or lets it wait.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeStatus {
    /// Go on, or wait for what.
    pub status: WorkStatus,
}

/// Where a ticket stands while it is worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WorkStatus {
    /// Work goes on.
    Open,
    /// The requester has to answer.
    PendingCustomer,
    /// Something else has to happen first.
    OnHold,
}

impl From<WorkStatus> for Status {
    fn from(status: WorkStatus) -> Self {
        match status {
            WorkStatus::Open => Self::Open,
            WorkStatus::PendingCustomer => Self::PendingCustomer,
            WorkStatus::OnHold => Self::OnHold,
        }
    }
}

/// Says that a ticket has to do with another one of the tenant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LinkTicket {
    /// The other one.
    pub ticket: Uuid,
    /// What this one is to the other.
    #[serde(default)]
    pub relation: Relation,
}

/// Says that a ticket has nothing to do with another one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UnlinkTicket {
    /// The other one.
    pub ticket: Uuid,
}

/// Files a ticket under a word.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TagTicket {
    /// The word.
    pub tag: Tag,
}

/// Files a ticket under a word no more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UntagTicket {
    /// The word.
    pub tag: Tag,
}

/// Says that a file, which is kept elsewhere, belongs to a ticket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachFile {
    /// The attachment's id, if the client chooses one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    /// The file's name.
    pub name: FileName,
    /// Its size in bytes.
    #[schema(example = 48_213, maximum = 9_007_199_254_740_991_i64)]
    pub size: FileSize,
    /// The SHA-256 of its content, in hexadecimal.
    pub sha256: Sha256,
    /// Who may see it; `internal` is for those who work on tickets.
    #[serde(default)]
    pub visibility: Visibility,
}

/// A size in bytes that every JSON reader can hold: at most 2^53 − 1 (RFC 8259 section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "u64", into = "u64")]
#[schema(value_type = u64)]
pub struct FileSize(u64);

impl TryFrom<u64> for FileSize {
    type Error = TextError;

    fn try_from(size: u64) -> Result<Self, TextError> {
        if size < 1 << 53 { Ok(Self(size)) } else { Err(TextError::Malformed("must be less than 2^53")) }
    }
}

impl From<FileSize> for u64 {
    fn from(size: FileSize) -> Self {
        size.0
    }
}

/// Says that a file does not belong to a ticket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DetachFile {
    /// Which attachment.
    pub attachment: Uuid,
}

/// Lets somebody know how a ticket goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddFollower {
    /// Whom.
    pub user: UserId,
}

/// Lets somebody know no more how a ticket goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveFollower {
    /// Whom.
    pub user: UserId,
}

/// Lets go of a user who can work no more; sent by a policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReleaseUser {
    /// Whom.
    pub user: UserId,
    /// Whether they are gone for good: then they follow nothing either.
    pub gone: bool,
}

crate::bare_commands! {
    /// Has the one work on a ticket who has the fewest to work on, unless somebody does already.
    AutoAssignTicket
    /// Has nobody in particular work on a ticket.
    UnassignTicket
    /// Says that a ticket is done. It can be reopened for 14 days.
    ResolveTicket
    /// Says that a resolved ticket is done for good.
    CloseTicket
    /// Says that a resolved ticket is not done after all.
    ReopenTicket
    /// Deletes a ticket that is spam.
    DeleteTicket
}

crate::commands! { "ticket":
    Open(OpenTicket) "open", "open";
    Edit(EditTicket) "edit", "edit";
    AddComment(AddComment) "add_comment", "comment";
    RedactComment(RedactComment) "redact_comment", "redact_comment";
    Assign(AssignTicket) "assign", "assign";
    AutoAssign(AutoAssignTicket) "auto_assign", "assign";
    Unassign(UnassignTicket) "unassign", "assign";
    ChangePriority(ChangePriority) "change_priority", "change_priority";
    ChangeStatus(ChangeStatus) "change_status", "change_status";
    Resolve(ResolveTicket) "resolve", "resolve";
    Close(CloseTicket) "close", "close";
    Reopen(ReopenTicket) "reopen", "reopen";
    Delete(DeleteTicket) "delete", "delete";
    Link(LinkTicket) "link", "link";
    Unlink(UnlinkTicket) "unlink", "link";
    Tag(TagTicket) "tag", "tag";
    Untag(UntagTicket) "untag", "tag";
    Attach(AttachFile) "attach", "attach";
    Detach(DetachFile) "detach", "detach";
    AddFollower(AddFollower) "add_follower", "follow";
    RemoveFollower(RemoveFollower) "remove_follower", "follow";
    ReleaseUser(ReleaseUser) "release_user", "release_user";
}

crate::errors! {
    /// Why a ticket refuses.
    Error {
        /// There is none, or none that the caller may see.
        NotFound: NotFound "ticket.not_found", "there is no such ticket";
        /// The id is in use.
        AlreadyExists: Conflict "ticket.already_exists", "a ticket with this id exists already";
        /// The status does not allow the command.
        NotWhile {
            /// The command's name.
            command: &'static str,
            /// The ticket's status.
            status: Status,
        }: Conflict "ticket.cannot_while", "a ticket that is {status} cannot {command}";
        /// It was resolved too long ago.
        ReopenWindowPassed: Conflict "ticket.reopen_window_passed", "a resolved ticket can be reopened within 14 days only";
        /// Only those who work on tickets open them for others, or say what is internal.
        AgentsOnly: Forbidden "ticket.agents_only", "this needs the permission ticket:work";
        /// Tenure itself has no tickets: somebody has to be named.
        NoRequester: Invalid "ticket.no_requester", "a requester has to be named";
        /// There is no such comment on this ticket.
        NoSuchComment: NotFound "ticket.no_such_comment", "the ticket has no such comment";
        /// The id of a comment or an attachment is in use, or the ticket's own.
        PartExists: Conflict "ticket.part_exists", "the ticket has a comment or an attachment with this id already";
        /// A ticket cannot be linked to itself.
        LinkedToItself: Invalid "ticket.linked_to_itself", "a ticket cannot be linked to itself";
        /// The ticket to link to does not exist.
        NothingToLink: Invalid "ticket.nothing_to_link", "there is no such ticket to link to";
        /// Only an active user with ticket:work works on tickets.
        NotAnAgent: Invalid "ticket.not_an_agent", "the assignee is no active user who may work on tickets";
        /// A requester or a follower has to be a user of the tenant.
        NoSuchUser: Invalid "ticket.no_such_user", "the requester or follower is no user of the tenant";
        /// There is nobody who works on tickets.
        NobodyToAssign: Conflict "ticket.nobody_to_assign", "the tenant has no active user who may work on tickets";
        /// There is a bound on everything that a ticket has.
        TooMany {
            /// Of what.
            what: &'static str,
            /// How many there may be.
            limit: usize,
        }: Conflict "ticket.too_many", "a ticket may have {limit} {what} at most";
    }
    code Self::NotWhile { command, status } => format!("ticket.cannot_{command}_while_{status}");
}
