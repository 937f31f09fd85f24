//! Groups: many handlers that go through the log together.
//!
//! All members of a group that are caught up stand at one place. A page of events is one transaction for all of them: one statement moves all their checkpoints, then those
//! members write that the page concerns. So what a page costs depends on what has to be written, hardly on how many members there are.
//!
//! A member that fails, is behind, or whose checkpoint somebody else has locked leaves the group and goes on alone (`alone`); the others repeat the page without it. It joins again when
//! it has come to where the group is. A member that always fails delays no other.
//!
//! Several processes share the members of a kind (`share`). Each checkpoint is fenced by its own position and by the epoch of its own lease: whoever has lost a lease
//! without noticing moves nothing.

mod alone;
mod share;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use sqlx::{PgConnection, PgPool};
use store::{Head, RawEvent, Store};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::feed::Feed;
use crate::group::alone::Alone;
use crate::group::share::Share;
use crate::subscription::{Handler, HandlerError, run};

/// How far from the group's place a member may be to join it, in events.
const NEAR: i64 = 500;
/// How long a member may take for a page before it leaves, so that the others need not wait.
const PATIENCE: Duration = Duration::from_secs(5);

/// A member that has not failed for this long is as good as one that never has.
const FORGIVEN: Duration = Duration::from_secs(600);

/// One of many handlers.
pub trait Member: Send + Sync + 'static {
    /// Its name: that of its checkpoint and its lease.
    fn name(&self) -> &'static str;

    /// Whether it has anything to do with an event.
    fn concerns(&self, event: &RawEvent) -> bool;

    /// Prepares what it does with a page that concerns it, outside of any transaction. `failed`: how often it has failed with [`HandlerError::Poison`] at this page, alone.
    fn prepare<'a>(self: Arc<Self>, events: &'a [Arc<RawEvent>], failed: u32) -> BoxFuture<'a, Result<Box<dyn Work + 'a>, HandlerError>>;

    /// Hears that its checkpoint has moved.
    fn moved(&self, position: i64) {
        let _ = position;
    }

    /// Forgets what it remembers of what it wrote: it may not be true any more.
    fn forget(&self) {}
}

/// What a member does with a page.
pub trait Work: Send {
    /// Writes it, in the transaction that has moved the checkpoint. May be asked again in another transaction, when this one was rolled back.
    fn write<'c>(&'c mut self, connection: &'c mut PgConnection, turn: &'c Turn) -> BoxFuture<'c, Result<(), HandlerError>>;

    /// Hears that the transaction was committed.
    fn committed(self: Box<Self>) {}
}

/// A moved checkpoint, as the table of checkpoints describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Which generation of the member's rows it belongs to, where there are generations.
    pub generation: i32,
    /// Changes whenever somebody else has written to those rows.
    pub revision: i64,
    /// The epoch of the lease. The same epoch means that no other process has had the member meanwhile.
    pub epoch: i64,
    /// Whether some events of this member wait or are left out.
    pub holds: bool,
}

/// Where a member stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stand {
    /// Its checkpoint.
    pub head: Head,
    /// The generation that it belongs to.
    pub generation: i32,
}

/// A checkpoint to be moved.
#[derive(Clone, Copy, Debug)]
pub struct Mover {
    /// Whose.
    pub name: &'static str,
    /// The epoch of its lease.
    pub epoch: i64,
    /// The generation that was found when its place was last looked at.
    pub generation: i32,
}

/// Whether to wait for checkpoints that others have locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// As long as it takes.
    Forever,
    /// Not at all: a locked checkpoint does not move. The statements of the transaction end after this.
    No(Duration),
}

