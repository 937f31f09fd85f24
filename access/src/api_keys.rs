//! The keys of programs: `tnr_<which>.<secret>`. Which key it is stands in clear at its beginning, so that a leaked one can be recognised; of the secret only a hash is kept.
//! It has 256 random bits, so a plain SHA-256 of it can neither be guessed nor needs to be slow.

use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use chrono::{DateTime, TimeDelta, Utc};
use cqrs_es::Aggregate as _;
use domain::actor::Grants;
use domain::identity::api_key::{ApiKey, Kind, within};
use domain::identity::user::User;
use domain::iot::device::Device;
use domain::text::Reference;
use domain::{Actor, StreamId, TenantId};
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
use uuid::Uuid;

use crate::authenticate::{Authenticated, KeyStanding};
use crate::entry::{Admitted, Entry};
use crate::{Access, AccessError, FRESH, same, secret};

/// What keys begin with.
pub const PREFIX: &str = "tnr_";
/// How much of a key is shown in lists.
const SHOWN: usize = 12;
/// How exactly it is known when a key was last used.
const USE: TimeDelta = TimeDelta::minutes(1);

/// A secret that was drawn for a key, and is kept nowhere but with the answer to whoever repeats the request.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct Drawn {
    /// Whose it is.
    pub tenant: TenantId,
    /// Where its hash is.
    pub credential: Uuid,
    /// The key, to be shown once.
    pub key: String,
    /// How it begins.
    pub prefix: Reference,
}

impl Access {
    /// Draws a secret for a key and keeps its hash. It opens nothing until an event names it.
    pub async fn draw(&self, key: StreamId) -> Result<Drawn, AccessError> {
        self.draw_for(ApiKey::TYPE, PREFIX, key).await
    }

    /// The same, for whoever's secrets begin like this.
    pub(crate) async fn draw_for(&self, owner: &'static str, beginning: &str, key: StreamId) -> Result<Drawn, AccessError> {
        let random = secret::<32>();
        // The random part of the id comes first: keys of a tenant can be told apart by how they begin.
        let mut which = [key.id, key.tenant.0].map(Uuid::into_bytes).concat();
        which.reverse();
        which.rotate_left(16);
        let text = format!("{beginning}{}.{}", BASE64.encode(&which), BASE64.encode(random));
        let credential = self.keep_for(owner, key, hex::encode(Sha256::digest(random))).await?;
        let beginning: String = text.chars().take(SHOWN).collect();
        let prefix = Reference::parse(&beginning).map_err(|error| AccessError::Internal(error.to_string()))?;
        Ok(Drawn { tenant: key.tenant, credential, key: text, prefix })
    }

    /// Whether an event of a key or a device names this secret, and it is good still.
    pub async fn counts(&self, owner: StreamId, credential: Uuid) -> Result<bool, AccessError> {
        let now = self.store().clock().now();
        let key = self.store().current::<ApiKey>(owner).await?.state;
        let device = self.store().current::<Device>(owner).await?.state;
        let of_key = key.details().map(|key| key.secrets(now)).unwrap_or_default();
        let of_device = device.details().map(|device| device.secrets(now)).unwrap_or_default();
        Ok(of_key.contains(&credential) || of_device.contains(&credential))
    }

    /// Forgets a hash of this tenant that no event names after all.
    pub async fn discard(&self, tenant: TenantId, credential: Uuid) -> Result<(), AccessError> {
        let gone = sqlx::query("delete from ops.credentials where tenant_id = $1 and id = $2").bind(tenant.0).bind(credential);
        gone.execute(self.store().pool()).await?;
        Ok(())
    }

    /// Keeps the hash of a user's password, also one from elsewhere; it counts once an event names it.
    pub async fn keep(&self, user: StreamId, hash: String) -> Result<Uuid, AccessError> {
        self.keep_for(User::TYPE, user, hash).await
    }

    async fn keep_for(&self, owner_type: &'static str, owner: StreamId, hash: String) -> Result<Uuid, AccessError> {
        let id = self.store().fresh_id();
        sqlx::query("insert into ops.credentials (id, tenant_id, owner_type, owner_id, hash, created_at) values ($1, $2, $6, $3, $4, $5)")
            .bind(id)
            .bind(owner.tenant.0)
            .bind(owner.id)
            .bind(hash)
            .bind(self.store().clock().now())
            .bind(owner_type)
            .execute(self.store().pool())
            .await?;
        Ok(id)
    }

