//! The router with everything around the routes.

use std::any::Any;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use access::Access;
use axum::error_handling::HandleErrorLayer;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::get;
use axum::{BoxError, Router, middleware};
use commands::Executor;
use domain::IdSource;
use domain::identity::access_record::{Action, NoteAccess, Outcome};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use percent_encoding::percent_decode_str;
use projections::ReadSide;
use tower::ServiceBuilder;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::load_shed::LoadShedLayer;
use tower::timeout::TimeoutLayer;
use tower_http::ServiceBuilderExt as _;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestId, RequestId};
use tower_http::trace::{DefaultOnResponse, TraceLayer};
use utoipa_axum::router::OpenApiRouter;

use crate::client_address::{ClientAddress, TrustedProxies};
use crate::document::{Description, docs_file};
use crate::extract::Asked;
use crate::health::Operations;
use crate::problem::{Problem, code, finish, page};
use crate::routes;
use crate::serve::Connections;
use crate::share::{Shares, share};

/// The most that a body may take, in bytes.
const BODY: usize = 1024 * 1024;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// How long a request may take, its body included.
const PATIENCE: Duration = Duration::from_secs(20);

/// What bounds the load, and who is believed about where it comes from.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Requests worked on at a time; further ones get a 503.
    pub concurrent_requests: usize,
    /// Bounds of what connections cost.
    pub connections: Connections,
    /// Networks whose hosts say truly where a request comes from.
    pub trusted_proxies: TrustedProxies,
    /// Whether `/readyz`, `/health` and `/metrics` have an address of their own, and are not served beside the API.
    pub operations_elsewhere: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            concurrent_requests: 2048,
            connections: Connections::default(),
            trusted_proxies: TrustedProxies::default(),
            operations_elsewhere: false,
        }
    }
}

/// What all handlers share. Cheap to clone.
#[derive(Clone)]
pub struct App {
    /// Executes commands.
    pub executor: Executor,
    /// Opens read models.
    pub reads: ReadSide,
    /// Says who asks, and lets people in.
    pub access: Access,
    /// The payment provider, if there is one.
    pub payments: payments::provider::Provider,
    /// Looks up what shows a domain to be somebody's.
    pub dns: Arc<dyn outbound::dns::TxtLookup>,
    /// Health and figures.
    pub operations: Operations,
}

/// The process's figures. There is one recorder for all; the first call makes it.
pub fn recorder() -> PrometheusHandle {
    static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();
    RECORDER
        .get_or_init(|| {
            let recorder = PrometheusBuilder::new().build_recorder();
            let handle = recorder.handle();
            // Somebody else's recorder would take our figures; then there are none to show here.
            let _ = metrics::set_global_recorder(recorder);
            handle
        })
        .clone()
}

#[derive(Clone)]
struct FreshRequestId(Arc<IdSource>);

impl MakeRequestId for FreshRequestId {
    fn make_request_id<B>(&mut self, _: &Request<B>) -> Option<RequestId> {
        self.0.next().to_string().parse().ok().map(RequestId::new)
    }
}

/// The whole interface.
pub fn router(app: App, limits: Limits) -> Router {
    router_with(app, limits, OpenApiRouter::new())
}

/// The whole interface with `more` routes, which are limited, logged and described as its own are.
pub fn router_with(app: App, limits: Limits, more: OpenApiRouter<App>) -> Router {
    let openapi = Description::new(routes::described(more.clone()));
    let (api, _) = routes::all().merge(more).split_for_parts();
    let operations = if limits.operations_elsewhere { OpenApiRouter::new() } else { routes::operations() };
    let (operations, _) = operations.merge(routes::liveness()).split_for_parts();
    let documents = Router::new()
        .route("/openapi.json", get(async move |headers: HeaderMap| openapi.answer(&headers)))
        .route("/docs", get(async || Redirect::to("/docs/")))
        .route("/docs/", get(async |headers: HeaderMap| docs_file("index.html", &headers)))
        .route(
            "/docs/{*file}",
            get(async |axum::extract::Path(file): axum::extract::Path<String>, headers: HeaderMap| docs_file(&file, &headers)),
        )
        .route("/errors/{page}", get(page));
    let limited = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(|error: BoxError| async move {
            if error.is::<tower::timeout::error::Elapsed>() {
                Problem::new(code::UNAVAILABLE, "no answer in time; try again with the same idempotency key")
            } else {
                Problem::new(code::OVERLOADED, "too many requests are being worked on; try again shortly")
            }
        }))
        .layer(LoadShedLayer::new())
        .layer(GlobalConcurrencyLimitLayer::new(limits.concurrent_requests))
        // Within the limit, so that a slow sender cannot keep a place.
        .layer(TimeoutLayer::new(PATIENCE));
    let shares = Shares::of(limits.concurrent_requests);
    let limited = api.merge(documents).layer(limited).layer(middleware::from_fn_with_state(shares, share));
    around(limited.merge(operations), app, limits.trusted_proxies)
}

