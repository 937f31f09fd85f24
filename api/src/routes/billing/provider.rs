//! `/v1/billing/providers`: what payment providers tell.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use domain::TenantId;
use payments::inbox::{self, Outcome, TakenIn};
use payments::provider::MessageError;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::extract::{Caller, Params};
use crate::problem::{Problem, code};
use crate::routes::Refusals;

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(take_in_provider_event)).routes(routes!(list_provider_events))
}

/// A message, as the provider sends it; more than this may be in it.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what is read where the signature is checked")]
#[schema(example = json!({"id": "evt_1NG8Du2eZvKYlo2CUI79vXWy", "type": "invoice.payment_succeeded", "created": 1_767_225_600,
    "data": {"object": {"id": "in_1", "customer": "cus_1", "amount_paid": 2900, "currency": "usd"}}}))]
struct ProviderEvent {
    /// Its id.
    id: String,
    /// What happened.
    #[schema(rename = "type")]
    kind: String,
    /// When, in seconds since 1970.
    created: i64,
    /// To what.
    #[schema(value_type = Object)]
    data: serde_json::Value,
}

/// What came of a message.
#[derive(Serialize, ToSchema)]
struct Taken {
    /// That.
    outcome: Outcome,
}

/// Takes in what a payment provider tells. There is no token: the provider signs the body as it is sent, and what is older than five minutes is refused. Each of its messages
/// counts once, in whatever order they come; what means nothing here is kept, and acknowledged.
#[utoipa::path(
    post, path = "/v1/billing/providers/{provider}/events", tag = "providers", security(()),
    params(
        ("provider" = String, Path, description = "Which one: `stripe`."),
        ("Stripe-Signature" = String, Header, description = "The signature, in Stripe's own form."),
    ),
    request_body = ProviderEvent,
    responses((status = 200, body = Taken), Refusals)
)]
async fn take_in_provider_event(
    State(app): State<App>,
    Path(provider): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Taken>, Problem> {
    let payments = app.payments.as_ref().filter(|payments| payments.name() == provider).ok_or_else(Problem::not_found)?;
    let signature = headers.get("stripe-signature").and_then(|value| value.to_str().ok());
    let message = payments.read(signature, &body, app.executor.store().clock().now()).map_err(|error| match error {
        MessageError::BadSignature(why) => Problem::new(code::BAD_SIGNATURE, why),
        MessageError::Malformed(why) => Problem::new(code::MALFORMED, why),
    })?;
    let outcome = inbox::take_in(&app.executor, payments.as_ref(), &message, &body).await?;
    metrics::counter!("tenure_provider_events_total", "provider" => provider).increment(1);
    Ok(Json(Taken { outcome }))
}

/// How many.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListProviderEvents {
    /// How many rows at most.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
}

/// What was taken in.
#[derive(Serialize, ToSchema)]
struct ProviderEvents {
    /// The newest first.
    data: Vec<TakenIn>,
}

/// What payment providers have told of the tenant; for the platform that names no tenant all of it, also what is about nobody here.
#[utoipa::path(
    get, path = "/v1/billing/provider-events", tag = "providers", params(ListProviderEvents),
    responses((status = 200, body = ProviderEvents), Refusals)
)]
async fn list_provider_events(
    State(app): State<App>,
    caller: Caller,
    Params(p): Params<ListProviderEvents>,
) -> Result<Json<ProviderEvents>, Problem> {
    caller.require("subscription:read")?;
    let limit = p.limit.unwrap_or(50);
    if !(1..=200).contains(&limit) {
        return Err(Problem::new(code::BAD_QUERY, "limit must be 1 to 200"));
    }
    let tenant = Some(caller.tenant).filter(|tenant| *tenant != TenantId::SYSTEM);
    let data = inbox::list(app.executor.store(), tenant, limit.into()).await.map_err(access::AccessError::Unavailable)?;
    Ok(Json(ProviderEvents { data }))
}
