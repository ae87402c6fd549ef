//! One attempt: a connection, the request, the head of the answer. Says exactly what is known when it fails.

use std::error::Error as _;
use std::io;
use std::time::{Duration, Instant};

use h2::Reason;
use http::header::HOST;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use thiserror::Error;

use super::place::Visit;
use crate::endpoint::Endpoint;
use crate::endpoint::pool::Http2;
use crate::headers;
use crate::metrics::RetryReason;
use crate::replay::{Outgoing, Payload};

/// Why no answer came.
#[derive(Debug, Error)]
pub enum Broken {
    /// Nothing was sent: no connection.
    #[error("no connection to the endpoint")]
    Connect(#[source] io::Error),
    /// Nothing was sent: a new connection closed before the request.
    #[error("the connection closed before the request was sent")]
    Unsent,
    /// The endpoint says that it did not look at the request.
    #[error("the endpoint refused the stream")]
    Refused,
    /// The request was sent, at least in part, and nobody knows what became of it.
    #[error("the connection broke before the answer")]
    Lost {
        /// The connection had served before.
        reused: bool,
    },
}

/// The head of a request, ready to be sent any number of times.
#[derive(Debug)]
pub struct Head {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    http2: bool,
}

impl Head {
    /// The head for the runtime, from the client's.
    pub fn new(parts: Parts) -> Head {
        let Parts { method, uri, mut headers, version, .. } = parts;
        headers::for_upstream(&mut headers);
        Head { method, uri, headers, http2: headers::wants_http2(version) }
    }

    fn request(&self, uri: Uri, version: Version, body: Outgoing) -> Request<Outgoing> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = uri;
        *request.version_mut() = version;
        *request.headers_mut() = self.headers.clone();
        request
    }
}

/// The head of an answer, and the connection that its body comes by.
#[derive(Debug)]
pub struct Answer {
    /// The response; its body has not been read.
    pub response: Response<Incoming>,
    /// What to do with the connection once it has.
    pub lease: Lease,
    /// From the request to this head.
    pub took: Duration,
}

/// A connection in use.
#[derive(Debug)]
pub enum Lease {
    /// Goes back to the pool; at once when the request was `sent` whole, else when the connection says so.
    Http1 {
        /// The connection.
        sender: http1::SendRequest<Outgoing>,
        /// Whether the whole request is known to be sent.
        sent: bool,
    },
    /// Shared: its stream is counted until this is dropped.
    Http2(Http2),
}

impl Answer {
    /// Whether the runtime says that nothing was executed, and how.
    pub fn refusal(&self) -> Option<RetryReason> {
        match self.response.status() {
            StatusCode::MISDIRECTED_REQUEST => Some(RetryReason::Misdirected),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
                if self.response.headers().contains_key(headers::NOT_EXECUTED) =>
            {
                Some(RetryReason::NotExecuted)
            }
            _ => None,
        }
    }
}

/// Sends the request to an endpoint of the visited revision and waits for the head of the answer.
///
/// # Errors
/// When none came; the error says what may have happened to the request.
pub async fn send(
    endpoint: &Endpoint,
    head: &mut Head,
    visit: &Visit,
    payload: &Payload,
) -> Result<Answer, Broken> {
    headers::expect(&mut head.headers, &visit.revision().identity);
    let service = &visit.route().name;
    let started = Instant::now();
    let (response, lease) = if head.http2 {
        send_http2(endpoint, head, service, payload).await?
    } else {
        send_http1(endpoint, head, service, payload).await?
    };
    Ok(Answer { response, lease, took: started.elapsed() })
}

async fn send_http1(
    endpoint: &Endpoint,
    head: &mut Head,
    service: &str,
    payload: &Payload,
) -> Result<(Response<Incoming>, Lease), Broken> {
    headers::ensure_host(&mut head.headers, &head.uri, service);
    loop {
        let mut connection = endpoint.pool.http1().await.map_err(Broken::Connect)?;
        let request = head.request(headers::origin_form(&head.uri), Version::HTTP_11, payload.attempt());
        match connection.sender.try_send_request(request).await {
            Ok(response) => {
                let lease = Lease::Http1 { sender: connection.sender, sent: payload.is_held_whole() };
                return Ok((response, lease));
            }
            // The server closed this idle connection before the request went out; the pool has others or opens one.
            Err(error) if error.message().is_some() && connection.reused => {}
            Err(error) if error.message().is_some() => return Err(Broken::Unsent),
            Err(_) => return Err(Broken::Lost { reused: connection.reused }),
        }
    }
}

async fn send_http2(
    endpoint: &Endpoint,
    head: &mut Head,
    service: &str,
    payload: &Payload,
) -> Result<(Response<Incoming>, Lease), Broken> {
    // HTTP/2 names the host in the target.
    let host = head.headers.remove(HOST);
    if head.uri.authority().is_none() {
        head.uri = headers::absolute_form(&head.uri, host.as_ref(), service);
    }
    loop {
        let mut connection = endpoint.pool.http2().await.map_err(Broken::Connect)?;
        let request = head.request(head.uri.clone(), Version::HTTP_2, payload.attempt());
        let error = match connection.sender.try_send_request(request).await {
            Ok(response) => return Ok((response, Lease::Http2(connection))),
            Err(error) => error,
        };
        let unsent = error.message().is_some();
        match (unsent || went_away(error.error()), connection.reused) {
            // A connection that ends in good order says nothing about the endpoint.
            (true, true) => endpoint.pool.forget(&connection),
            (true, false) => return Err(if unsent { Broken::Unsent } else { Broken::Refused }),
            (false, _) if refused(error.error()) => return Err(Broken::Refused),
            (false, reused) => return Err(Broken::Lost { reused }),
        }
        if !payload.replayable() {
            return Err(Broken::Refused);
        }
    }
}

fn http2_error(error: &hyper::Error) -> Option<&h2::Error> {
    error.source()?.downcast_ref::<h2::Error>()
}

/// RFC 9113 §8.7: a stream reset with REFUSED_STREAM was not processed.
fn refused(error: &hyper::Error) -> bool {
    http2_error(error).is_some_and(|error| {
        error.is_reset() && error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM)
    })
}

/// RFC 9113 §6.8: a stream above the last one that GOAWAY names was not processed. h2 gives this error to those
/// streams only; that holds for an orderly GOAWAY, and for others nothing is assumed.
fn went_away(error: &hyper::Error) -> bool {
    http2_error(error).is_some_and(|error| {
        error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR)
    })
}
