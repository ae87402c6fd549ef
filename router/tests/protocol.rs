//! What happens to a request when the runtime, the connection or the client misbehaves: one router, fake runtimes.

mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper_util::rt::TokioIo;
use serin_router::metrics::RetryReason;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const REFUSED: &str = "serin-not-executed: true\r\nretry-after: 1\r\n";

fn cause<B>(response: &http::Response<B>) -> &str {
    response.headers().get("serin-cause").map_or("", |cause| cause.to_str().expect("text"))
}

fn retries(router: &Router, reason: RetryReason) -> u64 {
    router.context.tables.load().by_port(router.port).expect("the route").state.metrics.retries(reason)
}

/// A router whose stable revision runs on these fakes.
async fn router_with(fakes: &[&Fake]) -> Router {
    let router = Router::start();
    let uids = ["pod-0", "pod-1", "pod-2"];
    let mut changes = vec![RouteSpec::new(router.port).change()];
    changes.extend(fakes.iter().zip(uids).map(|(fake, uid)| slice("iris-a", fake.port, &[ready(uid)])));
    router.apply(changes).await;
    router
}

#[tokio::test]
async fn the_runtime_is_told_who_is_meant_and_the_client_who_answered() {
    let fake = Fake::start(|_| {
        Reply::Answer(200, "serin-digest: sha256:1\r\nconnection: x-inner\r\nx-inner: 1\r\n", "{}".into())
    })
    .await;
    let router = router_with(&[&fake]).await;
    let response = router
        .post(
            &[
                ("x-request-id", "7"),
                ("serin-expect", "forged/by/client"),
                ("connection", "x-mine"),
                ("x-mine", "1"),
            ],
            "hello",
        )
        .await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.body(), "{}");
    assert_eq!(response.headers()["serin-revision"], "iris-a");
    assert_eq!(response.headers()["serin-digest"], "sha256:1");
    assert!(!response.headers().contains_key("x-inner"));
    let seen = fake.seen.lock()[0].clone();
    assert_eq!(seen.body, b"hello");
    assert!(seen.head.starts_with("POST /v2/models/iris/infer HTTP/1.1\r\n"), "{}", seen.head);
    assert!(seen.head.contains("serin-expect: shop/iris/iris-a\r\n"), "{}", seen.head);
    assert!(seen.head.contains("x-request-id: 7\r\n") && !seen.head.contains("x-mine"), "{}", seen.head);
}

#[tokio::test]
async fn a_request_that_breaks_before_the_answer_goes_to_another_pod_with_the_same_body() {
    let bad = Fake::start(|_| Reply::Break).await;
    let good = Fake::start(|seen| ok(String::from_utf8_lossy(&seen.body))).await;
    let router = router_with(&[&bad, &good]).await;
    for n in 0..20 {
        let response = router.post(&[], format!("request {n}")).await;
        assert_eq!(response.status(), 200, "{response:?}");
        assert_eq!(*response.body(), format!("request {n}"));
    }
    assert!(bad.count() > 0, "the bad pod was tried");
    assert_eq!(retries(&router, RetryReason::Lost), bad.count() as u64);
}

#[tokio::test]
async fn a_request_that_breaks_everywhere_is_not_sent_for_ever() {
    let bad = Fake::start(|_| Reply::Break).await;
    let other = Fake::start(|_| Reply::Break).await;
    let router = Router::start();
    let spec = RouteSpec { hold: 1, ..RouteSpec::new(router.port) };
    let pods = [slice("iris-a", bad.port, &[ready("pod-0")]), slice("iris-a", other.port, &[ready("pod-1")])];
    router.apply([spec.change()].into_iter().chain(pods)).await;
    let response = router.post(&[], "poison").await;
    assert_eq!((response.status().as_u16(), cause(&response)), (502, "connection-lost"), "{response:?}");
    assert!(bad.count() + other.count() <= 4);
}

