//! `/v1/auth`: logging in and out, tokens, and what links in mails are good for.

use access::authenticate::Introspection;
use access::passwords::Password;
use access::sessions::{Login, Tokens};
use axum::extract::{FromRequest, State};
use axum::http::header::{CACHE_CONTROL, USER_AGENT};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use domain::StreamId;
use domain::text::DisplayName;
use domain::text::{LoginName, TokenText};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::app::App;
use crate::client_address::ClientAddress;
use crate::extract::{Body, Caller, Drawn, Repeat, WrittenBody, nothing};
use crate::problem::{Problem, code};
use crate::routes::Refusals;

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(login))
        .routes(routes!(refresh))
        .routes(routes!(logout))
        .routes(routes!(switch_tenant))
        .routes(routes!(introspect))
        .routes(routes!(revoke))
        .routes(routes!(jwks))
        .routes(routes!(request_password_reset))
        .routes(routes!(reset_password))
        .routes(routes!(verify_email))
        .routes(routes!(accept_invitation))
        .routes(routes!(decline_invitation))
}

/// Which kind of access tokens is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = AccessTokenFormat)]
enum Format {
    /// A JWT (RFC 7519) that others can read and check with the published keys.
    #[default]
    Jwt,
    /// One that only Tenure can read.
    Opaque,
}

/// A login.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct LogIn {
    /// The tenant's id or slug; `system` is the platform.
    #[schema(value_type = String, example = "acme")]
    tenant: LoginName,
    /// The user's address.
    #[schema(value_type = String, example = "ada@example.com")]
    email: LoginName,
    /// Their password.
    #[schema(value_type = String, example = "correct horse battery staple")]
    password: Password,
    /// Which kind of access tokens is wanted.
    #[serde(default)]
    access_token_format: Format,
}

fn agent(headers: &HeaderMap) -> Option<&str> {
    headers.get(USER_AGENT).and_then(|value| value.to_str().ok())
}

const TENURE_DEVICE: HeaderName = HeaderName::from_static("tenure-device");

fn device(headers: &HeaderMap) -> Option<&str> {
    headers.get(TENURE_DEVICE).and_then(|value| value.to_str().ok())
}

fn written(outcome: &commands::Outcome) -> axum::Json<WrittenBody> {
    axum::Json(WrittenBody::of(outcome))
}

/// An answer with tokens in it, which nobody on the way may keep (RFC 6749 section 5.1).
struct Secret<T>(T);

impl<T: Serialize> IntoResponse for Secret<T> {
    fn into_response(self) -> Response {
        ([(CACHE_CONTROL, "no-store")], axum::Json(self.0)).into_response()
    }
}

/// Begin a session. After ten wrong passwords within 15 minutes from one network address, no more are accepted from there for that account until the 15 minutes have passed; a
/// known device has its own count. The answer carries a `device_token`: send it in `Tenure-Device` with the next login on the same device.
#[utoipa::path(
    post, path = "/v1/auth/login", tag = "auth", security(()), request_body = LogIn,
    params(("Tenure-Device" = Option<String>, Header, description = "The `device_token` of an earlier login on this device.")),
    responses((status = 200, body = Tokens), Refusals)
)]
async fn login(State(app): State<App>, address: ClientAddress, headers: HeaderMap, body: Body<LogIn>) -> Result<Secret<Tokens>, Problem> {
    let LogIn { tenant, email, password, access_token_format } = body.command;
    let opaque = access_token_format == Format::Opaque;
    let login =
        Login { tenant: &tenant, email: &email, opaque, user_agent: agent(&headers), source: address.source(), device: device(&headers) };
    Ok(Secret(app.access.login(login, password).await?))
}

/// A refresh token.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Refresh {
    /// The newest of the session.
    #[schema(value_type = String, example = "trt_AaH8TVi…")]
    refresh_token: TokenText,
}

/// The next tokens of a session. A refresh token is good once; asked again within 10 s it gets the same answer, after that the whole session ends.
#[utoipa::path(post, path = "/v1/auth/refresh", tag = "auth", security(()), request_body = Refresh, responses((status = 200, body = Tokens), Refusals))]
async fn refresh(State(app): State<App>, body: Body<Refresh>) -> Result<Secret<Tokens>, Problem> {
    Ok(Secret(app.access.refresh(&body.command.refresh_token).await?))
}

