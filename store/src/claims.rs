//! Who holds what: claims and counters, read without locking anything. What is read here may have changed when an append comes to it, which is why appends check again.

use std::collections::BTreeMap;

use domain::{Claim, CounterName, StreamId, TenantId};
use uuid::Uuid;

use crate::Store;
use crate::append::guards::scope_of;

impl Store {
    /// The stream that holds a value, if one does. A personal value is found by its keyed hash.
    pub async fn holder(&self, claim: &Claim, tenant: TenantId, value: &str) -> Result<Option<StreamId>, sqlx::Error> {
        let value = if claim.personal { self.inner.keyring.claim_hash(claim, tenant, value) } else { value.to_owned() };
        let stream: Option<String> =
            sqlx::query_scalar("select aggregate_id from claims where scope = $1 and namespace = $2 and value = $3")
                .bind(scope_of(claim, tenant))
                .bind(claim.namespace)
                .bind(value)
                .fetch_optional(self.pool())
                .await?;
        Ok(stream.and_then(|stream| stream.parse().ok()))
    }

    /// All holders of a claim of a tenant whose values are ids, with the counter of this kind that each has, the lowest first.
    pub async fn holders_by_counter(&self, claim: &Claim, tenant: TenantId, counter: &str) -> Result<Vec<(Uuid, i64)>, sqlx::Error> {
        sqlx::query_as(
            "select h.id, coalesce(c.value, 0)
             from (select value::uuid as id, value from claims where scope = $1 and namespace = $2) h
             left join counters c on c.tenant_id = $3 and c.name = $4 || ':' || h.value
             order by 2, 1",
        )
        .bind(scope_of(claim, tenant))
        .bind(claim.namespace)
        .bind(tenant.0)
        .bind(counter)
        .fetch_all(self.pool())
        .await
    }

    /// All values of a claim of a tenant that are ids: the holders themselves, where each holds it by its own.
    pub async fn holders(&self, claim: &Claim, tenant: TenantId) -> Result<Vec<Uuid>, sqlx::Error> {
        sqlx::query_scalar("select value::uuid from claims where scope = $1 and namespace = $2 order by 1")
            .bind(scope_of(claim, tenant))
            .bind(claim.namespace)
            .fetch_all(self.pool())
            .await
    }

    /// How far a counter of a tenant has come.
    pub async fn counter(&self, tenant: TenantId, counter: CounterName) -> Result<i64, sqlx::Error> {
        let value: Option<i64> = sqlx::query_scalar("select value from counters where tenant_id = $1 and name = $2")
            .bind(tenant.0)
            .bind(counter.to_string())
            .fetch_optional(self.pool())
            .await?;
        Ok(value.unwrap_or(0))
    }

    /// Values and ceilings of some of a tenant's counters, as they are at one moment; those that nothing has touched yet, and for which no ceiling holds, are left out.
    pub async fn counters(
        &self,
        tenant: TenantId,
        counters: &[CounterName],
    ) -> Result<BTreeMap<CounterName, (i64, Option<i64>)>, sqlx::Error> {
        let names: BTreeMap<String, CounterName> = counters.iter().map(|counter| (counter.to_string(), *counter)).collect();
        let rows: Vec<(String, i64, Option<i64>)> =
            sqlx::query_as("select name, value, ceiling from counters where tenant_id = $1 and name = any($2)")
                .bind(tenant.0)
                .bind(names.keys().collect::<Vec<_>>())
                .fetch_all(self.pool())
                .await?;
        // Only where nothing is set there holds what holds then; the counter of a month or of one thing has the ceiling of its kind.
        let unless_set = |counter: CounterName| if counter.of.is_none() { self.ceiling_unless_set(tenant, counter) } else { None };
        let mut found: BTreeMap<CounterName, (i64, Option<i64>)> =
            names.values().filter_map(|counter| Some((*counter, (0, Some(unless_set(*counter)?))))).collect();
        for (name, value, ceiling) in rows {
            let Some(counter) = names.get(&name) else { continue };
            found.insert(*counter, (value, ceiling.or_else(|| unless_set(*counter))));
        }
        Ok(found)
    }

    /// What closes a tenant's gate, if anything does; `None`: there is no such tenant.
    pub async fn gate(&self, tenant: TenantId) -> Result<Option<String>, sqlx::Error> {
        if tenant == TenantId::SYSTEM {
            return Ok(Some("open".to_owned()));
        }
        let gate: Option<Option<String>> =
            sqlx::query_scalar("select gate from tenant_heads where tenant_id = $1").bind(tenant.0).fetch_optional(self.pool()).await?;
        Ok(gate.flatten())
    }
}
