//! One client's connection. A timer per connection, not per request, watches over heads that do not come, idleness and
//! the end of the process.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;
use tokio::time::{Interval, MissedTickBehavior, interval_at};

use super::Settings;
use crate::error::BoxError;
use crate::forward::response::ResponseBody;
use crate::forward::{self, Context};

/// How often a connection looks at its clock; its timeouts are that exact.
const TICK: Duration = Duration::from_secs(2);
/// Bytes of heads at most, and HTTP/1's read buffer.
const HEAD_BYTES: usize = 64 << 10;
const HEADERS: usize = 100;
const HTTP2_HEAD_BYTES: u32 = 32 << 10;
const HTTP2_STREAMS: u32 = 1024;
const HTTP2_STREAM_WINDOW: u32 = 1 << 20;
const HTTP2_CONNECTION_WINDOW: u32 = 4 << 20;
const HTTP2_PING: Duration = Duration::from_secs(20);

/// What the connection's requests and its clock share.
#[derive(Debug)]
struct State {
    context: Arc<Context>,
    port: u16,
    /// Requests so far.
    requests: AtomicU64,
    /// Requests whose response has not ended.
    active: AtomicUsize,
    http2: AtomicBool,
}

/// Serves a connection to its end.
pub(super) async fn serve(stream: TcpStream, port: u16, context: Arc<Context>, settings: Settings) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(port, %error, "the connection is gone already");
        return;
    }
    let state = Arc::new(State {
        context,
        port,
        requests: AtomicU64::new(0),
        active: AtomicUsize::new(0),
        http2: AtomicBool::new(false),
    });
    let builder = builder();
    let service = {
        let state = state.clone();
        service_fn(move |request| answer(state.clone(), request))
    };
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut clock = Clock::new(settings);
    let ended = poll_fn(|cx| {
        match clock.poll(cx, &state) {
            Verdict::GoOn => {}
            Verdict::Finish => connection.as_mut().graceful_shutdown(),
            Verdict::Drop => return Poll::Ready(Ok(())),
        }
        connection.as_mut().poll(cx)
    });
    if let Err(error) = ended.await {
        tracing::debug!(port, error, "a client's connection ended");
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().max_buf_size(HEAD_BYTES).max_headers(HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HTTP2_HEAD_BYTES)
        .max_concurrent_streams(HTTP2_STREAMS)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
        .keep_alive_interval(HTTP2_PING)
        .keep_alive_timeout(HTTP2_PING);
    builder
}

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Result<Response<CountedBody>, Infallible> {
    let version = request.version();
    state.requests.fetch_add(1, Ordering::Relaxed);
    if version == Version::HTTP_2 {
        state.http2.store(true, Ordering::Relaxed);
    }
    let active = Active::new(state);
    let State { context, port, .. } = &*active.0;
    let mut response = forward::handle(context, *port, request).await;
    if forward::closes_after_response(context, version) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response.map(|body| CountedBody { body, _active: active }))
}

/// A request on this connection, until its response has ended.
struct Active(Arc<State>);

impl Active {
    fn new(state: Arc<State>) -> Active {
        state.active.fetch_add(1, Ordering::Relaxed);
        Active(state)
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A response body that keeps its connection from looking idle.
struct CountedBody {
    body: ResponseBody,
    _active: Active,
}

impl Body for CountedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What the clock says about the connection.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    GoOn,
    /// End it after what it is doing.
    Finish,
    /// It never sent a request.
    Drop,
}

struct Clock {
    settings: Settings,
    tick: Interval,
    seen: u64,
    quiet: Duration,
    finishing: bool,
}

impl Clock {
    fn new(settings: Settings) -> Clock {
        let mut tick = interval_at(tokio::time::Instant::now() + TICK, TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Clock { settings, tick, seen: 0, quiet: Duration::ZERO, finishing: false }
    }

    fn poll(&mut self, cx: &mut TaskContext<'_>, state: &State) -> Verdict {
        if self.finishing {
            return Verdict::GoOn;
        }
        // HTTP/2 has a way to end a connection that loses no request, so it starts at once.
        let closing = state.context.closing.load(Ordering::Relaxed);
        let mut verdict =
            if closing && state.http2.load(Ordering::Relaxed) { Verdict::Finish } else { Verdict::GoOn };
        while self.tick.poll_tick(cx).is_ready() && verdict == Verdict::GoOn {
            verdict = self.ticked(state, closing);
        }
        self.finishing = verdict == Verdict::Finish;
        verdict
    }

    fn ticked(&mut self, state: &State, closing: bool) -> Verdict {
        let requests = state.requests.load(Ordering::Relaxed);
        if state.active.load(Ordering::Relaxed) > 0 || requests != self.seen {
            (self.seen, self.quiet) = (requests, Duration::ZERO);
            return Verdict::GoOn;
        }
        self.quiet += TICK;
        match requests {
            0 if self.quiet >= self.settings.head_timeout => Verdict::Drop,
            0 if closing => Verdict::Drop,
            0 => Verdict::GoOn,
            // A client that says nothing for a while hardly sends at this very moment.
            _ if closing || self.quiet >= self.settings.idle_timeout => Verdict::Finish,
            _ => Verdict::GoOn,
        }
    }
}