#[tokio::test]
async fn a_pod_that_cannot_be_connected_costs_nobody_anything() {
    let gone = free_port();
    let good = Fake::start(|_| ok("")).await;
    let router = Router::start();
    let changes = [
        RouteSpec::new(router.port).change(),
        slice("iris-a", gone, &[ready("pod-0")]),
        slice("iris-a", good.port, &[ready("pod-1")]),
    ];
    router.apply(changes).await;
    for _ in 0..20 {
        assert_eq!(router.post(&[], "x").await.status(), 200);
    }
    let retried = retries(&router, RetryReason::Connect);
    assert!((1..20).contains(&retried), "it is wanted less after the first failure: {retried}");
}

#[tokio::test]
async fn an_idle_connection_that_the_runtime_closed_is_not_noticed_by_the_client() {
    let fake = Fake::start(|_| Reply::AnswerAndClose("x".into())).await;
    let router = router_with(&[&fake]).await;
    for _ in 0..50 {
        assert_eq!(router.post(&[], "x").await.status(), 200);
    }
    assert_eq!(fake.count(), 50);
}

#[tokio::test]
async fn a_connection_that_breaks_on_reuse_is_tried_again_on_the_same_lone_pod() {
    let fake = Fake::start(|seen| if seen.request == 1 { Reply::Break } else { ok("x") }).await;
    let router = router_with(&[&fake]).await;
    for _ in 0..10 {
        assert_eq!(router.post(&[], "x").await.status(), 200);
    }
    assert!(retries(&router, RetryReason::Lost) > 0);
}

#[tokio::test]
async fn connections_are_used_again() {
    let fake = Fake::start(|_| ok("x")).await;
    let router = router_with(&[&fake]).await;
    for _ in 0..20 {
        assert_eq!(router.post(&[], "x").await.status(), 200);
    }
    assert_eq!(fake.seen.lock().iter().map(|seen| seen.connection).max(), Some(0));
}

#[tokio::test]
async fn what_was_not_executed_goes_elsewhere_and_an_error_of_the_model_does_not() {
    let wrong = Fake::start(|_| Reply::Answer(421, REFUSED, "not me".into())).await;
    let full = Fake::start(|_| Reply::Answer(429, REFUSED, "full".into())).await;
    let good = Fake::start(|_| ok("good")).await;
    let router = router_with(&[&wrong, &full, &good]).await;
    for _ in 0..30 {
        let response = router.post(&[], "x").await;
        assert_eq!((response.status().as_u16(), response.body().as_ref()), (200, &b"good"[..]));
    }
    assert!(retries(&router, RetryReason::NotExecuted) > 0 && retries(&router, RetryReason::Misdirected) > 0);

    for status in [400, 404, 429, 500, 503] {
        let plain = Fake::start(move |_| Reply::Answer(status, "", "mine".into())).await;
        let router = router_with(&[&plain, &good]).await;
        let before = good.count();
        let mut statuses = Vec::new();
        for _ in 0..10 {
            statuses.push(router.post(&[], "x").await.status().as_u16());
        }
        let passed = statuses.iter().filter(|code| **code == status).count();
        assert_eq!(passed, plain.count(), "{status} is passed on: {statuses:?}");
        assert_eq!(good.count() - before, 10 - passed);
    }
}

#[tokio::test]
async fn a_refusal_whose_body_never_comes_holds_nobody_up() {
    let stuck = Fake::start(|_| Reply::HeadOnly(503, REFUSED)).await;
    let good = Fake::start(|_| ok("good")).await;
    let router = router_with(&[&stuck, &good]).await;
    while stuck.count() == 0 {
        let response = timeout(Duration::from_secs(4), router.post(&[], "x")).await.expect("not held up");
        assert_eq!((response.status().as_u16(), response.body().as_ref()), (200, &b"good"[..]));
    }
    let router = router_with(&[&stuck]).await;
    let response = timeout(Duration::from_secs(4), router.post(&[], "x")).await.expect("not held up");
    assert_eq!((response.status().as_u16(), response.body().len()), (503, 0));
}

#[tokio::test]
async fn when_all_pods_are_full_their_answer_is_passed_on() {
    let one = Fake::start(|_| Reply::Answer(429, REFUSED, "full".into())).await;
    let two = Fake::start(|_| Reply::Answer(429, REFUSED, "full".into())).await;
    let router = router_with(&[&one, &two]).await;
    let response = router.post(&[], "x").await;
    assert_eq!((response.status().as_u16(), response.body().as_ref()), (429, &b"full"[..]));
    assert_eq!(response.headers()["retry-after"], "1");
    assert_eq!(response.headers()["serin-revision"], "iris-a");
    assert_eq!((one.count(), two.count()), (1, 1), "each is asked once");
}

