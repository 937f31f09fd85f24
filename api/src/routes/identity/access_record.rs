//! `/v1/access-records`.

use chrono::{DateTime, Utc};
use domain::identity::access_record::{Action, NoteAccess, Outcome};
use projections::ReadModel as _;
use projections::identity::access_record::{self, AccessRecords};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::extract::{ListBody, Listed, Params, Query, paging, sensible, short};
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
    #[param(max_length = 200)]
    actor: Option<String>,
    /// Of this action, such as `user.role_changed`; with a dot at the end, of all that begin so: `user.`, `access.`.
    #[param(max_length = 200)]
    action: Option<String>,
    /// On this target: the id of a user, a role, a key or a session, or a method and a path.
    #[param(max_length = 200)]
    target: Option<String>,
    /// With this outcome.
    outcome: Option<Outcome>,
    /// At or after this time.
    from: Option<DateTime<Utc>>,
    /// Before this time.
    to: Option<DateTime<Utc>>,
    /// `-position` (the default) or `position`.
    sort: Option<String>,
    /// How many rows at most.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
    /// Where to go on: the `next_cursor` of the page before.
    cursor: Option<String>,
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
    short(&[&p.actor, &p.action, &p.target])?;
    sensible(&[p.from, p.to])?;
    let filter = access_record::Filter { actor: p.actor, action: p.action, target: p.target, outcome: p.outcome, from: p.from, to: p.to };
    let mut read = query.open_all(&[AccessRecords::NAME], p.after).await?;
    let page = access_record::list(&mut read, query.cursors(), &filter, &paging).await?;
    // Nothing is shown that is not recorded to have been.
    let note = NoteAccess {
        action: Action::ReadRecords,
        outcome: Outcome::Done,
        actor: Some(query.caller.actor.name()),
        target: None,
        code: None,
        count: None,
        source: None,
    };
    app.access.note_always(query.caller.tenant, note).await?;
    Ok(query.page(&read, page))
}
