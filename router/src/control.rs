//! From what the source says to what is in use: keeps the routes and slices that exist, builds the routes that a change touches,
//! publishes the table, sees to the listeners and to the acknowledgements. One task; nothing waits for it but changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serin_crds::InferenceRoute;
use tokio::sync::{Notify, mpsc};
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use crate::acks::AckBook;
use crate::forward::Context;
use crate::server::Server;
use crate::source::Change;
use crate::table::{Builder, Route, SliceIndex, Standing, Table};

/// How long after a port could not be bound it is tried again.
const BIND_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How often idle connections to runtimes are looked through.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Ends of requests on revisions without share are told to the operator at most this often.
const ZERO_INTERVAL: Duration = Duration::from_millis(10);

/// The state behind the table.
pub struct Control {
    context: Arc<Context>,
    server: Server,
    acks: Arc<AckBook>,
    builder: Builder,
    ready: Arc<AtomicBool>,
    known: BTreeMap<String, Known>,
    slices: SliceIndex,
    /// Names of the routes to be built anew.
    touched: BTreeSet<String>,
    /// The source has said everything.
    complete: bool,
    bind_again: Option<Instant>,
}

/// A route that exists, or did until a moment ago.
struct Known {
    source: InferenceRoute,
    absent_since: Option<Instant>,
    route: Option<Arc<Route>>,
    expires: Option<Instant>,
    /// Whether it is in the table: it has its port.
    in_use: bool,
}

impl Control {
    /// A control with nothing in use. `ready` is set once the first complete snapshot is.
    pub fn new(
        context: Arc<Context>,
        server: Server,
        acks: Arc<AckBook>,
        builder: Builder,
        ready: Arc<AtomicBool>,
    ) -> Control {
        Control {
            context,
            server,
            acks,
            builder,
            ready,
            known: BTreeMap::new(),
            slices: SliceIndex::default(),
            touched: BTreeSet::new(),
            complete: false,
            bind_again: None,
        }
    }

