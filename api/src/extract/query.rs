//! Queries.

use axum::extract::FromRequestParts;
use axum::http::header::{ETAG, IF_NONE_MATCH, LINK};
use axum::http::request::Parts;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Datelike as _, Utc};
use commands::authorize::authorize;
use domain::TenantId;
use projections::query::Page;
use projections::{Read, ReadModel, View};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{Caller, TENURE_POSITION, etag, set};
use crate::app::App;
use crate::problem::Problem;

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
        let unchanged = self
            .if_none_match
            .is_some_and(|tags| tags.split(',').any(|tag| tag.trim() == "*" || tag.trim().trim_start_matches("W/") == etag));
        Ok(Shown { row, etag, unchanged, position: read.position })
    }

    /// Answers one page.
    pub fn page<T>(self, read: &Read, page: Page<T>) -> Listed<T> {
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

/// A query string as a header may carry it: what is not ASCII percent-encoded (RFC 3986 section 2.1).
fn ascii(query: &str) -> String {
    query.bytes().map(|b| if b.is_ascii_graphic() { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
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
            format!("<{}?{}>; rel=\"next\"", self.uri.path(), ascii(&query.join("&")))
        });
        let mut response = axum::Json(ListBody { data: self.data, next_cursor: self.next }).into_response();
        set(response.headers_mut(), TENURE_POSITION, &self.position.to_string());
        if let Some(link) = link {
            set(response.headers_mut(), LINK, &link);
        }
        response
    }
}
