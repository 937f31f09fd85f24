//! Groups: many handlers that process the log together.
//!
//! All members of a group have the same checkpoint. A page of events is one transaction for all of them: one statement moves every checkpoint, then the members that the page concerns
//! write. The cost of a page depends on what is written, and hardly on the number of members.
//!
//! A member leaves the group when it fails, lags, or its checkpoint is locked by another transaction. It continues in a task of its own (`alone`), and the group repeats the page without it.
//! It rejoins when it has reached the group's checkpoint. A member that always fails delays no other member.
//!
//! Several processes share the members (`share`). Every checkpoint is guarded by its position and by the epoch of the member's lease, so a process that has lost a lease cannot write.

mod alone;
mod page;
mod share;
mod together;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use sqlx::{PgConnection, PgPool};
use store::{Head, RawEvent, Store};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::feed::Feed;
use crate::group::page::Placed;
use crate::group::share::Share;
pub use crate::group::together::Together;
use crate::subscription::{HandlerError, retry, run};

/// Lease of a member: how long a killed process blocks the member for other processes.
const LEASE: Duration = Duration::from_secs(10);
/// Maximum distance from the group's checkpoint at which a member may rejoin, in events.
const NEAR: i64 = 500;
/// Maximum time that a member of a group may take for a page.
const PATIENCE: Duration = Duration::from_secs(5);

/// A handler that can be a member of a group.
pub trait Member: Send + Sync + 'static {
    /// Name of its checkpoint and of its lease.
    fn name(&self) -> &'static str;

    /// Whether an event concerns it.
    fn concerns(&self, event: &RawEvent) -> bool;

    /// Prepares the work for a page that concerns it, outside of a transaction. `failed` is the number of earlier attempts at this page, alone, that ended with [`HandlerError::Poison`].
    fn prepare<'a>(self: Arc<Self>, events: &'a [Arc<RawEvent>], failed: u32) -> BoxFuture<'a, Result<Box<dyn Work + 'a>, HandlerError>>;

    /// Called when its checkpoint has moved.
    fn moved(&self, position: i64) {
        let _ = position;
    }

    /// Drops cached rows, which may be stale.
    fn forget(&self) {}
}

/// The work of one member for one page.
pub trait Work: Send {
    /// Writes it in the transaction that has moved the checkpoint. Called again with a new transaction if the previous one was rolled back.
    fn write<'c>(&'c mut self, connection: &'c mut PgConnection, advanced: &'c Advanced) -> BoxFuture<'c, Result<(), HandlerError>>;

    /// Called after the commit.
    fn committed(self: Box<Self>) {}
}

/// A checkpoint that was moved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advanced {
    /// Generation of the member's rows, 0 for members without generations.
    pub generation: i32,
    /// Revision of these rows. It changes when another process writes them.
    pub revision: i64,
    /// Epoch of the lease. It is unchanged as long as no other process has held the lease.
    pub epoch: i64,
    /// Whether events of this member are parked or discarded.
    pub holds: bool,
}

/// A stored checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Position and hash.
    pub head: Head,
    /// Generation of the member's rows, 0 for members without generations.
    pub generation: i32,
}

/// A checkpoint to move.
#[derive(Clone, Copy, Debug)]
pub struct CheckpointMove {
    /// Name of the member.
    pub name: &'static str,
    /// Epoch of its lease.
    pub epoch: i64,
    /// Expected generation.
    pub generation: i32,
}

/// Whether to wait for checkpoints that are locked by other transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Wait without a limit.
    Forever,
    /// Do not wait: a locked checkpoint does not move. Statements of the transaction time out after this duration.
    No(Duration),
}

impl Wait {
    /// PostgreSQL's `statement_timeout` for the transaction.
    pub fn statement_timeout(self) -> String {
        match self {
            Self::Forever => "0".to_owned(),
            Self::No(limit) => format!("{}ms", limit.as_millis()),
        }
    }
}

