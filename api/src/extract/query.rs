//! Queries.

use axum::extract::FromRequestParts;
use axum::http::header::{ETAG, IF_NONE_MATCH, LINK};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Datelike as _, Utc};
use commands::authorize::authorize;
use domain::{StreamId, TenantId};
use projections::list::{Orders, Page, Paging};
use projections::{Read, View};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::write::original;
use super::{Caller, TENURE_PARKED, TENURE_POSITION, etag, set};
use crate::app::App;
use crate::problem::{Problem, code};

/// Opens read models for the caller's tenant.
pub struct Query {
    app: App,
    /// Who asks.
    pub caller: Caller,
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
pub struct Listing {
    /// How to order the rows; `-` in front is descending.
    pub sort: Option<String>,
    /// How many rows at most.
    #[param(minimum = 1, maximum = 200, default = 50)]
    pub limit: Option<u32>,
    /// Where to go on: the `next_cursor` of the page before.
    pub cursor: Option<String>,
    /// Wait up to 2 s until the answer reflects this position; 504 if it takes longer.
    #[param(minimum = 0)]
    pub after: Option<i64>,
}

pub(crate) fn bad_query(detail: impl Into<String>) -> Problem {
    Problem::new(code::BAD_QUERY, detail)
}

/// Which part of a list is wanted: 50 rows in the default order, if nothing else is said.
pub(crate) fn paging(orders: &Orders, sort: Option<&str>, limit: Option<u32>, cursor: Option<String>) -> Result<Paging, Problem> {
    let sort = orders.parse(sort).map_err(|names| bad_query(format!("sort must be one of {}", names.join(", "))))?;
    let limit = limit.unwrap_or(50);
    if (1..=200).contains(&limit) { Ok(Paging { sort, limit, cursor }) } else { Err(bad_query("limit must be between 1 and 200")) }
}

/// Times that Postgres can hold, too.
pub(crate) fn sensible(times: &[Option<DateTime<Utc>>]) -> Result<(), Problem> {
    if times.iter().flatten().all(|time| (0..=9999).contains(&time.year())) {
        Ok(())
    } else {
        Err(bad_query("a time must lie in the years 0 to 9999"))
    }
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
            if_none_match: parts.headers.get(IF_NONE_MATCH).and_then(|v| v.to_str().ok()).map(str::to_owned),
            uri: original(parts).clone(),
            app: app.clone(),
            caller,
        })
    }
}

impl Query {
    /// Refuses a caller who lacks the permission.
    pub fn require(&self, permission: &'static str) -> Result<(), Problem> {
        Ok(authorize(&self.caller.actor, permission)?)
    }

    /// Opens read models for the caller's tenant once all of them have come as far as `after`.
    pub async fn open(&self, models: &[&'static str], after: Option<i64>) -> Result<Read, Problem> {
        Ok(self.app.reads.begin(View::Tenant(self.caller.tenant), models, after).await?)
    }

    /// Opens read models of what belongs to the platform, and everybody may see.
    pub async fn open_system(&self, models: &[&'static str], after: Option<i64>) -> Result<Read, Problem> {
        Ok(self.app.reads.begin_for(self.caller.tenant, View::Tenant(TenantId::SYSTEM), models, after).await?)
    }

    /// The same for all tenants, where the caller is the platform and names none.
    pub async fn open_all(&self, models: &[&'static str], after: Option<i64>) -> Result<Read, Problem> {
        let view = if self.caller.tenant == TenantId::SYSTEM { View::Platform } else { View::Tenant(self.caller.tenant) };
        Ok(self.app.reads.begin(view, models, after).await?)
    }

    /// Signs and checks cursors.
    pub fn cursors(&self) -> &projections::cursor::CursorKey {
        &self.app.reads.cursors
    }

    /// Answers one row of `stream`.
    pub async fn show<T: Serialize>(
        self,
        mut read: Read,
        stream: StreamId,
        row: Option<T>,
        version: impl FnOnce(&T) -> i64,
    ) -> Result<Shown<T>, Problem> {
        let reflects = Reflects { parked: read.parked_of(stream).await?, position: read.position };
        let row = row.ok_or_else(|| reflects.nothing())?;
        let etag = etag(version(&row));
        let unchanged = self
            .if_none_match
            .is_some_and(|tags| tags.split(',').any(|tag| tag.trim() == "*" || tag.trim().trim_start_matches("W/") == etag));
        Ok(Shown { row, etag, unchanged, reflects })
    }

    /// Answers one page.
    pub fn page<T>(self, read: &Read, page: Page<T>) -> Listed<T> {
        Listed { data: page.rows, next: page.next, uri: self.uri, reflects: Reflects { position: read.position, parked: read.parked } }
    }

    /// Answers one page of what belongs to `stream`; every stream has something, so where there is nothing at all there is no such stream for the caller.
    pub async fn page_of<T>(self, mut read: Read, stream: StreamId, page: Page<T>, cursor: Option<&String>) -> Result<Listed<T>, Problem> {
        let reflects = Reflects { parked: read.parked_of(stream).await?, position: read.position };
        if page.rows.is_empty() && cursor.is_none() {
            return Err(reflects.nothing());
        }
        Ok(Listed { data: page.rows, next: page.next, uri: self.uri, reflects })
    }
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

/// One row.
pub struct Shown<T> {
    row: T,
    etag: String,
    unchanged: bool,
    reflects: Reflects,
}

impl<T: Serialize> IntoResponse for Shown<T> {
    fn into_response(self) -> Response {
        let mut response = if self.unchanged { StatusCode::NOT_MODIFIED.into_response() } else { axum::Json(self.row).into_response() };
        set(response.headers_mut(), ETAG, &self.etag);
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
    data: Vec<T>,
    next: Option<String>,
    uri: Uri,
    reflects: Reflects,
}

/// The body of a list.
#[derive(Serialize, ToSchema)]
pub struct ListBody<T> {
    /// The rows.
    data: Vec<T>,
    /// The cursor of the next page; none on the last.
    #[schema(example = "qN5QEy0lRmZkUeC3F1FQ5VsiMjAyNi0wMS0wMSIsIjAxOTAiXQ")]
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
            format!("<{}?{}>; rel=\"next\"", self.uri.path(), ascii(&query.join("&")))
        });
        let mut response = axum::Json(ListBody { data: self.data, next_cursor: self.next }).into_response();
        self.reflects.tell(response.headers_mut());
        if let Some(link) = link {
            set(response.headers_mut(), LINK, &link);
        }
        response
    }
}
