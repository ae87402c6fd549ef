//! What this router uses, as the operator asks for it (`serin_crds::acks`): kept per route with the version at which it
//! last changed, so that a long poll answers with what is new. No IO.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serin_crds::acks::{AckReport, RevisionAck, RouteAck};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::in_flight::RevisionState;
use crate::table::Route;

/// Longest wait of one poll.
pub const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The acknowledgements of this process.
#[derive(Debug)]
pub struct AckBook {
    pod_uid: String,
    instance: String,
    entries: Mutex<BTreeMap<Arc<str>, Entry>>,
    version: watch::Sender<u64>,
}

#[derive(Debug)]
struct Entry {
    route: Arc<Route>,
    /// What was said last, without the requests in flight.
    said: RouteAck,
    changed_at: u64,
}

impl AckBook {
    /// An empty book of the router in this pod, under a random name for this process.
    pub fn new(pod_uid: String) -> AckBook {
        let instance = format!("{:016x}", rand::random::<u64>());
        AckBook { pod_uid, instance, entries: Mutex::default(), version: watch::Sender::new(1) }
    }

    /// Takes in the routes in use. To be called after the table that holds them was published: what is in flight is read
    /// after that, which makes the answers true (see `in_flight`).
    pub fn update(&self, routes: &[Arc<Route>]) {
        let mut entries = self.entries.lock();
        let next = *self.version.borrow() + 1;
        let mut changed = false;
        entries.retain(|name, _| routes.iter().any(|route| route.name == *name));
        for route in routes {
            let said = describe(route);
            match entries.get_mut(&route.name) {
                Some(entry) => {
                    entry.route = route.clone();
                    if entry.said != said {
                        (entry.said, entry.changed_at, changed) = (said, next, true);
                    }
                }
                None => {
                    let entry = Entry { route: route.clone(), said, changed_at: next };
                    entries.insert(route.name.clone(), entry);
                    changed = true;
                }
            }
        }
        self.raise(changed, next);
    }

    /// Looks for revisions whose requests have ended since the last look.
    pub fn look_for_zero(&self) {
        let mut entries = self.entries.lock();
        let next = *self.version.borrow() + 1;
        let mut changed = false;
        for entry in entries.values_mut() {
            // Every state is asked: a fall that is taken here must not be told again.
            let fell = states(&entry.route).fold(false, |fell, state| state.take_fell() | fell);
            if fell {
                (entry.changed_at, changed) = (next, true);
            }
        }
        self.raise(changed, next);
    }

    /// Wakes the polls, while the entries are locked: nobody sees a new version without its entries.
    fn raise(&self, changed: bool, next: u64) {
        if changed {
            self.version.send_replace(next);
        }
    }

    /// What changed after `since` (0, and anything that this process has not said: all); waits for it up to `wait`.
    pub async fn poll(&self, since: u64, wait: Duration) -> AckReport {
        let deadline = Instant::now() + wait.min(LONGEST_WAIT);
        let mut versions = self.version.subscribe();
        let since = if since > *versions.borrow() { 0 } else { since };
        loop {
            versions.mark_unchanged();
            let report = self.report(since);
            if since == 0 || !report.routes.is_empty() || report.version > since {
                return report;
            }
            if timeout_at(deadline, versions.changed()).await.is_err() {
                return self.report(since);
            }
        }
    }

    fn report(&self, since: u64) -> AckReport {
        let entries = self.entries.lock();
        let routes = entries.values().filter(|entry| entry.changed_at > since).map(Entry::ack).collect();
        AckReport {
            pod_uid: self.pod_uid.clone(),
            instance: self.instance.clone(),
            version: *self.version.borrow(),
            routes,
        }
    }
}

impl Entry {
    /// What was said, with the requests in flight now.
    fn ack(&self) -> RouteAck {
        let mut ack = self.said.clone();
        for revision in &self.route.revisions {
            if let Some(said) = ack.revisions.get_mut(&*revision.name) {
                said.in_flight = revision.state.in_flight();
            }
        }
        for state in &self.route.retired {
            let in_flight = state.in_flight();
            if in_flight > 0 {
                ack.revisions.entry(state.name().to_owned()).or_default().in_flight += in_flight;
            }
        }
        ack
    }
}

fn states(route: &Route) -> impl Iterator<Item = &Arc<RevisionState>> {
    route.revisions.iter().map(|revision| &revision.state).chain(&route.retired)
}

fn describe(route: &Route) -> RouteAck {
    let revisions = route.revisions.iter().enumerate().map(|(index, revision)| {
        let ack = RevisionAck {
            endpoints: revision.counted.iter().map(|uid| uid.to_string()).collect(),
            share: route.share_of(index).parts(),
            in_flight: 0,
        };
        (revision.name.to_string(), ack)
    });
    RouteAck {
        name: route.name.to_string(),
        route_uid: route.uid.clone(),
        generation: route.generation,
        revisions: revisions.collect(),
    }
}