/// Ends the session of the token.
#[utoipa::path(post, path = "/v1/auth/logout", tag = "auth", responses((status = 204, description = "Done."), Refusals))]
async fn logout(State(app): State<App>, caller: Caller) -> Result<StatusCode, Problem> {
    let session = caller.session.ok_or_else(|| Problem::new(code::NO_ACCOUNT, "the token belongs to no session"))?;
    let user = StreamId::new(caller.actor.tenant().unwrap_or(caller.tenant), caller.actor.user().map_or(Uuid::nil(), |user| user.0));
    app.access.end_sessions(user, Some(session), None, &caller.actor.name()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Another tenant.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SwitchTenant {
    /// Its id or slug.
    #[schema(value_type = String, example = "acme")]
    tenant: LoginName,
    /// Which kind of access tokens is wanted.
    #[serde(default)]
    access_token_format: Format,
}

/// Begins a session in another tenant in which the caller has a user with the same address, shown to be theirs in both.
#[utoipa::path(
    post, path = "/v1/auth/switch-tenant", tag = "auth", request_body = SwitchTenant, responses((status = 200, body = Tokens), Refusals)
)]
async fn switch_tenant(
    State(app): State<App>,
    headers: HeaderMap,
    caller: Caller,
    body: Body<SwitchTenant>,
) -> Result<Secret<Tokens>, Problem> {
    let opaque = body.command.access_token_format == Format::Opaque;
    let user = caller.in_person()?;
    let session = caller.session.ok_or_else(|| Problem::new(code::NO_ACCOUNT, "the token belongs to no session"))?;
    let tokens = app.access.switch_tenant(user, session, &body.command.tenant, opaque, agent(&headers)).await;
    match tokens {
        // Of other tenants nothing is told.
        Err(access::AccessError::InvalidCredentials) => Err(Problem::not_found()),
        other => Ok(Secret(other?)),
    }
}

/// A form, as the OAuth documents have it.
struct Form<T>(T);

impl<T: DeserializeOwned> FromRequest<App> for Form<T> {
    type Rejection = Problem;

    async fn from_request(request: axum::extract::Request, app: &App) -> Result<Self, Problem> {
        match axum::extract::Form::<T>::from_request(request, app).await {
            Ok(axum::extract::Form(form)) => Ok(Self(form)),
            Err(error) if error.status() == StatusCode::UNSUPPORTED_MEDIA_TYPE => {
                Err(Problem::new(code::MEDIA_TYPE, "the body must be application/x-www-form-urlencoded"))
            }
            Err(error) if error.status() == StatusCode::UNPROCESSABLE_ENTITY => Err(Problem::invalid(String::new(), error.to_string())),
            Err(error) => Err(Problem::new(code::MALFORMED, error.to_string())),
        }
    }
}

/// A token to be looked at or ended.
#[derive(Deserialize, ToSchema)]
struct Token {
    /// The token.
    #[schema(value_type = String, example = "tat_AaH8TVi…")]
    token: TokenText,
    /// Which kind it is; not needed.
    #[serde(default, rename = "token_type_hint")]
    #[schema(value_type = Option<String>, example = "access_token")]
    _hint: Option<TokenText>,
}

/// Whether an access token or an API key of the caller's tenant is good, and for what (RFC 7662).
#[utoipa::path(
    post, path = "/v1/auth/introspect", tag = "auth", request_body(content = Token, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, body = Introspection), Refusals)
)]
async fn introspect(State(app): State<App>, caller: Caller, Form(form): Form<Token>) -> Result<Secret<Introspection>, Problem> {
    caller.require("token:introspect")?;
    Ok(Secret(app.access.introspect(&form.token, caller.tenant).await?))
}

/// Ends the session of a token, access or refresh (RFC 7009). Whoever has it may end it; one that is nobody's is no error. API keys, credentials of devices and operators'
/// tokens have no session: they are refused with `unsupported_token_type`, and revoked by operations of their own.
#[utoipa::path(
    post, path = "/v1/auth/revoke", tag = "auth", security(()),
    request_body(content = Token, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, description = "Done."), Refusals)
)]
async fn revoke(State(app): State<App>, Form(form): Form<Token>) -> Result<StatusCode, Problem> {
    app.access.revoke(&form.token).await?;
    Ok(StatusCode::OK)
}

/// A set of public keys (RFC 7517).
#[derive(Serialize, ToSchema)]
struct Jwks {
    /// The keys, the newest first.
    #[schema(value_type = Vec<Object>, example = json!([{"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": "8f1d3c9a5b7e2046", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]))]
    keys: serde_json::Value,
}

