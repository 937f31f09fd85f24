//! Fair admission to something scarce: processor time for password hashes, connections to the read models.
//!
//! Every request belongs to a party (an address, a tenant) and to a lane of that party (an account). Places that become free go to the parties in turn, and within a party
//! to its lanes in turn. However many requests one party sends, another party waits for one turn of each other party at most, not for their queues. All queues and waits
//! are bounded: a request beyond them is refused at once.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// The bounds of an [`Admission`].
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Places taken at a time, by all parties together.
    pub places: usize,
    /// Places taken at a time by one party.
    pub places_per_party: usize,
    /// A party whose requests keep their places for longer than this, on average, has one place at a time: several long ones would take the processors from short ones.
    pub long: Duration,
    /// Requests that wait, of all parties together. When that is reached, the party with the most requests gives way to one with fewer.
    pub waiting: usize,
    /// Requests of one party that wait.
    pub waiting_per_party: usize,
    /// Requests of one lane of a party that wait.
    pub waiting_per_lane: usize,
    /// The longest wait.
    pub patience: Duration,
}

/// A request was not admitted: too much waits before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many requests are waiting")]
pub struct Refused;

/// How much of the places is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Places that there are.
    pub places: usize,
    /// Places that are taken.
    pub taken: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// How long the oldest of them has waited.
    pub longest_wait: Duration,
}

/// What a party is named by.
pub trait Party: Clone + Eq + Hash + Send + 'static {}

impl<P: Clone + Eq + Hash + Send + 'static> Party for P {}

/// Admits requests. Cheap to clone; all clones share the places.
pub struct Admission<P: Party>(Arc<Inner<P>>);

impl<P: Party> Clone for Admission<P> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Inner<P: Party> {
    bounds: Bounds,
    state: Mutex<State<P>>,
}

struct State<P: Party> {
    taken: usize,
    waiting: usize,
    parties: HashMap<P, Queue<P>>,
    /// Parties with requests that wait; the next turn is the first one's.
    turns: VecDeque<P>,
}

struct Queue<P: Party> {
    taken: usize,
    /// How long its requests have kept their places, the last ones counting most.
    kept: Duration,
    waiting: usize,
    has_turn: bool,
    /// The next turn is the first one's.
    lanes: VecDeque<(u64, VecDeque<Waiter<P>>)>,
}

struct Waiter<P: Party> {
    since: Instant,
    grant: oneshot::Sender<Permit<P>>,
}

/// A place. It is free again when this is dropped.
pub struct Permit<P: Party> {
    of: Option<(Arc<Inner<P>>, P)>,
    since: Instant,
}

impl<P: Party> std::fmt::Debug for Permit<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Permit")
    }
}

impl<P: Party> Drop for Permit<P> {
    fn drop(&mut self) {
        if let Some((inner, party)) = self.of.take() {
            let mut state = inner.state.lock();
            state.release(&party, self.since.elapsed());
            state.dispatch(&inner);
        }
    }
}

/// A request that waits; whatever ends its wait, nothing of it stays behind.
struct Waiting<'a, P: Party> {
    inner: &'a Inner<P>,
    party: P,
    grant: oneshot::Receiver<Permit<P>>,
}

impl<P: Party> Drop for Waiting<'_, P> {
    fn drop(&mut self) {
        self.grant.close();
        // A place that was granted at the last moment goes to the next one, and not under the lock.
        drop(self.grant.try_recv());
        self.inner.state.lock().forget_abandoned(&self.party);
    }
}

impl<P: Party> Queue<P> {
    fn new() -> Self {
        Self { taken: 0, kept: Duration::ZERO, waiting: 0, has_turn: false, lanes: VecDeque::new() }
    }

    /// Whether it may have another place.
    fn may_take(&self, bounds: &Bounds) -> bool {
        self.taken < if self.kept > bounds.long { 1 } else { bounds.places_per_party }
    }

    fn in_lane(&self, lane: u64) -> usize {
        self.lanes.iter().find(|(name, _)| *name == lane).map_or(0, |(_, waiters)| waiters.len())
    }

    fn push(&mut self, lane: u64, waiter: Waiter<P>) {
        self.waiting += 1;
        match self.lanes.iter_mut().find(|(name, _)| *name == lane) {
            Some((_, waiters)) => waiters.push_back(waiter),
            None => self.lanes.push_back((lane, VecDeque::from([waiter]))),
        }
    }

    /// The next one to be admitted.
    fn pop(&mut self) -> Option<Waiter<P>> {
        let (lane, mut waiters) = self.lanes.pop_front()?;
        let next = waiters.pop_front();
        if !waiters.is_empty() {
            self.lanes.push_back((lane, waiters));
        }
        self.waiting -= usize::from(next.is_some());
        next
    }

    /// Refuses the newest request of the longest lane.
    fn evict(&mut self) -> bool {
        let longest = self.lanes.iter_mut().max_by_key(|(_, waiters)| waiters.len());
        let evicted = longest.and_then(|(_, waiters)| waiters.pop_back()).is_some();
        self.waiting -= usize::from(evicted);
        self.lanes.retain(|(_, waiters)| !waiters.is_empty());
        evicted
    }
}