/// Where the members of a kind keep their checkpoints.
pub trait Checkpoints: Send + Sync + 'static {
    /// The kind: leases are called `<kind>/<member>`.
    const KIND: &'static str;
    /// How long a process that died keeps its members from the others.
    const LEASE: Duration;

    /// Where they are.
    fn pool(&self) -> &PgPool;

    /// The checkpoints of these members.
    fn read(&self, names: &[&str]) -> impl Future<Output = Result<Vec<(String, Stand)>, sqlx::Error>> + Send;

    /// Moves these checkpoints from a position to a head, in one statement, and answers which have moved. A checkpoint does not move if it is at another position, if it belongs to another
    /// generation, or if a later epoch has written it.
    fn advance(
        &self,
        connection: &mut PgConnection,
        movers: &[Mover],
        from: i64,
        to: Head,
        wait: Wait,
    ) -> impl Future<Output = Result<Vec<(String, Turn)>, sqlx::Error>> + Send;

    /// Notes why members have stopped, or that they go on.
    fn note(&self, names: &[&str], fault: Option<&str>) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
}

/// A group of members in one process. Cheap to clone; all clones are the same group.
pub struct Group<C>(Arc<Shared<C>>);

impl<C> Clone for Group<C> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// What the group, and those of its members that are alone, know of each other.
struct Shared<C> {
    checkpoints: C,
    store: Store,
    feed: Feed,
    cancel: CancellationToken,
    /// Ends those that are alone, with the group or before.
    alone: CancellationToken,
    share: Share,
    places: Mutex<Places>,
    /// Where the group stands; below zero while it is nowhere.
    position: AtomicI64,
    tasks: TaskTracker,
}

/// Which member is where.
#[derive(Default)]
struct Places {
    members: BTreeMap<&'static str, Arc<dyn Member>>,
    /// The members whose leases this process holds, and their epochs.
    held: BTreeMap<&'static str, i64>,
    /// Those that go on alone.
    alone: BTreeSet<&'static str>,
    /// Those that were alone and wait to be let in.
    joining: BTreeSet<&'static str>,
    /// How often members have failed lately, and when they did last.
    failures: BTreeMap<&'static str, (u32, Instant)>,
}

/// A member that is about to handle a page.
#[derive(Clone)]
struct Placed {
    member: Arc<dyn Member>,
    mover: Mover,
}

/// What became of a page.
struct Handled {
    moved: Vec<Placed>,
    /// Those that it was not possible with, and why if it was their fault.
    left: Vec<(Placed, Option<HandlerError>)>,
}

/// How a page is gone through.
#[derive(Clone, Copy)]
enum Pace {
    /// Nobody waits for anybody.
    Together,
    /// As long as it takes, after so many failures.
    Alone { failed: u32 },
}

impl Pace {
    fn wait(self) -> Wait {
        match self {
            Self::Together => Wait::No(PATIENCE),
            Self::Alone { .. } => Wait::Forever,
        }
    }

    fn failed(self) -> u32 {
        match self {
            Self::Together => 0,
            Self::Alone { failed } => failed,
        }
    }

    /// Prepares a member: others do not wait for it longer than they may.
    async fn prepare<T>(self, work: impl Future<Output = Result<T, HandlerError>>) -> Result<T, HandlerError> {
        match self {
            Self::Together => {
                tokio::time::timeout(PATIENCE, guarded(work)).await.unwrap_or_else(|_| Err(HandlerError::Retry("it takes too long".into())))
            }
            Self::Alone { .. } => guarded(work).await,
        }
    }
}

/// What a member does; if it panics, it has failed.
async fn guarded<T>(work: impl Future<Output = Result<T, HandlerError>>) -> Result<T, HandlerError> {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_| Err(HandlerError::Retry("it panicked; the log says more".into())))
}

fn retry(error: impl std::fmt::Display) -> HandlerError {
    HandlerError::Retry(error.to_string())
}

impl<C: Checkpoints> Group<C> {
    /// A group without members that keeps its checkpoints there.
    pub fn new(checkpoints: C, store: &Store, feed: &Feed, cancel: &CancellationToken) -> Self {
        Self(Arc::new(Shared {
            checkpoints,
            share: Share::new(C::KIND, store.fresh_id(), C::LEASE),
            store: store.clone(),
            feed: feed.clone(),
            cancel: cancel.clone(),
            alone: cancel.child_token(),
            places: Mutex::default(),
            position: AtomicI64::new(-1),
            tasks: TaskTracker::new(),
        }))
    }