#[tokio::test]
async fn a_body_too_large_to_be_held_passes_and_is_not_repeated() {
    let big = "x".repeat(HELD_BODY + 1);
    let echo = Fake::start(|seen| ok(seen.body.len().to_string())).await;
    let router = router_with(&[&echo]).await;
    let response = router.post(&[], big.clone()).await;
    assert_eq!(*response.body(), big.len().to_string());

    let bad = Fake::start(|_| Reply::Break).await;
    let router = router_with(&[&bad]).await;
    let response = router.post(&[], big).await;
    assert_eq!((response.status().as_u16(), cause(&response)), (502, "connection-lost"));
    assert_eq!(bad.count(), 1);

    let response = router.post(&[], vec![0; (8 << 20) + 1]).await;
    assert_eq!((response.status().as_u16(), cause(&response)), (413, "body-too-large"));
}

#[tokio::test]
async fn a_streamed_body_is_passed_on_as_it_comes_and_repeated_from_what_was_kept() {
    let bad = Fake::start(|_| Reply::Break).await;
    let good = Fake::start(|seen| ok(String::from_utf8_lossy(&seen.body))).await;
    let router = router_with(&[&bad, &good]).await;
    for _ in 0..10 {
        let stream = TcpStream::connect(("127.0.0.1", router.port)).await.expect("the router listens");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("a connection");
        tokio::spawn(connection);
        let pieces =
            ["one ", "two ", "three"].map(|piece| Ok::<_, std::io::Error>(Frame::data(Bytes::from(piece))));
        let body = StreamBody::new(futures::stream::iter(pieces));
        let request = Request::post("/").header("host", "iris").body(body).expect("a valid request");
        let response = whole(sender.send_request(request).await.expect("a response")).await;
        assert_eq!(response.status(), 200, "{response:?}");
        assert_eq!(response.body(), "4\r\none \r\n4\r\ntwo \r\n5\r\nthree\r\n0\r\n\r\n");
    }
    assert!(bad.count() > 0);
}

#[tokio::test]
async fn a_runtime_that_is_silent_for_the_timeout_is_given_up() {
    let fake = Fake::start(|_| Reply::Silence).await;
    let router = Router::start();
    let spec = RouteSpec { timeout: 1, ..RouteSpec::new(router.port) };
    router.apply([spec.change(), slice("iris-a", fake.port, &[ready("pod-0")])]).await;
    let response = router.post(&[("x-request-id", "9")], "x").await;
    assert_eq!((response.status().as_u16(), cause(&response)), (504, "timeout"));
    assert_eq!(response.headers()["x-request-id"], "9");
    timeout(Duration::from_secs(5), fake.closed.notified()).await.expect("the runtime is told");
    assert_eq!(fake.count(), 1, "silence is not repeated");
}

#[tokio::test]
async fn when_the_client_goes_the_runtime_is_told_and_nothing_is_in_flight() {
    let fake = Fake::start(|_| Reply::Silence).await;
    let router = router_with(&[&fake]).await;
    let mut client = TcpStream::connect(("127.0.0.1", router.port)).await.expect("the router listens");
    client.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx").await.expect("sent");
    fake.came.notified().await;
    let report = router.acks.poll(0, Duration::ZERO).await;
    assert_eq!(report.routes[0].revisions["iris-a"].in_flight, 1);
    drop(client);
    timeout(Duration::from_secs(5), fake.closed.notified()).await.expect("the runtime is told");
    let report = router.acks.poll(0, Duration::ZERO).await;
    assert_eq!(report.routes[0].revisions["iris-a"].in_flight, 0);
}

