//! The share of one network address: half of the requests that are worked on at a time are left to others.

use std::collections::HashMap;
use std::sync::Arc;

use access::source::Source;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use parking_lot::Mutex;

use crate::client_address::ClientAddress;
use crate::problem::{Problem, code};

/// One address may have at least so many requests, even where few are worked on at a time.
const LEAST: usize = 64;

/// The requests of each address that are worked on.
#[derive(Clone)]
pub(crate) struct Shares {
    most: usize,
    taken: Arc<Mutex<HashMap<Source, usize>>>,
}

impl Shares {
    /// Of so many requests at a time.
    pub(crate) fn of(requests: usize) -> Self {
        Self { most: (requests / 2).max(LEAST), taken: Arc::default() }
    }

    fn take(&self, source: Source) -> Option<Place> {
        let mut taken = self.taken.lock();
        let count = taken.entry(source).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Place(self.clone(), source))
    }
}

/// A place of an address, until it is dropped.
struct Place(Shares, Source);

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.0.taken.lock();
        if let Some(count) = taken.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.1);
            }
        }
    }
}

/// Refuses the requests of an address that has its share already.
pub(crate) async fn share(State(shares): State<Shares>, address: ClientAddress, request: Request, next: Next) -> Response {
    // A request that came over no connection has no address.
    if address.0.is_unspecified() {
        return next.run(request).await;
    }
    match shares.take(address.source()) {
        Some(_place) => next.run(request).await,
        None => Problem::new(code::OVERLOADED, "too many requests of this address are being worked on; try again shortly").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_takes_half_of_the_requests_at_most_and_what_has_ended_is_given_back() {
        let source = |text: &str| Source::of(text.parse().unwrap());
        let shares = Shares::of(200);
        let mut places: Vec<_> = (0..100).map(|_| shares.take(source("192.0.2.1")).expect("a place of the share")).collect();
        assert!(shares.take(source("192.0.2.1")).is_none(), "half is taken");
        let others: Vec<_> = (0..100).map(|_| shares.take(source("192.0.2.2")).expect("another address has its own share")).collect();
        places.pop();
        places.push(shares.take(source("192.0.2.1")).expect("the place that ended"));
        drop((places, others));
        assert!(shares.taken.lock().is_empty(), "an address that asks nothing costs nothing");
    }
}
