//! `/v1/quota`: how much of what is metered is used, and may be. The same under `/quota`, where the systems were that this replaces; and for any tenant under
//! `/v1/admin/tenants/{tenant}/quota`, for the platform.

use axum::extract::{RawPathParams, Request, State};
use axum::http::HeaderValue;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use chrono::{DateTime, Utc};
use commands::{lookup, quota};
use domain::TenantId;
use domain::billing::meter::{Meter, Standing};
use domain::billing::period::Month;
use domain::instant::Day;
use domain::text::{SearchText, TokenText};
use projections::ReadModel as _;
use projections::billing::plan::{self, Plans};
use projections::billing::usage::{self, Days, Months};
use serde::{Deserialize, Serialize};
use utoipa::openapi::path::{ParameterBuilder, ParameterIn};
use utoipa::openapi::{ObjectBuilder, OpenApi, Required, Type};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::extract::{After, ListBody, Listed, Params, Query, TENURE_POSITION, TENURE_TENANT, paging};
use crate::problem::Problem;
use crate::routes::Refusals;

/// Where the platform asks about a tenant, and acts for it.
const ADMIN: &str = "/v1/admin/tenants/{tenant}/quota";

pub(crate) fn routes() -> OpenApiRouter<App> {
    let mut admin = OpenApiRouter::new().nest(ADMIN, all().layer(middleware::from_fn(naming)));
    describe(admin.get_openapi_mut());
    let (alias, _) = all().split_for_parts();
    OpenApiRouter::new().nest("/v1/quota", all()).merge(admin).merge(Router::new().nest("/quota", alias).into())
}

fn all() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list_quota_tiers))
        .routes(routes!(get_quota_status))
        .routes(routes!(list_usage_months))
        .routes(routes!(list_usage_days))
        .merge(super::usage::routes())
}

/// The tenant in the path is the one that a header would name.
async fn naming(params: RawPathParams, mut request: Request, next: Next) -> Response {
    let tenant = params.iter().find(|(name, _)| *name == "tenant").filter(|(_, tenant)| tenant.parse::<TenantId>().is_ok());
    let tenant = tenant.and_then(|(_, tenant)| HeaderValue::from_str(tenant).ok());
    match tenant {
        Some(tenant) => {
            request.headers_mut().insert(TENURE_TENANT, tenant);
            next.run(request).await
        }
        None => Problem::not_found().into_response(),
    }
}

/// What is there for the platform too has names of its own.
fn describe(openapi: &mut OpenApi) {
    let tenant = ParameterBuilder::new()
        .name("tenant")
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .description(Some("Which tenant."))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String).examples(["01900000-0000-7000-8000-000000000001"])))
        .build();
    for item in openapi.paths.paths.values_mut() {
        for operation in [&mut item.get, &mut item.post].into_iter().flatten() {
            operation.operation_id = operation.operation_id.take().map(|id| format!("admin_{id}"));
            operation.parameters.get_or_insert_default().push(tenant.clone().into());
        }
    }
}

/// How a meter stands.
#[derive(Serialize, ToSchema)]
struct MeterStatus {
    /// Which.
    meter: Meter,
    /// How much is used: of what flows in this month, of everything else now.
    #[schema(example = 812)]
    used: i64,
    /// How much is held by reservations.
    #[schema(example = 20)]
    held: i64,
    /// How much is included; `null`: there is no limit.
    #[schema(example = 1000)]
    quota: Option<i64>,
    /// Where it stops.
    #[schema(example = 1050)]
    limit: Option<i64>,
    /// How much is left until then.
    #[schema(example = 218)]
    remaining: Option<i64>,
    /// How many percent of the quota are used, rounded down.
    #[schema(example = 81)]
    percent: Option<i64>,
    /// When it begins at 0 again.
    resets_at: Option<DateTime<Utc>>,
}

/// How a tenant's quotas stand.
#[derive(Serialize, ToSchema)]
struct QuotaStatus {
    /// Whose.
    tenant_id: TenantId,
    /// By whose calendar months are counted.
    #[schema(example = "UTC")]
    time_zone: String,
    /// The month that it is there.
    period: Month,
    /// When that ends.
    resets_at: DateTime<Utc>,
    /// Each meter.
    meters: Vec<MeterStatus>,
}

impl MeterStatus {
    fn of(meter: Meter, standing: &Standing, resets_at: DateTime<Utc>) -> Self {
        Self {
            meter,
            used: standing.used,
            held: standing.held,
            quota: standing.quota,
            limit: standing.limit,
            remaining: standing.remaining(),
            percent: standing.percent(),
            resets_at: meter.is_flow().then_some(resets_at),
        }
    }
}

