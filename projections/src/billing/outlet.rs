//! Outlets.

use chrono::{DateTime, Utc};
use domain::TenantId;
use domain::billing::outlet::{Event, Outlet, WhatsApp};
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
pub struct Outlets;

/// An outlet as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Outlet)]
pub struct Row {
    /// Whose.
    pub tenant_id: TenantId,
    /// Its id.
    pub id: Uuid,
    /// Its version, as in the `ETag`.
    #[schema(example = 1)]
    pub version: i64,
    /// What people call it.
    #[schema(example = "Vienna")]
    pub name: String,
    /// Where it is called.
    #[schema(example = "+4312345678")]
    pub phone: Option<String>,
    /// How it sends messages.
    pub whatsapp: Option<WhatsApp>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

impl ReadModel for Outlets {
    const NAME: &'static str = "outlets_v1";
    type Events = Outlet;
    type Key = StreamKey;
    type Row = Row;

    fn keys(event: &Recorded<Event>) -> Vec<StreamKey> {
        StreamKey::of(event)
    }

    fn apply(key: &StreamKey, row: Option<Row>, event: &Recorded<Event>) -> Option<Row> {
        let updated_at = event.recorded_at;
        match event.event.clone() {
            Event::Created { name, phone, whatsapp } | Event::Updated { name, phone, whatsapp } => Some(Row {
                tenant_id: key.tenant_id,
                id: key.id,
                version: event.version,
                name,
                phone,
                whatsapp,
                created_at: row.map_or(updated_at, |row| row.created_at),
                updated_at,
            }),
            Event::Removed => None,
        }
    }
}

/// In which order.
pub const ORDERS: Orders = Orders {
    columns: &[Column { name: "created_at", sql: "created_at", kind: "timestamptz" }, Column { name: "name", sql: "name", kind: "text" }],
    tie: ("id", "uuid"),
};

/// One outlet, if there is such.
pub async fn by_id(read: &mut Read, id: Uuid) -> Result<Option<Doc<Row>>, QueryError> {
    read.one(Sql::rows(Outlets::NAME).push(" and id = ").bind(id)).await
}

/// One page of the outlets whose name or number contains a text.
pub async fn list(read: &mut Read, cursors: &CursorKey, q: Option<&str>, paging: &Paging) -> Result<Page<Row>, QueryError> {
    let mut query = list::select(Outlets::NAME, paging);
    if let Some(q) = q {
        let pattern = list::containing(q);
        query.push(" and (name ilike ").bind(pattern.clone()).push(" or phone ilike ").bind(pattern).push(")");
    }
    list::page(read, cursors, query, &json!([Outlets::NAME, q]).to_string(), paging).await
}
