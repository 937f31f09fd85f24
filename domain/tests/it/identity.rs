use chrono::DateTime;
use domain::identity::access_record::{AccessRecord, Action, Event as Record, Outcome};
use domain::identity::api_key::{ApiKey, Event as Key, Kind};
use domain::identity::role::{Event as RoleEvent, Role as CustomRole};
use domain::identity::user::{Event, User};
use domain::{Aggregate as _, Personal, Role, RoleId, UserId};
use uuid::Uuid;

#[test]
fn every_event_of_users_roles_keys_and_access_records_is_stored_as_it_always_was() {
    let (ada, grace) = (UserId(Uuid::from_u128(1)), UserId(Uuid::from_u128(2)));
    let (token, role) = (Uuid::from_u128(3), Role::Custom(RoleId(Uuid::from_u128(4))));
    let personal = |text: &str| Personal::new(ada.into(), text.to_owned());
    let time = DateTime::from_timestamp(1_767_225_600, 0).unwrap();
    let users = [
        Event::Registered { email: personal("ada@example.com"), email_verified: true, name: personal("Ada"), role: Role::OrgAdmin },
        Event::Invited {
            email: personal("ada@example.com"),
            name: Some(personal("Ada")),
            role,
            token,
            expires_at: time,
            hours: 24,
            invited_by: Some(grace),
        },
        Event::InvitationResent { token, expires_at: time },
        Event::InvitationAccepted { name: personal("Ada") },
        Event::InvitationDeclined,
        Event::InvitationRevoked,
        Event::InvitationExpired,
        Event::EmailVerificationRequested { token, expires_at: time },
        Event::EmailVerified,
        Event::EmailChanged { email: personal("ada@example.org") },
        Event::ProfileUpdated { name: Some(personal("Ada L.")), locale: Some(personal("en-GB")), time_zone: None, removed: vec![] },
        Event::RoleChanged { from: Role::User, to: role },
        Event::PasswordSet { credential: token, keeps: Some(token), by_owner: true },
        Event::PasswordResetRequested { token, expires_at: time, welcome: false },
        Event::LoggedIn { session: token, by_password: true },
        Event::LoginFailed { failures: 3 },
        Event::LoginAttemptsLimited { until: time },
        Event::Locked { until: time },
        Event::Unlocked,
        Event::Suspended { reason: personal("asked to") },
        Event::Reactivated { seats: 0 },
        Event::Deactivated,
        Event::Deleted { seats: 0 },
        Event::Erased { subject: ada.into() },
    ];
    crate::check("user", User::EVENTS, &users);
    let permissions = || ["ticket:open", "ticket:read"].map(String::from).into();
    let roles = [
        RoleEvent::Defined { name: "Dispatcher".into(), permissions: permissions() },
        RoleEvent::Renamed { name: "Router".into() },
        RoleEvent::PermissionsChanged { permissions: permissions() },
        RoleEvent::Deleted,
    ];
    crate::check("role", CustomRole::EVENTS, &roles);
    let keys = [
        Key::Created {
            name: "nightly export".into(),
            prefix: "tnr_s7Qd0wJx".into(),
            kind: Kind::Service,
            owner: Some(ada),
            scopes: permissions(),
            expires_at: Some(time),
            secret: token,
        },
        Key::Rotated { secret: token, prefix: "tnr_s7Qd0wJx".into(), previous_until: time },
        Key::Revoked,
    ];
    crate::check("api_key", ApiKey::EVENTS, &keys);
    let noted = [Record::Noted {
        action: Action::Command,
        outcome: Outcome::Refused,
        actor: Some(ada.to_string()),
        target: Some("POST /v1/tenants".into()),
        code: Some("auth.forbidden".into()),
        count: None,
        source: None,
    }];
    crate::check("access_record", AccessRecord::EVENTS, &noted);
}
