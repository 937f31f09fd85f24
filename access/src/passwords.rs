//! Passwords: how strong they must be, and how they are hashed.
//!
//! Hashing takes a core for tens of milliseconds, so it has a pool of its own: so many at a time, so many waiting, and further requests are refused. However many log in,
//! other requests keep the remaining cores. The places go to network addresses, known devices and tenants in turn ([`Party`]), so that a crowd of guesses from one address
//! delays a login from elsewhere by one hash.

use std::sync::Arc;
use std::time::Duration;

use admission::{Admission, Bounds};
use argon2::password_hash::{PasswordHash, PasswordHasher as _, PasswordVerifier as _, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use domain::{StreamId, TenantId};
use precis_core::profile::PrecisFastInvocation as _;
use precis_profiles::OpaqueString;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::AccessError;
use crate::source::Source;

/// The fewest characters of a password. NIST SP 800-63B section 3.1.1.2 asks for 8 and no rules of composition; a little more costs nobody much.
pub const MIN_LENGTH: usize = 10;
/// The most, so that nobody can have megabytes hashed.
pub const MAX_LENGTH: usize = 128;
/// The least score of zxcvbn (Wheeler, USENIX Security 2016): 3 is beyond 10^8 guesses.
const MIN_SCORE: u8 = 3;

/// A password in clear; forgotten when dropped, and never printed. Prepared as RFC 8265 section 4.2 has it (`OpaqueString`: NFC, every space a plain one), so that it is the same
/// password whichever keyboard it is typed on.
#[derive(Clone, Deserialize)]
#[serde(from = "String")]
pub struct Password {
    /// As it is hashed; none where it contains what no password may.
    prepared: Option<Zeroizing<String>>,
    /// As it was typed: what was hashed before passwords were prepared.
    typed: Zeroizing<String>,
}

impl Password {
    /// What somebody typed.
    pub fn new(text: String) -> Self {
        let prepared = OpaqueString::enforce(text.as_str()).ok().map(|text| Zeroizing::new(text.into_owned()));
        Self { prepared, typed: Zeroizing::new(text) }
    }

    /// As it is hashed from now on.
    fn text(&self) -> &str {
        self.prepared.as_ref().unwrap_or(&self.typed)
    }
}

impl From<String> for Password {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(…)")
    }
}

/// How dear a hash is (RFC 9106), and how many are made at a time.
#[derive(Clone, Copy, Debug)]
pub struct Hashing {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub iterations: u32,
    /// Lanes.
    pub parallelism: u32,
    /// Hashes made at a time.
    pub at_a_time: usize,
    /// Hashes that may wait: an eighth of them for one party, a sixteenth for one account of it. More are refused.
    pub waiting: usize,
    /// When a login is refused, counted from its beginning: later than any hash and any record takes, so that how long it takes tells nothing.
    pub refused_after: Duration,
}

impl Default for Hashing {
    /// The OWASP password storage cheat sheet's first choice for Argon2id, on half of the cores.
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            memory_kib: 19 * 1024,
            iterations: 2,
            parallelism: 1,
            at_a_time: (cores / 2).max(1),
            waiting: 512,
            refused_after: Duration::from_millis(700),
        }
    }
}

/// The party that a password is hashed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Party {
    /// A network address from which somebody logs in.
    Source(Source),
    /// A user who logs in on a device that they have logged in on before.
    User(StreamId),
    /// A tenant whose people set passwords.
    Tenant(TenantId),
}

/// The longest wait for a hash.
const PATIENCE: Duration = Duration::from_secs(10);

/// What came of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checked {
    /// It is another password.
    Wrong,
    /// It is this one.
    Right {
        /// A hash to replace the stored one with, which was made with less effort than is usual now.
        better: Option<String>,
    },
}

/// Hashes and checks passwords.
#[derive(Clone)]
pub struct Hasher {
    argon2: Argon2<'static>,
    admission: Admission<Party>,
    /// The hash of a password that nobody has: checking against it takes as long as against somebody's.
    nobody: Arc<str>,
}

impl Hasher {
    /// A hasher with these parameters; an error where Argon2 does not take them.
    pub fn new(hashing: Hashing) -> Result<Self, argon2::Error> {
        let params = Params::new(hashing.memory_kib, hashing.iterations, hashing.parallelism, None)?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let nobody = hash(&argon2, &crate::secret::<16>().map(|byte| format!("{byte:x}")).concat()).unwrap_or_default();
        Ok(Self {
            argon2,
            admission: Admission::new(Bounds {
                places: hashing.at_a_time,
                places_per_party: hashing.at_a_time,
                // All hashes take as long.
                long: Duration::MAX,
                waiting: hashing.waiting,
                waiting_per_party: (hashing.waiting / 8).max(1),
                waiting_per_lane: (hashing.waiting / 16).max(1),
                patience: PATIENCE,
            }),
            nobody: nobody.into(),
        })
    }

