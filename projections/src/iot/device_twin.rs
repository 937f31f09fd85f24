//! How devices should be, how they are, and what is between.

use chrono::{DateTime, Utc};
use domain::TenantId;
use domain::iot::device::{Device, Event};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use store::Recorded;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::model::{ReadModel, StreamKey};
use crate::query::{QueryError, Read};
use crate::row::Doc;
use crate::sql::Sql;

/// The read model.
pub struct Twins;

/// A device's twin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = DeviceTwin)]
pub struct Row {
    /// Whose.
    pub tenant_id: TenantId,
    /// The device's id.
    pub id: Uuid,
    /// The version of the device that this reflects.
    #[schema(example = 4)]
    pub version: i64,
    /// How it should be.
    #[schema(value_type = Object, example = json!({"interval_s": 60, "led": "off"}))]
    pub desired: Value,
    /// The how-manieth wish that is; 0: there was none.
    #[schema(example = 1)]
    pub desired_version: i64,
    /// How it is, by its own word.
    #[schema(value_type = Object, example = json!({"interval_s": 60}))]
    pub reported: Value,
    /// The number of its last report; 0: there was none.
    #[schema(example = 1)]
    pub reported_seq: i64,
    /// What would have to be changed for it to be as it should: a merge patch (RFC 7396).
    #[schema(value_type = Object, example = json!({"led": "off"}))]
    pub difference: Value,
    /// When it last reported.
    pub reported_at: Option<DateTime<Utc>>,
    /// When this last changed.
    pub updated_at: DateTime<Utc>,
}

/// What of `desired` is not so in `reported`, at any depth.
fn difference(desired: &Map<String, Value>, reported: &Map<String, Value>) -> Map<String, Value> {
    let differs = |(name, wanted): (&String, &Value)| match (wanted, reported.get(name)) {
        (Value::Object(wanted), Some(Value::Object(is))) => {
            let inner = difference(wanted, is);
            (!inner.is_empty()).then(|| (name.clone(), Value::Object(inner)))
        }
        (wanted, is) => (is != Some(wanted)).then(|| (name.clone(), wanted.clone())),
    };
    desired.iter().filter_map(differs).collect()
}

impl ReadModel for Twins {
    const NAME: &'static str = "device_twins_v2";
    type Events = Device;
    type Key = StreamKey;
    type Row = Row;

    fn keys(event: &Recorded<Event>) -> Vec<StreamKey> {
        // Whatever happens to the device moves its version, and so that of its twin.
        StreamKey::of(event)
    }

    fn apply(key: &StreamKey, row: Option<Row>, event: &Recorded<Event>) -> Option<Row> {
        let empty = || Value::Object(Map::new());
        let mut row = row.unwrap_or_else(|| Row {
            tenant_id: key.tenant_id,
            id: key.id,
            version: 0,
            desired: empty(),
            desired_version: 0,
            reported: empty(),
            reported_seq: 0,
            difference: empty(),
            reported_at: None,
            updated_at: event.recorded_at,
        });
        if let Event::DesiredStateSet { patch, version } = &event.event {
            json_patch::merge(&mut row.desired, patch);
            row.desired_version = *version;
        } else if let Event::StateReported { patch, seq } = &event.event {
            json_patch::merge(&mut row.reported, patch);
            row.reported_seq = *seq;
            row.reported_at = Some(event.recorded_at);
        }
        if let (Value::Object(desired), Value::Object(reported)) = (&row.desired, &row.reported) {
            row.difference = Value::Object(difference(desired, reported));
        }
        Some(Row { version: event.version, updated_at: event.recorded_at, ..row })
    }
}

/// A device's twin, if there is such a device.
pub async fn by_id(read: &mut Read, id: Uuid) -> Result<Option<Doc<Row>>, QueryError> {
    read.one(Sql::rows(Twins::NAME).push(" and id = ").bind(id)).await
}
