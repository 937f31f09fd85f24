//! An event as a message: CloudEvents 1.0 in binary mode (<https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/nats-protocol-binding.md>).
//!
//! The body is the payload, byte for byte as it stands in the log. Headers: `ce-specversion`, `ce-id` (event id), `ce-source` (`/tenure/<installation>`), `ce-type`
//! (`tenant.renamed`), `ce-subject` (`<aggregate type>/<tenant>/<id>`), `ce-time`, and the extensions `ce-tenantid`, `ce-sequence` (version in the stream),
//! `ce-position`, `ce-loghash`, `ce-tenanthash`, `ce-eventversion`, `ce-metadata` (JSON) and `ce-traceparent`.

use async_nats::HeaderMap;
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use store::{Decoded, Hash, Metadata, RawEvent};

use crate::Bus;

/// The message of an event: its headers and its body.
pub fn encode(bus: &Bus, event: &RawEvent) -> (HeaderMap, Bytes) {
    let mut headers = HeaderMap::new();
    let mut set = |name: &'static str, value: String| headers.insert(name, value.as_str());
    set("ce-specversion", "1.0".into());
    set("ce-id", event.event_id.to_string());
    set("ce-source", bus.source());
    set("ce-type", event.event_type.clone());
    set("ce-subject", format!("{}/{}", event.aggregate_type, event.aggregate_id));
    set("ce-time", event.recorded_at.to_rfc3339_opts(SecondsFormat::Micros, true));
    set("content-type", "application/json".into());
    set("ce-tenantid", event.tenant_id.to_string());
    set("ce-sequence", event.sequence.to_string());
    set("ce-position", event.position.to_string());
    set("ce-loghash", event.log_hash.to_string());
    set("ce-tenanthash", event.tenant_hash.to_string());
    set("ce-eventversion", event.event_version.clone());
    set("ce-metadata", event.metadata.clone());
    if let Ok(Metadata { traceparent: Some(traceparent), .. }) = serde_json::from_str(&event.metadata) {
        set("ce-traceparent", traceparent);
    }
    (headers, Bytes::from(event.payload.clone()))
}

/// The event of a message; `None` when the message was not made by [`encode`]. Its digest is computed from what the message says, so comparing `log_hash` with the chain
/// shows whether all of it is genuine.
pub fn decode(headers: &HeaderMap, body: &[u8]) -> Option<RawEvent> {
    let get = |name: &str| headers.get(name).map(async_nats::HeaderValue::as_str);
    let (aggregate_type, aggregate_id) = get("ce-subject")?.split_once('/')?;
    let mut event = RawEvent {
        position: get("ce-position")?.parse().ok()?,
        event_id: get("ce-id")?.parse().ok()?,
        tenant_id: get("ce-tenantid")?.parse().ok()?,
        aggregate_type: aggregate_type.to_owned(),
        aggregate_id: aggregate_id.to_owned(),
        sequence: get("ce-sequence")?.parse().ok()?,
        event_type: get("ce-type")?.to_owned(),
        event_version: get("ce-eventversion")?.to_owned(),
        payload: std::str::from_utf8(body).ok()?.to_owned(),
        metadata: get("ce-metadata")?.to_owned(),
        recorded_at: get("ce-time")?.parse::<DateTime<Utc>>().ok()?,
        digest: Hash::ZERO,
        tenant_hash: Hash::from_hex(get("ce-tenanthash")?)?,
        log_hash: Hash::from_hex(get("ce-loghash")?)?,
        decoded: Decoded::default(),
    };
    event.digest = event.computed_digest();
    Some(event)
}
