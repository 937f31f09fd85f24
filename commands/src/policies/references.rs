//! Whatever names users lets go of those who are gone: nobody is given work who cannot do it, and nothing leads to somebody who does not exist.
//!
//! Which events name a user, and the command that lets go, the aggregates say: [`domain::Aggregate::NAMES_USERS`], [`domain::Aggregate::releases`].

use std::sync::{Arc, Mutex, PoisonError};

use bus::subscription::HandlerError;
use cqrs_es::Aggregate as _;
use domain::identity::user::User;
use domain::{Aggregate, StreamId, TenantId, UserId};
use store::{RawEvent, Store};
use uuid::Uuid;

use crate::lookup;
use crate::policy::{Answer, Reaction, retry, unreadable};

/// How many streams let go of one user at most, the newest first.
const MOST: usize = 10_000;

/// A stream with its aggregate type.
type Naming = (String, StreamId);
/// The streams that an event, by its id, is answered for.
type Listed = (Uuid, Arc<[Naming]>);

/// The policy.
#[derive(Default)]
pub struct References {
    /// Those of the event that is being answered: they are looked for once, and answered one by one. Events of several tenants are answered at a time.
    listed: Mutex<Vec<Listed>>,
}

/// How many events are remembered at a time.
const REMEMBERED: usize = 64;

impl References {
    async fn naming(&self, store: &Store, event: &RawEvent, user: UserId) -> Result<Arc<[Naming]>, HandlerError> {
        let known = |listed: &Vec<Listed>| listed.iter().find(|(id, _)| *id == event.event_id).map(|(_, naming)| naming.clone());
        if let Some(naming) = known(&self.listed.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(naming);
        }
        macro_rules! all {
            ($($aggregate:ty,)*) => { [$(<$aggregate as Aggregate>::NAMES_USERS),*].concat() };
        }
        let events = domain::for_each_aggregate!(all);
        let limit = i64::try_from(MOST).unwrap_or(i64::MAX);
        let named = store.streams_naming(TenantId(event.tenant_id), user, &events, event.position, limit).await.map_err(retry)?;
        let naming: Arc<[Naming]> = named.into();
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        if listed.len() >= REMEMBERED {
            listed.remove(0);
        }
        listed.push((event.event_id, naming.clone()));
        Ok(naming)
    }
}

impl Reaction for References {
    const NAME: &'static str = "references";
    const TYPES: &'static [&'static str] = &[User::TYPE];
    const STEPS: usize = MOST;

    /// Only what ends what somebody can do.
    fn worth(events: Vec<Arc<RawEvent>>) -> Vec<Arc<RawEvent>> {
        events.into_iter().filter(|event| matches!(event.event_type.as_str(), "user.deleted" | "user.deactivated")).collect()
    }

    async fn step(&self, store: &Store, event: &RawEvent, n: usize) -> Result<Option<Answer>, HandlerError> {
        let stream: StreamId = event.aggregate_id.parse().map_err(retry)?;
        let user = UserId(stream.id);
        let naming = self.naming(store, event, user).await?;
        let Some((aggregate, stream)) = naming.get(n) else { return Ok(None) };
        let gone = event.event_type == "user.deleted";
        // Deactivated and active again since: what they have been given meanwhile stays theirs.
        let (found, _) = lookup::user(store, TenantId(event.tenant_id), user).await.map_err(retry)?;
        if !gone && found.is_some_and(|(_, person)| person.active) {
            return Ok(None);
        }
        macro_rules! one {
            ($($of:ty,)*) => { $(
                if aggregate == <$of as cqrs_es::Aggregate>::TYPE {
                    let loaded = store.load::<$of>(*stream).await.map_err(unreadable)?;
                    return Ok(loaded.state.releases(user, gone).map(|command| Answer::new::<$of>(*stream, command)));
                }
            )* };
        }
        domain::for_each_aggregate!(one);
        Ok(None)
    }
}
