//! `/v1/outlets`.

use domain::billing::outlet::{CreateOutlet, Outlet, RemoveOutlet, UpdateOutlet};
use domain::text::{SearchText, TokenText};
use projections::ReadModel as _;
use projections::billing::outlet::{self, Outlets};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::extract::{After, Caller, Id, ListBody, Listed, Params, Query, Shown, Sought, paging};
use crate::problem::Problem;
use crate::routes::Refusals;

pub(crate) fn routes() -> OpenApiRouter<App> {
    commands().routes(routes!(list_outlets)).routes(routes!(get_outlet))
}

crate::commands! { Outlet, "outlets", Caller::stream:
    create create_outlet(CreateOutlet) "/v1/outlets";
    update_outlet(UpdateOutlet) patch "/v1/outlets/{id}" "application/merge-patch+json";
    remove_outlet(RemoveOutlet) post "/v1/outlets/{id}/remove" "application/json";
}

/// One outlet.
#[utoipa::path(
    get, path = "/v1/outlets/{id}", tag = "outlets",
    params(("id" = Uuid, Path, description = "Which one."), After),
    responses((status = 200, body = outlet::Row), (status = 304, description = "It has not changed."), Refusals)
)]
async fn get_outlet(query: Query, Id(id): Id, Params(p): Params<After>) -> Result<Shown, Problem> {
    query.require("outlet:read")?;
    let sought = Sought::new(Caller::stream(id, &query.caller), &[Outlets::NAME], p.after);
    query.one::<Outlet, _, _, _>(sought, |mut read| async move { outlet::by_id(&mut read, id).await.map(|row| (read, row)) }).await
}

/// Which outlets, in which order.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListOutlets {
    /// Whose name or phone number contains this.
    #[param(value_type = Option<String>, max_length = 200)]
    q: Option<SearchText>,
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
    #[param(minimum = 0)]
    after: Option<i64>,
}

/// The tenant's outlets.
#[utoipa::path(get, path = "/v1/outlets", tag = "outlets", params(ListOutlets), responses((status = 200, body = ListBody<outlet::Row>), Refusals))]
async fn list_outlets(query: Query, Params(p): Params<ListOutlets>) -> Result<Listed<outlet::Row>, Problem> {
    query.require("outlet:read")?;
    let paging = paging(&outlet::ORDERS, p.sort.as_deref(), p.limit, p.cursor)?;
    let mut read = query.open(&[Outlets::NAME], p.after).await?;
    let page = outlet::list(&mut read, query.cursors(), p.q.as_deref(), &paging).await?;
    Ok(query.page(&read, page))
}
