//! Sealing personal data.
//!
//! Each data subject of a tenant has a random key, stored wrapped by the installation's master key. A value is sealed with XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03;
//! 192-bit random nonces never repeat in practice) under its subject's key, bound to the one place that it is made for (its event and the path of its field): the same bytes in another
//! field, event or stream, or under another subject, do not open. Erasing a subject destroys its wrapped key; what was sealed stays in the log and its hashes stay valid, but
//! nobody can read it again. (Backups of the key table made earlier have to be destroyed with it.)
//!
//! Values of the first version are bound to the tenant and the subject alone and have no `v`. They stay readable for ever; none is made any more.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use chacha20poly1305::aead::rand_core::RngCore as _;
use chacha20poly1305::aead::{Aead as _, AeadCore as _, KeyInit as _, OsRng, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use domain::personal::{ERASED, PERSONAL, SEALED};
use domain::{Claim, Refusal, SubjectId, TenantId};
use hmac::{Hmac, Mac as _};
use serde_json::{Map, Value, json};
use sha2::Sha256;
use sqlx::PgPool;
use uuid::Uuid;

use crate::append::guards::scope_of;
use crate::append::{AppendError, Key};
use crate::event::Unsealed;
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
        XChaCha20Poly1305::new((&self.0).into())
    }

    /// Tells one master key from another without telling what it is.
    pub(crate) fn check(&self, installation: Uuid) -> Hash {
        Hash(self.keyed("key check", &[installation.as_bytes()]))
    }

    /// Encrypts a secret of the installation for one use and one row.
    pub(crate) fn wrap(&self, domain: &str, row: &[&str], secret: &[u8]) -> Option<Vec<u8>> {
        let sealed = encrypt(&self.cipher(), &bound_to_row(domain, row), secret).ok()?;
        Some([WRAPPED, &sealed].concat())
    }

    /// What was wrapped for this use and this row. Secrets of the first version are bound to their use alone.
    pub(crate) fn unwrap(&self, domain: &str, row: &[&str], wrapped: &[u8]) -> Option<Vec<u8>> {
        let second = wrapped.strip_prefix(WRAPPED).and_then(|sealed| decrypt(&self.cipher(), &bound_to_row(domain, row), sealed));
        // A secret of the first version begins with a random nonce, which may happen to begin like one of the second.
        second.or_else(|| decrypt(&self.cipher(), &bound_to(installation(domain)), wrapped))
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

/// The version of sealed values that are made now.
const VERSION: u64 = 2;

/// How wrapped secrets of the second version begin.
const WRAPPED: &[u8] = b"tnr\x02";

/// The event that a sealed value belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) tenant: TenantId,
    pub(crate) aggregate: &'a str,
    /// `<tenant>/<id>`.
    pub(crate) stream: &'a str,
    pub(crate) event_id: Uuid,
}

impl Place<'_> {
    /// The associated data of a subject's value at a path of this event. Each part of variable length has its length before it.
    fn bound(&self, subject: SubjectId, path: &str) -> Vec<u8> {
        let ids = [self.tenant.0, subject.0, self.event_id].map(Uuid::into_bytes).concat();
        let parts = [self.aggregate, self.stream, path];
        [b"tenure sealed 2".as_slice(), &ids, &lengths_and(&parts)].concat()
    }
}

/// The keys of data subjects, unwrapped on demand and kept for a short time.
pub(crate) struct Keyring {
    master: MasterKey,
    pool: PgPool,
    /// `None`: erased.
    keys: quick_cache::sync::Cache<Name, (Option<[u8; 32]>, Instant)>,
    /// How often all keys were forgotten.
    forgotten: AtomicU64,
}

impl Keyring {
    pub(crate) fn new(master: MasterKey, pool: PgPool) -> Self {
        Self { master, pool, keys: quick_cache::sync::Cache::new(10_000), forgotten: AtomicU64::new(0) }
    }

    pub(crate) fn master(&self) -> &MasterKey {
        &self.master
    }

    pub(crate) fn forget_all(&self) {
        self.forgotten.fetch_add(1, Ordering::AcqRel);
        self.keys.clear();
    }

