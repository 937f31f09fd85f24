//! Queries.

use axum::extract::FromRequestParts;
use axum::http::header::{CONTENT_TYPE, ETAG, IF_NONE_MATCH, LINK};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use commands::authorize::authorize;
use domain::text::{SearchText, TokenText};
use domain::{Aggregate, StreamId, TenantId};
use projections::list::{Orders, Page, Paging};
use projections::row::Doc;
use projections::{QueryError, Read, View};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use utoipa::{IntoParams, ToSchema};

use super::write::original;
use super::{Caller, Condition, EntityTag, TENURE_PARKED, TENURE_POSITION, set};
use crate::app::App;
use crate::problem::{Problem, code};

/// Opens read models for the caller's tenant.
pub struct Query {
    app: App,
    /// Who asks.
    pub caller: Caller,
    if_none_match: Option<Condition>,
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
pub struct Listing {
    /// How to order the rows; `-` in front is descending.
    #[param(value_type = Option<String>)]
    pub sort: Option<SearchText>,
    /// How many rows at most.
    #[param(minimum = 1, maximum = 200, default = 50)]
    pub limit: Option<u32>,
    /// Where to go on: the `next_cursor` of the page before.
    #[param(value_type = Option<String>)]
    pub cursor: Option<TokenText>,
    /// Wait up to 2 s until the answer reflects this position; 504 if it takes longer.
    #[param(minimum = 0)]
    pub after: Option<i64>,
}

pub(crate) fn bad_query(detail: impl Into<String>) -> Problem {
    Problem::new(code::BAD_QUERY, detail)
}

/// Which part of a list is wanted: 50 rows in the default order, if nothing else is said.
pub(crate) fn paging(orders: &Orders, sort: Option<&str>, limit: Option<u32>, cursor: Option<TokenText>) -> Result<Paging, Problem> {
    let sort = orders.parse(sort).map_err(|names| bad_query(format!("sort must be one of {}", names.join(", "))))?;
    let limit = limit.unwrap_or(50);
    if (1..=200).contains(&limit) {
        Ok(Paging { sort, limit, cursor: cursor.map(Into::into) })
    } else {
        Err(bad_query("limit must be between 1 and 200"))
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
        Ok(Self { if_none_match: Condition::of(&parts.headers, &IF_NONE_MATCH)?, uri: original(parts).clone(), app: app.clone(), caller })
    }
}

impl Query {
    /// Refuses a caller who lacks the permission.
    pub fn require(&self, permission: &'static str) -> Result<(), Problem> {
        Ok(authorize(&self.caller.actor, permission)?)
    }

