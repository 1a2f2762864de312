//! The admin endpoint: health, readiness and status over HTTP.
//!
//! Must not know: the insides of the supervisor and of workers.

mod bounded;
mod guard;
mod metrics;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};

use self::bounded::BoundedListener;
use self::guard::Guard;
use crate::supervisor::Handle;
use crate::supervisor::handle::Readiness;

/// Serves until it is aborted.
pub async fn serve(listener: tokio::net::TcpListener, handle: Handle) {
    let address = match listener.local_addr() {
        Ok(address) => address,
        Err(error) => return tracing::error!(%error, "the admin endpoint cannot be served"),
    };
    let guard = Guard { address, token: handle.admin_token() };
    let over = handle.clone();
    let router = router(handle).layer(axum::middleware::from_fn_with_state(guard, guard::check));
    let served = axum::serve(BoundedListener::new(listener), router);
    // Whoever is being served gets an answer; the next request finds the next supervisor.
    let served = served.with_graceful_shutdown(async move {
        over.handed_over().await;
    });
    if let Err(error) = served.await {
        tracing::error!(%error, "the admin endpoint has ended");
    }
}

fn router(handle: Handle) -> Router {
    Router::new()
        .route("/healthz", get(health))
        .route("/readyz", get(readiness))
        .route("/metrics", get(metrics))
        .route("/_zero-downtime/status", get(status))
        .route("/_zero-downtime/test-migration", post(test_migration))
        .route("/_zero-downtime/flush-queue", post(flush_queue))
        .with_state(handle)
}

/// 200 as long as the supervisor's loop runs.
async fn health(State(handle): State<Handle>) -> Response {
    match handle.status().await {
        Some(status) => Json(serde_json::json!({ "status": status.status })).into_response(),
        None => ending(),
    }
}

/// 200 while new connections are welcome.
async fn readiness(State(handle): State<Handle>) -> Response {
    let (code, text) = match handle.readiness() {
        Readiness::Ready | Readiness::HandedOver => (StatusCode::OK, "ready"),
        Readiness::Degraded => (StatusCode::OK, "degraded"),
        Readiness::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
        Readiness::NoWorker => (StatusCode::SERVICE_UNAVAILABLE, "no worker accepts"),
        Readiness::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
    };
    (code, Json(serde_json::json!({ "status": text }))).into_response()
}

/// Everything.
async fn status(State(handle): State<Handle>) -> Response {
    match handle.status().await {
        Some(status) => Json(status).into_response(),
        None => ending(),
    }
}

/// For Prometheus.
async fn metrics(State(handle): State<Handle>) -> Response {
    match handle.status().await {
        Some(status) => {
            let page = metrics::render(&status, handle.readiness());
            ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], page).into_response()
        }
        None => ending(),
    }
}

/// Every connection's handoff, tried aside.
async fn test_migration(State(handle): State<Handle>) -> Response {
    match handle.test_migration().await {
        Some(Ok(result)) => Json(result).into_response(),
        Some(Err(message)) => {
            let body = Json(serde_json::json!({ "error": message }));
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
        None => ending(),
    }
}

/// Held requests are answered with an error.
async fn flush_queue(State(handle): State<Handle>) -> Response {
    match handle.flush_queue().await {
        Some(report) => Json(report).into_response(),
        None => ending(),
    }
}

fn ending() -> Response {
    let body = Json(serde_json::json!({ "status": "ending" }));
    (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
}
