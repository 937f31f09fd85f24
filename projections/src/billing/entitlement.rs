//! What each tenant is entitled to: by its subscription, and by what the platform has set instead.

use chrono::{DateTime, Utc};
use cqrs_es::Aggregate as _;
use domain::TenantId;
use domain::billing::meter::{Entitlement, Meter};
use domain::billing::money::UnitPrice;
use domain::billing::subscription::{self, Pinned, Subscription};
use domain::identity::tenant::{self, Tenant};
use serde::{Deserialize, Serialize};
use store::load::LoadError;
use store::{RawEvent, Recorded, Store};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::model::{Partition, ReadModel, Source};
use crate::query::{QueryError, Read};
use crate::row::Doc;
use crate::sql::Sql;

/// The read model.
pub struct InForce;

/// Whose events say what is in force.
pub struct Entitling;

/// One of them.
pub enum Event {
    /// Of a subscription.
    Subscription(subscription::Event),
    /// Of a tenant.
    Tenant(tenant::Event),
}

impl Source for Entitling {
    const TYPES: &'static [&'static str] = &[Subscription::TYPE, Tenant::TYPE];

    type Event = Event;

    async fn typed(store: &Store, events: &[&RawEvent]) -> Result<Vec<Recorded<Event>>, LoadError> {
        let of = |kind: &'static str| events.iter().copied().filter(move |event| event.aggregate_type == kind).collect::<Vec<_>>();
        let subscriptions = store.typed::<Subscription>(&of(Subscription::TYPE)).await?;
        let tenants = store.typed::<Tenant>(&of(Tenant::TYPE)).await?;
        let all = subscriptions.into_iter().map(|event| event.map(Event::Subscription));
        let mut all: Vec<_> = all.chain(tenants.into_iter().map(|event| event.map(Event::Tenant))).collect();
        all.sort_by_key(|event| event.position);
        Ok(all)
    }
}

/// The key of a meter's entitlement.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Key {
    tenant_id: TenantId,
    meter: Meter,
}

/// What a tenant is entitled to of a meter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = EntitlementInForce)]
pub struct Row {
    /// Whose.
    pub tenant_id: TenantId,
    /// Of what.
    pub meter: Meter,
    /// By which subscription, if there was one.
    pub subscription_id: Option<Uuid>,
    /// To which plan.
    #[schema(example = "growth")]
    pub plan: Option<String>,
    /// In which version.
    #[schema(example = 1)]
    pub plan_version: Option<u32>,
    /// How many times.
    #[schema(example = 1)]
    pub quantity: Option<u32>,
    /// How much one of it gives.
    #[schema(example = 25)]
    pub unit_quota: Option<u64>,
    /// At how many percent of the quota it stops.
    #[schema(example = 100)]
    pub hard_percent: Option<u16>,
    /// What each unit beyond the quota costs.
    pub overage: Option<UnitPrice>,
    /// While a change of the subscription waits for its payment: how much is included at most …
    #[schema(example = 25)]
    pub held_quota: Option<i64>,
    /// … and where that ends.
    #[schema(example = 25)]
    pub held_limit: Option<i64>,
    /// How much is included.
    #[schema(example = 25)]
    pub quota: Option<u64>,
    /// Where the subscription's ends.
    #[schema(example = 25)]
    pub hard_limit: Option<i64>,
    /// What stands instead of that, if the platform has set something.
    pub override_limit: Option<i64>,
    /// Until when.
    pub override_until: Option<DateTime<Utc>>,
    /// Where it ends; `null`: nowhere.
    #[schema(example = 25)]
    pub effective_limit: Option<i64>,
    /// When this last changed.
    pub updated_at: DateTime<Utc>,
}

impl Row {
    fn of(key: &Key, at: DateTime<Utc>) -> Self {
        Self {
            tenant_id: key.tenant_id,
            meter: key.meter,
            subscription_id: None,
            plan: None,
            plan_version: None,
            quantity: None,
            unit_quota: None,
            hard_percent: None,
            overage: None,
            held_quota: None,
            held_limit: None,
            quota: None,
            hard_limit: None,
            override_limit: None,
            override_until: None,
            effective_limit: None,
            updated_at: at,
        }
    }

    fn pin(&mut self, pinned: &Pinned) {
        let given = pinned.terms.entitlements.get(&self.meter).copied().unwrap_or(Entitlement::of(0));
        self.plan = Some(pinned.code.clone());
        self.plan_version = Some(pinned.version);
        (self.unit_quota, self.hard_percent, self.overage) = (Some(given.quota), Some(given.hard_percent), given.overage);
    }

