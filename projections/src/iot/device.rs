//! Devices, and whether they are heard of.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};
use domain::TenantId;
use domain::iot::device::{Device, Event, Status};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::types::Json;
use store::Recorded;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::cursor::CursorKey;
use crate::list::{self, Column, Orders, Page, Paging};
use crate::model::{ReadModel, StreamKey};
use crate::query::{QueryError, Read};

/// The read model.
pub struct Devices;

/// How long after its last heartbeat a device counts as online.
pub const ONLINE: TimeDelta = TimeDelta::seconds(120);

/// A device as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Device)]
pub struct Row {
    /// Whose.
    pub tenant_id: TenantId,
    /// Its id.
    pub id: Uuid,
    /// Its version, as in the `ETag`.
    #[schema(example = 3)]
    pub version: i64,
    /// What its maker calls it.
    #[schema(example = "TH-2041-77")]
    pub serial: String,
    /// What kind of device it is.
    #[schema(example = "thermo-2")]
    pub model: String,
    /// Where it stands.
    pub status: Status,
    /// Why, if somebody said.
    #[schema(example = "not one of ours")]
    pub reason: Option<String>,
    /// Its group.
    #[schema(example = "vienna")]
    pub device_group: Option<String>,
    /// What it is found under.
    #[schema(example = json!(["basement"]))]
    pub tags: BTreeSet<String>,
    /// Whatever else is known of it.
    #[schema(value_type = Object, example = json!({"room": "3.14"}))]
    pub metadata: Value,
    /// When it became known.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

impl ReadModel for Devices {
    const NAME: &'static str = "devices_v1";
    type Events = Device;
    type Key = StreamKey;
    type Row = Row;

    fn keys(event: &Recorded<Event>) -> Vec<StreamKey> {
        StreamKey::of(event)
    }

    fn apply(key: &StreamKey, row: Option<Row>, event: &Recorded<Event>) -> Option<Row> {
        let at = event.recorded_at;
        let begin = |status, serial, model, metadata| Row {
            tenant_id: key.tenant_id,
            id: key.id,
            version: 0,
            serial,
            model,
            status,
            reason: None,
            device_group: None,
            tags: BTreeSet::new(),
            metadata,
            created_at: at,
            updated_at: at,
        };
        let stands = |row: Row, status, reason| Row { status, reason, ..row };
        let row = match (event.event.clone(), row) {
            (Event::Preregistered { serial, model, metadata, .. }, _) => begin(Status::Preregistered, serial, model, metadata),
            (Event::Registered { serial, model, metadata, .. }, _) => begin(Status::Pending, serial, model, metadata),
            (_, None) => return None,
            (Event::Claimed { .. } | Event::Reconsidered, Some(row)) => stands(row, Status::Pending, None),
            (Event::Accepted | Event::Enabled, Some(row)) => stands(row, Status::Active, None),
            (Event::Rejected { reason }, Some(row)) => stands(row, Status::Rejected, Some(reason)),
            (Event::Disabled, Some(row)) => stands(row, Status::Disabled, None),
            (Event::Quarantined { reason }, Some(row)) => stands(row, Status::Quarantined, Some(reason)),
            (Event::Decommissioned { .. }, Some(row)) => stands(row, Status::Decommissioned, None),
            (Event::MetadataUpdated { patch }, Some(mut row)) => {
                json_patch::merge(&mut row.metadata, &patch);
                row
            }
            (Event::Tagged { tag }, Some(mut row)) => {
                row.tags.insert(tag);
                row
            }
            (Event::Untagged { tag }, Some(mut row)) => {
                row.tags.remove(&tag);
                row
            }
            (Event::GroupAssigned { group }, Some(row)) => Row { device_group: group, ..row },
            (
                Event::CredentialRotated { .. }
                | Event::CredentialRevoked
                | Event::DesiredStateSet { .. }
                | Event::StateReported { .. }
                | Event::CommandSent { .. }
                | Event::CommandAcknowledged { .. }
                | Event::CommandExpired { .. },
                Some(row),
            ) => row,
        };
        Some(Row { version: event.version, updated_at: at, ..row })
    }
}

/// A device, and when it was last heard of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SeenDevice {
    /// The device.
    #[serde(flatten)]
    pub device: Row,
    /// When it last sent a heartbeat.
    pub last_seen_at: Option<DateTime<Utc>>,
    /// Whether that was within the last two minutes.
    #[schema(example = true)]
    pub online: bool,
}

