//! `/v1/entitlements`.

use axum::Json;
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
    /// By meter. A meter that is not named has no limit.
    data: Vec<entitlement::Row>,
}

/// What the tenant is entitled to now, of everything that is metered.
#[utoipa::path(get, path = "/v1/entitlements", tag = "subscriptions", params(After), responses((status = 200, body = Entitlements), Refusals))]
async fn list_entitlements(query: Query, Params(p): Params<After>) -> Result<Reflecting<Json<Entitlements>>, Problem> {
    query.require("subscription:read")?;
    let mut read = query.open(&[InForce::NAME], p.after).await?;
    let data = entitlement::of_tenant(&mut read, query.caller.tenant).await?;
    Ok(Reflecting::of(&read, Json(Entitlements { data })))
}
