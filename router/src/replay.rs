//! The body of a request, so that an attempt can be repeated: small ones are read whole before they are sent, those
//! of unknown length are kept while they stream, and past the limits a body goes on unheld and can be sent once.
//! Held pieces are reference-counted, never copied.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::poll_fn;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;
use thiserror::Error;

use crate::error::BoxError;

/// What all bodies held at one time may take together, and each of them.
#[derive(Debug)]
pub struct HeldMemory {
    used: AtomicUsize,
    total_limit: usize,
    request_limit: usize,
}

impl HeldMemory {
    /// Limits in bytes: per request and for all together.
    pub fn new(request_limit: usize, total_limit: usize) -> HeldMemory {
        HeldMemory { used: AtomicUsize::new(0), total_limit, request_limit }
    }

    /// Bytes held now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn reserve(&self, bytes: usize) -> bool {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        let fits = before + bytes <= self.total_limit;
        if !fits {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
        }
        fits
    }

    fn release(&self, bytes: usize) {
        if bytes > 0 {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

/// Why a body could not be read from the client.
#[derive(Debug, Error)]
pub enum BodyError {
    /// More bytes than allowed.
    #[error("larger than {0} bytes")]
    TooLarge(u64),
    /// The client's connection failed.
    #[error("could not be read")]
    Broken(#[source] BoxError),
    /// Another attempt sends the body now.
    #[error("superseded by another attempt")]
    Superseded,
}

/// The body of one request over all of its attempts.
pub struct Payload<B = Incoming> {
    kind: Kind<B>,
    _reserved: Reserved,
}

enum Kind<B> {
    /// Read whole: can be sent any number of times.
    Held(Held),
    /// Read from the client while it is sent.
    Streamed(Arc<Mutex<Stream<B>>>),
}

#[derive(Clone)]
enum Held {
    Nothing,
    One(Bytes),
    Many(Arc<[Bytes]>),
}

/// Gives the held bytes back when the request ends.
#[derive(Debug)]
struct Reserved {
    memory: Arc<HeldMemory>,
    bytes: usize,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.memory.release(self.bytes);
    }
}

impl<B> Payload<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    /// Takes a body over: read to its end if its declared length may be held, else left to stream.
    ///
    /// # Errors
    /// When the body is larger than `max_body` or the client's connection fails.
    pub async fn take(
        body: B,
        declared: Option<u64>,
        memory: &Arc<HeldMemory>,
        max_body: u64,
    ) -> Result<Payload<B>, BodyError> {
        let mut reserved = Reserved { memory: memory.clone(), bytes: 0 };
        if body.is_end_stream() || declared == Some(0) {
            return Ok(Payload { kind: Kind::Held(Held::Nothing), _reserved: reserved });
        }
        if declared.is_some_and(|length| length > max_body) {
            return Err(BodyError::TooLarge(max_body));
        }
        let fits =
            declared.filter(|length| *length <= memory.request_limit as u64).map(|length| length as usize);
        if let Some(length) = fits
            && memory.reserve(length)
        {
            reserved.bytes = length;
            let held = read_whole(body).await?;
            return Ok(Payload { kind: Kind::Held(held), _reserved: reserved });
        }
        let stream = Stream::new(body, declared.is_none(), memory.clone(), max_body);
        Ok(Payload { kind: Kind::Streamed(Arc::new(Mutex::new(stream))), _reserved: reserved })
    }

    /// The body for the next attempt; the body of the one before ends with an error where it still streams.
    pub fn attempt(&self) -> Outgoing<B> {
        let source = match &self.kind {
            Kind::Held(Held::Nothing) => Source::Nothing,
            Kind::Held(Held::One(bytes)) => Source::One(bytes.clone()),
            Kind::Held(Held::Many(pieces)) => Source::Many(pieces.clone(), 0),
            Kind::Streamed(stream) => {
                let mut locked = stream.lock();
                locked.attempt += 1;
                Source::Stream { stream: stream.clone(), attempt: locked.attempt, next: 0 }
            }
        };
        Outgoing(source)
    }

    /// Whether another attempt can send the body from its beginning.
    pub fn replayable(&self) -> bool {
        match &self.kind {
            Kind::Held(_) => true,
            Kind::Streamed(stream) => {
                let stream = stream.lock();
                stream.holding || !stream.begun
            }
        }
    }

    /// Whether the body is sent in one go: then a connection is free as soon as its response has been read.
    pub fn is_held_whole(&self) -> bool {
        matches!(self.kind, Kind::Held(_))
    }

    /// Whether a part of the body went on that was not kept.
    pub fn is_unheld(&self) -> bool {
        match &self.kind {
            Kind::Held(_) => false,
            Kind::Streamed(stream) => !stream.lock().holding,
        }
    }

    /// What went wrong on the client's side while the body streamed.
    pub fn take_error(&self) -> Option<BodyError> {
        match &self.kind {
            Kind::Held(_) => None,
            Kind::Streamed(stream) => stream.lock().error.take(),
        }
    }
}

async fn read_whole<B>(mut body: B) -> Result<Held, BodyError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    let mut held = Held::Nothing;
    let mut more = Vec::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|error| BodyError::Broken(error.into()))?;
        // Trailers after a declared length cannot come in HTTP/1.1, and no inference protocol sends any.
        let Ok(data) = frame.into_data() else { continue };
        match &held {
            Held::Nothing if more.is_empty() => held = Held::One(data),
            _ => {
                if let Held::One(first) = std::mem::replace(&mut held, Held::Nothing) {
                    more.push(first);
                }
                more.push(data);
            }
        }
    }
    Ok(if more.is_empty() { held } else { Held::Many(more.into()) })
}

