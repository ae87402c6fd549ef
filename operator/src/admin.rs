//! The admin port: `/livez`, `/readyz` and `/metrics`. Nothing of it changes anything.

use std::future::Future;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::acks::Acks;
use crate::metrics::Metrics;

/// What the admin port tells.
#[derive(Clone, Debug)]
pub struct Admin {
    /// The API server has answered. Who waits for the lease is ready too, or no rolling update would ever end.
    pub ready: watch::Receiver<bool>,
    /// Counters.
    pub metrics: Metrics,
    /// Routers that answer.
    pub acks: Acks,
}

/// Serves the admin port until told to stop.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    admin: Admin,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, routes(admin)).with_graceful_shutdown(stop).await
}

fn routes(admin: Admin) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(admin)
}

async fn ready(State(admin): State<Admin>) -> Response {
    if *admin.ready.borrow() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the API server has not answered yet\n").into_response()
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    match admin.metrics.text(admin.acks.connected()) {
        Ok(text) => {
            ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
                .into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
