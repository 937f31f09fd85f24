//! `/v1/tenants`.

use chrono::{DateTime, Utc};
use domain::identity::tenant::{
    CancelTenant, ChangeSlug, CompleteProvisioning, DeactivateTenant, DeleteTenant, FreezeTenant, ProvisionTenant, ReactivateTenant,
    RenameTenant, SetBranding, SetLlmConfig, Status, SuspendTenant, Tenant, UpdateSettings,
};
use domain::{StreamId, TenantId};
use projections::ReadModel as _;
use projections::identity::tenant::{self, Tenants};
use projections::identity::tenant_timeline::{self, Timeline};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::app::App;
use crate::extract::{After, Caller, Id, ListBody, Listed, Listing, Params, Query, Shown, paging, sensible, short};
use crate::problem::Problem;
use crate::routes::Refusals;

pub(crate) fn routes() -> OpenApiRouter<App> {
    commands().routes(routes!(list_tenants)).routes(routes!(get_tenant)).routes(routes!(list_tenant_timeline))
}

/// A tenant's stream is in the tenant itself, whoever acts on it.
fn stream(id: Uuid, _: &Caller) -> StreamId {
    StreamId::new(TenantId(id), id)
}

crate::commands! { Tenant, "tenants", stream:
    create provision_tenant(ProvisionTenant) "/v1/tenants";
    complete_provisioning(CompleteProvisioning) post "/v1/tenants/{id}/complete-provisioning" "application/json";
    rename_tenant(RenameTenant) post "/v1/tenants/{id}/rename" "application/json";
    change_slug(ChangeSlug) post "/v1/tenants/{id}/change-slug" "application/json";
    update_settings(UpdateSettings) patch "/v1/tenants/{id}/settings" "application/merge-patch+json";
    set_llm_config(SetLlmConfig) post "/v1/tenants/{id}/set-llm-config" "application/json";
    set_branding(SetBranding) post "/v1/tenants/{id}/set-branding" "application/json";
    suspend_tenant(SuspendTenant) post "/v1/tenants/{id}/suspend" "application/json";
    freeze_tenant(FreezeTenant) post "/v1/tenants/{id}/freeze" "application/json";
    reactivate_tenant(ReactivateTenant) post "/v1/tenants/{id}/reactivate" "application/json";
    deactivate_tenant(DeactivateTenant) post "/v1/tenants/{id}/deactivate" "application/json";
    cancel_tenant(CancelTenant) post "/v1/tenants/{id}/cancel" "application/json";
    delete_tenant(DeleteTenant) post "/v1/tenants/{id}/delete" "application/json";
}

/// One tenant.
#[utoipa::path(
    get, path = "/v1/tenants/{id}", tag = "tenants",
    params(("id" = Uuid, Path, description = "Which one."), After),
    responses((status = 200, body = tenant::Row), (status = 304, description = "It has not changed."), Refusals)
)]
async fn get_tenant(query: Query, Id(id): Id, Params(p): Params<After>) -> Result<Shown<tenant::Row>, Problem> {
    query.require("tenant:read")?;
    let mut read = query.open_all(&[Tenants::NAME], p.after).await?;
    let row = tenant::by_id(&mut read, id).await?;
    query.show(read, StreamId::new(TenantId(id), id), row, |row| row.version).await
}

/// Which tenants, in which order.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListTenants {
    /// In this status. Deleted ones are shown only when asked for.
    status: Option<Status>,
    /// Made for this plan.
    plan: Option<String>,
    /// With this text in the name or the slug, whatever its case.
    #[param(max_length = 200)]
    q: Option<String>,
    /// With this slug, or with this one as an alias.
    slug: Option<String>,
    /// Made at or after this time.
    created_from: Option<DateTime<Utc>>,
    /// Made before this time.
    created_to: Option<DateTime<Utc>>,
    /// `-created_at` (the default), `created_at`, `name` or `-name`.
    sort: Option<String>,
    /// How many rows at most.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
    /// Where to go on: the `next_cursor` of the page before.
    cursor: Option<String>,
    /// Wait up to 2 s until the answer reflects this position; 504 if it takes longer.
    after: Option<i64>,
}

/// Tenants: all of them for the platform's super_admin, one's own for everybody else.
#[utoipa::path(
    get, path = "/v1/tenants", tag = "tenants", params(ListTenants),
    responses((status = 200, body = ListBody<tenant::Row>), Refusals)
)]
async fn list_tenants(query: Query, Params(p): Params<ListTenants>) -> Result<Listed<tenant::Row>, Problem> {
    query.require("tenant:read")?;
    let paging = paging(&tenant::ORDERS, p.sort.as_deref(), p.limit, p.cursor)?;
    short(&[&p.plan, &p.q, &p.slug])?;
    sensible(&[p.created_from, p.created_to])?;
    let filter =
        tenant::Filter { status: p.status, plan: p.plan, q: p.q, slug: p.slug, created_from: p.created_from, created_to: p.created_to };
    let mut read = query.open_all(&[Tenants::NAME], p.after).await?;
    let page = tenant::list(&mut read, query.cursors(), &filter, &paging).await?;
    Ok(query.page(&read, page))
}

/// What has happened to a tenant, newest first.
#[utoipa::path(
    get, path = "/v1/tenants/{id}/timeline", tag = "tenants",
    params(("id" = Uuid, Path, description = "Which one."), Listing),
    responses((status = 200, body = ListBody<tenant_timeline::Row>), Refusals)
)]
async fn list_tenant_timeline(query: Query, Id(id): Id, Params(p): Params<Listing>) -> Result<Listed<tenant_timeline::Row>, Problem> {
    query.require("tenant:read")?;
    let paging = paging(&tenant_timeline::ORDERS, p.sort.as_deref(), p.limit, p.cursor)?;
    let mut read = query.open_all(&[Timeline::NAME], p.after).await?;
    let page = tenant_timeline::list(&mut read, query.cursors(), TenantId(id), &paging).await?;
    query.page_of(read, StreamId::new(TenantId(id), id), page, paging.cursor.as_ref()).await
}
