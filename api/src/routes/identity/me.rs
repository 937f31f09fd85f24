//! `/v1/me` and `/v1/authz`: what a caller is and may, and what they do with their own account.

use std::collections::BTreeSet;

use access::authenticate::permissions;
use access::passwords::Password;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use domain::text::Email;
use domain::text::Permission;
use domain::{Actor, Role, StreamId, TenantId};
use projections::ReadModel as _;
use projections::View;
use projections::identity::tenant::Tenants;
use projections::identity::user::{self, Membership, Users};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::user::{EndSessions, Ended, Sessions};
use crate::app::App;
use crate::extract::{Body, Caller, Drawn, Repeat, nothing};
use crate::problem::{Problem, code};
use crate::routes::Refusals;

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(me))
        .routes(routes!(check))
        .routes(routes!(my_tenants))
        .routes(routes!(my_sessions))
        .routes(routes!(end_my_sessions))
        .routes(routes!(change_my_password))
        .routes(routes!(change_my_email))
}

/// Who the caller is.
#[derive(Serialize, ToSchema)]
struct Me {
    /// The caller's tenant; that of an operator's or a platform's token is the one acted for.
    tenant_id: TenantId,
    /// Who: a user's or a key's id.
    #[schema(example = "01900000-0000-7000-8000-000000000001")]
    actor: String,
    /// The user, where the caller is one.
    user: Option<user::Row>,
    /// Their role.
    role: Option<Role>,
    /// What the caller may, now.
    #[schema(example = json!(["ticket:open", "ticket:read"]))]
    permissions: BTreeSet<&'static str>,
    /// The session of the token.
    session_id: Option<Uuid>,
    /// The API key that was used.
    api_key_id: Option<Uuid>,
}

/// Who the caller is, and what they may now.
#[utoipa::path(get, path = "/v1/me", tag = "me", responses((status = 200, body = Me), Refusals))]
async fn me(app: State<App>, caller: Caller) -> Result<axum::Json<Me>, Problem> {
    let user = match caller.own_user() {
        Ok(stream) => {
            let mut read = app.reads.begin(View::Tenant(stream.tenant), &[Users::NAME], None);
            user::by_id(&mut read, stream.id).await?.map(|user| user.read()).transpose()?
        }
        Err(_) => None,
    };
    let role = match &caller.actor {
        Actor::User { role, .. } => Some(*role),
        Actor::Service { .. } | Actor::Device { .. } | Actor::System { .. } => None,
    };
    Ok(axum::Json(Me {
        tenant_id: caller.tenant,
        actor: caller.actor.name(),
        user,
        role,
        permissions: permissions(&caller.actor),
        session_id: caller.session,
        api_key_id: caller.key,
    }))
}

/// The most permissions asked for at a time.
const CHECKS: usize = 200;

/// What is asked.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Check {
    /// The permissions.
    #[schema(example = json!(["ticket:open", "user:invite"]))]
    permissions: Vec<Permission>,
}

/// What is answered, in the same order.
#[derive(Serialize, ToSchema)]
struct Checked {
    /// One for each that was asked for.
    results: Vec<Allowed>,
}

/// Whether the caller has a permission.
#[derive(Serialize, ToSchema)]
struct Allowed {
    /// Which.
    #[schema(example = "ticket:open")]
    permission: String,
    /// Whether they have it now.
    #[schema(example = true)]
    allowed: bool,
}

/// Whether the caller may, now: for programs that guard something of their own by the same roles. Up to 200 permissions at a time.
#[utoipa::path(post, path = "/v1/authz/check", tag = "me", operation_id = "check_permissions", request_body = Check, responses((status = 200, body = Checked), Refusals))]
async fn check(caller: Caller, body: Body<Check>) -> Result<axum::Json<Checked>, Problem> {
    let permissions = body.command.permissions;
    if permissions.len() > CHECKS {
        return Err(Problem::invalid("/permissions".into(), format!("must not be more than {CHECKS}")));
    }
    let results = permissions
        .into_iter()
        .map(|permission| Allowed { allowed: caller.actor.may(&permission), permission: permission.into() })
        .collect();
    Ok(axum::Json(Checked { results }))
}

/// Tenants.
#[derive(Serialize, ToSchema)]
struct Memberships {
    /// The oldest first.
    data: Vec<Membership>,
}

