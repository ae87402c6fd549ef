//! The long poll of one router: connects, asks, hands every answer on, and begins anew after any error. IO only.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serin_crds::acks::AckReport;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::Acks;
use crate::causes::causes;

const CONNECT: Duration = Duration::from_secs(1);
/// How long a router may wait for news before it answers with none.
const WAIT_SECONDS: u64 = 30;
/// An answer that is this much later than promised will not come.
const GRACE: Duration = Duration::from_secs(3);
/// The first question of a connection is answered at once.
const FIRST_ANSWER: Duration = Duration::from_secs(3);
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// More than ten thousand routes with thousands of pods fit into it.
const LARGEST_ANSWER: usize = 64 * 1024 * 1024;

/// Why a connection ended.
#[derive(Debug, Error)]
enum Error {
    #[error("failed to connect")]
    Connect(#[source] std::io::Error),
    #[error("no answer in time")]
    Late,
    #[error("failed to ask")]
    Ask(#[source] hyper::Error),
    #[error("failed to read the answer: {0}")]
    Read(Box<dyn std::error::Error + Send + Sync>),
    #[error("answered {0}")]
    Status(http::StatusCode),
    #[error("the answer is not a report")]
    Parse(#[source] serde_json::Error),
    #[error("the router is pod {0}: the address has changed hands")]
    OtherPod(String),
}

/// Polls a router until the task is aborted.
pub(super) async fn poll(acks: Acks, pod_uid: String, address: SocketAddr) {
    let mut pause = SHORTEST_PAUSE;
    loop {
        let mut answered = false;
        let error = converse(&acks, &pod_uid, address, &mut answered).await;
        acks.lose(&pod_uid);
        tracing::debug!(pod.uid = pod_uid, %address, error = causes(&error), "router not heard");
        pause = if answered { SHORTEST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
        sleep(pause).await;
    }
}

/// One connection, until it fails.
async fn converse(acks: &Acks, pod_uid: &str, address: SocketAddr, answered: &mut bool) -> Error {
    let (mut sender, _connection) = match connect(address).await {
        Ok(connected) => connected,
        Err(error) => return error,
    };
    let mut since = 0;
    loop {
        let first = since == 0;
        let patience = if first { FIRST_ANSWER } else { Duration::from_secs(WAIT_SECONDS) + GRACE };
        let report = match timeout(patience, ask(&mut sender, address, since)).await {
            Ok(Ok(report)) => report,
            Ok(Err(error)) => return error,
            Err(_) => return Error::Late,
        };
        if report.pod_uid != pod_uid {
            return Error::OtherPod(report.pod_uid);
        }
        *answered = true;
        since = report.version;
        acks.take(pod_uid, report, first);
    }
}

/// Ends the connection's task with the conversation.
struct Connection(AbortHandle);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn connect(address: SocketAddr) -> Result<(SendRequest<Empty<Bytes>>, Connection), Error> {
    let stream = timeout(CONNECT, TcpStream::connect(address)).await.map_err(|_| Error::Late)?;
    let stream = stream.map_err(Error::Connect)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(Error::Ask)?;
    Ok((sender, Connection(tokio::spawn(connection).abort_handle())))
}

async fn ask(
    sender: &mut SendRequest<Empty<Bytes>>,
    address: SocketAddr,
    since: u64,
) -> Result<AckReport, Error> {
    let request = http::Request::get(format!("/v1/acks?since={since}&wait={WAIT_SECONDS}"))
        .header(http::header::HOST, address.to_string())
        .body(Empty::new());
    let request = request.map_err(|error| Error::Read(error.into()))?;
    sender.ready().await.map_err(Error::Ask)?;
    let response = sender.send_request(request).await.map_err(Error::Ask)?;
    if response.status() != http::StatusCode::OK {
        return Err(Error::Status(response.status()));
    }
    let body = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await.map_err(Error::Read)?;
    serde_json::from_slice(&body.to_bytes()).map_err(Error::Parse)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use axum::extract::{Query, State};
    use axum::routing::get;
    use axum::{Json, Router};
    use serin_crds::acks::RouteAck;
    use tokio::net::TcpListener;

    use super::*;
    use crate::acks::{Router as Polled, Words};
    use crate::cache::Group;

    /// Answers the first poll of a connection at once, and each later one with the next generation, up to the third.
    async fn answer(
        State(asked): State<Arc<AtomicU64>>,
        Query(query): Query<HashMap<String, u64>>,
    ) -> Json<AckReport> {
        assert_eq!(query["wait"], WAIT_SECONDS);
        asked.fetch_add(1, Ordering::SeqCst);
        let version = query["since"] + 1;
        if version > 3 {
            std::future::pending::<()>().await;
        }
        let route = RouteAck {
            name: "iris".to_owned(),
            route_uid: "route".to_owned(),
            generation: i64::try_from(version).unwrap(),
            revisions: Default::default(),
        };
        Json(AckReport {
            pod_uid: "pod".to_owned(),
            instance: "one".to_owned(),
            version,
            routes: vec![route],
        })
    }

    #[tokio::test]
    async fn every_answer_is_told_and_a_lost_connection_forgets_all() {
        let asked = Arc::new(AtomicU64::new(0));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().route("/v1/acks", get(answer)).with_state(asked.clone());
        let server = tokio::spawn(async move { axum::serve(listener, app).await });

        let (acks, mut news) = Acks::new();
        let task = tokio::spawn(poll(acks.clone(), "pod".to_owned(), address));
        let polled = Polled {
            namespace: "ns".to_owned(),
            address,
            task: task.abort_handle(),
            words: Words::default(),
        };
        acks.routers.lock().insert("pod".to_owned(), polled);
        for _ in 0..3 {
            assert_eq!(news.recv().await, Some(Group::of("ns", "iris")));
        }
        let heard = acks.heard("pod", "iris");
        assert_eq!((heard.reached, heard.ack.map(|ack| ack.generation)), (true, Some(3)));
        assert_eq!((heard.silent_since, acks.connected()), (None, 1));

        server.abort();
        let _ = server.await;
        // The server's connections live in tasks of their own; the runtime of a router that dies closes them.
        acks.lose("pod");
        assert_eq!(news.recv().await, Some(Group::of("ns", "iris")));
        let heard = acks.heard("pod", "iris");
        assert_eq!((heard.reached, heard.ack, heard.silent_since.is_some()), (true, None, true));
        task.abort();
    }

    #[tokio::test]
    async fn an_address_that_changed_hands_is_not_believed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().route("/v1/acks", get(answer)).with_state(Arc::default());
        let server = tokio::spawn(async move { axum::serve(listener, app).await });
        let (acks, _news) = Acks::new();
        let mut answered = false;
        let error = converse(&acks, "another", address, &mut answered).await;
        assert_eq!(error.to_string(), "the router is pod pod: the address has changed hands");
        assert!(!answered);
        server.abort();
    }
}