    /// Adds a member; it begins within a second.
    pub fn add(&self, member: Arc<dyn Member>) {
        self.0.places.lock().members.insert(member.name(), member);
    }

    /// Brings all members their events, until cancelled.
    pub async fn run(self) {
        let Shared { store, feed, cancel, .. } = &*self.0;
        tokio::select! {
            () = run(self.handler(), store.clone(), feed.clone(), cancel.clone()) => {}
            never = self.keep_leases() => match never {},
        }
    }

    /// Renews the leases, however long a page takes.
    async fn keep_leases(&self) -> Infallible {
        loop {
            let _ = tokio::time::timeout(C::LEASE / 4, std::future::pending::<()>()).await;
            if let Err(error) = self.0.share.renew(self.0.checkpoints.pool(), &self.0.names()).await {
                tracing::warn!(kind = C::KIND, %error, "leases cannot be renewed");
            }
        }
    }

    /// What the subscription runtime drives.
    pub fn handler(&self) -> Together<C> {
        Together { members: vec![], head: None, _alone: self.0.alone.clone().drop_guard(), shared: self.0.clone() }
    }
}

/// The members of a group that are at one place.
pub struct Together<C> {
    shared: Arc<Shared<C>>,
    members: Vec<Placed>,
    head: Option<Head>,
    _alone: DropGuard,
}

impl<C: Checkpoints> Shared<C> {
    fn names(&self) -> Vec<&'static str> {
        self.places.lock().members.keys().copied().collect()
    }

    fn placed(&self, name: &'static str, generation: i32) -> Option<Placed> {
        let places = self.places.lock();
        let (member, epoch) = (places.members.get(name)?.clone(), *places.held.get(name)?);
        Some(Placed { member, mover: Mover { name, epoch, generation } })
    }

    async fn stands(&self, names: &[&str]) -> Result<BTreeMap<String, Stand>, HandlerError> {
        Ok(self.checkpoints.read(names).await.map_err(retry)?.into_iter().collect())
    }

    /// Handles a page for these members, who all stand right before it: those who can, in one transaction.
    async fn page(&self, mut members: Vec<Placed>, events: &[Arc<RawEvent>], pace: Pace) -> Result<Handled, HandlerError> {
        let (Some(first), Some(last)) = (events.first(), events.last()) else { return Ok(Handled { moved: members, left: vec![] }) };
        let (from, to) = (first.position - 1, Head { position: last.position, log_hash: last.log_hash });
        let mut left = Vec::new();
        let concerned = members.iter().filter(|placed| events.iter().any(|event| placed.member.concerns(event)));
        let prepared = concerned.map(|placed| async move {
            let prepared = pace.prepare(placed.member.clone().prepare(events, pace.failed())).await;
            (placed.clone(), prepared)
        });
        let mut works = Vec::new();
        for (placed, prepared) in join_all(prepared).await {
            match prepared {
                Ok(work) => works.push((placed.mover.name, work)),
                Err(error) => {
                    members.retain(|member| member.mover.name != placed.mover.name);
                    left.push((placed, Some(error)));
                }
            }
        }
        'again: loop {
            if members.is_empty() {
                return Ok(Handled { moved: members, left });
            }
            let mut tx = self.checkpoints.pool().begin().await.map_err(retry)?;
            let movers: Vec<Mover> = members.iter().map(|placed| placed.mover).collect();
            let turns: BTreeMap<String, Turn> =
                self.checkpoints.advance(&mut tx, &movers, from, to, pace.wait()).await.map_err(retry)?.into_iter().collect();
            let (moved, stayed): (Vec<_>, Vec<_>) = members.into_iter().partition(|placed| turns.contains_key(placed.mover.name));
            left.extend(stayed.into_iter().map(|placed| (placed, None)));
            members = moved;
            for (name, work) in &mut works {
                let Some(turn) = turns.get(*name) else { continue };
                if let Err(error) = guarded(work.write(&mut tx, turn)).await {
                    // The locks have to be free before the others try again.
                    tx.rollback().await.map_err(retry)?;
                    let at = *name;
                    works.retain(|(name, _)| *name != at);
                    if let Some(place) = members.iter().position(|placed| placed.mover.name == at) {
                        left.push((members.remove(place), Some(error)));
                    }
                    continue 'again;
                }
            }
            tx.commit().await.map_err(retry)?;
            for (name, work) in works {
                if turns.contains_key(name) {
                    work.committed();
                }
            }
            for placed in &members {
                placed.member.moved(to.position);
            }
            return Ok(Handled { moved: members, left });
        }
    }
}

