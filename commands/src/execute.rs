//! The executor: load, decide on a copy, append, and again when somebody else was quicker.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cqrs_es::DomainEvent as _;
use cqrs_es::event_sink::EventSink;
use domain::aggregate::{Ask as _, Found};
use domain::billing::meter::{Exceeded, Meter};
use domain::{Actor, Aggregate, Context, DomainError as _, Effect, Issued, Kind, Precondition, Refusal, StreamId, TenantId};
use store::load::{LoadError, Loaded};
use store::{Append, AppendError, Appended, Expected, Key, Metadata, NewEvent, Store, StreamAppend};
use tokio::sync::Mutex;
use tracing::Instrument as _;
use uuid::Uuid;

use crate::authorize::authorize;
use crate::error::CommandError;
use crate::lookup::Looked;
use crate::mails;

/// How long a command is decided again because its stream has moved on meanwhile. Another process that is quicker each time must let this one through at last.
const PATIENCE: Duration = Duration::from_secs(5);
/// Commands for one stream in one process queue behind each other, on one of this many locks; two streams sharing one by chance costs time, nothing else.
const STRIPES: usize = 4096;
/// The same for choices among the people of a tenant.
const TURNS: usize = 64;

/// Executes commands of all aggregates. Cheap to clone.
#[derive(Clone)]
pub struct Executor {
    store: Store,
    stripes: Arc<[Mutex<()>]>,
    /// For choices by load; never taken before a stream's own.
    turns: Arc<[Mutex<()>]>,
    /// For choosing what fits under a limit; only taken before a stream's own.
    rooms: Arc<[Mutex<()>]>,
    /// Mails of each cause that a tenant may have sent in a day.
    mails: u32,
    /// Unpaid amount of upgrades up to which limits rise before the payment.
    unpaid_ceiling: i64,
}

/// A command with everything around it.
#[derive(Clone, Debug)]
pub struct Request<A: Aggregate> {
    /// For which stream.
    pub stream: StreamId,
    /// What is asked.
    pub command: A::Ask,
    /// Whether it is meant to begin the stream. Then it is first decided as if there were none, without looking; the log knows better if there is one.
    pub begins: bool,
    /// By whom.
    pub actor: Actor,
    /// The versions that the caller has seen, if it insists that one of them is the current one.
    pub expected: Option<Vec<i64>>,
    /// Make the request repeatable; see [`Append::keys`].
    pub keys: Vec<Key>,
    /// What else must be so at the moment of the append.
    pub preconditions: Vec<Precondition>,
    /// The command's id.
    pub command_id: Uuid,
    /// What ties together everything that one request sets off; the command's id if nothing else is known.
    pub correlation_id: Option<Uuid>,
    /// The event or command that led to this one.
    pub causation_id: Option<Uuid>,
    /// W3C trace context.
    pub traceparent: Option<String>,
}

impl<A: Aggregate> Request<A> {
    /// A plain request.
    pub fn new(stream: StreamId, command: impl Into<A::Ask>, actor: Actor, command_id: Uuid) -> Self {
        Self {
            stream,
            command: command.into(),
            begins: false,
            actor,
            expected: None,
            keys: vec![],
            preconditions: vec![],
            command_id,
            correlation_id: None,
            causation_id: None,
            traceparent: None,
        }
    }
}

impl<A: Aggregate> Request<A> {
    /// The key that stands for the request as a whole.
    fn only_key(&self) -> Option<&Key> {
        self.keys.first().filter(|_| self.keys.len() == 1)
    }

    /// Whether the refusal is about a counter of which the caller has said where it has to be.
    fn insists_on(&self, refusal: &Refusal) -> bool {
        let Refusal::CounterOutOfBounds { counter: refused, .. } = refusal else { return false };
        let about = |precondition: &Precondition| matches!(precondition, Precondition::CounterWithin { counter, .. } if counter.to_string() == *refused);
        self.preconditions.iter().any(about)
    }
}

