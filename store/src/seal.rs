//! Sealing personal data.
//!
//! Each data subject of a tenant has a random key, stored wrapped by the installation's master key. A value is sealed with XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03;
//! 192-bit random nonces never repeat in practice) under its subject's key, bound to the tenant and the subject. Erasing a subject destroys its wrapped key; what was sealed
//! stays in the log and its hashes stay valid, but nobody can read it again. (Backups of the key table made earlier have to be destroyed with it.)

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use chacha20poly1305::aead::rand_core::RngCore as _;
use chacha20poly1305::aead::{Aead as _, AeadCore as _, KeyInit as _, OsRng, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use domain::personal::{ERASED, PERSONAL, SEALED};
use domain::{Claim, Refusal, SubjectId, TenantId};
use hmac::{Hmac, Mac as _};
use serde_json::{Map, Value, json};
use sha2::Sha256;
use sqlx::PgPool;
use uuid::Uuid;

use crate::append::AppendError;
use crate::append::guards::scope_of;
use crate::hash::Hash;

/// How long an unwrapped key may be used without asking the database again: the longest that another process may still read what was erased.
const KEY_TTL: Duration = Duration::from_secs(30);

/// Wraps the keys of all data subjects. 32 bytes from a file or the environment, never from the database.
#[derive(Clone)]
pub struct MasterKey([u8; 32]);

impl MasterKey {
    /// From 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        Hash::from_hex(text.trim()).map(|h| Self(h.0))
    }

    /// A new one, as hexadecimal digits.
    pub fn generate() -> String {
        let mut bytes = [0; 32];
        OsRng.fill_bytes(&mut bytes);
        hex::encode(bytes)
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(Key::from_slice(&self.0))
    }

    /// Tells one master key from another without telling what it is.
    pub(crate) fn check(&self, installation: Uuid) -> Hash {
        Hash(self.keyed("key check", &[installation.as_bytes()]))
    }

    /// Encrypts a secret of the installation for one use.
    pub(crate) fn wrap(&self, domain: &str, secret: &[u8]) -> Option<Vec<u8>> {
        encrypt(&self.cipher(), installation(domain), secret).ok()
    }

    /// What was wrapped for this use.
    pub(crate) fn unwrap(&self, domain: &str, wrapped: &[u8]) -> Option<Vec<u8>> {
        decrypt(&self.cipher(), installation(domain), wrapped)
    }

    /// HMAC-SHA-256 under the master key; each use has its own domain, and each part its length before it.
    pub(crate) fn keyed(&self, domain: &str, parts: &[&[u8]]) -> [u8; 32] {
        let Ok(mut mac) = <Hmac<Sha256> as hmac::Mac>::new_from_slice(&self.0) else { unreachable!("HMAC takes keys of any length") };
        for part in [&[domain.as_bytes()], parts].concat() {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }
}

/// Sealed data could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum UnsealError {
    /// The keys could not be read.
    #[error("the keys of data subjects cannot be read")]
    Database(#[from] sqlx::Error),
    /// The master key is not the one that wrapped this key, or the data was tampered with.
    #[error("data sealed for subject {0} cannot be opened: wrong master key, or tampered with")]
    Corrupt(SubjectId),
}

type Name = (TenantId, SubjectId);

/// The keys of data subjects, unwrapped on demand and kept for a short time.
pub(crate) struct Keyring {
    master: MasterKey,
    pool: PgPool,
    /// `None`: erased.
    keys: quick_cache::sync::Cache<Name, (Option<[u8; 32]>, Instant)>,
}

impl Keyring {
    pub(crate) fn new(master: MasterKey, pool: PgPool) -> Self {
        Self { master, pool, keys: quick_cache::sync::Cache::new(10_000) }
    }

    pub(crate) fn master(&self) -> &MasterKey {
        &self.master
    }

    pub(crate) fn forget_all(&self) {
        self.keys.clear();
    }

    /// A keyed hash of a personal value, so that it can be compared among those it must differ from, and not read.
    pub(crate) fn claim_hash(&self, claim: &Claim, tenant: TenantId, value: &str) -> String {
        hex::encode(self.master.keyed("claim", &[claim.namespace.as_bytes(), scope_of(claim, tenant).as_bytes(), value.as_bytes()]))
    }

    /// A keyed hash of a request's fingerprint: what people said in it could be guessed from a plain one.
    pub(crate) fn fingerprint(&self, fingerprint: &[u8; 32]) -> [u8; 32] {
        self.master.keyed("fingerprint", &[fingerprint])
    }

    /// Replaces every personal value in `payload` by its sealed form.
    pub(crate) async fn seal(&self, tenant: TenantId, payload: &mut Value) -> Result<(), AppendError> {
        let mut subjects = Vec::new();
        marked(payload, PERSONAL, &mut |map| subjects.extend(subject_of(&map[PERSONAL])));
        for subject in subjects {
            let name = (tenant, subject);
            let key = match self.find(&[name]).await.map_err(|_| AppendError::Unavailable)?.pop() {
                Some((_, key)) => key,
                None => self.create(name).await.map_err(|_| AppendError::Unavailable)?,
            };
            let Some(key) = key else { return Err(Refusal::SubjectErased { subject }.into()) };
            let mut result = Ok(());
            marked(payload, PERSONAL, &mut |map| {
                if subject_of(&map[PERSONAL]) == Some(subject) {
                    match encrypt(&XChaCha20Poly1305::new(Key::from_slice(&key)), name, map[PERSONAL]["value"].to_string().as_bytes()) {
                        Ok(data) => *map = Map::from_iter([(SEALED.to_owned(), json!({"subject": subject, "data": BASE64.encode(data)}))]),
                        Err(error) => result = Err(AppendError::Failed(error.to_string())),
                    }
                }
            });
            result?;
        }
        Ok(())
    }

    /// Replaces every sealed value in the payloads by what it says, or by its absence when its subject was erased.
    pub(crate) async fn unseal<'a>(&self, payloads: impl IntoIterator<Item = (TenantId, &'a mut Value)>) -> Result<(), UnsealError> {
        let mut sealed = Vec::new();
        let mut names = Vec::new();
        for (tenant, payload) in payloads {
            let before = names.len();
            marked(payload, SEALED, &mut |map| names.extend(subject_of(&map[SEALED]).map(|s| (tenant, s))));
            if names.len() > before {
                sealed.push((tenant, payload));
            }
        }
        if sealed.is_empty() {
            return Ok(());
        }
        names.sort_unstable();
        names.dedup();
        let keys: std::collections::HashMap<Name, _> = self.find(&names).await?.into_iter().collect();
        for (tenant, payload) in sealed {
            let mut result = Ok(());
            marked(payload, SEALED, &mut |map| {
                let Some(subject) = subject_of(&map[SEALED]) else { return };
                // A key that was never there, as after an import of the log without its keys, is as good as destroyed.
                let Some(key) = keys.get(&(tenant, subject)).copied().flatten() else {
                    *map = Map::from_iter([(ERASED.to_owned(), json!({"subject": subject}))]);
                    return;
                };
                let opened = map[SEALED]["data"]
                    .as_str()
                    .and_then(|text| BASE64.decode(text).ok())
                    .and_then(|data| decrypt(&XChaCha20Poly1305::new(Key::from_slice(&key)), (tenant, subject), &data))
                    .and_then(|clear| serde_json::from_slice::<Value>(&clear).ok());
                match opened {
                    Some(value) => *map = Map::from_iter([(PERSONAL.to_owned(), json!({"subject": subject, "value": value}))]),
                    None => result = Err(UnsealError::Corrupt(subject)),
                }
            });
            result?;
        }
        Ok(())
    }

    /// The keys that exist, those of erased subjects as `None`.
    async fn find(&self, names: &[Name]) -> Result<Vec<(Name, Option<[u8; 32]>)>, UnsealError> {
        let mut found = Vec::with_capacity(names.len());
        let mut missing = Vec::new();
        for name in names {
            match self.keys.get(name) {
                Some((key, since)) if since.elapsed() < KEY_TTL => found.push((*name, key)),
                Some(_) | None => missing.push(*name),
            }
        }
        if missing.is_empty() {
            return Ok(found);
        }
        let (tenants, subjects): (Vec<Uuid>, Vec<Uuid>) = missing.iter().map(|n| (n.0.0, n.1.0)).unzip();
        let rows: Vec<(Uuid, Uuid, Option<Vec<u8>>)> = sqlx::query_as(
            "select tenant_id, subject_id, wrapped_key from ops.subject_keys where (tenant_id, subject_id) in (select * from unnest($1::uuid[], $2::uuid[]))",
        )
        .bind(tenants)
        .bind(subjects)
        .fetch_all(&self.pool)
        .await?;
        for (tenant, subject, wrapped) in rows {
            let name = (TenantId(tenant), SubjectId(subject));
            found.push((name, self.unwrap(name, wrapped)?));
        }
        Ok(found)
    }

    fn unwrap(&self, name: Name, wrapped: Option<Vec<u8>>) -> Result<Option<[u8; 32]>, UnsealError> {
        let key = match wrapped {
            None => None,
            Some(wrapped) => {
                let clear = decrypt(&self.master.cipher(), name, &wrapped).ok_or(UnsealError::Corrupt(name.1))?;
                Some(clear.try_into().map_err(|_| UnsealError::Corrupt(name.1))?)
            }
        };
        self.keys.insert(name, (key, Instant::now()));
        Ok(key)
    }

    /// Makes a subject's key, unless another process was quicker.
    async fn create(&self, name: Name) -> Result<Option<[u8; 32]>, UnsealError> {
        let mut key = [0; 32];
        OsRng.fill_bytes(&mut key);
        let wrapped = encrypt(&self.master.cipher(), name, &key).map_err(|_| UnsealError::Corrupt(name.1))?;
        sqlx::query("insert into ops.subject_keys (tenant_id, subject_id, wrapped_key) values ($1, $2, $3) on conflict do nothing")
            .bind(name.0.0)
            .bind(name.1.0)
            .bind(wrapped)
            .execute(&self.pool)
            .await?;
        let stored: Option<Vec<u8>> =
            sqlx::query_scalar("select wrapped_key from ops.subject_keys where tenant_id = $1 and subject_id = $2")
                .bind(name.0.0)
                .bind(name.1.0)
                .fetch_one(&self.pool)
                .await?;
        self.unwrap(name, stored)
    }
}