    /// Follows the changes for ever: a source that ends leaves everything as it is.
    pub async fn run(mut self, mut changes: mpsc::Receiver<Change>) {
        let fell = self.builder.fell_to_zero.clone();
        let mut zero = ZeroWatch::new(fell);
        let mut sweep = interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut open = true;
        loop {
            let wake = self.next_wake();
            let sleep =
                sleep_until(wake.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600)).into());
            tokio::select! {
                change = changes.recv(), if open => match change {
                    Some(change) => {
                        self.take(change, Instant::now());
                        while let Ok(change) = changes.try_recv() {
                            self.take(change, Instant::now());
                        }
                        self.apply(Instant::now());
                    }
                    None => open = false,
                },
                () = zero.fell() => self.acks.look_for_zero(),
                () = sleep, if wake.is_some() => {
                    self.touch_expired(Instant::now());
                    self.apply(Instant::now());
                }
                _ = sweep.tick() => self.sweep(),
            }
        }
    }

    fn next_wake(&self) -> Option<Instant> {
        self.known.values().filter_map(|known| known.expires).chain(self.bind_again).min()
    }

    fn touch_expired(&mut self, now: Instant) {
        let expired =
            self.known.iter().filter(|(_, known)| known.expires.is_some_and(|expires| expires <= now));
        self.touched.extend(expired.map(|(name, _)| name.clone()));
    }

    /// Takes in what the source says, without consequence yet.
    fn take(&mut self, change: Change, now: Instant) {
        match change {
            Change::Route(route) => self.take_route(*route),
            Change::RouteGone(name) => self.take_absence(&name, now),
            Change::AllRoutes { routes, unreadable } => {
                let read = routes.iter().filter_map(|route| route.metadata.name.clone());
                let names: BTreeSet<_> = read.chain(unreadable).collect();
                let absent: Vec<_> =
                    self.known.keys().filter(|name| !names.contains(*name)).cloned().collect();
                absent.iter().for_each(|name| self.take_absence(name, now));
                routes.into_iter().for_each(|route| self.take_route(route));
            }
            Change::Slice(slice) => {
                let service = self.slices.apply(*slice);
                self.touch_users_of(service.as_deref());
            }
            Change::SliceGone(slice) => {
                let service = self.slices.remove(&slice);
                self.touch_users_of(service.as_deref());
            }
            Change::AllSlices(slices) => {
                self.slices = SliceIndex::default();
                for slice in slices {
                    self.slices.apply(slice);
                }
                self.touched.extend(self.known.keys().cloned());
            }
            Change::Complete => self.complete = true,
        }
    }

    fn take_route(&mut self, source: InferenceRoute) {
        let Some(name) = source.metadata.name.clone() else { return };
        match self.known.get_mut(&name) {
            Some(known) => {
                let same = known.source.metadata.uid == source.metadata.uid;
                // A list may be older than what a watch has said; no generation is ever taken back.
                if same && source.metadata.generation < known.source.metadata.generation {
                    return;
                }
                (known.source, known.absent_since) = (source, None);
            }
            None => {
                let known = Known { source, absent_since: None, route: None, expires: None, in_use: false };
                self.known.insert(name.clone(), known);
            }
        }
        self.touched.insert(name);
    }

    fn take_absence(&mut self, name: &str, now: Instant) {
        let Some(known) = self.known.get_mut(name) else { return };
        known.absent_since.get_or_insert(now);
        self.touched.insert(name.to_owned());
    }

    fn touch_users_of(&mut self, service: Option<&str>) {
        let Some(service) = service else { return };
        let uses =
            |known: &Known| known.source.spec.revisions.iter().any(|revision| revision.service == service);
        let users = self.known.iter().filter(|(_, known)| uses(known)).map(|(name, _)| name.clone());
        self.touched.extend(users);
    }

    /// Builds what was touched and puts it in use: table first, then listeners, then acknowledgements.
    fn apply(&mut self, now: Instant) {
        let touched = std::mem::take(&mut self.touched);
        for name in &touched {
            self.build(name, now);
        }
        self.give_ports(&touched);
        if !touched.is_empty() {
            let in_use =
                self.known.values().filter(|known| known.in_use).filter_map(|known| known.route.clone());
            self.context.tables.publish(Table::new(in_use));
            for known in touched.iter().filter_map(|name| self.known.get(name)) {
                if let Some(route) = &known.route {
                    route.state.changed.send_modify(|generation| *generation += 1);
                }
            }
        }
        let all_bound = self.listen(now);
        self.acknowledge();
        if self.complete && all_bound && !self.ready.swap(true, Ordering::SeqCst) {
            tracing::info!(routes = self.known.len(), "ready");
        }
    }

    fn build(&mut self, name: &str, now: Instant) {
        let Some(known) = self.known.get_mut(name) else { return };
        let before = known.route.as_deref();
        let built = self.builder.build(&known.source, known.absent_since, &self.slices, before, now);
        log_change(before, &built.route);
        if known.absent_since.is_some() && is_over(&built.route) {
            tracing::info!(service = name, "the route is gone, and so are its endpoints");
            self.known.remove(name);
            return;
        }
        known.expires = built.expires;
        known.route = Some(Arc::new(built.route));
    }

    /// Decides who has each port: who has it keeps it while its route exists; one whose route is gone leaves it to another.
    fn give_ports(&mut self, touched: &BTreeSet<String>) {
        let mut holders: BTreeMap<u16, &str> = BTreeMap::new();
        for (name, known) in &self.known {
            let port = known.source.spec.port;
            let claim = |name: &str| {
                let known = &self.known[name];
                (known.absent_since.is_none(), known.in_use, std::cmp::Reverse(created(known)))
            };
            let holder = holders.entry(port).or_insert(name);
            if *holder != name && claim(name) > claim(holder) {
                *holder = name;
            }
        }
        let holders: BTreeSet<String> = holders.into_values().map(str::to_owned).collect();
        self.known.retain(|name, known| holders.contains(name) || known.absent_since.is_none());
        for (name, known) in &mut self.known {
            let in_use = holders.contains(name);
            if !in_use && touched.contains(name) {
                tracing::warn!(
                    service = name,
                    port = known.source.spec.port,
                    "the port belongs to another route"
                );
            }
            known.in_use = in_use;
        }
    }

    /// Listens on every port in use and on no other. Answers whether all could be bound.
    fn listen(&mut self, now: Instant) -> bool {
        let ports: BTreeSet<u16> =
            self.known.values().filter(|known| known.in_use).map(|known| known.source.spec.port).collect();
        self.server.retain(|port| ports.contains(&port));
        self.bind_again = None;
        for port in ports {
            if let Err(error) = self.server.listen(port) {
                tracing::error!(port, %error, "the port of a route cannot be bound");
                self.bind_again = Some(now + BIND_AGAIN_AFTER);
            }
        }
        self.bind_again.is_none()
    }

    /// A route is acknowledged once it can be reached.
    fn acknowledge(&self) {
        let reachable = |known: &&Known| known.in_use && self.server.is_listening(known.source.spec.port);
        let routes: Vec<_> =
            self.known.values().filter(reachable).filter_map(|known| known.route.clone()).collect();
        self.acks.update(&routes);
    }

    fn sweep(&self) {
        for route in self.known.values().filter_map(|known| known.route.as_ref()) {
            for endpoint in route.revisions.iter().flat_map(|revision| revision.usable.iter()) {
                endpoint.pool.sweep();
            }
        }
    }
}