/// The tenants in which the caller has a user, by the address that is shown to be theirs: where `/v1/auth/switch-tenant` leads.
#[utoipa::path(get, path = "/v1/me/tenants", tag = "me", responses((status = 200, body = Memberships), Refusals))]
async fn my_tenants(app: State<App>, caller: Caller) -> Result<axum::Json<Memberships>, Problem> {
    let stream = caller.in_person()?;
    let details = app.access.details(stream).await?;
    let Some(email) = details.and_then(|user| user.proven_email().cloned()) else {
        return Ok(axum::Json(Memberships { data: vec![] }));
    };
    let mut read = app.reads.begin_for(stream.tenant, View::Platform, &[Users::NAME, Tenants::NAME], None);
    Ok(axum::Json(Memberships { data: user::memberships(&mut read, &email).await? }))
}

/// The caller's sessions that go on.
#[utoipa::path(get, path = "/v1/me/sessions", tag = "me", responses((status = 200, body = Sessions), Refusals))]
async fn my_sessions(app: State<App>, caller: Caller) -> Result<axum::Json<Sessions>, Problem> {
    Ok(axum::Json(Sessions { data: app.access.sessions(caller.in_person()?).await? }))
}

/// Ends sessions of the caller: one, or all but the present one.
#[utoipa::path(post, path = "/v1/me/end-sessions", tag = "me", operation_id = "end_my_sessions", request_body = EndSessions, responses((status = 200, body = Ended), Refusals))]
async fn end_my_sessions(app: State<App>, caller: Caller, repeat: Repeat, body: Body<EndSessions>) -> Result<Response, Problem> {
    let (asked, which) = (body.asked(), body.command.session);
    let but = if which.is_none() { caller.session } else { None };
    let user = caller.in_person()?;
    let run = |_: Drawn<()>| async {
        Ok(axum::Json(Ended { ended: app.access.end_sessions(user, which, but, &caller.actor.name()).await? }).into_response())
    };
    repeat.once(&asked, nothing(), run).await
}

/// Refuses somebody who does not know their password. A wrong one counts, as at a login.
async fn prove(app: &App, caller: &Caller, user: StreamId, password: Password) -> Result<(), Problem> {
    if app.access.knows(user, caller.session, password).await? {
        return Ok(());
    }
    Err(Problem::new(code::WRONG_PASSWORD, "the present password is another one, or nobody can use it for a while"))
}

/// Another address.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ChangeMyEmail {
    /// The present password.
    #[schema(value_type = String, example = "correct horse battery staple")]
    current_password: Password,
    /// The new address.
    email: Email,
}

/// Changes the caller's address. They get a mail with a link that shows it to be theirs.
#[utoipa::path(
    post, path = "/v1/me/change-email", tag = "me", operation_id = "change_my_email", request_body = ChangeMyEmail,
    responses((status = 204, description = "Done."), Refusals)
)]
async fn change_my_email(app: State<App>, caller: Caller, repeat: Repeat, body: Body<ChangeMyEmail>) -> Result<Response, Problem> {
    let (stream, asked) = (caller.in_person()?, body.asked());
    let ChangeMyEmail { current_password, email } = body.command;
    let run = |_: Drawn<()>| async move {
        prove(&app, &caller, stream, current_password).await?;
        app.access.change_email(stream, email, caller.actor).await?;
        Ok(StatusCode::NO_CONTENT.into_response())
    };
    repeat.once(&asked, nothing(), run).await
}

/// Another password.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ChangePassword {
    /// The present one.
    #[schema(value_type = String, example = "correct horse battery staple")]
    current_password: Password,
    /// The new one.
    #[schema(value_type = String, example = "purple monkey dishwasher lamp")]
    password: Password,
}

/// Changes the caller's password. All their other sessions end.
#[utoipa::path(
    post, path = "/v1/me/change-password", tag = "me", operation_id = "change_my_password", request_body = ChangePassword,
    responses((status = 204, description = "Done."), Refusals)
)]
async fn change_my_password(app: State<App>, caller: Caller, repeat: Repeat, body: Body<ChangePassword>) -> Result<Response, Problem> {
    let (stream, asked) = (caller.in_person()?, body.asked());
    let ChangePassword { current_password, password } = body.command;
    let run = |_: Drawn<()>| async move {
        prove(&app, &caller, stream, current_password).await?;
        app.access.change_password(stream, password, caller.session, caller.actor).await?;
        Ok(StatusCode::NO_CONTENT.into_response())
    };
    repeat.once(&asked, nothing(), run).await
}