/// Whether a personal value stands in clear anywhere in this payload, also where it is no object of its own and so cannot be sealed.
pub(crate) fn has_clear(payload: &Value) -> bool {
    match payload {
        Value::Object(map) => map.contains_key(PERSONAL) || map.values().any(has_clear),
        Value::Array(items) => items.iter().any(has_clear),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// Calls `visit` for every object that has `marker` as its only key.
fn marked(value: &mut Value, marker: &str, visit: &mut impl FnMut(&mut Map<String, Value>)) {
    match value {
        Value::Object(map) if map.len() == 1 && map.contains_key(marker) => visit(map),
        Value::Object(map) => map.values_mut().for_each(|v| marked(v, marker, visit)),
        Value::Array(items) => items.iter_mut().for_each(|v| marked(v, marker, visit)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn subject_of(marked: &Value) -> Option<SubjectId> {
    marked["subject"].as_str()?.parse().ok()
}

fn bound_to(name: Name) -> [u8; 32] {
    let mut aad = [0; 32];
    aad[..16].copy_from_slice(name.0.0.as_bytes());
    aad[16..].copy_from_slice(name.1.0.as_bytes());
    aad
}

/// What a secret of the installation, which is no data subject's, is bound to.
fn installation(domain: &str) -> Name {
    (TenantId::SYSTEM, SubjectId(Uuid::new_v5(&Uuid::nil(), domain.as_bytes())))
}

/// nonce ‖ ciphertext.
fn encrypt(cipher: &XChaCha20Poly1305, name: Name, clear: &[u8]) -> Result<Vec<u8>, chacha20poly1305::Error> {
    // The thread's generator is a cryptographic one too, seeded by the system's; asking that each time takes a call into the kernel.
    let nonce = XChaCha20Poly1305::generate_nonce(&mut rand::thread_rng());
    let mut data = nonce.to_vec();
    data.extend(cipher.encrypt(&nonce, Payload { msg: clear, aad: &bound_to(name) })?);
    Ok(data)
}

fn decrypt(cipher: &XChaCha20Poly1305, name: Name, data: &[u8]) -> Option<Vec<u8>> {
    let (nonce, sealed) = data.split_at_checked(24)?;
    cipher.decrypt(XNonce::from_slice(nonce), Payload { msg: sealed, aad: &bound_to(name) }).ok()
}
