//! `/v1/subscriptions`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use chrono::{DateTime, Utc};
use commands::Request;
use domain::billing::meter::Meter;
use domain::billing::period::Period;
use domain::billing::subscription::{
    CancelScheduledChange, CancelSubscription, ChangePlan, ChangeQuantity, Command, ConvertTrial, EndTrialWithoutPayment, Event,
    ExtendTrial, MarkUnpaid, PauseSubscription, Pinned, Proration, RecordPaymentFailed, RecordPaymentSucceeded, ResumeSubscription,
    SetPaymentMethod, StartSubscription, Status, Subscription, UncancelSubscription,
};
use domain::instant::Instant;
use domain::text::{SearchText, TokenText};
use projections::billing::payment::{self, PaymentKind, Payments};
use projections::billing::subscription::{self, Subscriptions};
use projections::billing::subscription_timeline::{self, Timeline};
use projections::{QueryError, Read, ReadModel as _};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::app::App;
use crate::extract::{
    After, Body, Caller, Drawn, Id, ListBody, Listed, Listing, Params, Query, Repeat, Shown, Sought, nothing, paging, unless_empty,
};
use crate::problem::{Problem, code};
use crate::routes::Refusals;

pub(crate) fn routes() -> OpenApiRouter<App> {
    commands()
        .routes(routes!(list_subscriptions))
        .routes(routes!(get_subscription))
        .routes(routes!(list_subscription_timeline))
        .routes(routes!(list_payments))
        .routes(routes!(list_upcoming_changes))
        .routes(routes!(list_ending_trials))
        .routes(routes!(preview_change))
        .routes(routes!(set_up_payment))
}

crate::commands! { Subscription, "subscriptions", Caller::stream:
    create start_subscription(StartSubscription) "/v1/subscriptions";
    extend_trial(ExtendTrial) post "/v1/subscriptions/{id}/extend-trial" "application/json";
    convert_trial(ConvertTrial) post "/v1/subscriptions/{id}/convert-trial" "application/json";
    end_trial_without_payment(EndTrialWithoutPayment) post "/v1/subscriptions/{id}/end-trial-without-payment" "application/json";
    change_plan(ChangePlan) post "/v1/subscriptions/{id}/change-plan" "application/json";
    cancel_scheduled_change(CancelScheduledChange) post "/v1/subscriptions/{id}/cancel-scheduled-change" "application/json";
    change_quantity(ChangeQuantity) post "/v1/subscriptions/{id}/change-quantity" "application/json";
    pause_subscription(PauseSubscription) post "/v1/subscriptions/{id}/pause" "application/json";
    resume_subscription(ResumeSubscription) post "/v1/subscriptions/{id}/resume" "application/json";
    cancel_subscription(CancelSubscription) post "/v1/subscriptions/{id}/cancel" "application/json";
    uncancel_subscription(UncancelSubscription) post "/v1/subscriptions/{id}/uncancel" "application/json";
    record_payment_succeeded(RecordPaymentSucceeded) post "/v1/subscriptions/{id}/record-payment-succeeded" "application/json";
    record_payment_failed(RecordPaymentFailed) post "/v1/subscriptions/{id}/record-payment-failed" "application/json";
    mark_unpaid(MarkUnpaid) post "/v1/subscriptions/{id}/mark-unpaid" "application/json";
    set_payment_method(SetPaymentMethod) post "/v1/subscriptions/{id}/set-payment-method" "application/json";
}

/// One subscription.
#[utoipa::path(
    get, path = "/v1/subscriptions/{id}", tag = "subscriptions",
    params(("id" = Uuid, Path, description = "Which one."), After),
    responses((status = 200, body = subscription::Row), (status = 304, description = "It has not changed."), Refusals)
)]
async fn get_subscription(query: Query, Id(id): Id, Params(p): Params<After>) -> Result<Shown, Problem> {
    query.require("subscription:read")?;
    let stream = Caller::stream(id, &query.caller);
    let sought = Sought::new(stream, &[Subscriptions::NAME], p.after);
    query
        .one::<Subscription, _, _, _>(sought, |mut read| async move { subscription::by_id(&mut read, stream).await.map(|row| (read, row)) })
        .await
}

/// Which subscriptions, in which order.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListSubscriptions {
    /// In this status.
    status: Option<Status>,
    /// To this plan, by its code.
    #[param(value_type = Option<String>)]
    plan: Option<SearchText>,
    /// `-started_at` (the default) or `started_at`.
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

/// Subscriptions: the tenant's, or all of them for the platform that names no tenant.
#[utoipa::path(
    get, path = "/v1/subscriptions", tag = "subscriptions", params(ListSubscriptions),
    responses((status = 200, body = ListBody<subscription::Row>), Refusals)
)]
async fn list_subscriptions(query: Query, Params(p): Params<ListSubscriptions>) -> Result<Listed<subscription::Row>, Problem> {
    query.require("subscription:read")?;
    let paging = paging(&subscription::ORDERS, p.sort.as_deref(), p.limit, p.cursor)?;
    let filter = subscription::Filter { status: p.status, plan: p.plan.map(Into::into) };
    let mut read = query.open_all(&[Subscriptions::NAME], p.after).await?;
    let page = subscription::list(&mut read, query.cursors(), &filter, &paging).await?;
    Ok(query.page(&read, page))
}

