//! What a handler is made of: who asks ([`Caller`]), a command ([`Write`], [`Body`], [`Written`]), a query ([`Query`], [`Shown`], [`Listed`]).

use std::marker::PhantomData;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, MatchedPath, Request};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH, LINK, LOCATION};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use commands::authorize::{authorize, may_enter};
use commands::{Key, Outcome, Request as CommandRequest};
use domain::aggregate::Ask as _;
use domain::{Actor, Aggregate, StreamId, TenantId};
use projections::{Read, ReadModel, View};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::app::App;
use crate::problem::Problem;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
const TENURE_POSITION: HeaderName = HeaderName::from_static("tenure-position");
const TENURE_TENANT: HeaderName = HeaderName::from_static("tenure-tenant");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Who asks, and for which tenant.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who.
    pub actor: Actor,
    /// The token's tenant, or the one that a super admin named.
    pub tenant: TenantId,
}

impl FromRequestParts<App> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let header = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = header
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim());
        let Some(token) = token else { return Err(Problem::unauthenticated(None)) };
        let actor =
            app.token_key.verify(token, app.executor.store().clock().now()).map_err(|error| Problem::unauthenticated(Some(&error)))?;
        let Actor::User { tenant: own, .. } = &actor else { return Err(Problem::unauthenticated(None)) };
        let tenant = match parts.headers.get(TENURE_TENANT) {
            None => *own,
            Some(value) => value
                .to_str()
                .ok()
                .and_then(|text| crate::token::tenant::parse(text).ok())
                .ok_or_else(|| Problem::new(StatusCode::BAD_REQUEST, "request.bad_header", "Tenure-Tenant must be a tenant's id"))?,
        };
        if may_enter(&actor, tenant) { Ok(Self { actor, tenant }) } else { Err(Problem::not_found()) }
    }
}

/// An id in a path. One that is no UUID is the id of nothing.
#[derive(Clone, Copy, Debug)]
pub struct Id(pub Uuid);

impl FromRequestParts<App> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        axum::extract::Path::<Uuid>::from_request_parts(parts, app).await.map(|id| Self(id.0)).map_err(|_| Problem::not_found())
    }
}

/// A command in a body; an empty body is an empty object.
pub struct Body<C> {
    command: C,
    /// The id that the client chose for what it creates.
    id: Option<Uuid>,
    /// The body without regard to white space and the order of fields.
    canonical: String,
}

impl<C: DeserializeOwned> FromRequest<App> for Body<C> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        let content_type = request
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|v| v.to_str().ok())
            .map(|v| v.split(';').next().unwrap_or(v).trim().to_ascii_lowercase());
        let creates = request.method() == axum::http::Method::POST && !request.uri().path().trim_start_matches("/v1/").contains('/');
        let bytes = Bytes::from_request(request, app).await.map_err(|rejection| {
            if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
                Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "request.too_large", "a body may be 1 MiB at most")
            } else {
                Problem::new(StatusCode::BAD_REQUEST, "request.malformed", rejection.to_string())
            }
        })?;
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Self::parse("{}".as_bytes(), creates);
        }
        match content_type.as_deref() {
            Some("application/json" | "application/merge-patch+json") => Self::parse(&bytes, creates),
            Some(_) | None => Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "request.media_type",
                "the body must be application/json, or application/merge-patch+json for an edit",
            )),
        }
    }
}

impl<C: DeserializeOwned> Body<C> {
    fn parse(bytes: &[u8], creates: bool) -> Result<Self, Problem> {
        let mut value: Value = serde_json::from_slice(bytes)
            .map_err(|e| Problem::new(StatusCode::BAD_REQUEST, "request.malformed", format!("the body is not JSON: {e}")))?;
        let canonical = value.to_string();
        let id = match value.as_object_mut().filter(|_| creates).and_then(|map| map.remove("id")) {
            None => None,
            Some(id) => Some(serde_json::from_value::<Uuid>(id).map_err(|e| Problem::invalid("/id".into(), e.to_string()))?),
        };
        let command = serde_path_to_error::deserialize(value).map_err(|error| {
            let pointer = pointer(error.path());
            Problem::invalid(pointer, error.into_inner().to_string())
        })?;
        Ok(Self { command, id, canonical })
    }
}

fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let step = |segment: &Segment| match segment {
        Segment::Seq { index } => format!("/{index}"),
        Segment::Map { key } => format!("/{}", key.replace('~', "~0").replace('/', "~1")),
        Segment::Enum { variant } => format!("/{variant}"),
        Segment::Unknown => String::new(),
    };
    path.iter().map(step).collect()
}

/// Executes one command.
pub struct Write<A> {
    app: App,
    caller: Caller,
    /// Method and route, within which an idempotency key is unique.
    route: String,
    path: String,
    key: Option<String>,
    expected: Option<i64>,
    traceparent: Option<String>,
    aggregate: PhantomData<A>,
}