/// What came of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The aggregate's id.
    pub id: Uuid,
    /// Its version now.
    pub version: i64,
    /// A position at which all of this can be seen.
    pub position: i64,
    /// Whether the command began the stream.
    pub created: bool,
    /// Whether this is the answer to an earlier request with the same key.
    pub replayed: bool,
}

impl Outcome {
    fn of(appended: &Appended) -> Result<Self, CommandError> {
        let stream: StreamId =
            appended.aggregate_id.parse().map_err(|e: domain::ids::StreamIdError| CommandError::Internal(e.to_string()))?;
        Ok(Self {
            id: stream.id,
            version: appended.version,
            position: appended.position,
            created: appended.created,
            replayed: appended.replayed,
        })
    }
}

/// What one attempt came to.
enum Attempt {
    Done(Result<Outcome, CommandError>),
    /// The state it was decided upon was not the current one.
    Stale,
}

impl Executor {
    /// An executor over `store`.
    pub fn new(store: Store) -> Self {
        let locks = |count| (0..count).map(|_| Mutex::new(())).collect();
        Self { store, stripes: locks(STRIPES), turns: locks(TURNS), rooms: locks(TURNS), mails: mails::DAILY, unpaid_ceiling: 0 }
    }

    /// The same with another ceiling of the mails that people can cause per tenant, cause and day.
    #[must_use]
    pub fn with_daily_mails(self, mails: u32) -> Self {
        Self { mails, ..self }
    }

    /// Sets the unpaid amount of upgrades, in the minor unit of the currency, up to which limits rise before the payment.
    #[must_use]
    pub fn with_unpaid_ceiling(self, unpaid_ceiling: i64) -> Self {
        Self { unpaid_ceiling, ..self }
    }

    pub(crate) fn unpaid_ceiling(&self) -> i64 {
        self.unpaid_ceiling
    }

    pub(crate) fn turn(&self, hash: u64) -> &Mutex<()> {
        &self.turns[usize::try_from(hash % TURNS as u64).unwrap_or(0)]
    }

    /// Where those take turns who choose what fits under a limit.
    pub(crate) fn room(&self, tenant: TenantId, meter: Meter) -> &Mutex<()> {
        let mut hasher = DefaultHasher::new();
        (tenant, meter).hash(&mut hasher);
        &self.rooms[usize::try_from(hasher.finish() % TURNS as u64).unwrap_or(0)]
    }

    /// The store it works on.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Executes one command.
    pub async fn execute<A: Aggregate>(&self, request: Request<A>) -> Result<Outcome, CommandError> {
        let span = tracing::info_span!("command", command.name = %format_args!("{}.{}", A::TYPE, request.command.name()), tenant.id = %request.stream.tenant, aggregate.id = %request.stream.id);
        let started = Instant::now();
        let outcome = self.execute_in_turn(&request).instrument(span).await;
        let result = if outcome.is_ok() { "ok" } else { "refused" };
        metrics::histogram!("tenure_command_seconds", "aggregate" => A::TYPE, "command" => request.command.name(), "result" => result)
            .record(started.elapsed());
        outcome
    }

    /// The events that a command would lead to now, without appending anything.
    pub async fn preview<A: Aggregate>(&self, request: &Request<A>) -> Result<Vec<A::Event>, CommandError> {
        authorize(&request.actor, request.command.permission())?;
        let loaded = self.store.current::<A>(request.stream).await?;
        let looked = self.look_up(request.stream.tenant, loaded.state.looks_up(&request.command)).await?;
        let ctx = self.context(request, looked.found);
        loaded.state.decide(Issued { command: request.command.clone(), ctx }).map_err(|error| CommandError::rule(&error))
    }

    fn context<A: Aggregate>(&self, request: &Request<A>, found: Found) -> Context {
        let (now, fresh_id) = (self.store.clock().now(), self.store.fresh_id());
        Context { now, actor: request.actor.clone(), stream: request.stream, fresh_id, found }
    }