    /// What is unsealed from now on: taken before its keys are looked up.
    pub(crate) fn unsealing(&self) -> Unsealed {
        Unsealed { forgotten: self.forgotten.load(Ordering::Acquire), at: Instant::now() }
    }

    /// Whether what was unsealed may still be used.
    pub(crate) fn is_fresh(&self, unsealed: Unsealed) -> bool {
        unsealed.forgotten == self.forgotten.load(Ordering::Acquire) && unsealed.at.elapsed() < KEY_TTL
    }

    /// A keyed hash of a personal value, so that it can be compared among those it must differ from, and not read.
    pub(crate) fn claim_hash(&self, claim: &Claim, tenant: TenantId, value: &str) -> String {
        hex::encode(self.master.keyed("claim", &[claim.namespace.as_bytes(), scope_of(claim, tenant).as_bytes(), value.as_bytes()]))
    }

    /// A keyed hash of a request's fingerprint: what people said in it could be guessed from a plain one.
    pub(crate) fn fingerprint(&self, fingerprint: &[u8; 32]) -> [u8; 32] {
        self.master.keyed("fingerprint", &[fingerprint])
    }

    /// A keyed hash of an idempotency key's text.
    pub(crate) fn idempotency_key(&self, key: &Key) -> String {
        hex::encode(self.master.keyed("idempotency key", &[key.tenant.0.as_bytes(), key.scope.as_bytes(), key.key.as_bytes()]))
    }

    /// Replaces every personal value in the payload of an event by its sealed form.
    pub(crate) async fn seal(&self, place: Place<'_>, payload: &mut Value) -> Result<(), AppendError> {
        let mut subjects = Vec::new();
        marked(payload, PERSONAL, &mut |_, map| subjects.extend(subject_of(&map[PERSONAL])));
        for subject in subjects {
            let name = (place.tenant, subject);
            let key = match self.find(&[name]).await.map_err(|_| AppendError::Unavailable)?.pop() {
                Some((_, key)) => key,
                None => self.create(name).await.map_err(|_| AppendError::Unavailable)?,
            };
            let Some(key) = key else { return Err(Refusal::SubjectErased { subject }.into()) };
            let mut result = Ok(());
            marked(payload, PERSONAL, &mut |path, map| {
                if subject_of(&map[PERSONAL]) == Some(subject) {
                    let cipher = XChaCha20Poly1305::new((&key).into());
                    match encrypt(&cipher, &place.bound(subject, path), map[PERSONAL]["value"].to_string().as_bytes()) {
                        Ok(data) => {
                            let sealed = json!({"subject": subject, "v": VERSION, "data": BASE64.encode(data)});
                            *map = Map::from_iter([(SEALED.to_owned(), sealed)]);
                        }
                        Err(error) => result = Err(AppendError::Failed(error.to_string())),
                    }
                }
            });
            result?;
        }
        Ok(())
    }

