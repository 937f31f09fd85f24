//! `/v1/quota/usage`, `/v1/quota/check` and `/v1/quota/reservations`: what was used, may be and is going to be.

use std::str::FromStr as _;

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use commands::usage::{Recorded, Recording};
use commands::{lookup, quota};
use domain::StreamId;
use domain::billing::meter::Meter;
use domain::billing::usage::{CommitUsage, MAX_ITEMS, ReleaseUsage, ReserveUsage, Usage, UsageId, UsageItem};
use domain::instant::Instant;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::app::App;
use crate::extract::{Body, Caller, Drawn, Params, Repeat, TENURE_POSITION, Write, nothing, path_param, traceparent, unless_final};
use crate::problem::Problem;
use crate::routes::Refusals;

const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

pub(super) fn routes() -> OpenApiRouter<App> {
    commands().routes(routes!(record_usage)).routes(routes!(check_quota))
}

crate::commands! { Usage, "usages", Caller::stream:
    create reserve_usage(ReserveUsage) "/reservations";
    commit_usage(CommitUsage) post "/reservations/{id}/commit" "application/json";
    release_usage(ReleaseUsage) post "/reservations/{id}/release" "application/json";
}

/// The meter in the path: `messages`, or `message` as the systems before called one.
struct OfMeter(Meter);

impl FromRequestParts<App> for OfMeter {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let name: String = path_param(parts, app, "meter").await?;
        let meter = Meter::from_str(&name).or_else(|_| Meter::from_str(&format!("{name}s")));
        meter.map(Self).map_err(|_| Problem::not_found())
    }
}

/// Who records, and in which trace.
struct Recorder {
    caller: Caller,
    traceparent: Option<String>,
}

impl FromRequestParts<App> for Recorder {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        Ok(Self { caller: Caller::from_request_parts(parts, app).await?, traceparent: traceparent(&parts.headers) })
    }
}

/// One item, or up to 1 000.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"items": [{"id": "msg-2041", "quantity": 1}, {"id": "msg-2042", "quantity": 3}]}))]
struct RecordUsage {
    /// Of one item: what the caller calls it. The same id counts once, for 35 days.
    id: Option<UsageId>,
    /// Of one item: how much; 1, if nothing is said.
    #[serde(default, deserialize_with = "domain::json::given")]
    #[schema(nullable = false)]
    quantity: Option<i64>,
    /// Of one item: when it was used; now, if nothing is said.
    at: Option<Instant>,
    /// Several items, each for itself.
    items: Option<Vec<UsageItem>>,
}

/// What came of one item.
#[derive(Serialize, ToSchema)]
struct RecordedItem {
    /// What the caller calls it.
    #[schema(example = "msg-2041")]
    id: String,
    /// Whether it is recorded, now or before.
    #[schema(example = true)]
    recorded: bool,
    /// Where in the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 42)]
    position: Option<i64>,
    /// Whether that was before.
    #[schema(example = false)]
    replayed: bool,
    /// Why it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Problem>,
}

impl RecordedItem {
    fn of(id: String, answer: Result<Recorded, commands::CommandError>) -> Self {
        match answer {
            Ok(Recorded { position, replayed }) => Self { id, recorded: true, position: Some(position), replayed, problem: None },
            Err(error) => Self { id, recorded: false, position: None, replayed: false, problem: Some(error.into()) },
        }
    }
}

/// What came of several items, in their order; of one, its fields alone.
#[derive(Serialize, ToSchema)]
struct RecordedUsage {
    /// Each item.
    data: Vec<RecordedItem>,
}

/// Records what was used: one item, which is refused as a whole; or several, of which each is recorded or refused for itself. An id counts once, and asking again gets its
/// first answer; with an `Idempotency-Key` the whole request does.
#[utoipa::path(
    post, path = "/usage/{meter}", tag = "usages", request_body = RecordUsage,
    params(("meter" = String, Path, description = "messages, api_calls or storage.", example = "messages")),
    responses((status = 200, description = "Recorded, or answered item by item.", body = RecordedUsage), Refusals)
)]
async fn record_usage(
    State(app): State<App>,
    recorder: Recorder,
    repeat: Repeat,
    OfMeter(meter): OfMeter,
    body: Body<RecordUsage>,
) -> Result<Response, Problem> {
    recorder.caller.require("usage:record")?;
    let asked = body.asked();
    repeat.once(&asked, nothing(), |_: Drawn<()>| record(app, recorder, meter, body.command)).await
}

