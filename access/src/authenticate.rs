//! Who acts: for a bearer token of any kind, an actor with what they may now.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use chrono::{DateTime, Utc};
use domain::actor::Grants;
use domain::{Actor, Role, StreamId, TenantId};
use serde::Serialize;
use uuid::Uuid;

use crate::entry::{Admitted, Entry};
use crate::sessions::OPAQUE;
use crate::token::{Claims, TokenError};
use crate::{Access, AccessError, FRESH};

/// What is known of a session: whose it is, and what they may.
pub struct Standing {
    user: StreamId,
    role: Role,
    grants: Grants,
    expires_at: DateTime<Utc>,
}

/// What is known of an API key.
pub struct KeyStanding {
    pub(crate) key: StreamId,
    pub(crate) actor: Actor,
    pub(crate) expires_at: Option<DateTime<Utc>>,
}

/// Who acts, and by what.
#[derive(Clone, Debug)]
pub struct Authenticated {
    /// Who, with what they may.
    pub actor: Actor,
    /// The session that the token belongs to.
    pub session: Option<Uuid>,
    /// The API key that was used.
    pub key: Option<Uuid>,
    /// When the token or key was to end, if it was.
    pub expires_at: Option<DateTime<Utc>>,
}

/// What a resource server is told of a token (RFC 7662 section 2.2).
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
pub struct Introspection {
    /// Whether it is good.
    #[schema(example = true)]
    pub active: bool,
    /// What it allows, with spaces between.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "ticket:read ticket:open")]
    pub scope: Option<String>,
    /// Whose it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "01900000-0000-7000-8000-000000000001")]
    pub sub: Option<String>,
    /// Of which tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantId>,
    /// In which role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Until when, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 1_767_225_600)]
    pub exp: Option<i64>,
    /// `Bearer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "Bearer")]
    pub token_type: Option<&'static str>,
}

/// What an actor may of all that can be given.
pub fn permissions(actor: &Actor) -> BTreeSet<&'static str> {
    domain::actor::grantable().into_iter().filter(|permission| actor.may(permission)).collect()
}

impl Access {
    /// Who acts, for what stands after `Bearer`.
    pub async fn authenticate(&self, bearer: &str) -> Result<Authenticated, AccessError> {
        if bearer.starts_with(crate::api_keys::PREFIX) {
            return self.with_key(bearer).await;
        }
        if bearer.starts_with(crate::devices::PREFIX) {
            return self.with_credential(bearer).await;
        }
        if bearer.starts_with(OPAQUE) {
            let (session, until) = self.decoded(OPAQUE, bearer).ok_or(AccessError::Invalid)?;
            let until = DateTime::from_timestamp(until, 0).ok_or(AccessError::Invalid)?;
            if until <= self.store().clock().now() {
                return Err(AccessError::Expired);
            }
            return self.in_session(session, until).await;
        }
        match self.inner.keys.verify(bearer).await? {
            Some(Ok(Claims { sid: Some(session), exp, .. })) => {
                self.in_session(session, DateTime::from_timestamp(exp, 0).unwrap_or_default()).await
            }
            Some(Ok(_)) => Err(AccessError::Invalid),
            Some(Err(error)) => Err(error.into()),
            None => self.operator(bearer).await,
        }
    }

    /// An operator's token says itself who acts: whoever has the key to sign it may say so, as long as whom it names could act too.
    async fn operator(&self, bearer: &str) -> Result<Authenticated, AccessError> {
        let key = self.inner.operator.as_ref().ok_or(AccessError::Invalid)?;
        let claims = key.verify(bearer, self.store().clock().now())?;
        if claims.sid.is_some() {
            return Err(AccessError::Invalid);
        }
        let name = (claims.tenant, claims.sub.clone());
        let admitted = match self.inner.named.get(&name) {
            Some((admitted, since)) if since.elapsed() < FRESH => admitted,
            Some(_) | None => {
                let since = Instant::now();
                let admitted = self.may_be_named(claims.tenant, &claims.sub).await?;
                self.inner.named.insert(name, (admitted, since));
                admitted
            }
        };
        if !admitted {
            return Err(AccessError::Invalid);
        }
        let expires_at = DateTime::from_timestamp(claims.exp, 0);
        Ok(Authenticated { actor: Actor::person(claims.sub, claims.tenant, claims.role), session: None, key: None, expires_at })
    }