    pub(crate) async fn with_key(&self, bearer: &str) -> Result<Authenticated, AccessError> {
        let name: [u8; 32] = Sha256::digest(bearer).into();
        let standing = match self.inner.api_keys.get(&name) {
            Some((standing, since)) if since.elapsed() < FRESH => standing,
            Some(_) | None => {
                let since = Instant::now();
                let standing = self.key_standing(bearer).await?.map(Arc::new);
                self.inner.api_keys.insert(name, (standing.clone(), since));
                standing
            }
        };
        let now = self.store().clock().now();
        let standing = standing.filter(|key| key.expires_at.is_none_or(|at| now < at)).ok_or(AccessError::Invalid)?;
        self.note_use(standing.key, now);
        Ok(Authenticated { actor: standing.actor.clone(), session: None, key: Some(standing.key.id), expires_at: standing.expires_at })
    }

    async fn key_standing(&self, bearer: &str) -> Result<Option<KeyStanding>, AccessError> {
        let Some((key, secret)) = self.named(ApiKey::TYPE, PREFIX, bearer).await? else { return Ok(None) };
        let loaded = self.store().current::<ApiKey>(key).await?;
        let now = self.store().clock().now();
        let Some(details) = loaded.state.details().filter(|details| details.opens(secret, now)) else { return Ok(None) };
        if !self.admits_tenant(key.tenant).await? {
            return Ok(None);
        }
        let actor = match (details.kind, details.owner) {
            (Kind::Service, _) => Actor::Service { key: key.id, tenant: key.tenant, grants: details.scopes.clone() },
            (Kind::Personal, Some(owner)) => {
                let admitted = self.admit(StreamId::new(key.tenant, owner.0), Entry::OnBehalf).await?;
                let Some(Admitted { person, .. }) = admitted else { return Ok(None) };
                let grants = Grants::Only(within(&details.scopes, |scope| person.may(scope)));
                Actor::User { id: owner.to_string(), tenant: key.tenant, role: person.role, key: Some(key.id), grants }
            }
            (Kind::Personal, None) => return Ok(None),
        };
        Ok(Some(KeyStanding { key, actor, expires_at: details.expires_at }))
    }

    /// Whose secret it is that begins like this, and where its hash is.
    pub(crate) async fn named(
        &self,
        owner_type: &'static str,
        beginning: &str,
        bearer: &str,
    ) -> Result<Option<(StreamId, Uuid)>, AccessError> {
        let Some((key, hash)) = parse(beginning, bearer) else { return Ok(None) };
        let secrets: Vec<(Uuid, String)> = sqlx::query_as(
            "select id, hash from ops.credentials where tenant_id = $1 and owner_id = $2 and (owner_type = $3 or owner_type is null)",
        )
        .bind(key.tenant.0)
        .bind(key.id)
        .bind(owner_type)
        .fetch_all(self.store().pool())
        .await?;
        Ok(secrets.into_iter().find(|(_, stored)| same(stored.as_bytes(), hash.as_bytes())).map(|(secret, _)| (key, secret)))
    }

    /// Notes now and then that a key is used, without anybody waiting for it.
    fn note_use(&self, key: StreamId, now: DateTime<Utc>) {
        if self.inner.used.get(&key).is_some_and(|last| now - last < USE) {
            return;
        }
        self.inner.used.insert(key, now);
        let pool = self.store().pool().clone();
        tokio::spawn(async move {
            let noted = sqlx::query(
                "insert into ops.api_key_use (key_id, tenant_id, last_used_at) values ($1, $2, $3)
                 on conflict (tenant_id, key_id) do update set last_used_at = greatest(api_key_use.last_used_at, excluded.last_used_at)",
            );
            if let Err(error) = noted.bind(key.id).bind(key.tenant.0).bind(now).execute(&pool).await {
                tracing::warn!(%error, "that a key was used could not be noted");
            }
        });
    }

    /// When keys were last used, to the minute.
    pub async fn last_used(&self, tenant: TenantId, keys: &[Uuid]) -> Result<Vec<(Uuid, DateTime<Utc>)>, AccessError> {
        let used = sqlx::query_as("select key_id, last_used_at from ops.api_key_use where tenant_id = $1 and key_id = any($2)");
        Ok(used.bind(tenant.0).bind(keys).fetch_all(self.store().pool()).await?)
    }
}

/// Which key it is, and the hash of its secret.
fn parse(beginning: &str, bearer: &str) -> Option<(StreamId, String)> {
    let (which, secret) = bearer.strip_prefix(beginning)?.split_once('.')?;
    let mut which = BASE64.decode(which).ok().filter(|bytes| bytes.len() == 32)?;
    which.rotate_right(16);
    which.reverse();
    let id = |at: usize| Uuid::from_slice(&which[at..at + 16]).ok();
    let key = StreamId::new(TenantId(id(16)?), id(0)?);
    Some((key, hex::encode(Sha256::digest(BASE64.decode(secret).ok()?))))
}
