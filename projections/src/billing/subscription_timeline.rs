//! What has happened to a subscription, newest first. Nothing in it is personal.

use chrono::{DateTime, Utc};
use cqrs_es::DomainEvent as _;
use domain::billing::subscription::{Event, Subscription};
use domain::{Actor, StreamId, TenantId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::Recorded;
use utoipa::ToSchema;
use uuid::Uuid;

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
#[schema(as = SubscriptionTimelineEntry)]
pub struct Row {
    /// Whose.
    pub tenant_id: TenantId,
    /// Its place in the log.
    pub position: i64,
    /// Of which subscription.
    pub subscription_id: Uuid,
    /// What happened: `subscription.plan_changed`.
    #[schema(example = "subscription.cancel_scheduled")]
    pub event: String,
    /// What it says.
    #[schema(value_type = Object, example = json!({"at": "2026-02-01T00:00:00Z"}))]
    pub detail: Value,
    /// Who did it.
    #[schema(value_type = Object, example = json!({"type": "system", "name": "timers"}))]
    pub actor: Actor,
    /// When.
    pub occurred_at: DateTime<Utc>,
}

impl ReadModel for Timeline {
    const NAME: &'static str = "subscription_timeline_v1";
    type Events = Subscription;
    type Key = Key;
    type Row = Row;

    fn keys(event: &Recorded<Event>) -> Vec<Key> {
        vec![Key { tenant_id: event.stream.tenant, position: event.position }]
    }

    fn apply(key: &Key, _: Option<Row>, event: &Recorded<Event>) -> Option<Row> {
        let mut detail = serde_json::to_value(&event.event).unwrap_or_default();
        if let Some(fields) = detail.as_object_mut() {
            fields.remove("type");
        }
        Some(Row {
            tenant_id: key.tenant_id,
            position: key.position,
            subscription_id: event.stream.id,
            event: event.event.event_type(),
            detail,
            actor: event.actor.clone(),
            occurred_at: event.recorded_at,
        })
    }
}

/// In which order: that of the log.
pub const ORDERS: Orders = Orders { columns: &[Column { name: "position", sql: "position", kind: "bigint" }], tie: ("position", "bigint") };

/// One page of a subscription's history.
pub async fn list(read: &mut Read, cursors: &CursorKey, stream: StreamId, paging: &Paging) -> Result<Page<Row>, QueryError> {
    let mut query = list::select(Timeline::NAME, paging);
    query.push(" and tenant_id = ").bind(stream.tenant.0).push(" and subscription_id = ").bind(stream.id);
    list::page(read, cursors, query, &json!([Timeline::NAME, stream.to_string()]).to_string(), paging).await
}
