//! A router in the test's own process, fed by the test, and runtimes that misbehave on demand.
#![allow(dead_code)]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};
use serin_crds::InferenceRoute;
use serin_crds::acks::AckReport;
use serin_router::acks::AckBook;
use serin_router::control::Control;
use serin_router::forward::{Context, Limits};
use serin_router::in_flight::Tables;
use serin_router::replay::HeldMemory;
use serin_router::server::{Server, Settings};
use serin_router::source::Change;
use serin_router::table::{Builder, Table};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};

pub const HELD_BODY: usize = 1 << 20;

/// A port that is free now.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("an address").port()
}

/// A route as the operator writes it. Shares in 1/10,000; every revision is its own Service.
#[derive(Clone, Copy, Debug)]
pub struct RouteSpec {
    pub name: &'static str,
    pub generation: i64,
    pub port: u16,
    pub size: u32,
    pub stable: Option<&'static str>,
    pub canary: Option<&'static str>,
    pub share: u16,
    pub hold: u32,
    pub timeout: u32,
}

impl RouteSpec {
    pub fn new(port: u16) -> RouteSpec {
        RouteSpec {
            name: "iris",
            generation: 1,
            port,
            size: 1,
            stable: Some("iris-a"),
            canary: None,
            share: 0,
            hold: 5,
            timeout: 20,
        }
    }

    pub fn canary(self, share: u16) -> RouteSpec {
        RouteSpec { canary: Some("iris-b"), share, ..self }
    }

    pub fn next(self) -> RouteSpec {
        RouteSpec { generation: self.generation + 1, ..self }
    }

    pub fn json(&self) -> Value {
        let revisions: Vec<Value> = ["iris-a", "iris-b"]
            .iter()
            .filter(|name| [self.stable, self.canary].contains(&Some(**name)))
            .map(|name| json!({"name": name, "service": name, "timeoutSeconds": self.timeout}))
            .collect();
        json!({
            "apiVersion": "serving.serin.dev/v1alpha1", "kind": "InferenceRoute",
            "metadata": {"name": self.name, "namespace": "shop", "uid": format!("uid-{}", self.name), "generation": self.generation},
            "spec": {
                "specGeneration": self.generation, "port": self.port, "size": self.size, "stable": self.stable,
                "canary": self.canary, "share": self.share, "stableCount": self.size, "holdSeconds": self.hold,
                "revisions": revisions,
            },
        })
    }

    pub fn change(&self) -> Change {
        let route: InferenceRoute = serde_json::from_value(self.json()).expect("a valid route");
        Change::Route(Box::new(route))
    }
}

/// A pod in a slice: uid, port on loopback, and what Kubernetes says of it.
#[derive(Clone, Copy, Debug)]
pub struct Pod {
    pub uid: &'static str,
    pub ip: [u8; 4],
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
}

/// The slice of a revision with ready pods at these addresses of 127.0.0.0/8, all on one port.
pub fn slice_json(revision: &str, port: u16, pods: &[Pod]) -> Value {
    let endpoints: Vec<Value> = pods
        .iter()
        .map(|pod| {
            json!({
                "addresses": [pod.ip.map(|part| part.to_string()).join(".")],
                "conditions": {"ready": pod.ready, "serving": pod.serving, "terminating": pod.terminating},
                "targetRef": {"kind": "Pod", "uid": pod.uid, "name": pod.uid},
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": format!("{revision}-{port}"), "namespace": "shop",
            "labels": {"kubernetes.io/service-name": revision, "serving.serin.dev/service": "iris"},
        },
        "ports": [{"name": "http", "port": port}],
        "endpoints": endpoints,
    })
}

pub fn slice(revision: &str, port: u16, pods: &[Pod]) -> Change {
    let slice: EndpointSlice =
        serde_json::from_value(slice_json(revision, port, pods)).expect("a valid slice");
    Change::Slice(Box::new(slice))
}

pub fn ready(uid: &'static str) -> Pod {
    Pod { uid, ip: [127, 0, 0, 1], ready: true, serving: true, terminating: false }
}

/// A router in this process.
pub struct Router {
    pub port: u16,
    pub changes: mpsc::Sender<Change>,
    pub acks: Arc<AckBook>,
    pub context: Arc<Context>,
    pub ready: Arc<AtomicBool>,
}

impl Router {
    /// With nothing in use; the route of the test is to take `port`.
    pub fn start() -> Router {
        Router::with_limits(Limits {
            max_body: 8 << 20,
            body_timeout: Duration::from_secs(5),
            max_waiting: 4,
        })
    }

    pub fn with_limits(limits: Limits) -> Router {
        let context = Arc::new(Context {
            tables: Tables::new(Table::default()),
            memory: Arc::new(HeldMemory::new(HELD_BODY, 64 << 20)),
            limits,
            closing: AtomicBool::new(false),
        });
        let settings = Settings {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            max_connections: 1000,
            head_timeout: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(75),
        };
        let server = Server::new(context.clone(), settings);
        let acks = Arc::new(AckBook::new("router-uid".to_owned()));
        let ready = Arc::new(AtomicBool::new(false));
        let builder = Builder {
            namespace: "shop".to_owned(),
            idle_timeout: Duration::from_secs(15),
            fell_to_zero: Arc::new(Notify::new()),
        };
        let (changes, receiver) = mpsc::channel(64);
        let control = Control::new(context.clone(), server, acks.clone(), builder, ready.clone());
        tokio::spawn(control.run(receiver));
        Router { port: free_port(), changes, acks, context, ready }
    }

    /// Puts changes in use, as told by the acknowledgements.
    pub async fn apply(&self, changes: impl IntoIterator<Item = Change>) -> AckReport {
        let mut report = self.acks.poll(0, Duration::ZERO).await;
        for change in changes {
            self.changes.send(change).await.expect("the router takes changes");
        }
        // One batch may take several turns; the last one is in when nothing new comes.
        loop {
            let next = self.acks.poll(report.version, Duration::from_millis(200)).await;
            if next.version == report.version {
                return self.acks.poll(0, Duration::ZERO).await;
            }
            report = next;
        }
    }

    pub async fn send(&self, request: Request<Full<Bytes>>) -> Response<Bytes> {
        send(self.port, request).await
    }

    pub async fn post(&self, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Response<Bytes> {
        self.send(post(headers, body)).await
    }
}

pub fn post(headers: &[(&str, &str)], body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let mut request = Request::post("/v2/models/iris/infer").header("host", "iris");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::new(body.into())).expect("a valid request")
}

/// Sends one request on a connection of its own and reads the whole response.
pub async fn send(port: u16, request: Request<Full<Bytes>>) -> Response<Bytes> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.expect("the router listens");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("a connection");
    tokio::spawn(connection);
    let response = sender.send_request(request).await.expect("a response");
    whole(response).await
}

