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
/// How long a connection must have been without a request before the end of the process ends it. A client that is in the middle of
/// its work sends sooner and is told to close by the response, which no request can cross.
const CLOSING_QUIET: Duration = Duration::from_secs(6);
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
    // The connection first, then its clock: when the process did not get the CPU for a while, bytes and ticks have both come, and
    // a request that is there already must not find its connection closed.
    let ended = poll_fn(|cx| {
        if let Poll::Ready(end) = connection.as_mut().poll(cx) {
            return Poll::Ready(end);
        }
        match clock.poll(cx, &state) {
            Verdict::GoOn => Poll::Pending,
            Verdict::Finish => {
                connection.as_mut().graceful_shutdown();
                connection.as_mut().poll(cx)
            }
            Verdict::Drop => Poll::Ready(Ok(())),
        }
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
        // However many ticks are due, they say no more than one: nothing was looked at in between.
        let mut is_due = false;
        while self.tick.poll_tick(cx).is_ready() {
            is_due = true;
        }
        if is_due && verdict == Verdict::GoOn {
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
        // A client that says nothing for a while hardly sends at this very moment.
        let closing = closing && self.quiet >= CLOSING_QUIET;
        match requests {
            0 if closing || self.quiet >= self.settings.head_timeout => Verdict::Drop,
            0 => Verdict::GoOn,
            _ if closing || self.quiet >= self.settings.idle_timeout => Verdict::Finish,
            _ => Verdict::GoOn,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::advance;

    use super::*;
    use crate::forward::Limits;
    use crate::in_flight::Tables;
    use crate::replay::HeldMemory;
    use crate::table::Table;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: iris\r\n\r\n";

    fn context() -> Arc<Context> {
        Arc::new(Context {
            tables: Tables::new(Table::default()),
            memory: Arc::new(HeldMemory::new(1 << 20, 1 << 20)),
            limits: Limits { max_body: 1 << 20, body_timeout: Duration::from_secs(60), max_waiting: 1 },
            closing: AtomicBool::new(false),
        })
    }

    fn settings() -> Settings {
        Settings {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            max_connections: 1,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
        }
    }

    /// Sends a request and reads the head of its answer (503: there is no route).
    async fn ask(client: &mut TcpStream) -> std::io::Result<String> {
        client.write_all(REQUEST).await?;
        answer_of(client).await
    }

    async fn answer_of(client: &mut TcpStream) -> std::io::Result<String> {
        let mut bytes = vec![0; 4096];
        let read = client.read(&mut bytes).await?;
        Ok(String::from_utf8_lossy(&bytes[..read]).into_owned())
    }

    /// Lets the connection's task see what there is.
    async fn settle() {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    async fn connected(context: &Arc<Context>) -> TcpStream {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(serve(stream, 10_000, context.clone(), settings()));
        settle().await;
        client
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_came_while_the_process_had_no_cpu_is_answered() {
        for asked_before in [true, false] {
            let context = context();
            let mut client = connected(&context).await;
            if asked_before {
                assert!(ask(&mut client).await.unwrap().starts_with("HTTP/1.1 503"));
            }
            context.closing.store(true, Ordering::Relaxed);
            // One tick before the connection has been quiet for long enough ...
            for _ in 0..CLOSING_QUIET.as_secs() / TICK.as_secs() - u64::from(!asked_before) {
                advance(TICK).await;
                settle().await;
            }
            // ... the bytes are in the socket and the tick is due before the connection's task runs again.
            assert_eq!(client.try_write(REQUEST).unwrap(), REQUEST.len());
            advance(TICK).await;
            let answer = answer_of(&mut client).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 503"), "asked before: {asked_before}, answer: {answer:?}");
            assert!(answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_connection_ends_with_the_process() {
        let context = context();
        let mut client = connected(&context).await;
        ask(&mut client).await.unwrap();
        context.closing.store(true, Ordering::Relaxed);
        let begin = tokio::time::Instant::now();
        assert_eq!(answer_of(&mut client).await.unwrap(), "", "the end of the stream");
        assert!(begin.elapsed() >= CLOSING_QUIET);
    }
}