/// Which payments, in which order.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListPayments {
    /// Of this subscription.
    subscription_id: Option<Uuid>,
    /// To which this happened.
    kind: Option<PaymentKind>,
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
    after: Option<i64>,
}

/// List payments, failed payments, refunds and disputes.
///
/// A caller of the platform that names no tenant gets those of all tenants.
#[utoipa::path(
    get, path = "/v1/billing/payments", tag = "subscriptions", params(ListPayments),
    responses((status = 200, body = ListBody<payment::Row>), Refusals)
)]
async fn list_payments(query: Query, Params(p): Params<ListPayments>) -> Result<Listed<payment::Row>, Problem> {
    query.require("subscription:read")?;
    let paging = paging(&payment::ORDERS, p.sort.as_deref(), p.limit, p.cursor)?;
    let filter = payment::Filter { subscription: p.subscription_id, kind: p.kind };
    let mut read = query.open_all(&[Payments::NAME], p.after).await?;
    let page = payment::list(&mut read, query.cursors(), filter, &paging).await?;
    Ok(query.page(&read, page))
}

/// What has happened to a subscription, newest first.
#[utoipa::path(
    get, path = "/v1/subscriptions/{id}/timeline", tag = "subscriptions",
    params(("id" = Uuid, Path, description = "Which one."), Listing),
    responses((status = 200, body = ListBody<subscription_timeline::Row>), Refusals)
)]
async fn list_subscription_timeline(
    query: Query,
    Id(id): Id,
    Params(p): Params<Listing>,
) -> Result<Listed<subscription_timeline::Row>, Problem> {
    query.require("subscription:read")?;
    let paging = paging(&subscription_timeline::ORDERS, p.sort.as_deref(), p.limit, p.cursor)?;
    let (stream, cursors) = (Caller::stream(id, &query.caller), query.cursors().clone());
    let sought = Sought::new(stream, &[Timeline::NAME], p.after);
    let (cursors, paging) = (&cursors, &paging);
    let fetch = |mut read: Read| async move {
        let page = subscription_timeline::list(&mut read, cursors, stream, paging).await?;
        Ok::<_, QueryError>((read, unless_empty(page, paging)))
    };
    query.of_one::<Subscription, _, _, _>(sought, fetch).await
}

/// What is going to happen, until when.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Until {
    /// Before this time.
    #[param(value_type = Option<String>, format = DateTime)]
    before: Option<Instant>,
    /// How to order the rows; `-` in front is descending.
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

/// The subscriptions that are going to get another plan, or to end: the tenant's, or all of them for the platform that names no tenant.
#[utoipa::path(
    get, path = "/v1/subscriptions/upcoming-changes", tag = "subscriptions", params(Until),
    responses((status = 200, body = ListBody<subscription::Row>), Refusals)
)]
async fn list_upcoming_changes(query: Query, Params(p): Params<Until>) -> Result<Listed<subscription::Row>, Problem> {
    query.require("subscription:read")?;
    let paging = paging(&subscription::UPCOMING, p.sort.as_deref().or(Some("upcoming_at")), p.limit, p.cursor)?;
    let mut read = query.open_all(&[Subscriptions::NAME], p.after).await?;
    let page = subscription::upcoming(&mut read, query.cursors(), p.before.map(Into::into), &paging).await?;
    Ok(query.page(&read, page))
}

/// The trials that end: the tenant's, or all of them for the platform that names no tenant.
#[utoipa::path(
    get, path = "/v1/subscriptions/ending-trials", tag = "subscriptions", params(Until),
    responses((status = 200, body = ListBody<subscription::Row>), Refusals)
)]
async fn list_ending_trials(query: Query, Params(p): Params<Until>) -> Result<Listed<subscription::Row>, Problem> {
    query.require("subscription:read")?;
    let paging = paging(&subscription::TRIALS, p.sort.as_deref().or(Some("trial_ends_at")), p.limit, p.cursor)?;
    let mut read = query.open_all(&[Subscriptions::NAME], p.after).await?;
    let page = subscription::trials(&mut read, query.cursors(), p.before.map(Into::into), &paging).await?;
    Ok(query.page(&read, page))
}

/// A change that is only looked at: of the plan, or of how many times.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
enum PreviewChange {
    /// Of the plan.
    Plan(ChangePlan),
    /// Of how many times.
    Quantity(ChangeQuantity),
}

