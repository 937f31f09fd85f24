//! What a handler is made of: who asks ([`Caller`]), a command ([`Write`], [`Body`], [`Written`]), a query ([`Query`], [`Shown`], [`Listed`]).

mod query;
mod write;

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use commands::authorize::may_enter;
use domain::{Actor, TenantId};
use uuid::Uuid;

pub use query::{After, ListBody, Listed, Listing, Params, Query, Shown};
pub(crate) use query::{bad_query, paging, sensible, short};
pub use write::{Body, Write, Written, WrittenBody};

use crate::app::App;
use crate::problem::{Problem, code};

const TENURE_POSITION: HeaderName = HeaderName::from_static("tenure-position");
const TENURE_PARKED: HeaderName = HeaderName::from_static("tenure-parked");
const TENURE_TENANT: HeaderName = HeaderName::from_static("tenure-tenant");

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
                .ok_or_else(|| Problem::new(code::BAD_HEADER, "Tenure-Tenant must be a tenant's id"))?,
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

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn etag(version: i64) -> String {
    format!("\"v{version}\"")
}
