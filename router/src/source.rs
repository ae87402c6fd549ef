//! Where routes and slices come from: the watches of one namespace, or a file. The only part that talks to the API server.
//!
//! A source never decides: it says what exists, and `control` knows what absence means.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::{Stream, StreamExt};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use serde::Deserialize;
use serin_crds::{InferenceRoute, labels};
use thiserror::Error;
use tokio::sync::mpsc;

/// How often the file is looked at.
const FILE_INTERVAL: Duration = Duration::from_millis(20);
/// How long one watch lasts before it is asked for anew: a connection that died without a word is noticed by then.
const WATCH_SECONDS: u32 = 60;

/// The first wait after the API server could not be asked; it doubles with each further one.
const RETRY_FIRST: Duration = Duration::from_millis(250);
/// The longest such wait. Short beside kube's 30 s, since a patch must not wait for it once the API server is back.
const RETRY_LONGEST: Duration = Duration::from_secs(5);

/// Something that a source saw.
#[derive(Debug)]
pub enum Change {
    /// A route was made or changed.
    Route(Box<InferenceRoute>),
    /// The route of this name is gone.
    RouteGone(String),
    /// A slice was made or changed.
    Slice(Box<EndpointSlice>),
    /// A slice is gone.
    SliceGone(Box<EndpointSlice>),
    /// These are all the routes that there are.
    AllRoutes {
        /// Those that could be read.
        routes: Vec<InferenceRoute>,
        /// Names of those that could not: they exist, so what is in use for them stays.
        unreadable: Vec<String>,
    },
    /// These are all the slices that there are.
    AllSlices(Vec<EndpointSlice>),
    /// Everything said so far is complete: the router may become ready.
    Complete,
}

/// Why the routes file was not taken.
#[derive(Debug, Error)]
pub enum FileError {
    /// It could not be read.
    #[error("the routes file `{0}` could not be read")]
    Read(PathBuf, #[source] std::io::Error),
    /// It is not `{"routes": [InferenceRoute], "slices": [EndpointSlice]}`.
    #[error("the routes file `{0}` is not a JSON object with `routes` and `slices`")]
    Parse(PathBuf, #[source] serde_json::Error),
}

#[derive(Debug, Deserialize)]
struct RoutesFile {
    routes: Vec<InferenceRoute>,
    slices: Vec<EndpointSlice>,
}

/// Follows the InferenceRoutes and the EndpointSlices of a namespace until nobody listens. Both are listed with quorum,
/// and once more before `Complete`; an API server that is away changes nothing.
pub async fn watch(client: Client, namespace: String, changes: mpsc::Sender<Change>) {
    for last in [false, true] {
        let routes: Api<Guarded> = Api::namespaced(client.clone(), &namespace);
        let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), &namespace);
        // resourceVersion stays unset in the lists, which makes them quorum reads.
        let config = watcher::Config::default().timeout(WATCH_SECONDS);
        let of_services = config.clone().labels(labels::SERVICE);
        let routes = watcher(routes, config).backoff(Retry::default());
        let slices = watcher(slices, of_services).backoff(Retry::default());
        if follow(routes, slices, &changes, last).await.is_err() {
            return;
        }
    }
}

/// When to ask the API server again: 0.25 s doubling to 5 s, each up to a half longer, so that the routers of a cluster do
/// not come back all at one moment.
#[derive(Debug, Default)]
struct Retry {
    failures: u32,
}

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = RETRY_FIRST.saturating_mul(1 << self.failures.min(10)).min(RETRY_LONGEST);
        self.failures += 1;
        Some(wait.mul_f64(1.0 + rand::random::<f64>() / 2.0))
    }
}

impl Backoff for Retry {
    fn reset(&mut self) {
        self.failures = 0;
    }
}

/// One route that cannot be read must not keep the others from being followed.
type Guarded = DeserializeGuard<InferenceRoute>;

/// The route, or the name of one that cannot be read.
fn valid(route: Guarded) -> Result<InferenceRoute, String> {
    route.0.map_err(|invalid| {
        let name = invalid.metadata.name.unwrap_or_default();
        tracing::warn!(route = name, error = %invalid.error, "an InferenceRoute cannot be read; what is in use for it stays");
        name
    })
}