#[tokio::test]
async fn requests_wait_for_the_first_pod() {
    let fake = Fake::start(|_| ok("late")).await;
    let router = Router::start();
    router.apply([RouteSpec::new(router.port).change()]).await;
    let port = router.port;
    let waiting: Vec<_> = (0..4).map(|_| tokio::spawn(send(port, post(&[], "x")))).collect();
    let state = router.context.tables.load().by_port(port).expect("the route").state.clone();
    timeout(Duration::from_secs(5), async {
        while state.waiting.load(Ordering::Relaxed) < 4 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("four requests wait");
    let fifth = router.post(&[], "x").await;
    assert_eq!((fifth.status().as_u16(), cause(&fifth)), (503, "hold-queue-full"));
    router.apply([slice("iris-a", fake.port, &[ready("pod-0")])]).await;
    for response in waiting {
        assert_eq!(response.await.expect("no panic").body(), "late");
    }
    assert_eq!(state.waiting.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn the_wait_ends_with_the_cause() {
    let router = Router::start();
    let spec = RouteSpec { hold: 1, ..RouteSpec::new(router.port) };
    router.apply([spec.change()]).await;
    let response = router.post(&[], "x").await;
    assert_eq!((response.status().as_u16(), cause(&response)), (503, "no-endpoint"));
    let body: serde_json::Value = serde_json::from_slice(response.body()).expect("JSON");
    assert_eq!(body["cause"], "no-endpoint");
    assert_eq!(body["error"], "no endpoint of `iris` was ready within 1 s");
}

#[tokio::test]
async fn a_lone_pod_that_restarts_is_reached_again_within_the_hold_time() {
    let port = free_port();
    let router = Router::start();
    router.apply([RouteSpec::new(router.port).change(), slice("iris-a", port, &[ready("pod-0")])]).await;
    let request = tokio::spawn(send(router.port, post(&[], "x")));
    let state = router.context.tables.load().by_port(router.port).expect("the route").state.clone();
    timeout(Duration::from_secs(5), async {
        while state.waiting.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the request waits");
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.expect("the port is free again");
    let (mut stream, _) = listener.accept().await.expect("the router comes again");
    let mut buffer = [0; 1024];
    let _ = stream.read(&mut buffer).await.expect("a request");
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.expect("answered");
    assert_eq!(request.await.expect("no panic").status(), 200);
}

#[tokio::test]
async fn pins_choose_and_never_leave_their_revision() {
    let stable = Fake::start(|_| ok("a")).await;
    let canary = Fake::start(|_| ok("b")).await;
    let router = Router::start();
    let spec = RouteSpec::new(router.port).canary(0);
    let changes = [
        spec.change(),
        slice("iris-a", stable.port, &[ready("pod-a")]),
        slice("iris-b", canary.port, &[ready("pod-b")]),
    ];
    router.apply(changes).await;
    for (pin, answer) in [("canary", "b"), ("stable", "a"), ("iris-a", "a"), ("iris-b", "b")] {
        let response = router.post(&[("serin-revision", pin)], "x").await;
        assert_eq!(*response.body(), answer, "{pin}");
        assert_eq!(response.headers()["serin-revision"], format!("iris-{answer}"));
    }
    let response = router.post(&[("serin-revision", "iris-x")], "x").await;
    assert_eq!((response.status().as_u16(), cause(&response)), (404, "unknown-revision"));
    let text = String::from_utf8_lossy(response.body()).into_owned();
    assert!(text.contains("iris-a, iris-b, stable, canary"), "{text}");
    let mut gone = ready("pod-b");
    (gone.ready, gone.serving) = (false, false);
    router.apply([slice("iris-b", canary.port, &[gone])]).await;
    let response = router.post(&[("serin-revision", "canary")], "x").await;
    assert_eq!((response.status().as_u16(), cause(&response)), (503, "no-endpoint"));
    assert_eq!(router.post(&[], "x").await.body(), "a");
}

#[tokio::test]
async fn the_other_revision_stands_in_only_where_it_has_a_share() {
    let canary = Fake::start(|_| ok("b")).await;
    let router = Router::start();
    let none = RouteSpec { hold: 1, ..RouteSpec::new(router.port).canary(0) };
    router.apply([none.change(), slice("iris-b", canary.port, &[ready("pod-b")])]).await;
    let response = router.post(&[], "x").await;
    assert_eq!(
        (response.status().as_u16(), cause(&response)),
        (503, "no-endpoint"),
        "0 % is never a fallback"
    );
    router.apply([none.next().canary(100).change()]).await;
    assert_eq!(router.post(&[], "x").await.body(), "b", "stable has nothing, the canary has a share");

    let stable = Fake::start(|_| ok("a")).await;
    let gone = free_port();
    let mut ended = ready("pod-b");
    (ended.ready, ended.serving, ended.terminating) = (false, false, true);
    let changes = [
        none.next().next().canary(10_000).change(),
        slice("iris-a", stable.port, &[ready("pod-a")]),
        slice("iris-b", canary.port, &[ended]),
        slice("iris-b", gone, &[ready("pod-c")]),
    ];
    router.apply(changes).await;
    let response = router.post(&[], "x").await;
    assert_eq!(response.body(), "a", "the canary's pod cannot be reached: stable takes over");
}

#[tokio::test]
async fn the_split_is_exact_and_a_change_takes_effect_at_once() {
    let stable = Fake::start(|_| ok("a")).await;
    let canary = Fake::start(|_| ok("b")).await;
    let router = Router::start();
    let mut spec = RouteSpec::new(router.port);
    let pods =
        [slice("iris-a", stable.port, &[ready("pod-a")]), slice("iris-b", canary.port, &[ready("pod-b")])];
    router.apply(pods).await;
    for share in [1000, 5000, 9000, 10_000, 0] {
        spec = spec.next().canary(share);
        let report = router.apply([spec.change()]).await;
        assert_eq!(report.routes[0].revisions["iris-b"].share, share);
        assert_eq!(report.routes[0].revisions["iris-a"].share, 10_000 - share);
        assert_eq!(report.routes[0].generation, spec.generation);
        let before = canary.count();
        for _ in 0..200 {
            assert_eq!(router.post(&[], "x").await.status(), 200);
        }
        let expected = f64::from(share) * 200.0 / 10_000.0;
        let got = (canary.count() - before) as f64;
        assert!((got - expected).abs() <= 5.0, "{got} of 200 at {share}");
    }
}

#[tokio::test]
async fn what_cannot_be_forwarded_is_refused() {
    let fake = Fake::start(|_| ok("")).await;
    let router = router_with(&[&fake]).await;
    let response = router.post(&[("connection", "upgrade"), ("upgrade", "websocket")], "").await;
    assert_eq!((response.status().as_u16(), cause(&response)), (501, "not-supported"));
    assert_eq!(fake.count(), 0);
}

#[tokio::test]
async fn http2_streams_both_ways_with_trailers() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);
    static HTTP2: AtomicBool = AtomicBool::new(false);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            CONNECTIONS.fetch_add(1, Ordering::Relaxed);
            let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
                HTTP2.store(request.version() == http::Version::HTTP_2, Ordering::Relaxed);
                assert_eq!(request.headers()["te"], "trailers");
                // The body goes back as it comes: trailers included.
                Ok::<_, std::convert::Infallible>(http::Response::new(request.into_body()))
            });
            let executor = hyper_util::rt::TokioExecutor::new();
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(executor)
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    let router = Router::start();
    router.apply([RouteSpec::new(router.port).change(), slice("iris-a", port, &[ready("pod-0")])]).await;
    let mut sender = http2(router.port).await;
    let (pieces, receiver) = tokio::sync::mpsc::unbounded_channel();
    let body = StreamBody::new(tokio_stream::wrappers::UnboundedReceiverStream::new(receiver)).boxed();
    let request =
        Request::post("http://iris/grpc.Service/Call").header("te", "trailers").body(body).expect("valid");
    pieces.send(Ok(Frame::data(Bytes::from("one")))).expect("the body is open");
    let response = sender.send_request(request).await.expect("a response");
    assert_eq!(response.headers()["serin-revision"], "iris-a");
    let mut body = response.into_body();
    let mut next = async || body.frame().await.expect("a frame").expect("whole");
    assert_eq!(next().await.into_data().expect("data"), "one");
    pieces.send(Ok(Frame::data(Bytes::from("two")))).expect("the body is open");
    assert_eq!(next().await.into_data().expect("data"), "two");
    let trailers = http::HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        http::HeaderValue::from_static("0"),
    )]);
    pieces.send(Ok(Frame::trailers(trailers.clone()))).expect("the body is open");
    drop(pieces);
    assert_eq!(next().await.into_trailers().expect("trailers"), trailers);
    assert!(HTTP2.load(Ordering::Relaxed));

    // Requests that follow share the connection.
    for _ in 0..10 {
        let request =
            Request::post("http://iris/x").header("te", "trailers").body(Full::new(Bytes::from("x")).boxed());
        let response = sender.send_request(request.expect("valid")).await.expect("a response");
        assert_eq!(whole(response).await.body(), "x");
    }
    assert_eq!(CONNECTIONS.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_grpc_client_gets_its_own_kind_of_error() {
    let router = Router::start();
    router.apply([RouteSpec::new(router.port).change()]).await;
    let mut sender = http2(router.port).await;
    let request = Request::post("http://iris/x")
        .header("content-type", "application/grpc")
        .header("serin-revision", "nobody")
        .body(Full::new(Bytes::new()).boxed())
        .expect("valid");
    let response = sender.send_request(request).await.expect("a response");
    assert_eq!(response.headers()["grpc-status"], "5");
    assert_eq!(cause(&response), "unknown-revision");
}

#[tokio::test]
async fn an_http1_client_is_told_to_leave_once_the_router_closes() {
    let fake = Fake::start(|_| ok("x")).await;
    let router = router_with(&[&fake]).await;
    let stream = TcpStream::connect(("127.0.0.1", router.port)).await.expect("the router listens");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("a connection");
    let ended = tokio::spawn(connection);
    let response = whole(sender.send_request(post(&[], "x")).await.expect("a response")).await;
    assert!(!response.headers().contains_key("connection"));
    router.context.closing.store(true, Ordering::SeqCst);
    sender.ready().await.expect("the connection is kept until it is used");
    let response = whole(sender.send_request(post(&[], "x")).await.expect("a response")).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["connection"], "close");
    timeout(Duration::from_secs(5), ended).await.expect("it ends").expect("no panic").expect("in good order");
}

