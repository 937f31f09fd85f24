//! Tenants: by id, by slug, listed by status, plan, text and time of creation.

use chrono::{DateTime, Utc};
use domain::TenantId;
use domain::identity::tenant::{Event, Status, Tenant};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
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
pub struct Tenants;

/// A tenant as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Tenant)]
pub struct Row {
    /// The tenant that owns the row: itself.
    pub tenant_id: TenantId,
    /// Its id.
    pub id: Uuid,
    /// Its version, as in the `ETag`.
    #[schema(example = 3)]
    pub version: i64,
    /// Its short name in URLs.
    #[schema(example = "acme-ag")]
    pub slug: String,
    /// Its earlier slugs that still lead to it.
    #[schema(example = json!(["acme"]))]
    pub aliases: Vec<String>,
    /// What people call it.
    #[schema(example = "Acme GmbH")]
    pub name: String,
    /// Where it stands in its life.
    pub status: Status,
    /// Why, if a reason was given.
    #[schema(example = "invoice 2041 unpaid")]
    pub status_reason: Option<String>,
    /// The plan asked for when it was made.
    #[schema(example = "growth")]
    pub plan: Option<String>,
    /// Its settings.
    #[schema(value_type = Object, example = json!({"theme": "dark"}))]
    pub settings: Value,
    /// The language model it uses; the provider's key by reference only.
    #[schema(value_type = Option<Object>, example = json!({"provider": "openai", "model": "gpt-4o", "secret_ref": "vault:llm/acme"}))]
    pub llm: Option<Value>,
    /// How it looks.
    #[schema(value_type = Option<Object>, example = json!({"primary_color": "#0a7cff", "logo_url": null}))]
    pub branding: Option<Value>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

impl ReadModel for Tenants {
    const NAME: &'static str = "tenants_v1";
    type Events = Tenant;
    type Key = StreamKey;
    type Row = Row;

    fn keys(event: &Recorded<Event>) -> Vec<StreamKey> {
        StreamKey::of(event)
    }

    fn apply(key: &StreamKey, row: Option<Row>, event: &Recorded<Event>) -> Option<Row> {
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
        Event::Provisioned { .. }
        | Event::LimitOverridden { .. }
        | Event::LimitOverrideCleared { .. }
        | Event::DomainAdded { .. }
        | Event::DomainVerified { .. }
        | Event::DomainRemoved { .. } => {}
        Event::ProvisioningCompleted { trialing: true } => become_(Status::Trialing, None),
        Event::ProvisioningCompleted { trialing: false } | Event::Reactivated | Event::Activated => become_(Status::Active, None),
        Event::BecamePastDue => become_(Status::PastDue, None),
        Event::Suspended { reason, for_payment: _ } => become_(Status::Suspended, Some(reason.clone())),
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
    /// With this domain, verified.
    pub domain: Option<String>,
    /// Made at or after.
    pub created_from: Option<DateTime<Utc>>,
    /// Made before.
    pub created_to: Option<DateTime<Utc>>,
}

/// In which order.
pub const ORDERS: Orders = Orders {
    columns: &[
        Column { name: "created_at", sql: "created_at", kind: "timestamptz" },
        Column { name: "name", sql: "lower(name)", kind: "text" },
    ],
    tie: ("id", "uuid"),
};

/// One tenant, if it exists and the view may see it.
pub async fn by_id(read: &mut Read, id: Uuid) -> Result<Option<Doc<Row>>, QueryError> {
    read.one(Sql::rows(Tenants::NAME).push(" and tenant_id = ").bind(id).push(" and id = ").bind(id)).await
}

/// One page of the tenants that the view may see and the filter lets pass.
pub async fn list(read: &mut Read, cursors: &CursorKey, filter: &Filter, paging: &Paging) -> Result<Page<Row>, QueryError> {
    let mut query = list::select(Tenants::NAME, paging);
    match filter.status {
        Some(status) => query.push(" and status = ").bind(status.as_str()),
        None => query.push(" and status <> 'deleted'"),
    };
    if let Some(plan) = &filter.plan {
        query.push(" and plan = ").bind(plan);
    }
    if let Some(q) = &filter.q {
        let pattern = list::containing(q);
        query.push(" and (lower(name) like lower(").bind(pattern.clone()).push(") or slug like lower(").bind(pattern).push("))");
    }
    if let Some(slug) = &filter.slug {
        query.push(" and (slug = ").bind(slug).push(" or aliases @> array[").bind(slug).push("])");
    }
    if let Some(domain) = &filter.domain {
        query.push(" and id in (select d.tenant_id from read.domains_v1 d where d.verified_at is not null and d.domain = lower(");
        query.bind(domain).push("))");
    }
    if let Some(from) = filter.created_from {
        query.push(" and created_at >= ").bind(from);
    }
    if let Some(to) = filter.created_to {
        query.push(" and created_at < ").bind(to);
    }
    list::page(read, cursors, query, &json!([Tenants::NAME, filter]).to_string(), paging).await
}
