//! The one mapping from errors to HTTP: problem details (RFC 9457).

use std::borrow::Cow;

use access::AccessError;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request};
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use commands::CommandError;
use domain::billing::meter::Exceeded;
use domain::{DomainError as _, Kind};
use projections::QueryError;
use serde::Serialize;
use tower_http::request_id::RequestId;
use utoipa::ToSchema;

/// The pages that explain problems, inside the binary. A problem's `type` is the path of one of them.
#[derive(rust_embed::Embed)]
#[folder = "../docs/errors"]
struct Pages;

/// The text of one of the pages.
pub(crate) fn explanation(name: &str) -> Option<Vec<u8>> {
    Pages::get(&format!("{name}.md")).map(|page| page.data.into_owned())
}

/// One of the pages.
pub(crate) async fn page(name: Result<Path<String>, PathRejection>, headers: HeaderMap) -> Result<Response, Problem> {
    let Path(name) = name.map_err(|_| Problem::not_found())?;
    crate::document::error_page(&name, &headers)
}

/// A problem of the interface itself, rather than of a command.
#[derive(Clone, Copy, Debug)]
pub struct Code {
    /// The HTTP status.
    pub status: StatusCode,
    /// The code, which is also its page's name.
    pub name: &'static str,
}

macro_rules! codes {
    ($($name:ident $status:ident $code:literal;)*) => {
        /// The problems of the interface itself.
        pub mod code {
            use super::{Code, StatusCode};

            $(#[doc = concat!("See `docs/errors/", $code, ".md`.")] pub const $name: Code = Code { status: StatusCode::$status, name: $code };)*

            /// All of them.
            pub const ALL: &[Code] = &[$($name),*];
        }
    };
}

codes! {
    UNAUTHENTICATED UNAUTHORIZED "auth.unauthenticated";
    FORBIDDEN FORBIDDEN "auth.forbidden";
    INVALID_CREDENTIALS UNAUTHORIZED "auth.invalid_credentials";
    NO_ACCOUNT FORBIDDEN "auth.no_account";
    NOT_ACTIVE FORBIDDEN "auth.not_active";
    WRONG_PASSWORD FORBIDDEN "auth.wrong_password";
    UNSUPPORTED_TOKEN_TYPE BAD_REQUEST "auth.unsupported_token_type";
    WEAK_PASSWORD UNPROCESSABLE_ENTITY "auth.weak_password";
    BAD_SIGNATURE BAD_REQUEST "billing.bad_signature";
    NOT_PAYABLE UNPROCESSABLE_ENTITY "billing.amount_not_payable";
    NO_PROVIDER CONFLICT "billing.no_provider";
    NOT_YET_AT_PROVIDER CONFLICT "billing.not_yet_at_provider";
    PROVIDER_UNAVAILABLE SERVICE_UNAVAILABLE "billing.provider_unavailable";
    DNS_UNAVAILABLE SERVICE_UNAVAILABLE "dns.unavailable";
    BAD_CURSOR BAD_REQUEST "request.bad_cursor";
    BAD_HEADER BAD_REQUEST "request.bad_header";
    BAD_QUERY BAD_REQUEST "request.bad_query";
    MALFORMED BAD_REQUEST "request.malformed";
    NOT_FOUND NOT_FOUND "request.not_found";
    MAIL_LIMIT TOO_MANY_REQUESTS "mail.daily_limit";
    MAIL_PAUSE TOO_MANY_REQUESTS "mail.pause";
    METHOD_NOT_ALLOWED METHOD_NOT_ALLOWED "request.method_not_allowed";
    VERSION_MISMATCH PRECONDITION_FAILED "request.version_mismatch";
    TOO_LARGE PAYLOAD_TOO_LARGE "request.too_large";
    MEDIA_TYPE UNSUPPORTED_MEDIA_TYPE "request.media_type";
    INVALID UNPROCESSABLE_ENTITY "request.invalid";
    KEY_REUSED UNPROCESSABLE_ENTITY "request.idempotency_key_reused";
    INTERNAL INTERNAL_SERVER_ERROR "internal";
    CONTENDED SERVICE_UNAVAILABLE "request.contended";
    OVERLOADED SERVICE_UNAVAILABLE "overloaded";
    UNAVAILABLE SERVICE_UNAVAILABLE "unavailable";
    PARKED SERVICE_UNAVAILABLE "projection-parked";
    BEHIND GATEWAY_TIMEOUT "projection-behind";
    DIVERGED SERVICE_UNAVAILABLE "projection-diverged";
}

/// The HTTP status of each kind of refusal.
pub fn status_of(kind: Kind) -> StatusCode {
    match kind {
        Kind::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
        Kind::Forbidden | Kind::Exhausted => StatusCode::FORBIDDEN,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::Conflict => StatusCode::CONFLICT,
        Kind::Throttled => StatusCode::TOO_MANY_REQUESTS,
    }
}

/// Something that went wrong, as the client is told.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Problem {
    /// The page that explains it.
    #[serde(rename = "type")]
    #[schema(example = "/errors/request.invalid")]
    type_: String,
    /// The kind of problem, the same every time.
    #[schema(example = "Unprocessable Entity")]
    title: &'static str,
    /// The HTTP status.
    #[schema(value_type = u16, example = 422)]
    #[serde(serialize_with = "status")]
    status: StatusCode,
    /// What went wrong this time.
    #[schema(example = "the request is not valid")]
    detail: String,
    /// The path that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "/v1/tickets")]
    instance: Option<String>,
    /// For programs: `<subject>.<reason>`.
    #[schema(value_type = String, example = "request.invalid")]
    code: Cow<'static, str>,
    /// To find the request in the logs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "01900000-0000-7000-8000-000000000002")]
    request_id: Option<String>,
    /// What is wrong with which field.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
    /// The current version, when the one insisted on is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    current_version: Option<i64>,
    /// Which limit stands in the way, and how far it is used.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    #[schema(ignore)]
    exceeded: Option<Box<Exceeded>>,
    /// What the OAuth documents call it, where they have a name for it (RFC 6749 section 5.2, RFC 7009 section 2.2.1).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(ignore)]
    error: Option<&'static str>,
    #[serde(skip)]
    headers: HeaderMap,
}