#[tokio::test]
async fn the_operator_hears_when_a_revision_without_share_is_idle() {
    let stable = Fake::start(|_| ok("a")).await;
    let canary = Fake::start(|_| Reply::Silence).await;
    let router = Router::start();
    let spec = RouteSpec::new(router.port).canary(10_000);
    let changes = [
        spec.change(),
        slice("iris-a", stable.port, &[ready("pod-a")]),
        slice("iris-b", canary.port, &[ready("pod-b")]),
    ];
    let report = router.apply(changes).await;
    assert_eq!(report.pod_uid, "router-uid");
    assert_eq!(report.routes[0].route_uid, "uid-iris");
    assert_eq!(report.routes[0].revisions["iris-b"].endpoints, ["pod-b"]);
    let mut client = TcpStream::connect(("127.0.0.1", router.port)).await.expect("the router listens");
    client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
    canary.came.notified().await;
    // The route drops the canary: its request goes on, and the acknowledgement says so.
    let without = RouteSpec { canary: None, share: 0, ..spec.next() };
    let report = router.apply([without.change()]).await;
    assert_eq!(report.routes[0].generation, 2);
    assert_eq!(report.routes[0].revisions["iris-b"].in_flight, 1);
    assert_eq!(report.routes[0].revisions["iris-b"].share, 0);
    let (acks, version) = (router.acks.clone(), report.version);
    let poll = tokio::spawn(async move { acks.poll(version, Duration::from_secs(10)).await });
    drop(client);
    let report = timeout(Duration::from_secs(5), poll).await.expect("the poll returns").expect("no panic");
    assert!(report.version > version);
    assert!(!report.routes[0].revisions.contains_key("iris-b"), "nothing is left of it: {report:?}");
    let quiet = router.acks.poll(report.version, Duration::from_millis(50)).await;
    assert_eq!((quiet.version, quiet.routes.len()), (report.version, 0));
}

