//! The ledger sees what it is there to see: a server that does everything wrong that a server can, request by request, and
//! the account of it. Real sockets, no cluster.

use std::collections::BTreeMap;

use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use serin_e2e::traffic::generator::Load;
use serin_e2e::traffic::wire::{Case, Expected, LoadSpec, Protocol};
use serin_e2e::traffic::{Verdict, verdict};

/// What the server does with a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    Right,
    RightThenClose,
    OtherModel,
    NobodysAnswer,
    OtherId,
    NoRevision,
    Unavailable,
    Truncated,
    HangUp,
    Silence,
}

/// Serves on a port of its own; the manner of a request is chosen by its number.
async fn serve(manner: fn(u64) -> Manner) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address").to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(connection(stream, manner));
        }
    });
    address
}

async fn connection(stream: TcpStream, manner: fn(u64) -> Manner) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut id, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            match line.trim().to_lowercase().split_once(": ") {
                Some(("x-request-id", value)) => id = value.to_owned(),
                Some(("content-length", value)) => length = value.parse().unwrap_or(0),
                None if line.trim().is_empty() => break,
                _ => {}
            }
        }
        stream.read_exact(&mut vec![0; length]).await?;
        let number = id.rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or(0);
        let manner = manner(number);
        match manner {
            Manner::HangUp => return Ok(()),
            Manner::Silence => std::future::pending().await,
            _ => stream.write_all(answer(manner, &id).as_bytes()).await?,
        }
        if matches!(manner, Manner::Truncated | Manner::RightThenClose) {
            return stream.shutdown().await;
        }
    }
}

fn answer(manner: Manner, id: &str) -> String {
    let label = match manner {
        Manner::OtherModel => 1,
        Manner::NobodysAnswer => 2,
        _ => 0,
    };
    let body = json!({"predictions": [{"label": label}]}).to_string();
    let id = if manner == Manner::OtherId { "iris-0" } else { id };
    let revision = if manner == Manner::NoRevision { "" } else { "serin-revision: iris-one\r\n" };
    let length = body.len() + if manner == Manner::Truncated { 10 } else { 0 };
    let status =
        if manner == Manner::Unavailable { "503 Unavailable\r\nserin-cause: no-endpoint" } else { "200 OK" };
    format!("HTTP/1.1 {status}\r\nx-request-id: {id}\r\n{revision}content-length: {length}\r\n\r\n{body}")
}

async fn run(manner: fn(u64) -> Manner, requests: u64) -> Verdict {
    let expected = |label: f64| Expected::Outputs([("label".to_owned(), vec![label])].into());
    let case = Case {
        protocol: Protocol::V1,
        path: "/v1/models/iris:predict".to_owned(),
        body: r#"{"instances": [[1.0]]}"#.to_owned(),
        expected: [("a".to_owned(), expected(0.0)), ("b".to_owned(), expected(1.0))].into(),
    };
    let spec = LoadSpec {
        name: "iris".to_owned(),
        target: serve(manner).await,
        model: "iris".to_owned(),
        rate: 500.0,
        connections: 4,
        timeout_ms: 500,
        cases: vec![case],
    };
    let load = Load::start(spec).await.expect("the server takes connections");
    load.until(|ledger| ledger.completed_in_phase() >= requests).await;
    load.stop().await;
    let models = BTreeMap::from([("iris-one".to_owned(), "a".to_owned())]);
    verdict::Verdict::new(&load.report(), &models)
}

#[tokio::test]
async fn a_server_without_fault_loses_nothing() {
    let verdict = run(|_| Manner::Right, 200).await;
    assert!(verdict.sent >= 200);
    assert_eq!((verdict.lost, verdict.answered.get("iris-one")), (0, Some(&verdict.sent)), "{verdict:#?}");
    assert_eq!((verdict.reopened, verdict.resent), (0, 0));
}

#[tokio::test]
async fn connections_that_end_between_requests_lose_nothing() {
    let verdict =
        run(|number| if number % 3 == 0 { Manner::RightThenClose } else { Manner::Right }, 200).await;
    assert_eq!(verdict.lost, 0, "{verdict:#?}");
    assert!(verdict.reopened > 0, "{verdict}");
}

#[tokio::test]
async fn every_fault_is_a_loss_of_its_kind() {
    for (manner, kind) in [
        (Manner::NobodysAnswer, "content: answer of no known model"),
        (Manner::OtherModel, "revision iris-one gave what model b answers, but it serves a"),
        (Manner::OtherId, "id: expected x-request-id iris-"),
        (Manner::NoRevision, "revision: no header serin-revision"),
        (Manner::Unavailable, "status: expected status 200, got 503"),
        (Manner::Truncated, "truncated: "),
        (Manner::HangUp, "connection: "),
        (Manner::Silence, "timeout: no complete answer within 500ms"),
    ] {
        static FAULT: parking_lot::Mutex<Manner> = parking_lot::Mutex::new(Manner::Right);
        *FAULT.lock() = manner;
        // Each tenth request meets the fault; the others are right.
        let verdict = run(|number| if number % 10 == 0 { *FAULT.lock() } else { Manner::Right }, 100).await;
        assert_eq!(verdict.lost, verdict.sent / 10, "{manner:?}: {verdict:#?}");
        assert!(verdict.losses[0].contains(kind), "{manner:?}: expected {kind:?} in {:?}", verdict.losses[0]);
        if manner == Manner::Unavailable {
            assert!(verdict.losses[0].contains("cause no-endpoint"), "{:?}", verdict.losses[0]);
        }
    }
}

#[tokio::test]
async fn the_rate_does_not_follow_a_slow_server() {
    // The first request is given up after 500 ms. By then 500/s have been sent, although not one was answered.
    let verdict = run(|_| Manner::Silence, 1).await;
    assert!(verdict.sent >= 200, "sent {}", verdict.sent);
    assert_eq!(verdict.lost, verdict.sent);
}