/// Has a member go on by itself, and join again once it has come to `until`; one that has failed here again and again stays alone for longer each time.
fn go_alone<C: Checkpoints>(shared: &Arc<Shared<C>>, member: Arc<dyn Member>, until: i64, failed: bool) {
    member.forget();
    let name = member.name();
    let now = Instant::now();
    let mut places = shared.places.lock();
    let mut not_before = now;
    if failed {
        let (failures, last) = places.failures.entry(name).or_insert((0, now));
        *failures = if last.elapsed() > FORGIVEN { 0 } else { *failures + 1 };
        *last = now;
        not_before += Duration::from_secs(2_u64.pow((*failures).min(9)) / 2).min(FORGIVEN / 2);
    }
    if places.alone.insert(name) {
        let alone = Alone::new(shared.clone(), member, until, not_before);
        let cancel = alone.until_it_joins();
        shared.tasks.spawn(run(alone, shared.store.clone(), shared.feed.clone(), cancel));
    }
}

impl<C: Checkpoints> Together<C> {
    fn forget(&self) {
        for placed in &self.members {
            placed.member.forget();
        }
    }

    /// The place where most of these stand, the furthest one if there are several.
    fn most(stands: &BTreeMap<String, Stand>, names: &[&str]) -> Option<Head> {
        let mut places: Vec<(usize, Head)> = Vec::new();
        for stand in names.iter().filter_map(|name| stands.get(*name)) {
            match places.iter_mut().find(|(_, head)| *head == stand.head) {
                Some((count, _)) => *count += 1,
                None => places.push((1, stand.head)),
            }
        }
        places.into_iter().max_by_key(|(count, head)| (*count, head.position)).map(|(_, head)| head)
    }

    fn stand_at(&mut self, head: Option<Head>) {
        self.shared.position.store(head.map_or(-1, |head| head.position), Ordering::Release);
        self.head = head;
    }

    /// Lets in whoever waits and is here, or not far behind. Whoever is ahead waits until the others come.
    async fn admit(&mut self, head: Head) -> Result<(), HandlerError> {
        let joining: Vec<&'static str> = self.shared.places.lock().joining.iter().copied().collect();
        if joining.is_empty() {
            return Ok(());
        }
        let stands = self.shared.stands(&joining).await?;
        for name in joining {
            let stand = stands.get(name);
            if stand.is_some_and(|stand| stand.head.position > head.position && stand.head.position <= head.position + NEAR) {
                continue;
            }
            self.shared.places.lock().joining.remove(name);
            let Some((stand, placed)) = stand.and_then(|stand| Some((*stand, self.shared.placed(name, stand.generation)?))) else {
                continue;
            };
            match self.bring(placed.clone(), stand.head, head).await? {
                Some(placed) => self.members.push(placed),
                None => go_alone(&self.shared, placed.member, head.position, false),
            }
        }
        Ok(())
    }

