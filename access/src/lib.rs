//! Signing in, and what a caller may do now.
//!
//! What counts is in the log: who there is, in which status and role, which credential is theirs, which session epoch. This crate keeps the secrets that the log only names,
//! and the sessions, in operational tables, and answers for a token or a key who acts and what they may. An answer is at most [`FRESH`] old, in every process: so long a
//! change of role, a suspension, a revoked session or key takes to work on tokens that were issued before.
//!
//! * [`passwords`]: strength, hashing in a pool of its own, fair between those who ask;
//! * [`known_devices`], [`source`]: telling the owner of an account from those who guess at its password;
//! * [`sessions`]: logging in, refreshing, ending;
//! * [`token`], [`keys`]: access tokens, and the keys that sign them;
//! * [`api_keys`]: the keys of programs;
//! * [`devices`]: the credentials of devices, and when those were last heard of;
//! * [`links`]: the tokens in mails; [`accounts`]: what they are good for;
//! * `entry`: whether credentials are still given and accepted, which every way in asks;
//! * [`authenticate`]: who acts;
//! * [`records`]: noting what was tried.

pub mod accounts;
pub mod api_keys;
mod attempts;
pub mod authenticate;
pub mod devices;
mod entry;
mod housekeeping;
pub mod keys;
pub mod known_devices;
pub mod links;
pub mod passwords;
pub mod records;
pub mod sessions;
pub mod source;
pub mod token;

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use commands::{CommandError, Executor};
use domain::identity::tenant::SLUG;
use domain::{Actor, StreamId, TenantId};
use quick_cache::sync::Cache;
use rand::RngCore as _;
use store::Store;
use store::load::LoadError;
use subtle::ConstantTimeEq as _;
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::attempts::Account;
use crate::authenticate::{KeyStanding, Standing};
use crate::keys::SigningKeys;
use crate::passwords::{Hasher, Hashing};
use crate::records::Records;
use crate::token::TokenKey;

/// How long an access token is good.
pub const ACCESS_TTL: TimeDelta = TimeDelta::minutes(10);
/// How long a session lasts, refreshed or not.
pub const SESSION_TTL: TimeDelta = TimeDelta::days(30);
/// How old an answer about a session or a key may be.
pub const FRESH: Duration = Duration::from_millis(400);
/// How many sessions and keys are remembered so long.
const REMEMBERED: usize = 50_000;

/// How many links to set another password are asked for at a time; more are forgotten.
const RESETS: usize = 32;

/// Why somebody was not let in, or not let do what they wanted.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// No such user, another password, or locked: nobody is told which.
    #[error("the tenant, the address or the password is not right, or nobody can log in for a while")]
    InvalidCredentials,
    /// The password is right, but its owner is suspended or has left.
    #[error("the account is not active")]
    NotActive,
    /// The token is malformed, was signed by somebody else, or its session or key has ended.
    #[error("the token is not valid")]
    Invalid,
    /// The token's time has passed.
    #[error("the token has expired")]
    Expired,
    /// The token is of a type that is not revoked here.
    #[error("API keys, credentials of devices and operators' tokens are not revoked by this operation")]
    UnsupportedTokenType,
    /// The password will not do.
    #[error("the password {0}")]
    WeakPassword(String),
    /// Too many passwords are being hashed.
    #[error("too many passwords are being checked; try again shortly")]
    Busy,
    /// A command was refused.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The database did not answer.
    #[error("who you are cannot be checked now")]
    Unavailable(#[from] sqlx::Error),
    /// Something is wrong on our side.
    #[error("{0}")]
    Internal(String),
}

impl From<LoadError> for AccessError {
    fn from(error: LoadError) -> Self {
        Self::Command(error.into())
    }
}

/// Signing in. Cheap to clone.
#[derive(Clone)]
pub struct Access {
    inner: Arc<Inner>,
}

struct Inner {
    executor: Executor,
    hasher: Hasher,
    keys: SigningKeys,
    /// The key of operators, where there is one: whoever has it makes tokens of any role.
    operator: Option<TokenKey>,
    sessions: Cache<Uuid, (Option<Arc<Standing>>, Instant)>,
    api_keys: Cache<[u8; 32], (Option<Arc<KeyStanding>>, Instant)>,
    devices: Cache<[u8; 32], (Option<Actor>, Instant)>,
    /// Whether operators may act as somebody, by whom they name.
    named: Cache<(TenantId, String), (bool, Instant)>,
    used: Cache<StreamId, chrono::DateTime<chrono::Utc>>,
    records: Records,
    /// Until when no more attempts on an account from an origin are looked at.
    shut: Cache<(Account, Vec<u8>), chrono::DateTime<chrono::Utc>>,
    /// When a login is refused, and whatever else must not tell who exists is answered, counted from its beginning.
    answered_after: Duration,
    /// Links that are being asked for by people who have forgotten their password.
    resets: Arc<Semaphore>,
}

impl Access {
    /// Signing in to the installation of `executor`; with the operators' key, if there is one. An error where Argon2 does not take the parameters.
    pub fn new(executor: Executor, hashing: Hashing, operator: Option<TokenKey>) -> Result<Self, argon2::Error> {
        let keys = SigningKeys::new(executor.store().clone());
        let inner = Inner {
            hasher: Hasher::new(hashing)?,
            keys,
            operator,
            sessions: Cache::new(REMEMBERED),
            api_keys: Cache::new(REMEMBERED),
            devices: Cache::new(REMEMBERED),
            named: Cache::new(REMEMBERED),
            used: Cache::new(REMEMBERED),
            records: Records::default(),
            shut: Cache::new(REMEMBERED),
            answered_after: hashing.refused_after,
            resets: Arc::new(Semaphore::new(RESETS)),
            executor,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The keys that sign access tokens.
    pub fn keys(&self) -> &SigningKeys {
        &self.inner.keys
    }

    pub(crate) fn store(&self) -> &Store {
        self.inner.executor.store()
    }

    /// A tenant by its id, its slug, an alias of it, or `system`.
    pub async fn tenant(&self, text: &str) -> Result<Option<TenantId>, AccessError> {
        if let Ok(tenant) = token::tenant::parse(text) {
            return Ok(Some(tenant));
        }
        let holder = self.store().holder(&SLUG, TenantId::SYSTEM, text).await?;
        Ok(holder.map(|stream| stream.tenant))
    }

    /// Waits until one of a few moments after `began`, so that how long something took tells nothing of what there is.
    pub(crate) async fn at_a_fixed_moment(&self, began: Instant) {
        let step = self.inner.answered_after.max(Duration::from_millis(1));
        let mut moment = began + step;
        while moment < Instant::now() {
            moment += step;
        }
        tokio::time::sleep_until(moment.into()).await;
    }

    fn system() -> Actor {
        Actor::system("access")
    }
}

/// So many random bytes from the system.
pub(crate) fn secret<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::rngs::OsRng.fill_bytes(&mut bytes);
    bytes
}

/// Whether two codes are the same, in a time that does not tell where they differ.
pub(crate) fn same(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}
