//! Who tried what: logins and what they came to, changes of roles, rights and keys, refused commands, and who has read this.

use chrono::{DateTime, Utc};
use cqrs_es::{Aggregate as _, DomainEvent as _};
use domain::identity::access_record::{self, AccessRecord, Outcome};
use domain::identity::api_key::{self, ApiKey};
use domain::identity::role::{self, Role};
use domain::identity::user::{self, User};
use domain::{Actor, TenantId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::load::LoadError;
use store::{RawEvent, Recorded, Store};
use utoipa::ToSchema;

use crate::cursor::CursorKey;
use crate::list::{self, Column, Orders, Page, Paging};
use crate::model::{ReadModel, Source};
use crate::query::{QueryError, Read};

/// The read model.
pub struct AccessRecords;

/// Events of every aggregate that has to do with access.
pub struct Accessed;

/// One of them.
pub enum Event {
    /// Of a user.
    User(user::Event),
    /// Of a role.
    Role(role::Event),
    /// Of a key.
    Key(api_key::Event),
    /// What no other aggregate tells.
    Noted(access_record::Event),
}

impl Source for Accessed {
    const TYPES: &'static [&'static str] = &[User::TYPE, Role::TYPE, ApiKey::TYPE, AccessRecord::TYPE];

    type Event = Event;

    async fn typed(store: &Store, events: &[&RawEvent]) -> Result<Vec<Recorded<Event>>, LoadError> {
        let of = |kind: &str| -> Vec<&RawEvent> { events.iter().copied().filter(|event| event.aggregate_type == kind).collect() };
        let mut all = Vec::with_capacity(events.len());
        all.extend(store.typed::<User>(&of(User::TYPE)).await?.into_iter().map(|event| event.map(Event::User)));
        all.extend(store.typed::<Role>(&of(Role::TYPE)).await?.into_iter().map(|event| event.map(Event::Role)));
        all.extend(store.typed::<ApiKey>(&of(ApiKey::TYPE)).await?.into_iter().map(|event| event.map(Event::Key)));
        all.extend(store.typed::<AccessRecord>(&of(AccessRecord::TYPE)).await?.into_iter().map(|event| event.map(Event::Noted)));
        all.sort_by_key(|event| event.position);
        Ok(all)
    }
}

/// The key of a record.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Key {
    tenant_id: TenantId,
    position: i64,
}

/// A record as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = AccessRecord)]
pub struct Row {
    /// Whose.
    pub tenant_id: TenantId,
    /// Its place in the log.
    pub position: i64,
    /// What was done or tried: an event, such as `user.role_changed`, or `access.command`, `access.login` (of nobody), `access.refresh_token_reuse`, `access.end_session`,
    /// `access.read_records`.
    #[schema(example = "user.role_changed")]
    pub action: String,
    /// Who: the id of a user or a key, or a part of Tenure.
    #[schema(example = "01900000-0000-7000-8000-000000000001")]
    pub actor: Option<String>,
    /// On whom or what.
    #[schema(example = "01900000-0000-7000-8000-000000000002")]
    pub target: Option<String>,
    /// What came of it.
    pub outcome: Outcome,
    /// What else is known. Nothing personal.
    #[schema(value_type = Object, example = json!({"from": "user", "to": "org_admin"}))]
    pub detail: Value,
    /// When.
    pub occurred_at: DateTime<Utc>,
}

impl ReadModel for AccessRecords {
    const NAME: &'static str = "access_records_v1";
    type Events = Accessed;
    type Key = Key;
    type Row = Row;

    fn keys(event: &Recorded<Event>) -> Vec<Key> {
        vec![Key { tenant_id: event.stream.tenant, position: event.position }]
    }

    fn apply(key: &Key, _: Option<Row>, event: &Recorded<Event>) -> Option<Row> {
        let own = event.stream.id.to_string();
        let told =
            Told { action: String::new(), actor: Some(event.actor.name()), target: Some(own), outcome: Outcome::Done, detail: json!({}) };
        let told = match &event.event {
            Event::User(user) => of_user(told, user, &event.actor),
            Event::Role(role) => Told { action: role.event_type(), detail: of_role(role), ..told },
            Event::Key(key) => Told { action: key.event_type(), detail: of_key(key), ..told },
            Event::Noted(access_record::Event::Noted { action, outcome, actor, target, code, count, source }) => Told {
                action: format!("access.{}", json!(action).as_str().unwrap_or_default()),
                actor: actor.clone(),
                target: target.clone(),
                outcome: *outcome,
                detail: of_note(code.as_ref(), *count, source.as_ref()),
            },
        };
        Some(Row {
            tenant_id: key.tenant_id,
            position: key.position,
            action: told.action,
            actor: told.actor,
            target: told.target,
            outcome: told.outcome,
            detail: told.detail,
            occurred_at: event.recorded_at,
        })
    }
}

