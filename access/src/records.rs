//! Noting what was tried where no other event tells. What anybody can cause without end is sampled, so that nobody fills the log.

use std::num::NonZeroU32;

use commands::Request;
use domain::identity::access_record::{AccessRecord, NoteAccess};
use domain::{StreamId, TenantId};
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota};

use crate::{Access, AccessError};

/// How many records of a tenant are made per second, where they are sampled …
const RATE: NonZeroU32 = NonZeroU32::new(2).expect("not zero");
/// … and at once, after a quiet time.
const BURST: NonZeroU32 = NonZeroU32::new(60).expect("not zero");

/// Of all tenants together.
const ALL: NonZeroU32 = NonZeroU32::new(20).expect("not zero");
/// At once, after a quiet time.
const ALL_BURST: NonZeroU32 = NonZeroU32::new(500).expect("not zero");

/// Decides which records are made. What strangers cause takes nothing from what is recorded of those who are known.
#[derive(Default)]
pub(crate) struct Records {
    strangers: Limits,
    known: Limits,
}

struct Limits {
    of_tenant: DefaultKeyedRateLimiter<TenantId>,
    of_all: DefaultDirectRateLimiter,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            of_tenant: DefaultKeyedRateLimiter::keyed(Quota::per_second(RATE).allow_burst(BURST)),
            of_all: DefaultDirectRateLimiter::direct(Quota::per_second(ALL).allow_burst(ALL_BURST)),
        }
    }
}

impl Records {
    fn wanted(&self, tenant: TenantId, known: bool) -> bool {
        let limits = if known { &self.known } else { &self.strangers };
        limits.of_tenant.check_key(&tenant).is_ok() && limits.of_all.check().is_ok()
    }

    /// Forgets tenants of which nothing was heard for a while.
    pub(crate) fn forget_quiet(&self) {
        [&self.strangers, &self.known].iter().for_each(|limits| limits.of_tenant.retain_recent());
    }
}

impl Access {
    /// Notes what was tried, unless too much was just now.
    pub async fn note(&self, tenant: TenantId, note: NoteAccess) -> Result<(), AccessError> {
        if !self.inner.records.wanted(tenant, note.actor.is_some()) {
            metrics::counter!("tenure_access_records_skipped_total").increment(1);
            return Ok(());
        }
        self.note_always(tenant, note).await
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
