//! `/v1/plans`.

use axum::extract::State;
use domain::billing::money::Money;
use domain::billing::plan::{DefinePlan, Plan, RetirePlan, RevisePlan};
use domain::text::{SearchText, TokenText};
use domain::{StreamId, TenantId};
use projections::ReadModel as _;
use projections::billing::plan::{self, Plans};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::app::App;
use crate::extract::{After, Body, Caller, Id, ListBody, Listed, Params, Query, Shown, Sought, Write, Written, WrittenBody, paging};
use crate::problem::{Problem, code};
use crate::routes::Refusals;

pub(crate) fn routes() -> OpenApiRouter<App> {
    commands().routes(routes!(define_plan)).routes(routes!(revise_plan)).routes(routes!(list_plans)).routes(routes!(get_plan))
}

/// Plans are the platform's, whoever looks at them.
fn stream(id: Uuid, _: &Caller) -> StreamId {
    StreamId::new(TenantId::SYSTEM, id)
}

crate::commands! { Plan, "plans", stream:
    retire_plan(RetirePlan) post "/v1/plans/{id}/retire" "application/json";
}

/// Refuses a price that the payment provider of the installation cannot charge.
fn payable(app: &App, price: Money) -> Result<(), Problem> {
    let provider = app.payments.as_ref();
    provider.map_or(Ok(()), |provider| provider.can_charge(price)).map_err(|why| Problem::new(code::NOT_PAYABLE, why))
}

/// See [`DefinePlan`].
#[utoipa::path(
    post, path = "/v1/plans", tag = "plans", operation_id = "define_plan", request_body = DefinePlan,
    responses((status = 201, description = "Made.", body = WrittenBody), Refusals)
)]
async fn define_plan(State(app): State<App>, write: Write<Plan>, body: Body<DefinePlan>) -> Result<Written, Problem> {
    let stream = stream(write.id_for(body.command.id), write.caller());
    payable(&app, body.command.price)?;
    write.create(stream, body).await
}

/// See [`RevisePlan`].
#[utoipa::path(
    post, path = "/v1/plans/{id}/revise", tag = "plans", operation_id = "revise_plan", request_body = RevisePlan,
    params(("id" = Uuid, Path, description = "Which one.")),
    responses((status = 200, description = "Done, or already so.", body = WrittenBody), Refusals)
)]
async fn revise_plan(State(app): State<App>, write: Write<Plan>, Id(id): Id, body: Body<RevisePlan>) -> Result<Written, Problem> {
    payable(&app, body.command.price)?;
    let stream = stream(id, write.caller());
    write.execute(stream, body).await
}

/// One plan, with all its versions.
#[utoipa::path(
    get, path = "/v1/plans/{id}", tag = "plans",
    params(("id" = Uuid, Path, description = "Which one."), After),
    responses((status = 200, body = plan::Row), (status = 304, description = "It has not changed."), Refusals)
)]
async fn get_plan(query: Query, Id(id): Id, Params(p): Params<After>) -> Result<Shown, Problem> {
    query.require("plan:read")?;
    let sought = Sought::new(stream(id, &query.caller), &[Plans::NAME], p.after);
    query.one::<Plan, _, _, _>(sought, |mut read| async move { plan::by_id(&mut read, id).await.map(|row| (read, row)) }).await
}

/// Which plans, in which order.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListPlans {
    /// Those that nobody can subscribe to any more, too.
    #[serde(default)]
    retired: bool,
    /// `-created_at` (the default), `created_at`, `code` or `-code`.
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

/// The plans that can be subscribed to.
#[utoipa::path(get, path = "/v1/plans", tag = "plans", params(ListPlans), responses((status = 200, body = ListBody<plan::Row>), Refusals))]
async fn list_plans(query: Query, Params(p): Params<ListPlans>) -> Result<Listed<plan::Row>, Problem> {
    query.require("plan:read")?;
    let paging = paging(&plan::ORDERS, p.sort.as_deref(), p.limit, p.cursor)?;
    let mut read = query.open_system(&[Plans::NAME], p.after).await?;
    let page = plan::list(&mut read, query.cursors(), p.retired, &paging).await?;
    Ok(query.page(&read, page))
}
