//! What every aggregate has in common.

use std::collections::BTreeMap;
use std::fmt;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use crate::StreamId;
use crate::actor::{Actor, Grants, Permissions, Role};
use crate::billing::meter::{Meter, Standing};
use crate::billing::period::Month;
use crate::billing::plan::Terms;
use crate::billing::quota::Segment;
use crate::effect::{Claim, CounterName, Effect, Precondition, Refusal};
use crate::error::DomainError;
use crate::ids::{RoleId, UserId};

/// What a rule may know besides its own state and the command.
#[derive(Clone, Debug)]
pub struct Context {
    /// Now.
    pub now: DateTime<Utc>,
    /// Who asks.
    pub actor: Actor,
    /// The stream the command is for.
    pub stream: StreamId,
    /// A fresh UUIDv7 for whatever the rule creates.
    pub fresh_id: Uuid,
    /// What [`Aggregate::looks_up`] asked for.
    pub found: Found,
}

/// Who brings about that a mail is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MailCause {
    /// A member of the tenant, by a command.
    Members {
        /// The address, in the form in which addresses are compared. There is a pause between two mails to it.
        address: Option<String>,
    },
    /// Anybody, without being signed in.
    Anybody,
}

impl MailCause {
    /// As stored.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Members { .. } => "members",
            Self::Anybody => "anybody",
        }
    }
}

/// Something outside its own stream that a rule has to know. It is looked up before the command is decided, and must still be so when the events are appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// A user of the tenant.
    User(UserId),
    /// What a role of the tenant may.
    Role(RoleId),
    /// A plan, by its code.
    Plan(String),
    /// How much of a meter the tenant uses at present. Should more of what does not flow be used before the append, that is decided again.
    Used(Meter),
    /// How far a counter of the tenant has come. Should it move before the append, that is decided again.
    Exactly(CounterName),
    /// By whose calendar the tenant counts.
    Calendar,
    /// How a meter stands in a month, by the limits that are in force at the append.
    Standing(Meter, Month),
    /// What was included of a meter in each part of a month that has passed, and how much of it was used there.
    Segments(Meter, Month),
    /// Whether the tenant is open, or would be with a subscription.
    Subscribable,
    /// Unpaid amount of upgrades up to which limits rise before the payment.
    UnpaidCeiling,
    /// Of the users who hold a claim, are active and have a permission: the one whose counter is lowest.
    LeastLoaded {
        /// The claim, whose value is the user's id.
        claim: Claim,
        /// The counter of each.
        counter: &'static str,
        /// The permission.
        permission: &'static str,
    },
}

/// What was found of it.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The users, as far as they exist.
    pub users: BTreeMap<UserId, Person>,
    /// What the roles may, as far as they exist.
    pub roles: BTreeMap<RoleId, Permissions>,
    /// The plans, as far as they exist.
    pub plans: BTreeMap<String, Offer>,
    /// Whether the tenant is open, or would be with a subscription; nobody asked, if nothing is said.
    pub subscribable: Option<bool>,
    /// The counters.
    pub counters: BTreeMap<CounterName, i64>,
    /// How much is used.
    pub used: BTreeMap<Meter, i64>,
    /// The tenant's time zone, if it has set one.
    pub time_zone: Option<Tz>,
    /// How meters stand.
    pub standings: BTreeMap<(Meter, Month), Standing>,
    /// The parts of a month.
    pub segments: Vec<Segment>,
    /// What a subscription may owe of changes, in the minor unit of its currency.
    pub unpaid_ceiling: i64,
    /// The one with the least load, if there is anybody.
    pub least_loaded: Option<UserId>,
}

impl Found {
    /// The tenant's time zone; UTC unless it has set one.
    pub fn zone(&self) -> Tz {
        self.time_zone.unwrap_or(Tz::UTC)
    }
}

/// What other aggregates may know of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Which one.
    pub plan: Uuid,
    /// In which version.
    pub version: u32,
    /// What that costs and gives.
    pub terms: Terms,
    /// Whether nobody can subscribe to it any more.
    pub retired: bool,
}

/// What other aggregates may know of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// Whether they can do anything at all.
    pub active: bool,
    /// Whether they are gone for good.
    pub deleted: bool,
    /// Their role.
    pub role: Role,
    /// What it allows.
    pub grants: Grants,
}

impl Person {
    /// Whether they may, now.
    pub fn may(&self, permission: &str) -> bool {
        self.active && self.grants.allow(self.role, permission)
    }
}

/// A command with its context.
#[derive(Clone, Debug)]
pub struct Issued<C> {
    /// What is asked.
    pub command: C,
    /// When, by whom.
    pub ctx: Context,
}

/// The commands of an aggregate: generated by [`crate::commands!`].
pub trait Ask: Clone + fmt::Debug + Serialize + Send + Sync + 'static {
    /// `rename`: also the last part of the route and of the span.
    fn name(&self) -> &'static str;
    /// `tenant:rename`: what the caller's role must allow.
    fn permission(&self) -> &'static str;
}

/// An event type and the newest version of it, as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventKind {
    /// `tenant.renamed`.
    pub name: &'static str,
    /// `1`.
    pub version: &'static str,
}

/// A change of an old event's payload into the shape of the next version. Pure; runs wherever an event becomes a Rust value.
#[derive(Clone, Copy)]
pub struct Upcaster {
    /// The event type.
    pub event: &'static str,
    /// The version it takes.
    pub from: &'static str,
    /// The version it makes.
    pub to: &'static str,
    /// How.
    pub upcast: fn(Value) -> Value,
}

