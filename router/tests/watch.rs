//! The router's watches against an API server made for the test: what it asks for, when it is complete, how fast a change is
//! in use, and that an API server that goes away changes nothing.

mod support;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use serin_router::source;
use support::*;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

#[derive(Default)]
struct Objects {
    version: u64,
    /// By kind, then by name.
    objects: BTreeMap<&'static str, BTreeMap<String, Value>>,
    watches: Vec<(&'static str, mpsc::UnboundedSender<Value>)>,
    /// Queries of all lists, by kind.
    lists: Vec<(&'static str, String)>,
    away: bool,
}

/// An API server with the two kinds that the router reads.
#[derive(Clone, Default)]
struct Api(Arc<parking_lot::Mutex<Objects>>);

impl Api {
    async fn start(&self) -> kube::Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let api = self.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                let api = api.clone();
                let service = hyper::service::service_fn(move |request| {
                    let response = api.answer(&request);
                    async move { Ok::<_, Infallible>(response) }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        kube::Client::try_from(kube::Config::new(url.parse().expect("a URL"))).expect("a client")
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<BoxBody<Bytes, Infallible>> {
        let mut state = self.0.lock();
        let kind = match request.uri().path() {
            "/apis/serving.serin.dev/v1alpha1/namespaces/shop/inferenceroutes" => "InferenceRoute",
            "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices" => "EndpointSlice",
            path => panic!("the router asks for {path}"),
        };
        let query = request.uri().query().unwrap_or_default();
        if state.away {
            let mut response = Response::new(Full::new(Bytes::from("away")).boxed());
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            return response;
        }
        if query.contains("watch=") {
            let (sender, receiver) = mpsc::unbounded_channel();
            // A watch begins with what came after the version that it names.
            let since = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
            let since: u64 = since.expect("a version").parse().expect("a number");
            for object in state.objects.get(kind).into_iter().flat_map(|objects| objects.values()) {
                let version = object["metadata"]["resourceVersion"].as_str().expect("a version");
                if version.parse::<u64>().expect("a number") > since {
                    let _ = sender.send(json!({"type": "MODIFIED", "object": object}));
                }
            }
            state.watches.push((kind, sender));
            let lines = futures::StreamExt::map(UnboundedReceiverStream::new(receiver), |event: Value| {
                Ok(Frame::data(Bytes::from(format!("{event}\n"))))
            });
            return Response::new(BodyExt::boxed(StreamBody::new(lines)));
        }
        state.lists.push((kind, query.to_owned()));
        let items: Vec<_> =
            state.objects.get(kind).into_iter().flat_map(|objects| objects.values()).collect();
        let list = json!({"kind": format!("{kind}List"), "apiVersion": "v1",
                          "metadata": {"resourceVersion": state.version.to_string()}, "items": items});
        Response::new(Full::new(Bytes::from(list.to_string())).boxed())
    }

    /// Writes an object, as `kubectl apply` would.
    fn apply(&self, mut object: Value) {
        let mut state = self.0.lock();
        state.version += 1;
        object["metadata"]["resourceVersion"] = state.version.to_string().into();
        let kind = if object["kind"] == "EndpointSlice" { "EndpointSlice" } else { "InferenceRoute" };
        let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
        let known = state.objects.entry(kind).or_default().insert(name, object.clone()).is_some();
        let event = json!({"type": if known { "MODIFIED" } else { "ADDED" }, "object": object});
        state.watches.retain(|(of, watch)| *of != kind || watch.send(event.clone()).is_ok());
    }

    /// Stops answering, and ends every watch; or comes back.
    fn away(&self, away: bool) {
        let mut state = self.0.lock();
        state.away = away;
        state.watches.clear();
    }

    fn lists(&self) -> Vec<(&'static str, String)> {
        self.0.lock().lists.clone()
    }
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let wait = async {
        while !done() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn share(router: &Router) -> Option<u16> {
    router.context.tables.load().by_port(router.port).map(|route| route.share.parts())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_patch_is_in_use_at_once_and_an_api_server_that_is_away_changes_nothing() {
    let fake = Fake::start(|_| ok("x")).await;
    let api = Api::default();
    let router = Router::start();
    let mut route = RouteSpec::new(router.port).canary(0);
    api.apply(route.json());
    api.apply(slice_json("iris-a", fake.port, &[ready("pod-a")]));
    api.apply(slice_json("iris-b", fake.port, &[ready("pod-b")]));
    tokio::spawn(source::watch(api.start().await, "shop".to_owned(), router.changes.clone()));
    until("ready", || router.ready.load(Ordering::SeqCst)).await;
    assert_eq!(router.post(&[], "x").await.status(), 200);
    let lists = api.lists();
    for kind in ["InferenceRoute", "EndpointSlice"] {
        let of_kind: Vec<_> = lists.iter().filter(|(of, _)| *of == kind).map(|(_, query)| query).collect();
        assert!(of_kind.len() >= 2, "each kind is listed and read once more: {lists:?}");
        assert!(of_kind.iter().all(|query| !query.contains("resourceVersion=")), "quorum reads: {of_kind:?}");
    }
    let slices = lists.iter().filter(|(kind, _)| *kind == "EndpointSlice");
    assert!(
        slices.clone().all(|(_, query)| query.contains("labelSelector=serving.serin.dev%2Fservice")),
        "{lists:?}"
    );

    let mut times = Vec::new();
    for n in 1..=100 {
        route = route.next().canary(n * 100);
        let written = Instant::now();
        api.apply(route.json());
        until("the new share", || share(&router) == Some(n * 100)).await;
        times.push(written.elapsed());
    }
    times.sort();
    println!("patch to in use: p50 {:?}, p99 {:?}", times[50], times[98]);
    assert!(times[50] < Duration::from_millis(100), "half of the patches took longer than {:?}", times[50]);

    api.away(true);
    for _ in 0..50 {
        assert_eq!(router.post(&[], "x").await.status(), 200);
    }
    assert_eq!(share(&router), Some(10_000));
    // Written while the router could not hear it.
    route = route.next().canary(77);
    api.apply(route.json());
    api.away(false);
    until("the share of the time away", || share(&router) == Some(77)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_is_not_ready_while_it_cannot_ask() {
    let api = Api::default();
    let router = Router::start();
    api.apply(RouteSpec::new(router.port).json());
    api.away(true);
    tokio::spawn(source::watch(api.start().await, "shop".to_owned(), router.changes.clone()));
    let report = router.acks.poll(1, Duration::from_millis(300)).await;
    assert!(report.routes.is_empty() && !router.ready.load(Ordering::SeqCst));
    api.away(false);
    until("ready", || router.ready.load(Ordering::SeqCst)).await;
    assert_eq!(router.acks.poll(0, Duration::ZERO).await.routes.len(), 1);
}
