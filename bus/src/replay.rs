//! Publishing a part of the log once more, for one integrator, on subjects of their own. The main stream is not touched.

use std::num::NonZeroU32;

use governor::{Quota, RateLimiter};
use store::Store;
use store::read::Filter;

use crate::{Bus, BusError, envelope};

/// Events read and flushed at a time.
const PAGE: i64 = 500;

/// What to publish where.
pub struct Replay {
    /// From this position on.
    pub from: i64,
    /// What else must hold; `to` is the last position.
    pub filter: Filter,
    /// What the subjects begin with, instead of the installation's prefix: `<prefix>.events.<tenant>.<aggregate>.<event>`.
    pub prefix: String,
    /// So many messages per second at most.
    pub rate: Option<NonZeroU32>,
}

/// Does it, by core publish: whoever listens gets the messages, a stream that covers the subjects stores them. Answers how many were published; `progress` hears positions.
pub async fn replay(store: &Store, bus: &Bus, wanted: &Replay, progress: &(dyn Fn(i64) + Send + Sync)) -> Result<u64, BusError> {
    let token = |token: &str| !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'*' | b'>'));
    if !wanted.prefix.split('.').all(token) {
        return Err(BusError("a subject prefix is made of words joined by dots, without * and >".into()));
    }
    let events = format!("{}.events", wanted.prefix);
    let own = format!("{}.events", bus.prefix);
    if events == own || events.starts_with(&format!("{own}.")) {
        return Err(BusError(format!("{} would go into the main stream: choose another prefix", wanted.prefix)));
    }
    let limiter = wanted.rate.map(|rate| RateLimiter::direct(Quota::per_second(rate)));
    let (mut after, mut published) = (wanted.from - 1, 0);
    loop {
        let page = store.list(after, PAGE, &wanted.filter).await.map_err(BusError::from_error)?;
        let Some(last) = page.last() else { return Ok(published) };
        after = last.position;
        for event in &page {
            if let Some(limiter) = &limiter {
                limiter.until_ready().await;
            }
            let (headers, body) = envelope::encode(bus, event);
            let subject = format!("{events}.{}.{}", event.tenant_id, event.event_type);
            bus.client().publish_with_headers(subject, headers, body).await.map_err(BusError::from_error)?;
            published += 1;
        }
        bus.client().flush().await.map_err(BusError::from_error)?;
        progress(after);
    }
}