impl<A: Aggregate> FromRequestParts<App> for Write<A> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, app).await?;
        let route = parts.extensions.get::<MatchedPath>().map_or_else(|| parts.uri.path(), MatchedPath::as_str);
        Ok(Self {
            caller,
            route: format!("{} {route}", parts.method),
            path: parts.uri.path().to_owned(),
            key: idempotency_key(&parts.headers)?,
            expected: if_match(&parts.headers)?,
            traceparent: parts
                .headers
                .get(TRACEPARENT)
                .and_then(|v| v.to_str().ok())
                .filter(|text| is_traceparent(text))
                .map(str::to_owned),
            app: app.clone(),
            aggregate: PhantomData,
        })
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    match value.to_str().map(str::trim) {
        Ok(key) if !key.is_empty() && key.len() <= 255 => Ok(Some(key.to_owned())),
        Ok(_) | Err(_) => {
            Err(Problem::new(StatusCode::BAD_REQUEST, "request.bad_header", "Idempotency-Key must be 1 to 255 visible ASCII characters"))
        }
    }
}

/// `"v3"`, or `*` for whatever there is.
fn if_match(headers: &HeaderMap) -> Result<Option<i64>, Problem> {
    let Some(value) = headers.get(IF_MATCH) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    let version = text.strip_prefix("\"v").and_then(|t| t.strip_suffix('"')).and_then(|t| t.parse().ok());
    version
        .map(Some)
        .ok_or_else(|| Problem::new(StatusCode::BAD_REQUEST, "request.bad_header", "If-Match must be one version, such as \"v3\""))
}

/// W3C Trace Context: `00-<32 hex>-<16 hex>-<2 hex>`.
fn is_traceparent(text: &str) -> bool {
    let lengths: Vec<_> = text.split('-').map(str::len).collect();
    lengths == [2, 32, 16, 2] && text.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit())
}

impl<A: Aggregate> Write<A> {
    /// Who asks.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// For a creating command: the id that the client chose, or a fresh one.
    pub fn new_id<C>(&self, body: &Body<C>) -> Uuid {
        body.id.unwrap_or_else(|| self.app.executor.store().fresh_id())
    }

    /// Executes a creating command. Whoever may not create learns that, not that there is nothing here.
    pub async fn create<C: Into<A::Ask>>(self, stream: StreamId, body: Body<C>) -> Result<Written, Problem> {
        let command: A::Ask = body.command.into();
        authorize(&self.caller.actor, command.permission())?;
        self.execute(stream, Body { command, id: body.id, canonical: body.canonical }).await
    }

    /// Executes the command in the body on a stream.
    pub async fn execute<C: Into<A::Ask>>(self, stream: StreamId, body: Body<C>) -> Result<Written, Problem> {
        if !may_enter(&self.caller.actor, stream.tenant) {
            return Err(Problem::not_found());
        }
        let store = self.app.executor.store();
        let mut request = CommandRequest::<A>::new(stream, body.command, self.caller.actor, store.fresh_id());
        request.expected = self.expected;
        request.traceparent = self.traceparent;
        let fingerprint = Sha256::new().chain_update(&self.path).chain_update([0]).chain_update(&body.canonical).finalize().into();
        request.key = self.key.map(|key| Key { tenant: self.caller.tenant, scope: self.route, key, fingerprint });
        let outcome = self.app.executor.execute(request).await?;
        Ok(Written { outcome, path: self.path })
    }
}

/// The answer to a command.
pub struct Written {
    outcome: Outcome,
    path: String,
}

/// The body of the answer to a command.
#[derive(Serialize, ToSchema)]
pub struct WrittenBody {
    /// The aggregate's id.
    id: Uuid,
    /// Its version now; also the `ETag`.
    version: i64,
    /// A position at which a query sees the change: `?after=<position>`.
    position: i64,
}

impl IntoResponse for Written {
    fn into_response(self) -> Response {
        let Outcome { id, version, position, created, replayed } = self.outcome;
        let mut response =
            (if created { StatusCode::CREATED } else { StatusCode::OK }, axum::Json(WrittenBody { id, version, position })).into_response();
        let headers = response.headers_mut();
        set(headers, ETAG, &etag(version));
        set(headers, TENURE_POSITION, &position.to_string());
        if created {
            set(headers, LOCATION, &format!("{}/{id}", self.path.trim_end_matches('/')));
        }
        if replayed {
            set(headers, IDEMPOTENT_REPLAYED, "true");
        }
        response
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn etag(version: i64) -> String {
    format!("\"v{version}\"")
}

/// Opens read models for the caller's tenant.
pub struct Query {
    app: App,
    /// Who asks.
    pub caller: Caller,
    view: View,
    if_none_match: Option<String>,
    uri: Uri,
}

/// The parameter of a query for one thing.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct After {
    /// Wait up to 2 s until the answer reflects this position; 504 if it takes longer.
    #[param(minimum = 0)]
    pub after: Option<i64>,
}

/// The parameters that all lists take.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct Paging {
    /// How many rows at most.
    #[param(minimum = 1, maximum = 200, default = 50)]
    pub limit: Option<u32>,
    /// Where to go on: the `next_cursor` of the page before.
    pub cursor: Option<String>,
    /// Wait up to 2 s until the answer reflects this position; 504 if it takes longer.
    pub after: Option<i64>,
}

