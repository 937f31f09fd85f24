//! Tenants: by id, by slug, listed by status, plan, text and time of creation.

use chrono::{DateTime, Utc};
use domain::TenantId;
use domain::identity::tenant::{Event, Status, Tenant};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::QueryBuilder;
use sqlx::types::Json;
use store::Recorded;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::cursor::CursorKey;
use crate::model::ReadModel;
use crate::query::{Page, QueryError, Read};

/// The read model.
pub struct Tenants;

/// The key of a row.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Key {
    tenant_id: TenantId,
    id: Uuid,
}

/// A tenant as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Tenant)]
pub struct Row {
    /// The tenant that owns the row: itself.
    pub tenant_id: TenantId,
    /// Its id.
    pub id: Uuid,
    /// Its version, as in the `ETag`.
    pub version: i64,
    /// Its short name in URLs.
    pub slug: String,
    /// Its earlier slugs that still lead to it.
    pub aliases: Vec<String>,
    /// What people call it.
    pub name: String,
    /// Where it stands in its life.
    pub status: Status,
    /// Why, if a reason was given.
    pub status_reason: Option<String>,
    /// The plan asked for when it was made.
    pub plan: Option<String>,
    /// Its settings.
    #[schema(value_type = Object)]
    pub settings: Value,
    /// The language model it uses; the provider's key by reference only.
    #[schema(value_type = Option<Object>)]
    pub llm: Option<Value>,
    /// How it looks.
    #[schema(value_type = Option<Object>)]
    pub branding: Option<Value>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

impl ReadModel for Tenants {
    const NAME: &'static str = "tenants_v1";
    type Aggregate = Tenant;
    type Key = Key;
    type Row = Row;

    fn keys(event: &Recorded<Event>) -> Vec<Key> {
        vec![Key { tenant_id: event.stream.tenant, id: event.stream.id }]
    }

    fn apply(key: &Key, row: Option<Row>, event: &Recorded<Event>) -> Option<Row> {
        let row = match (&event.event, row) {
            (Event::Provisioned { slug, name, plan, owner: _ }, _) => Row {
                tenant_id: key.tenant_id,
                id: key.id,
                version: 0,
                slug: slug.clone(),
                aliases: vec![],
                name: name.clone(),
                status: Status::Provisioning,
                status_reason: None,
                plan: plan.clone(),
                settings: json!({}),
                llm: None,
                branding: None,
                created_at: event.recorded_at,
                updated_at: event.recorded_at,
            },
            (_, row) => row?,
        };
        Some(Row { version: event.version, updated_at: event.recorded_at, ..evolve(row, &event.event) })
    }
}

fn evolve(mut row: Row, event: &Event) -> Row {
    let mut become_ = |status, reason| {
        row.status = status;
        row.status_reason = reason;
    };
    match event {
        Event::Provisioned { .. } => {}
        Event::ProvisioningCompleted { trialing: true } => become_(Status::Trialing, None),
        Event::ProvisioningCompleted { trialing: false } | Event::Reactivated => become_(Status::Active, None),
        Event::Suspended { reason } => become_(Status::Suspended, Some(reason.clone())),
        Event::Frozen => become_(Status::Frozen, None),
        Event::Deactivated => become_(Status::Deactivated, None),
        Event::Cancelled { .. } => become_(Status::Cancelled, None),
        Event::Deleted => become_(Status::Deleted, None),
        Event::Renamed { name } => row.name.clone_from(name),
        Event::SlugChanged { from, to, alias_until: _ } => {
            row.aliases.retain(|alias| alias != to);
            row.aliases.push(from.clone());
            row.slug.clone_from(to);
        }
        Event::SlugAliasExpired { slug } => row.aliases.retain(|alias| alias != slug),
        Event::SettingsUpdated { patch } => json_patch::merge(&mut row.settings, patch),
        Event::LlmConfigSet { provider, model, secret_ref } => {
            row.llm = Some(json!({"provider": provider, "model": model, "secret_ref": secret_ref}));
        }
        Event::BrandingSet { primary_color, logo_url } => {
            row.branding = Some(json!({"primary_color": primary_color, "logo_url": logo_url}));
        }
    }
    row
}

/// Which tenants a list shows; all that is given must hold. Deleted ones are shown only when asked for by status.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Filter {
    /// In this status.
    pub status: Option<Status>,
    /// Made for this plan.
    pub plan: Option<String>,
    /// With this text in the name or the slug, whatever its case.
    pub q: Option<String>,
    /// With this slug or alias.
    pub slug: Option<String>,
    /// Made at or after.
    pub created_from: Option<DateTime<Utc>>,
    /// Made before.
    pub created_to: Option<DateTime<Utc>>,
}

