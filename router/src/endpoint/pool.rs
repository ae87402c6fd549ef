//! Connections to one endpoint: HTTP/1.1 ones taken and given back (last in, first out, so that spare ones age and go),
//! HTTP/2 ones shared by many requests. A mutex is held for one push or pop, some 20 ns, and shared only by
//! requests that go to the same pod: the one lock on the way of a request.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::replay::Outgoing;

/// How long a connection may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// How long sent bytes may stay unacknowledged, and how long HTTP/2 waits for a ping's answer.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(2);
/// HTTP/2 connections to one endpoint at most.
const HTTP2_CONNECTIONS: usize = 4;
/// Streams on an HTTP/2 connection from which on another one is opened, as long as there may be more.
const HTTP2_STREAMS: usize = 64;
const HTTP2_STREAM_WINDOW: u32 = 1 << 20;
const HTTP2_CONNECTION_WINDOW: u32 = 4 << 20;

/// The connections to one endpoint.
#[derive(Debug)]
pub struct Pool {
    address: SocketAddr,
    idle_timeout: Duration,
    idle: Mutex<Vec<Idle>>,
    http2: Mutex<Vec<Http2>>,
    /// Held while an HTTP/2 connection is opened, so that a burst opens one and not a hundred.
    opening: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Idle {
    sender: http1::SendRequest<Outgoing>,
    since: Instant,
}

/// An HTTP/1.1 connection taken from the pool or opened.
#[derive(Debug)]
pub struct Http1 {
    /// Takes one request at a time.
    pub sender: http1::SendRequest<Outgoing>,
    /// Whether it served before: then its failure may only mean that the server closed an idle connection.
    pub reused: bool,
}

/// A share in an HTTP/2 connection.
#[derive(Clone, Debug)]
pub struct Http2 {
    /// Takes many requests.
    pub sender: http2::SendRequest<Outgoing>,
    /// One reference per stream in use, and the pool's own.
    streams: Arc<()>,
    /// Whether it served before.
    pub reused: bool,
}

impl Pool {
    /// A pool without connections.
    pub fn new(address: SocketAddr, idle_timeout: Duration) -> Pool {
        Pool {
            address,
            idle_timeout,
            idle: Mutex::default(),
            http2: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
        }
    }

    /// An HTTP/1.1 connection: the one used last, or a new one.
    ///
    /// # Errors
    /// When none can be opened within 500 ms.
    pub async fn http1(&self) -> io::Result<Http1> {
        while let Some(mut idle) = self.pop() {
            // Whoever gave it back may have been faster than the connection's own task, which is about to be ready.
            if idle.sender.is_ready() || idle.sender.ready().await.is_ok() {
                return Ok(Http1 { sender: idle.sender, reused: true });
            }
        }
        let stream = self.connect().await?;
        let (sender, connection) =
            http1::Builder::new().handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        // Its error reaches whoever waits for a response on it; between requests it only says that the server closed.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Http1 { sender, reused: false })
    }

    fn pop(&self) -> Option<Idle> {
        let mut idle = self.idle.lock();
        while let Some(last) = idle.pop() {
            if last.sender.is_closed() {
                continue;
            }
            if last.since.elapsed() > self.idle_timeout {
                // What lies below has been idle for longer still.
                idle.clear();
                return None;
            }
            return Some(last);
        }
        None
    }

    /// Gives a connection back whose response has been read to its end and whose request was sent whole.
    pub fn give_back(&self, sender: http1::SendRequest<Outgoing>) {
        if !sender.is_closed() {
            self.idle.lock().push(Idle { sender, since: Instant::now() });
        }
    }

    /// A share in an HTTP/2 connection (prior knowledge, without TLS).
    ///
    /// # Errors
    /// When none is open and none can be opened within 500 ms.
    pub async fn http2(&self) -> io::Result<Http2> {
        if let Some(open) = self.open_http2() {
            return Ok(open);
        }
        let _opening = self.opening.lock().await;
        if let Some(open) = self.open_http2() {
            return Ok(open);
        }
        let stream = self.connect().await?;
        let (sender, connection) =
            http2_settings().handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        tokio::spawn(async move { drop(connection.await) });
        let streams = Arc::new(());
        self.http2.lock().push(Http2 { sender: sender.clone(), streams: streams.clone(), reused: true });
        Ok(Http2 { sender, streams, reused: false })
    }

    /// The open connection with the fewest streams, unless all are busy and another one may be opened.
    fn open_http2(&self) -> Option<Http2> {
        let mut connections = self.http2.lock();
        connections.retain(|connection| !connection.sender.is_closed());
        let least = connections.iter().min_by_key(|connection| Arc::strong_count(&connection.streams))?;
        let full = Arc::strong_count(&least.streams) > HTTP2_STREAMS;
        (!full || connections.len() >= HTTP2_CONNECTIONS).then(|| least.clone())
    }

    /// Forgets every open connection: the endpoint closed one that it should not have. Requests under way go on.
    pub fn clear(&self) {
        self.idle.lock().clear();
        self.http2.lock().clear();
    }

    /// Forgets an HTTP/2 connection that takes no more streams. Requests under way on it go on.
    pub fn forget(&self, gone: &Http2) {
        self.http2.lock().retain(|connection| !Arc::ptr_eq(&connection.streams, &gone.streams));
    }

    /// Closes what has been idle too long or was closed by the server.
    pub fn sweep(&self) {
        let idle_timeout = self.idle_timeout;
        self.idle.lock().retain(|idle| !idle.sender.is_closed() && idle.since.elapsed() <= idle_timeout);
        self.http2.lock().retain(|connection| !connection.sender.is_closed());
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(self.address)).await.map_err(|_| {
            io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no connection to {} within 500 ms", self.address),
            )
        })??;
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        // A node that vanishes says nothing: without these a request would wait for it until its timeout.
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(SILENCE_TIMEOUT))?;
        socket.set_tcp_keepalive(
            &TcpKeepalive::new().with_time(SILENCE_TIMEOUT).with_interval(Duration::from_secs(1)),
        )?;
        Ok(stream)
    }
}

fn http2_settings() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(SILENCE_TIMEOUT)
        .keep_alive_timeout(SILENCE_TIMEOUT)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW);
    builder
}
