//! What a request and a response lose and gain on their way through. Pure.

use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Uri, Version};
use serin_crds::labels;

use crate::error::Failure;

/// Request: pins a revision. Response: who answered.
pub const REVISION: HeaderName = HeaderName::from_static(labels::HEADER_REVISION);
/// Names the revision that the request was meant for.
pub const EXPECTED: HeaderName = HeaderName::from_static(labels::HEADER_EXPECT);
/// The runtime refused without executing.
pub const NOT_EXECUTED: HeaderName = HeaderName::from_static(labels::HEADER_NOT_EXECUTED);
/// Cause of an error that the router made.
pub const CAUSE: HeaderName = HeaderName::from_static(labels::HEADER_CAUSE);

/// The client's own name for a request.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Refuses what cannot be forwarded: CONNECT, a change of protocol, a body whose end is told in two ways.
///
/// # Errors
/// The failure to answer with.
pub fn check(method: &Method, headers: &HeaderMap) -> Result<(), Failure> {
    if method == Method::CONNECT {
        return Err(Failure::Unsupported("CONNECT"));
    }
    if let Some(upgrade) = headers.get(UPGRADE) {
        // curl --http2 offers h2c in every plain request and takes an answer in HTTP/1.1 as a no.
        if !upgrade.as_bytes().eq_ignore_ascii_case(b"h2c") {
            return Err(Failure::Unsupported("an upgrade to another protocol"));
        }
    }
    if headers.contains_key(TRANSFER_ENCODING) && headers.contains_key(CONTENT_LENGTH) {
        return Err(Failure::Malformed("content-length and transfer-encoding exclude each other"));
    }
    Ok(())
}

/// Turns the head that came from the client into the head for the runtime, in place. What differs per revision is set
/// by [`expect`].
pub fn for_upstream(headers: &mut HeaderMap) {
    let trailers = wants_trailers(headers);
    strip_hop_by_hop(headers);
    headers.remove(EXPECT);
    headers.remove(REVISION);
    headers.remove(EXPECTED);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Names the revision that the request is meant for.
pub fn expect(headers: &mut HeaderMap, identity: &HeaderValue) {
    headers.insert(EXPECTED, identity.clone());
}

/// A client may ask for trailers (gRPC does); every other use of TE ends here.
fn wants_trailers(headers: &HeaderMap) -> bool {
    headers.get(TE).is_some_and(|te| {
        te.to_str().is_ok_and(|te| te.split(',').any(|part| part.trim().eq_ignore_ascii_case("trailers")))
    })
}

/// Turns the runtime's response head into the client's, in place.
pub fn for_client(headers: &mut HeaderMap, revision: &HeaderValue) {
    strip_hop_by_hop(headers);
    headers.insert(REVISION, revision.clone());
}

/// Removes what speaks of one connection only, and what the Connection header adds to that.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        strip_named(headers);
    }
    if headers.remove(TRANSFER_ENCODING).is_some() {
        headers.remove(CONTENT_LENGTH);
    }
    for name in [KEEP_ALIVE, PROXY_CONNECTION, TE, UPGRADE, HTTP2_SETTINGS] {
        headers.remove(name);
    }
}

fn strip_named(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    headers.remove(CONNECTION);
    for name in named {
        // Who names these as hop-by-hop would take away what the message cannot do without.
        if name != HOST && name != CONTENT_LENGTH && name != CONTENT_TYPE {
            headers.remove(name);
        }
    }
}

/// The target for an HTTP/1.1 upstream: path and query alone.
pub fn origin_form(uri: &Uri) -> Uri {
    match (uri.scheme(), uri.authority(), uri.path_and_query()) {
        (None, None, Some(_)) => uri.clone(),
        (_, _, Some(path)) => Uri::from(path.clone()),
        (_, _, None) => Uri::from_static("/"),
    }
}

/// The target for an HTTP/2 upstream: scheme and authority are required there.
pub fn absolute_form(uri: &Uri, host: Option<&HeaderValue>, service: &str) -> Uri {
    if uri.scheme().is_some() && uri.authority().is_some() {
        return uri.clone();
    }
    let authority = host.and_then(|host| host.to_str().ok()).unwrap_or(service);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    Uri::builder()
        .scheme("http")
        .authority(authority)
        .path_and_query(path)
        .build()
        .unwrap_or_else(|_| uri.clone())
}

/// Makes sure that an HTTP/1.1 request names a host: HTTP/2 has it in the target, HTTP/1.0 may lack it.
pub fn ensure_host(headers: &mut HeaderMap, uri: &Uri, service: &str) {
    if !headers.contains_key(HOST) {
        let host = uri.authority().map_or(service, |authority| authority.as_str());
        if let Ok(host) = HeaderValue::from_str(host) {
            headers.insert(HOST, host);
        }
    }
}

/// The length that the head declares.
pub fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// Whether errors must be told in gRPC's way.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// Whether the request asks for HTTP/2 towards the runtime: it came in HTTP/2 itself.
pub fn wants_http2(version: Version) -> bool {
    version == Version::HTTP_2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn hop_by_hop_headers_and_forged_ones_do_not_pass() {
        let mut headers = map(&[
            ("host", "iris"),
            ("connection", "keep-alive, x-secret , content-type"),
            ("keep-alive", "timeout=5"),
            ("x-secret", "1"),
            ("proxy-connection", "keep-alive"),
            ("te", "gzip, Trailers"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABk"),
            ("expect", "100-continue"),
            ("serin-expect", "a/b/c"),
            ("serin-revision", "canary"),
            ("content-type", "application/json"),
            ("x-request-id", "7"),
        ]);
        for_upstream(&mut headers);
        assert_eq!(
            headers,
            map(&[
                ("host", "iris"),
                ("content-type", "application/json"),
                ("x-request-id", "7"),
                ("te", "trailers")
            ])
        );
    }

    #[test]
    fn the_response_names_the_revision_and_loses_the_connection() {
        let mut headers = map(&[
            ("connection", "close"),
            ("transfer-encoding", "chunked"),
            ("content-length", "3"),
            ("serin-revision", "forged"),
            ("serin-digest", "sha256:0"),
        ]);
        for_client(&mut headers, &HeaderValue::from_static("iris-a"));
        assert_eq!(headers, map(&[("serin-revision", "iris-a"), ("serin-digest", "sha256:0")]));
    }

    #[test]
    fn what_cannot_be_forwarded_is_refused() {
        assert!(check(&Method::POST, &map(&[("upgrade", "H2C"), ("content-length", "3")])).is_ok());
        for (method, headers) in [
            (Method::GET, map(&[("upgrade", "websocket")])),
            (Method::CONNECT, map(&[])),
            (Method::POST, map(&[("content-length", "3"), ("transfer-encoding", "chunked")])),
        ] {
            assert!(check(&method, &headers).is_err(), "{method} {headers:?}");
        }
    }

    #[test]
    fn targets_take_the_form_that_the_protocol_wants() {
        let full: Uri = "http://h:1/v2/x?y=1".parse().expect("a valid target");
        let path: Uri = "/v2/x?y=1".parse().expect("a valid target");
        assert_eq!(origin_form(&full), "/v2/x?y=1");
        assert_eq!(origin_form(&path), "/v2/x?y=1");
        assert_eq!(absolute_form(&full, None, "iris"), full);
        assert_eq!(absolute_form(&path, Some(&HeaderValue::from_static("h:1")), "iris"), full);
        assert_eq!(absolute_form(&path, None, "iris"), "http://iris/v2/x?y=1");
    }
}
