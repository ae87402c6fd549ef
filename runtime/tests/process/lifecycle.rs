//! From start to end: before the model is ready, while too much is asked, and after the signal to stop.

use crate::support::{Server, input, model, request};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A request that keeps the model busy for about this many milliseconds.
fn busy(milliseconds: u64) -> String {
    let rounds = input("rounds", "INT64", &[1], json!([milliseconds * 380]));
    request(&[rounds, input("x", "FP32", &[1, 64], json!(vec![1.0; 64]))]).to_string()
}

const INFER: &str = "/v2/models/repeat/infer";

/// Sends a request that goes on while the test does something else.
fn begin(client: &reqwest::Client, server: &Server, body: String) -> JoinHandle<reqwest::Response> {
    let request = client.post(format!("{}{INFER}", server.url)).body(body).send();
    tokio::spawn(async { request.await.expect("an answer") })
}

/// Waits until the server has this many requests in hand.
async fn in_flight(server: &Server, count: usize) {
    let line = format!("serin_runtime_requests_in_flight {count}");
    loop {
        let answer = server.client.get(format!("{}/metrics", server.admin)).send().await.expect("an answer");
        if answer.text().await.expect("a body").lines().any(|got| got == line) {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn before_the_model_is_there_nothing_is_executed() {
    // A store that accepts and says nothing.
    let store = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let uri = format!("http://{}/iris.onnx", store.local_addr().expect("an address"));
    let mut server = Server::launch(&uri, &[], &[]);
    let (mut connection, _) = store.accept().await.expect("the server fetches");
    assert_eq!(server.get("/v2/health/live").await.0, 200);
    assert_eq!(server.get("/v2/health/ready").await, (503, json!({ "ready": false, "phase": "fetching" })));
    assert_eq!(server.get("/v2/models/iris/ready").await, (503, json!({ "name": "iris", "ready": false })));
    assert_eq!(server.get("/v1/models/iris").await.0, 503);
    let readyz = server.client.get(format!("{}/readyz", server.admin)).send().await.expect("an answer");
    assert_eq!(readyz.status(), 503);
    assert_eq!(readyz.text().await.expect("a body"), "fetching: 0 bytes fetched\n");
    let request = server.client.post(format!("{}/v1/models/iris:predict", server.url)).body("{}");
    let answer = request.send().await.expect("an answer");
    assert_eq!(
        (answer.status().as_u16(), answer.headers()["serin-not-executed"].as_bytes()),
        (503, &b"true"[..])
    );
    let error: Value = serde_json::from_str(&answer.text().await.expect("a body")).expect("JSON");
    assert_eq!(error, json!({ "error": "model `iris` is not ready: fetching" }));
    // Now it comes.
    let file = std::fs::read(model("iris-a.onnx")).expect("a file");
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", file.len());
    tokio::io::AsyncWriteExt::write_all(&mut connection, &[head.as_bytes(), &file].concat())
        .await
        .expect("sent");
    server.logged("ready");
    server.infer("/v1/models/iris:predict", json!({ "instances": [[5.1, 3.5, 1.4, 0.2]] })).await;
}

#[tokio::test]
async fn the_start_raises_the_limit_of_open_files_and_shows_no_secret() {
    // A store that accepts and says nothing.
    let store = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = store.local_addr().expect("an address");
    let uri = format!("http://me:secret@{address}/iris.onnx?token=secret");
    let server = Server::launch(&uri, &[], &[]);
    let (soft, hard) = server.file_limits();
    assert!(soft == hard && soft != "256", "{soft} of {hard}");
    let status = server.client.get(format!("{}/status", server.admin)).send().await.expect("an answer");
    let status: Value = serde_json::from_str(&status.text().await.expect("a body")).expect("JSON");
    assert_eq!(status["settings"]["uri"], format!("http://{address}/iris.onnx"));
    server.signal("TERM");
    let (_, lines) = server.end().await;
    assert!(lines.len() > 1 && !lines.concat().contains("secret"), "{lines:?}");
}

#[tokio::test]
async fn what_can_never_load_ends_the_program_with_its_reason() {
    let directory = tempfile::tempdir().expect("a directory");
    let check = async |uri: &str, reason: &str, message: &str| {
        let log = directory.path().join(reason);
        let flags = ["--termination-log", log.to_str().expect("UTF-8")];
        let (status, _) = Server::launch(uri, &flags, &[]).end().await;
        assert_eq!(status.code(), Some(3), "{uri}");
        let written = std::fs::read_to_string(&log).expect("a termination log");
        let line: Value = serde_json::from_str(written.trim_end()).expect("one line of JSON");
        assert_eq!(line["reason"], reason, "{line}");
        assert!(line["message"].as_str().is_some_and(|got| got.contains(message)), "{line}");
    };
    let path = |name: &str| model(name).to_string_lossy().into_owned();
    check(&path("broken.onnx"), "ModelLoadFailed", "ONNX Runtime cannot load").await;
    check("/nowhere/iris.onnx", "ModelNotFound", "cannot read `/nowhere/iris.onnx`").await;
    check("gs://bucket/iris.onnx", "InvalidModelUri", "scheme `gs` is not known").await;
    check("pvc://claim/../x", "InvalidModelUri", "may not leave the volume").await;
    let only = "no output of the model can be served as a tensor: `parts` (Sequence<Tensor<f32>()>)";
    check(&path("dtypes/sequence-only.onnx"), "ModelUnsupported", only).await;
}

#[tokio::test]
async fn a_missing_library_is_named() {
    let flags = ["--onnxruntime", "/nowhere/libonnxruntime.so"];
    let (status, log) = Server::launch(&model("iris-a.onnx").to_string_lossy(), &flags, &[]).end().await;
    assert_eq!(status.code(), Some(3));
    assert!(
        log.iter().any(|line| line.contains("cannot load ONNX Runtime from `/nowhere/libonnxruntime.so`")),
        "{log:?}"
    );
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_serin-runtime"));
    let output =
        command.args(["serve", "x.onnx", "--host", "127.0.0.1", "--port", &port]).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(&format!("cannot listen on 127.0.0.1:{port} (--port)")), "{text}");
}

#[tokio::test]
async fn a_full_queue_refuses_and_says_when_to_come_back() {
    let server = Server::start("dtypes/repeat.onnx", &["--queue-size", "1", "--threads", "1"]);
    let running = begin(&server.client, &server, busy(2000));
    in_flight(&server, 1).await;
    // One runs or waits, and of ten more at most two find a place.
    let more: Vec<_> = (0..10).map(|_| begin(&server.client, &server, busy(1))).collect();
    let (mut served, mut refused) = (0, 0);
    for answer in futures::future::join_all(more).await {
        let answer = answer.expect("no panic");
        if answer.status() == 200 {
            served += 1;
            continue;
        }
        refused += 1;
        assert_eq!(
            (answer.status().as_u16(), answer.headers()["serin-not-executed"].as_bytes()),
            (429, &b"true"[..])
        );
        let seconds = answer.headers()["retry-after"].to_str().map(str::parse);
        assert!(matches!(seconds, Ok(Ok(1..=60_u64))), "{seconds:?}");
        assert_eq!(answer.text().await.expect("a body"), r#"{"error":"the queue is full: 1 requests wait"}"#);
    }
    assert!(served >= 1 && refused >= 8, "{served} served, {refused} refused");
    assert_eq!(running.await.expect("no panic").status(), 200);
}

#[tokio::test]
async fn a_deadline_is_kept_while_the_model_runs() {
    let server = Server::start("dtypes/repeat.onnx", &["--timeout", "0.2", "--threads", "1"]);
    let started = Instant::now();
    let (status, answer) = server.post(INFER, busy(3000)).await;
    assert_eq!(status, 504, "{answer}");
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

#[tokio::test]
async fn who_hangs_up_is_not_worked_for() {
    let server = Server::start("dtypes/repeat.onnx", &["--threads", "1"]);
    let running = begin(&server.client, &server, busy(1000));
    in_flight(&server, 1).await;
    // Twenty more that would take a minute; all of them leave.
    let leaving: Vec<_> = (0..20).map(|_| begin(&server.client, &server, busy(3000))).collect();
    in_flight(&server, 21).await;
    for request in leaving {
        request.abort();
    }
    in_flight(&server, 1).await;
    assert_eq!(running.await.expect("no panic").status(), 200);
    let started = Instant::now();
    assert_eq!(server.post(INFER, busy(1)).await.0, 200);
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
}

#[tokio::test]
async fn an_interrupt_ends_an_idle_server_at_once() {
    let server = Server::start("iris-a.onnx", &[]);
    let started = Instant::now();
    server.signal("INT");
    let (status, _) = server.end().await;
    assert_eq!(status.code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_signal_while_the_model_is_fetched_ends_at_once() {
    let store = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let uri = format!("http://{}/iris.onnx", store.local_addr().expect("an address"));
    let server = Server::launch(&uri, &["--drain-idle", "30"], &[]);
    let _connection = store.accept().await.expect("the server fetches");
    server.signal("TERM");
    assert_eq!(server.end().await.0.code(), Some(0));
}

#[tokio::test]
async fn after_sigterm_it_serves_on_until_it_is_quiet() {
    let mut server = Server::start("dtypes/repeat.onnx", &["--drain-idle", "1", "--threads", "1"]);
    let running = begin(&server.client, &server, busy(1500));
    in_flight(&server, 1).await;
    server.signal("TERM");
    server.logged("draining");
    // Still ready, and a new connection is served too, but told to come no more.
    assert_eq!(server.get("/v2/health/ready").await.0, 200);
    let readyz = server.client.get(format!("{}/readyz", server.admin)).send().await.expect("an answer");
    assert_eq!(readyz.status(), 200);
    let answer = crate::support::client().post(format!("{}{INFER}", server.url)).body(busy(1)).send();
    let answer = answer.await.expect("an answer");
    assert_eq!((answer.status().as_u16(), answer.headers()["connection"].as_bytes()), (200, &b"close"[..]));
    assert_eq!(running.await.expect("no panic").status(), 200);
    let quiet_since = Instant::now();
    let (status, log) = server.end().await;
    assert_eq!(status.code(), Some(0));
    assert!(log.iter().any(|line| line.contains("drained")), "{log:?}");
    assert!(quiet_since.elapsed() >= Duration::from_millis(900), "{:?}", quiet_since.elapsed());
}

#[tokio::test]
async fn http_2_streams_in_flight_at_the_end_are_answered() {
    let mut server = Server::start("dtypes/repeat.onnx", &["--drain-idle", "0", "--threads", "1"]);
    let builder = reqwest::Client::builder().no_proxy().tls_certs_only([]).http2_prior_knowledge();
    let client = builder.build().expect("a client");
    let running = begin(&client, &server, busy(800));
    in_flight(&server, 1).await;
    server.signal("TERM");
    server.logged("draining");
    let answer = running.await.expect("no panic");
    assert_eq!((answer.status().as_u16(), answer.version()), (200, http::Version::HTTP_2));
    drop(answer);
    assert_eq!(server.end().await.0.code(), Some(0));
}

#[tokio::test]
async fn the_drain_has_a_limit_and_a_second_signal_ends_it() {
    let server = Server::start("dtypes/repeat.onnx", &["--drain-idle", "600", "--drain-limit", "0.5"]);
    server.signal("TERM");
    assert_eq!(server.end().await.0.code(), Some(0));
    let mut server = Server::start("dtypes/repeat.onnx", &["--drain-idle", "600", "--drain-limit", "600"]);
    server.signal("TERM");
    server.logged("draining");
    server.signal("INT");
    assert_eq!(server.end().await.0.code(), Some(0));
}

#[tokio::test]
async fn at_the_limit_what_still_runs_is_cut_short() {
    let server = Server::start("dtypes/repeat.onnx", &["--drain-limit", "0.5", "--threads", "1"]);
    let running = server.client.post(format!("{}{INFER}", server.url)).body(busy(60_000)).send();
    let running = tokio::spawn(running);
    in_flight(&server, 1).await;
    server.signal("TERM");
    let (status, log) = server.end().await;
    assert_eq!(status.code(), Some(0), "{log:?}");
    // The connection may be gone before the answer is written; what must not come is an answer that looks right.
    if let Ok(answer) = running.await.expect("no panic") {
        assert_eq!(answer.status(), 500);
    }
}
