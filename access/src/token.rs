//! JSON Web Tokens (RFC 7519), signed with Ed25519 (RFC 8037).

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use domain::{Role, TenantId};
use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, EncodePublicKey as _};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// Who issues and who accepts.
const ISSUER: &str = "tenure";
/// How far clocks may differ.
const LEEWAY: TimeDelta = TimeDelta::seconds(30);
/// How many tokens are remembered.
const KNOWN: usize = 10_000;

/// What a token says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Claims {
    iss: String,
    aud: String,
    /// Who.
    pub sub: String,
    /// Of which tenant; `system` is the platform itself.
    #[serde(with = "tenant")]
    pub tenant: TenantId,
    /// In which role, when the token was made. What counts is the role that the user has when it is used.
    pub role: Role,
    /// The session that it belongs to; an operator's token belongs to none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sid: Option<Uuid>,
    /// When it was made, in seconds since 1970.
    pub iat: i64,
    /// Until when it is good.
    pub exp: i64,
}

impl Claims {
    /// For `sub` of `tenant` in `role`, from `now` on for `ttl`.
    pub fn new(sub: &str, tenant: TenantId, role: Role, sid: Option<Uuid>, now: DateTime<Utc>, ttl: TimeDelta) -> Self {
        let (iat, exp) = (now.timestamp(), (now + ttl).timestamp());
        Self { iss: ISSUER.into(), aud: ISSUER.into(), sub: sub.into(), tenant, role, sid, iat, exp }
    }
}

/// How a tenant is written in tokens and on the command line.
pub mod tenant {
    use std::str::FromStr as _;

    use domain::TenantId;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    /// `system` or a UUID.
    pub fn parse(text: &str) -> Result<TenantId, uuid::Error> {
        if text == "system" { Ok(TenantId::SYSTEM) } else { TenantId::from_str(text) }
    }

    pub(super) fn serialize<S: Serializer>(tenant: &TenantId, serializer: S) -> Result<S::Ok, S::Error> {
        if *tenant == TenantId::SYSTEM { serializer.serialize_str("system") } else { serializer.collect_str(tenant) }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TenantId, D::Error> {
        parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// A key could not be used, or a token not be made.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The key is not an Ed25519 private key in PKCS #8 PEM.
    #[error("the signing key is not an Ed25519 private key in PKCS #8 PEM: {0}")]
    Key(String),
    /// The token is malformed, was signed by somebody else or for something else.
    #[error("the token is not valid")]
    Invalid,
    /// The token's time has passed.
    #[error("the token has expired")]
    Expired,
}

/// Signs and verifies tokens.
#[derive(Clone)]
pub struct TokenKey {
    kid: String,
    public: [u8; 32],
    encoding: EncodingKey,
    decoding: DecodingKey,
    /// What tokens say whose signature was found right, by their SHA-256: a signature stays right, only its time passes.
    known: Arc<Cache<[u8; 32], Claims>>,
}

impl TokenKey {
    /// From an Ed25519 private key in PKCS #8 PEM.
    pub fn from_pem(pem: &str) -> Result<Self, TokenError> {
        let key = SigningKey::from_pkcs8_pem(pem).map_err(|e| TokenError::Key(e.to_string()))?;
        let public = key.verifying_key().to_public_key_pem(LineEnding::LF).map_err(|e| TokenError::Key(e.to_string()))?;
        let bytes = key.verifying_key().to_bytes();
        Ok(Self {
            kid: hex::encode(&Sha256::digest(bytes)[..8]),
            public: bytes,
            encoding: EncodingKey::from_ed_pem(pem.as_bytes()).map_err(|e| TokenError::Key(e.to_string()))?,
            decoding: DecodingKey::from_ed_pem(public.as_bytes()).map_err(|e| TokenError::Key(e.to_string()))?,
            known: Arc::new(Cache::new(KNOWN)),
        })
    }

    /// A new key as PEM.
    pub fn generate() -> String {
        let key = SigningKey::generate(&mut rand::rngs::OsRng);
        let Ok(pem) = key.to_pkcs8_pem(LineEnding::LF) else { unreachable!("a fresh key has a PEM form") };
        pem.to_string()
    }

    /// What tells it from other keys: the beginning of the SHA-256 of its public part.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// Its public part.
    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// An operator's token for `sub` of `tenant` in `role`, from `now` on for `ttl`: it belongs to no session, and needs no user.
    pub fn sign(&self, sub: &str, tenant: TenantId, role: Role, now: DateTime<Utc>, ttl: TimeDelta) -> Result<String, TokenError> {
        self.sign_claims(&Claims::new(sub, tenant, role, None, now, ttl))
    }

    /// A token that says this.
    pub fn sign_claims(&self, claims: &Claims) -> Result<String, TokenError> {
        let header = Header { kid: Some(self.kid.clone()), ..Header::new(Algorithm::EdDSA) };
        jsonwebtoken::encode(&header, claims, &self.encoding).map_err(|e| TokenError::Key(e.to_string()))
    }

    /// What the token says, if this key signed it and its time has not passed.
    pub fn verify(&self, token: &str, now: DateTime<Utc>) -> Result<Claims, TokenError> {
        let claims = self.known.get_or_insert_with::<[u8; 32], _>(&Sha256::digest(token).into(), || self.decode(token))?;
        let now = now.timestamp();
        if claims.exp + LEEWAY.num_seconds() <= now {
            return Err(TokenError::Expired);
        }
        // The platform's role exists in the platform's tenant, and no other does there.
        if claims.iat > now + LEEWAY.num_seconds()
            || (claims.role == Role::SuperAdmin) != (claims.tenant == TenantId::SYSTEM)
            || claims.sub.len() > 200
            || claims.sub.chars().any(char::is_control)
        {
            return Err(TokenError::Invalid);
        }
        Ok(claims)
    }

    /// What the token says, if its signature is right.
    fn decode(&self, token: &str) -> Result<Claims, TokenError> {
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[ISSUER]);
        // The library reads the machine's clock; ours is injected.
        validation.validate_exp = false;
        Ok(jsonwebtoken::decode::<Claims>(token, &self.decoding, &validation).map_err(|_| TokenError::Invalid)?.claims)
    }
}

/// Which key a token says that it was signed with.
pub(crate) fn kid(token: &str) -> Option<String> {
    jsonwebtoken::decode_header(token).ok()?.kid
}