/// A body that is read while it is sent.
struct Stream<B> {
    source: B,
    /// What has been read so far, while `holding`.
    held: Vec<Bytes>,
    held_bytes: usize,
    /// Everything read so far is kept.
    holding: bool,
    /// Something was read.
    begun: bool,
    ended: bool,
    trailers: Option<HeaderMap>,
    read: u64,
    max_body: u64,
    /// The attempt that may read.
    attempt: u64,
    error: Option<BodyError>,
    memory: Arc<HeldMemory>,
}

impl<B> Stream<B> {
    fn new(source: B, holding: bool, memory: Arc<HeldMemory>, max_body: u64) -> Stream<B> {
        Stream {
            source,
            held: Vec::new(),
            held_bytes: 0,
            holding,
            begun: false,
            ended: false,
            trailers: None,
            read: 0,
            max_body,
            attempt: 0,
            error: None,
            memory,
        }
    }

    /// Keeps a piece, or lets go of all when it does not fit any more.
    fn keep(&mut self, piece: &Bytes) {
        let fits =
            self.held_bytes + piece.len() <= self.memory.request_limit && self.memory.reserve(piece.len());
        if fits {
            self.held_bytes += piece.len();
            self.held.push(piece.clone());
        } else {
            self.holding = false;
            self.let_go();
        }
    }

    fn let_go(&mut self) {
        self.held = Vec::new();
        self.memory.release(std::mem::take(&mut self.held_bytes));
    }

    fn fail(&mut self, error: BodyError) -> BodyError {
        let told = match &error {
            BodyError::TooLarge(limit) => BodyError::TooLarge(*limit),
            _ => BodyError::Broken("the client's connection failed".into()),
        };
        // What the client did cannot be repeated from here.
        self.holding = false;
        self.error = Some(error);
        told
    }
}

impl<B> Stream<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.ended {
            return Poll::Ready(self.trailers.clone().map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let frame = match Pin::new(&mut self.source).poll_frame(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(None) => {
                self.ended = true;
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Err(error))) => {
                return Poll::Ready(Some(Err(self.fail(BodyError::Broken(error.into())))));
            }
            Poll::Ready(Some(Ok(frame))) => frame,
        };
        self.begun = true;
        match frame.into_data() {
            Ok(data) => {
                self.read += data.len() as u64;
                if self.read > self.max_body {
                    return Poll::Ready(Some(Err(self.fail(BodyError::TooLarge(self.max_body)))));
                }
                if self.holding {
                    self.keep(&data);
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Err(frame) => {
                self.ended = true;
                self.trailers = frame.into_trailers().ok();
                Poll::Ready(self.trailers.clone().map(|trailers| Ok(Frame::trailers(trailers))))
            }
        }
    }
}

impl<B> Drop for Stream<B> {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// What is sent to a runtime as the body of one attempt.
pub struct Outgoing<B = Incoming>(Source<B>);

enum Source<B> {
    Nothing,
    One(Bytes),
    Many(Arc<[Bytes]>, usize),
    Stream { stream: Arc<Mutex<Stream<B>>>, attempt: u64, next: usize },
}

impl<B> std::fmt::Debug for Outgoing<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match &self.0 {
            Source::Nothing => "Outgoing(nothing)",
            Source::One(_) | Source::Many(..) => "Outgoing(held)",
            Source::Stream { .. } => "Outgoing(stream)",
        })
    }
}