    /// The hash of a password, as a PHC string.
    pub async fn hash(&self, password: Password, party: Party, lane: u64) -> Result<String, AccessError> {
        let argon2 = self.argon2.clone();
        self.run(party, lane, move || hash(&argon2, password.text()))
            .await?
            .ok_or_else(|| AccessError::Internal("a password could not be hashed".into()))
    }

    /// Whether a password is the one of a stored hash: Argon2, or bcrypt from an import. Without a hash it takes as long, and is wrong.
    pub async fn check(&self, password: Password, stored: Option<String>, party: Party, lane: u64) -> Result<Checked, AccessError> {
        let argon2 = self.argon2.clone();
        let (nobody, stored) = (stored.is_none(), stored.unwrap_or_else(|| self.nobody.to_string()));
        self.run(party, lane, move || {
            let prepared = verify(password.text(), &stored);
            // One that was set before passwords were prepared opens as it was typed, and is hashed anew.
            let typed = !prepared && password.text() != password.typed.as_str() && verify(&password.typed, &stored);
            if nobody || !(prepared || typed) {
                return Checked::Wrong;
            }
            Checked::Right { better: (typed || weaker(&argon2, &stored)).then(|| hash(&argon2, password.text())).flatten() }
        })
        .await
    }

    async fn run<T: Send + 'static>(&self, party: Party, lane: u64, work: impl FnOnce() -> T + Send + 'static) -> Result<T, AccessError> {
        let permit = self.admission.enter(party, lane).await.map_err(|_| AccessError::Busy)?;
        let work = move || {
            let _held = permit;
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(|e| AccessError::Internal(e.to_string()))
    }
}

fn hash(argon2: &Argon2<'_>, password: &str) -> Option<String> {
    let salt = SaltString::encode_b64(&crate::secret::<16>()).ok()?;
    Some(argon2.hash_password(password.as_bytes(), &salt).ok()?.to_string())
}

/// Whether it is a hash that [`Hasher::check`] understands.
pub fn is_hash(stored: &str) -> bool {
    is_bcrypt(stored) || PasswordHash::new(stored).is_ok_and(|hash| hash.algorithm.as_str() == "argon2id" && hash.hash.is_some())
}

fn is_bcrypt(stored: &str) -> bool {
    ["$2a$", "$2b$", "$2x$", "$2y$"].iter().any(|prefix| stored.starts_with(prefix)) && stored.len() == 60
}

fn verify(password: &str, stored: &str) -> bool {
    if is_bcrypt(stored) {
        return bcrypt::verify(password, stored).unwrap_or(false);
    }
    // The parameters are those of the hash, not ours.
    PasswordHash::new(stored).is_ok_and(|parsed| Argon2::default().verify_password(password.as_bytes(), &parsed).is_ok())
}

/// Whether a hash was made with less effort than is usual now.
fn weaker(argon2: &Argon2<'_>, stored: &str) -> bool {
    let Some(params) = PasswordHash::new(stored).ok().and_then(|parsed| Params::try_from(&parsed).ok()) else { return true };
    let now = argon2.params();
    params.m_cost() < now.m_cost() || params.t_cost() < now.t_cost()
}

/// Why a password will not do, if it will not: too short, too long, too common, or too much like what is known of its owner. No rules of composition.
pub fn weakness(password: &Password, known: &[&str]) -> Option<String> {
    if password.prepared.is_none() && !password.typed.is_empty() {
        return Some("must not contain control characters, or characters that Unicode has not assigned".into());
    }
    let text = password.text();
    let length = text.chars().count();
    if length < MIN_LENGTH {
        return Some(format!("must have at least {MIN_LENGTH} characters"));
    }
    if length > MAX_LENGTH {
        return Some(format!("must have at most {MAX_LENGTH} characters"));
    }
    let parts: Vec<&str> = known
        .iter()
        .flat_map(|text| text.split(|c: char| !c.is_alphanumeric()).chain([*text]))
        .filter(|part| part.chars().count() > 2)
        .chain(["tenure"])
        .collect();
    let lower = text.to_lowercase();
    let rest = parts.iter().fold(lower.clone(), |rest, part| rest.replace(&part.to_lowercase(), ""));
    if rest.len() < lower.len() && rest.chars().count() < MIN_LENGTH / 2 {
        return Some("is too much like your name or your e-mail address".into());
    }
    let entropy = zxcvbn::zxcvbn(text, &parts);
    if u8::from(entropy.score()) >= MIN_SCORE {
        return None;
    }
    let why = entropy.feedback().and_then(zxcvbn::feedback::Feedback::warning).map(|warning| format!(": {warning}"));
    Some(format!("is too easy to guess{}", why.unwrap_or_default()))
}
