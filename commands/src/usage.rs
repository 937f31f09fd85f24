//! Recording what was used: items of which each counts once, and of which those are refused that do not fit at their place in the log.
//!
//! The items of a request are appended together, as long as all of them fit and are new; the counters decide under the log's lock, so nothing is read before. Where one is
//! known already it gets its first answer. Where they do not all fit, how far the counter has come is read, those that fit are chosen in their order, and they are appended
//! only if the counter has not moved since: what is refused was refused at that place.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use domain::billing::meter::{Exceeded, Meter};
use domain::billing::period::Month;
use domain::billing::usage::{self, RecordUsage, Usage, UsageItem};
use domain::{Actor, Precondition, StreamId, TenantId};
use sha2::{Digest as _, Sha256};
use store::{Key, Store};

use crate::error::CommandError;
use crate::execute::{Executor, Request};
use crate::{lookup, quota};

/// How long items are chosen again because others were quicker.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was used, and by whom it is told.
#[derive(Clone, Debug)]
pub struct Recording {
    /// Whose.
    pub tenant: TenantId,
    /// Of which meter.
    pub meter: Meter,
    /// What.
    pub items: Vec<UsageItem>,
    /// Who says so.
    pub actor: Actor,
    /// W3C trace context.
    pub traceparent: Option<String>,
}

/// An item that was recorded, now or before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Where in the log.
    pub position: i64,
    /// Whether that was before.
    pub replayed: bool,
}

/// What came of one item.
pub type Answer = Result<Recorded, CommandError>;

/// An item's idempotency key.
fn key(tenant: TenantId, meter: Meter, item: &UsageItem) -> Key {
    let at = item.at.map(|at| at.time().timestamp_micros().to_string()).unwrap_or_default();
    let fingerprint = Sha256::new().chain_update(item.quantity.to_string()).chain_update([0]).chain_update(at).finalize().into();
    Key { tenant, scope: format!("usage:{meter}"), key: item.id.as_str().to_owned(), fingerprint }
}

impl Executor {
    /// Records one item.
    pub async fn record_one(&self, recording: Recording) -> Answer {
        let [item] = recording.items.as_slice() else { return Err(CommandError::Internal("one item".into())) };
        let keys = vec![key(recording.tenant, recording.meter, item)];
        self.append_usage(&recording, recording.items.clone(), keys, vec![], &mut BTreeSet::new()).await
    }

