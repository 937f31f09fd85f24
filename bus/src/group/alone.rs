//! A member that runs alone until it can rejoin its group.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use store::{Head, RawEvent};
use tokio_util::sync::CancellationToken;

use crate::group::page::Mode;
use crate::group::{Checkpoints, Member, NEAR, Shared};
use crate::subscription::{Handler, HandlerError, retry};

pub(super) struct Alone<C> {
    shared: Arc<Shared<C>>,
    member: Arc<dyn Member>,
    /// Position that it must pass before it rejoins: the page that it failed at.
    until: i64,
    /// Earliest time at which it rejoins.
    not_before: Instant,
    /// Attempts at the next page that ended with [`HandlerError::Poison`].
    failed: u32,
    generation: i32,
    /// Whether the log has confirmed its checkpoint.
    confirmed: bool,
    /// Ends the task that runs this handler.
    done: CancellationToken,
    joins: bool,
}

impl<C: Checkpoints> Alone<C> {
    pub(super) fn new(shared: Arc<Shared<C>>, member: Arc<dyn Member>, until: i64, not_before: Instant) -> Self {
        let done = shared.alone.child_token();
        Self { shared, member, until, not_before, failed: 0, generation: 0, confirmed: false, done, joins: false }
    }

    /// Cancelled when the member rejoins, or another process has its lease.
    pub(super) fn done(&self) -> CancellationToken {
        self.done.clone()
    }

    /// Whether the member may rejoin.
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
            self.end(false);
            return Ok(None);
        }
        let checkpoints = self.shared.checkpoints(&[name]).await?;
        let Some(checkpoint) = checkpoints.get(name) else { return Ok(None) };
        if self.may_join(checkpoint.head.position) {
            self.end(true);
            return Ok(None);
        }
        self.generation = checkpoint.generation;
        self.member.moved(checkpoint.head.position);
        Ok(Some(checkpoint.head))
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
        let mut outcome =
            self.shared.page(vec![placed], events, Mode::Alone { failed: self.failed }).await.inspect_err(|_| self.member.forget())?;
        if let Some((_, error)) = outcome.left.pop() {
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
