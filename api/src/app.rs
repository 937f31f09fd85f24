//! The router with everything around the routes.

use std::any::Any;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use access::Access;
use axum::error_handling::HandleErrorLayer;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderName, HeaderValue, Request, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::{BoxError, Router, middleware};
use commands::Executor;
use domain::IdSource;
use domain::identity::access_record::{Action, NoteAccess, Outcome};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use projections::ReadSide;
use tokio_io_timeout::TimeoutStream;
use tower::ServiceBuilder;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::load_shed::LoadShedLayer;
use tower::timeout::TimeoutLayer;
use tower_http::ServiceBuilderExt as _;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestId, RequestId};
use tower_http::trace::{DefaultOnResponse, TraceLayer};
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::SwaggerUi;

use crate::extract::Asked;
use crate::health::Probe;
use crate::problem::{Problem, code, finish, page};
use crate::routes;

/// The most that a body may take, in bytes.
const BODY: usize = 1024 * 1024;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// How long a request may take, its body included.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a connection may be silent, between two requests or within one.
const IDLE: Duration = Duration::from_secs(75);
/// How long a client may take nothing of an answer.
const STALLED: Duration = Duration::from_secs(10);

/// What bounds the load.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests worked on at a time; further ones get a 503.
    pub concurrent_requests: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { concurrent_requests: 1024 }
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
    /// Looks at everything.
    pub probe: Probe,
    /// The figures.
    pub metrics: PrometheusHandle,
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
    let ids = FreshRequestId(Arc::new(IdSource::new(app.executor.store().clock().clone())));
    let openapi = routes::described(more.clone());
    let (api, _) = routes::all().merge(more).split_for_parts();
    let (operations, _) = routes::operations().split_for_parts();
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
    let around = ServiceBuilder::new()
        .map_request(|mut request: Request<axum::body::Body>| {
            // One that cannot be echoed in a header or found in a log is replaced.
            let fine = |id: &HeaderValue| id.to_str().is_ok_and(|id| (1..=128).contains(&id.len()) && !id.contains(' '));
            if request.headers().get(X_REQUEST_ID).is_some_and(|id| !fine(id)) {
                request.headers_mut().remove(X_REQUEST_ID);
            }
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
        .layer(middleware::from_fn_with_state(app.access.clone(), record_refusals))
        .layer(CatchPanicLayer::custom(panicked));
    api.layer(limited)
        .merge(operations)
        .route("/errors/{page}", axum::routing::get(page))
        .merge(Router::from(SwaggerUi::new("/docs").url("/openapi.json", openapi)))
        .fallback(|| async { Problem::not_found() })
        .method_not_allowed_fallback(|| async { Problem::new(code::METHOD_NOT_ALLOWED, "this path does not take this method") })
        .layer(DefaultBodyLimit::max(BODY))
        .layer(around)
        .with_state(app)
}

/// Has it recorded who was refused what, without their waiting for it. Refusals are sampled, so that nobody fills the log with them.
async fn record_refusals(State(access): State<Access>, mut request: axum::extract::Request, next: middleware::Next) -> Response {
    let asked = Asked::default();
    request.extensions_mut().insert(asked.clone());
    let target = format!("{} {}", request.method(), request.uri().path());
    let response = next.run(request).await;
    if response.status() == StatusCode::FORBIDDEN
        && let Some(caller) = asked.0.get().cloned()
    {
        let note = NoteAccess {
            action: Action::Command,
            outcome: Outcome::Refused,
            actor: Some(caller.actor.name()),
            target: Some(target),
            code: response.extensions().get::<Problem>().map(|problem| problem.code().to_owned()),
        };
        tokio::spawn(async move {
            if let Err(error) = access.note(caller.tenant, note).await {
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

/// Connections that neither take what they asked for nor ask for anything are closed, so that they cannot pile up with what waits for them.
struct Impatient(tokio::net::TcpListener);

impl axum::serve::Listener for Impatient {
    type Io = Pin<Box<TimeoutStream<tokio::net::TcpStream>>>;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (stream, address) = axum::serve::Listener::accept(&mut self.0).await;
        let mut stream = TimeoutStream::new(stream);
        stream.set_read_timeout(Some(IDLE));
        stream.set_write_timeout(Some(STALLED));
        (Box::pin(stream), address)
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

/// Serves until `shutdown`, then finishes what it has accepted, for `grace` at most.
pub async fn serve(
    listener: tokio::net::TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
    grace: Duration,
) -> std::io::Result<()> {
    let (stopping, stopped) = tokio::sync::oneshot::channel();
    let server = axum::serve(Impatient(listener), router).with_graceful_shutdown(async move {
        shutdown.await;
        let _ = stopping.send(());
    });
    let give_up = async move {
        if stopped.await.is_err() {
            std::future::pending::<()>().await;
        }
        let _ = tokio::time::timeout(grace, std::future::pending::<()>()).await;
    };
    tokio::select! {
        ended = server => ended,
        () = give_up => Ok(()),
    }
}
