//! What has happened to a tenant, newest first. Personal data is left out.

use chrono::{DateTime, Utc};
use domain::identity::tenant::{Event, Tenant};
use domain::{Actor, TenantId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::Recorded;
use utoipa::ToSchema;

use crate::cursor::CursorKey;
use crate::list::{self, Column, Orders, Page, Paging};
use crate::model::ReadModel;
use crate::query::{QueryError, Read};

/// The read model.
pub struct Timeline;

/// The key of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Key {
    tenant_id: TenantId,
    position: i64,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = TimelineEntry)]
pub struct Row {
    /// Whose.
    pub tenant_id: TenantId,
    /// Its place in the log.
    pub position: i64,
    /// What happened: `tenant.renamed`.
    #[schema(example = "tenant.renamed")]
    pub event: String,
    /// What it says.
    #[schema(value_type = Object, example = json!({"name": "Acme GmbH"}))]
    pub detail: Value,
    /// Who did it.
    #[schema(value_type = Object, example = json!({"type": "user", "id": "dev", "tenant": "00000000-0000-0000-0000-000000000000", "role": "super_admin"}))]
    pub actor: Actor,
    /// When.
    pub occurred_at: DateTime<Utc>,
}

impl ReadModel for Timeline {
    const NAME: &'static str = "tenant_timeline_v1";
    type Events = Tenant;
    type Key = Key;
    type Row = Row;

    fn keys(event: &Recorded<Event>) -> Vec<Key> {
        vec![Key { tenant_id: event.stream.tenant, position: event.position }]
    }

    fn apply(key: &Key, _: Option<Row>, event: &Recorded<Event>) -> Option<Row> {
        use cqrs_es::DomainEvent as _;
        Some(Row {
            tenant_id: key.tenant_id,
            position: key.position,
            event: event.event.event_type(),
            detail: detail(&event.event),
            actor: event.actor.clone(),
            occurred_at: event.recorded_at,
        })
    }
}

fn detail(event: &Event) -> Value {
    match event {
        Event::Provisioned { slug, name, plan, owner: _ } => json!({"slug": slug, "name": name, "plan": plan}),
        Event::ProvisioningCompleted { trialing } => json!({"trialing": trialing}),
        Event::Renamed { name } => json!({"name": name}),
        Event::SlugChanged { from, to, alias_until } => json!({"from": from, "to": to, "alias_until": alias_until}),
        Event::SlugAliasExpired { slug } => json!({"slug": slug}),
        Event::SettingsUpdated { patch } => json!({"patch": patch}),
        Event::LlmConfigSet { provider, model, secret_ref: _ } => json!({"provider": provider, "model": model}),
        Event::BrandingSet { primary_color, logo_url } => json!({"primary_color": primary_color, "logo_url": logo_url}),
        Event::Suspended { reason, for_payment: true } => json!({"reason": reason, "for_payment": true}),
        Event::Suspended { reason, for_payment: false } => json!({"reason": reason}),
        Event::LimitOverridden { meter, limit, until } => json!({"meter": meter, "limit": limit, "until": until}),
        Event::LimitOverrideCleared { meter } => json!({"meter": meter}),
        Event::DomainAdded { domain, token: _ } | Event::DomainVerified { domain } | Event::DomainRemoved { domain } => {
            json!({"domain": domain})
        }
        Event::Cancelled { at: _, with_subscription: _ }
        | Event::Frozen
        | Event::Deactivated
        | Event::Reactivated
        | Event::Activated
        | Event::BecamePastDue
        | Event::Deleted => json!({}),
    }
}

/// In which order: that of the log.
pub const ORDERS: Orders = Orders { columns: &[Column { name: "position", sql: "position", kind: "bigint" }], tie: ("position", "bigint") };

/// One page of a tenant's history.
pub async fn list(read: &mut Read, cursors: &CursorKey, tenant: TenantId, paging: &Paging) -> Result<Page<Row>, QueryError> {
    let mut query = list::select(Timeline::NAME, paging);
    query.push(" and tenant_id = ").bind(tenant.0);
    list::page(read, cursors, query, &json!([Timeline::NAME, tenant]).to_string(), paging).await
}