    /// Records items, each for itself, in their order.
    pub async fn record_each(&self, recording: Recording) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(recording.items.len());
        // What is freed can make room for what follows, and not the other way round.
        for run in recording.items.chunk_by(|a, b| (a.quantity < 0) == (b.quantity < 0)) {
            if run[0].quantity < 0 {
                for item in run {
                    let Recording { tenant, meter, items: _, actor, traceparent } = &recording;
                    let (items, actor, traceparent) = (vec![item.clone()], actor.clone(), traceparent.clone());
                    answers.push(self.record_one(Recording { tenant: *tenant, meter: *meter, items, actor, traceparent }).await);
                }
            } else {
                answers.extend(self.record_run(&recording, run).await);
            }
        }
        answers
    }

    /// Appends items, all or nothing. A month that is found closed although its time has not come is left alone from then on.
    async fn append_usage(
        &self,
        recording: &Recording,
        items: Vec<UsageItem>,
        keys: Vec<Key>,
        preconditions: Vec<Precondition>,
        closed: &mut BTreeSet<Month>,
    ) -> Answer {
        let store = self.store();
        loop {
            let record = RecordUsage { meter: recording.meter, items: items.clone(), closed: closed.clone() };
            let stream = StreamId::new(recording.tenant, store.fresh_id());
            let mut request = Request::<Usage>::new(stream, record, recording.actor.clone(), store.fresh_id());
            request.begins = true;
            request.keys.clone_from(&keys);
            request.preconditions.clone_from(&preconditions);
            request.traceparent.clone_from(&recording.traceparent);
            match self.execute(request).await {
                Ok(outcome) => return Ok(Recorded { position: outcome.position, replayed: outcome.replayed }),
                Err(CommandError::PeriodClosed(month)) if !closed.insert(month) => return Err(CommandError::Contended),
                // What fitted there may not fit elsewhere: where it was chosen, it is chosen again.
                Err(CommandError::PeriodClosed(_)) if preconditions.is_empty() => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Records items none of which frees anything.
    async fn record_run(&self, recording: &Recording, items: &[UsageItem]) -> Vec<Answer> {
        let store = self.store();
        let keys: Vec<Key> = items.iter().map(|item| key(recording.tenant, recording.meter, item)).collect();
        let mut answers: Vec<Option<Answer>> = (0..items.len()).map(|_| None).collect();
        let mut first: HashMap<&str, usize> = HashMap::new();
        let mut again = Vec::new();
        for (n, item) in items.iter().enumerate() {
            if let Err(error) = usage::sensible(recording.meter, item, store.clock().now()) {
                answers[n] = Some(Err(CommandError::rule(&error)));
            } else if let Some(before) = first.insert(item.id.as_str(), n) {
                // The first of them is the one that counts.
                first.insert(item.id.as_str(), before);
                again.push((n, before));
            }
        }
        let skipped: HashSet<usize> = again.iter().map(|(n, _)| *n).collect();
        let mut closed = BTreeSet::new();
        let open =
            |answers: &[Option<Answer>]| (0..items.len()).filter(|n| answers[*n].is_none() && !skipped.contains(n)).collect::<Vec<_>>();
        let deadline = Instant::now() + PATIENCE;
        let mut turn = None;
        let mut fitting: Option<Fitting> = None;
        while let wanted = open(&answers)
            && !wanted.is_empty()
        {
            let (chosen, preconditions) = match &fitting {
                None => (wanted.clone(), vec![]),
                Some(fitting) => (fitting.chosen.clone(), fitting.preconditions.clone()),
            };
            let of =
                |chosen: &[usize]| (chosen.iter().map(|n| items[*n].clone()).collect(), chosen.iter().map(|n| keys[*n].clone()).collect());
            let appended = if chosen.is_empty() {
                Ok(Recorded { position: 0, replayed: false })
            } else {
                let (items, keys) = of(&chosen);
                self.append_usage(recording, items, keys, preconditions, &mut closed).await
            };
            match (appended, fitting.take()) {
                (Ok(recorded), fitted) => {
                    chosen.iter().for_each(|n| answers[*n] = Some(Ok(recorded)));
                    for (n, exceeded) in fitted.into_iter().flat_map(|fitted| fitted.refused) {
                        answers[n] = Some(Err(CommandError::QuotaExceeded(exceeded)));
                    }
                }
                (Err(CommandError::KeysKnown), _) => match self.first_answers(&keys, &wanted).await {
                    Ok(known) => known.into_iter().for_each(|(n, answer)| answers[n] = Some(answer)),
                    Err(error) => return refuse_all(answers, &error),
                },
                (Err(CommandError::QuotaExceeded(exceeded)), None) if wanted.len() == 1 => {
                    answers[wanted[0]] = Some(Err(CommandError::QuotaExceeded(exceeded)));
                }
                // Others of this process who are as near to the limit choose one after the other.
                (Err(error @ (CommandError::QuotaExceeded(_) | CommandError::Moved | CommandError::PeriodClosed(_))), _) => {
                    if Instant::now() > deadline {
                        return refuse_all(answers, &CommandError::Contended);
                    }
                    if turn.is_none() && matches!(error, CommandError::QuotaExceeded(_)) {
                        turn = Some(self.room(recording.tenant, recording.meter).lock().await);
                    }
                    match Fitting::choose(store, recording, items, &wanted, &mut closed).await {
                        Ok(chosen) => fitting = Some(chosen),
                        Err(error) => return refuse_all(answers, &error),
                    }
                }
                (Err(error), _) => return refuse_all(answers, &error),
            }
        }
        drop(turn);
        // Who asks again is not told that it is too late, or too much, for what was recorded in time.
        let refused: Vec<usize> = (0..items.len()).filter(|n| matches!(answers[*n], Some(Err(_)))).collect();
        match self.first_answers(&keys, &refused).await {
            Ok(known) => known.into_iter().for_each(|(n, answer)| answers[n] = Some(answer)),
            Err(error) => return refuse_all(answers, &error),
        }
        for (n, before) in again {
            let same = keys[n].fingerprint == keys[before].fingerprint;
            answers[n] = Some(match &answers[before] {
                _ if !same => Err(CommandError::KeyReused),
                Some(Ok(recorded)) => Ok(Recorded { replayed: true, ..*recorded }),
                Some(Err(error)) => Err(error.clone()),
                None => Err(CommandError::Contended),
            });
        }
        answers.into_iter().map(|answer| answer.unwrap_or(Err(CommandError::Contended))).collect()
    }

    /// The first answers to those of the items that are known.
    async fn first_answers(&self, keys: &[Key], of: &[usize]) -> Result<Vec<(usize, Answer)>, CommandError> {
        if of.is_empty() {
            return Ok(vec![]);
        }
        let wanted: Vec<Key> = of.iter().map(|n| keys[*n].clone()).collect();
        let known = self.store().answered(&wanted).await?;
        let answer = |known| match known {
            Ok(store::Appended { position, .. }) => Ok(Recorded { position, replayed: true }),
            Err(_) => Err(CommandError::KeyReused),
        };
        Ok(of.iter().zip(known).filter_map(|(n, known)| known.map(|known| (*n, answer(known)))).collect())
    }
}

/// Everything that was not answered is refused.
fn refuse_all(answers: Vec<Option<Answer>>, error: &CommandError) -> Vec<Answer> {
    answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(error.clone()))).collect()
}

