//! Looking up what a rule has to know of other streams. What was found is named in preconditions, so that it is still so when the events are appended.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};

use chrono_tz::Tz;
use cqrs_es::Aggregate as _;
use domain::actor::{Grants, Permissions};
use domain::aggregate::{Found, Lookup, Offer, Person};
use domain::billing::meter::Meter;
use domain::billing::period::Month;
use domain::billing::plan::{self, Plan};
use domain::identity::role::Role as CustomRole;
use domain::identity::tenant::{Status, Tenant};
use domain::identity::user::{Details, Status as UserStatus, User};
use domain::{CounterName, Precondition, Refusal, Role, RoleId, StreamId, TenantId, UserId};
use store::Store;
use store::load::LoadError;
use tokio::sync::MutexGuard;

use crate::error::CommandError;
use crate::execute::Executor;
use crate::quota;

/// What was found, and what must still be so.
#[derive(Default)]
pub(crate) struct Looked<'a> {
    pub(crate) found: Found,
    pub(crate) preconditions: Vec<Precondition>,
    /// Whether something of it was not read but remembered.
    remembered: bool,
    /// Choices by load take turns within a process: all of them would choose the same one.
    turn: Option<MutexGuard<'a, ()>>,
}

impl Looked<'_> {
    /// Whether the refusal says that what was found is so no longer.
    pub(crate) fn outdated(&self, refusal: &Refusal) -> bool {
        self.preconditions.iter().any(|precondition| match (precondition, refusal) {
            (Precondition::StreamAt { stream, .. }, Refusal::StreamMoved { id, .. }) => stream.id == *id,
            (Precondition::CounterWithin { counter, .. }, Refusal::CounterOutOfBounds { counter: refused, .. }) => {
                counter.to_string() == *refused
            }
            _ => false,
        })
    }

    /// Forgets the states of which one was outdated.
    pub(crate) fn forget(&self, store: &Store, tenant: TenantId) {
        if self.remembered {
            store.forget::<Tenant>(StreamId::new(tenant, tenant.0));
        }
    }
}

/// By whose calendar a tenant counts, if it has set that.
pub async fn time_zone(store: &Store, tenant: TenantId) -> Result<Option<Tz>, CommandError> {
    Ok(store.current::<Tenant>(StreamId::new(tenant, tenant.0)).await?.state.time_zone())
}

/// The calendar by which a tenant counts; refused where there is none such, or no longer.
pub async fn calendar(store: &Store, tenant: TenantId) -> Result<Tz, CommandError> {
    let state = store.current::<Tenant>(StreamId::new(tenant, tenant.0)).await?.state;
    let gone = state.status().is_none_or(|status| status == Status::Deleted);
    if gone && tenant != TenantId::SYSTEM {
        Err(CommandError::rule(&Refusal::NoSuchTenant { tenant }))
    } else {
        Ok(state.time_zone().unwrap_or_default())
    }
}

/// A user with what they may now, and the versions of the streams that say so.
pub async fn user(store: &Store, tenant: TenantId, user: UserId) -> Result<(Option<(Details, Person)>, Vec<Precondition>), CommandError> {
    let stream = StreamId::new(tenant, user.0);
    let loaded = store.current::<User>(stream).await?;
    let mut seen = vec![Precondition::StreamAt { aggregate: User::TYPE, stream, version: loaded.version }];
    let Some(details) = loaded.state.details() else { return Ok((None, seen)) };
    let grants = match details.role {
        Role::Custom(id) => {
            let (permissions, at) = permissions(store, tenant, id).await?;
            seen.push(at);
            Grants::of_custom(&permissions.unwrap_or_default())
        }
        Role::SuperAdmin | Role::OrgAdmin | Role::BillingAdmin | Role::SupportAgent | Role::User | Role::Viewer => Grants::OfRole,
    };
    let deleted = details.status == UserStatus::Deleted;
    let person = Person { active: details.status.can_act(), deleted, role: details.role, grants };
    Ok((Some((details.clone(), person)), seen))
}

async fn person(store: &Store, tenant: TenantId, id: UserId) -> Result<(Option<Person>, Vec<Precondition>), CommandError> {
    let (found, seen) = user(store, tenant, id).await?;
    Ok((found.map(|(_, person)| person), seen))
}

/// What a role of the tenant may, if it exists, with the version that says so.
async fn permissions(store: &Store, tenant: TenantId, role: RoleId) -> Result<(Option<Permissions>, Precondition), CommandError> {
    let stream = StreamId::new(tenant, role.0);
    let loaded = store.current::<CustomRole>(stream).await?;
    let at = Precondition::StreamAt { aggregate: CustomRole::TYPE, stream, version: loaded.version };
    Ok((loaded.state.permissions().cloned(), at))
}

