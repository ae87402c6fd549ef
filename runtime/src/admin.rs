//! The admin port: health for the kubelet, metrics for Prometheus, status for people, and an example request.

use crate::http::Failure;
use crate::metrics::Metrics;
use crate::model::example;
use crate::protocol::v2;
use crate::repository::Repository;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde_json::json;
use std::sync::Arc;

/// What the handlers need.
#[derive(Clone)]
pub struct Admin {
    /// The model.
    pub repository: Arc<Repository>,
    /// What was counted.
    pub metrics: Arc<Metrics>,
    /// Settings that were chosen at start, for `/status`.
    pub choices: Arc<serde_json::Value>,
}

impl Admin {
    /// All routes of the admin port.
    pub fn router(self) -> axum::Router {
        axum::Router::new()
            .route("/livez", get(live))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .route("/status", get(status))
            .route("/example", get(example_request))
            .fallback(|| async {
                Failure::not_found("no such path: there are /livez, /readyz, /metrics, /status and /example")
            })
            .with_state(self)
    }
}

/// Alive unless an instance has died: only a restart brings that one back.
async fn live(State(admin): State<Admin>) -> Response {
    match admin.repository.served() {
        Some(served) if !served.instances.all_alive() => {
            (StatusCode::INTERNAL_SERVER_ERROR, "an instance of the model died\n").into_response()
        }
        _ => "ok\n".into_response(),
    }
}

async fn ready(State(admin): State<Admin>) -> Response {
    if admin.repository.is_ready() {
        return "ok\n".into_response();
    }
    let phase = admin.repository.phase().name();
    let text = format!("{phase}: {} bytes fetched\n", admin.repository.fetched_bytes());
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let waiting = admin.repository.served().map_or(0, |served| served.instances.waiting());
    admin.metrics.queue_depth.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    admin.metrics.model_bytes.set(i64::try_from(admin.repository.fetched_bytes()).unwrap_or(i64::MAX));
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, content_type)], admin.metrics.text()).into_response()
}

async fn status(State(admin): State<Admin>) -> Response {
    let mut status = json!({
        "model": admin.repository.name(),
        "phase": admin.repository.phase().name(),
        "ready": admin.repository.is_ready(),
        "fetchedBytes": admin.repository.fetched_bytes(),
        "settings": *admin.choices,
    });
    if let Some(served) = admin.repository.served() {
        status["digest"] = json!(served.digest);
        status["file"] = json!(served.file);
        status["bytes"] = json!(served.bytes);
        status["waiting"] = json!(served.instances.waiting());
        status["signature"] = json!(v2::metadata(admin.repository.name(), &served.signature));
    }
    axum::Json(status).into_response()
}

/// A V2 request that fits the model; `curl .../example | curl -d @- .../infer` works.
async fn example_request(State(admin): State<Admin>) -> Result<Response, Failure> {
    let served = admin.repository.served().ok_or_else(|| Failure::unavailable("the model is not ready"))?;
    let body = v2::write_request(&served.signature, &example::inputs(&served.signature));
    Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
}