    /// Brings one that stands at `at` to where the group is; `None` when that cannot be done at once.
    async fn bring(&self, placed: Placed, at: Head, head: Head) -> Result<Option<Placed>, HandlerError> {
        if at == head {
            return Ok(Some(placed));
        }
        if at.position >= head.position || head.position - at.position > 2 * NEAR {
            return Ok(None);
        }
        let missing = self.shared.store.read_from(at.position, head.position - at.position).await.map_err(retry)?;
        let missing: Vec<Arc<RawEvent>> = missing.into_iter().map(Arc::new).collect();
        let leads_here = missing.first().is_some_and(|first| first.continues(at))
            && missing.last().is_some_and(|last| Head { position: last.position, log_hash: last.log_hash } == head);
        Ok(if leads_here { self.shared.page(vec![placed], &missing, Pace::Together).await?.moved.pop() } else { None })
    }
}

impl<C: Checkpoints> Handler for Together<C> {
    fn name(&self) -> &'static str {
        C::KIND
    }

    async fn begin(&mut self) -> Result<Option<Head>, HandlerError> {
        let shared = self.shared.clone();
        let kept = shared.share.renew(shared.checkpoints.pool(), &shared.names()).await.map_err(retry)?;
        let names: Vec<&'static str> = kept.keys().copied().collect();
        let stands = shared.stands(&names).await?;
        let (free, joining): (Vec<&'static str>, Vec<&'static str>) = {
            let mut places = shared.places.lock();
            places.held = kept;
            let Places { alone, joining, .. } = &*places;
            let free = names.into_iter().filter(|name| !alone.contains(name) && !joining.contains(name)).collect();
            (free, joining.iter().copied().collect())
        };
        // Where a member still is, the group is; it begins where most are.
        let head = self
            .head
            .filter(|head| self.members.iter().any(|placed| stands.get(placed.mover.name).is_some_and(|stand| stand.head == *head)));
        let head = head.or_else(|| Self::most(&stands, &free)).or_else(|| Self::most(&stands, &joining));
        let before = std::mem::take(&mut self.members);
        // What another process keeps from now on is not remembered here.
        before.iter().filter(|placed| !free.contains(&placed.mover.name)).for_each(|placed| placed.member.forget());
        self.stand_at(head);
        let Some(head) = head else { return Ok(None) };
        let mut new = Vec::new();
        for name in free {
            let Some(stand) = stands.get(name) else { continue };
            let Some(placed) = shared.placed(name, stand.generation) else { continue };
            if stand.head == head {
                if !before.iter().any(|was| was.mover.name == name) {
                    new.push(name);
                }
                placed.member.moved(head.position);
                self.members.push(placed);
            } else {
                go_alone(&shared, placed.member, head.position, false);
            }
        }
        // Another process may have noted a fault before.
        shared.checkpoints.note(&new, None).await.map_err(retry)?;
        self.admit(head).await?;
        if self.members.is_empty() {
            self.stand_at(None);
        }
        Ok(self.head)
    }

    async fn note(&mut self, fault: Option<&str>) -> Result<(), HandlerError> {
        let names: Vec<&str> = self.members.iter().map(|placed| placed.mover.name).collect();
        self.shared.checkpoints.note(&names, fault).await.map_err(retry)
    }

    async fn handle(&mut self, events: &[Arc<RawEvent>]) -> Result<(), HandlerError> {
        let Some(last) = events.last() else { return Ok(()) };
        let handled = match self.shared.page(self.members.clone(), events, Pace::Together).await {
            Ok(handled) => handled,
            Err(error) => {
                // Whether it was committed is not known.
                self.forget();
                return Err(error);
            }
        };
        for (placed, error) in handled.left {
            if let Some(error) = &error {
                tracing::warn!(handler = placed.mover.name, %error, "goes on alone");
            }
            go_alone(&self.shared, placed.member, last.position, error.is_some());
        }
        self.members = handled.moved;
        if self.members.is_empty() {
            self.stand_at(None);
            return Err(HandlerError::Retry("no member can go on together with others".into()));
        }
        let head = Head { position: last.position, log_hash: last.log_hash };
        self.stand_at(Some(head));
        self.admit(head).await
    }

    async fn release(&mut self) {
        let shared = &self.shared;
        shared.tasks.close();
        shared.alone.cancel();
        shared.tasks.wait().await;
        let _ = shared.share.end(shared.checkpoints.pool()).await;
    }
}
