//! What has happened to a device, newest first. What opens anything is left out, and what a device reports, of which its twin shows the sum.

use chrono::{DateTime, Utc};
use cqrs_es::DomainEvent as _;
use domain::iot::device::{Device, Event};
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
#[schema(as = DeviceTimelineEntry)]
pub struct Row {
    /// Whose.
    pub tenant_id: TenantId,
    /// Its place in the log.
    pub position: i64,
    /// Of which device.
    pub device_id: Uuid,
    /// What happened: `device.accepted`.
    #[schema(example = "device.group_assigned")]
    pub event: String,
    /// What it says.
    #[schema(value_type = Object, example = json!({"group": "vienna"}))]
    pub detail: Value,
    /// Who did it.
    #[schema(value_type = Object, example = json!({"type": "user", "id": "dev", "tenant": "01900000-0000-7000-8000-000000000001", "role": "org_admin"}))]
    pub actor: Actor,
    /// When.
    pub occurred_at: DateTime<Utc>,
}

impl ReadModel for Timeline {
    const NAME: &'static str = "device_timeline_v1";
    type Events = Device;
    type Key = Key;
    type Row = Row;

    fn keys(event: &Recorded<Event>) -> Vec<Key> {
        let shown = !matches!(event.event, Event::StateReported { .. });
        if shown { vec![Key { tenant_id: event.stream.tenant, position: event.position }] } else { vec![] }
    }

    fn apply(key: &Key, _: Option<Row>, event: &Recorded<Event>) -> Option<Row> {
        let mut detail = serde_json::to_value(&event.event).unwrap_or_default();
        if let Some(fields) = detail.as_object_mut() {
            ["type", "credential", "claim_digest"].iter().for_each(|name| drop(fields.remove(*name)));
        }
        Some(Row {
            tenant_id: key.tenant_id,
            position: key.position,
            device_id: event.stream.id,
            event: event.event.event_type(),
            detail,
            actor: event.actor.clone(),
            occurred_at: event.recorded_at,
        })
    }
}

/// In which order: that of the log.
pub const ORDERS: Orders = Orders { columns: &[Column { name: "position", sql: "position", kind: "bigint" }], tie: ("position", "bigint") };

/// One page of a device's history.
pub async fn list(read: &mut Read, cursors: &CursorKey, stream: StreamId, paging: &Paging) -> Result<Page<Row>, QueryError> {
    let mut query = list::select(Timeline::NAME, paging);
    query.push(" and tenant_id = ").bind(stream.tenant.0).push(" and device_id = ").bind(stream.id);
    list::page(read, cursors, query, &json!([Timeline::NAME, stream.to_string()]).to_string(), paging).await
}
