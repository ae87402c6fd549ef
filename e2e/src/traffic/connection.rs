//! Keep-alive HTTP/1.1 connections to one address, used in turn, so that every router behind a Service gets its part.
//! Does network IO.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;

/// Connections to one `host:port`.
#[derive(Debug)]
pub struct Connections {
    target: String,
    keep: usize,
    idle: Mutex<VecDeque<SendRequest<Full<Bytes>>>>,
    counts: Counts,
}

/// What happened to connections.
#[derive(Debug, Default)]
pub struct Counts {
    /// Opened in all.
    pub opened: AtomicU64,
    /// Closed by the server while idle.
    pub closed: AtomicU64,
    /// Requests sent again because a closed connection gave them back unsent.
    pub resent: AtomicU64,
}

/// Why there is no complete answer.
#[derive(Debug)]
pub struct Failure {
    /// `connect`, `connection` or `truncated`.
    pub kind: &'static str,
    /// The error with its causes.
    pub detail: String,
    /// Head of the answer, where one came.
    pub head: Option<http::response::Parts>,
}

impl Connections {
    /// No connection yet; `keep` of them are kept between requests.
    pub fn new(target: &str, keep: usize) -> Self {
        Self { target: target.to_owned(), keep, idle: Mutex::default(), counts: Counts::default() }
    }

    /// What happened so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Opens the kept connections.
    ///
    /// # Errors
    /// The address does not take connections.
    pub async fn open(&self) -> Result<(), Failure> {
        for _ in 0..self.keep {
            let sender = self.connect().await?;
            self.idle.lock().push_back(sender);
        }
        Ok(())
    }

    /// Sends a request and reads the whole answer.
    ///
    /// A request that a connection gives back before any byte of it was written is sent again, once.
    ///
    /// # Errors
    /// There was no complete answer.
    pub async fn call(self: &Arc<Self>, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, Failure> {
        let mut sender = self.take().await?;
        let response = match sender.try_send_request(request).await {
            Ok(response) => response,
            Err(mut error) => {
                let Some(request) = error.take_message() else {
                    return Err(failure("connection", &error.into_error(), None));
                };
                self.counts.resent.fetch_add(1, Ordering::Relaxed);
                sender = self.connect().await?;
                sender.send_request(request).await.map_err(|error| failure("connection", &error, None))?
            }
        };
        let (head, body) = response.into_parts();
        match body.collect().await {
            Ok(body) => {
                let connections = Arc::clone(self);
                // The connection can be used again only once its task has seen the end of the answer.
                tokio::spawn(async move { connections.give_back(sender).await });
                Ok(Response::from_parts(head, body.to_bytes()))
            }
            Err(error) => Err(failure("truncated", &error, Some(head))),
        }
    }

    async fn take(&self) -> Result<SendRequest<Full<Bytes>>, Failure> {
        loop {
            let Some(sender) = self.idle.lock().pop_front() else { return self.connect().await };
            if sender.is_ready() {
                return Ok(sender);
            }
            self.counts.closed.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn give_back(&self, mut sender: SendRequest<Full<Bytes>>) {
        if sender.ready().await.is_err() {
            self.counts.closed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut idle = self.idle.lock();
        if idle.len() < self.keep {
            idle.push_back(sender);
        }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Failure> {
        self.counts.opened.fetch_add(1, Ordering::Relaxed);
        let stream =
            TcpStream::connect(&self.target).await.map_err(|error| failure("connect", &error, None))?;
        stream.set_nodelay(true).map_err(|error| failure("connect", &error, None))?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| failure("connect", &error, None))?;
        // Its errors reach the request that is under way; an idle connection's end is seen by `is_ready`.
        tokio::spawn(connection);
        Ok(sender)
    }
}

fn failure(
    kind: &'static str,
    error: &dyn std::error::Error,
    head: Option<http::response::Parts>,
) -> Failure {
    let mut detail = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        detail = format!("{detail}: {error}");
        cause = error.source();
    }
    Failure { kind, detail, head }
}
