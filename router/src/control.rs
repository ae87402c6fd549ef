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
            let sleep = sleep_until(wake.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600)).into());
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
        let expired = self.known.iter().filter(|(_, known)| known.expires.is_some_and(|expires| expires <= now));
        self.touched.extend(expired.map(|(name, _)| name.clone()));
    }

    /// Takes in what the source says, without consequence yet.
    fn take(&mut self, change: Change, now: Instant) {
        match change {
            Change::Route(route) => self.take_route(*route),
            Change::RouteGone(route) => self.take_absence(&route.metadata.name.unwrap_or_default(), now),
            Change::AllRoutes(routes) => {
                let names: BTreeSet<_> = routes.iter().filter_map(|route| route.metadata.name.clone()).collect();
                let absent: Vec<_> = self.known.keys().filter(|name| !names.contains(*name)).cloned().collect();
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
        let uses = |known: &Known| known.source.spec.revisions.iter().any(|revision| revision.service == service);
        let users = self.known.iter().filter(|(_, known)| uses(known)).map(|(name, _)| name.clone());
        self.touched.extend(users);
    }

    /// Builds what was touched and puts it in use: table first, then listeners, then acknowledgements.
    fn apply(&mut self, now: Instant) {
        let touched = std::mem::take(&mut self.touched);
        for name in &touched {
            self.build(name, now);
        }
        self.give_ports();
        if !touched.is_empty() {
            let in_use = self.known.values().filter(|known| known.in_use).filter_map(|known| known.route.clone());
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
    fn give_ports(&mut self) {
        let mut holders: BTreeMap<u16, &str> = BTreeMap::new();
        for (name, known) in &self.known {
            let port = known.source.spec.port;
            let claim = |name: &str| {
                let known = &self.known[name];
                (known.absent_since.is_none(), known.in_use, std::cmp::Reverse(created(known)))
            };
            let holder = holders.entry(port).or_insert(name);
            if claim(name) > claim(holder) {
                *holder = name;
            }
        }
        let holders: BTreeSet<String> = holders.into_values().map(str::to_owned).collect();
        self.known.retain(|name, known| holders.contains(name) || known.absent_since.is_none());
        for (name, known) in &mut self.known {
            let in_use = holders.contains(name);
            if !in_use {
                tracing::warn!(service = name, port = known.source.spec.port, "the port belongs to another route");
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
        let routes: Vec<_> = self.known.values().filter(reachable).filter_map(|known| known.route.clone()).collect();
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
    let ready: Vec<String> =
        route.revisions.iter().map(|revision| format!("{}={}", revision.name, revision.counted.len())).collect();
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
