//! API keys, without their secrets.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use domain::identity::api_key::{ApiKey, Event, Kind};
use domain::{TenantId, UserId};
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
pub struct ApiKeys;

/// A key as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = ApiKey)]
pub struct Row {
    /// Whose.
    pub tenant_id: TenantId,
    /// Its id.
    pub id: Uuid,
    /// Its version, as in the `ETag`.
    #[schema(example = 1)]
    pub version: i64,
    /// What it is called.
    #[schema(example = "nightly export")]
    pub name: String,
    /// How it begins.
    #[schema(example = "tnr_s7Qd0wJx")]
    pub prefix: String,
    /// Whose it is.
    pub kind: Kind,
    /// Who made it.
    pub owner_id: Option<UserId>,
    /// What it may; a personal one only as far as its owner may.
    #[schema(example = json!(["ticket:read"]))]
    pub scopes: BTreeSet<String>,
    /// Until when it is good; for ever, if nothing is said.
    pub expires_at: Option<DateTime<Utc>>,
    /// Until when the secret before the present one is good too.
    pub previous_until: Option<DateTime<Utc>>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

impl ReadModel for ApiKeys {
    const NAME: &'static str = "api_keys_v1";
    type Events = ApiKey;
    type Key = StreamKey;
    type Row = Row;

    fn keys(event: &Recorded<Event>) -> Vec<StreamKey> {
        StreamKey::of(event)
    }

    fn apply(key: &StreamKey, row: Option<Row>, event: &Recorded<Event>) -> Option<Row> {
        let at = event.recorded_at;
        let row = match (&event.event, row) {
            (Event::Created { name, prefix, kind, owner, scopes, expires_at, secret: _ }, _) => Row {
                tenant_id: key.tenant_id,
                id: key.id,
                version: 0,
                name: name.clone(),
                prefix: prefix.clone(),
                kind: *kind,
                owner_id: *owner,
                scopes: scopes.clone(),
                expires_at: *expires_at,
                previous_until: None,
                revoked_at: None,
                created_at: at,
                updated_at: at,
            },
            (Event::Rotated { secret: _, prefix, previous_until }, row) => {
                Row { prefix: prefix.clone(), previous_until: Some(*previous_until), ..row? }
            }
            (Event::Revoked, row) => Row { revoked_at: Some(at), ..row? },
        };
        Some(Row { version: event.version, updated_at: at, ..row })
    }
}

/// In which order.
pub const ORDERS: Orders =
    Orders { columns: &[Column { name: "created_at", sql: "created_at", kind: "timestamptz" }], tie: ("id", "uuid") };

/// One key, if it exists, the view may see it, and it belongs to this person where only theirs are to be seen.
pub async fn by_id(read: &mut Read, id: Uuid, only: Option<UserId>) -> Result<Option<Doc<Row>>, QueryError> {
    let mut sql = Sql::rows(ApiKeys::NAME);
    sql.push(" and id = ").bind(id);
    if let Some(user) = only {
        sql.push(" and kind = 'personal' and owner_id = ").bind(user);
    }
    read.one(&sql).await
}

/// One page of the keys that the view may see: of all, or the personal ones of one person.
pub async fn list(read: &mut Read, cursors: &CursorKey, only: Option<UserId>, paging: &Paging) -> Result<Page<Row>, QueryError> {
    let mut query = list::select(ApiKeys::NAME, paging);
    if let Some(user) = only {
        query.push(" and kind = 'personal' and owner_id = ").bind(user.0);
    }
    list::page(read, cursors, query, &json!([ApiKeys::NAME, only]).to_string(), paging).await
}
