//! The admin port: `/livez`, `/readyz`, `/metrics` and the acknowledgements of `/v1/acks?since=<version>&wait=<seconds>`.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::acks::AckBook;
use crate::forward::Context;
use crate::metrics::{self, ProcessSample, RevisionSample, ServiceSample};

/// How long a client of the admin port may take for a head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// What the admin port shows.
#[derive(Debug)]
pub struct Admin {
    /// Where the table is.
    pub context: Arc<Context>,
    /// The acknowledgements.
    pub acks: Arc<AckBook>,
    /// The first complete snapshot is in use.
    pub ready: Arc<AtomicBool>,
    /// The process was told to end.
    pub draining: Arc<AtomicBool>,
    /// Open connections from clients.
    pub connections: Arc<AtomicUsize>,
}

/// Serves the admin port until the process ends.
pub async fn serve(listener: TcpListener, admin: Arc<Admin>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection to the admin port could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let admin = admin.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let admin = admin.clone();
                async move { Ok::<_, Infallible>(admin.answer(&request).await) }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = served.await {
                tracing::debug!(%error, "a connection to the admin port ended");
            }
        });
    }
}

impl Admin {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here\n");
        }
        match request.uri().path() {
            "/livez" => text(StatusCode::OK, "ok\n"),
            "/readyz" => self.readyz(),
            "/metrics" => text(StatusCode::OK, self.metrics()),
            "/v1/acks" => self.acks(request.uri().query().unwrap_or_default()).await,
            path => text(
                StatusCode::NOT_FOUND,
                format!("`{path}` is not served here; /livez, /readyz, /metrics and /v1/acks are\n"),
            ),
        }
    }

    fn readyz(&self) -> Response<Full<Bytes>> {
        if self.draining.load(Ordering::SeqCst) {
            return text(StatusCode::SERVICE_UNAVAILABLE, "draining\n");
        }
        if !self.ready.load(Ordering::SeqCst) {
            return text(StatusCode::SERVICE_UNAVAILABLE, "the first full snapshot is not in use yet\n");
        }
        text(StatusCode::OK, "ok\n")
    }

    async fn acks(&self, query: &str) -> Response<Full<Bytes>> {
        let (since, wait) = match (number(query, "since"), number(query, "wait")) {
            (Ok(since), Ok(wait)) => (since, wait),
            (Err(error), _) | (_, Err(error)) => return text(StatusCode::BAD_REQUEST, error),
        };
        let report = self.acks.poll(since, Duration::from_secs(wait)).await;
        match serde_json::to_vec(&report) {
            Ok(json) => {
                let mut response = Response::new(Full::new(Bytes::from(json)));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                response
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    fn metrics(&self) -> String {
        let table = self.context.tables.load();
        let mut routes: Vec<_> = table.routes().collect();
        routes.sort_by(|a, b| a.name.cmp(&b.name));
        let services: Vec<_> = routes
            .into_iter()
            .map(|route| ServiceSample {
                name: &route.name,
                metrics: &route.state.metrics,
                waiting: route.state.waiting.load(Ordering::Relaxed),
                generation: route.generation,
                revisions: route
                    .revisions
                    .iter()
                    .enumerate()
                    .map(|(index, revision)| RevisionSample {
                        metrics: &revision.state.metrics,
                        in_flight: revision.state.in_flight(),
                        share: route.share_of(index).parts(),
                        ready: revision.counted.len(),
                    })
                    .collect(),
            })
            .collect();
        let process = ProcessSample {
            connections: self.connections.load(Ordering::Relaxed),
            held_bytes: self.context.memory.used(),
            ready: self.ready.load(Ordering::SeqCst) && !self.draining.load(Ordering::SeqCst),
        };
        metrics::page(&process, &services)
    }
}

/// A number from the query; absent is 0.
fn number(query: &str, name: &str) -> Result<u64, String> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    value.map_or(Ok(0), |value| {
        value.parse().map_err(|_| format!("`{name}` must be a whole number, not `{value}`\n"))
    })
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
