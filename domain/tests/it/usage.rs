use chrono::{DateTime, TimeDelta};
use chrono_tz::Tz;
use domain::Aggregate as _;
use domain::billing::meter::Meter;
use domain::billing::money::{Currency, Money, UnitPrice};
use domain::billing::outlet::{Event as OutletEvent, Outlet, WhatsApp};
use domain::billing::quota::{Event as QuotaEvent, Quota};
use domain::billing::usage::{Event, Usage, Used};
use domain::iot::device::{Device, Event as DeviceEvent, Outcome};
use serde_json::json;
use uuid::Uuid;

#[test]
fn every_event_of_usage_and_quotas_is_stored_as_it_always_was() {
    let at = DateTime::from_timestamp(1_767_225_600, 0).unwrap();
    let (meter, period) = (Meter::Messages, "2026-01".parse().unwrap());
    let items = vec![Used { id: "msg-2041".into(), quantity: 3, at }];
    let usage = [
        Event::Recorded { meter, period, adjusts: Some("2025-12".parse().unwrap()), total: 3, items, time_zone: Tz::UTC },
        Event::Reserved { meter, period, quantity: 20, expires_at: at + TimeDelta::minutes(5), time_zone: Tz::UTC },
        Event::Committed { meter, period, reserved: 20, quantity: 17, time_zone: Tz::UTC },
        Event::Released { meter, period, reserved: 20 },
        Event::Expired { meter, period, reserved: 20 },
    ];
    crate::check("usage", Usage::EVENTS, &usage);
    let ends_at = at + TimeDelta::days(31);
    let quota = [
        QuotaEvent::PeriodOpened { meter, period, ends_at, closes_at: ends_at + TimeDelta::hours(72) },
        QuotaEvent::ThresholdCrossed { meter, period, threshold: 80, generation: 1, used: 812, quota: 1000, highest: true },
        QuotaEvent::PeriodClosed {
            meter,
            period,
            used: 1049,
            quota: Some(1000),
            overage: 49,
            unit_price: Some(UnitPrice { amount: 2_000, per: 1_000.try_into().unwrap() }),
            amount: Some(Money::new(98, Currency::USD)),
            plan: Some("starter".into()),
            plan_version: Some(1),
            segments: vec![],
        },
    ];
    crate::check("quota", Quota::EVENTS, &quota);
}

#[test]
fn every_event_of_outlets_and_devices_is_stored_as_it_always_was() {
    let at = DateTime::from_timestamp(1_767_225_600, 0).unwrap();
    let whatsapp = WhatsApp {
        phone_number_id: "106540352242922".into(),
        account_id: "102290129340398".into(),
        secret_ref: "vault:whatsapp/acme-vienna".into(),
    };
    let (phone, whatsapp) = (Some("+4312345678".to_owned()), Some(whatsapp));
    let outlets = [
        OutletEvent::Created { name: "Vienna".into(), phone: phone.clone(), whatsapp: whatsapp.clone() },
        OutletEvent::Updated { name: "Vienna Central".into(), phone, whatsapp },
        OutletEvent::Removed,
    ];
    crate::check("outlet", Outlet::EVENTS, &outlets);
    let (command, credential) = (Uuid::from_u128(5), Uuid::from_u128(6));
    let (serial, model) = ("TH-2041-77".to_owned(), "thermo-2".to_owned());
    let devices = [
        DeviceEvent::Preregistered {
            serial: serial.clone(),
            model: model.clone(),
            metadata: json!({"batch": 7}),
            claim_digest: "9f86".into(),
        },
        DeviceEvent::Registered { serial, model, metadata: json!({"room": "3.14"}), credential },
        DeviceEvent::Claimed { credential },
        DeviceEvent::Accepted,
        DeviceEvent::Rejected { reason: "not one of ours".into() },
        DeviceEvent::Reconsidered,
        DeviceEvent::Enabled,
        DeviceEvent::Disabled,
        DeviceEvent::Quarantined { reason: "sends from two places at once".into() },
        DeviceEvent::Decommissioned { released: 1 },
        DeviceEvent::MetadataUpdated { patch: json!({"mac": null}) },
        DeviceEvent::Tagged { tag: "basement".into() },
        DeviceEvent::Untagged { tag: "basement".into() },
        DeviceEvent::GroupAssigned { group: Some("vienna".into()) },
        DeviceEvent::CredentialRotated { credential, previous_until: at },
        DeviceEvent::CredentialRevoked,
        DeviceEvent::DesiredStateSet { patch: json!({"led": "off"}), version: 1 },
        DeviceEvent::StateReported { patch: json!({"led": "on"}), seq: 1 },
        DeviceEvent::CommandSent { command, method: "reboot".into(), params: json!({"delay_s": 5}), expires_at: at },
        DeviceEvent::CommandAcknowledged { command, outcome: Outcome::Done, result: json!({"uptime_s": 3}) },
        DeviceEvent::CommandExpired { command },
    ];
    crate::check("device", Device::EVENTS, &devices);
}