fn bad_query(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "request.bad_query", detail)
}

/// How many rows, 50 if nothing else is said.
pub(crate) fn limit(limit: Option<u32>) -> Result<u32, Problem> {
    let limit = limit.unwrap_or(50);
    if (1..=200).contains(&limit) { Ok(limit) } else { Err(bad_query("limit must be between 1 and 200")) }
}

/// One of the orders that a list knows, the default if nothing else is said.
pub(crate) fn sort<S: Copy + Default>(name: Option<&str>, known: &[(&str, S)]) -> Result<S, Problem> {
    let Some(name) = name else { return Ok(S::default()) };
    let names = || known.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    known
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, sort)| *sort)
        .ok_or_else(|| bad_query(format!("sort must be one of {}", names())))
}

/// Texts that filters look for: at most 200 characters, without NUL, which Postgres does not take.
pub(crate) fn short(texts: &[&Option<String>]) -> Result<(), Problem> {
    let fine = |text: &String| text.chars().count() <= 200 && !text.contains('\0');
    if texts.iter().filter_map(|text| text.as_ref()).all(fine) {
        Ok(())
    } else {
        Err(bad_query("a filter's text may have 200 characters at most, and no NUL"))
    }
}

/// A query string. What it does not know it refuses, since a misspelt filter would silently show too much.
pub struct Params<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<App> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, Problem> {
        axum::extract::Query::<T>::try_from_uri(&parts.uri).map(|query| Self(query.0)).map_err(|error| bad_query(error.body_text()))
    }
}

impl FromRequestParts<App> for Query {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, app).await?;
        Ok(Self {
            view: if caller.tenant == TenantId::SYSTEM { View::Platform } else { View::Tenant(caller.tenant) },
            if_none_match: parts.headers.get(IF_NONE_MATCH).and_then(|v| v.to_str().ok()).map(str::to_owned),
            uri: parts.uri.clone(),
            app: app.clone(),
            caller,
        })
    }
}

impl Query {
    /// Opens a read model, if the caller may, once it has come as far as `after`.
    pub async fn open<M: ReadModel>(&self, permission: &'static str, after: Option<i64>) -> Result<Read, Problem> {
        authorize(&self.caller.actor, permission)?;
        Ok(self.app.reads.begin(self.view, M::NAME, after).await?)
    }

    /// Signs and checks cursors.
    pub fn cursors(&self) -> &projections::cursor::CursorKey {
        &self.app.reads.cursors
    }

    /// Answers one row.
    pub fn show<T: Serialize>(self, read: &Read, row: Option<T>, version: impl FnOnce(&T) -> i64) -> Result<Shown<T>, Problem> {
        let row = row.ok_or_else(Problem::not_found)?;
        let etag = etag(version(&row));
        let unchanged = self.if_none_match.is_some_and(|tags| tags.split(',').any(|tag| tag.trim().trim_start_matches("W/") == etag));
        Ok(Shown { row, etag, unchanged, position: read.position })
    }

    /// Answers one page.
    pub fn page<T>(self, read: &Read, page: projections::identity::tenant::Page<T>) -> Listed<T> {
        Listed { position: read.position, data: page.rows, next: page.next, uri: self.uri }
    }
}

/// One row with its version, or the word that it has not changed.
pub struct Shown<T> {
    row: T,
    etag: String,
    unchanged: bool,
    position: i64,
}

impl<T: Serialize> IntoResponse for Shown<T> {
    fn into_response(self) -> Response {
        let mut response = if self.unchanged { StatusCode::NOT_MODIFIED.into_response() } else { axum::Json(self.row).into_response() };
        set(response.headers_mut(), ETAG, &self.etag);
        set(response.headers_mut(), TENURE_POSITION, &self.position.to_string());
        response
    }
}

/// One page with where the next one begins.
pub struct Listed<T> {
    data: Vec<T>,
    next: Option<String>,
    position: i64,
    uri: Uri,
}

/// The body of a list.
#[derive(Serialize, ToSchema)]
pub struct ListBody<T> {
    /// The rows.
    data: Vec<T>,
    /// The cursor of the next page; none on the last.
    next_cursor: Option<String>,
}

impl<T: Serialize> IntoResponse for Listed<T> {
    fn into_response(self) -> Response {
        let link = self.next.as_ref().map(|cursor| {
            let others = self
                .uri
                .query()
                .unwrap_or_default()
                .split('&')
                .filter(|pair| !pair.is_empty() && !pair.starts_with("cursor=") && !pair.starts_with("after="));
            let query: Vec<_> = others.map(str::to_owned).chain([format!("cursor={cursor}")]).collect();
            format!("<{}?{}>; rel=\"next\"", self.uri.path(), query.join("&"))
        });
        let mut response = axum::Json(ListBody { data: self.data, next_cursor: self.next }).into_response();
        set(response.headers_mut(), TENURE_POSITION, &self.position.to_string());
        if let Some(link) = link {
            set(response.headers_mut(), LINK, &link);
        }
        response
    }
}