/// What is wrong with one field.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct FieldError {
    /// Which, as a JSON pointer (RFC 6901) into the body.
    #[schema(example = "/subject")]
    pub pointer: String,
    /// What.
    #[schema(example = "must not be empty")]
    pub detail: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn status<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

impl Problem {
    /// A problem of the interface itself. Where trying again soon may help, it says so.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let problem = Self::of(code.status, code.name, code.name, detail.into());
        if matches!(code.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT) {
            return problem.header(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        problem
    }

    fn of(status: StatusCode, code: impl Into<Cow<'static, str>>, page: &str, detail: String) -> Self {
        Self {
            type_: format!("/errors/{page}"),
            title: status.canonical_reason().unwrap_or("Problem"),
            status,
            detail,
            instance: None,
            code: code.into(),
            request_id: None,
            errors: vec![],
            current_version: None,
            exceeded: None,
            error: None,
            headers: HeaderMap::new(),
        }
    }

    /// There is nothing here, or nothing that the caller may see.
    pub fn not_found() -> Self {
        Self::new(code::NOT_FOUND, "there is nothing here")
    }

    /// The body does not say what it should.
    pub fn invalid(pointer: String, detail: String) -> Self {
        let mut problem = Self::new(code::INVALID, "the request is not valid");
        problem.errors.push(FieldError { pointer, detail });
        problem
    }

    /// The caller has to say who they are.
    pub fn unauthenticated(error: Option<String>) -> Self {
        let (detail, challenge) = match error {
            None => ("a bearer token is needed".to_owned(), "Bearer realm=\"tenure\""),
            Some(error) => (error, "Bearer realm=\"tenure\", error=\"invalid_token\""),
        };
        Self::new(code::UNAUTHENTICATED, detail).header(WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
    }

    /// Something is wrong on our side; what exactly is in the logs and nobody else's business.
    pub fn internal(detail: impl std::fmt::Display) -> Self {
        tracing::error!(error = %detail, "a request failed");
        Self::new(code::INTERNAL, "something went wrong on our side")
    }

    /// Whether it says that nothing was done.
    pub(crate) fn is_refusal(&self) -> bool {
        self.status.is_client_error()
    }

    /// The code.
    pub(crate) fn code(&self) -> &str {
        &self.code
    }

    /// The same, saying when to try again.
    fn retry_after(self, seconds: Option<u32>) -> Self {
        match seconds {
            Some(seconds) => self.header(RETRY_AFTER, HeaderValue::from(seconds)),
            None => self,
        }
    }

    fn header(mut self, name: axum::http::HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }
}

impl From<CommandError> for Problem {
    fn from(error: CommandError) -> Self {
        let detail = error.to_string();
        match error {
            CommandError::Rejected { kind, code, page, retry_after, .. } => {
                Self::of(status_of(kind), code, page, detail).retry_after(retry_after)
            }
            CommandError::MailLimit { retry_after, .. } => Self::new(code::MAIL_LIMIT, detail).retry_after(Some(retry_after)),
            CommandError::MailPause { retry_after } => Self::new(code::MAIL_PAUSE, detail).retry_after(Some(retry_after)),
            CommandError::QuotaExceeded(exceeded) => {
                let problem = Self::of(status_of(exceeded.kind()), exceeded.code(), exceeded.page(), detail);
                Self { exceeded: Some(Box::new(exceeded)), ..problem }
            }
            CommandError::Forbidden { .. } => Self::new(code::FORBIDDEN, detail),
            CommandError::VersionMismatch { current } => {
                Self { current_version: Some(current), ..Self::new(code::VERSION_MISMATCH, detail) }
            }
            CommandError::KeyReused => Self::new(code::KEY_REUSED, detail),
            CommandError::KeysKnown | CommandError::PeriodClosed(_) | CommandError::Moved | CommandError::Contended => {
                Self::new(code::CONTENDED, detail)
            }
            CommandError::Overloaded => Self::new(code::OVERLOADED, detail),
            CommandError::Unavailable => Self::new(code::UNAVAILABLE, detail),
            CommandError::Internal(reason) => Self::internal(reason),
        }
    }
}

impl From<AccessError> for Problem {
    fn from(error: AccessError) -> Self {
        let detail = error.to_string();
        match error {
            AccessError::Invalid | AccessError::Expired => Self::unauthenticated(Some(detail)),
            AccessError::InvalidCredentials => {
                Self::new(code::INVALID_CREDENTIALS, detail).header(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"tenure\""))
            }
            AccessError::NotActive => Self::new(code::NOT_ACTIVE, detail),
            AccessError::UnsupportedTokenType => {
                Self { error: Some("unsupported_token_type"), ..Self::new(code::UNSUPPORTED_TOKEN_TYPE, detail) }
            }
            AccessError::WeakPassword(why) => {
                let errors = vec![FieldError { pointer: "/password".into(), detail: why }];
                Self { errors, ..Self::new(code::WEAK_PASSWORD, "the password will not do") }
            }
            AccessError::Busy => Self::new(code::OVERLOADED, detail),
            AccessError::Command(error) => error.into(),
            AccessError::Unavailable(source) => {
                tracing::warn!(error = %source, "the database cannot be reached");
                Self::new(code::UNAVAILABLE, detail)
            }
            AccessError::Internal(reason) => Self::internal(reason),
        }
    }
}

impl From<QueryError> for Problem {
    fn from(error: QueryError) -> Self {
        let detail = error.to_string();
        match error {
            QueryError::Behind { .. } => Self::new(code::BEHIND, detail),
            QueryError::Diverged => Self::new(code::DIVERGED, detail),
            QueryError::BadCursor => Self::new(code::BAD_CURSOR, detail),
            QueryError::Overloaded => Self::new(code::OVERLOADED, detail),
            QueryError::Unreadable(error) => Self::internal(error),
            QueryError::Unavailable(sqlx) => {
                // An error of the statement itself (SQLSTATE classes 22 data, 42 syntax and the like) is ours and does not pass.
                let state = sqlx.as_database_error().and_then(|e| e.code().map(Cow::into_owned)).unwrap_or_default();
                if ["21", "22", "23", "42"].iter().any(|class| state.starts_with(class)) {
                    return Self::internal(sqlx);
                }
                tracing::warn!(error = %sqlx, "the read models cannot be reached");
                Self::new(code::UNAVAILABLE, detail)
            }
        }
    }
}

impl IntoResponse for Problem {
    /// The body is written by `finish`, which knows the request.
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Writes the bodies of problems, with what only the request tells.
pub(crate) async fn finish(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let request_id = request.extensions().get::<RequestId>().and_then(|id| id.header_value().to_str().ok().map(str::to_owned));
    let mut response = next.run(request).await;
    let status = response.status();
    let mut problem = match response.extensions_mut().remove::<Problem>() {
        Some(problem) => problem,
        // What a library answers by itself, without a word.
        None if status == StatusCode::NOT_FOUND => Problem::not_found(),
        None => return response,
    };
    problem.instance = Some(path);
    problem.request_id = request_id;
    let mut response = (problem.status, axum::Json(&problem)).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response.headers_mut().extend(problem.headers);
    response
}
