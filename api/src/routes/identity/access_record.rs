//! `/v1/access-records`.

use domain::identity::access_record::{Action, NoteAccess, Outcome};
use domain::instant::Instant;
use domain::text::{SearchText, TokenText};
use projections::ReadModel as _;
use projections::identity::access_record::{self, AccessRecords};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::extract::{ListBody, Listed, Params, Query, paging};
use crate::problem::Problem;
use crate::routes::Refusals;

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list_access_records))
}

/// Which records.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListAccessRecords {
    /// By this actor: the id of a user or a key.
    #[param(value_type = Option<String>, max_length = 200)]
    actor: Option<SearchText>,
    /// Of this action, such as `user.role_changed`; with a dot at the end, of all that begin so: `user.`, `access.`.
    #[param(value_type = Option<String>, max_length = 200)]
    action: Option<SearchText>,
    /// On this target: the id of a user, a role, a key or a session, or a method and a path.
    #[param(value_type = Option<String>, max_length = 200)]
    target: Option<SearchText>,
    /// With this outcome.
    outcome: Option<Outcome>,
    /// At or after this time.
    #[param(value_type = Option<String>, format = DateTime)]
    from: Option<Instant>,
    /// Before this time.
    #[param(value_type = Option<String>, format = DateTime)]
    to: Option<Instant>,
    /// `-position` (the default) or `position`.
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

/// Who tried what: logins and what they came to, changes of people, roles and keys, refused commands. Reading this is recorded too.
#[utoipa::path(
    get, path = "/v1/access-records", tag = "access_records", params(ListAccessRecords),
    responses((status = 200, body = ListBody<access_record::Row>), Refusals)
)]
async fn list_access_records(
    app: axum::extract::State<App>,
    query: Query,
    Params(p): Params<ListAccessRecords>,
) -> Result<Listed<access_record::Row>, Problem> {
    query.require("access_record:read")?;
    let paging = paging(&access_record::ORDERS, p.sort.as_deref(), p.limit, p.cursor)?;
    let filter = access_record::Filter {
        actor: p.actor.map(Into::into),
        action: p.action.map(Into::into),
        target: p.target.map(Into::into),
        outcome: p.outcome,
        from: p.from.map(Into::into),
        to: p.to.map(Into::into),
    };
    let mut read = query.open_all(&[AccessRecords::NAME], p.after).await?;
    let page = access_record::list(&mut read, query.cursors(), &filter, &paging).await?;
    // Nothing is shown that is not recorded to have been.
    let note = NoteAccess::new(Action::ReadRecords, Outcome::Done, Some(&query.caller.actor.name()), None, None);
    app.access.note_always(query.caller.tenant, note).await?;
    Ok(query.page(&read, page))
}
