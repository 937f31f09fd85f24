//! `/v1/tenants`.

use axum::extract::State;
use domain::identity::tenant::{
    AddDomain, CancelTenant, ChangeSlug, ClearLimitOverride, CompleteProvisioning, DeactivateTenant, DeleteTenant, FreezeTenant,
    OverrideLimit, ProvisionTenant, ReactivateTenant, RemoveDomain, RenameTenant, SetBranding, SetLlmConfig, Status, SuspendTenant, Tenant,
    UpdateSettings, VerifyDomain,
};
use domain::instant::Instant;
use domain::text::{SearchText, TokenText, TxtRecord};
use domain::{StreamId, TenantId};
use projections::identity::domain::{self as of_domain, Domains};
use projections::identity::tenant::{self, Tenants};
use projections::identity::tenant_timeline::{self, Timeline};
use projections::{QueryError, Read, ReadModel as _};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::app::App;
use crate::extract::{
    After, Body, Caller, Id, ListBody, Listed, Listing, Params, Query, Shown, Sought, Write, Written, paging, unless_empty,
};
use crate::problem::{Problem, code};
use crate::routes::Refusals;

pub(crate) fn routes() -> OpenApiRouter<App> {
    commands()
        .routes(routes!(list_tenants))
        .routes(routes!(get_tenant))
        .routes(routes!(list_tenant_timeline))
        .routes(routes!(list_tenant_domains))
        .routes(routes!(verify_domain))
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
    override_limit(OverrideLimit) post "/v1/tenants/{id}/override-limit" "application/json";
    clear_limit_override(ClearLimitOverride) post "/v1/tenants/{id}/clear-limit-override" "application/json";
    add_domain(AddDomain) post "/v1/tenants/{id}/add-domain" "application/json";
    remove_domain(RemoveDomain) post "/v1/tenants/{id}/remove-domain" "application/json";
    delete_tenant(DeleteTenant) post "/v1/tenants/{id}/delete" "application/json";
}

/// One tenant.
#[utoipa::path(
    get, path = "/v1/tenants/{id}", tag = "tenants",
    params(("id" = Uuid, Path, description = "Which one."), After),
    responses((status = 200, body = tenant::Row), (status = 304, description = "It has not changed."), Refusals)
)]
async fn get_tenant(query: Query, Id(id): Id, Params(p): Params<After>) -> Result<Shown, Problem> {
    query.require("tenant:read")?;
    let sought = Sought::new(StreamId::new(TenantId(id), id), &[Tenants::NAME], p.after);
    query.one::<Tenant, _, _, _>(sought, |mut read| async move { tenant::by_id(&mut read, id).await.map(|row| (read, row)) }).await
}

/// Which tenants, in which order.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListTenants {
    /// In this status. Deleted ones are shown only when asked for.
    status: Option<Status>,
    /// Made for this plan.
    #[param(value_type = Option<String>)]
    plan: Option<SearchText>,
    /// With this text in the name or the slug, whatever its case.
    #[param(value_type = Option<String>, max_length = 200)]
    q: Option<SearchText>,
    /// With this slug, or with this one as an alias.
    #[param(value_type = Option<String>)]
    slug: Option<SearchText>,
    /// With this domain, verified.
    #[param(value_type = Option<String>)]
    domain: Option<SearchText>,
    /// Made at or after this time.
    #[param(value_type = Option<String>, format = DateTime)]
    created_from: Option<Instant>,
    /// Made before this time.
    #[param(value_type = Option<String>, format = DateTime)]
    created_to: Option<Instant>,
    /// `-created_at` (the default), `created_at`, `name` or `-name`.
    #[param(value_type = Option<String>)]
    sort: Option<SearchText>,
    /// How many rows at most.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
    /// Where to go on: the `next_cursor` of the page before.
    #[param(value_type = Option<String>)]
    cursor: Option<TokenText>,
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
    let (created_from, created_to) = (p.created_from.map(Into::into), p.created_to.map(Into::into));
    let filter = tenant::Filter {
        status: p.status,
        plan: p.plan.map(Into::into),
        q: p.q.map(Into::into),
        slug: p.slug.map(Into::into),
        domain: p.domain.map(Into::into),
        created_from,
        created_to,
    };
    let mut read = query.open_all(&[Tenants::NAME, Domains::NAME], p.after).await?;
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
    let cursors = query.cursors().clone();
    let sought = Sought::new(StreamId::new(TenantId(id), id), &[Timeline::NAME], p.after);
    let (cursors, paging) = (&cursors, &paging);
    let fetch = |mut read: Read| async move {
        let page = tenant_timeline::list(&mut read, cursors, TenantId(id), paging).await?;
        Ok::<_, QueryError>((read, unless_empty(page, paging)))
    };
    query.of_one::<Tenant, _, _, _>(sought, fetch).await
}

/// The tenant's domains, with the records that have to stand in the DNS of each.
#[utoipa::path(
    get, path = "/v1/tenants/{id}/domains", tag = "tenants",
    params(("id" = Uuid, Path, description = "Which one."), Listing),
    responses((status = 200, body = ListBody<of_domain::Row>), Refusals)
)]
async fn list_tenant_domains(query: Query, Id(id): Id, Params(p): Params<Listing>) -> Result<Listed<of_domain::Row>, Problem> {
    query.require("tenant:read")?;
    let paging = paging(&of_domain::ORDERS, p.sort.as_deref(), p.limit, p.cursor)?;
    let mut read = query.open_all(&[Domains::NAME], p.after).await?;
    let page = of_domain::list(&mut read, query.cursors(), TenantId(id), &paging).await?;
    Ok(query.page(&read, page))
}

/// See [`VerifyDomain`].
#[utoipa::path(
    post, path = "/v1/tenants/{id}/verify-domain", tag = "tenants", params(("id" = Uuid, Path, description = "Which one.")),
    request_body = VerifyDomain,
    responses((status = 200, description = "Done, or already so.", body = crate::extract::WrittenBody), Refusals)
)]
async fn verify_domain(State(app): State<App>, write: Write<Tenant>, Id(id): Id, mut body: Body<VerifyDomain>) -> Result<Written, Problem> {
    // Nobody who may not has anything looked up.
    write.caller().require("tenant:manage_domains")?;
    let (name, _) = domain::identity::tenant::proof(body.command.domain.as_str(), Uuid::nil());
    let records = app.dns.txt(&name).await.map_err(|error| {
        tracing::warn!(%error, "a domain cannot be looked up");
        Problem::new(code::DNS_UNAVAILABLE, "the DNS did not answer; try again shortly")
    })?;
    body.command.records = records.iter().filter_map(|record| TxtRecord::parse(record).ok()).collect();
    let stream = stream(id, write.caller());
    write.execute(stream, body).await
}
