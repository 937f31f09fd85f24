//! The roles that tenants have defined.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use domain::TenantId;
use domain::identity::role::{Event, Role};
use serde::{Deserialize, Serialize};
use serde_json::json;
use store::Recorded;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::cursor::CursorKey;
use crate::list::{self, Column, Orders, Page, Paging};
use crate::model::{ReadModel, StreamKey};
use crate::query::{QueryError, Read};
use crate::row::Doc;
use crate::sql::Sql;

/// The read model.
pub struct Roles;

/// A role as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = CustomRole)]
pub struct Row {
    /// Whose.
    pub tenant_id: TenantId,
    /// Its id: what a user's `role` says.
    pub id: Uuid,
    /// Its version, as in the `ETag`.
    #[schema(example = 2)]
    pub version: i64,
    /// What it is called.
    #[schema(example = "Dispatcher")]
    pub name: String,
    /// What somebody in it may.
    #[schema(example = json!(["ticket:read", "ticket:assign"]))]
    pub permissions: BTreeSet<String>,
    /// When it was defined.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

impl ReadModel for Roles {
    const NAME: &'static str = "roles_v1";
    type Events = Role;
    type Key = StreamKey;
    type Row = Row;

    fn keys(event: &Recorded<Event>) -> Vec<StreamKey> {
        StreamKey::of(event)
    }

    fn apply(key: &StreamKey, row: Option<Row>, event: &Recorded<Event>) -> Option<Row> {
        let at = event.recorded_at;
        let row = match (&event.event, row) {
            (Event::Defined { name, permissions }, _) => Row {
                tenant_id: key.tenant_id,
                id: key.id,
                version: 0,
                name: name.clone(),
                permissions: permissions.clone(),
                created_at: at,
                updated_at: at,
            },
            (Event::Renamed { name }, row) => Row { name: name.clone(), ..row? },
            (Event::PermissionsChanged { permissions }, row) => Row { permissions: permissions.clone(), ..row? },
            (Event::Deleted, _) => return None,
        };
        Some(Row { version: event.version, updated_at: at, ..row })
    }
}

/// In which order.
pub const ORDERS: Orders = Orders { columns: &[Column { name: "name", sql: "lower(name)", kind: "text" }], tie: ("id", "uuid") };

/// One role, if it exists and the view may see it.
pub async fn by_id(read: &mut Read, id: Uuid) -> Result<Option<Doc<Row>>, QueryError> {
    read.one(Sql::rows(Roles::NAME).push(" and id = ").bind(id)).await
}

/// One page of the roles that the view may see.
pub async fn list(read: &mut Read, cursors: &CursorKey, paging: &Paging) -> Result<Page<Row>, QueryError> {
    let query = list::select(Roles::NAME, paging);
    list::page(read, cursors, query, &json!([Roles::NAME]).to_string(), paging).await
}