async fn record(app: App, recorder: Recorder, meter: Meter, usage: RecordUsage) -> Result<Response, Problem> {
    let Recorder { caller, traceparent } = recorder;
    let RecordUsage { id, quantity, at, items } = usage;
    let recording = |items| Recording { tenant: caller.tenant, meter, items, actor: caller.actor.clone(), traceparent };
    match (id, items) {
        (Some(id), None) => {
            let item = UsageItem { id, quantity: quantity.unwrap_or(1), at };
            let id = item.id.as_str().to_owned();
            let Recorded { position, replayed } = app.executor.record_one(recording(vec![item])).await?;
            let mut response = Json(RecordedItem::of(id, Ok(Recorded { position, replayed: false }))).into_response();
            response.headers_mut().insert(TENURE_POSITION, HeaderValue::from(position));
            if replayed {
                response.headers_mut().insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
            }
            Ok(response)
        }
        (None, Some(items)) if quantity.is_none() && at.is_none() => {
            if !(1..=MAX_ITEMS).contains(&items.len()) {
                return Err(Problem::invalid("/items".into(), "must be 1 to 1000 items".into()));
            }
            let ids: Vec<String> = items.iter().map(|item| item.id.as_str().to_owned()).collect();
            let answers = app.executor.record_each(recording(items)).await;
            let last = answers.iter().flatten().map(|recorded| recorded.position).max();
            let data: Vec<_> = ids.into_iter().zip(answers).map(|(id, answer)| RecordedItem::of(id, answer)).collect();
            let problems: Vec<Problem> = data.iter().filter_map(|item| item.problem.clone()).collect();
            let mut response = unless_final(Json(RecordedUsage { data }).into_response(), &problems);
            if let Some(position) = last {
                response.headers_mut().insert(TENURE_POSITION, HeaderValue::from(position));
            }
            Ok(response)
        }
        (Some(_) | None, _) => Err(Problem::invalid(String::new(), "say either id, with quantity and at, or items".into())),
    }
}

/// What is going to be used.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"quantity": 20}))]
struct CheckQuota {
    /// How much; 1, if nothing is said.
    #[serde(default = "one")]
    #[schema(default = 1, minimum = 1)]
    quantity: i64,
    /// For how many seconds it is held, if it is.
    #[schema(minimum = 1, maximum = 86_400)]
    ttl_seconds: Option<u32>,
}

fn one() -> i64 {
    1
}

/// Whether to hold it.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Reserve {
    /// Whether room for it is held until it is committed or released; 403 `quota.exceeded` where there is none.
    #[serde(default)]
    reserve: bool,
}

/// Whether something would be let through.
#[derive(Serialize, ToSchema)]
struct QuotaCheck {
    /// Whether it would be now. Only a reservation is a promise.
    #[schema(example = true)]
    allowed: bool,
    /// Of which meter.
    meter: Meter,
    /// How much was asked for.
    #[schema(example = 20)]
    quantity: i64,
    /// How much is used and held.
    #[schema(example = 812)]
    used: i64,
    /// Where it stops; `null`: nowhere.
    #[schema(example = 1050)]
    limit: Option<i64>,
    /// How much is left.
    #[schema(example = 238)]
    remaining: Option<i64>,
    /// When it begins at 0 again.
    resets_at: Option<DateTime<Utc>>,
    /// What room is held by, if it is: commit or release it.
    #[serde(skip_serializing_if = "Option::is_none")]
    reservation: Option<Reservation>,
}

/// What holds room.
#[derive(Serialize, ToSchema)]
struct Reservation {
    /// Its id.
    id: Uuid,
    /// Until when.
    expires_at: DateTime<Utc>,
}

/// Whether so much of a meter would be let through now; with `reserve=true`, also holds it.
#[utoipa::path(
    post, path = "/check/{meter}", tag = "quotas", request_body = CheckQuota,
    params(("meter" = String, Path, description = "message, api_call, storage, user, outlet or device.", example = "message"), Reserve),
    responses((status = 200, description = "What would come of it.", body = QuotaCheck), Refusals)
)]
async fn check_quota(
    State(app): State<App>,
    write: Write<Usage>,
    repeat: Repeat,
    OfMeter(meter): OfMeter,
    Params(Reserve { reserve }): Params<Reserve>,
    body: Body<CheckQuota>,
) -> Result<Response, Problem> {
    write.caller().require("quota:read")?;
    // Only what holds something is done once; a question is asked anew each time.
    if !reserve {
        return Ok(Json(checked(&app, write, meter, reserve, body).await?).into_response());
    }
    let asked = body.asked();
    let run = |_: Drawn<()>| async { Ok(Json(checked(&app, write, meter, reserve, body).await?).into_response()) };
    repeat.once(&asked, nothing(), run).await
}

async fn checked(app: &App, write: Write<Usage>, meter: Meter, reserve: bool, body: Body<CheckQuota>) -> Result<QuotaCheck, Problem> {
    let (store, tenant, quantity) = (app.executor.store().clone(), write.caller().tenant, body.command.quantity);
    if quantity < 1 {
        return Err(Problem::invalid("/quantity".into(), "must be 1 or more".into()));
    }
    let mut reservation = None;
    if reserve {
        let ttl_seconds = body.command.ttl_seconds.unwrap_or(300);
        let stream = Caller::stream(write.id_for(None), write.caller());
        let held = write.create(stream, body.map(|_| ReserveUsage { id: None, meter, quantity, ttl_seconds })).await?;
        // Who asks again is told of the first one, as far as it holds still.
        let id = held.outcome.id;
        let until = store.current::<Usage>(StreamId::new(tenant, id)).await.map_err(commands::CommandError::from)?.state.held_until();
        reservation = until.filter(|until| store.clock().now() < *until).map(|expires_at| Reservation { id, expires_at });
    }
    let zone = lookup::calendar(&store, tenant).await?;
    let period = meter.month(store.clock().now(), zone);
    let standing = quota::standing(&store, tenant, meter, period).await?;
    let allowed =
        reserve || standing.limit.is_none_or(|limit| standing.used.saturating_add(standing.held).saturating_add(quantity) <= limit);
    Ok(QuotaCheck {
        allowed,
        meter,
        quantity,
        used: standing.used + standing.held,
        limit: standing.limit,
        remaining: standing.remaining(),
        resets_at: meter.is_flow().then(|| period.period(zone).end),
        reservation,
    })
}
