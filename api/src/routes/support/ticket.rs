//! `/v1/tickets`.

use domain::UserId;
use domain::instant::{Day, Instant};
use domain::support::ticket::{
    AddComment, AddFollower, AssignTicket, AttachFile, AutoAssignTicket, ChangePriority, ChangeStatus, Channel, CloseTicket, DeleteTicket,
    DetachFile, EditTicket, LinkTicket, OpenTicket, Priority, RedactComment, RemoveFollower, ReopenTicket, ResolveTicket, Status,
    TagTicket, Ticket, UnassignTicket, UnlinkTicket, UntagTicket,
};
use domain::text::{SearchText, TokenText};
use projections::support::ticket::{self, Audience, Tickets};
use projections::support::ticket_statistics::{self, Statistics};
use projections::support::ticket_thread::{self, Thread};
use projections::{QueryError, Read, ReadModel as _};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::app::App;
use crate::extract::{After, Caller, Id, ListBody, Listed, Listing, Params, Query, Shown, Sought, bad_query, paging, unless_empty};
use crate::problem::Problem;
use crate::routes::Refusals;

pub(crate) fn routes() -> OpenApiRouter<App> {
    commands()
        .routes(routes!(list_tickets))
        .routes(routes!(get_ticket))
        .routes(routes!(list_ticket_thread))
        .routes(routes!(list_ticket_statistics))
}

crate::commands! { Ticket, "tickets", Caller::stream:
    create open_ticket(OpenTicket) "/v1/tickets";
    edit_ticket(EditTicket) patch "/v1/tickets/{id}" "application/merge-patch+json";
    add_comment(AddComment) post "/v1/tickets/{id}/comments" "application/json";
    redact_comment(RedactComment) post "/v1/tickets/{id}/redact-comment" "application/json";
    assign_ticket(AssignTicket) post "/v1/tickets/{id}/assign" "application/json";
    auto_assign_ticket(AutoAssignTicket) post "/v1/tickets/{id}/auto-assign" "application/json";
    unassign_ticket(UnassignTicket) post "/v1/tickets/{id}/unassign" "application/json";
    change_priority(ChangePriority) post "/v1/tickets/{id}/change-priority" "application/json";
    change_status(ChangeStatus) post "/v1/tickets/{id}/change-status" "application/json";
    resolve_ticket(ResolveTicket) post "/v1/tickets/{id}/resolve" "application/json";
    close_ticket(CloseTicket) post "/v1/tickets/{id}/close" "application/json";
    reopen_ticket(ReopenTicket) post "/v1/tickets/{id}/reopen" "application/json";
    delete_ticket(DeleteTicket) post "/v1/tickets/{id}/delete" "application/json";
    link_ticket(LinkTicket) post "/v1/tickets/{id}/link" "application/json";
    unlink_ticket(UnlinkTicket) post "/v1/tickets/{id}/unlink" "application/json";
    tag_ticket(TagTicket) post "/v1/tickets/{id}/tag" "application/json";
    untag_ticket(UntagTicket) post "/v1/tickets/{id}/untag" "application/json";
    attach_file(AttachFile) post "/v1/tickets/{id}/attach" "application/json";
    detach_file(DetachFile) post "/v1/tickets/{id}/detach" "application/json";
    add_follower(AddFollower) post "/v1/tickets/{id}/add-follower" "application/json";
    remove_follower(RemoveFollower) post "/v1/tickets/{id}/remove-follower" "application/json";
}

/// One ticket.
#[utoipa::path(
    get, path = "/v1/tickets/{id}", tag = "tickets",
    params(("id" = Uuid, Path, description = "Which one."), After),
    responses((status = 200, body = ticket::Row), (status = 304, description = "It has not changed."), Refusals)
)]
async fn get_ticket(query: Query, Id(id): Id, Params(p): Params<After>) -> Result<Shown, Problem> {
    query.require("ticket:read")?;
    let audience = Audience::of(&query.caller.actor);
    let sought = Sought::new(Caller::stream(id, &query.caller), &[Tickets::NAME], p.after);
    query
        .one::<Ticket, _, _, _>(sought, |mut read| async move { ticket::by_id(&mut read, audience, id).await.map(|row| (read, row)) })
        .await
}

/// Which tickets, in which order.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListTickets {
    /// In this status. Deleted ones are shown only when asked for.
    status: Option<Status>,
    /// Of this priority.
    priority: Option<Priority>,
    /// That came in this way.
    channel: Option<Channel>,
    /// That this user works on; `none`: that nobody works on.
    #[param(value_type = Option<String>)]
    assignee: Option<SearchText>,
    /// Of this requester.
    requester: Option<Uuid>,
    /// Filed under this word; needs `ticket:work`.
    #[param(value_type = Option<String>)]
    tag: Option<SearchText>,
    /// With this number.
    number: Option<i64>,
    /// In which the subject or one message has all these words: `invoice wrong`, `"wrong amount"`, `invoice -paid`.
    #[param(value_type = Option<String>, max_length = 200)]
    q: Option<SearchText>,
    /// Opened at or after this time.
    #[param(value_type = Option<String>, format = DateTime)]
    created_from: Option<Instant>,
    /// Opened before this time.
    #[param(value_type = Option<String>, format = DateTime)]
    created_to: Option<Instant>,
    /// `-created_at` (the default), `created_at`, and so on for `updated_at`, `number` and `priority`.
    #[param(value_type = Option<String>)]
    sort: Option<SearchText>,
    /// How many rows at most.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
    /// Where to go on: the `next_cursor` of the page before.
    #[param(value_type = Option<String>)]
    cursor: Option<TokenText>,
    /// Wait up to 2 s until the answer reflects this position; 504 if it takes longer.
    #[param(minimum = 0)]
    after: Option<i64>,
}

