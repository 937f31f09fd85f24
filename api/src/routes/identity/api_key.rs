//! `/v1/api-keys`.

use std::collections::{BTreeSet, HashMap};

use access::api_keys::Drawn;
use axum::extract::State;
use axum::response::Response;
use chrono::{DateTime, Utc};
use domain::identity::api_key::{ApiKey, CreateKey, Kind, RevokeKey, RotateKey};
use domain::instant::Instant;
use domain::text::DisplayName;
use domain::text::Permission;
use domain::{StreamId, TenantId, UserId};
use projections::identity::api_key::{self, ApiKeys};
use projections::list::Page;
use projections::row::Doc;
use projections::{Read, ReadModel as _};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::app::App;
use crate::extract::{
    After, Body, Caller, Id, ListBody, Listed, Listing, Params, Query, Repeat, Shown, Sought, Write, Written, WrittenBody, paging,
};
use crate::problem::Problem;
use crate::routes::Refusals;
use crate::routes::secret;

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(create_api_key))
        .routes(routes!(rotate_api_key))
        .routes(routes!(revoke_api_key))
        .routes(routes!(get_api_key))
        .routes(routes!(list_api_keys))
}

/// Makes a key.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CreateApiKey {
    /// Its id, if the client chooses one.
    #[serde(default)]
    id: Option<Uuid>,
    /// What it is called.
    name: DisplayName,
    /// Whose it is: `personal` acts as the caller, `service` for itself.
    kind: Kind,
    /// What it may: no more than the caller.
    #[schema(example = json!(["ticket:read"]))]
    scopes: BTreeSet<Permission>,
    /// Until when it is good; for ever, if nothing is said.
    #[serde(default)]
    #[schema(example = "2036-01-01T00:00:00Z")]
    expires_at: Option<Instant>,
}

/// Gives a key another secret.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RotateApiKey {
    /// For how many seconds the old secret is good beside the new one.
    #[serde(default = "hour")]
    #[schema(default = 3600, minimum = 0, maximum = 604_800)]
    grace_seconds: u32,
}

fn hour() -> u32 {
    3600
}

/// The answer to what makes a secret.
#[derive(Serialize, ToSchema)]
struct WithKey {
    #[serde(flatten)]
    written: WrittenBody,
    /// The key. It is shown in this answer alone, and again to a request that repeats this one with the same `Idempotency-Key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "tnr_s7Qd0wJxTnOl….Yk3…")]
    key: Option<String>,
}

/// A key as it is listed.
#[derive(Serialize, ToSchema)]
#[schema(as = ApiKeyWithUse)]
struct Listable {
    #[serde(flatten)]
    key: api_key::Row,
    /// When it was last used, to the minute.
    last_used_at: Option<DateTime<Utc>>,
}

/// Makes a key for a program. It is shown in the answer alone.
#[utoipa::path(
    post, path = "/v1/api-keys", tag = "api_keys", operation_id = "create_api_key", request_body = CreateApiKey,
    responses((status = 201, description = "Made.", body = WithKey), Refusals)
)]
async fn create_api_key(app: State<App>, write: Write<ApiKey>, repeat: Repeat, body: Body<CreateApiKey>) -> Result<Response, Problem> {
    write.caller().require("api_key:create")?;
    let (stream, asked) = (Caller::stream(write.id_for(body.command.id), write.caller()), body.asked());
    let draw = async { Ok((stream, app.access.draw(stream).await?)) };
    let create = |stream: StreamId, drawn: &Drawn| {
        let (prefix, secret) = (drawn.prefix.clone(), drawn.credential);
        let body =
            body.map(|CreateApiKey { id: _, name, kind, scopes, expires_at }| CreateKey { name, prefix, kind, scopes, expires_at, secret });
        write.create(stream, body)
    };
    secret::once((&app, &repeat, &asked), "key", draw, create).await
}

