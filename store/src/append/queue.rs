//! What waits for the log: one line per tenant, served in turn, so that a busy tenant delays itself and not the others.

use std::collections::{HashMap, VecDeque};

use domain::{Effect, TenantId};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{AppendError, Prepared};

/// The most rows of events and keys that one transaction writes.
pub(super) const BATCH_ROWS: usize = 4096;
/// The most payload that one transaction writes, in bytes.
pub(super) const BATCH_BYTES: usize = 4 * 1024 * 1024;

pub(crate) struct Queue {
    lines: Mutex<Lines>,
    wake: Notify,
    capacity: usize,
    batch: usize,
}

#[derive(Default)]
struct Lines {
    by_tenant: HashMap<TenantId, VecDeque<Prepared>>,
    /// Tenants that have something waiting, next one first.
    turns: VecDeque<TenantId>,
    waiting: usize,
    closed: bool,
}

impl Queue {
    pub(crate) fn new(capacity: usize, batch: usize) -> Self {
        Self { lines: Mutex::default(), wake: Notify::new(), capacity, batch }
    }

    /// Joins the line of its tenant. No tenant may take the last quarter of the places, so that there is room when another one comes.
    pub(crate) fn push(&self, request: Prepared) -> Result<(), AppendError> {
        {
            let mut lines = self.lines.lock();
            if lines.closed {
                return Err(AppendError::Unavailable);
            }
            let own = lines.by_tenant.get(&request.tenant).map_or(0, VecDeque::len);
            if lines.waiting >= self.capacity || own >= self.capacity - self.capacity / 4 {
                return Err(AppendError::Overloaded);
            }
            if own == 0 {
                lines.turns.push_back(request.tenant);
            }
            lines.waiting += 1;
            lines.by_tenant.entry(request.tenant).or_default().push_back(request);
        }
        self.wake.notify_one();
        Ok(())
    }

    /// Everything that waits, up to the size of a batch, one request per tenant and turn. Waits when there is nothing; `None` when there will never be any more.
    pub(crate) async fn take(&self) -> Option<Vec<Prepared>> {
        loop {
            {
                let mut lines = self.lines.lock();
                let batch = lines.take(self.batch);
                if !batch.is_empty() {
                    return Some(batch);
                }
                if lines.closed {
                    return None;
                }
            }
            self.wake.notified().await;
        }
    }

    /// No more requests; those that wait are still served.
    pub(crate) fn close(&self) {
        self.lines.lock().closed = true;
        self.wake.notify_one();
    }

    /// Nobody will serve those that wait: they hear that at once.
    pub(crate) fn abandon(&self) {
        *self.lines.lock() = Lines { closed: true, ..Lines::default() };
    }

    /// The most requests of a batch.
    pub(super) fn batch(&self) -> usize {
        self.batch
    }

    pub(crate) fn len(&self) -> usize {
        self.lines.lock().waiting
    }
}

impl Lines {
    fn take(&mut self, most: usize) -> Vec<Prepared> {
        let mut batch: Vec<Prepared> = Vec::new();
        let (mut rows, mut bytes) = (0, 0);
        while batch.len() < most && rows < BATCH_ROWS && bytes < BATCH_BYTES {
            let Some(tenant) = self.turns.pop_front() else { break };
            let Some(line) = self.by_tenant.get_mut(&tenant) else { continue };
            let Some(request) = line.pop_front() else { continue };
            // The end of a tenant touches rows that nobody named, so it is decided alone.
            let alone = request.effects().any(|e| matches!(e, Effect::EndTenant));
            if alone && !batch.is_empty() {
                line.push_front(request);
                self.turns.push_front(tenant);
                break;
            }
            if line.is_empty() {
                self.by_tenant.remove(&tenant);
            } else {
                self.turns.push_back(tenant);
            }
            self.waiting -= 1;
            rows += request.rows();
            bytes += request.bytes();
            batch.push(request);
            if alone {
                break;
            }
        }
        batch
    }
}