/// Tickets: all of the tenant's for those who work on them or only look, one's own for everybody else.
#[utoipa::path(
    get, path = "/v1/tickets", tag = "tickets", params(ListTickets),
    responses((status = 200, body = ListBody<ticket::Row>), Refusals)
)]
async fn list_tickets(query: Query, Params(p): Params<ListTickets>) -> Result<Listed<ticket::Row>, Problem> {
    query.require("ticket:read")?;
    if p.tag.is_some() {
        query.require("ticket:work")?;
    }
    let audience = Audience::of(&query.caller.actor);
    let paging = paging(&audience.ticket_orders(), p.sort.as_deref(), p.limit, p.cursor)?;
    let assignee = match p.assignee.as_deref() {
        None => None,
        Some("none") => Some(None),
        Some(id) => Some(Some(id.parse().map_err(|_| bad_query("assignee must be a user's id, or none"))?)),
    };
    let filter = ticket::Filter {
        status: p.status,
        priority: p.priority,
        channel: p.channel,
        assignee,
        requester: p.requester.map(UserId),
        tag: p.tag.map(Into::into),
        number: p.number,
        q: p.q.map(Into::into),
        created_from: p.created_from.map(Into::into),
        created_to: p.created_to.map(Into::into),
    };
    // What is said is looked for in the thread too.
    let models = if filter.q.is_some() { &[Tickets::NAME, Thread::NAME][..] } else { &[Tickets::NAME] };
    let mut read = query.open(models, p.after).await?;
    let page = ticket::list(&mut read, query.cursors(), audience, &filter, &paging).await?;
    Ok(query.page(&read, page))
}

/// What is said in a ticket, as far as the caller may read it: the opening, then the comments; newest first, or with `sort=created_at` oldest first.
#[utoipa::path(
    get, path = "/v1/tickets/{id}/thread", tag = "tickets",
    params(("id" = Uuid, Path, description = "Which one."), Listing),
    responses((status = 200, body = ListBody<ticket_thread::Row>), Refusals)
)]
async fn list_ticket_thread(query: Query, Id(id): Id, Params(p): Params<Listing>) -> Result<Listed<ticket_thread::Row>, Problem> {
    query.require("ticket:read")?;
    let paging = paging(&ticket_thread::ORDERS, p.sort.as_deref(), p.limit, p.cursor)?;
    let (audience, cursors) = (Audience::of(&query.caller.actor), query.cursors().clone());
    let sought = Sought::new(Caller::stream(id, &query.caller), &[Thread::NAME], p.after);
    let (cursors, paging) = (&cursors, &paging);
    let fetch = |mut read: Read| async move {
        let page = ticket_thread::list(&mut read, cursors, audience, id, paging).await?;
        Ok::<_, QueryError>((read, unless_empty(page, paging)))
    };
    query.of_one::<Ticket, _, _, _>(sought, fetch).await
}

/// Which days.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListStatistics {
    /// From this day on, UTC.
    #[param(value_type = Option<String>, format = Date)]
    from: Option<Day>,
    /// To this day, which is included.
    #[param(value_type = Option<String>, format = Date)]
    to: Option<Day>,
    /// `-day` (the default) or `day`.
    #[param(value_type = Option<String>)]
    sort: Option<SearchText>,
    /// How many rows at most.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
    /// Where to go on: the `next_cursor` of the page before.
    #[param(value_type = Option<String>)]
    cursor: Option<TokenText>,
    /// Wait up to 2 s until the answer reflects this position; 504 if it takes longer.
    #[param(minimum = 0)]
    after: Option<i64>,
}

/// What happened to the tenant's tickets, day by day (UTC). Days on which nothing did are left out.
#[utoipa::path(
    get, path = "/v1/tickets/statistics", tag = "tickets", params(ListStatistics),
    responses((status = 200, body = ListBody<ticket_statistics::Row>), Refusals)
)]
async fn list_ticket_statistics(query: Query, Params(p): Params<ListStatistics>) -> Result<Listed<ticket_statistics::Row>, Problem> {
    query.require("ticket:report")?;
    let paging = paging(&ticket_statistics::ORDERS, p.sort.as_deref(), p.limit, p.cursor)?;
    let mut read = query.open(&[Statistics::NAME], p.after).await?;
    let audience = Audience::of(&query.caller.actor);
    let page = ticket_statistics::list(&mut read, query.cursors(), audience, p.from.map(Into::into), p.to.map(Into::into), &paging).await?;
    Ok(query.page(&read, page))
}