/// How the tenant's quotas stand now, by the counters that decide.
#[utoipa::path(get, path = "/status", tag = "quotas", params(After), responses((status = 200, body = QuotaStatus), Refusals))]
async fn get_quota_status(State(app): State<App>, query: Query, Params(p): Params<After>) -> Result<impl IntoResponse, Problem> {
    query.require("quota:read")?;
    query.check(p.after).await?;
    let (store, tenant_id) = (app.executor.store(), query.caller.tenant);
    let position = *store.watch_head().borrow();
    let zone = lookup::calendar(store, tenant_id).await?;
    let period = Month::of(store.clock().now(), zone);
    let standings = quota::standings(store, tenant_id, period).await?;
    let resets_at = period.period(zone).end;
    let meters = standings.iter().map(|(meter, standing)| MeterStatus::of(*meter, standing, resets_at)).collect();
    let status = QuotaStatus { tenant_id, time_zone: zone.name().to_owned(), period, resets_at, meters };
    Ok(([(TENURE_POSITION, position.to_string())], Json(status)))
}

/// What can be subscribed to.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListTiers {
    /// How many rows at most.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
    /// Where to go on: the `next_cursor` of the page before.
    #[param(value_type = Option<String>)]
    cursor: Option<TokenText>,
    /// Wait up to 2 s until the answer reflects this position; 504 if it takes longer.
    #[param(minimum = 0)]
    after: Option<i64>,
}

/// The plans that can be subscribed to, with what each includes.
#[utoipa::path(get, path = "/tiers", tag = "quotas", params(ListTiers), responses((status = 200, body = ListBody<plan::Row>), Refusals))]
async fn list_quota_tiers(query: Query, Params(p): Params<ListTiers>) -> Result<Listed<plan::Row>, Problem> {
    query.require("plan:read")?;
    let paging = paging(&plan::ORDERS, None, p.limit, p.cursor)?;
    let mut read = query.open_system(&[Plans::NAME], p.after).await?;
    let page = plan::list(&mut read, query.cursors(), false, &paging).await?;
    Ok(query.page(&read, page))
}

/// Which months.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListUsageMonths {
    /// Of this meter.
    meter: Option<Meter>,
    /// From this month on.
    #[param(value_type = Option<String>, example = "2026-01")]
    from: Option<Month>,
    /// To this month, which is included.
    #[param(value_type = Option<String>, example = "2026-12")]
    to: Option<Month>,
    /// `-period` (the default) or `period`.
    #[param(value_type = Option<String>)]
    sort: Option<SearchText>,
    /// How many rows at most.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
    /// Where to go on: the `next_cursor` of the page before.
    #[param(value_type = Option<String>)]
    cursor: Option<TokenText>,
    /// Wait up to 2 s until the answer reflects this position; 504 if it takes longer.
    #[param(minimum = 0)]
    after: Option<i64>,
}

/// What was used month by month, and what that came to. Months in which nothing was are left out.
#[utoipa::path(
    get, path = "/usage/history", tag = "quotas", params(ListUsageMonths),
    responses((status = 200, body = ListBody<usage::Row>), Refusals)
)]
async fn list_usage_months(query: Query, Params(p): Params<ListUsageMonths>) -> Result<Listed<usage::Row>, Problem> {
    query.require("quota:read")?;
    let paging = paging(&usage::MONTHS, p.sort.as_deref(), p.limit, p.cursor)?;
    let mut read = query.open(&[Months::NAME], p.after).await?;
    let page = usage::months(&mut read, query.cursors(), query.caller.tenant, p.meter, (p.from, p.to), &paging).await?;
    Ok(query.page(&read, page))
}

/// Which days.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListUsageDays {
    /// Of this meter.
    meter: Option<Meter>,
    /// From this day on, UTC.
    #[param(value_type = Option<String>, format = Date)]
    from: Option<Day>,
    /// To this day, which is included.
    #[param(value_type = Option<String>, format = Date)]
    to: Option<Day>,
    /// `-day` (the default) or `day`.
    #[param(value_type = Option<String>)]
    sort: Option<SearchText>,
    /// How many rows at most.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
    /// Where to go on: the `next_cursor` of the page before.
    #[param(value_type = Option<String>)]
    cursor: Option<TokenText>,
    /// Wait up to 2 s until the answer reflects this position; 504 if it takes longer.
    #[param(minimum = 0)]
    after: Option<i64>,
}

/// What was used day by day (UTC). Days on which nothing was are left out.
#[utoipa::path(get, path = "/usage/daily", tag = "quotas", params(ListUsageDays), responses((status = 200, body = ListBody<usage::Day>), Refusals))]
async fn list_usage_days(query: Query, Params(p): Params<ListUsageDays>) -> Result<Listed<usage::Day>, Problem> {
    query.require("quota:read")?;
    let paging = paging(&usage::DAYS, p.sort.as_deref(), p.limit, p.cursor)?;
    let mut read = query.open(&[Days::NAME], p.after).await?;
    let page =
        usage::days(&mut read, query.cursors(), query.caller.tenant, p.meter, (p.from.map(Into::into), p.to.map(Into::into)), &paging)
            .await?;
    Ok(query.page(&read, page))
}
