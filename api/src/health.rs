//! Whether the process lives, is ready, and how each thing it depends on fares.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::future::BoxFuture;
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use tokio::sync::Mutex;
use utoipa::ToSchema;

use crate::app::App;

/// How well something works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should.
    Ok,
    /// Commands and queries work, something else does not: it catches up by itself, or (a parked partition) waits for an operator.
    Degraded,
    /// Commands or queries do not work.
    Unavailable,
}

/// How one thing fares.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Component {
    /// How well.
    pub status: Level,
    /// In words or numbers.
    #[schema(value_type = Object, example = json!({"position": 42, "behind": 0, "parked": 0}))]
    pub detail: serde_json::Value,
}

/// How everything fares.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Health {
    /// The worst of the components.
    pub status: Level,
    /// Each thing by name.
    #[schema(example = json!({"read_model.tenants_v1": {"status": "ok", "detail": {"position": 42, "behind": 0, "parked": 0}}}))]
    pub components: BTreeMap<String, Component>,
}

impl Health {
    /// The whole from its parts.
    pub fn of(components: BTreeMap<String, Component>) -> Self {
        Self { status: components.values().map(|c| c.status).max().unwrap_or(Level::Ok), components }
    }
}

/// Looks at everything now. What there is to look at only the one who puts the process together knows.
pub type Probe = std::sync::Arc<dyn Fn() -> BoxFuture<'static, Health> + Send + Sync>;

/// How old an answer may be: so long one look serves everybody who asks.
const FRESH: Duration = Duration::from_secs(1);

/// The newest result of something that is dear to find out, for everybody who asks within [`FRESH`].
struct Shared<T>(Mutex<Option<(Instant, T)>>);

impl<T: Clone> Shared<T> {
    fn new() -> Self {
        Self(Mutex::new(None))
    }

    async fn get(&self, find_out: impl AsyncFnOnce() -> T) -> T {
        // Those who ask meanwhile wait for the one that looks.
        let mut newest = self.0.lock().await;
        if let Some((since, result)) = &*newest
            && since.elapsed() < FRESH
        {
            return result.clone();
        }
        let since = Instant::now();
        let result = find_out().await;
        *newest = Some((since, result.clone()));
        result
    }
}

/// Health and figures of a process. A flood of questions costs one look a second.
#[derive(Clone)]
pub struct Operations(Arc<Inner>);

struct Inner {
    probe: Probe,
    metrics: PrometheusHandle,
    health: Shared<Health>,
    figures: Shared<Bytes>,
}

impl Operations {
    /// Looks at everything by `probe`, and shows `metrics`.
    pub fn new(probe: Probe, metrics: PrometheusHandle) -> Self {
        Self(Arc::new(Inner { probe, metrics, health: Shared::new(), figures: Shared::new() }))
    }

    async fn health(&self) -> Health {
        self.0.health.get(async || (self.0.probe)().await).await
    }

    async fn figures(&self) -> Bytes {
        self.0.figures.get(async || Bytes::from(self.0.metrics.render())).await
    }
}

/// The process runs.
#[utoipa::path(get, path = "/livez", tag = "operations", responses((status = 200, description = "The process runs.")), security(()))]
pub(crate) async fn livez() -> &'static str {
    "ok\n"
}

/// Whether requests should be sent here: 503 when commands or queries do not work.
#[utoipa::path(get, path = "/readyz", tag = "operations", responses((status = 200, description = "`ok`, or `degraded:` and the components at fault."), (status = 503, description = "`unavailable:` and the components at fault.")), security(()))]
pub(crate) async fn readyz(State(app): State<App>) -> Response {
    let health = app.operations.health().await;
    let word = match health.status {
        Level::Ok => "ok",
        Level::Degraded => "degraded",
        Level::Unavailable => "unavailable",
    };
    let at_fault: Vec<&str> =
        health.components.iter().filter(|(_, component)| component.status != Level::Ok).map(|(name, _)| name.as_str()).collect();
    let text = if at_fault.is_empty() { format!("{word}\n") } else { format!("{word}: {}\n", at_fault.join(", ")) };
    with_status(health.status, text)
}

/// How each dependency and each read model fares.
#[utoipa::path(get, path = "/health", tag = "operations", responses((status = 200, body = Health), (status = 503, body = Health)), security(()))]
pub(crate) async fn health(State(app): State<App>) -> Response {
    let health = app.operations.health().await;
    with_status(health.status, axum::Json(health))
}

/// Figures for Prometheus, in its text format.
#[utoipa::path(get, path = "/metrics", tag = "operations", responses((status = 200, description = "Prometheus text format.", content_type = "text/plain")), security(()))]
pub(crate) async fn metrics(State(app): State<App>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; charset=utf-8")], app.operations.figures().await)
}

fn with_status(level: Level, body: impl IntoResponse) -> Response {
    match level {
        Level::Ok | Level::Degraded => body.into_response(),
        Level::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "1")], body).into_response(),
    }
}
