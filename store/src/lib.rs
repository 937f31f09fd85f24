//! The event log in Postgres: one dense, commit-ordered, hash-chained log for all tenants.
//!
//! * [`answers`]: what is kept for requests that are repeated.
//! * [`append`]: the only way in. Versions, preconditions, claims, counters, allocations, timers, the tenant gate and idempotency records are checked and written in
//!   one short transaction under the lock of `log_head`; what waits meanwhile becomes the next batch.
//! * [`load`]: the state of one aggregate, through a bounded cache whose entries are verified before anything final is concluded from them.
//! * [`read`]: the log from a position in short pages, and single streams.
//! * [`seal`]: personal data, sealed per data subject before anything is hashed.
//! * [`audit`]: the invariants, checked from the stored bytes.
//! * [`backup`]: the whole log as a file, and back.
//! * [`export`]: a tenant's events for somebody who checks them without us.
//! * [`claims`]: who holds what.
//! * [`privacy`]: what the log knows of a person.
//! * [`keys`]: how long idempotency keys are known.
//! * [`lease`], [`timers`]: who may do what now.
//! * [`writable`]: whether the log takes writes now.

pub mod answers;
pub mod append;
pub mod audit;
pub mod backup;
pub mod claims;
pub mod database;
pub mod event;
pub mod export;
pub mod hash;
mod history;
pub mod keys;
pub mod lease;
pub mod load;
pub mod privacy;
pub mod read;
pub mod seal;
pub mod timers;
pub mod writable;

use std::collections::BTreeMap;
use std::sync::Arc;

use domain::{Clock, IdSource};
use sqlx::PgPool;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

pub use append::{Append, AppendError, Appended, Expected, Key, NewEvent, StreamAppend};
pub use database::{Database, DbRole};
pub use event::{Decoded, Erases, Metadata, RawEvent, Recorded};
pub use hash::Hash;
pub use read::Disagreement;
pub use seal::MasterKey;

/// How a [`Store`] is opened.
pub struct Config {
    /// Wraps the keys of data subjects and keys the hashes of personal claims.
    pub master_key: MasterKey,
    /// Tells the time of every event.
    pub clock: Arc<dyn Clock>,
    /// How many requests may wait for the log before further ones are refused as overload.
    pub queue: usize,
    /// How many requests one transaction takes at most.
    pub batch: usize,
    /// How many aggregates are kept in memory.
    pub cache: usize,
    /// Where counters end for which nothing in the log says so.
    pub ceilings: Ceilings,
}

/// Where a tenant's counters of these kinds end as long as nothing in the log has set a ceiling for them. Not those of the platform itself.
pub type Ceilings = BTreeMap<&'static str, i64>;

impl Config {
    /// What suits one process on a small machine.
    pub fn new(master_key: MasterKey, clock: Arc<dyn Clock>) -> Self {
        Self { master_key, clock, queue: 4096, batch: 256, cache: 50_000, ceilings: Ceilings::new() }
    }
}

/// The event log. Cheap to clone; all clones share one append queue, one cache and one key ring.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    pool: PgPool,
    queue: Arc<append::queue::Queue>,
    keyring: Arc<seal::Keyring>,
    cache: Arc<load::Cache>,
    head: watch::Sender<i64>,
    last_write: Arc<writable::LastWrite>,
    history: Arc<history::History>,
    installation: Uuid,
    clock: Arc<dyn Clock>,
    ids: IdSource,
    ceilings: Arc<Ceilings>,
}

/// Why a log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The database did not answer, or is not migrated.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    /// The installation was made with another master key; with this one nothing sealed could be read, and equal personal values would not be recognised.
    #[error("the master key is not the one of this installation")]
    WrongMasterKey,
}

/// Where the log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The position of the last event; 0 when there is none.
    pub position: i64,
    /// Its chain hash.
    pub log_hash: Hash,
}