/// The older route has the better claim.
fn created(known: &Known) -> Option<String> {
    known.source.metadata.creation_timestamp.as_ref().map(|time| time.0.to_string())
}

/// A route that does not exist any more is over when each of its pods was seen leaving, or has been gone for long.
fn is_over(route: &Route) -> bool {
    let members = route.revisions.iter().flat_map(|revision| &revision.members);
    members.into_iter().all(|member| matches!(member.standing, Standing::Terminating | Standing::Ended))
}

fn log_change(before: Option<&Route>, route: &Route) {
    let said = |route: &Route| {
        let ready: Vec<usize> = route.revisions.iter().map(|revision| revision.counted.len()).collect();
        (route.generation, route.share, ready, route.absent_since.is_some())
    };
    if before.map(said) == Some(said(route)) {
        return;
    }
    let ready: Vec<String> = route
        .revisions
        .iter()
        .map(|revision| format!("{}={}", revision.name, revision.counted.len()))
        .collect();
    tracing::info!(
        service = %route.name,
        generation = route.generation,
        asked = %route.asked,
        in_force = %route.share,
        ready = ready.join(" "),
        gone = route.absent_since.is_some(),
        "route in use"
    );
}

/// Passes on "a count fell to 0", but not for every request of a revision that is only pinned now and then.
struct ZeroWatch {
    signal: Arc<Notify>,
    not_before: tokio::time::Instant,
}

impl ZeroWatch {
    fn new(signal: Arc<Notify>) -> ZeroWatch {
        ZeroWatch { signal, not_before: tokio::time::Instant::now() }
    }