/// Those items that fit under a limit, chosen in their order, and what has to be so for that.
struct Fitting {
    chosen: Vec<usize>,
    refused: Vec<(usize, Exceeded)>,
    preconditions: Vec<Precondition>,
}

impl Fitting {
    async fn choose(
        store: &Store,
        recording: &Recording,
        items: &[UsageItem],
        of: &[usize],
        closed: &mut BTreeSet<Month>,
    ) -> Result<Self, CommandError> {
        let (tenant, meter, now) = (recording.tenant, recording.meter, store.clock().now());
        let zone = lookup::time_zone(store, tenant).await?.unwrap_or_default();
        let mut months: HashMap<Month, (i64, Option<i64>)> = HashMap::new();
        let mut fitting = Self { chosen: vec![], refused: vec![], preconditions: vec![] };
        for n in of {
            let at: DateTime<Utc> = items[*n].at.map_or(now, Into::into);
            let mut period = usage::place(meter, at, now, zone, |month| closed.contains(&month)).period;
            if !months.contains_key(&period) && quota::is_closed(store, tenant, meter, period).await? {
                closed.insert(period);
                period = usage::place(meter, at, now, zone, |month| closed.contains(&month)).period;
            }
            if let Entry::Vacant(month) = months.entry(period) {
                let standing = quota::standing(store, tenant, meter, period).await?;
                let value = standing.used + standing.held;
                let exactly =
                    Precondition::CounterWithin { counter: meter.counter_in(period), at_least: Some(value), at_most: Some(value) };
                fitting.preconditions.push(exactly);
                month.insert((value, standing.limit));
            }
            let Some((used, limit)) = months.get_mut(&period) else { continue };
            match *limit {
                Some(limit) if *used + items[*n].quantity > limit => {
                    let resets_at = meter.is_flow().then(|| period.period(zone).end);
                    fitting.refused.push((*n, Exceeded { meter, limit, used: *used, remaining: (limit - *used).max(0), resets_at }));
                }
                Some(_) | None => {
                    *used += items[*n].quantity;
                    fitting.chosen.push(*n);
                }
            }
        }
        Ok(fitting)
    }
}
