//! `/v1/roles`.

use domain::identity::role::{ChangePermissions, DefineRole, DeleteRole, RenameRole, Role};
use projections::ReadModel as _;
use projections::identity::role::{self, Roles};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::extract::{After, Caller, Id, ListBody, Listed, Listing, Params, Query, Shown, Sought, paging};
use crate::problem::Problem;
use crate::routes::Refusals;

pub(crate) fn routes() -> OpenApiRouter<App> {
    commands().routes(routes!(list_roles)).routes(routes!(get_role))
}

crate::commands! { Role, "roles", Caller::stream:
    create define_role(DefineRole) "/v1/roles";
    rename_role(RenameRole) post "/v1/roles/{id}/rename" "application/json";
    change_permissions(ChangePermissions) post "/v1/roles/{id}/change-permissions" "application/json";
    delete_role(DeleteRole) post "/v1/roles/{id}/delete" "application/json";
}

/// One role that the tenant has defined.
#[utoipa::path(
    get, path = "/v1/roles/{id}", tag = "roles",
    params(("id" = uuid::Uuid, Path, description = "Which one."), After),
    responses((status = 200, body = role::Row), (status = 304, description = "It has not changed."), Refusals)
)]
async fn get_role(query: Query, Id(id): Id, Params(p): Params<After>) -> Result<Shown, Problem> {
    query.require("role:read")?;
    let sought = Sought::new(Caller::stream(id, &query.caller), &[Roles::NAME], p.after);
    query.one::<Role, _, _, _>(sought, |mut read| async move { role::by_id(&mut read, id).await.map(|row| (read, row)) }).await
}

/// The roles that the tenant has defined, beside the built-in ones.
#[utoipa::path(get, path = "/v1/roles", tag = "roles", params(Listing), responses((status = 200, body = ListBody<role::Row>), Refusals))]
async fn list_roles(query: Query, Params(p): Params<Listing>) -> Result<Listed<role::Row>, Problem> {
    query.require("role:read")?;
    let paging = paging(&role::ORDERS, p.sort.as_deref(), p.limit, p.cursor)?;
    let mut read = query.open(&[Roles::NAME], p.after).await?;
    let page = role::list(&mut read, query.cursors(), &paging).await?;
    Ok(query.page(&read, page))
}
