//! What a handler is made of: who asks ([`Caller`]), a command ([`Write`], [`Body`], [`Written`]), a query ([`Query`], [`Shown`], [`Listed`]).

mod entity_tag;
mod query;
mod repeat;
mod write;

use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use commands::authorize::{authorize, may_enter};
use domain::{Actor, StreamId, TenantId};
use uuid::Uuid;

pub use entity_tag::{Condition, EntityTag};
pub use query::{After, ListBody, Listed, Listing, Params, Query, Reflecting, Shown, Sought};
pub(crate) use query::{bad_query, paging, unless_empty};
pub use repeat::{Drawn, ItemKeys, Repeat, Unfinished};
pub(crate) use repeat::{nothing, unless_final};
pub(crate) use write::traceparent;
pub use write::{Body, Write, Written, WrittenBody};

use crate::app::App;
use crate::problem::{Problem, code};

pub(crate) const TENURE_POSITION: HeaderName = HeaderName::from_static("tenure-position");
const TENURE_PARKED: HeaderName = HeaderName::from_static("tenure-parked");
pub(crate) const TENURE_TENANT: HeaderName = HeaderName::from_static("tenure-tenant");

/// Who asks, and for which tenant.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who, with what they may now.
    pub actor: Actor,
    /// The token's tenant, or the one that the platform named.
    pub tenant: TenantId,
    /// The session of the token.
    pub session: Option<Uuid>,
    /// The API key that was used.
    pub key: Option<Uuid>,
}

/// Where a request leaves who asked, for whoever records what they were refused.
#[derive(Clone, Default)]
pub(crate) struct Asked(pub(crate) Arc<OnceLock<Caller>>);

impl Caller {
    /// The stream that an id is for a caller: one of the tenant they act for.
    pub fn stream(id: Uuid, caller: &Self) -> StreamId {
        StreamId::new(caller.tenant, id)
    }

    /// The user who asks, in their own tenant: for what people do with their own account.
    pub fn own_user(&self) -> Result<StreamId, Problem> {
        match &self.actor {
            Actor::User { id, tenant, .. } if *tenant == self.tenant => {
                let id = id.parse().map_err(|_| Problem::new(code::NO_ACCOUNT, "an operator's token belongs to no user"))?;
                Ok(StreamId::new(*tenant, id))
            }
            Actor::User { .. } | Actor::Service { .. } | Actor::Device { .. } | Actor::System { .. } => {
                Err(Problem::new(code::NO_ACCOUNT, "this is for people with their own token, in their own tenant"))
            }
        }
    }

    /// The same, and not by an API key: what gives more than a key may give needs a session.
    pub fn in_person(&self) -> Result<StreamId, Problem> {
        if self.key.is_some() {
            return Err(Problem::new(code::NO_ACCOUNT, "this needs a session; an API key will not do"));
        }
        self.own_user()
    }

    /// Refuses a caller who lacks the permission.
    pub fn require(&self, permission: &'static str) -> Result<(), Problem> {
        Ok(authorize(&self.actor, permission)?)
    }
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
        let authenticated = app.access.authenticate(token).await?;
        let Some(own) = authenticated.actor.tenant() else { return Err(Problem::unauthenticated(None)) };
        let tenant = match parts.headers.get(TENURE_TENANT) {
            None => own,
            Some(value) => value
                .to_str()
                .ok()
                .and_then(|text| access::token::tenant::parse(text).ok())
                .ok_or_else(|| Problem::new(code::BAD_HEADER, "Tenure-Tenant must be a tenant's id"))?,
        };
        if !may_enter(&authenticated.actor, tenant) {
            return Err(Problem::not_found());
        }
        let caller = Self { actor: authenticated.actor, tenant, session: authenticated.session, key: authenticated.key };
        if let Some(asked) = parts.extensions.get::<Asked>() {
            let _ = asked.0.set(caller.clone());
        }
        Ok(caller)
    }
}

/// An id in a path. One that is no UUID is the id of nothing.
#[derive(Clone, Copy, Debug)]
pub struct Id(pub Uuid);

impl FromRequestParts<App> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        path_param(parts, app, "id").await.map(Self)
    }
}

/// What stands at a place of the path. What cannot stand there is the name of nothing.
pub(crate) async fn path_param<T: FromStr>(parts: &mut Parts, app: &App, name: &str) -> Result<T, Problem> {
    let params = RawPathParams::from_request_parts(parts, app).await.map_err(|_| Problem::not_found())?;
    let value = params.iter().find(|(param, _)| *param == name).and_then(|(_, value)| value.parse().ok());
    value.ok_or_else(Problem::not_found)
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
