//! Commands.

use std::marker::PhantomData;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, MatchedPath, OriginalUri, Request};
use axum::http::header::{CONTENT_TYPE, ETAG, IF_MATCH, LOCATION};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use commands::authorize::{authorize, may_enter};
use commands::{Key, Outcome, Request as CommandRequest};
use domain::aggregate::Ask as _;
use domain::json::{self, JsonError};
use domain::{Aggregate, StreamId, TenantId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Caller, Condition, EntityTag, TENURE_POSITION, set};
use crate::app::App;
use crate::problem::{Problem, code};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
pub(super) const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A command in a body; an empty body is an empty object.
pub struct Body<C> {
    /// What it asks.
    pub command: C,
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
        let bytes = Bytes::from_request(request, app).await.map_err(|rejection| {
            if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
                Problem::new(code::TOO_LARGE, "a body may be 1 MiB at most")
            } else {
                Problem::new(code::MALFORMED, rejection.to_string())
            }
        })?;
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Self::parse("{}".as_bytes());
        }
        match content_type.as_deref() {
            Some("application/json" | "application/merge-patch+json") => Self::parse(&bytes),
            Some(_) | None => {
                Err(Problem::new(code::MEDIA_TYPE, "the body must be application/json, or application/merge-patch+json for an edit"))
            }
        }
    }
}

impl<C> Body<C> {
    /// What makes two requests the same: the body without regard to white space and the order of fields.
    pub fn asked(&self) -> String {
        self.canonical.clone()
    }

    /// The same request, completed by what the server draws: that is no part of what makes two requests the same.
    pub fn map<D>(self, complete: impl FnOnce(C) -> D) -> Body<D> {
        Body { command: complete(self.command), canonical: self.canonical }
    }
}

impl<C: DeserializeOwned> Body<C> {
    fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        let value = json::parse(bytes).map_err(|error| match error {
            JsonError::Syntax(_) => Problem::new(code::MALFORMED, error.to_string()),
            JsonError::Value { pointer, error } => Problem::invalid(pointer, error.to_string()),
        })?;
        if !value.is_object() {
            return Err(Problem::invalid(String::new(), "the body must be an object".into()));
        }
        let canonical = value.to_string();
        let command = serde_path_to_error::deserialize(value).map_err(|error| {
            let mut pointer = pointer(error.path());
            let detail = error.into_inner().to_string();
            // serde names the object that lacks the field; the client looks for the field.
            if let Some((field, _)) = detail.strip_prefix("missing field `").and_then(|rest| rest.split_once('`')) {
                pointer = format!("{pointer}/{field}");
            }
            Problem::invalid(pointer, detail)
        })?;
        Ok(Self { command, canonical })
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
    expected: Option<Vec<i64>>,
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
            path: original(parts).path().to_owned(),
            key: idempotency_key(&parts.headers)?,
            expected: Condition::of(&parts.headers, &IF_MATCH)?.and_then(|condition| condition.versions()),
            traceparent: traceparent(&parts.headers),
            app: app.clone(),
            aggregate: PhantomData,
        })
    }
}

pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    match value.to_str().map(str::trim) {
        Ok(key) if !key.is_empty() && key.len() <= 255 => Ok(Some(key.to_owned())),
        Ok(_) | Err(_) => Err(Problem::new(code::BAD_HEADER, "Idempotency-Key must be 1 to 255 visible ASCII characters")),
    }
}

/// The address that the client has asked for: routers within routers see a part of it only.
pub(crate) fn original(parts: &Parts) -> &Uri {
    parts.extensions.get::<OriginalUri>().map_or(&parts.uri, |uri| &uri.0)
}

/// The trace context of a request, if it has one.
pub(crate) fn traceparent(headers: &HeaderMap) -> Option<String> {
    headers.get(TRACEPARENT).and_then(|v| v.to_str().ok()).filter(|text| is_traceparent(text)).map(str::to_owned)
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
    pub fn id_for(&self, chosen: Option<Uuid>) -> Uuid {
        chosen.unwrap_or_else(|| self.app.executor.store().fresh_id())
    }

    /// Executes a creating command. Whoever may not create learns that, not that there is nothing here.
    pub async fn create<C: Into<A::Ask>>(self, stream: StreamId, body: Body<C>) -> Result<Written, Problem> {
        let command: A::Ask = body.command.into();
        authorize(&self.caller.actor, command.permission())?;
        self.run(stream, Body { command, canonical: body.canonical }, true).await
    }

    /// Executes the command in the body on a stream.
    pub async fn execute<C: Into<A::Ask>>(self, stream: StreamId, body: Body<C>) -> Result<Written, Problem> {
        self.run(stream, body, false).await
    }

    async fn run<C: Into<A::Ask>>(self, stream: StreamId, body: Body<C>, begins: bool) -> Result<Written, Problem> {
        // Who names a tenant means that one, for writing as for reading.
        let named = self.caller.tenant == TenantId::SYSTEM || self.caller.tenant == stream.tenant;
        if !named || !may_enter(&self.caller.actor, stream.tenant) {
            return Err(Problem::not_found());
        }
        let store = self.app.executor.store();
        let mut request = CommandRequest::<A>::new(stream, body.command, self.caller.actor, store.fresh_id());
        request.begins = begins;
        request.expected = self.expected;
        request.traceparent = self.traceparent;
        // Whose request it is matters too: somebody else's with the same words is another one.
        let user = request.actor.user().map(|user| user.to_string()).unwrap_or_default();
        let fingerprint =
            [self.path.as_str(), &user, &body.canonical].iter().fold(Sha256::new(), |hash, part| hash.chain_update(part).chain_update([0]));
        let fingerprint = fingerprint.finalize().into();
        request.keys = self.key.map(|key| Key { tenant: self.caller.tenant, scope: self.route, key, fingerprint }).into_iter().collect();
        let outcome = self.app.executor.execute(request).await?;
        Ok(Written { outcome, path: self.path })
    }
}

/// The answer to a command.
pub struct Written {
    pub(crate) outcome: Outcome,
    path: String,
}

/// The body of the answer to a command.
#[derive(Serialize, ToSchema)]
pub struct WrittenBody {
    /// The aggregate's id.
    id: Uuid,
    /// Its version now; also the `ETag`.
    #[schema(example = 3)]
    version: i64,
    /// A position at which a query sees the change: `?after=<position>`.
    #[schema(example = 42)]
    position: i64,
}

impl WrittenBody {
    /// What came of a command.
    pub fn of(outcome: &Outcome) -> Self {
        Self { id: outcome.id, version: outcome.version, position: outcome.position }
    }
}

impl IntoResponse for Written {
    fn into_response(self) -> Response {
        let body = WrittenBody::of(&self.outcome);
        let Outcome { id, version, position, created, replayed } = self.outcome;
        let mut response = (if created { StatusCode::CREATED } else { StatusCode::OK }, axum::Json(body)).into_response();
        let headers = response.headers_mut();
        set(headers, ETAG, &EntityTag::of_version(version).to_string());
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
