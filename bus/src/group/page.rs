//! One page of events, for all members that have the same checkpoint.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::join_all;
use store::{Head, RawEvent};

use crate::group::{Advanced, CheckpointMove, Checkpoints, Member, PATIENCE, Shared, Wait};
use crate::subscription::{HandlerError, retry};

/// A member whose lease is held, and its checkpoint.
#[derive(Clone)]
pub(super) struct Placed {
    pub(super) member: Arc<dyn Member>,
    pub(super) to_move: CheckpointMove,
}

/// Result of a page.
pub(super) struct Outcome {
    pub(super) moved: Vec<Placed>,
    /// Members whose checkpoint has not moved, with the error if they failed.
    pub(super) left: Vec<(Placed, Option<HandlerError>)>,
}

/// Mode in which a page is processed.
#[derive(Clone, Copy)]
pub(super) enum Mode {
    /// With other members, who must not wait for this one.
    Together,
    /// Alone, without a time limit, after a number of failed attempts.
    Alone { failed: u32 },
}

impl Mode {
    fn wait(self) -> Wait {
        match self {
            Self::Together => Wait::No(PATIENCE),
            Self::Alone { .. } => Wait::Forever,
        }
    }

    fn failed(self) -> u32 {
        match self {
            Self::Together => 0,
            Self::Alone { failed } => failed,
        }
    }

    /// Awaits the preparation of a member, for [`PATIENCE`] at most if other members wait.
    async fn prepare<T>(self, work: impl Future<Output = Result<T, HandlerError>>) -> Result<T, HandlerError> {
        match self {
            Self::Together => tokio::time::timeout(PATIENCE, guarded(work))
                .await
                .unwrap_or_else(|_| Err(HandlerError::Retry("it took longer than 5 s".into()))),
            Self::Alone { .. } => guarded(work).await,
        }
    }
}

/// Turns a panic of a member into an error.
async fn guarded<T>(work: impl Future<Output = Result<T, HandlerError>>) -> Result<T, HandlerError> {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_| Err(HandlerError::Retry("it panicked; see the process log".into())))
}

impl<C: Checkpoints> Shared<C> {
    /// Processes a page in one transaction for all members that can. Their checkpoints are right before it.
    pub(super) async fn page(&self, mut members: Vec<Placed>, events: &[Arc<RawEvent>], mode: Mode) -> Result<Outcome, HandlerError> {
        let (Some(first), Some(last)) = (events.first(), events.last()) else { return Ok(Outcome { moved: members, left: vec![] }) };
        let (from, to) = (first.position - 1, Head { position: last.position, log_hash: last.log_hash });
        let mut left = Vec::new();
        let concerned = members.iter().filter(|placed| events.iter().any(|event| placed.member.concerns(event)));
        let prepared = concerned.map(|placed| async move {
            let prepared = mode.prepare(placed.member.clone().prepare(events, mode.failed())).await;
            (placed.clone(), prepared)
        });
        let mut works = Vec::new();
        for (placed, prepared) in join_all(prepared).await {
            match prepared {
                Ok(work) => works.push((placed.to_move.name, work)),
                Err(error) => {
                    members.retain(|member| member.to_move.name != placed.to_move.name);
                    left.push((placed, Some(error)));
                }
            }
        }
        'again: loop {
            if members.is_empty() {
                return Ok(Outcome { moved: members, left });
            }
            let mut tx = store::database::begin(self.checkpoints.pool()).await.map_err(retry)?;
            let wanted: Vec<CheckpointMove> = members.iter().map(|placed| placed.to_move).collect();
            let advanced: BTreeMap<String, Advanced> =
                self.checkpoints.advance(&mut tx, &wanted, from, to, mode.wait()).await.map_err(retry)?.into_iter().collect();
            let (moved, stayed): (Vec<_>, Vec<_>) = members.into_iter().partition(|placed| advanced.contains_key(placed.to_move.name));
            left.extend(stayed.into_iter().map(|placed| (placed, None)));
            members = moved;
            for (name, work) in &mut works {
                let Some(at) = advanced.get(*name) else { continue };
                if let Err(error) = guarded(work.write(&mut tx, at)).await {
                    // The next attempt skips locked checkpoints, so the locks must be released first.
                    tx.rollback().await.map_err(retry)?;
                    let failed = *name;
                    works.retain(|(name, _)| *name != failed);
                    if let Some(place) = members.iter().position(|placed| placed.to_move.name == failed) {
                        left.push((members.remove(place), Some(error)));
                    }
                    continue 'again;
                }
            }
            tx.commit().await.map_err(retry)?;
            for (name, work) in works {
                if advanced.contains_key(name) {
                    work.committed();
                }
            }
            for placed in &members {
                placed.member.moved(to.position);
            }
            return Ok(Outcome { moved: members, left });
        }
    }
}