/// What a change would come to.
#[derive(Serialize, ToSchema)]
struct Preview {
    /// Whether anything would change.
    changes: bool,
    /// When it would take effect; at once, if nothing is said.
    at: Option<DateTime<Utc>>,
    /// What it would be to then.
    pinned: Option<Pinned>,
    /// How many times, if that changes.
    #[schema(example = 2)]
    quantity: Option<u32>,
    /// Credit and charge for the rest of the period.
    proration: Option<Proration>,
    /// The period that would begin with it, if one would.
    period: Option<Period>,
    /// Whether higher limits would wait for the payment.
    waits_for_payment: bool,
    /// The meters of which more is used than it would give.
    over_limit: Vec<Meter>,
}

/// What a change of the plan or of the quantity would come to: with its proration, and without making it. What would be refused is refused here, too.
#[utoipa::path(
    post, path = "/v1/subscriptions/{id}/preview-change", tag = "subscriptions", params(("id" = Uuid, Path, description = "Which one.")),
    request_body = PreviewChange, responses((status = 200, body = Preview), Refusals)
)]
async fn preview_change(State(app): State<App>, caller: Caller, Id(id): Id, body: Body<PreviewChange>) -> Result<Json<Preview>, Problem> {
    caller.require("subscription:change")?;
    let command: Command = match body.command {
        PreviewChange::Plan(change) => change.into(),
        PreviewChange::Quantity(change) => change.into(),
    };
    let stream = Caller::stream(id, &caller);
    let request = Request::<Subscription>::new(stream, command, caller.actor, app.executor.store().fresh_id());
    let events = app.executor.preview(&request).await?;
    let mut preview = Preview {
        changes: !events.is_empty(),
        at: None,
        pinned: None,
        quantity: None,
        proration: None,
        period: None,
        waits_for_payment: false,
        over_limit: vec![],
    };
    for event in events {
        if let Event::PlanChanged { from: _, pinned, proration, period, over_limit } = event {
            preview = Preview { pinned: Some(pinned), proration, period, over_limit, ..preview };
        } else if let Event::PlanChangeScheduled { pinned, at, over_limit } = event {
            preview = Preview { at: Some(at), pinned: Some(pinned), over_limit, ..preview };
        } else if let Event::QuantityChanged { from: _, to, proration } = event {
            preview = Preview { quantity: Some(to), proration, ..preview };
        } else if let Event::LimitsHeld { .. } = event {
            preview.waits_for_payment = true;
        }
    }
    Ok(Json(preview))
}

/// How the product's own page goes on with the payment provider.
#[derive(Serialize, ToSchema)]
struct PaymentSetup {
    /// Which one.
    #[schema(example = "stripe")]
    provider: String,
    /// What its own library in the browser needs. It is good for this customer only.
    #[schema(example = "seti_1Mm8s8LkdIwHu7ix0OXBfTRG_secret_NXDICkPqPeiBTAFqWmkbff09lRmSVXe")]
    client_secret: String,
}

/// Begins to set up what is paid with. The provider tells us when that is done.
#[utoipa::path(
    post, path = "/v1/subscriptions/{id}/set-up-payment", tag = "subscriptions", params(("id" = Uuid, Path, description = "Which one.")),
    responses((status = 200, body = PaymentSetup), Refusals)
)]
async fn set_up_payment(State(app): State<App>, caller: Caller, repeat: Repeat, Id(id): Id) -> Result<Response, Problem> {
    caller.require("subscription:set_up_payment")?;
    let run = |_: Drawn<()>| async { Ok(Json(payment_setup(&app, &caller, id).await?).into_response()) };
    repeat.once("{}", nothing(), run).await
}

async fn payment_setup(app: &App, caller: &Caller, id: uuid::Uuid) -> Result<PaymentSetup, Problem> {
    let stream = Caller::stream(id, caller);
    let loaded = app.executor.store().current::<Subscription>(stream).await.map_err(commands::CommandError::from)?;
    let details = loaded.state.details().filter(|details| details.status.is_live()).ok_or_else(Problem::not_found)?;
    let provider = app.payments.as_ref().ok_or_else(|| Problem::new(code::NO_PROVIDER, "this installation has no payment provider"))?;
    let customer = details.customer.as_ref().filter(|(of, _)| of == provider.name());
    if customer.is_none() {
        // Of a subscription that is older than the provider nobody has told it yet.
        payments::policy::introduce(app.executor.store(), stream).await.map_err(access::AccessError::Unavailable)?;
    }
    let (_, customer) = customer.ok_or_else(|| {
        Problem::new(code::NOT_YET_AT_PROVIDER, "the payment provider does not know this subscription yet; try again shortly")
    })?;
    let client_secret = provider.set_up_payment(stream, customer).await.map_err(|error| {
        tracing::warn!(%error, "the payment provider did not set up a payment");
        Problem::new(code::PROVIDER_UNAVAILABLE, "the payment provider did not answer as it should; try again shortly")
    })?;
    Ok(PaymentSetup { provider: provider.name().to_owned(), client_secret })
}