    /// Replaces every sealed value in the payloads by what it says, or by its absence when its subject was erased.
    pub(crate) async fn unseal<'a>(&self, payloads: impl IntoIterator<Item = (Place<'a>, &'a mut Value)>) -> Result<(), UnsealError> {
        let mut sealed = Vec::new();
        let mut names = Vec::new();
        for (place, payload) in payloads {
            let before = names.len();
            marked(payload, SEALED, &mut |_, map| names.extend(subject_of(&map[SEALED]).map(|s| (place.tenant, s))));
            if names.len() > before {
                sealed.push((place, payload));
            }
        }
        if sealed.is_empty() {
            return Ok(());
        }
        names.sort_unstable();
        names.dedup();
        let keys: std::collections::HashMap<Name, _> = self.find(&names).await?.into_iter().collect();
        for (place, payload) in sealed {
            let mut result = Ok(());
            marked(payload, SEALED, &mut |path, map| {
                let Some(subject) = subject_of(&map[SEALED]) else { return };
                // A key that was never there, as after an import of the log without its keys, is as good as destroyed.
                let Some(key) = keys.get(&(place.tenant, subject)).copied().flatten() else {
                    *map = Map::from_iter([(ERASED.to_owned(), json!({"subject": subject}))]);
                    return;
                };
                let bound = match map[SEALED]["v"].as_u64() {
                    None => Some(bound_to((place.tenant, subject)).to_vec()),
                    Some(VERSION) => Some(place.bound(subject, path)),
                    Some(_) => None,
                };
                let opened = map[SEALED]["data"]
                    .as_str()
                    .and_then(|text| BASE64.decode(text).ok())
                    .and_then(|data| decrypt(&XChaCha20Poly1305::new((&key).into()), &bound?, &data))
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
                let clear = decrypt(&self.master.cipher(), &bound_to(name), &wrapped).ok_or(UnsealError::Corrupt(name.1))?;
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
        let wrapped = encrypt(&self.master.cipher(), &bound_to(name), &key).map_err(|_| UnsealError::Corrupt(name.1))?;
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

/// Calls `visit` for every object that has `marker` as its only key, with its path (RFC 6901).
pub(crate) fn marked(value: &mut Value, marker: &str, visit: &mut impl FnMut(&str, &mut Map<String, Value>)) {
    marked_at(&mut String::new(), value, marker, visit);
}

fn marked_at(path: &mut String, value: &mut Value, marker: &str, visit: &mut impl FnMut(&str, &mut Map<String, Value>)) {
    let here = path.len();
    match value {
        Value::Object(map) if map.len() == 1 && map.contains_key(marker) => visit(path, map),
        Value::Object(map) => {
            for (key, value) in map {
                path.push('/');
                path.push_str(&key.replace('~', "~0").replace('/', "~1"));
                marked_at(path, value, marker, visit);
                path.truncate(here);
            }
        }
        Value::Array(items) => {
            for (at, value) in items.iter_mut().enumerate() {
                path.push('/');
                path.push_str(&at.to_string());
                marked_at(path, value, marker, visit);
                path.truncate(here);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn subject_of(marked: &Value) -> Option<SubjectId> {
    marked["subject"].as_str()?.parse().ok()
}

/// The associated data of a subject's key, and of a sealed value of the first version.
fn bound_to(name: Name) -> [u8; 32] {
    let mut aad = [0; 32];
    aad[..16].copy_from_slice(name.0.0.as_bytes());
    aad[16..].copy_from_slice(name.1.0.as_bytes());
    aad
}

/// Parts, each with its length before it.
fn lengths_and(parts: &[&str]) -> Vec<u8> {
    parts.iter().flat_map(|part| [&(part.len() as u64).to_be_bytes(), part.as_bytes()].concat()).collect()
}

/// The associated data of a secret of the installation: its use, and the row that it stands in.
fn bound_to_row(domain: &str, row: &[&str]) -> Vec<u8> {
    [b"tenure wrapped 2".as_slice(), &lengths_and(&[domain]), &lengths_and(row)].concat()
}

/// The associated data of a secret of the first version, which is no data subject's: its use.
fn installation(domain: &str) -> Name {
    (TenantId::SYSTEM, SubjectId(Uuid::new_v5(&Uuid::nil(), domain.as_bytes())))
}

/// nonce ‖ ciphertext.
fn encrypt(cipher: &XChaCha20Poly1305, aad: &[u8], clear: &[u8]) -> Result<Vec<u8>, chacha20poly1305::Error> {
    // The thread's generator is a cryptographic one too, seeded by the system's; asking that each time takes a call into the kernel.
    let nonce = XChaCha20Poly1305::generate_nonce(&mut rand::thread_rng());
    let mut data = nonce.to_vec();
    data.extend(cipher.encrypt(&nonce, Payload { msg: clear, aad })?);
    Ok(data)
}

fn decrypt(cipher: &XChaCha20Poly1305, aad: &[u8], data: &[u8]) -> Option<Vec<u8>> {
    let (nonce, sealed) = data.split_at_checked(24)?;
    cipher.decrypt(XNonce::from_slice(nonce), Payload { msg: sealed, aad }).ok()
}
