//! The body of a response on its way to the client. As long as it lives, the request is counted on its revision and on
//! its endpoint; its end gives the connection back.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use http::response::Parts;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use tokio::time::{Sleep, sleep_until, timeout};

use super::attempt::{Answer, Lease};
use super::place::Visit;
use crate::endpoint::Load;
use crate::error::BoxError;
use crate::headers;
use crate::metrics::Outcome;

/// Largest body of a refusal that is read, so that its connection can be used again.
const REFUSAL_BYTES: usize = 64 << 10;
/// How long that body may take: the request waits for it before it goes elsewhere.
const REFUSAL_TIME: Duration = Duration::from_secs(1);

/// What the client gets as the body.
#[derive(Debug)]
pub struct ResponseBody(Kind);

#[derive(Debug)]
enum Kind {
    Local(Option<Bytes>),
    Passing(Passing),
}

impl ResponseBody {
    /// A body that is here already.
    pub fn local(bytes: Bytes) -> ResponseBody {
        ResponseBody(Kind::Local(Some(bytes).filter(|bytes| !bytes.is_empty())))
    }
}

/// A runtime's body, passed on piece by piece.
#[derive(Debug)]
pub struct Passing {
    body: Incoming,
    /// Taken at the end, whichever way it comes.
    open: Option<Open>,
    arrived: Instant,
    deadline: Instant,
    /// Made when the body is waited for the first time: most have come whole with their head.
    timer: Option<Pin<Box<Sleep>>>,
    outcome: Outcome,
}

/// What lasts as long as the response.
#[derive(Debug)]
struct Open {
    lease: Lease,
    visit: Visit,
    load: Load,
}

impl Passing {
    /// The client's response for a runtime's answer.
    pub fn response(
        answer: Answer,
        visit: Visit,
        load: Load,
        arrived: Instant,
        deadline: Instant,
    ) -> Response<ResponseBody> {
        let (mut parts, body) = answer.response.into_parts();
        tidy(&mut parts, &visit);
        let outcome = Outcome::of(parts.status);
        let open = Some(Open { lease: answer.lease, visit, load });
        let passing = Passing { body, open, arrived, deadline, timer: None, outcome };
        Response::from_parts(parts, ResponseBody(Kind::Passing(passing)))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if self.body.is_end_stream() {
                    self.end(true);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.end(false);
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(None) => {
                self.end(true);
                Poll::Ready(None)
            }
            Poll::Pending => {
                let deadline = self.deadline;
                let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline.into())));
                if timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                self.end(false);
                Poll::Ready(Some(Err("the revision's timeout was over before the response was".into())))
            }
        }
    }

    fn end(&mut self, complete: bool) {
        let Some(Open { lease, visit, load }) = self.open.take() else { return };
        visit.ended(if complete { self.outcome } else { Outcome::Cut }, self.arrived);
        if complete {
            give_back(lease, load);
        }
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        let complete = self.open.is_some() && self.body.is_end_stream();
        self.end(complete);
    }
}

/// Returns a connection whose response has been read. Where the request streamed, its last bytes may still be on
/// their way; then the connection itself says when it is free.
fn give_back(lease: Lease, load: Load) {
    let Lease::Http1 { mut sender, sent } = lease else { return };
    if sent || sender.is_ready() {
        load.endpoint().pool.give_back(sender);
    } else {
        let endpoint = load.endpoint().clone();
        tokio::spawn(async move {
            if sender.ready().await.is_ok() {
                endpoint.pool.give_back(sender);
            }
        });
    }
}

fn tidy(parts: &mut Parts, visit: &Visit) {
    headers::for_client(&mut parts.headers, &visit.revision().answered_by);
    parts.extensions.clear();
    parts.version = http::Version::HTTP_11;
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.0 {
            Kind::Local(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Passing(passing) => passing.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Local(bytes) => bytes.is_none(),
            Kind::Passing(passing) => passing.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Local(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Kind::Passing(passing) => passing.body.size_hint(),
        }
    }
}

/// An answer that says "nothing executed", kept while others are asked.
#[derive(Debug)]
pub struct Refusal {
    parts: Parts,
    body: Bytes,
    visit: Visit,
}

impl Refusal {
    /// Reads the small body of such an answer, so that its connection is free again.
    pub async fn read(answer: Answer, visit: Visit, load: &Load) -> Refusal {
        let (mut parts, body) = answer.response.into_parts();
        tidy(&mut parts, &visit);
        let body = match timeout(REFUSAL_TIME, Limited::new(body, REFUSAL_BYTES).collect()).await {
            Ok(Ok(body)) => {
                give_back(answer.lease, load.endpoint().begin());
                body.to_bytes()
            }
            // The status is what counts; a body that is too long, too late or broken goes without its length.
            Ok(Err(_)) | Err(_) => {
                parts.headers.remove(http::header::CONTENT_LENGTH);
                Bytes::new()
            }
        };
        Refusal { parts, body, visit }
    }

    /// Passes it on after all: nobody else could answer.
    pub fn into_response(self, arrived: Instant) -> Response<ResponseBody> {
        self.visit.ended(Outcome::of(self.parts.status), arrived);
        Response::from_parts(self.parts, ResponseBody::local(self.body))
    }
}
