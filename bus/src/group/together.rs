//! The members of a group that have the same checkpoint, as one handler.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use store::{Head, RawEvent};
use tokio_util::sync::DropGuard;

use crate::group::alone::Alone;
use crate::group::page::{Mode, Placed};
use crate::group::{Checkpoint, Checkpoints, Member, NEAR, Places, Shared};
use crate::subscription::{Handler, HandlerError, retry, run};

/// Failures of a member are forgotten after this time without one.
const FORGIVEN: Duration = Duration::from_secs(600);

/// Handler of the members that have the same checkpoint.
pub struct Together<C> {
    shared: Arc<Shared<C>>,
    members: Vec<Placed>,
    head: Option<Head>,
    _alone: DropGuard,
}

/// Lets a member run alone until it has passed the position `until`. A member that fails repeatedly in the group stays alone longer each time, up to five minutes.
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
        let cancel = alone.done();
        shared.tasks.spawn(run(alone, shared.store.clone(), shared.feed.clone(), cancel));
    }
}

impl<C: Checkpoints> Together<C> {
    pub(super) fn new(shared: &Arc<Shared<C>>) -> Self {
        Self { members: vec![], head: None, _alone: shared.alone.clone().drop_guard(), shared: shared.clone() }
    }

    fn forget(&self) {
        for placed in &self.members {
            placed.member.forget();
        }
    }

    /// The checkpoint that most of these members have, the latest one of several.
    fn most(checkpoints: &BTreeMap<String, Checkpoint>, names: &[&str]) -> Option<Head> {
        let mut places: Vec<(usize, Head)> = Vec::new();
        for checkpoint in names.iter().filter_map(|name| checkpoints.get(*name)) {
            match places.iter_mut().find(|(_, head)| *head == checkpoint.head) {
                Some((count, _)) => *count += 1,
                None => places.push((1, checkpoint.head)),
            }
        }
        places.into_iter().max_by_key(|(count, head)| (*count, head.position)).map(|(_, head)| head)
    }

    fn set_head(&mut self, head: Option<Head>) {
        self.shared.position.store(head.map_or(-1, |head| head.position), Ordering::Release);
        self.head = head;
    }

    /// Admits the members that wait to rejoin, after bringing them to the group's checkpoint. A member ahead of the group keeps waiting.
    async fn admit(&mut self, head: Head) -> Result<(), HandlerError> {
        let joining: Vec<&'static str> = self.shared.places.lock().joining.iter().copied().collect();
        if joining.is_empty() {
            return Ok(());
        }
        let checkpoints = self.shared.checkpoints(&joining).await?;
        for name in joining {
            let checkpoint = checkpoints.get(name);
            if checkpoint
                .is_some_and(|checkpoint| checkpoint.head.position > head.position && checkpoint.head.position <= head.position + NEAR)
            {
                continue;
            }
            self.shared.places.lock().joining.remove(name);
            let Some((checkpoint, placed)) =
                checkpoint.and_then(|checkpoint| Some((*checkpoint, self.shared.placed(name, checkpoint.generation)?)))
            else {
                continue;
            };
            match self.bring(placed.clone(), checkpoint.head, head).await? {
                Some(placed) => self.members.push(placed),
                None => go_alone(&self.shared, placed.member, head.position, false),
            }
        }
        Ok(())
    }

    /// Brings a member from the checkpoint `at` to that of the group; `None` if it has to catch up alone.
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
        Ok(if leads_here { self.shared.page(vec![placed], &missing, Mode::Together).await?.moved.pop() } else { None })
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
        let checkpoints = shared.checkpoints(&names).await?;
        let (free, joining): (Vec<&'static str>, Vec<&'static str>) = {
            let mut places = shared.places.lock();
            places.held = kept;
            let Places { alone, joining, .. } = &*places;
            let free = names.into_iter().filter(|name| !alone.contains(name) && !joining.contains(name)).collect();
            (free, joining.iter().copied().collect())
        };
        // The group keeps its checkpoint as long as a member has it, and starts from the most common one.
        let head = self.head.filter(|head| {
            self.members.iter().any(|placed| checkpoints.get(placed.to_move.name).is_some_and(|checkpoint| checkpoint.head == *head))
        });
        let head = head.or_else(|| Self::most(&checkpoints, &free)).or_else(|| Self::most(&checkpoints, &joining));
        let before = std::mem::take(&mut self.members);
        // Another process writes the rows of members whose lease is lost.
        before.iter().filter(|placed| !free.contains(&placed.to_move.name)).for_each(|placed| placed.member.forget());
        self.set_head(head);
        let Some(head) = head else { return Ok(None) };
        let mut new = Vec::new();
        for name in free {
            let Some(checkpoint) = checkpoints.get(name) else { continue };
            let Some(placed) = shared.placed(name, checkpoint.generation) else { continue };
            if checkpoint.head == head {
                if !before.iter().any(|was| was.to_move.name == name) {
                    new.push(name);
                }
                placed.member.moved(head.position);
                self.members.push(placed);
            } else {
                go_alone(&shared, placed.member, head.position, false);
            }
        }
        // A previous process may have stored a fault.
        shared.checkpoints.note(&new, None).await.map_err(retry)?;
        self.admit(head).await?;
        if self.members.is_empty() {
            self.set_head(None);
        }
        Ok(self.head)
    }

    async fn note(&mut self, fault: Option<&str>) -> Result<(), HandlerError> {
        let names: Vec<&str> = self.members.iter().map(|placed| placed.to_move.name).collect();
        self.shared.checkpoints.note(&names, fault).await.map_err(retry)
    }

    async fn handle(&mut self, events: &[Arc<RawEvent>]) -> Result<(), HandlerError> {
        let Some(last) = events.last() else { return Ok(()) };
        let outcome = match self.shared.page(self.members.clone(), events, Mode::Together).await {
            Ok(outcome) => outcome,
            Err(error) => {
                // The transaction may have been committed.
                self.forget();
                return Err(error);
            }
        };
        for (placed, error) in outcome.left {
            if let Some(error) = &error {
                tracing::warn!(handler = placed.to_move.name, %error, "left its group and runs alone");
            }
            go_alone(&self.shared, placed.member, last.position, error.is_some());
        }
        self.members = outcome.moved;
        if self.members.is_empty() {
            self.set_head(None);
            return Err(HandlerError::Retry("no member is left in the group".into()));
        }
        let head = Head { position: last.position, log_hash: last.log_hash };
        self.set_head(Some(head));
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