impl Executor {
    /// Whoever counts much does not ask for the calendar each time: the one that is remembered has to be the present one at the append.
    async fn calendar(&self, tenant: TenantId, looked: &mut Looked<'_>) -> Result<(), CommandError> {
        let stream = StreamId::new(tenant, tenant.0);
        let loaded = self.store().load::<Tenant>(stream).await?;
        looked.found.time_zone = loaded.state.time_zone();
        looked.remembered = true;
        looked.preconditions.push(Precondition::StreamAt { aggregate: Tenant::TYPE, stream, version: loaded.version });
        Ok(())
    }

    async fn used(&self, tenant: TenantId, meter: Meter, looked: &mut Looked<'_>) -> Result<(), CommandError> {
        let store = self.store();
        let zone = if meter.is_flow() { time_zone(store, tenant).await? } else { None };
        let counter = meter.counter_in(Month::of(store.clock().now(), zone.unwrap_or_default()));
        let value = store.counter(tenant, counter).await.map_err(LoadError::from)?;
        looked.found.used.insert(meter, value);
        // What flows hardly ever stands still.
        if !meter.is_flow() {
            looked.preconditions.push(Precondition::CounterWithin { counter, at_least: None, at_most: Some(value) });
        }
        Ok(())
    }

    pub(crate) async fn look_up(&self, tenant: TenantId, lookups: Vec<Lookup>) -> Result<Looked<'_>, CommandError> {
        let mut looked = Looked::default();
        let store = self.store();
        for lookup in lookups {
            match lookup {
                Lookup::User(user) => {
                    let (person, seen) = person(store, tenant, user).await?;
                    looked.found.users.extend(person.map(|person| (user, person)));
                    looked.preconditions.extend(seen);
                }
                Lookup::Role(role) => {
                    let (permissions, at) = permissions(store, tenant, role).await?;
                    looked.found.roles.extend(permissions.map(|permissions| (role, permissions)));
                    looked.preconditions.push(at);
                }
                Lookup::Plan(code) => {
                    let holder = store.holder(&plan::CODE, TenantId::SYSTEM, &code).await.map_err(LoadError::from)?;
                    let Some(stream) = holder else { continue };
                    let loaded = store.current::<Plan>(stream).await?;
                    let offer = |plan: &plan::Details| Offer {
                        plan: stream.id,
                        version: plan.version,
                        terms: plan.terms.clone(),
                        retired: plan.retired,
                    };
                    looked.found.plans.extend(loaded.state.details().map(|plan| (code, offer(plan))));
                    looked.preconditions.push(Precondition::StreamAt { aggregate: Plan::TYPE, stream, version: loaded.version });
                }
                Lookup::Used(meter) => self.used(tenant, meter, &mut looked).await?,
                Lookup::Exactly(counter) => {
                    let value = store.counter(tenant, counter).await.map_err(LoadError::from)?;
                    looked.found.counters.insert(counter, value);
                    looked.preconditions.push(Precondition::CounterWithin { counter, at_least: Some(value), at_most: Some(value) });
                }
                Lookup::Calendar => self.calendar(tenant, &mut looked).await?,
                Lookup::Standing(meter, month) => {
                    let standing = quota::standing(store, tenant, meter, month).await?;
                    looked.found.standings.insert((meter, month), standing);
                    let (counter, value) = (meter.generation(), Some(standing.generation));
                    looked.preconditions.push(Precondition::CounterWithin { counter, at_least: value, at_most: value });
                }
                Lookup::Segments(meter, month) => looked.found.segments = quota::segments(store, tenant, meter, month).await?,
                Lookup::UnpaidCeiling => looked.found.unpaid_ceiling = self.unpaid_ceiling(),
                Lookup::Subscribable => {
                    let stream = StreamId::new(tenant, tenant.0);
                    let loaded = store.current::<Tenant>(stream).await?;
                    looked.found.subscribable = Some(loaded.state.is_subscribable(store.clock().now()));
                    looked.preconditions.push(Precondition::StreamAt { aggregate: Tenant::TYPE, stream, version: loaded.version });
                }
                Lookup::LeastLoaded { claim, counter, permission } => {
                    let mut hasher = DefaultHasher::new();
                    (tenant, counter).hash(&mut hasher);
                    looked.turn = Some(self.turn(hasher.finish()).lock().await);
                    let holders = store.holders_by_counter(&claim, tenant, counter).await.map_err(LoadError::from)?;
                    for (id, load) in holders {
                        let (person, seen) = person(store, tenant, UserId(id)).await?;
                        if person.is_some_and(|person| person.may(permission)) {
                            looked.found.least_loaded = Some(UserId(id));
                            looked.preconditions.extend(seen);
                            let counter = CounterName::of(counter, id);
                            looked.preconditions.push(Precondition::CounterWithin { counter, at_least: None, at_most: Some(load) });
                            break;
                        }
                    }
                }
            }
        }
        Ok(looked)
    }
}
