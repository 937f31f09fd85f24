//! Plans, with all their versions.

use chrono::{DateTime, Utc};
use domain::TenantId;
use domain::billing::meter::Entitlements;
use domain::billing::money::Money;
use domain::billing::period::Interval;
use domain::billing::plan::{Event, Plan, Terms};
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
pub struct Plans;

/// A plan as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Plan)]
pub struct Row {
    /// Whose: the platform's.
    pub tenant_id: TenantId,
    /// Its id.
    pub id: Uuid,
    /// Its stream's version, as in the `ETag`.
    #[schema(example = 1)]
    pub version: i64,
    /// What it is called in requests.
    #[schema(example = "growth")]
    pub code: String,
    /// What people call it.
    #[schema(example = "Growth")]
    pub name: String,
    /// Which version of it can be subscribed to now.
    #[schema(example = 1)]
    pub plan_version: u32,
    /// What it costs for one period.
    pub price: Money,
    /// How long a period is.
    pub interval: Interval,
    /// How many days it can be tried for nothing.
    #[schema(example = 14)]
    pub trial_days: u16,
    /// What it gives.
    #[schema(value_type = Object, example = json!({"users": {"quota": 25, "hard_percent": 100}}))]
    pub entitlements: Entitlements,
    /// Whether nobody can subscribe to it any more.
    pub retired: bool,
    /// All its versions, the first one first. They never change.
    pub versions: Vec<Version>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

/// A version of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = PlanVersion)]
pub struct Version {
    /// The how-manieth.
    #[schema(example = 1)]
    pub version: u32,
    /// What it costs and gives.
    pub terms: Terms,
    /// Since when.
    pub since: DateTime<Utc>,
}

impl ReadModel for Plans {
    const NAME: &'static str = "plans_v1";
    type Events = Plan;
    type Key = StreamKey;
    type Row = Row;

    fn keys(event: &Recorded<Event>) -> Vec<StreamKey> {
        StreamKey::of(event)
    }

    fn apply(key: &StreamKey, row: Option<Row>, event: &Recorded<Event>) -> Option<Row> {
        let at = event.recorded_at;
        let in_version = |row: Option<Row>, code: String, name: &str, version, terms: &Terms| {
            let (created_at, mut versions) = row.map_or((at, vec![]), |row| (row.created_at, row.versions));
            versions.push(Version { version, terms: terms.clone(), since: at });
            let Terms { price, interval, trial_days, entitlements } = terms.clone();
            Row {
                tenant_id: key.tenant_id,
                id: key.id,
                version: 0,
                code,
                name: name.to_owned(),
                plan_version: version,
                price,
                interval,
                trial_days,
                entitlements,
                retired: false,
                versions,
                created_at,
                updated_at: at,
            }
        };
        let row = match (&event.event, row) {
            (Event::Defined { code, name, terms }, _) => in_version(None, code.clone(), name, 1, terms),
            (Event::Revised { version, name, terms }, Some(row)) => {
                let code = row.code.clone();
                in_version(Some(row), code, name, *version, terms)
            }
            (Event::Retired, Some(row)) => Row { retired: true, ..row },
            (Event::Revised { .. } | Event::Retired, None) => return None,
        };
        Some(Row { version: event.version, updated_at: at, ..row })
    }
}

/// In which order.
pub const ORDERS: Orders = Orders {
    columns: &[Column { name: "created_at", sql: "created_at", kind: "timestamptz" }, Column { name: "code", sql: "code", kind: "text" }],
    tie: ("id", "uuid"),
};

/// One plan, if it exists.
pub async fn by_id(read: &mut Read, id: Uuid) -> Result<Option<Doc<Row>>, QueryError> {
    read.one(Sql::rows(Plans::NAME).push(" and id = ").bind(id)).await
}

/// One page of the plans: those that can be subscribed to, or all.
pub async fn list(read: &mut Read, cursors: &CursorKey, retired: bool, paging: &Paging) -> Result<Page<Row>, QueryError> {
    let mut query = list::select(Plans::NAME, paging);
    if !retired {
        query.push(" and not retired");
    }
    list::page(read, cursors, query, &json!([Plans::NAME, retired]).to_string(), paging).await
}