    async fn in_session(&self, session: Uuid, until: DateTime<Utc>) -> Result<Authenticated, AccessError> {
        let standing = match self.inner.sessions.get(&session) {
            Some((standing, since)) if since.elapsed() < FRESH => standing,
            Some(_) | None => {
                // Measured from before it is read, so that it is never older than it seems.
                let since = Instant::now();
                let standing = self.standing(session).await?.map(Arc::new);
                self.inner.sessions.insert(session, (standing.clone(), since));
                standing
            }
        };
        let standing = standing.filter(|standing| self.store().clock().now() < standing.expires_at).ok_or(AccessError::Invalid)?;
        let actor = Actor::User {
            id: standing.user.id.to_string(),
            tenant: standing.user.tenant,
            role: standing.role,
            key: None,
            grants: standing.grants.clone(),
        };
        Ok(Authenticated { actor, session: Some(session), key: None, expires_at: Some(until) })
    }

    /// What is known of a session that goes on, as the one does that it belongs to.
    pub(crate) async fn standing(&self, session: Uuid) -> Result<Option<Standing>, AccessError> {
        let row: Option<(Uuid, Uuid, i64, DateTime<Utc>, Option<Uuid>)> =
            sqlx::query_as("select tenant_id, user_id, epoch, expires_at, parent from ops.sessions where id = $1 and ended_at is null")
                .bind(session)
                .fetch_optional(self.store().pool())
                .await?;
        let Some((tenant, user, epoch, expires_at, parent)) = row else { return Ok(None) };
        // A session belongs to one that somebody logged in to, which belongs to none.
        if let Some(parent) = parent
            && Box::pin(self.standing(parent)).await?.is_none()
        {
            return Ok(None);
        }
        let user = StreamId::new(TenantId(tenant), user);
        let admitted = self.admit(user, Entry::Session { session, epoch }).await?;
        Ok(admitted.map(|Admitted { person, .. }| Standing { user, role: person.role, grants: person.grants, expires_at }))
    }

    /// Whether an operator may act as whom a token names: somebody who is no user at all, or one who can act, in a tenant that is there.
    async fn may_be_named(&self, tenant: TenantId, name: &str) -> Result<bool, AccessError> {
        let Ok(id) = name.parse() else { return self.admits_tenant(tenant).await };
        let user = StreamId::new(tenant, id);
        if self.details(user).await?.is_none() {
            return self.admits_tenant(tenant).await;
        }
        Ok(self.admit(user, Entry::OnBehalf).await?.is_some())
    }

    /// What a token is, for a caller who may ask about those of `tenant`; of any other it is not active.
    pub async fn introspect(&self, token: &str, tenant: TenantId) -> Result<Introspection, AccessError> {
        let authenticated = match self.authenticate(token).await {
            Ok(authenticated) => authenticated,
            Err(AccessError::Invalid | AccessError::Expired | AccessError::NotActive) => return Ok(Introspection::default()),
            Err(error) => return Err(error),
        };
        let actor = authenticated.actor;
        if actor.tenant() != Some(tenant) && tenant != TenantId::SYSTEM {
            return Ok(Introspection::default());
        }
        Ok(Introspection {
            active: true,
            scope: Some(permissions(&actor).into_iter().collect::<Vec<_>>().join(" ")),
            sub: Some(actor.name()),
            tenant: actor.tenant(),
            role: match &actor {
                Actor::User { role, .. } => Some(*role),
                Actor::Service { .. } | Actor::Device { .. } | Actor::System { .. } => None,
            },
            exp: authenticated.expires_at.map(|at| at.timestamp()),
            token_type: Some("Bearer"),
        })
    }
}

impl From<TokenError> for AccessError {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Expired => Self::Expired,
            TokenError::Invalid => Self::Invalid,
            TokenError::Key(reason) => Self::Internal(reason),
        }
    }
}
