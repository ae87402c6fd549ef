//! The traffic port: V2 and V1 over HTTP/1.1 and h2c. Thin: finds the model, lets `protocol` read and write, lets
//! `instance` run, and turns every failure into one shape of answer.

mod body;
mod listen;
mod reply;
mod routes;

pub use listen::Listener;
pub use reply::Failure;

use crate::metrics::Metrics;
use crate::repository::Repository;
use crate::shutdown::Drain;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{CONNECTION, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Version};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Names the revision that the router means to reach.
pub const EXPECT: HeaderName = HeaderName::from_static("serin-expect");
/// Says that the request was not executed and may be sent elsewhere.
pub const NOT_EXECUTED: HeaderName = HeaderName::from_static("serin-not-executed");
/// The digest of the loaded model.
pub const DIGEST: HeaderName = HeaderName::from_static("serin-digest");
/// Passed through.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What every handler needs.
#[derive(Clone)]
pub struct App(Arc<Inner>);

struct Inner {
    repository: Arc<Repository>,
    metrics: Arc<Metrics>,
    drain: Arc<Drain>,
    settings: Settings,
}

/// What a user can set.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `namespace/service/revision`; without it `Serin-Expect` is not checked.
    pub identity: Option<String>,
    /// What a request may take, from its head to its answer.
    pub timeout: Duration,
    /// Most bytes of a body.
    pub max_request_bytes: usize,
}

impl App {
    /// Puts the parts together.
    pub fn new(
        repository: Arc<Repository>,
        metrics: Arc<Metrics>,
        drain: Arc<Drain>,
        settings: Settings,
    ) -> Self {
        Self(Arc::new(Inner { repository, metrics, drain, settings }))
    }

    /// All routes of the traffic port.
    pub fn router(&self) -> axum::Router {
        routes::router(self.clone()).layer(axum::middleware::from_fn_with_state(self.clone(), around))
    }
}

/// What happens around every request, whatever it asks for.
async fn around(State(app): State<App>, request: Request, next: Next) -> Response {
    let app = &*app.0;
    let request_id = request.headers().get(&REQUEST_ID).cloned();
    let version = request.version();
    let is_inference = request.method() == Method::POST;
    let started = Instant::now();
    // Health checks and the like are answered at once and do not count as work that keeps the server up.
    let in_flight = is_inference.then(|| (app.drain.request(), CountedDown::new(&app.metrics)));
    let mut response = match admit(app, request, is_inference, started).await {
        Ok(request) => next.run(request).await,
        Err(failure) => failure.into_response(),
    };
    if is_inference {
        app.metrics.request_seconds.observe(started.elapsed().as_secs_f64());
        app.metrics.count_request(response.status().as_u16());
    }
    let status = response.status();
    let headers = response.headers_mut();
    if let Some(request_id) = request_id {
        headers.insert(REQUEST_ID, request_id);
    }
    if let Some(served) = app.repository.served()
        && let Ok(digest) = HeaderValue::from_str(&served.digest)
    {
        headers.insert(DIGEST, digest);
    }
    if (app.drain.is_draining() || body::was_not_read(status)) && version <= Version::HTTP_11 {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    drop(in_flight);
    response
}

/// Counts up, and down again however the request ends: a caller that hangs up drops the handler in the middle.
struct CountedDown<'a>(&'a Metrics);

impl<'a> CountedDown<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        metrics.in_flight.inc();
        Self(metrics)
    }
}

impl Drop for CountedDown<'_> {
    fn drop(&mut self) {
        self.0.in_flight.dec();
    }
}

/// Takes the whole body in before anything is refused: a connection whose request was not read to its end has to be
/// closed, and the next request that a client sends on it would be lost.
async fn admit(
    app: &Inner,
    request: Request,
    is_inference: bool,
    started: Instant,
) -> Result<Request, Failure> {
    if !is_inference {
        check_expectation(&app.settings, request.headers())?;
        return Ok(request);
    }
    let deadline = started + app.settings.timeout;
    let (mut parts, body) = request.into_parts();
    let body = body::read(body, &parts.headers, &app.settings, deadline).await?;
    check_expectation(&app.settings, &parts.headers)?;
    body::check_encoding(&parts.headers)?;
    parts.extensions.insert(Received { body, deadline });
    Ok(Request::from_parts(parts, Body::empty()))
}

/// A request's body, and when its answer is due.
#[derive(Debug, Clone)]
struct Received {
    body: Bytes,
    deadline: Instant,
}

/// Pod addresses are reused; a request that was meant for another revision is not executed here.
fn check_expectation(settings: &Settings, headers: &HeaderMap) -> Result<(), Failure> {
    let (Some(identity), Some(expected)) = (&settings.identity, headers.get(&EXPECT)) else {
        return Ok(());
    };
    if expected.as_bytes() == identity.as_bytes() {
        return Ok(());
    }
    let expected = String::from_utf8_lossy(expected.as_bytes());
    Err(Failure::misdirected(format!("this is `{identity}`, not `{expected}`")))
}
