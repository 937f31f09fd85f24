//! The keys that sign access tokens: made, published, rotated.
//!
//! A new key is published some time before it signs, so that whoever keeps the published keys for a while knows it by then; the one before it is good until the last token
//! that it signed has expired.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use store::{Store, database};
use tokio::sync::RwLock;

use crate::token::{Claims, TokenError, TokenKey, kid};
use crate::{ACCESS_TTL, AccessError, FRESH};

/// What the private parts are encrypted for.
const USE: &str = "signing key";

/// One of them.
#[derive(Clone)]
pub struct SigningKey {
    key: TokenKey,
    /// From when on it signs.
    pub signs_from: DateTime<Utc>,
    /// Until when what it signed is good; `None`: until it is rotated out.
    pub verifies_until: Option<DateTime<Utc>>,
}

impl SigningKey {
    /// What tells it from other keys.
    pub fn kid(&self) -> &str {
        self.key.kid()
    }
}

/// All of them, as this process last saw them.
#[derive(Clone)]
pub struct SigningKeys {
    store: Store,
    ring: Arc<RwLock<Option<(Arc<Vec<SigningKey>>, Instant)>>>,
}

type Row = (String, Vec<u8>, DateTime<Utc>, Option<DateTime<Utc>>);

impl SigningKeys {
    /// The keys of an installation.
    pub fn new(store: Store) -> Self {
        Self { store, ring: Arc::default() }
    }

    /// Those that are published now, the newest first.
    pub async fn all(&self) -> Result<Arc<Vec<SigningKey>>, AccessError> {
        self.within(FRESH).await
    }

    async fn within(&self, age: Duration) -> Result<Arc<Vec<SigningKey>>, AccessError> {
        let fresh = |ring: &Option<(Arc<Vec<SigningKey>>, Instant)>| {
            ring.as_ref().filter(|(_, since)| since.elapsed() < age).map(|(keys, _)| keys.clone())
        };
        if let Some(keys) = fresh(&*self.ring.read().await) {
            return Ok(keys);
        }
        let mut ring = self.ring.write().await;
        // Those who waited meanwhile need not look once more.
        if let Some(keys) = fresh(&ring) {
            return Ok(keys);
        }
        let since = Instant::now();
        let rows: Vec<Row> = sqlx::query_as(
            "select kid, wrapped_key, signs_from, verifies_until from ops.signing_keys where verifies_until is null or verifies_until > $1 order by signs_from desc",
        )
        .bind(self.store.clock().now())
        .fetch_all(self.store.pool())
        .await?;
        let known = ring.as_ref().map(|(keys, _)| keys.clone()).unwrap_or_default();
        let keys = rows.into_iter().map(|row| self.open(&known, row)).collect::<Result<Vec<_>, _>>()?;
        let keys = Arc::new(keys);
        *ring = Some((keys.clone(), since));
        Ok(keys)
    }

    /// A key from its row; one that is known keeps what it has seen already.
    fn open(&self, known: &[SigningKey], (kid, wrapped, signs_from, verifies_until): Row) -> Result<SigningKey, AccessError> {
        if let Some(key) = known.iter().find(|key| key.kid() == kid) {
            return Ok(SigningKey { key: key.key.clone(), signs_from, verifies_until });
        }
        let pem = self.store.unwrap(USE, &[&kid], &wrapped).and_then(|pem| String::from_utf8(pem).ok());
        let pem = pem.ok_or_else(|| AccessError::Internal("a signing key cannot be read with this master key".into()))?;
        let key = TokenKey::from_pem(&pem).map_err(|e| AccessError::Internal(e.to_string()))?;
        Ok(SigningKey { key, signs_from, verifies_until })
    }