fn name_of(route: Guarded) -> String {
    let name = route.0.map_or_else(|invalid| invalid.metadata.name, |route| route.metadata.name);
    name.unwrap_or_default()
}

/// Nobody listens any more.
struct Closed;

/// Passes on what two watches say; with `last` for ever, else until both have listed everything.
async fn follow(
    routes: impl Stream<Item = watcher::Result<Event<Guarded>>>,
    slices: impl Stream<Item = watcher::Result<Event<EndpointSlice>>>,
    changes: &mpsc::Sender<Change>,
    last: bool,
) -> Result<(), Closed> {
    let (mut routes, mut slices) = (std::pin::pin!(routes), std::pin::pin!(slices));
    let (mut all_routes, mut unreadable, mut all_slices) = (Vec::new(), Vec::new(), Vec::new());
    let (mut routes_listed, mut slices_listed) = (false, false);
    loop {
        let was_complete = routes_listed && slices_listed;
        let change = tokio::select! {
            Some(event) = routes.next() => match event {
                Ok(Event::Init) => {
                    all_routes.clear();
                    unreadable.clear();
                    None
                }
                Ok(Event::InitApply(route)) => {
                    match valid(route) {
                        Ok(route) => all_routes.push(route),
                        Err(name) => unreadable.push(name),
                    }
                    None
                }
                Ok(Event::InitDone) => {
                    routes_listed = true;
                    let (routes, unreadable) = (std::mem::take(&mut all_routes), std::mem::take(&mut unreadable));
                    Some(Change::AllRoutes { routes, unreadable })
                }
                Ok(Event::Apply(route)) => valid(route).ok().map(|route| Change::Route(Box::new(route))),
                Ok(Event::Delete(route)) => Some(Change::RouteGone(name_of(route))),
                Err(error) => { report("InferenceRoutes", &error); None }
            },
            Some(event) = slices.next() => match event {
                Ok(Event::Init) => { all_slices.clear(); None }
                Ok(Event::InitApply(slice)) => { all_slices.push(slice); None }
                Ok(Event::InitDone) => {
                    slices_listed = true;
                    Some(Change::AllSlices(std::mem::take(&mut all_slices)))
                }
                Ok(Event::Apply(slice)) => Some(Change::Slice(Box::new(slice))),
                Ok(Event::Delete(slice)) => Some(Change::SliceGone(Box::new(slice))),
                Err(error) => { report("EndpointSlices", &error); None }
            },
            else => return Ok(()),
        };
        if let Some(change) = change {
            changes.send(change).await.map_err(|_| Closed)?;
        }
        if routes_listed && slices_listed && !was_complete {
            if !last {
                return Ok(());
            }
            changes.send(Change::Complete).await.map_err(|_| Closed)?;
        }
    }
}

fn report(kind: &str, error: &watcher::Error) {
    tracing::warn!(kind, %error, "the API server could not be asked; the routes in use stay");
}

/// Follows a file: for tests, and for a router without a cluster. Whoever writes it puts the new one in place by rename.
pub async fn follow_file(path: PathBuf, changes: mpsc::Sender<Change>) {
    let mut interval = tokio::time::interval(FILE_INTERVAL);
    let mut seen = None;
    let mut complete = false;
    loop {
        interval.tick().await;
        let stamp = stamp(&path);
        if seen.is_some() && stamp == seen {
            continue;
        }
        seen = stamp;
        let file = match read(&path) {
            Ok(file) => file,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the routes in use stay");
                continue;
            }
        };
        let mut said = vec![
            Change::AllSlices(file.slices),
            Change::AllRoutes { routes: file.routes, unreadable: Vec::new() },
        ];
        said.extend((!complete).then_some(Change::Complete));
        complete = true;
        for change in said {
            if changes.send(change).await.is_err() {
                return;
            }
        }
    }
}

/// What changes whenever another file is put in place. `None`: there is none.
fn stamp(path: &Path) -> Option<(u64, i64, i64)> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.ino(), meta.mtime(), meta.mtime_nsec()))
}

