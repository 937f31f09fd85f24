//! `/v1/deliveries`: what was queued for the world outside.

use access::AccessError;
use axum::response::{IntoResponse as _, Response};
use domain::TenantId;
use outbound::queue::{self, Attempted, Delivery, State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::app::App;
use crate::extract::{Caller, Drawn, Id, Params, Repeat, nothing};
use crate::problem::{Problem, code};
use crate::routes::Refusals;

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list_deliveries)).routes(routes!(list_delivery_attempts)).routes(routes!(retry_delivery))
}

/// Which deliveries.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListDeliveries {
    /// In this state.
    state: Option<State>,
    /// How many rows at most.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
    /// Where to go on: the `next_cursor` of the page before.
    cursor: Option<Uuid>,
}

/// Deliveries.
#[derive(Serialize, ToSchema)]
struct Deliveries {
    /// The newest first.
    data: Vec<Delivery>,
    /// The cursor of the next page; none on the last.
    next_cursor: Option<Uuid>,
}

/// The tenant's mails: what was queued, what came of it.
#[utoipa::path(get, path = "/v1/deliveries", tag = "deliveries", params(ListDeliveries), responses((status = 200, body = Deliveries), Refusals))]
async fn list_deliveries(
    app: axum::extract::State<App>,
    caller: Caller,
    Params(p): Params<ListDeliveries>,
) -> Result<axum::Json<Deliveries>, Problem> {
    caller.require("delivery:read")?;
    let limit = p.limit.unwrap_or(50);
    if !(1..=200).contains(&limit) {
        return Err(Problem::new(code::BAD_QUERY, "limit must be 1 to 200"));
    }
    let pool = app.executor.store().pool();
    let mut data = queue::list(pool, caller.tenant, p.state, p.cursor, i64::from(limit) + 1).await.map_err(AccessError::Unavailable)?;
    let more = data.len() > limit as usize;
    data.truncate(limit as usize);
    Ok(axum::Json(Deliveries { next_cursor: data.last().filter(|_| more).map(|last| last.id), data }))
}

/// Attempts.
#[derive(Serialize, ToSchema)]
struct Attempts {
    /// The first one first.
    data: Vec<Attempted>,
}

/// The attempts of a delivery.
#[utoipa::path(
    get, path = "/v1/deliveries/{id}/attempts", tag = "deliveries", params(("id" = Uuid, Path, description = "Which one.")),
    responses((status = 200, body = Attempts), Refusals)
)]
async fn list_delivery_attempts(app: axum::extract::State<App>, caller: Caller, Id(id): Id) -> Result<axum::Json<Attempts>, Problem> {
    caller.require("delivery:read")?;
    let data = queue::attempts(app.executor.store().pool(), caller.tenant, id).await.map_err(AccessError::Unavailable)?;
    Ok(axum::Json(Attempts { data }))
}

/// How many deliveries are attempted again.
#[derive(Serialize, ToSchema)]
struct Retried {
    /// How many.
    #[schema(example = 1)]
    retried: u64,
}

/// Has a dead letter attempted again. One that is not dead stays as it is.
#[utoipa::path(
    post, path = "/v1/deliveries/{id}/retry", tag = "deliveries", params(("id" = Uuid, Path, description = "Which one.")),
    responses((status = 200, body = Retried), Refusals)
)]
async fn retry_delivery(app: axum::extract::State<App>, caller: Caller, repeat: Repeat, Id(id): Id) -> Result<Response, Problem> {
    caller.require("delivery:retry")?;
    let run = |_: Drawn<()>| async {
        let store = app.executor.store();
        let tenant: TenantId = caller.tenant;
        let retried = queue::retry(store.pool(), Some(tenant), Some(id), store.clock().now()).await.map_err(AccessError::Unavailable)?;
        Ok(axum::Json(Retried { retried }).into_response())
    };
    repeat.once("{}", nothing(), run).await
}
