//! Users: by id, listed by status, role and text; by address over all tenants, for whoever has a user in several.

use chrono::{DateTime, Utc};
use domain::identity::user::{Event, ProfileField, Status, User, fold_email};
use domain::{Personal, Role, TenantId};
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
pub struct Users;

/// A user as they are shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = User)]
pub struct Row {
    /// Whose.
    pub tenant_id: TenantId,
    /// Their id.
    pub id: Uuid,
    /// Their version, as in the `ETag`.
    #[schema(example = 3)]
    pub version: i64,
    /// Where to write to them; nothing once their personal data has been erased.
    #[schema(example = "ada@example.com")]
    pub email: Option<String>,
    /// Whether that is known to be theirs.
    #[schema(example = true)]
    pub email_verified: bool,
    /// What to call them.
    #[schema(example = "Ada Lovelace")]
    pub name: Option<String>,
    /// The language they read.
    #[schema(example = "en-GB")]
    pub locale: Option<String>,
    /// Where their clock is.
    #[schema(example = "Europe/London")]
    pub time_zone: Option<String>,
    /// Where they stand.
    pub status: Status,
    /// Why, if a reason was given.
    #[schema(example = "left the company")]
    pub status_reason: Option<String>,
    /// What they may.
    pub role: Role,
    /// Until when nobody can log in as them.
    pub locked_until: Option<DateTime<Utc>>,
    /// When they last logged in.
    pub last_login_at: Option<DateTime<Utc>>,
    /// When they were registered or invited.
    pub created_at: DateTime<Utc>,
    /// When anything of this last changed.
    pub updated_at: DateTime<Utc>,
}

fn known(personal: &Personal<String>) -> Option<String> {
    personal.known().cloned()
}

impl ReadModel for Users {
    const NAME: &'static str = "users_v1";
    const SUBJECT: Option<&'static str> = Some("id");
    type Events = User;
    type Key = StreamKey;
    type Row = Row;

    fn keys(event: &Recorded<Event>) -> Vec<StreamKey> {
        StreamKey::of(event)
    }

    fn apply(key: &StreamKey, row: Option<Row>, event: &Recorded<Event>) -> Option<Row> {
        let at = event.recorded_at;
        let begin = |email, email_verified, name, status, role| Row {
            tenant_id: key.tenant_id,
            id: key.id,
            version: 0,
            email,
            email_verified,
            name,
            locale: None,
            time_zone: None,
            status,
            status_reason: None,
            role,
            locked_until: None,
            last_login_at: None,
            created_at: at,
            updated_at: at,
        };
        let mut row = match (&event.event, row) {
            (Event::Registered { email, email_verified, name, role }, _) => {
                begin(known(email), *email_verified, known(name), Status::Active, *role)
            }
            (Event::Invited { email, name, role, .. }, _) => {
                begin(known(email), false, name.as_ref().and_then(known), Status::Invited, *role)
            }
            (_, row) => row?,
        };
        row.version = event.version;
        row.updated_at = at;
        evolve(&mut row, &event.event, at);
        Some(row)
    }

    fn erased(row: Row) -> Row {
        Row { email: None, name: None, locale: None, time_zone: None, status_reason: None, ..row }
    }
}