    /// Opens read models for the caller's tenant once all of them have come as far as `after`.
    pub async fn open(&self, models: &[&'static str], after: Option<i64>) -> Result<Read, Problem> {
        self.begin(View::Tenant(self.caller.tenant), models, after).await
    }

    /// Opens read models of what belongs to the platform, and everybody may see.
    pub async fn open_system(&self, models: &[&'static str], after: Option<i64>) -> Result<Read, Problem> {
        self.check(after).await?;
        Ok(self.app.reads.begin_for(self.caller.tenant, View::Tenant(TenantId::SYSTEM), models, after))
    }

    /// The same for all tenants, where the caller is the platform and names none.
    pub async fn open_all(&self, models: &[&'static str], after: Option<i64>) -> Result<Read, Problem> {
        self.begin(self.widest(), models, after).await
    }

    fn widest(&self) -> View {
        if self.caller.tenant == TenantId::SYSTEM { View::Platform } else { View::Tenant(self.caller.tenant) }
    }

    async fn begin(&self, view: View, models: &[&'static str], after: Option<i64>) -> Result<Read, Problem> {
        self.check(after).await?;
        Ok(self.app.reads.begin(view, models, after))
    }

    /// Refuses a position that the log does not have: nobody can have been told of it, and waiting would not help.
    pub async fn check(&self, after: Option<i64>) -> Result<(), Problem> {
        let Some(after) = after else { return Ok(()) };
        if after < 0 {
            return Err(bad_query("after must be 0 or more"));
        }
        let store = self.app.executor.store();
        // This process knows of its own commits at once, of others' when it asks.
        if after <= *store.watch_head().borrow() {
            return Ok(());
        }
        let head = store.head().await.map_err(QueryError::from)?.position;
        if after <= head { Ok(()) } else { Err(bad_query(format!("after must be at most {head}, where the log ends"))) }
    }

    /// Signs and checks cursors.
    pub fn cursors(&self) -> &projections::cursor::CursorKey {
        &self.app.reads.cursors
    }

    /// Answers one row of `stream`. What the log has and the read model has not yet is waited for, as if the caller had sent `after`.
    pub async fn one<A: Aggregate, T, E: Into<Problem>, F: Fetching<Doc<T>, E>>(
        self,
        sought: Sought,
        fetch: impl Fn(Read) -> F,
    ) -> Result<Shown, Problem> {
        let (mut read, mut row) = fetch(self.sought(&sought).await?).await.map_err(Into::into)?;
        if row.is_none() {
            match self.again::<A>(&sought, read).await? {
                Again::Newer(again) => (read, row) = fetch(again).await.map_err(Into::into)?,
                Again::Same(same) => read = same,
            }
        }
        let reflects = Reflects { parked: read.parked_of(sought.stream).await?, position: read.position };
        let row = row.ok_or_else(|| reflects.nothing())?;
        let version = row.version()?;
        let body = row.into_text();
        let tag = EntityTag::of(version, body.as_bytes());
        let unchanged = self.if_none_match.is_some_and(|known| known.names(&tag));
        Ok(Shown { body, tag, unchanged, reflects })
    }

    /// Answers one page of what belongs to a stream; `None`: there is no such stream. The same holds for waiting as for one row.
    pub async fn of_one<A: Aggregate, T, E: Into<Problem>, F: Fetching<Page<T>, E>>(
        self,
        sought: Sought,
        fetch: impl Fn(Read) -> F,
    ) -> Result<Listed<T>, Problem> {
        let (mut read, mut page) = fetch(self.sought(&sought).await?).await.map_err(Into::into)?;
        if page.is_none() {
            match self.again::<A>(&sought, read).await? {
                Again::Newer(again) => (read, page) = fetch(again).await.map_err(Into::into)?,
                Again::Same(same) => read = same,
            }
        }
        let reflects = Reflects { parked: read.parked_of(sought.stream).await?, position: read.position };
        let page = page.ok_or_else(|| reflects.nothing())?;
        Ok(Listed { data: page.rows, next: page.next, uri: self.uri, reflects })
    }

    async fn sought(&self, sought: &Sought) -> Result<Read, Problem> {
        let view = match sought.stream.tenant {
            TenantId::SYSTEM => View::Tenant(TenantId::SYSTEM),
            tenant if tenant == self.caller.tenant => View::Tenant(tenant),
            _ => self.widest(),
        };
        self.begin(view, sought.models, sought.after).await
    }

    /// The read models once more, where the log has something of a stream that they do not reflect yet. One look into the log, and only where nothing was found. The connection is
    /// given back before another one is waited for: requests that hold one and wait for one would wait for each other.
    async fn again<A: Aggregate>(&self, sought: &Sought, read: Read) -> Result<Again, Problem> {
        let seen = [self.caller.tenant, TenantId::SYSTEM].contains(&sought.stream.tenant) || self.caller.tenant == TenantId::SYSTEM;
        if !seen {
            return Ok(Again::Same(read));
        }
        let last = self.app.executor.store().last_position(A::TYPE, sought.stream).await.map_err(QueryError::from)?;
        match last {
            Some(position) if read.position < position => {
                drop(read);
                Ok(Again::Newer(self.sought(&Sought { after: Some(position), ..*sought }).await?))
            }
            Some(_) | None => Ok(Again::Same(read)),
        }
    }

    /// Answers one page.
    pub fn page<T>(self, read: &Read, page: Page<T>) -> Listed<T> {
        Listed { data: page.rows, next: page.next, uri: self.uri, reflects: Reflects { position: read.position, parked: read.parked } }
    }
}

/// The connection for a second query.
enum Again {
    /// Something newer.
    Newer(Read),
    /// There is nothing newer.
    Same(Read),
}

/// How far an answer is up to date.
struct Reflects {
    position: i64,
    /// What the answer shows, or a part of it, waits from this event on: it could not be folded.
    parked: Option<i64>,
}

impl Reflects {
    /// Why there is nothing: there may be something that waits.
    fn nothing(&self) -> Problem {
        match self.parked {
            Some(position) => Problem::new(code::PARKED, format!("what was asked for is held up: position {position} could not be folded")),
            None => Problem::not_found(),
        }
    }

    fn tell(&self, headers: &mut HeaderMap) {
        set(headers, TENURE_POSITION, &self.position.to_string());
        if let Some(position) = self.parked {
            set(headers, TENURE_PARKED, &position.to_string());
        }
    }
}

/// An answer that is neither one row nor a page.
pub struct Reflecting<T> {
    answer: T,
    reflects: Reflects,
}

impl<T> Reflecting<T> {
    /// An answer from what was read.
    pub fn of(read: &Read, answer: T) -> Self {
        Self { answer, reflects: Reflects { position: read.position, parked: read.parked } }
    }
}

impl<T: IntoResponse> IntoResponse for Reflecting<T> {
    fn into_response(self) -> Response {
        let mut response = self.answer.into_response();
        self.reflects.tell(response.headers_mut());
        response
    }
}

/// What is sought: a stream, in read models that have come as far as `after`.
#[derive(Clone, Copy)]
pub struct Sought {
    /// Whose rows.
    pub stream: StreamId,
    /// Where they are.
    pub models: &'static [&'static str],
    /// How far the read models have to have come.
    pub after: Option<i64>,
}

impl Sought {
    /// A stream in read models.
    pub fn new(stream: StreamId, models: &'static [&'static str], after: Option<i64>) -> Self {
        Self { stream, models, after }
    }
}

/// Rows on their way, with what they are read from.
pub trait Fetching<T, E>: Future<Output = Result<(Read, Option<T>), E>> + Send {}

impl<T, E, F: Future<Output = Result<(Read, Option<T>), E>> + Send> Fetching<T, E> for F {}

/// A page of what belongs to a stream that always has something: where there is nothing at all, there is no such stream.
pub(crate) fn unless_empty<T>(page: Page<T>, paging: &Paging) -> Option<Page<T>> {
    Some(page).filter(|page| paging.cursor.is_some() || !page.rows.is_empty())
}

/// One row.
pub struct Shown {
    body: String,
    tag: EntityTag,
    unchanged: bool,
    reflects: Reflects,
}

impl IntoResponse for Shown {
    fn into_response(self) -> Response {
        let mut response = if self.unchanged {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            ([(CONTENT_TYPE, "application/json")], self.body).into_response()
        };
        set(response.headers_mut(), ETAG, &self.tag.to_string());
        self.reflects.tell(response.headers_mut());
        response
    }
}

/// A query string as a header may carry it: what is not ASCII percent-encoded (RFC 3986 section 2.1).
fn ascii(query: &str) -> String {
    query.bytes().map(|b| if b.is_ascii_graphic() { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// One page with where the next one begins.
pub struct Listed<T> {
    data: Vec<Doc<T>>,
    next: Option<String>,
    uri: Uri,
    reflects: Reflects,
}

/// The body of a list.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is only described")]
pub struct ListBody<T> {
    /// The rows.
    data: Vec<T>,
    /// The cursor of the next page; none on the last.
    #[schema(example = "qN5QEy0lRmZkUeC3F1FQ5VsiMjAyNi0wMS0wMSIsIjAxOTAiXQ")]
    next_cursor: Option<String>,
}

impl<T> Listed<T> {
    /// The rows as they are, and where the next page begins.
    fn body(&self) -> String {
        let size: usize = self.data.iter().map(|row| row.text().len() + 1).sum();
        let mut body = String::with_capacity(size + 256);
        body.push_str("{\"data\":[");
        for (n, row) in self.data.iter().enumerate() {
            if n > 0 {
                body.push(',');
            }
            body.push_str(row.text());
        }
        body.push_str("],\"next_cursor\":");
        // A cursor is Base64.
        match &self.next {
            Some(cursor) => body.extend(["\"", cursor, "\""]),
            None => body.push_str("null"),
        }
        body.push('}');
        body
    }
}

impl<T> IntoResponse for Listed<T> {
    fn into_response(self) -> Response {
        let link = self.next.as_ref().map(|cursor| {
            let others = self
                .uri
                .query()
                .unwrap_or_default()
                .split('&')
                .filter(|pair| !pair.is_empty() && !pair.starts_with("cursor=") && !pair.starts_with("after="));
            let query: Vec<_> = others.map(str::to_owned).chain([format!("cursor={cursor}")]).collect();
            format!("<{}?{}>; rel=\"next\"", self.uri.path(), ascii(&query.join("&")))
        });
        let mut response = ([(CONTENT_TYPE, "application/json")], self.body()).into_response();
        self.reflects.tell(response.headers_mut());
        if let Some(link) = link {
            set(response.headers_mut(), LINK, &link);
        }
        response
    }
}