    /// A token that says this, signed with the key whose turn it is. The first one makes the first key.
    pub(crate) async fn sign(&self, claims: &Claims) -> Result<String, AccessError> {
        let now = self.store.clock().now();
        let mut keys = self.all().await?;
        if !keys.iter().any(|key| key.signs_from <= now) {
            self.make(now, TimeDelta::zero(), true).await?;
            keys = self.within(Duration::ZERO).await?;
        }
        let key = keys.iter().find(|key| key.signs_from <= now).ok_or_else(|| AccessError::Internal("there is no signing key".into()))?;
        key.key.sign_claims(claims).map_err(|e| AccessError::Internal(e.to_string()))
    }

    /// What a token says, if one of the keys signed it; `None`: none of them did.
    pub(crate) async fn verify(&self, token: &str) -> Result<Option<Result<Claims, TokenError>>, AccessError> {
        let Some(kid) = kid(token) else { return Ok(None) };
        let keys = self.all().await?;
        Ok(keys.iter().find(|key| key.kid() == kid).map(|key| key.key.verify(token, self.store.clock().now())))
    }

    /// The public keys, as a JWK set (RFC 7517, RFC 8037 section 2).
    pub async fn jwks(&self) -> Result<Value, AccessError> {
        let keys = self.all().await?;
        let jwk = |key: &SigningKey| json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": key.kid(), "x": BASE64.encode(key.key.public())});
        Ok(json!({"keys": keys.iter().map(jwk).collect::<Vec<_>>()}))
    }

    /// Makes a new key that signs from `lead` on; all others are good until then, and as long after it as a token lives. Answers its `kid`.
    pub async fn rotate(&self, lead: TimeDelta) -> Result<String, AccessError> {
        let now = self.store.clock().now();
        let lead = if self.within(Duration::ZERO).await?.is_empty() { TimeDelta::zero() } else { lead };
        self.make(now, lead, false).await
    }

    /// Makes a key. The `first` one only if nobody else has made one meanwhile; one that waits for its time need not any more then.
    async fn make(&self, now: DateTime<Utc>, lead: TimeDelta, first: bool) -> Result<String, AccessError> {
        let pem = TokenKey::generate();
        let key = TokenKey::from_pem(&pem).map_err(|e| AccessError::Internal(e.to_string()))?;
        let wrapped = self
            .store
            .wrap(USE, &[key.kid()], pem.as_bytes())
            .ok_or_else(|| AccessError::Internal("a key could not be encrypted".into()))?;
        let until = now + lead + ACCESS_TTL + TimeDelta::minutes(1);
        let mut tx = database::begin(self.store.pool()).await?;
        // One at a time: of many who find that there is none, one makes it.
        sqlx::query("select pg_advisory_xact_lock(hashtext('tenure signing keys'))").execute(&mut *tx).await?;
        if first {
            let pending: Option<String> = sqlx::query_scalar(
                "update ops.signing_keys set signs_from = least(signs_from, $1) where kid = (select kid from ops.signing_keys where verifies_until is null limit 1) returning kid",
            )
            .bind(now)
            .fetch_optional(&mut *tx)
            .await?;
            if let Some(kid) = pending {
                tx.commit().await?;
                *self.ring.write().await = None;
                return Ok(kid);
            }
        }
        sqlx::query("update ops.signing_keys set verifies_until = $1 where verifies_until is null").bind(until).execute(&mut *tx).await?;
        sqlx::query("insert into ops.signing_keys (kid, wrapped_key, created_at, signs_from) values ($1, $2, $3, $4)")
            .bind(key.kid())
            .bind(wrapped)
            .bind(now)
            .bind(now + lead)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        // This process knows at once, the others when they look again.
        *self.ring.write().await = None;
        Ok(key.kid().to_owned())
    }

    /// Ends a key now, with every token that it signed: for one that somebody has taken. Whether there was such a key.
    pub async fn revoke(&self, kid: &str) -> Result<bool, AccessError> {
        let ended = sqlx::query(
            "update ops.signing_keys set verifies_until = $2 where kid = $1 and (verifies_until is null or verifies_until > $2)",
        )
        .bind(kid)
        .bind(self.store.clock().now())
        .execute(self.store.pool())
        .await?;
        *self.ring.write().await = None;
        Ok(ended.rows_affected() > 0)
    }
}