impl Store {
    /// Opens the log and starts its writer, which ends when the last clone is dropped and everything accepted is written; await the handle to be sure of that.
    pub async fn open(database: &Database, config: Config) -> Result<(Self, JoinHandle<()>), OpenError> {
        let pool = database.pool(DbRole::Writer, 8);
        let (installation, position, log_hash): (Uuid, i64, [u8; 32]) =
            sqlx::query_as("select installation_id, position, log_hash from log_head").fetch_one(&pool).await?;
        let check = config.master_key.check(installation);
        sqlx::query("insert into ops.master_key (key_check) values ($1) on conflict do nothing").bind(check.0).execute(&pool).await?;
        if check.0 != sqlx::query_scalar::<_, [u8; 32]>("select key_check from ops.master_key").fetch_one(&pool).await? {
            return Err(OpenError::WrongMasterKey);
        }
        let keyring = Arc::new(seal::Keyring::new(config.master_key, pool.clone()));
        let cache = Arc::new(load::Cache::new(config.cache));
        let queue = Arc::new(append::queue::Queue::new(config.queue, config.batch));
        let (head, _) = watch::channel(position);
        let last_write = Arc::new(writable::LastWrite::default());
        let seen = Head { position, log_hash: Hash(log_hash) };
        let history = Arc::new(history::History::new(seen, keyring.clone(), cache.clone(), head.clone()));
        let ceilings = Arc::new(config.ceilings);
        let writer = append::writer::Writer::new(
            database.clone(),
            queue.clone(),
            config.clock.clone(),
            head.clone(),
            last_write.clone(),
            history.clone(),
            ceilings.clone(),
        );
        let handle = tokio::spawn(writer.run());
        let inner = Inner {
            keyring,
            pool,
            queue,
            cache,
            head,
            last_write,
            history,
            installation,
            ids: IdSource::new(config.clock.clone()),
            clock: config.clock,
            ceilings,
        };
        Ok((Self { inner: Arc::new(inner) }, handle))
    }

    /// The installation's identity: part of the stream's name and of `ce-source`.
    pub fn installation(&self) -> Uuid {
        self.inner.installation
    }

    /// The clock that the store was opened with.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.inner.clock
    }

    /// Where a tenant's counter ends for which nothing in the log says so; `None`: nowhere.
    pub fn ceiling_unless_set(&self, tenant: domain::TenantId, counter: domain::CounterName) -> Option<i64> {
        append::guards::ceiling_unless_set(&self.inner.ceilings, tenant, counter)
    }

    /// A fresh UUIDv7.
    pub fn fresh_id(&self) -> Uuid {
        self.inner.ids.next()
    }

    /// Signals the position of this process's last commit; other processes' commits are not seen here.
    pub fn watch_head(&self) -> watch::Receiver<i64> {
        self.inner.head.subscribe()
    }

    /// Where the log ends now, read from Postgres.
    pub async fn head(&self) -> Result<Head, sqlx::Error> {
        let (position, log_hash) = sqlx::query_as("select position, log_hash from log_head").fetch_one(&self.inner.pool).await?;
        let head = Head { position, log_hash: Hash(log_hash) };
        self.inner.history.saw(head);
        Ok(head)
    }

    /// The pool of this store's role, for operational tables that have no better home.
    pub fn pool(&self) -> &PgPool {
        &self.inner.pool
    }

    /// Accepts no more appends; those that wait are still written. The writer's handle then ends.
    pub fn close(&self) {
        self.inner.queue.close();
    }

    /// Forgets all keys and states, since some personal data has been erased: what this process still could unseal must not be seen after that.
    pub fn forget_unsealed(&self) {
        self.inner.forget_unsealed();
    }

    /// HMAC-SHA-256 (RFC 2104) of the parts under the master key, for one use only: what it makes can be checked by every process, and made by none without the key.
    pub fn mac(&self, domain: &'static str, parts: &[&[u8]]) -> [u8; 32] {
        self.inner.keyring.master().keyed(domain, parts)
    }

    /// Encrypts a secret of the installation under the master key, for one use and one row only, which is named by its key.
    pub fn wrap(&self, domain: &'static str, row: &[&str], secret: &[u8]) -> Option<Vec<u8>> {
        self.inner.keyring.master().wrap(domain, row, secret)
    }

    /// What [`Store::wrap`] was given for this use and this row; `None` when it was for another one, or not by this key.
    pub fn unwrap(&self, domain: &'static str, row: &[&str], wrapped: &[u8]) -> Option<Vec<u8>> {
        self.inner.keyring.master().unwrap(domain, row, wrapped)
    }

    /// How many appends wait for the writer.
    pub fn queued(&self) -> usize {
        self.inner.queue.len()
    }
}

impl Inner {
    /// Forgets all that was unsealed.
    fn forget_unsealed(&self) {
        self.keyring.forget_all();
        self.cache.clear();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.queue.close();
    }
}