#[tokio::test]
async fn what_stable_has_no_room_for_does_not_spill_onto_the_canary() {
    let full = Fake::start(|_| Reply::Answer(429, REFUSED, "full".into())).await;
    let canary = Fake::start(|_| ok("b")).await;
    let router = Router::start();
    let changes = [
        RouteSpec { size: 10, ..RouteSpec::new(router.port) }.canary(1).change(),
        slice("iris-a", full.port, &[ready("pod-a")]),
        slice("iris-b", canary.port, &[ready("pod-b")]),
    ];
    router.apply(changes).await;
    assert_eq!(router.post(&[("serin-revision", "stable")], "x").await.status(), 429);
    let mut answers = Vec::new();
    for _ in 0..20 {
        answers.push(router.post(&[], "x").await.status().as_u16());
    }
    assert!(answers.iter().filter(|status| **status == 429).count() >= 19, "{answers:?}");

    let router = Router::start();
    let changes = [
        RouteSpec::new(router.port).canary(10_000).change(),
        slice("iris-a", canary.port, &[ready("pod-a")]),
        slice("iris-b", full.port, &[ready("pod-b")]),
    ];
    router.apply(changes).await;
    assert_eq!(router.post(&[], "x").await.status(), 200, "stable helps the canary");
}

/// A runtime that speaks HTTP/2: the n-th connection answers `streams[n]` requests, then refuses or leaves.
async fn http2_fake(refuse: bool, streams: &'static [usize]) -> (u16, &'static AtomicUsize) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let answered: &'static AtomicUsize = Box::leak(Box::default());
    tokio::spawn(async move {
        for count in streams.iter().chain(std::iter::repeat(&usize::MAX)) {
            let (stream, _) = listener.accept().await.expect("a connection");
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.expect("a handshake");
                let mut left = *count;
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    if left == 0 && refuse {
                        respond.send_reset(h2::Reason::REFUSED_STREAM);
                        continue;
                    }
                    drop(request);
                    left = left.saturating_sub(1);
                    answered.fetch_add(1, Ordering::Relaxed);
                    let mut body = respond.send_response(http::Response::new(()), false).expect("sent");
                    body.send_data(Bytes::from("x"), true).expect("sent");
                    if left == 0 && !refuse {
                        connection.graceful_shutdown();
                    }
                }
            });
        }
    });
    (port, answered)
}

