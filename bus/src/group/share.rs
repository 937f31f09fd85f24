//! Sharing: which of the members each of several processes keeps.
//!
//! Every process that keeps members of a kind says so by a lease of its own, `process/<kind>/<id>`. Each member is meant for one of the living processes, by rendezvous hashing
//! (Thaler and Ravishankar, 1998): when a process comes or goes, only what is meant for it changes hands. When that set has changed, a process gives back what is meant for another one;
//! what nobody holds for a while is taken by anybody.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use sqlx::PgPool;
use store::lease;
use tokio::sync::Mutex;
use uuid::Uuid;

/// How long a member that nobody holds waits for the process that it is meant for, also after processes have come or gone.
const ORPHANED: Duration = Duration::from_secs(3);
/// How long a process leaves a member that it cannot serve to others.
const GIVEN_UP: Duration = Duration::from_secs(5);

/// The members that one process keeps.
pub(super) struct Share {
    kind: &'static str,
    owner: Uuid,
    lease: Duration,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    living: Vec<Uuid>,
    /// When that last changed.
    since: Option<Instant>,
    held: BTreeMap<&'static str, i64>,
    given_up: HashMap<&'static str, Instant>,
}

/// Which of the living processes a member is meant for.
fn meant_for(member: &str, living: &[Uuid]) -> Option<Uuid> {
    living.iter().copied().max_by_key(|process| Uuid::new_v5(process, member.as_bytes()))
}

impl Share {
    pub(super) fn new(kind: &'static str, owner: Uuid, lease: Duration) -> Self {
        Self { kind, owner, lease, known: Mutex::default() }
    }

    /// Takes and renews the leases of what this process is to keep, and answers their epochs.
    pub(super) async fn renew(&self, pool: &PgPool, names: &[&'static str]) -> Result<BTreeMap<&'static str, i64>, sqlx::Error> {
        let mut known = self.known.lock().await;
        let processes = format!("process/{}/", self.kind);
        lease::acquire(pool, &format!("{processes}{}", self.owner), self.owner, self.lease).await?;
        let living = lease::owners(pool, &processes).await?;
        known.given_up.retain(|_, since| since.elapsed() < GIVEN_UP);
        let mine = |name: &str| meant_for(name, &living) == Some(self.owner);
        if known.living != living {
            let others: Vec<&'static str> = known.held.keys().copied().filter(|name| !mine(name)).collect();
            lease::release_all(pool, self.kind, &others, self.owner).await?;
            known.held.retain(|name, _| !others.contains(name));
            known.living.clone_from(&living);
            known.since = Some(Instant::now());
        }
        let candidates = names.iter().copied().filter(|name| !known.given_up.contains_key(name));
        let (wanted, mut others): (Vec<&str>, Vec<&str>) = candidates.partition(|name| known.held.contains_key(name) || mine(name));
        // Those that others are meant for are given time to be taken by them.
        if known.since.is_none_or(|since| since.elapsed() < ORPHANED) {
            others.clear();
        }
        let held = lease::acquire_all(pool, self.kind, &wanted, &others, self.owner, (self.lease, ORPHANED)).await?;
        known.held = held.into_iter().filter_map(|(name, epoch)| Some((*names.iter().find(|known| **known == name)?, epoch))).collect();
        Ok(known.held.clone())
    }

    /// Leaves a member to others for a while.
    pub(super) async fn give_up(&self, pool: &PgPool, name: &'static str) -> Result<(), sqlx::Error> {
        let mut known = self.known.lock().await;
        known.held.remove(name);
        known.given_up.insert(name, Instant::now());
        lease::release_all(pool, self.kind, &[name], self.owner).await
    }

    /// Gives everything back.
    pub(super) async fn end(&self, pool: &PgPool) -> Result<(), sqlx::Error> {
        let mut known = self.known.lock().await;
        let held: Vec<&str> = std::mem::take(&mut known.held).into_keys().collect();
        lease::release_all(pool, self.kind, &held, self.owner).await?;
        lease::release(pool, &format!("process/{}/{}", self.kind, self.owner), self.owner).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_process_comes_or_goes_only_what_is_meant_for_it_changes_hands() {
        let processes: Vec<Uuid> = (0..4).map(Uuid::from_u128).collect();
        let members: Vec<String> = (0..200).map(|n| format!("model_{n}")).collect();
        let mut kept = [0; 4];
        for member in &members {
            let before = meant_for(member, &processes).unwrap_or_default();
            let after = meant_for(member, &processes[..3]).unwrap_or_default();
            assert!(before == after || before == processes[3]);
            kept[processes.iter().position(|process| *process == before).unwrap_or_default()] += 1;
        }
        assert!(kept.iter().all(|kept| (25..=80).contains(kept)), "{kept:?}");
        assert_eq!(meant_for("x", &[]), None);
    }
}
