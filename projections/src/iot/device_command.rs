//! What devices were asked to do, and what became of it.

use chrono::{DateTime, Utc};
use domain::TenantId;
use domain::iot::device::{Device, Event, Outcome};
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
pub struct Commands;

/// The key of a command; ids are the clients' own, and unique within a device.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Key {
    tenant_id: TenantId,
    device_id: Uuid,
    id: Uuid,
}

/// What has become of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CommandStatus {
    /// It waits for the device.
    Pending,
    /// It was done.
    Done,
    /// It was not.
    Failed,
    /// Nobody said so in time.
    Expired,
}

impl CommandStatus {
    fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Expired => "expired",
        }
    }
}

/// A command of a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = DeviceCommand)]
pub struct Row {
    /// Whose.
    pub tenant_id: TenantId,
    /// Of which device.
    pub device_id: Uuid,
    /// Its id.
    pub id: Uuid,
    /// What the device is asked to do.
    #[schema(example = "reboot")]
    pub method: String,
    /// With what.
    #[schema(value_type = Object, example = json!({"delay_s": 5}))]
    pub params: Value,
    /// What has become of it.
    pub status: CommandStatus,
    /// What the device had to say of it.
    #[schema(value_type = Object, example = json!({"uptime_s": 3}))]
    pub result: Option<Value>,
    /// When it was sent.
    pub sent_at: DateTime<Utc>,
    /// Until when it waits.
    pub expires_at: DateTime<Utc>,
    /// When something became of it.
    pub settled_at: Option<DateTime<Utc>>,
}

impl ReadModel for Commands {
    const NAME: &'static str = "device_commands_v1";
    type Events = Device;
    type Key = Key;
    type Row = Row;

    fn keys(event: &Recorded<Event>) -> Vec<Key> {
        let about = if let Event::CommandSent { command, .. }
        | Event::CommandAcknowledged { command, .. }
        | Event::CommandExpired { command } = event.event
        {
            Some(command)
        } else {
            None
        };
        about.into_iter().map(|id| Key { tenant_id: event.stream.tenant, device_id: event.stream.id, id }).collect()
    }

    fn apply(key: &Key, row: Option<Row>, event: &Recorded<Event>) -> Option<Row> {
        let settled_at = Some(event.recorded_at);
        match (event.event.clone(), row) {
            (Event::CommandSent { command, method, params, expires_at }, _) => Some(Row {
                tenant_id: key.tenant_id,
                device_id: key.device_id,
                id: command,
                method,
                params,
                status: CommandStatus::Pending,
                result: None,
                sent_at: event.recorded_at,
                expires_at,
                settled_at: None,
            }),
            (Event::CommandAcknowledged { outcome, result, .. }, Some(row)) => {
                let status = match outcome {
                    Outcome::Done => CommandStatus::Done,
                    Outcome::Failed => CommandStatus::Failed,
                };
                Some(Row { status, result: Some(result), settled_at, ..row })
            }
            (Event::CommandExpired { .. }, Some(row)) => Some(Row { status: CommandStatus::Expired, settled_at, ..row }),
            (_, row) => row,
        }
    }
}

/// In which order.
pub const ORDERS: Orders = Orders { columns: &[Column { name: "sent_at", sql: "sent_at", kind: "timestamptz" }], tie: ("id", "uuid") };

/// One page of a device's commands.
pub async fn list(
    read: &mut Read,
    cursors: &CursorKey,
    device: Uuid,
    status: Option<CommandStatus>,
    paging: &Paging,
) -> Result<Page<Row>, QueryError> {
    let mut query = list::select(Commands::NAME, paging);
    query.push(" and device_id = ").bind(device);
    if let Some(status) = status {
        query.push(" and status = ").bind(status.as_str());
    }
    list::page(read, cursors, query, &json!([Commands::NAME, device, status]).to_string(), paging).await
}