/// Which devices; all that is given must hold.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Filter {
    /// In this status.
    pub status: Option<Status>,
    /// Of this model.
    pub model: Option<String>,
    /// In this group.
    pub group: Option<String>,
    /// Found under this word.
    pub tag: Option<String>,
    /// Heard of within the last two minutes, or not.
    pub online: Option<bool>,
    /// Whose serial number contains this.
    pub q: Option<String>,
}

/// In which order.
pub const ORDERS: Orders = Orders {
    columns: &[
        Column { name: "created_at", sql: "created_at", kind: "timestamptz" },
        Column { name: "updated_at", sql: "updated_at", kind: "timestamptz" },
        Column { name: "serial", sql: "serial", kind: "text" },
    ],
    tie: ("id", "uuid"),
};

/// When devices were last heard of.
async fn seen(read: &mut Read, devices: Vec<Row>, now: DateTime<Utc>) -> Result<Vec<SeenDevice>, QueryError> {
    let (tenants, ids): (Vec<Uuid>, Vec<Uuid>) = devices.iter().map(|device| (device.tenant_id.0, device.id)).unzip();
    let seen: Vec<(Uuid, Uuid, DateTime<Utc>)> = sqlx::query_as(
        "select tenant_id, device_id, last_seen_at from ops.device_heartbeats where (tenant_id, device_id) in (select * from unnest($1::uuid[], $2::uuid[]))",
    )
    .bind(tenants)
    .bind(ids)
    .fetch_all(read.connection())
    .await?;
    let of = |device: &Row| seen.iter().find(|(tenant, id, _)| (*tenant, *id) == (device.tenant_id.0, device.id)).map(|(.., at)| *at);
    let with = |device: Row| {
        let last_seen_at = of(&device);
        SeenDevice { online: last_seen_at.is_some_and(|at| now - at < ONLINE), last_seen_at, device }
    };
    Ok(devices.into_iter().map(with).collect())
}

/// One device, if there is such.
pub async fn by_id(read: &mut Read, id: Uuid, now: DateTime<Utc>) -> Result<Option<SeenDevice>, QueryError> {
    let row: Option<Json<Row>> =
        sqlx::query_scalar("select to_json(t) from read.devices_v1 t where id = $1").bind(id).fetch_optional(read.connection()).await?;
    Ok(seen(read, row.into_iter().map(|Json(row)| row).collect(), now).await?.pop())
}

/// Whether there is such a device.
pub async fn exists(read: &mut Read, id: Uuid) -> Result<bool, QueryError> {
    Ok(sqlx::query_scalar("select exists (select from read.devices_v1 where id = $1)").bind(id).fetch_one(read.connection()).await?)
}

/// One page of devices.
pub async fn list(
    read: &mut Read,
    cursors: &CursorKey,
    filter: &Filter,
    now: DateTime<Utc>,
    paging: &Paging,
) -> Result<Page<SeenDevice>, QueryError> {
    let mut query = list::select(Devices::NAME, paging);
    match filter.status {
        Some(status) => query.push(" and status = ").push_bind(status.as_str()),
        None => query.push(" and status <> 'decommissioned'"),
    };
    for (column, text) in [("model", &filter.model), ("device_group", &filter.group)] {
        if let Some(text) = text {
            query.push(format!(" and {column} = ")).push_bind(text.clone());
        }
    }
    if let Some(tag) = &filter.tag {
        query.push(" and tags @> array[").push_bind(tag.clone()).push("]::text[]");
    }
    if let Some(q) = &filter.q {
        query.push(" and serial ilike ").push_bind(list::containing(q));
    }
    if let Some(online) = filter.online {
        query.push(if online { " and" } else { " and not" });
        query.push(
            " exists (select from ops.device_heartbeats h where h.tenant_id = t.tenant_id and h.device_id = t.id and h.last_seen_at > ",
        );
        query.push_bind(now - ONLINE).push(")");
    }
    let page: Page<Row> = list::page(read, cursors, query, &json!([Devices::NAME, filter]).to_string(), paging).await?;
    Ok(Page { rows: seen(read, page.rows, now).await?, next: page.next })
}
