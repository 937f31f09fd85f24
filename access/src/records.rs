//! Noting what was tried where no other event tells. What anybody can cause without end is sampled, so that nobody fills the log.

use std::num::NonZeroU32;
use std::sync::Arc;

use commands::Request;
use domain::TenantId;
use domain::identity::access_record::{AccessRecord, NoteAccess, stream};
use governor::{DefaultKeyedRateLimiter, Quota};

use crate::{Access, AccessError};

/// How many records of a tenant are made per second, where they are sampled …
const RATE: NonZeroU32 = NonZeroU32::new(2).expect("not zero");
/// … and at once, after a quiet time.
const BURST: NonZeroU32 = NonZeroU32::new(60).expect("not zero");

/// Decides which records are made.
#[derive(Clone)]
pub(crate) struct Records(Arc<DefaultKeyedRateLimiter<TenantId>>);

impl Default for Records {
    fn default() -> Self {
        Self(Arc::new(DefaultKeyedRateLimiter::keyed(Quota::per_second(RATE).allow_burst(BURST))))
    }
}

impl Access {
    /// Notes what was tried, unless too much was just now.
    pub async fn note(&self, tenant: TenantId, note: NoteAccess) -> Result<(), AccessError> {
        if self.inner.records.0.check_key(&tenant).is_err() {
            metrics::counter!("tenure_access_records_skipped_total").increment(1);
            return Ok(());
        }
        self.note_always(tenant, note).await
    }

    /// Notes what was tried.
    pub async fn note_always(&self, tenant: TenantId, note: NoteAccess) -> Result<(), AccessError> {
        let store = self.store();
        let stream = stream(tenant, store.clock().now());
        self.inner.executor.execute(Request::<AccessRecord>::new(stream, note, Self::system(), store.fresh_id())).await?;
        Ok(())
    }
}
