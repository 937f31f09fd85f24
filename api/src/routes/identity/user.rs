//! `/v1/users` and `/v1/invitations`.

use access::passwords::Password;
use access::sessions::Session;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use domain::Role;
use domain::identity::user::{
    ChangeEmail, ChangeRole, DeactivateUser, DeleteUser, EraseUser, Error, InviteUser, LockUser, ReactivateUser, RegisterUser,
    RequestEmailVerification, ResendInvitation, RevokeInvitation, SetPassword, Status, SuspendUser, UnlockUser, UpdateProfile, User,
};
use domain::text::{SearchText, TokenText};
use projections::ReadModel as _;
use projections::identity::invitation::{self, Answer, Invitations};
use projections::identity::user::{self, Users};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::app::App;
use crate::extract::{
    After, Body, Caller, Drawn, Id, ListBody, Listed, Params, Query, Repeat, Shown, Sought, Write, Written, WrittenBody, nothing, paging,
};
use crate::problem::Problem;
use crate::routes::Refusals;

pub(crate) fn routes() -> OpenApiRouter<App> {
    commands()
        .routes(routes!(invite_user))
        .routes(routes!(set_password))
        .routes(routes!(list_users))
        .routes(routes!(get_user))
        .routes(routes!(list_invitations))
        .routes(routes!(list_user_sessions))
        .routes(routes!(end_user_sessions))
}

crate::commands! { User, "users", Caller::stream:
    create register_user(RegisterUser) "/v1/users";
    update_profile(UpdateProfile) patch "/v1/users/{id}" "application/merge-patch+json";
    resend_invitation(ResendInvitation) post "/v1/users/{id}/resend-invitation" "application/json";
    revoke_invitation(RevokeInvitation) post "/v1/users/{id}/revoke-invitation" "application/json";
    request_email_verification(RequestEmailVerification) post "/v1/users/{id}/request-email-verification" "application/json";
    change_email(ChangeEmail) post "/v1/users/{id}/change-email" "application/json";
    change_role(ChangeRole) post "/v1/users/{id}/change-role" "application/json";
    lock_user(LockUser) post "/v1/users/{id}/lock" "application/json";
    unlock_user(UnlockUser) post "/v1/users/{id}/unlock" "application/json";
    suspend_user(SuspendUser) post "/v1/users/{id}/suspend" "application/json";
    reactivate_user(ReactivateUser) post "/v1/users/{id}/reactivate" "application/json";
    deactivate_user(DeactivateUser) post "/v1/users/{id}/deactivate" "application/json";
    delete_user(DeleteUser) post "/v1/users/{id}/delete" "application/json";
    erase_user(EraseUser) post "/v1/users/{id}/erase" "application/json";
}

/// See [`InviteUser`].
#[utoipa::path(
    post, path = "/v1/invitations", tag = "users", operation_id = "invite_user", request_body = InviteUser,
    responses((status = 201, description = "Made.", body = WrittenBody), Refusals)
)]
async fn invite_user(write: Write<User>, body: Body<InviteUser>) -> Result<Written, Problem> {
    let stream = Caller::stream(write.id_for(body.command.id), write.caller());
    write.create(stream, body).await
}

/// A password for somebody else.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewPassword {
    /// The password.
    #[schema(value_type = String, example = "correct horse battery staple")]
    password: Password,
}

/// Gives somebody a password. All their sessions end.
#[utoipa::path(
    post, path = "/v1/users/{id}/set-password", tag = "users", operation_id = "set_password", request_body = NewPassword,
    params(("id" = Uuid, Path, description = "Whom.")),
    responses((status = 200, description = "Done.", body = WrittenBody), Refusals)
)]
async fn set_password(app: State<App>, write: Write<User>, Id(id): Id, body: Body<NewPassword>) -> Result<Written, Problem> {
    // One's own is changed by whoever knows it: see `/v1/me/change-password`.
    write.caller().require("user:manage")?;
    let stream = Caller::stream(id, write.caller());
    let credential = app.access.credential(stream, body.command.password.clone(), None).await?;
    let written = write.execute(stream, body.map(|_| SetPassword { credential, keeps: None, proven: false })).await;
    if written.as_ref().is_err_and(Problem::is_refusal) {
        app.access.discard(stream.tenant, credential).await?;
    }
    written
}

