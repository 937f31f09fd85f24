//! A member that goes on by itself until it can be with the others again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use store::{Head, RawEvent};
use tokio_util::sync::CancellationToken;

use crate::group::{Checkpoints, Member, NEAR, Pace, Shared, retry};
use crate::subscription::{Handler, HandlerError};

pub(super) struct Alone<C> {
    shared: Arc<Shared<C>>,
    member: Arc<dyn Member>,
    /// It does not join before this: it might fail in the same way again.
    until: i64,
    /// Nor before this.
    not_before: Instant,
    /// How often the next page has failed for a reason that lies in what it says.
    failed: u32,
    generation: i32,
    /// Whether the log has confirmed its checkpoint.
    confirmed: bool,
    /// Ends the runtime that drives it.
    done: CancellationToken,
    joins: bool,
}

impl<C: Checkpoints> Alone<C> {
    pub(super) fn new(shared: Arc<Shared<C>>, member: Arc<dyn Member>, until: i64, not_before: Instant) -> Self {
        let done = shared.alone.child_token();
        Self { shared, member, until, not_before, failed: 0, generation: 0, confirmed: false, done, joins: false }
    }

    /// Cancelled when it is alone no longer.
    pub(super) fn until_it_joins(&self) -> CancellationToken {
        self.done.clone()
    }

    /// Whether the group is not far.
    fn may_join(&self, position: i64) -> bool {
        let group = self.shared.position.load(Ordering::Acquire);
        self.confirmed
            && self.failed == 0
            && Instant::now() >= self.not_before
            && position >= self.until
            && (group < 0 || (position - group).abs() <= NEAR)
    }

    fn end(&mut self, joins: bool) {
        self.joins = joins;
        self.done.cancel();
    }
}

impl<C: Checkpoints> Handler for Alone<C> {
    fn name(&self) -> &'static str {
        self.member.name()
    }

    async fn begin(&mut self) -> Result<Option<Head>, HandlerError> {
        let name = self.member.name();
        if !self.shared.places.lock().held.contains_key(name) {
            // Another process has it.
            self.end(false);
            return Ok(None);
        }
        let stands = self.shared.stands(&[name]).await?;
        let Some(stand) = stands.get(name) else { return Ok(None) };
        if self.may_join(stand.head.position) {
            self.end(true);
            return Ok(None);
        }
        self.generation = stand.generation;
        self.member.moved(stand.head.position);
        Ok(Some(stand.head))
    }

    async fn note(&mut self, fault: Option<&str>) -> Result<(), HandlerError> {
        self.shared.checkpoints.note(&[self.member.name()], fault).await.map_err(retry)?;
        self.confirmed = fault.is_none();
        Ok(())
    }

    async fn handle(&mut self, events: &[Arc<RawEvent>]) -> Result<(), HandlerError> {
        let (Some(first), Some(last)) = (events.first(), events.last()) else { return Ok(()) };
        let name = self.member.name();
        let Some(placed) = self.shared.placed(name, self.generation) else {
            return Err(HandlerError::Retry("another process has it".into()));
        };
        let mut handled =
            self.shared.page(vec![placed], events, Pace::Alone { failed: self.failed }).await.inspect_err(|_| self.member.forget())?;
        if let Some((_, error)) = handled.left.pop() {
            self.member.forget();
            let error = error
                .unwrap_or_else(|| HandlerError::Retry(format!("{name} is no longer at {} in this process's hands", first.position - 1)));
            self.failed += u32::from(matches!(error, HandlerError::Poison(_)));
            return Err(error);
        }
        self.failed = 0;
        if self.may_join(last.position) {
            self.end(true);
        }
        Ok(())
    }

    async fn release(&mut self) {
        let name = self.member.name();
        if !self.done.is_cancelled() {
            let _ = self.shared.share.give_up(self.shared.checkpoints.pool(), name).await;
            self.shared.places.lock().held.remove(name);
            return;
        }
        let mut places = self.shared.places.lock();
        places.alone.remove(name);
        if self.joins {
            places.joining.insert(name);
        } else {
            self.member.forget();
        }
    }
}