    /// What follows from the others.
    fn reckoned(mut self, at: DateTime<Utc>) -> Self {
        if let (Some(quota), Some(hard_percent), Some(quantity)) = (self.unit_quota, self.hard_percent, self.quantity) {
            let given = Entitlement { quota, hard_percent, overage: None };
            let held_quota = self.held_quota.and_then(|held| u64::try_from(held).ok()).unwrap_or(u64::MAX);
            self.quota = Some(quota.saturating_mul(quantity.into()).min(held_quota));
            self.hard_limit = Some(given.hard_limit(quantity).min(self.held_limit.unwrap_or(i64::MAX)));
        }
        self.effective_limit = self.override_limit.or(self.hard_limit);
        self.updated_at = at;
        self
    }
}

impl ReadModel for InForce {
    const NAME: &'static str = "entitlements_v2";
    const PARTITION: Partition = Partition::Tenant;
    type Events = Entitling;
    type Key = Key;
    type Row = Row;

    fn keys(event: &Recorded<Event>) -> Vec<Key> {
        use subscription::Event as S;
        use tenant::Event as T;
        let tenant_id = event.stream.tenant;
        let meters = match &event.event {
            Event::Subscription(
                S::Started { .. }
                | S::PlanChanged { .. }
                | S::QuantityChanged { .. }
                | S::LimitsHeld { .. }
                | S::LimitsReleased { .. }
                | S::ChangeDeclined { .. },
            )
            | Event::Tenant(T::Deleted) => Meter::ALL.to_vec(),
            Event::Tenant(T::LimitOverridden { meter, .. } | T::LimitOverrideCleared { meter }) => vec![*meter],
            Event::Subscription(_) | Event::Tenant(_) => vec![],
        };
        meters.into_iter().map(|meter| Key { tenant_id, meter }).collect()
    }

    fn apply(key: &Key, row: Option<Row>, event: &Recorded<Event>) -> Option<Row> {
        use subscription::Event as S;
        use tenant::Event as T;
        let mut row = row.unwrap_or_else(|| Row::of(key, event.recorded_at));
        match &event.event {
            Event::Subscription(S::Started { pinned, quantity, .. }) => {
                row.subscription_id = Some(event.stream.id);
                row.quantity = Some(*quantity);
                (row.held_quota, row.held_limit) = (None, None);
                row.pin(pinned);
            }
            // One that has ended says nothing of what is given now.
            Event::Subscription(_) if row.subscription_id != Some(event.stream.id) => return Some(row),
            Event::Subscription(S::LimitsHeld { limits, .. }) => {
                (row.held_quota, row.held_limit) = limits.get(&key.meter).map(|held| (held.quota, held.limit)).unzip();
            }
            Event::Subscription(S::LimitsReleased { .. }) => (row.held_quota, row.held_limit) = (None, None),
            Event::Subscription(S::ChangeDeclined { pinned, quantity, .. }) => {
                (row.held_quota, row.held_limit) = (None, None);
                row.quantity = Some(*quantity);
                row.pin(pinned);
            }
            Event::Subscription(S::PlanChanged { pinned, .. }) => row.pin(pinned),
            Event::Subscription(S::QuantityChanged { to, .. }) => row.quantity = Some(*to),
            Event::Tenant(T::LimitOverridden { meter: _, limit, until }) => {
                (row.override_limit, row.override_until) = (Some(*limit), *until);
            }
            Event::Tenant(T::LimitOverrideCleared { meter: _ }) => (row.override_limit, row.override_until) = (None, None),
            Event::Tenant(T::Deleted) => return None,
            Event::Subscription(_) | Event::Tenant(_) => {}
        }
        Some(row.reckoned(event.recorded_at))
    }
}

/// All that a tenant is entitled to. What is not named has no limit. `without_plan` says what it may before its first subscription.
pub async fn of_tenant(
    read: &mut Read,
    tenant: TenantId,
    without_plan: impl Fn(Meter) -> Option<i64>,
    now: DateTime<Utc>,
) -> Result<Vec<Row>, QueryError> {
    let rows = read.all(Sql::rows(InForce::NAME).push(" and tenant_id = ").bind(tenant)).await?;
    let mut rows: Vec<Row> = rows.iter().map(Doc::read).collect::<Result<_, _>>()?;
    for meter in Meter::ALL {
        let known = rows.iter().position(|row| row.meter == meter);
        let Some(limit) = without_plan(meter).filter(|_| known.is_none_or(|known| rows[known].hard_limit.is_none())) else { continue };
        let mut row = known.map_or_else(|| Row::of(&Key { tenant_id: tenant, meter }, now), |known| rows.remove(known));
        (row.quota, row.hard_limit) = (u64::try_from(limit).ok(), Some(limit));
        row.effective_limit = row.override_limit.or(row.hard_limit);
        rows.push(row);
    }
    rows.sort_by(|a, b| a.meter.as_str().cmp(b.meter.as_str()));
    Ok(rows)
}