/// An aggregate: a [`cqrs_es::Aggregate`] that also declares its effects and its timers.
pub trait Aggregate:
    cqrs_es::Aggregate<Command = Issued<Self::Ask>, Services = (), Error: DomainError, Event: 'static> + Clone + 'static
{
    /// Its commands.
    type Ask: Ask;

    /// All its events in their newest versions.
    const EVENTS: &'static [EventKind];

    /// The events that change how much is used of a meter that stands, and of which.
    const METERED: &'static [(&'static str, Meter)] = &[];

    /// The events that name a user who may be gone one day, each with the field of its payload that does; see [`Aggregate::releases`].
    const NAMES_USERS: &'static [(&'static str, &'static str)] = &[];

    /// Whether a state may hold personal data: such a one is remembered for a short time only, so that nothing outlives an erasure.
    const PERSONAL: bool = true;

    /// How events of older versions are read; in order, oldest first.
    const UPCASTERS: &'static [Upcaster] = &[];

    /// Whether a changing command is refused while the tenant's gate is closed.
    fn gated(_command: &Self::Ask) -> bool {
        true
    }

    /// Whether a changing command that is not gated is refused once the tenant is deleted.
    fn needs_tenant(_command: &Self::Ask) -> bool {
        false
    }

    /// Whether nothing more can happen to it: then nobody remembers it.
    fn is_final(&self) -> bool {
        false
    }

    /// What has to be looked up for a command.
    fn looks_up(&self, _command: &Self::Ask) -> Vec<Lookup> {
        vec![]
    }

    /// Every rule: what follows from the command in this state. An empty answer means that what is asked is already so.
    fn decide(&self, issued: Issued<Self::Ask>) -> Result<Vec<Self::Event>, Self::Error>;

    /// What the event does to the guards, seen from the state before it.
    fn effects(&self, event: &Self::Event) -> Vec<Effect>;

    /// The cause of the mail that an event leads to, seen from the state before it, where people can cause any number of such events. Mails of each cause are bounded per tenant
    /// and day.
    fn mails(&self, _event: &Self::Event) -> Option<MailCause> {
        None
    }

    /// How much more of its meter is used because of one of [`Aggregate::METERED`]. Its effects count the same.
    fn metered(_event: &Self::Event) -> i64 {
        0
    }

    /// What has to be so elsewhere at the moment `event` is appended to `stream`.
    fn requires(_event: &Self::Event, _stream: StreamId) -> Vec<Precondition> {
        vec![]
    }

    /// The command that lets go of a user who can act no more, or is gone for good; `None` where nothing of them is left.
    fn releases(&self, _user: UserId, _gone: bool) -> Option<Self::Ask> {
        None
    }

    /// The command for a timer of this name that is due; `None` when this binary knows no such timer.
    fn timer(_name: &str) -> Option<Self::Ask> {
        None
    }

    /// This aggregate's own word for a refusal by the guards.
    fn refused(_refusal: &Refusal) -> Option<Self::Error> {
        None
    }
}

/// Asking for what is already so is neither an error nor an event.
pub(crate) fn changed<E>(differs: bool, event: impl FnOnce() -> E) -> Vec<E> {
    if differs { vec![event()] } else { vec![] }
}

/// Declares an aggregate's `Command` enum from its command structs: `Variant(Struct) "name", "permission";`.
#[macro_export]
macro_rules! commands {
    ($aggregate:literal: $($variant:ident($body:ty) $name:literal, $permission:literal;)*) => {
        /// All that may be asked.
        #[derive(Clone, Debug, PartialEq, serde::Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Command { $(#[doc = concat!("See [`", stringify!($body), "`].")] $variant($body)),* }

        impl $crate::aggregate::Ask for Command {
            fn name(&self) -> &'static str { match self { $(Self::$variant(_) => $name),* } }
            fn permission(&self) -> &'static str { match self { $(Self::$variant(_) => concat!($aggregate, ":", $permission)),* } }
        }

        $(impl From<$body> for Command { fn from(body: $body) -> Self { Self::$variant(body) } })*
    };
}

/// Declares command structs that carry nothing.
#[macro_export]
macro_rules! bare_commands {
    ($($(#[$doc:meta])* $name:ident)*) => { $(
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name {}
    )* };
}

/// Declares an aggregate's `Event` enum's stored names: `Variant = "aggregate.name" v"1"`.
#[macro_export]
macro_rules! event_kinds {
    ($event:ty: $($variant:ident => $name:literal $version:literal),* $(,)?) => {
        impl $event {
            /// All events in their newest versions.
            pub const KINDS: &'static [$crate::EventKind] = &[$($crate::EventKind { name: $name, version: $version }),*];
        }

        impl cqrs_es::DomainEvent for $event {
            fn event_type(&self) -> String { match self { $(Self::$variant { .. } => $name),* }.to_owned() }
            fn event_version(&self) -> String { match self { $(Self::$variant { .. } => $version),* }.to_owned() }
        }
    };
}

/// Implements [`cqrs_es::Aggregate`] by the aggregate's own `decide` and `evolve`.
#[macro_export]
macro_rules! aggregate {
    ($aggregate:ty, $type:literal, $command:ty, $event:ty, $error:ty) => {
        impl cqrs_es::Aggregate for $aggregate {
            const TYPE: &'static str = $type;
            type Command = $crate::Issued<$command>;
            type Event = $event;
            type Error = $error;
            type Services = ();

            async fn handle(
                &mut self,
                command: Self::Command,
                (): &(),
                sink: &cqrs_es::event_sink::EventSink<Self>,
            ) -> Result<(), Self::Error> {
                for event in $crate::Aggregate::decide(self, command)? {
                    sink.write(event, self).await;
                }
                Ok(())
            }

            fn apply(&mut self, event: Self::Event) {
                self.evolve(event);
            }
        }
    };
}
