//! Distribution of members among processes.
//!
//! Every process holds a lease `process/<kind>/<id>`. Each member is assigned to one of the live processes by rendezvous hashing (Thaler and Ravishankar, 1998): when a process starts or ends, only
//! the members assigned to it move. When the set of live processes changes, a process releases the members that are assigned to others. A member that its assigned process does not take is taken by any process.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use sqlx::PgPool;
use store::lease;
use tokio::sync::Mutex;
use uuid::Uuid;

/// Time for the assigned process to take a member before any process may.
const ORPHANED: Duration = Duration::from_secs(3);
/// Pause before a process takes again a member that it could not serve.
const GIVEN_UP: Duration = Duration::from_secs(5);

/// The leases of one process.
pub(super) struct Share {
    kind: &'static str,
    owner: Uuid,
    lease: Duration,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    living: Vec<Uuid>,
    /// Time of the last change of the set of live processes.
    since: Option<Instant>,
    held: BTreeMap<&'static str, i64>,
    given_up: HashMap<&'static str, Instant>,
}

/// The live process that a member is assigned to.
fn assigned_to(member: &str, living: &[Uuid]) -> Option<Uuid> {
    living.iter().copied().max_by_key(|process| Uuid::new_v5(process, member.as_bytes()))
}

impl Share {
    pub(super) fn new(kind: &'static str, owner: Uuid, lease: Duration) -> Self {
        Self { kind, owner, lease, known: Mutex::default() }
    }

    /// Takes and renews leases, and returns the epochs of those held.
    pub(super) async fn renew(&self, pool: &PgPool, names: &[&'static str]) -> Result<BTreeMap<&'static str, i64>, sqlx::Error> {
        let mut known = self.known.lock().await;
        let processes = format!("process/{}/", self.kind);
        lease::acquire(pool, &format!("{processes}{}", self.owner), self.owner, self.lease).await?;
        let living = lease::owners(pool, &processes).await?;
        known.given_up.retain(|_, since| since.elapsed() < GIVEN_UP);
        let mine = |name: &str| assigned_to(name, &living) == Some(self.owner);
        if known.living != living {
            let others: Vec<&'static str> = known.held.keys().copied().filter(|name| !mine(name)).collect();
            lease::release_all(pool, self.kind, &others, self.owner).await?;
            known.held.retain(|name, _| !others.contains(name));
            known.living.clone_from(&living);
            known.since = Some(Instant::now());
        }
        let candidates = names.iter().copied().filter(|name| !known.given_up.contains_key(name));
        let (wanted, mut others): (Vec<&str>, Vec<&str>) = candidates.partition(|name| known.held.contains_key(name) || mine(name));
        // The assigned processes have time to take their members first.
        if known.since.is_none_or(|since| since.elapsed() < ORPHANED) {
            others.clear();
        }
        let held = lease::acquire_all(pool, self.kind, &wanted, &others, self.owner, (self.lease, ORPHANED)).await?;
        known.held = held.into_iter().filter_map(|(name, epoch)| Some((*names.iter().find(|known| **known == name)?, epoch))).collect();
        Ok(known.held.clone())
    }

    /// Releases a member for [`GIVEN_UP`], so that another process can take it.
    pub(super) async fn give_up(&self, pool: &PgPool, name: &'static str) -> Result<(), sqlx::Error> {
        let mut known = self.known.lock().await;
        known.held.remove(name);
        known.given_up.insert(name, Instant::now());
        lease::release_all(pool, self.kind, &[name], self.owner).await
    }

    /// Releases all leases.
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
    fn when_a_process_comes_or_goes_only_what_is_assigned_to_it_changes_hands() {
        let processes: Vec<Uuid> = (0..4).map(Uuid::from_u128).collect();
        let members: Vec<String> = (0..200).map(|n| format!("model_{n}")).collect();
        let mut kept = [0; 4];
        for member in &members {
            let before = assigned_to(member, &processes).unwrap_or_default();
            let after = assigned_to(member, &processes[..3]).unwrap_or_default();
            assert!(before == after || before == processes[3]);
            kept[processes.iter().position(|process| *process == before).unwrap_or_default()] += 1;
        }
        assert!(kept.iter().all(|kept| (25..=80).contains(kept)), "{kept:?}");
        assert_eq!(assigned_to("x", &[]), None);
    }
}
