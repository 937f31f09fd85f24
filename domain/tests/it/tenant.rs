use chrono::DateTime;
use domain::billing::meter::Meter;
use domain::identity::tenant::{Event, Owner, Tenant};
use domain::{Aggregate as _, Personal, SubjectId};
use serde_json::json;
use uuid::Uuid;

#[test]
fn every_tenant_event_is_stored_as_it_always_was() {
    let subject = SubjectId(Uuid::from_u128(1));
    let time = DateTime::from_timestamp(1_767_225_600, 0).unwrap();
    let samples = [
        Event::Provisioned {
            slug: "acme".into(),
            name: "Acme GmbH".into(),
            plan: Some("growth".into()),
            owner: Some(Owner {
                subject,
                email: Personal::new(subject, "ada@example.com".into()),
                name: Personal::new(subject, "Ada".into()),
            }),
        },
        Event::ProvisioningCompleted { trialing: true },
        Event::Renamed { name: "Acme AG".into() },
        Event::SlugChanged { from: "acme".into(), to: "acme-ag".into(), alias_until: time },
        Event::SlugAliasExpired { slug: "acme".into() },
        Event::SettingsUpdated { patch: json!({"theme": "dark", "old": null}) },
        Event::LlmConfigSet { provider: "openai".into(), model: "gpt-4o".into(), secret_ref: "vault:llm/acme".into() },
        Event::BrandingSet { primary_color: Some("#0a7cff".into()), logo_url: None },
        Event::Suspended { reason: "invoice unpaid".into(), for_payment: false },
        Event::Frozen,
        Event::Deactivated,
        Event::Cancelled { at: time, with_subscription: false },
        Event::Reactivated,
        Event::Activated,
        Event::BecamePastDue,
        Event::LimitOverridden { meter: Meter::Users, limit: 50, until: Some(time) },
        Event::LimitOverrideCleared { meter: Meter::Users },
        Event::DomainAdded { domain: "acme.example".into(), token: Uuid::from_u128(2) },
        Event::DomainVerified { domain: "acme.example".into() },
        Event::DomainRemoved { domain: "acme.example".into() },
        Event::Deleted,
    ];
    crate::check("tenant", Tenant::EVENTS, &samples);
}