async fn http2_posts(router: &Router, count: usize) {
    let mut sender = http2(router.port).await;
    for _ in 0..count {
        let request =
            Request::post("http://iris/x").body(Full::new(Bytes::from("y")).boxed()).expect("valid");
        let response = whole(sender.send_request(request).await.expect("a response")).await;
        assert_eq!((response.status().as_u16(), response.body().as_ref()), (200, &b"x"[..]), "{response:?}");
    }
}

#[tokio::test]
async fn a_stream_that_was_refused_goes_to_another_pod() {
    let ((busy, _), (good, answered)) = (http2_fake(true, &[0]).await, http2_fake(true, &[]).await);
    let router = Router::start();
    let changes = [
        RouteSpec::new(router.port).change(),
        slice("iris-a", busy, &[ready("pod-0")]),
        slice("iris-a", good, &[ready("pod-1")]),
    ];
    router.apply(changes).await;
    http2_posts(&router, 20).await;
    assert_eq!(answered.load(Ordering::Relaxed), 20);
    assert!(retries(&router, RetryReason::Refused) > 0);
}

#[tokio::test]
async fn a_connection_that_goes_away_in_good_order_costs_nothing() {
    let (port, answered) = http2_fake(false, &[1, 2, 3, 1, 1]).await;
    let router = Router::start();
    router.apply([RouteSpec::new(router.port).change(), slice("iris-a", port, &[ready("pod-0")])]).await;
    http2_posts(&router, 20).await;
    assert_eq!(answered.load(Ordering::Relaxed), 20);
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let fake = Fake::start(|_| ok("")).await;
    let router = router_with(&[&fake]).await;
    let mut silent = TcpStream::connect(("127.0.0.1", router.port)).await.expect("the router listens");
    let mut slow = TcpStream::connect(("127.0.0.1", router.port)).await.expect("the router listens");
    slow.write_all(b"POST / HTTP/1.1\r\nhost: ").await.expect("sent");
    for connection in [&mut silent, &mut slow] {
        let read =
            timeout(Duration::from_secs(60), connection.read(&mut [0; 1])).await.expect("closed by then");
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    }
}
