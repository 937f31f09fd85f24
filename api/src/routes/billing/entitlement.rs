//! `/v1/entitlements`.

use axum::Json;
use axum::extract::State;
use domain::billing::meter::Meter;
use projections::ReadModel as _;
use projections::billing::entitlement::{self, InForce};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::extract::{After, Params, Query, Reflecting};
use crate::problem::Problem;
use crate::routes::Refusals;

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list_entitlements))
}

/// What a tenant is entitled to.
#[derive(Serialize, ToSchema)]
struct Entitlements {
    /// By meter. A meter that is not named has no limit. Before the first subscription this is what the platform gives to tenants without a plan.
    data: Vec<entitlement::Row>,
}

/// What the tenant is entitled to now, of everything that is metered.
#[utoipa::path(get, path = "/v1/entitlements", tag = "subscriptions", params(After), responses((status = 200, body = Entitlements), Refusals))]
async fn list_entitlements(
    State(app): State<App>,
    query: Query,
    Params(p): Params<After>,
) -> Result<Reflecting<Json<Entitlements>>, Problem> {
    query.require("subscription:read")?;
    let mut read = query.open(&[InForce::NAME], p.after).await?;
    let store = app.executor.store();
    let without_plan = |meter: Meter| store.ceiling_unless_set(query.caller.tenant, meter.counter());
    let data = entitlement::of_tenant(&mut read, query.caller.tenant, without_plan, store.clock().now()).await?;
    Ok(Reflecting::of(&read, Json(Entitlements { data })))
}