    /// Resolves after a signal. Safe to be dropped at any point: a signal taken and not passed on is kept by the counts,
    /// and the wait comes before the signal is taken.
    async fn fell(&mut self) {
        sleep_until(self.not_before).await;
        self.signal.notified().await;
        self.not_before = tokio::time::Instant::now() + ZERO_INTERVAL;
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use k8s_openapi::api::discovery::v1::EndpointSlice;
    use serde_json::json;

    use super::*;
    use crate::forward::Limits;
    use crate::in_flight::Tables;
    use crate::replay::HeldMemory;
    use crate::server::Settings;

    fn control() -> Control {
        let context = Arc::new(Context {
            tables: Tables::new(Table::default()),
            memory: Arc::new(HeldMemory::new(0, 0)),
            limits: Limits { max_body: 0, body_timeout: Duration::ZERO, max_waiting: 0 },
            closing: AtomicBool::new(false),
        });
        let second = Duration::from_secs(1);
        let settings = Settings {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            max_connections: 1,
            head_timeout: second,
            idle_timeout: second,
        };
        let builder =
            Builder { namespace: "shop".into(), idle_timeout: second, fell_to_zero: Arc::new(Notify::new()) };
        let server = Server::new(context.clone(), settings);
        Control::new(context, server, Arc::new(AckBook::new("r".into())), builder, Arc::default())
    }

    fn route(name: &str, port: u16, generation: i64) -> InferenceRoute {
        serde_json::from_value(json!({
            "apiVersion": "serving.serin.dev/v1alpha1", "kind": "InferenceRoute",
            "metadata": {"name": name, "uid": name, "generation": generation},
            "spec": {"specGeneration": 1, "port": port, "size": 1, "stable": name,
                     "revisions": [{"name": name, "service": name, "timeoutSeconds": 60}]},
        }))
        .expect("a valid route")
    }

    fn slice(service: &str, terminating: bool) -> EndpointSlice {
        serde_json::from_value(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": service, "labels": {"kubernetes.io/service-name": service}},
            "ports": [{"port": 8080}],
            "endpoints": [{"addresses": ["10.0.0.1"], "targetRef": {"uid": "p"},
                           "conditions": {"ready": !terminating, "serving": true, "terminating": terminating}}],
        }))
        .expect("a valid slice")
    }

    fn free_port() -> u16 {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        listener.local_addr().expect("an address").port()
    }

    /// Takes changes in at a time; answers who is served on the port.
    fn step(
        control: &mut Control,
        port: u16,
        now: Instant,
        changes: impl IntoIterator<Item = Change>,
    ) -> Option<(String, i64)> {
        changes.into_iter().for_each(|change| control.take(change, now));
        control.touch_expired(now);
        control.apply(now);
        let table = control.context.tables.load();
        table.by_port(port).map(|route| (route.name.to_string(), route.generation))
    }

    fn all_routes(routes: Vec<InferenceRoute>) -> Change {
        Change::AllRoutes { routes, unreadable: Vec::new() }
    }

    fn boxed<T>(value: T) -> Box<T> {
        Box::new(value)
    }

    #[tokio::test]
    async fn ready_only_when_all_is_said_and_every_port_is_bound() {
        let mut control = control();
        let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = taken.local_addr().expect("an address").port();
        let now = Instant::now();
        step(&mut control, port, now, [all_routes(vec![route("a", port, 1)]), Change::AllSlices(vec![])]);
        assert!(!control.ready.load(Ordering::SeqCst), "not complete");
        step(&mut control, port, now, [Change::Complete]);
        assert!(!control.ready.load(Ordering::SeqCst), "the port is taken");
        let report = control.acks.poll(0, Duration::ZERO).await;
        assert!(report.routes.is_empty(), "what cannot be reached is not acknowledged");
        drop(taken);
        assert_eq!(control.next_wake(), Some(now + BIND_AGAIN_AFTER));
        step(&mut control, port, now + BIND_AGAIN_AFTER, []);
        assert!(control.ready.load(Ordering::SeqCst));
        assert_eq!(control.acks.poll(0, Duration::ZERO).await.routes.len(), 1);
    }

    #[tokio::test]
    async fn a_deleted_route_stays_until_its_pods_are_seen_leaving() {
        let (mut control, port, now) = (control(), free_port(), Instant::now());
        let all = || [Change::Route(boxed(route("a", port, 1))), Change::Slice(boxed(slice("a", false)))];
        step(&mut control, port, now, all());
        for gone in [Change::RouteGone("a".into()), all_routes(vec![])] {
            assert_eq!(
                step(&mut control, port, now, [gone]),
                Some(("a".into(), 1)),
                "absence is not an order"
            );
        }
        assert!(control.server.is_listening(port));
        let later = now + Duration::from_secs(3600);
        assert!(step(&mut control, port, later, []).is_some(), "nobody said that the pod is gone");
        assert_eq!(step(&mut control, port, later, [Change::Slice(boxed(slice("a", true)))]), None);
        assert!(!control.server.is_listening(port));
    }

    #[tokio::test]
    async fn a_route_that_cannot_be_read_is_not_gone() {
        let (mut control, port, now) = (control(), free_port(), Instant::now());
        step(&mut control, port, now, [Change::Route(boxed(route("a", port, 1)))]);
        let unread = |name: &str| Change::AllRoutes { routes: Vec::new(), unreadable: vec![name.into()] };
        assert!(step(&mut control, port, now, [unread("a")]).is_some(), "it has no pods, and exists");
        assert_eq!(step(&mut control, port, now, [unread("b")]), None);
    }

    #[tokio::test]
    async fn a_deleted_route_without_slices_is_over_after_a_minute() {
        let (mut control, port, now) = (control(), free_port(), Instant::now());
        step(&mut control, port, now, [Change::Route(boxed(route("a", port, 1)))]);
        step(&mut control, port, now, [Change::Slice(boxed(slice("a", false)))]);
        let gone = [all_routes(vec![]), Change::AllSlices(vec![])];
        assert!(step(&mut control, port, now, gone).is_some());
        let over = control.next_wake().expect("time will change it");
        assert_eq!(over, now + Duration::from_secs(60));
        assert_eq!(step(&mut control, port, over, []), None);
    }

    #[tokio::test]
    async fn a_route_that_is_gone_leaves_its_port_to_another_and_a_living_one_does_not() {
        let (mut control, port, now) = (control(), free_port(), Instant::now());
        let pods = Change::Slice(boxed(slice("b", false)));
        step(&mut control, port, now, [Change::Route(boxed(route("b", port, 1))), pods]);
        let other = || Change::Route(boxed(route("a", port, 1)));
        assert_eq!(step(&mut control, port, now, [other()]), Some(("b".into(), 1)), "it has the port");
        let gone = Change::RouteGone("b".into());
        assert_eq!(step(&mut control, port, now, [gone]), Some(("a".into(), 1)));
        assert!(!control.known.contains_key("b"));
    }

    #[tokio::test]
    async fn no_generation_is_taken_back_and_a_route_made_anew_is_taken() {
        let (mut control, port, now) = (control(), free_port(), Instant::now());
        step(&mut control, port, now, [Change::Route(boxed(route("a", port, 3)))]);
        assert_eq!(
            step(&mut control, port, now, [Change::Route(boxed(route("a", port, 2)))]),
            Some(("a".into(), 3))
        );
        let mut anew = route("a", port, 1);
        anew.metadata.uid = Some("another".into());
        assert_eq!(step(&mut control, port, now, [Change::Route(boxed(anew))]), Some(("a".into(), 1)));
    }
}