/// In which order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Sort {
    /// Newest first.
    #[default]
    #[serde(rename = "-created_at")]
    Newest,
    /// Oldest first.
    #[serde(rename = "created_at")]
    Oldest,
    /// By name.
    #[serde(rename = "name")]
    Name,
    /// By name, backwards.
    #[serde(rename = "-name")]
    NameBackwards,
}

impl Sort {
    /// The names that a request may use.
    pub const ALL: [(&'static str, Self); 4] =
        [("-created_at", Self::Newest), ("created_at", Self::Oldest), ("name", Self::Name), ("-name", Self::NameBackwards)];

    /// (column expression, its type, comparison for what comes next, direction).
    fn sql(self) -> (&'static str, &'static str, &'static str, &'static str) {
        match self {
            Self::Newest => ("created_at", "timestamptz", "<", "desc"),
            Self::Oldest => ("created_at", "timestamptz", ">", "asc"),
            Self::Name => ("lower(name)", "text", ">", "asc"),
            Self::NameBackwards => ("lower(name)", "text", "<", "desc"),
        }
    }
}

/// One tenant, if it exists and the view may see it.
pub async fn by_id(read: &mut Read, id: Uuid) -> Result<Option<Row>, QueryError> {
    let row: Option<Json<Row>> = sqlx::query_scalar("select to_json(t) from read.tenants_v1 t where tenant_id = $1 and id = $1")
        .bind(id)
        .fetch_optional(read.connection())
        .await?;
    Ok(row.map(|Json(row)| row))
}

/// One page of the tenants that the view may see and the filter lets pass.
pub async fn list(
    read: &mut Read,
    cursors: &CursorKey,
    filter: &Filter,
    sort: Sort,
    limit: u32,
    cursor: Option<&str>,
) -> Result<Page<Row>, QueryError> {
    let list = format!("tenants_v1 {}", json!({"filter": filter, "sort": sort}));
    let place: Option<(String, Uuid)> = cursor.map(|cursor| cursors.open(&list, cursor)).transpose()?;
    let (column, kind, beyond, direction) = sort.sql();
    let mut query = QueryBuilder::new(format!("select to_json(t), ({column})::text from read.tenants_v1 t where true"));
    match filter.status {
        Some(status) => query.push(" and status = ").push_bind(status.as_str()),
        None => query.push(" and status <> 'deleted'"),
    };
    if let Some(plan) = &filter.plan {
        query.push(" and plan = ").push_bind(plan);
    }
    if let Some(q) = &filter.q {
        let pattern = format!("%{}%", q.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_"));
        query.push(" and (lower(name) like lower(").push_bind(pattern.clone()).push(") or slug like lower(").push_bind(pattern).push("))");
    }
    if let Some(slug) = &filter.slug {
        query.push(" and (slug = ").push_bind(slug).push(" or aliases @> array[").push_bind(slug).push("])");
    }
    if let Some(from) = filter.created_from {
        query.push(" and created_at >= ").push_bind(from);
    }
    if let Some(to) = filter.created_to {
        query.push(" and created_at < ").push_bind(to);
    }
    if let Some((value, id)) = place {
        query.push(format!(" and ({column}, id) {beyond} (")).push_bind(value).push(format!("::{kind}, ")).push_bind(id).push(")");
    }
    query.push(format!(" order by {column} {direction}, id {direction} limit ")).push_bind(i64::from(limit) + 1);
    let mut rows: Vec<(Json<Row>, String)> = query.build_query_as().fetch_all(read.connection()).await?;
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next = rows.last().filter(|_| more).map(|(Json(row), value)| cursors.sign(&list, &(value, row.id)));
    Ok(Page { rows: rows.into_iter().map(|(Json(row), _)| row).collect(), next })
}