    async fn execute_in_turn<A: Aggregate>(&self, request: &Request<A>) -> Result<Outcome, CommandError> {
        authorize(&request.actor, request.command.permission())?;
        let mut hasher = DefaultHasher::new();
        (A::TYPE, request.stream).hash(&mut hasher);
        let stripe = usize::try_from(hasher.finish() % STRIPES as u64).unwrap_or(0);
        let _turn = self.stripes[stripe].lock().await;
        let deadline = Instant::now() + PATIENCE;
        let mut begins = request.begins;
        while Instant::now() < deadline {
            let loaded = if begins {
                Loaded { state: A::default(), version: 0, since: Instant::now() }
            } else {
                self.store.load::<A>(request.stream).await?
            };
            match self.attempt(request, loaded).await? {
                Attempt::Done(outcome) => return outcome,
                Attempt::Stale => self.store.forget::<A>(request.stream),
            }
            begins = false;
        }
        Err(CommandError::Contended)
    }

    async fn attempt<A: Aggregate>(
        &self,
        request: &Request<A>,
        Loaded { state, version, since }: Loaded<A>,
    ) -> Result<Attempt, CommandError> {
        let looked = self.look_up(request.stream.tenant, state.looks_up(&request.command)).await?;
        let ctx = self.context(request, looked.found.clone());
        let (mut after, sink) = (state.clone(), EventSink::default());
        let decided = after.handle(Issued { command: request.command.clone(), ctx }, &(), &sink).await;
        // Whoever may not see it must not learn its version either.
        let hidden = decided.as_ref().is_err_and(|error| matches!(error.kind(), Kind::NotFound | Kind::Forbidden));
        if !hidden && request.expected.as_ref().is_some_and(|expected| !expected.contains(&version)) {
            return self.conclude(request, version, || Err(CommandError::VersionMismatch { current: version })).await;
        }
        if let Err(error) = decided {
            return self.conclude(request, version, || Err(CommandError::rule(&error))).await;
        }
        let events = sink.collect().await;
        if events.is_empty() && request.keys.is_empty() {
            return self.conclude(request, version, || Ok(())).await;
        }
        self.append(request, Loaded { state, version, since }, after, events, &looked).await
    }

    /// What was concluded from a state alone is final only when the log confirms the version, and when the request's key is not known already.
    async fn conclude<A: Aggregate>(
        &self,
        request: &Request<A>,
        version: i64,
        conclusion: impl FnOnce() -> Result<(), CommandError>,
    ) -> Result<Attempt, CommandError> {
        let now = self.store.verify::<A>(request.stream, request.only_key()).await?;
        if let Some(answered) = now.answered {
            return Ok(Attempt::Done(answered.map_err(CommandError::append::<A>).and_then(|appended| Outcome::of(&appended))));
        }
        if now.version != version {
            return Ok(Attempt::Stale);
        }
        let outcome = Outcome { id: request.stream.id, version, position: now.position, created: false, replayed: false };
        Ok(Attempt::Done(conclusion().map(|()| outcome)))
    }