/// The keys that sign access tokens. They may be kept for 5 minutes: a new one is published before it signs.
#[utoipa::path(get, path = "/.well-known/jwks.json", tag = "auth", security(()), responses((status = 200, body = Jwks), Refusals))]
async fn jwks(State(app): State<App>) -> Result<impl IntoResponse, Problem> {
    Ok(([(CACHE_CONTROL, "public, max-age=300")], axum::Json(app.access.keys().jwks().await?)))
}

/// Whom to send a link.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RequestReset {
    /// The tenant's id or slug.
    #[schema(value_type = String, example = "acme")]
    tenant: LoginName,
    /// The user's address.
    #[schema(value_type = String, example = "ada@example.com")]
    email: LoginName,
}

/// Sends a link to set another password, if there is such a user; nobody is told whether.
#[utoipa::path(
    post, path = "/v1/auth/request-password-reset", tag = "auth", security(()), request_body = RequestReset,
    responses((status = 202, description = "A mail is on its way, if there is such a user."), Refusals)
)]
async fn request_password_reset(State(app): State<App>, body: Body<RequestReset>) -> Result<StatusCode, Problem> {
    app.access.request_password_reset(&body.command.tenant, &body.command.email).await?;
    Ok(StatusCode::ACCEPTED)
}

/// Another password.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ResetPassword {
    /// What the link in the mail ends with.
    #[schema(value_type = String, example = "AZr8TVh4cf2C…")]
    token: TokenText,
    /// The new password.
    #[schema(value_type = String, example = "correct horse battery staple")]
    password: Password,
}

/// Sets another password for whoever has the link. All sessions end.
#[utoipa::path(
    post, path = "/v1/auth/reset-password", tag = "auth", security(()), request_body = ResetPassword,
    responses((status = 200, body = WrittenBody), Refusals)
)]
async fn reset_password(State(app): State<App>, repeat: Repeat, body: Body<ResetPassword>) -> Result<Response, Problem> {
    let asked = body.asked();
    let ResetPassword { token, password } = body.command;
    let run = |_: Drawn<()>| async move { Ok(written(&app.access.reset_password(&token, password).await?).into_response()) };
    repeat.once(&asked, nothing(), run).await
}

/// A link.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = MailLink)]
struct Link {
    /// What the link in the mail ends with.
    #[schema(value_type = String, example = "AZr8TVh4cf2C…")]
    token: TokenText,
}

/// Shows that the address is theirs who has the link.
#[utoipa::path(
    post, path = "/v1/auth/verify-email", tag = "auth", security(()), request_body = Link,
    responses((status = 200, body = WrittenBody), Refusals)
)]
async fn verify_email(State(app): State<App>, repeat: Repeat, body: Body<Link>) -> Result<Response, Problem> {
    let asked = body.asked();
    let run = |_: Drawn<()>| async move { Ok(written(&app.access.verify_email(&body.command.token).await?).into_response()) };
    repeat.once(&asked, nothing(), run).await
}

/// An answer to an invitation.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Accept {
    /// What the link in the mail ends with.
    #[schema(value_type = String, example = "AZr8TVh4cf2C…")]
    token: TokenText,
    /// What to call them; needed unless the invitation says it.
    #[serde(default)]
    name: Option<DisplayName>,
    /// Their password.
    #[schema(value_type = String, example = "correct horse battery staple")]
    password: Password,
}

/// Makes whoever has the link a user.
#[utoipa::path(
    post, path = "/v1/auth/accept-invitation", tag = "auth", security(()), request_body = Accept,
    responses((status = 200, body = WrittenBody), Refusals)
)]
async fn accept_invitation(State(app): State<App>, repeat: Repeat, body: Body<Accept>) -> Result<Response, Problem> {
    let asked = body.asked();
    let Accept { token, name, password } = body.command;
    let run = |_: Drawn<()>| async move { Ok(written(&app.access.accept_invitation(&token, name, password).await?).into_response()) };
    repeat.once(&asked, nothing(), run).await
}

/// Declines an invitation for whoever has the link.
#[utoipa::path(
    post, path = "/v1/auth/decline-invitation", tag = "auth", security(()), request_body = Link,
    responses((status = 200, body = WrittenBody), Refusals)
)]
async fn decline_invitation(State(app): State<App>, repeat: Repeat, body: Body<Link>) -> Result<Response, Problem> {
    let asked = body.asked();
    let run = |_: Drawn<()>| async move { Ok(written(&app.access.decline_invitation(&body.command.token).await?).into_response()) };
    repeat.once(&asked, nothing(), run).await
}
