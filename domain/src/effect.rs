//! What an event does beyond its own stream, and what it may require: checked and applied inside the append transaction, under the log's lock.
//!
//! Effects are a pure function of the state before and the event, so every guard table is a fold of the log and can be rebuilt and compared.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::billing::period::Month;
use crate::ids::{StreamId, SubjectId, TenantId};

/// Among whom a claim is unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// All tenants of the installation.
    Installation,
    /// One tenant.
    Tenant,
}

/// A kind of unique key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Claim {
    /// `tenant_slug`, `user_email`, …
    pub namespace: &'static str,
    /// Among whom it is unique.
    pub scope: Scope,
    /// Whether the values are personal data: then only a keyed hash of them is stored.
    pub personal: bool,
}

/// Whether a tenant's other aggregates accept changing commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    /// They do.
    Open,
    /// They do not, because the tenant is in this status.
    Closed(&'static str),
}

/// A counter of a tenant: one for all of it, or one of many of the same kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CounterName {
    /// `users`, `active_org_admins`, …
    pub kind: &'static str,
    /// Which, where there is one for each of something.
    pub of: Option<Which>,
}

/// Which of many counters of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Which {
    /// That of something with an id.
    Id(Uuid),
    /// That of a month.
    Month(Month),
}

impl std::str::FromStr for Which {
    type Err = crate::billing::period::NoMonth;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self::Id).or_else(|_| text.parse().map(Self::Month))
    }
}

impl CounterName {
    /// One of many.
    pub fn of(kind: &'static str, of: Uuid) -> Self {
        Self { kind, of: Some(Which::Id(of)) }
    }

    /// That of a month.
    pub fn of_month(kind: &'static str, month: Month) -> Self {
        Self { kind, of: Some(Which::Month(month)) }
    }

    /// Where its ceiling is: that of the first of these that has one. What a meter's use may come to is set by a subscription, unless the platform has set something else;
    /// the use of a month counts by itself, against the same ceilings, until that month is closed.
    pub fn ceilings(self) -> impl Iterator<Item = Self> {
        const OVERRIDES: [(&str, &str); 6] = [
            ("messages", "messages_override"),
            ("api_calls", "api_calls_override"),
            ("storage", "storage_override"),
            ("users", "users_override"),
            ("outlets", "outlets_override"),
            ("devices", "devices_override"),
        ];
        let meter = OVERRIDES.iter().find(|(kind, _)| *kind == self.kind).map(|(kind, by)| (Self::from(*kind), Self::from(*by)));
        let own = self.of.is_some().then_some(self);
        let [by, all] = meter.map_or([None, Some(self)], |(all, by)| [Some(by), Some(all)]);
        own.into_iter().chain(by).chain(all.filter(|all| own != Some(*all)))
    }
}

impl From<&'static str> for CounterName {
    fn from(kind: &'static str) -> Self {
        Self { kind, of: None }
    }
}

impl std::fmt::Display for CounterName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.of {
            None => f.write_str(self.kind),
            Some(Which::Id(id)) => write!(f, "{}:{id}", self.kind),
            Some(Which::Month(month)) => write!(f, "{}:{month}", self.kind),
        }
    }
}

/// One change that an event makes to the guards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Takes a unique value for this stream under `label`. Refused when another (stream, label) holds it; replaces what the label held before.
    TakeClaim {
        /// Which kind of key.
        claim: Claim,
        /// What this stream calls it; a release needs no value.
        label: String,
        /// The value, already normalised; `None` when it has been erased (only ever seen while folding old events).
        value: Option<String>,
    },
    /// Gives back what this stream holds under `label`, if anything.
    ReleaseClaim {
        /// Which kind of key.
        claim: Claim,
        /// What this stream called it.
        label: String,
    },
    /// Adds to a counter of the tenant. Refused when a positive change would pass the ceiling or a negative one the floor.
    Count {
        /// Which.
        counter: CounterName,
        /// The change.
        delta: i64,
    },
    /// Sets the bounds of a counter; never refused, also when the value lies outside.
    Bound {
        /// The counter.
        counter: CounterName,
        /// The least it may be lowered to.
        floor: Option<i64>,
        /// The most it may be raised to.
        ceiling: Option<i64>,
    },
    /// Draws the next number of a gapless sequence of the tenant and writes it into the event.
    Allocate {
        /// `ticket_number`, …
        sequence: &'static str,
        /// The event's field, as a JSON pointer (RFC 6901).
        pointer: &'static str,
    },
    /// Sets or moves a timer of this stream.
    SetTimer {
        /// What [`crate::Aggregate::timer`] will be asked for when it is due.
        name: String,
        /// When.
        due: DateTime<Utc>,
    },
    /// Cancels a timer of this stream, if it is set.
    CancelTimer {
        /// Its name.
        name: String,
    },
    /// Opens or closes the tenant's gate.
    Gate(Gate),
    /// Destroys a data subject's key: what was sealed for it can never be read again.
    Erase(SubjectId),
    /// The tenant is gone: releases all its claims, cancels all its timers, drops its counters and destroys the keys of all its data subjects.
    EndTenant,
}