fn read(path: &Path) -> Result<RoutesFile, FileError> {
    let bytes = std::fs::read(path).map_err(|source| FileError::Read(path.to_owned(), source))?;
    serde_json::from_slice(&bytes).map_err(|source| FileError::Parse(path.to_owned(), source))
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use serde_json::json;

    use super::*;

    fn route(name: &str) -> Guarded {
        let valid = json!({
            "apiVersion": "serving.serin.dev/v1alpha1", "kind": "InferenceRoute", "metadata": {"name": name},
            "spec": {"specGeneration": 1, "port": 10000, "size": 1},
        });
        serde_json::from_value(valid).expect("a guarded route is always read")
    }

    fn broken(name: &str) -> Guarded {
        let broken = json!({
            "apiVersion": "serving.serin.dev/v1alpha1", "kind": "InferenceRoute", "metadata": {"name": name},
            "spec": {"port": "ten thousand"},
        });
        serde_json::from_value(broken).expect("a guarded route is always read")
    }

    async fn said(
        routes: Vec<watcher::Result<Event<Guarded>>>,
        slices: Vec<watcher::Result<Event<EndpointSlice>>>,
        last: bool,
    ) -> Vec<String> {
        let (sender, mut receiver) = mpsc::channel(64);
        assert!(follow(stream::iter(routes), stream::iter(slices), &sender, last).await.is_ok());
        drop(sender);
        let mut said = Vec::new();
        while let Some(change) = receiver.recv().await {
            said.push(match change {
                Change::Route(route) => format!("route {}", route.metadata.name.unwrap_or_default()),
                Change::RouteGone(name) => format!("gone {name}"),
                Change::Slice(_) | Change::SliceGone(_) => "slice".to_owned(),
                Change::AllRoutes { routes, unreadable } => {
                    format!("{} routes, unreadable {unreadable:?}", routes.len())
                }
                Change::AllSlices(slices) => format!("{} slices", slices.len()),
                Change::Complete => "complete".to_owned(),
            });
        }
        said.sort();
        said
    }

    #[tokio::test]
    async fn lists_are_said_whole_and_a_route_that_cannot_be_read_is_passed_over() {
        let routes = vec![
            Ok(Event::Init),
            Ok(Event::InitApply(route("a"))),
            Ok(Event::InitApply(broken("b"))),
            Err(watcher::Error::NoResourceVersion),
            Ok(Event::Init),
            Ok(Event::InitApply(route("a"))),
            Ok(Event::InitApply(broken("b"))),
            Ok(Event::InitApply(route("c"))),
            Ok(Event::InitDone),
            Ok(Event::Apply(route("d"))),
            Ok(Event::Apply(broken("a"))),
            Ok(Event::Delete(route("c"))),
            Ok(Event::Delete(broken("b"))),
        ];
        let slices = vec![Ok(Event::Init), Ok(Event::InitDone)];
        assert_eq!(
            said(routes, slices, true).await,
            ["0 slices", "2 routes, unreadable [\"b\"]", "complete", "gone b", "gone c", "route d"]
        );
    }

    #[tokio::test]
    async fn nothing_is_complete_before_both_kinds_are_listed_in_the_second_round() {
        let listed = || vec![Ok(Event::Init), Ok(Event::InitDone)];
        assert_eq!(said(vec![], vec![Ok(Event::Init), Ok(Event::InitDone)], true).await, ["0 slices"]);
        assert_eq!(
            said(listed(), vec![Ok(Event::Init), Ok(Event::InitDone)], false).await,
            ["0 routes, unreadable []", "0 slices"]
        );
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_read_changes_nothing_and_the_next_one_does() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("routes.json");
        let put = |text: &str| {
            let next = directory.path().join("next");
            std::fs::write(&next, text).expect("written");
            std::fs::rename(next, &path).expect("put in place");
        };
        put("{");
        let (sender, mut changes) = mpsc::channel(8);
        tokio::spawn(follow_file(path.clone(), sender));
        put(r#"{"routes": [], "slices": []}"#);
        for _ in 0..2 {
            assert!(matches!(changes.recv().await, Some(Change::AllSlices(_) | Change::AllRoutes { .. })));
        }
        assert!(matches!(changes.recv().await, Some(Change::Complete)));
        put("[]");
        put(r#"{"routes": [], "slices": [{"metadata": {}}]}"#);
        assert!(matches!(changes.recv().await, Some(Change::AllSlices(slices)) if slices.len() == 1));
        assert!(matches!(changes.recv().await, Some(Change::AllRoutes { .. })));
    }
}
