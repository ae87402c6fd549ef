//! The one place where a failure of the router becomes a response: status, `{"error", "cause"}` and the `Serin-Cause`
//! header; for gRPC a status in headers. What a runtime answers passes through and is never made here.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use serde::Serialize;
use thiserror::Error;

use crate::headers;

/// Any error of a body or a connection.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why the router itself answers.
#[derive(Debug, Error)]
pub enum Failure {
    /// No route has this port.
    #[error("no service is served on port {0}")]
    NoRoute(u16),
    /// The pin names nothing.
    #[error("no revision `{asked}`; this service has {known}")]
    UnknownRevision {
        /// What the header said.
        asked: String,
        /// The names that would do.
        known: String,
    },
    /// Nothing can take the request.
    #[error("{0}")]
    NoEndpoint(String),
    /// Too many requests wait for an endpoint already.
    #[error("no endpoint of `{0}` is ready and too many requests wait for one")]
    HoldQueueFull(String),
    /// The revision's timeout is over.
    #[error("revision `{revision}` did not answer within {seconds} s")]
    Timeout {
        /// The revision that was asked last.
        revision: String,
        /// Its timeout.
        seconds: u64,
    },
    /// The connection broke and the request could not be repeated.
    #[error("the connection to revision `{revision}` broke before it answered; not repeated: {why}")]
    Lost {
        /// The revision that was asked.
        revision: String,
        /// What stood against a repetition.
        why: &'static str,
    },
    /// The endpoint is something else, and the body is gone.
    #[error("an endpoint of revision `{0}` is something else now, and the body was too large to be held")]
    Misdirected(String),
    /// The request cannot be forwarded by design.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// The request is not well formed.
    #[error("{0}")]
    Malformed(&'static str),
    /// The body is above the limit.
    #[error("the request body is larger than {0} bytes")]
    BodyTooLarge(u64),
    /// The body did not arrive in time.
    #[error("the request body did not arrive within {0} s")]
    BodyTimeout(u64),
    /// The client's connection broke while it sent the body.
    #[error("the request body could not be read: {0}")]
    BodyBroken(#[source] BoxError),
}

#[derive(Serialize)]
struct Message<'a> {
    error: &'a str,
    cause: &'static str,
}

impl Failure {
    /// The word for metrics and for the `Serin-Cause` header.
    pub fn cause(&self) -> &'static str {
        match self {
            Failure::NoRoute(_) => "no-route",
            Failure::UnknownRevision { .. } => "unknown-revision",
            Failure::NoEndpoint(_) => "no-endpoint",
            Failure::HoldQueueFull(_) => "hold-queue-full",
            Failure::Timeout { .. } => "timeout",
            Failure::Lost { .. } => "connection-lost",
            Failure::Misdirected(_) => "misdirected",
            Failure::Unsupported(_) => "not-supported",
            Failure::Malformed(_) => "malformed",
            Failure::BodyTooLarge(_) => "body-too-large",
            Failure::BodyTimeout(_) => "body-timeout",
            Failure::BodyBroken(_) => "body-broken",
        }
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            Failure::NoRoute(_)
            | Failure::NoEndpoint(_)
            | Failure::HoldQueueFull(_)
            | Failure::Misdirected(_) => StatusCode::SERVICE_UNAVAILABLE,
            Failure::UnknownRevision { .. } => StatusCode::NOT_FOUND,
            Failure::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
            Failure::Lost { .. } => StatusCode::BAD_GATEWAY,
            Failure::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
            Failure::Malformed(_) | Failure::BodyBroken(_) => StatusCode::BAD_REQUEST,
            Failure::BodyTooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Failure::BodyTimeout(_) => StatusCode::REQUEST_TIMEOUT,
        }
    }

    /// gRPC's code for it (grpc/status.h).
    fn grpc_code(&self) -> u16 {
        match self {
            Failure::Timeout { .. } => 4,
            Failure::UnknownRevision { .. } => 5,
            Failure::BodyTooLarge(_) => 8,
            Failure::Malformed(_) | Failure::BodyBroken(_) | Failure::BodyTimeout(_) => 3,
            Failure::Unsupported(_) => 12,
            _ => 14,
        }
    }

    /// The response, with its whole body.
    pub fn into_response(self, grpc: bool) -> Response<Bytes> {
        let error = self.to_string();
        let mut response = if grpc { self.grpc(&error) } else { self.json(&error) };
        response.headers_mut().insert(headers::CAUSE, HeaderValue::from_static(self.cause()));
        response
    }

    fn json(&self, error: &str) -> Response<Bytes> {
        let body = serde_json::to_vec(&Message { error, cause: self.cause() }).unwrap_or_default();
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.status() == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }

    /// A response of trailers only: gRPC clients take nothing else for a status.
    fn grpc(&self, error: &str) -> Response<Bytes> {
        let mut response = Response::new(Bytes::new());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from(self.grpc_code()));
        // Percent-encoding is only needed beyond printable ASCII, which no message of ours has unless a client's
        // header put it there.
        if let Ok(message) = HeaderValue::from_str(&error.replace('%', "%25")) {
            headers.insert("grpc-message", message);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_json_with_its_cause_in_a_header() {
        let failure = Failure::UnknownRevision { asked: "x\"".into(), known: "iris-a".into() };
        let response = failure.into_response(false);
        assert_eq!(response.status(), 404);
        assert_eq!(response.headers()["serin-cause"], "unknown-revision");
        let body: serde_json::Value = serde_json::from_slice(response.body()).expect("JSON");
        assert_eq!(body["cause"], "unknown-revision");
        assert_eq!(body["error"], "no revision `x\"`; this service has iris-a");
    }

    #[test]
    fn a_grpc_client_gets_a_grpc_status() {
        let response = Failure::NoEndpoint("nothing".into()).into_response(true);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "14");
        assert_eq!(response.headers()["serin-cause"], "no-endpoint");
    }
}