/// Something that must be so at the moment of the append, besides the streams' own versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// Another stream is at this version (0: does not exist).
    StreamAt {
        /// Its aggregate type.
        aggregate: &'static str,
        /// Which.
        stream: StreamId,
        /// The version.
        version: i64,
    },
    /// Another stream of the tenant exists.
    StreamExists {
        /// Its aggregate type.
        aggregate: &'static str,
        /// Which.
        stream: StreamId,
    },
    /// Nobody holds the value.
    ClaimFree {
        /// Which kind of key.
        claim: Claim,
        /// The value.
        value: String,
    },
    /// Somebody holds the value.
    ClaimHeld {
        /// Which kind of key.
        claim: Claim,
        /// The value.
        value: String,
    },
    /// A counter of the tenant lies within these bounds (inclusive), before this request's effects.
    CounterWithin {
        /// The counter.
        counter: CounterName,
        /// At least.
        at_least: Option<i64>,
        /// At most.
        at_most: Option<i64>,
    },
    /// The tenant exists and its gate is open.
    GateOpen,
    /// The tenant exists and was not deleted, whether or not its gate is open.
    TenantLives,
    /// This timer is still set for this time.
    TimerSet {
        /// Its aggregate type.
        aggregate: &'static str,
        /// Its stream.
        stream: StreamId,
        /// Its name.
        name: String,
        /// When it is due.
        due: DateTime<Utc>,
    },
}

crate::errors! {
    /// Why an append was refused although its rules agreed: the guards said no.
    Refusal {
        /// A unique value is held by someone else.
        ClaimTaken { /// The claim's namespace.
            namespace: String }: Conflict "claim.taken", "{namespace} is taken";
        /// A value that had to be held by somebody is not.
        ClaimNotHeld { /// The claim's namespace.
            namespace: String }: Conflict "claim.not_held", "nobody holds this {namespace}";
        /// A counter would leave its bounds.
        CounterOutOfBounds {
            /// The counter.
            counter: String,
            /// Its value before.
            value: i64,
            /// Its lower bound.
            floor: Option<i64>,
            /// Its upper bound.
            ceiling: Option<i64>,
        }: Conflict "counter.out_of_bounds", "{counter} is {value}, and may lie between {floor:?} and {ceiling:?}";
        /// The tenant's gate is closed.
        GateClosed { /// The tenant's status.
            status: String }: Conflict "tenant.closed", "the tenant is {status}";
        /// There is no such tenant.
        NoSuchTenant { /// Which.
            tenant: TenantId }: NotFound "tenant.not_found", "there is no tenant {tenant}";
        /// The timer was cancelled, moved or has fired.
        TimerNotSet { /// Its name.
            name: String }: Conflict "timer.not_set", "the timer {name} is not set for this time";
        /// The data subject was erased; nothing can be sealed for it any more.
        SubjectErased { /// Whom.
            subject: SubjectId }: Conflict "subject.erased", "the data subject {subject} has been erased";
        /// The event would not fit into a message of the bus.
        TooLarge {
            /// Its encoded size.
            bytes: usize,
            /// The limit.
            limit: usize,
        }: Invalid "event.too_large", "an event of {bytes} bytes is over the limit of {limit}";
        /// Another stream that had to be at a version is at another one.
        StreamMoved {
            /// Its type.
            aggregate: String,
            /// Its id.
            id: Uuid,
        }: Conflict "stream.moved", "the {aggregate} {id} has moved on";
        /// Another stream that had to exist does not.
        NoSuchStream {
            /// Its type.
            aggregate: String,
            /// Its id.
            id: Uuid,
        }: Invalid "stream.not_found", "there is no {aggregate} {id}";
    }
}
