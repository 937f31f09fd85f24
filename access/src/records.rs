//! Noting what was tried where no other event tells. Anybody can cause such notes without end, so they are summed up: what a stranger causes becomes one event a minute and
//! network address, what somebody known causes becomes ten events a minute and one that tells how many more there were.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use commands::Request;
use domain::identity::access_record::{AccessRecord, NoteAccess};
use domain::text::Reference;
use domain::{StreamId, TenantId};
use parking_lot::Mutex;

use crate::source::Source;
use crate::{Access, AccessError};

/// For how long notes of one cause are summed up.
pub const MINUTE: TimeDelta = TimeDelta::minutes(1);
/// Notes of somebody known that are recorded one by one in that time.
const ONE_BY_ONE: u32 = 10;
/// Causes that are told apart at a time; all further ones count as one.
const CAUSES: usize = 1000;

/// The cause of a note.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Cause {
    /// A user or a key.
    Known(TenantId, String),
    /// A stranger, by network address.
    Stranger(TenantId, Source),
    /// Whatever else there is when there are too many.
    Rest,
}

struct Window {
    tenant: TenantId,
    source: Option<Source>,
    began: DateTime<Utc>,
    /// Notes that were recorded one by one.
    recorded: u32,
    /// Notes that were not.
    left: u32,
    /// The newest of those.
    last: NoteAccess,
}

/// Something to record now.
struct Due {
    tenant: TenantId,
    source: Option<Source>,
    note: NoteAccess,
}

impl Window {
    /// What was left, as one note; then it begins again.
    fn sum_up(&mut self, now: DateTime<Utc>) -> Due {
        let count = Some(std::mem::take(&mut self.left));
        (self.began, self.recorded) = (now, 1);
        Due { tenant: self.tenant, source: self.source, note: NoteAccess { target: None, code: None, count, ..self.last.clone() } }
    }
}

/// Decides which records are made.
#[derive(Default)]
pub(crate) struct Records(Mutex<HashMap<Cause, Window>>);

impl Records {
    /// What to record, now that there is one more note.
    fn add(&self, tenant: TenantId, note: NoteAccess, source: Source, now: DateTime<Utc>) -> Option<Due> {
        let mut windows = self.0.lock();
        let (cause, source, most) = match &note.actor {
            Some(actor) => (Cause::Known(tenant, actor.as_str().to_owned()), None, ONE_BY_ONE),
            None => (Cause::Stranger(tenant, source), Some(source), 1),
        };
        let room = windows.len() < CAUSES || windows.contains_key(&cause);
        let (cause, tenant, source, most) = if room { (cause, tenant, source, most) } else { (Cause::Rest, TenantId::SYSTEM, None, 1) };
        let Some(window) = windows.get_mut(&cause) else {
            windows.insert(cause, Window { tenant, source, began: now, recorded: 1, left: 0, last: note.clone() });
            return Some(Due { tenant, source, note });
        };
        let past = now - window.began >= MINUTE;
        if past && window.left == 0 {
            (window.began, window.recorded) = (now, 0);
        }
        if !past || window.left == 0 {
            if window.recorded < most {
                window.recorded += 1;
                return Some(Due { tenant, source, note });
            }
            window.left += 1;
            window.last = note;
            return None;
        }
        window.left += 1;
        window.last = note;
        Some(window.sum_up(now))
    }

    /// What was left of windows that have passed, or of all.
    fn due(&self, now: DateTime<Utc>, all: bool) -> Vec<Due> {
        let mut windows = self.0.lock();
        windows.retain(|_, window| window.left > 0 || now - window.began < MINUTE);
        let past = windows.values_mut().filter(|window| window.left > 0 && (all || now - window.began >= MINUTE));
        past.map(|window| window.sum_up(now)).collect()
    }
}

impl Access {
    /// Notes what was tried from an address: at once, or with others in one record.
    pub async fn note(&self, tenant: TenantId, note: NoteAccess, source: Source) -> Result<(), AccessError> {
        match self.inner.records.add(tenant, note, source, self.store().clock().now()) {
            Some(due) => self.record(due).await,
            None => Ok(()),
        }
    }

    /// Records what was summed up and whose minute has passed; with `all`, everything.
    pub async fn record_sums(&self, all: bool) -> Result<(), AccessError> {
        for due in self.inner.records.due(self.store().clock().now(), all) {
            self.record(due).await?;
        }
        Ok(())
    }

    async fn record(&self, Due { tenant, source, note }: Due) -> Result<(), AccessError> {
        let source = source.map(|source| {
            // Tells apart the addresses of one day, and cannot be turned back without the master key.
            let day = self.store().clock().now().date_naive().to_string();
            hex::encode(&self.store().mac("source of an access record", &[&source.bytes(), day.as_bytes()])[..8])
        });
        let source = source.and_then(|source| Reference::parse(&source).ok());
        self.note_always(tenant, NoteAccess { source, ..note }).await
    }

    /// Notes what was tried.
    pub async fn note_always(&self, tenant: TenantId, note: NoteAccess) -> Result<(), AccessError> {
        let store = self.store();
        let stream = StreamId::new(tenant, store.fresh_id());
        let request = Request::<AccessRecord> { begins: true, ..Request::new(stream, note, Self::system(), store.fresh_id()) };
        self.inner.executor.execute(request).await?;
        Ok(())
    }
}