/// One user.
#[utoipa::path(
    get, path = "/v1/users/{id}", tag = "users",
    params(("id" = Uuid, Path, description = "Which one."), After),
    responses((status = 200, body = user::Row), (status = 304, description = "They have not changed."), Refusals)
)]
async fn get_user(query: Query, Id(id): Id, Params(p): Params<After>) -> Result<Shown, Problem> {
    query.require("user:read")?;
    let sought = Sought::new(Caller::stream(id, &query.caller), &[Users::NAME], p.after);
    query.one::<User, _, _, _>(sought, |mut read| async move { user::by_id(&mut read, id).await.map(|row| (read, row)) }).await
}

/// Which users, in which order.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListUsers {
    /// In this status. Deleted ones are shown only when asked for.
    status: Option<Status>,
    /// In this role.
    #[param(value_type = Option<String>)]
    role: Option<Role>,
    /// With this in the name or the address, whatever its case.
    #[param(value_type = Option<String>, max_length = 200)]
    q: Option<SearchText>,
    /// `-created_at` (the default), `created_at`, and so on for `name` and `email`.
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

/// The tenant's users.
#[utoipa::path(get, path = "/v1/users", tag = "users", params(ListUsers), responses((status = 200, body = ListBody<user::Row>), Refusals))]
async fn list_users(query: Query, Params(p): Params<ListUsers>) -> Result<Listed<user::Row>, Problem> {
    query.require("user:read")?;
    let paging = paging(&user::ORDERS, p.sort.as_deref(), p.limit, p.cursor)?;
    let filter = user::Filter { status: p.status, role: p.role, q: p.q.map(Into::into) };
    let mut read = query.open(&[Users::NAME], p.after).await?;
    let page = user::list(&mut read, query.cursors(), &filter, &paging).await?;
    Ok(query.page(&read, page))
}

/// Which invitations.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListInvitations {
    /// With this answer.
    answer: Option<Answer>,
    /// `-created_at` (the default) or `created_at`.
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

/// Who was asked to become a user, and what they answered.
#[utoipa::path(
    get, path = "/v1/invitations", tag = "users", params(ListInvitations),
    responses((status = 200, body = ListBody<invitation::Row>), Refusals)
)]
async fn list_invitations(query: Query, Params(p): Params<ListInvitations>) -> Result<Listed<invitation::Row>, Problem> {
    query.require("user:read")?;
    let paging = paging(&invitation::ORDERS, p.sort.as_deref(), p.limit, p.cursor)?;
    let mut read = query.open(&[Invitations::NAME], p.after).await?;
    let page = invitation::list(&mut read, query.cursors(), p.answer, &paging).await?;
    Ok(query.page(&read, page))
}

fn user_error(error: &Error) -> Problem {
    commands::CommandError::rule(error).into()
}

/// Sessions.
#[derive(Serialize, ToSchema)]
pub(crate) struct Sessions {
    /// The newest first.
    pub(crate) data: Vec<Session>,
}

/// How many sessions ended.
#[derive(Serialize, ToSchema)]
pub(crate) struct Ended {
    /// How many.
    #[schema(example = 1)]
    pub(crate) ended: u64,
}

/// Which sessions to end.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EndSessions {
    /// One of them; all, if nothing is said.
    #[serde(default)]
    #[schema(example = json!(null))]
    pub(crate) session: Option<Uuid>,
}

/// The sessions of a user that go on.
#[utoipa::path(
    get, path = "/v1/users/{id}/sessions", tag = "users", params(("id" = Uuid, Path, description = "Whose.")),
    responses((status = 200, body = Sessions), Refusals)
)]
async fn list_user_sessions(app: State<App>, caller: Caller, Id(id): Id) -> Result<axum::Json<Sessions>, Problem> {
    caller.require("session:read")?;
    Ok(axum::Json(Sessions { data: app.access.sessions(Caller::stream(id, &caller)).await? }))
}

/// Ends sessions of a user: one, or all. Their access tokens open nothing within a second.
#[utoipa::path(
    post, path = "/v1/users/{id}/end-sessions", tag = "users", params(("id" = Uuid, Path, description = "Whose.")),
    request_body = EndSessions,
    responses((status = 200, body = Ended), Refusals)
)]
async fn end_user_sessions(
    app: State<App>,
    caller: Caller,
    repeat: Repeat,
    Id(id): Id,
    body: Body<EndSessions>,
) -> Result<Response, Problem> {
    caller.require("session:revoke")?;
    let (asked, which, user) = (body.asked(), body.command.session, Caller::stream(id, &caller));
    if !app.access.covers(&caller.actor, user).await? {
        return Err(user_error(&Error::BeyondYou));
    }
    let run = |_: Drawn<()>| async {
        let ended = app.access.end_sessions(user, which, None, &caller.actor.name()).await?;
        Ok(axum::Json(Ended { ended }).into_response())
    };
    repeat.once(&asked, nothing(), run).await
}