/// Gives a key another secret; the old one is good for a while. The new one is shown in the answer alone.
#[utoipa::path(
    post, path = "/v1/api-keys/{id}/rotate", tag = "api_keys", operation_id = "rotate_api_key", request_body = RotateApiKey,
    params(("id" = Uuid, Path, description = "Which one.")),
    responses((status = 200, description = "Done.", body = WithKey), Refusals)
)]
async fn rotate_api_key(
    app: State<App>,
    write: Write<ApiKey>,
    repeat: Repeat,
    Id(id): Id,
    body: Body<RotateApiKey>,
) -> Result<Response, Problem> {
    write.caller().require("api_key:create")?;
    let (stream, asked) = (Caller::stream(id, write.caller()), body.asked());
    let draw = async { Ok((stream, app.access.draw(stream).await?)) };
    let rotate = |stream: StreamId, drawn: &Drawn| {
        let (prefix, secret) = (drawn.prefix.clone(), drawn.credential);
        write.execute(stream, body.map(|c| RotateKey { secret, prefix, grace_seconds: c.grace_seconds }))
    };
    secret::once((&app, &repeat, &asked), "key", draw, rotate).await
}

/// See [`RevokeKey`].
#[utoipa::path(
    post, path = "/v1/api-keys/{id}/revoke", tag = "api_keys", operation_id = "revoke_api_key", request_body = RevokeKey,
    params(("id" = Uuid, Path, description = "Which one.")),
    responses((status = 200, description = "Done, or already so.", body = WrittenBody), Refusals)
)]
async fn revoke_api_key(write: Write<ApiKey>, Id(id): Id, body: Body<RevokeKey>) -> Result<Written, Problem> {
    let stream = Caller::stream(id, write.caller());
    write.execute(stream, body).await
}

/// Whose keys a caller sees, if not everybody's.
fn only(query: &Query) -> Option<UserId> {
    if query.caller.actor.may("api_key:manage") { None } else { query.caller.actor.user() }
}

/// When keys were last used, beside them.
async fn with_use(app: &App, tenant: TenantId, keys: &[Doc<api_key::Row>]) -> Result<Vec<Doc<Listable>>, Problem> {
    let keys = keys.iter().map(Doc::read).collect::<Result<Vec<_>, _>>()?;
    let ids: Vec<Uuid> = keys.iter().map(|key| key.id).collect();
    let used: HashMap<Uuid, DateTime<Utc>> = app.access.last_used(tenant, &ids).await?.into_iter().collect();
    let with_use = |key: api_key::Row| Doc::of(&Listable { last_used_at: used.get(&key.id).copied(), key });
    Ok(keys.into_iter().map(with_use).collect::<Result<_, _>>()?)
}

/// One key: one's own, or any for those who manage them.
#[utoipa::path(
    get, path = "/v1/api-keys/{id}", tag = "api_keys",
    params(("id" = Uuid, Path, description = "Which one."), After),
    responses((status = 200, body = Listable), (status = 304, description = "It has not changed."), Refusals)
)]
async fn get_api_key(app: State<App>, query: Query, Id(id): Id, Params(p): Params<After>) -> Result<Shown, Problem> {
    query.require("api_key:read")?;
    let (tenant, only) = (query.caller.tenant, only(&query));
    let sought = Sought::new(Caller::stream(id, &query.caller), &[ApiKeys::NAME], p.after);
    let app = &app;
    let fetch = |mut read: Read| async move {
        let row = api_key::by_id(&mut read, id, only).await?;
        let row = with_use(app, tenant, row.as_slice()).await?.pop();
        Ok::<_, Problem>((read, row))
    };
    query.one::<ApiKey, _, _, _>(sought, fetch).await
}

/// Keys, and when they were last used: one's own, or all for those who manage them.
#[utoipa::path(get, path = "/v1/api-keys", tag = "api_keys", params(Listing), responses((status = 200, body = ListBody<Listable>), Refusals))]
async fn list_api_keys(app: State<App>, query: Query, Params(p): Params<Listing>) -> Result<Listed<Listable>, Problem> {
    query.require("api_key:read")?;
    let paging = paging(&api_key::ORDERS, p.sort.as_deref(), p.limit, p.cursor)?;
    let mut read = query.open(&[ApiKeys::NAME], p.after).await?;
    let page = api_key::list(&mut read, query.cursors(), only(&query), &paging).await?;
    let page = Page { rows: with_use(&app, query.caller.tenant, &page.rows).await?, next: page.next };
    Ok(query.page(&read, page))
}