impl<B> Body for Outgoing<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.0 {
            Source::Nothing => Poll::Ready(None),
            Source::One(bytes) => {
                let bytes = std::mem::take(bytes);
                self.0 = Source::Nothing;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Source::Many(pieces, next) => {
                let piece = pieces.get(*next).cloned();
                *next += 1;
                Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
            }
            Source::Stream { stream, attempt, next } => {
                let mut stream = stream.lock();
                if stream.attempt != *attempt {
                    return Poll::Ready(Some(Err(BodyError::Superseded)));
                }
                if let Some(piece) = stream.held.get(*next).cloned() {
                    *next += 1;
                    return Poll::Ready(Some(Ok(Frame::data(piece))));
                }
                let polled = stream.poll_next(cx);
                *next = stream.held.len();
                if let Poll::Ready(None) | Poll::Ready(Some(Err(_))) = polled {
                    drop(stream);
                    self.0 = Source::Nothing;
                } else if let Poll::Ready(Some(Ok(frame))) = &polled
                    && frame.is_trailers()
                {
                    drop(stream);
                    self.0 = Source::Nothing;
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Source::Nothing => true,
            Source::One(_) => false,
            Source::Many(pieces, next) => *next >= pieces.len(),
            Source::Stream { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Source::Nothing => SizeHint::with_exact(0),
            Source::One(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Many(pieces, next) => {
                SizeHint::with_exact(pieces.iter().skip(*next).map(|piece| piece.len() as u64).sum())
            }
            Source::Stream { stream, next, .. } => {
                // What the source still has, and what was kept of it before.
                let stream = stream.lock();
                let kept: u64 = stream.held.iter().skip(*next).map(|piece| piece.len() as u64).sum();
                match stream.source.size_hint().exact() {
                    Some(rest) => SizeHint::with_exact(rest + kept),
                    None => SizeHint::new(),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use http_body_util::BodyExt;
    use tokio::sync::mpsc;

    use super::*;

    /// A body of unknown length whose pieces come when the test sends them.
    struct Fed(mpsc::UnboundedReceiver<Result<Frame<Bytes>, BoxError>>);

    impl Body for Fed {
        type Data = Bytes;
        type Error = BoxError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            self.0.poll_recv(cx)
        }
    }

    fn fed(pieces: &[&'static str]) -> (mpsc::UnboundedSender<Result<Frame<Bytes>, BoxError>>, Fed) {
        let (sender, receiver) = mpsc::unbounded_channel();
        for piece in pieces {
            sender.send(Ok(Frame::data(Bytes::from_static(piece.as_bytes())))).expect("the receiver lives");
        }
        (sender, Fed(receiver))
    }

    async fn take(
        body: Fed,
        declared: Option<u64>,
        memory: &Arc<HeldMemory>,
    ) -> Result<Payload<Fed>, BodyError> {
        Payload::take(body, declared, memory, 1000).await
    }

    async fn text(body: Outgoing<Fed>) -> Result<String, BodyError> {
        let bytes = body.collect().await?.to_bytes();
        Ok(String::from_utf8(bytes.to_vec()).expect("text"))
    }

    #[tokio::test]
    async fn a_small_body_is_read_whole_and_can_be_sent_again() {
        let memory = Arc::new(HeldMemory::new(16, 64));
        for pieces in [&["hello, world"][..], &["hello", ", ", "world"][..]] {
            let (sender, body) = fed(pieces);
            drop(sender);
            let payload = take(body, Some(12), &memory).await.expect("it fits");
            assert_eq!(memory.used(), 12);
            assert_eq!(payload.attempt().size_hint().exact(), Some(12));
            for _ in 0..3 {
                assert_eq!(text(payload.attempt()).await.expect("whole"), "hello, world");
                assert!(payload.replayable());
            }
            drop(payload);
            assert_eq!(memory.used(), 0);
        }
    }

    #[tokio::test]
    async fn a_streamed_body_starts_again_from_what_was_kept() {
        let memory = Arc::new(HeldMemory::new(16, 64));
        let (sender, body) = fed(&["ab", "cd"]);
        let payload = take(body, None, &memory).await.expect("it streams");
        let mut first = payload.attempt();
        assert_eq!(first.frame().await.expect("a piece").expect("whole").into_data().expect("data"), "ab");
        assert!(payload.replayable());
        let second = payload.attempt();
        assert!(matches!(first.frame().await, Some(Err(BodyError::Superseded))), "only one attempt reads");
        let trailers = HeaderMap::from_iter([(http::header::ETAG, http::HeaderValue::from_static("x"))]);
        sender.send(Ok(Frame::trailers(trailers.clone()))).expect("the receiver lives");
        let collected = second.collect().await.expect("whole");
        assert_eq!(collected.trailers(), Some(&trailers));
        assert_eq!(collected.to_bytes(), "abcd");
        let third = payload.attempt().collect().await.expect("whole");
        assert_eq!(third.trailers(), Some(&trailers));
        assert_eq!(third.to_bytes(), "abcd");
        drop((first, payload));
        assert_eq!(memory.used(), 0);
    }

    #[tokio::test]
    async fn past_the_limit_a_body_goes_on_unheld_and_whole() {
        let memory = Arc::new(HeldMemory::new(4, 64));
        let (sender, body) = fed(&["ab", "cd", "e"]);
        drop(sender);
        let payload = take(body, None, &memory).await.expect("it streams");
        assert_eq!(text(payload.attempt()).await.expect("whole"), "abcde");
        assert!(!payload.replayable() && payload.is_unheld());
        assert_eq!(memory.used(), 0);

        let (sender, body) = fed(&["abcde"]);
        drop(sender);
        let payload = take(body, Some(5), &memory).await.expect("it streams");
        assert!(payload.replayable(), "nothing of it has gone on yet");
        assert_eq!(text(payload.attempt()).await.expect("whole"), "abcde");
        assert!(!payload.replayable());
    }

    #[tokio::test]
    async fn all_bodies_together_stay_below_the_limit() {
        let memory = Arc::new(HeldMemory::new(8, 10));
        let mut payloads = Vec::new();
        for _ in 0..2 {
            let (sender, body) = fed(&["12345678"]);
            drop(sender);
            payloads.push(take(body, Some(8), &memory).await.expect("held or not"));
        }
        assert_eq!(memory.used(), 8);
        assert!(payloads[0].is_held_whole() && !payloads[1].is_held_whole());
        drop(payloads);
        assert_eq!(memory.used(), 0);
    }

    #[tokio::test]
    async fn too_large_and_broken_bodies_are_told_apart() {
        let memory = Arc::new(HeldMemory::new(8, 10));
        let (_sender, body) = fed(&[]);
        assert!(matches!(take(body, Some(1001), &memory).await, Err(BodyError::TooLarge(1000))));
        let (sender, body) = fed(&["x"]);
        sender.send(Err("reset".into())).expect("the receiver lives");
        let payload = take(body, None, &memory).await.expect("it streams");
        assert!(text(payload.attempt()).await.is_err());
        assert!(matches!(payload.take_error(), Some(BodyError::Broken(_))));
        let (sender, body) = fed(&[]);
        let payload = take(body, None, &memory).await.expect("it streams");
        sender.send(Ok(Frame::data(Bytes::from(vec![0; 1001])))).expect("the receiver lives");
        assert!(text(payload.attempt()).await.is_err());
        assert!(matches!(payload.take_error(), Some(BodyError::TooLarge(1000))));
    }

    #[test]
    fn an_attempt_waits_for_the_client() {
        let memory = Arc::new(HeldMemory::new(8, 10));
        let (sender, body) = fed(&[]);
        let payload = take(body, None, &memory).now_or_never().expect("no wait").expect("it streams");
        let mut attempt = payload.attempt();
        assert!(attempt.frame().now_or_never().is_none());
        sender.send(Ok(Frame::data(Bytes::from_static(b"x")))).expect("the receiver lives");
        assert!(attempt.frame().now_or_never().is_some());
    }
}