fn evolve(row: &mut Row, event: &Event, at: DateTime<Utc>) {
    let mut become_ = |status, reason: Option<&String>| {
        row.status = status;
        row.status_reason = reason.cloned();
        row.locked_until = None;
    };
    match event {
        Event::Registered { .. }
        | Event::Invited { .. }
        | Event::InvitationResent { .. }
        | Event::EmailVerificationRequested { .. }
        | Event::PasswordSet { .. }
        | Event::PasswordResetRequested { .. }
        | Event::LoginFailed { .. }
        | Event::LoginAttemptsLimited { .. }
        | Event::Erased { .. } => {}
        Event::InvitationAccepted { name } => {
            become_(Status::Active, None);
            row.name = known(name);
            row.email_verified = true;
        }
        Event::InvitationDeclined | Event::InvitationRevoked | Event::InvitationExpired | Event::Deleted { .. } => {
            become_(Status::Deleted, None);
        }
        Event::EmailVerified => row.email_verified = true,
        Event::EmailChanged { email } => {
            row.email = known(email);
            row.email_verified = false;
        }
        Event::ProfileUpdated { name, locale, time_zone, removed } => {
            for field in removed {
                match field {
                    ProfileField::Locale => row.locale = None,
                    ProfileField::TimeZone => row.time_zone = None,
                }
            }
            if let Some(name) = name {
                row.name = known(name);
            }
            if let Some(locale) = locale {
                row.locale = known(locale);
            }
            if let Some(time_zone) = time_zone {
                row.time_zone = known(time_zone);
            }
        }
        Event::RoleChanged { from: _, to } => row.role = *to,
        Event::LoggedIn { .. } => row.last_login_at = Some(at),
        Event::Locked { until } => {
            become_(Status::Locked, None);
            row.locked_until = Some(*until);
        }
        Event::Unlocked | Event::Reactivated { .. } => become_(Status::Active, None),
        Event::Suspended { reason } => become_(Status::Suspended, reason.known()),
        Event::Deactivated => become_(Status::Deactivated, None),
    }
}

/// Which users a list shows; all that is given must hold. Deleted ones are shown only when asked for by status.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Filter {
    /// In this status.
    pub status: Option<Status>,
    /// In this role.
    pub role: Option<Role>,
    /// With this text in the name or the address, whatever its case.
    pub q: Option<String>,
}

/// In which order.
pub const ORDERS: Orders = Orders {
    columns: &[
        Column { name: "created_at", sql: "created_at", kind: "timestamptz" },
        Column { name: "name", sql: "name_key", kind: "text" },
        Column { name: "email", sql: "email_key", kind: "text" },
    ],
    tie: ("id", "uuid"),
};

/// One user, if they exist and the view may see them.
pub async fn by_id(read: &mut Read, id: Uuid) -> Result<Option<Doc<Row>>, QueryError> {
    read.one(Sql::rows(Users::NAME).push(" and id = ").bind(id)).await
}

/// One page of the users that the view may see and the filter lets pass.
pub async fn list(read: &mut Read, cursors: &CursorKey, filter: &Filter, paging: &Paging) -> Result<Page<Row>, QueryError> {
    let mut query = list::select(Users::NAME, paging);
    match filter.status {
        Some(status) => query.push(" and status = ").bind(status.as_str()),
        None => query.push(" and status <> 'deleted'"),
    };
    if let Some(role) = filter.role {
        query.push(" and role = ").bind(role.to_string());
    }
    if let Some(q) = &filter.q {
        query.search(
            "few_users_like",
            &list::containing(q),
            " and id in (select read.users_like($value))",
            " and (name_key like lower($value) or email_key like lower($value))",
        );
    }
    list::page(read, cursors, query, &json!([Users::NAME, filter]).to_string(), paging).await
}

/// Somebody's user in one of the tenants where they have one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Membership {
    /// The tenant.
    pub tenant_id: Uuid,
    /// What it is called.
    #[schema(example = "Acme GmbH")]
    pub tenant_name: Option<String>,
    /// Its short name.
    #[schema(example = "acme")]
    pub tenant_slug: Option<String>,
    /// The user there.
    pub user_id: Uuid,
    /// Their role there.
    #[schema(example = "org_admin")]
    pub role: String,
}

/// Where somebody with this address, shown to be theirs, has a user who can act. Only ever asked with an address that the caller has shown to be theirs.
pub async fn memberships(read: &mut Read, email: &str) -> Result<Vec<Membership>, QueryError> {
    let mut sql = Sql::new(
        "select json_build_object('tenant_id', u.tenant_id, 'tenant_name', t.name, 'tenant_slug', t.slug, 'user_id', u.id, 'role', u.role)::text, null, null, null, null
         from read.users_v1 u left join read.tenants_v1 t on t.tenant_id = u.tenant_id and t.id = u.tenant_id
         where u.email_verified and u.status = 'active' and lower(u.email) = ",
    );
    sql.bind(fold_email(email)).push(" order by u.created_at, u.id limit 200");
    read.all(&sql).await?.iter().map(Doc::read).collect()
}