impl<P: Party> State<P> {
    fn release(&mut self, party: &P, kept: Duration) {
        self.taken -= 1;
        if let Some(queue) = self.parties.get_mut(party) {
            queue.taken -= 1;
            queue.kept = (queue.kept * 3 + kept) / 4;
        }
        self.tidy(party);
    }

    fn tidy(&mut self, party: &P) {
        if self.parties.get(party).is_some_and(|queue| queue.taken == 0 && queue.waiting == 0 && !queue.has_turn) {
            self.parties.remove(party);
        }
    }

    fn forget_abandoned(&mut self, party: &P) {
        let Some(queue) = self.parties.get_mut(party) else { return };
        for (_, waiters) in &mut queue.lanes {
            let before = waiters.len();
            waiters.retain(|waiter| !waiter.grant.is_closed());
            queue.waiting -= before - waiters.len();
            self.waiting -= before - waiters.len();
        }
        queue.lanes.retain(|(_, waiters)| !waiters.is_empty());
        self.tidy(party);
    }

    /// Gives free places to the parties in turn.
    fn dispatch(&mut self, inner: &Arc<Inner<P>>) {
        let mut passed_over = 0;
        while self.taken < inner.bounds.places && passed_over < self.turns.len() {
            let Some(party) = self.turns.pop_front() else { return };
            let Some(queue) = self.parties.get_mut(&party) else { continue };
            if queue.waiting > 0 && !queue.may_take(&inner.bounds) {
                self.turns.push_back(party);
                passed_over += 1;
                continue;
            }
            if let Some(waiter) = queue.pop() {
                self.waiting -= 1;
                passed_over = 0;
                let permit = Permit { of: Some((inner.clone(), party.clone())), since: Instant::now() };
                match waiter.grant.send(permit) {
                    Ok(()) => {
                        self.taken += 1;
                        queue.taken += 1;
                    }
                    // Abandoned: nothing was taken, so nothing is given back.
                    Err(mut permit) => drop(permit.of.take()),
                }
            }
            queue.has_turn = queue.waiting > 0;
            if queue.has_turn {
                self.turns.push_back(party);
            } else {
                self.tidy(&party);
            }
        }
    }

    /// Makes room for a request of a party with so many waiting, by one of the party with the most.
    fn make_room(&mut self, waiting: usize) -> bool {
        let most = self.parties.values_mut().max_by_key(|queue| queue.waiting).filter(|queue| queue.waiting > waiting + 1);
        let evicted = most.is_some_and(Queue::evict);
        self.waiting -= usize::from(evicted);
        evicted
    }
}

impl<P: Party> Admission<P> {
    /// Within these bounds.
    pub fn new(bounds: Bounds) -> Self {
        Self(Arc::new(Inner { bounds, state: Mutex::new(State { taken: 0, waiting: 0, parties: HashMap::new(), turns: VecDeque::new() }) }))
    }

    /// Waits for a place.
    pub async fn enter(&self, party: P, lane: u64) -> Result<Permit<P>, Refused> {
        let mut waiting = match self.take_or_wait(&party, lane)? {
            Ok(permit) => return Ok(permit),
            Err(grant) => Waiting { inner: &self.0, party, grant },
        };
        match tokio::time::timeout(self.0.bounds.patience, &mut waiting.grant).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(Refused),
        }
    }

    fn take_or_wait(&self, party: &P, lane: u64) -> Result<Result<Permit<P>, oneshot::Receiver<Permit<P>>>, Refused> {
        let (inner, bounds) = (&self.0, &self.0.bounds);
        let mut state = inner.state.lock();
        let queue = state.parties.entry(party.clone()).or_insert_with(Queue::new);
        let (waiting, in_lane) = (queue.waiting, queue.in_lane(lane));
        // A place is free only when each of those who wait has taken its share.
        let free = queue.waiting == 0 && queue.may_take(bounds);
        if free && state.taken < bounds.places {
            state.taken += 1;
            if let Some(queue) = state.parties.get_mut(party) {
                queue.taken += 1;
            }
            return Ok(Ok(Permit { of: Some((inner.clone(), party.clone())), since: Instant::now() }));
        }
        let too_many = waiting >= bounds.waiting_per_party || in_lane >= bounds.waiting_per_lane;
        if too_many || (state.waiting >= bounds.waiting && !state.make_room(waiting)) {
            state.tidy(party);
            return Err(Refused);
        }
        let (grant, granted) = oneshot::channel();
        state.waiting += 1;
        if let Some(queue) = state.parties.get_mut(party) {
            queue.push(lane, Waiter { since: Instant::now(), grant });
            if !std::mem::replace(&mut queue.has_turn, true) {
                state.turns.push_back(party.clone());
            }
        }
        Ok(Err(granted))
    }

    /// How much of the places is taken now.
    pub fn load(&self) -> Load {
        let state = self.0.state.lock();
        let first = |queue: &Queue<P>| queue.lanes.iter().filter_map(|(_, waiters)| waiters.front().map(|waiter| waiter.since)).min();
        let oldest = state.parties.values().filter_map(first).min();
        Load {
            places: self.0.bounds.places,
            taken: state.taken,
            waiting: state.waiting,
            longest_wait: oldest.map_or(Duration::ZERO, |since| since.elapsed()),
        }
    }
}

#[cfg(test)]
mod tests;