    /// Whether another stream holds a value that these events claim.
    async fn claims_are_taken(&self, append: &Append) -> Result<bool, CommandError> {
        for stream in &append.streams {
            for effect in stream.events.iter().flat_map(|event| &event.effects) {
                let Effect::TakeClaim { claim, value: Some(value), .. } = effect else { continue };
                let holder = self.store.holder(claim, append.tenant, value).await.map_err(LoadError::from)?;
                if holder.is_some_and(|holder| holder != stream.stream) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    async fn append<A: Aggregate>(
        &self,
        request: &Request<A>,
        loaded: Loaded<A>,
        after: A,
        events: Vec<A::Event>,
        looked: &Looked<'_>,
    ) -> Result<Attempt, CommandError> {
        let Loaded { state: mut before, version, since } = loaded;
        let count = i64::try_from(events.len()).unwrap_or(i64::MAX);
        let mut causes = Vec::new();
        let mut new = Vec::with_capacity(events.len());
        let mut preconditions = request.preconditions.clone();
        preconditions.extend(looked.preconditions.iter().cloned());
        let mut allocates = false;
        for event in events {
            preconditions.extend(A::requires(&event, request.stream));
            causes.extend(before.mails(&event).filter(|cause| mails::counts(cause, &request.actor)));
            let effects = before.effects(&event);
            allocates |= effects.iter().any(|e| matches!(e, Effect::Allocate { .. }));
            new.push(NewEvent {
                event_id: self.store.fresh_id(),
                event_type: event.event_type(),
                event_version: event.event_version(),
                payload: serde_json::to_value(&event).map_err(|e| CommandError::Internal(e.to_string()))?,
                effects,
            });
            before.apply(event);
        }
        if count > 0 && A::gated(&request.command) {
            preconditions.push(Precondition::GateOpen);
        } else if count > 0 && A::needs_tenant(&request.command) {
            preconditions.push(Precondition::TenantLives);
        }
        let append = Append {
            tenant: request.stream.tenant,
            streams: vec![StreamAppend { aggregate: A::TYPE, stream: request.stream, expected: Expected::Exact(version), events: new }],
            preconditions,
            keys: request.keys.clone(),
            metadata: Metadata {
                actor: request.actor.clone(),
                command_id: request.command_id,
                correlation_id: request.correlation_id.unwrap_or(request.command_id),
                causation_id: request.causation_id,
                traceparent: request.traceparent.clone(),
                erases: None,
            },
        };
        // One command sends mails of one cause.
        let mails = i32::try_from(causes.len()).unwrap_or(i32::MAX);
        // What the guards refuse anyway sends no mail: an address that is taken is not one to wait for.
        let counted = match causes.pop() {
            None => None,
            Some(_) if self.claims_are_taken(&append).await? => None,
            Some(cause) => {
                match mails::count(&self.store, request.stream.tenant, cause, mails, self.mails).await {
                    Ok(counted) => Some(counted),
                    // A request that is repeated is answered as it was.
                    Err(refused) => return self.conclude(request, version, || Err(refused)).await,
                }
            }
        };
        let appended = self.store.append(append).await;
        if let Some(counted) = counted.filter(|_| !appended.as_ref().is_ok_and(|appended| !appended.replayed)) {
            mails::take_back(&self.store, counted).await;
        }
        match appended {
            Ok(appended) => {
                // A number that was drawn under the lock is not in this copy of the state.
                if allocates || appended.replayed {
                    self.store.forget::<A>(request.stream);
                } else if count > 0 && !after.is_final() {
                    self.store.remember(request.stream, &Loaded { state: after, version: version + count, since });
                }
                Ok(Attempt::Done(Outcome::of(&appended)))
            }
            Err(AppendError::Conflict { .. }) => Ok(Attempt::Stale),
            Err(AppendError::Refused(refusal)) if looked.outdated(&refusal) => {
                looked.forget(&self.store, request.stream.tenant);
                Ok(Attempt::Stale)
            }
            Err(AppendError::Refused(refusal)) if let Some(month) = Exceeded::closed(&refusal) => {
                Ok(Attempt::Done(Err(CommandError::PeriodClosed(month))))
            }
            Err(AppendError::Refused(refusal)) if request.insists_on(&refusal) => Ok(Attempt::Done(Err(CommandError::Moved))),
            Err(AppendError::Refused(refusal)) if let Some(exceeded) = Exceeded::of(&refusal, looked.found.zone()) => {
                Ok(Attempt::Done(Err(CommandError::QuotaExceeded(exceeded))))
            }
            Err(error) => {
                // After an unanswered append nobody knows what the stream looks like.
                self.store.forget::<A>(request.stream);
                Ok(Attempt::Done(Err(CommandError::append::<A>(error))))
            }
        }
    }
}
