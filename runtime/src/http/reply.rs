//! Answers: JSON bodies, and the one shape of every failure, `{"error": "..."}`.

use super::NOT_EXECUTED;
use crate::instance::InferError;
use crate::model::RunError;
use crate::protocol::InvalidRequest;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};

/// A request that was not answered as asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    status: StatusCode,
    message: String,
    not_executed: bool,
    retry_after: Option<u64>,
}

impl Failure {
    /// A failure that says nothing about trying again.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), not_executed: false, retry_after: None }
    }

    /// The caller has to mend the request.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// There is no such thing here.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// The request was meant for another revision.
    pub fn misdirected(message: impl Into<String>) -> Self {
        Self { not_executed: true, ..Self::new(StatusCode::MISDIRECTED_REQUEST, message) }
    }

    /// The model cannot answer now.
    pub fn unavailable(message: impl Into<String>) -> Self {
        let failure = Self::new(StatusCode::SERVICE_UNAVAILABLE, message);
        Self { not_executed: true, retry_after: Some(1), ..failure }
    }
}

impl From<InvalidRequest> for Failure {
    fn from(error: InvalidRequest) -> Self {
        Self::bad_request(error.0)
    }
}

impl From<InferError> for Failure {
    fn from(error: InferError) -> Self {
        let message = error.to_string();
        match error {
            InferError::QueueFull { retry_after, .. } => Self {
                not_executed: true,
                retry_after: Some(retry_after),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, message)
            },
            InferError::ShuttingDown => Self::unavailable(message),
            InferError::DeadlineExceeded(_) => Self::new(StatusCode::GATEWAY_TIMEOUT, message),
            InferError::Run(RunError::InvalidInput(_)) => Self::bad_request(message),
            InferError::Run(RunError::Failed(_)) | InferError::InstanceDied => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
            }
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = serde_json::json!({ "error": self.message }).to_string();
        let mut response = json(self.status, body);
        if self.not_executed {
            response.headers_mut().insert(NOT_EXECUTED, HeaderValue::from_static("true"));
        }
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// A JSON body.
pub(crate) fn json(status: StatusCode, body: impl Into<axum::body::Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