/// Health and figures alone, for an address of their own.
pub fn operations(app: App) -> Router {
    let (operations, _) = routes::operations().merge(routes::liveness()).split_for_parts();
    around(operations, app, TrustedProxies::default())
}

/// What every request passes, whatever it is for.
fn around(routes: Router<App>, app: App, proxies: TrustedProxies) -> Router {
    let ids = FreshRequestId(Arc::new(IdSource::new(app.executor.store().clock().clone())));
    let around = ServiceBuilder::new()
        .map_request(move |mut request: Request<axum::body::Body>| {
            // One that cannot be echoed in a header or found in a log is replaced.
            let fine = |id: &HeaderValue| id.to_str().is_ok_and(|id| (1..=128).contains(&id.len()) && !id.contains(' '));
            if request.headers().get(X_REQUEST_ID).is_some_and(|id| !fine(id)) {
                request.headers_mut().remove(X_REQUEST_ID);
            }
            let address = ClientAddress::resolve(request.extensions(), request.headers(), &proxies);
            request.extensions_mut().insert(address);
            request
        })
        .set_request_id(X_REQUEST_ID, ids)
        .propagate_request_id(X_REQUEST_ID)
        .layer(
            TraceLayer::new_for_http()
                .make_span_with(span::<axum::body::Body>)
                .on_response(DefaultOnResponse::new().level(tracing::Level::DEBUG))
                // A failure is logged where it is handled.
                .on_failure(()),
        )
        .layer(middleware::from_fn(finish))
        .layer(middleware::from_fn(refuse_unsound_uris))
        .layer(middleware::from_fn_with_state(app.access.clone(), record_refusals))
        .layer(CatchPanicLayer::custom(panicked));
    routes
        .fallback(|| async { Problem::not_found() })
        .method_not_allowed_fallback(|| async { Problem::new(code::METHOD_NOT_ALLOWED, "this path does not take this method") })
        .layer(DefaultBodyLimit::max(BODY))
        .layer(around)
        .with_state(app)
}

/// Refuses paths and query strings with NUL or with bytes that are no UTF-8: no table holds them, so there is nothing that they could name.
async fn refuse_unsound_uris(request: axum::extract::Request, next: middleware::Next) -> Response {
    let sound = |text: &str| percent_decode_str(text).decode_utf8().is_ok_and(|text| !text.contains('\0'));
    let uri = request.uri();
    if sound(uri.path()) && uri.query().is_none_or(sound) {
        return next.run(request).await;
    }
    Problem::invalid(String::new(), "the path and the query must be UTF-8 without NUL".into()).into_response()
}

/// Has it recorded who was refused what, without their waiting for it.
async fn record_refusals(
    State(access): State<Access>,
    address: ClientAddress,
    mut request: axum::extract::Request,
    next: middleware::Next,
) -> Response {
    let asked = Asked::default();
    request.extensions_mut().insert(asked.clone());
    let target = format!("{} {}", request.method(), request.uri().path());
    let response = next.run(request).await;
    if response.status() == StatusCode::FORBIDDEN
        && let Some(caller) = asked.0.get().cloned()
    {
        let code = response.extensions().get::<Problem>().map(Problem::code);
        let note = NoteAccess::new(Action::Command, Outcome::Refused, Some(&caller.actor.name()), Some(&target), code);
        tokio::spawn(async move {
            if let Err(error) = access.note(caller.tenant, note, address.source()).await {
                tracing::warn!(%error, "a refusal could not be recorded");
            }
        });
    }
    response
}

fn span<B>(request: &Request<B>) -> tracing::Span {
    let id = request.extensions().get::<RequestId>().and_then(|id| id.header_value().to_str().ok()).unwrap_or_default();
    tracing::info_span!("http", http.method = %request.method(), http.path = request.uri().path(), request.id = id)
}

#[expect(clippy::needless_pass_by_value, reason = "tower-http's signature")]
fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without words");
    Problem::internal(text).into_response()
}