pub async fn whole(response: Response<Incoming>) -> Response<Bytes> {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    Response::from_parts(parts, body)
}

pub async fn http2(
    port: u16,
) -> hyper::client::conn::http2::SendRequest<
    http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible>,
> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.expect("the router listens");
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("a connection");
    tokio::spawn(connection);
    sender
}

/// A request as a fake runtime sees it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Which connection, from 0.
    pub connection: usize,
    /// Which request on it, from 0.
    pub request: usize,
    pub head: String,
    pub body: Vec<u8>,
}

/// What a fake runtime does about it.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Status, further header lines (each ending in CRLF) and body; the connection stays.
    Answer(u16, &'static str, String),
    /// The same, and the connection closes in good order.
    AnswerAndClose(String),
    /// Status and further header lines; the body that the head promises never comes.
    HeadOnly(u16, &'static str),
    /// The connection breaks.
    Break,
    /// No answer, ever; `closed` of the runtime is notified when the router closes the connection.
    Silence,
}

pub fn ok(body: impl Into<String>) -> Reply {
    Reply::Answer(200, "", body.into())
}

/// A fake runtime on loopback that speaks HTTP/1.1.
#[derive(Clone)]
pub struct Fake {
    pub port: u16,
    pub seen: Arc<parking_lot::Mutex<Vec<Seen>>>,
    /// The router closed a connection that had a request without answer.
    pub closed: Arc<Notify>,
    /// A request came.
    pub came: Arc<Notify>,
}

impl Fake {
    pub async fn start(reply: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Fake {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let fake = Fake { port, seen: Arc::default(), closed: Arc::default(), came: Arc::default() };
        let (shared, reply) = (fake.clone(), Arc::new(reply));
        tokio::spawn(async move {
            for connection in 0.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                tokio::spawn(serve_fake(stream, connection, shared.clone(), reply.clone()));
            }
        });
        fake
    }

    pub fn count(&self) -> usize {
        self.seen.lock().len()
    }
}

async fn serve_fake(
    mut stream: TcpStream,
    connection: usize,
    fake: Fake,
    reply: Arc<impl Fn(&Seen) -> Reply + Send + Sync + 'static>,
) {
    let mut buffer = Vec::new();
    for request in 0.. {
        let Some((head, body)) = read_request(&mut stream, &mut buffer).await else { return };
        let seen = Seen { connection, request, head, body };
        fake.seen.lock().push(seen.clone());
        fake.came.notify_one();
        let (status, headers, body, close) = match reply(&seen) {
            Reply::Answer(status, headers, body) => (status, headers, body, false),
            Reply::AnswerAndClose(body) => (200, "", body, true),
            Reply::Break => {
                let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                return;
            }
            Reply::HeadOnly(status, headers) => {
                let head = format!("HTTP/1.1 {status} Word\r\n{headers}content-length: 9\r\n\r\n");
                let _ = stream.write_all(head.as_bytes()).await;
                let _ = stream.read(&mut [0; 1]).await;
                return;
            }
            Reply::Silence => {
                let _ = stream.read(&mut [0; 1]).await;
                fake.closed.notify_one();
                return;
            }
        };
        let answer =
            format!("HTTP/1.1 {status} Word\r\n{headers}content-length: {}\r\n\r\n{body}", body.len());
        if stream.write_all(answer.as_bytes()).await.is_err() || close {
            return;
        }
    }
}

/// One request with its body, by content-length or in chunks.
async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<(String, Vec<u8>)> {
    let end = loop {
        match buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            Some(end) => break end + 4,
            None => read_more(stream, buffer).await?,
        }
    };
    let head = String::from_utf8(buffer.drain(..end).collect()).ok()?;
    let header = |name: &str| {
        head.lines().find_map(|line| line.strip_prefix(name).and_then(|line| line.strip_prefix(": ")))
    };
    if header("transfer-encoding").is_some() {
        let end = loop {
            match buffer.windows(5).position(|window| window == b"0\r\n\r\n") {
                Some(end) => break end + 5,
                None => read_more(stream, buffer).await?,
            }
        };
        let body = buffer.drain(..end).collect();
        return Some((head, body));
    }
    let length: usize = header("content-length").map_or(0, |length| length.parse().expect("a length"));
    while buffer.len() < length {
        read_more(stream, buffer).await?;
    }
    let body = buffer.drain(..length).collect();
    Some((head, body))
}

async fn read_more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<()> {
    match stream.read_buf(buffer).await {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(()),
    }
}