struct Told {
    action: String,
    actor: Option<String>,
    target: Option<String>,
    outcome: Outcome,
    detail: Value,
}

fn of_user(told: Told, event: &user::Event, actor: &Actor) -> Told {
    use user::Event as E;
    let (outcome, detail) = match event {
        E::LoginFailed { failures } => (Outcome::Refused, json!({"failures": failures})),
        E::Registered { role, .. } | E::Invited { role, .. } => (Outcome::Done, json!({"role": role})),
        E::RoleChanged { from, to } => (Outcome::Done, json!({"from": from, "to": to})),
        E::LoggedIn { session, by_password } => (Outcome::Done, json!({"session": session, "by_password": by_password})),
        E::Locked { until } | E::LoginAttemptsLimited { until } => (Outcome::Done, json!({"until": until})),
        E::Suspended { .. }
        | E::InvitationResent { .. }
        | E::InvitationAccepted { .. }
        | E::InvitationDeclined
        | E::InvitationRevoked
        | E::InvitationExpired
        | E::EmailVerificationRequested { .. }
        | E::EmailVerified
        | E::EmailChanged { .. }
        | E::ProfileUpdated { .. }
        | E::PasswordSet { .. }
        | E::PasswordResetRequested { .. }
        | E::Unlocked
        | E::Reactivated { .. }
        | E::Deactivated
        | E::Deleted { .. }
        | E::Erased { .. } => (Outcome::Done, json!({})),
    };
    // What Tenure notes about somebody who logs in, they did themselves.
    let themselves = matches!(actor, Actor::System { .. }) && matches!(event, E::LoggedIn { .. });
    let actor = if themselves { told.target.clone() } else { told.actor };
    Told { action: event.event_type(), actor, outcome, detail, ..told }
}

fn of_note(code: Option<&String>, count: Option<u32>, source: Option<&String>) -> Value {
    let known = [
        ("code", code.map(|code| json!(code))),
        ("count", count.map(|count| json!(count))),
        ("source", source.map(|source| json!(source))),
    ];
    known.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect::<serde_json::Map<_, _>>().into()
}

fn of_role(event: &role::Event) -> Value {
    match event {
        role::Event::Defined { name, permissions } => json!({"name": name, "permissions": permissions}),
        role::Event::Renamed { name } => json!({"name": name}),
        role::Event::PermissionsChanged { permissions } => json!({"permissions": permissions}),
        role::Event::Deleted => json!({}),
    }
}

fn of_key(event: &api_key::Event) -> Value {
    match event {
        api_key::Event::Created { name, prefix, kind, scopes, expires_at, .. } => {
            json!({"name": name, "prefix": prefix, "kind": kind, "scopes": scopes, "expires_at": expires_at})
        }
        api_key::Event::Rotated { prefix, previous_until, .. } => json!({"prefix": prefix, "previous_until": previous_until}),
        api_key::Event::Revoked => json!({}),
    }
}

/// Which records a list shows; all that is given must hold.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Filter {
    /// By this actor.
    pub actor: Option<String>,
    /// Of this action, or of all that begin so: `user.`.
    pub action: Option<String>,
    /// On this target.
    pub target: Option<String>,
    /// With this outcome.
    pub outcome: Option<Outcome>,
    /// At or after.
    pub from: Option<DateTime<Utc>>,
    /// Before.
    pub to: Option<DateTime<Utc>>,
}

/// In which order: that of the log.
pub const ORDERS: Orders = Orders { columns: &[Column { name: "position", sql: "position", kind: "bigint" }], tie: ("position", "bigint") };

/// One page of the records that the view may see and the filter lets pass.
pub async fn list(read: &mut Read, cursors: &CursorKey, filter: &Filter, paging: &Paging) -> Result<Page<Row>, QueryError> {
    let mut query = list::select(AccessRecords::NAME, paging);
    if let Some(actor) = &filter.actor {
        query.push(" and actor = ").bind(actor);
    }
    match filter.action.as_deref() {
        Some(action) if action.ends_with('.') => drop(query.push(" and starts_with(action, ").bind(action).push(")")),
        Some(action) => drop(query.push(" and action = ").bind(action)),
        None => {}
    }
    if let Some(target) = &filter.target {
        query.push(" and target = ").bind(target);
    }
    if let Some(outcome) = filter.outcome {
        query.push(" and outcome = ").bind(if outcome == Outcome::Done { "done" } else { "refused" });
    }
    if let Some(from) = filter.from {
        query.push(" and occurred_at >= ").bind(from);
    }
    if let Some(to) = filter.to {
        query.push(" and occurred_at < ").bind(to);
    }
    list::page(read, cursors, query, &json!([AccessRecords::NAME, filter]).to_string(), paging).await
}
