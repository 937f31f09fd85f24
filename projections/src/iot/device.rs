//! Devices, and whether they are heard of.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};
use domain::TenantId;
use domain::iot::device::{Device, Event, Status};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::Recorded;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::cursor::CursorKey;
use crate::list::{self, Column, Orders, Page, Paging};
use crate::model::{ReadModel, StreamKey};
use crate::query::{Found, QueryError, Read};
use crate::row::Doc;
use crate::sql::Sql;

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

/// When a device was last heard of, beside its row.
const SEEN: &str =
    "(select to_json(h.last_seen_at)::text from ops.device_heartbeats h where h.tenant_id = t.tenant_id and h.device_id = t.id)";

/// What is known of a device besides its row.
#[derive(Serialize)]
struct Beside {
    last_seen_at: Option<DateTime<Utc>>,
    online: bool,
}

fn seen(found: Found<Row>, now: DateTime<Utc>) -> Result<Doc<SeenDevice>, QueryError> {
    let last_seen_at: Option<DateTime<Utc>> = found.beside.map(|at| serde_json::from_str(&at)).transpose()?;
    found.row.with(&Beside { last_seen_at, online: last_seen_at.is_some_and(|at| now - at < ONLINE) })
}

/// One device, if there is such.
pub async fn by_id(read: &mut Read, id: Uuid, now: DateTime<Utc>) -> Result<Option<Doc<SeenDevice>>, QueryError> {
    let mut sql = Sql::rows_beside(Devices::NAME, SEEN);
    read.one_beside(sql.push(" and id = ").bind(id)).await?.map(|found| seen(found, now)).transpose()
}

/// Whether there is such a device.
pub async fn exists(read: &mut Read, id: Uuid) -> Result<bool, QueryError> {
    Ok(read.one::<Row>(Sql::rows(Devices::NAME).push(" and id = ").bind(id)).await?.is_some())
}

/// One page of devices.
pub async fn list(
    read: &mut Read,
    cursors: &CursorKey,
    filter: &Filter,
    now: DateTime<Utc>,
    paging: &Paging,
) -> Result<Page<SeenDevice>, QueryError> {
    let mut query = list::select_beside(Devices::NAME, paging, SEEN);
    match filter.status {
        Some(status) => query.push(" and status = ").bind(status.as_str()),
        None => query.push(" and status <> 'decommissioned'"),
    };
    for (column, text) in [("model", &filter.model), ("device_group", &filter.group)] {
        if let Some(text) = text {
            query.push(&format!(" and {column} = ")).bind(text);
        }
    }
    if let Some(tag) = &filter.tag {
        query.search("few_devices_tagged", tag, " and id in (select read.devices_tagged($value))", " and tags @> array[$value]");
    }
    if let Some(q) = &filter.q {
        let pattern = list::containing(q);
        query.search("few_devices_like", &pattern, " and id in (select read.devices_like($value))", " and serial ilike $value");
    }
    if let Some(online) = filter.online {
        query.push(if online { " and" } else { " and not" });
        query.push(
            " exists (select from ops.device_heartbeats h where h.tenant_id = t.tenant_id and h.device_id = t.id and h.last_seen_at > ",
        );
        query.bind(now - ONLINE).push(")");
    }
    let (found, next) = list::page_beside(read, cursors, query, &json!([Devices::NAME, filter]).to_string(), paging).await?;
    Ok(Page { rows: found.into_iter().map(|found| seen(found, now)).collect::<Result<_, _>>()?, next })
}
