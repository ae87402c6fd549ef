//! Takes a request's body in, within the limits of size and time.

use super::{Failure, Settings};
use axum::body::Body;
use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use std::time::Instant;

/// Reads the body to its end.
pub(super) async fn read(
    body: Body,
    headers: &HeaderMap,
    settings: &Settings,
    deadline: Instant,
) -> Result<Bytes, Failure> {
    let told = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if told.is_some_and(|told| told > settings.max_request_bytes as u64) {
        return Err(too_large(settings.max_request_bytes));
    }
    let reading = Limited::new(body, settings.max_request_bytes).collect();
    match tokio::time::timeout_at(deadline.into(), reading).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large(settings.max_request_bytes)),
        Ok(Err(error)) => Err(Failure::bad_request(format!("the body did not arrive whole: {error}"))),
        Err(_) => {
            let message = format!("the body did not arrive within {} ms", settings.timeout.as_millis());
            Err(Failure::new(StatusCode::REQUEST_TIMEOUT, message))
        }
    }
}

/// Whether an answer of this status leaves a part of the request unread, so that its connection cannot go on.
pub(super) fn was_not_read(status: StatusCode) -> bool {
    matches!(status, StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT)
}

/// Makes sure that the body is what the protocols are served as.
pub(super) fn check_encoding(headers: &HeaderMap) -> Result<(), Failure> {
    if headers.contains_key("inference-header-content-length") {
        return Err(Failure::bad_request("binary tensor data is not served: expected tensors as JSON"));
    }
    match headers.get(CONTENT_ENCODING) {
        Some(encoding) if encoding != "identity" => {
            let message = format!("content-encoding {encoding:?} is not served: expected plain JSON");
            Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message))
        }
        _ => Ok(()),
    }
}

fn too_large(max_bytes: usize) -> Failure {
    let message = format!("the body has more than {max_bytes} bytes (--max-request-bytes)");
    Failure::new(StatusCode::PAYLOAD_TOO_LARGE, message)
}