/// Table of the checkpoints of one kind of members.
pub trait Checkpoints: Send + Sync + 'static {
    /// Kind of the members. A lease is called `<kind>/<member>`.
    const KIND: &'static str;

    /// Connections to the table.
    fn pool(&self) -> &PgPool;

    /// Reads the checkpoints of these members.
    fn read(&self, names: &[&str]) -> impl Future<Output = Result<Vec<(String, Checkpoint)>, sqlx::Error>> + Send;

    /// Moves checkpoints from a position to a head with one statement, and returns those that moved. A checkpoint does not move if its position or generation is another one, or if a later epoch
    /// has written it.
    fn advance(
        &self,
        connection: &mut PgConnection,
        wanted: &[CheckpointMove],
        from: i64,
        to: Head,
        wait: Wait,
    ) -> impl Future<Output = Result<Vec<(String, Advanced)>, sqlx::Error>> + Send;

    /// Stores the fault of stopped members, or clears it.
    fn note(&self, names: &[&str], fault: Option<&str>) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
}

/// A group of members in one process. Cheap to clone; all clones are the same group.
pub struct Group<C>(Arc<Shared<C>>);

impl<C> Clone for Group<C> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// State that a group shares with its members that run alone.
struct Shared<C> {
    checkpoints: C,
    store: Store,
    feed: Feed,
    cancel: CancellationToken,
    /// Cancels the members that run alone.
    alone: CancellationToken,
    share: Share,
    places: Mutex<Places>,
    /// Position of the group's checkpoint; -1 while the group has no member.
    position: AtomicI64,
    tasks: TaskTracker,
}

/// State of each member.
#[derive(Default)]
struct Places {
    members: BTreeMap<&'static str, Arc<dyn Member>>,
    /// Epochs of the leases that this process holds.
    held: BTreeMap<&'static str, i64>,
    /// Members that run alone.
    alone: BTreeSet<&'static str>,
    /// Members that ran alone and wait to rejoin.
    joining: BTreeSet<&'static str>,
    /// Recent failures within the group: their number, and the time of the last one.
    failures: BTreeMap<&'static str, (u32, Instant)>,
}

impl<C: Checkpoints> Group<C> {
    /// A group without members.
    pub fn new(checkpoints: C, store: &Store, feed: &Feed, cancel: &CancellationToken) -> Self {
        Self(Arc::new(Shared {
            checkpoints,
            share: Share::new(C::KIND, store.fresh_id(), LEASE),
            store: store.clone(),
            feed: feed.clone(),
            cancel: cancel.clone(),
            alone: cancel.child_token(),
            places: Mutex::default(),
            position: AtomicI64::new(-1),
            tasks: TaskTracker::new(),
        }))
    }

    /// Adds a member. It starts within one second.
    pub fn add(&self, member: Arc<dyn Member>) {
        self.0.places.lock().members.insert(member.name(), member);
    }

    /// Processes the log until cancelled.
    pub async fn run(self) {
        let Shared { store, feed, cancel, .. } = &*self.0;
        tokio::select! {
            () = run(self.handler(), store.clone(), feed.clone(), cancel.clone()) => {}
            never = self.keep_leases() => match never {},
        }
    }

    /// Renews the leases, also while a page takes long.
    async fn keep_leases(&self) -> Infallible {
        loop {
            let _ = tokio::time::timeout(LEASE / 4, std::future::pending::<()>()).await;
            if let Err(error) = self.0.share.renew(self.0.checkpoints.pool(), &self.0.names()).await {
                tracing::warn!(kind = C::KIND, %error, "leases cannot be renewed");
            }
        }
    }

    /// The handler that [`crate::subscription::run`] drives.
    pub fn handler(&self) -> Together<C> {
        Together::new(&self.0)
    }
}

impl<C: Checkpoints> Shared<C> {
    fn names(&self) -> Vec<&'static str> {
        self.places.lock().members.keys().copied().collect()
    }

    fn placed(&self, name: &'static str, generation: i32) -> Option<Placed> {
        let places = self.places.lock();
        let (member, epoch) = (places.members.get(name)?.clone(), *places.held.get(name)?);
        Some(Placed { member, to_move: CheckpointMove { name, epoch, generation } })
    }

    async fn checkpoints(&self, names: &[&str]) -> Result<BTreeMap<String, Checkpoint>, HandlerError> {
        Ok(self.checkpoints.read(names).await.map_err(retry)?.into_iter().collect())
    }
}
