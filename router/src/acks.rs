//! What this router uses, as the operator asks for it (`serin_crds::acks`): kept per route with the version at which it
//! last changed, so that a long poll answers with what is new. No IO.

use std::collections::{BTreeMap, HashSet};
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
        let names: HashSet<&str> = routes.iter().map(|route| &*route.name).collect();
        entries.retain(|name, _| names.contains(&**name));
        for route in routes {
            // Of a thousand routes a change touches one.
            if entries.get(&route.name).is_some_and(|entry| Arc::ptr_eq(&entry.route, route)) {
                continue;
            }
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

#[cfg(test)]
mod tests {
    use std::time::Instant as StdInstant;

    use futures::FutureExt;
    use serde_json::json;
    use serin_crds::InferenceRoute;
    use tokio::sync::Notify;

    use super::*;
    use crate::table::{Builder, SliceIndex};

    fn build(name: &str, generation: i64, revisions: &[&str], previous: Option<&Route>) -> Arc<Route> {
        let builder = Builder {
            namespace: "shop".into(),
            idle_timeout: Duration::from_secs(1),
            fell_to_zero: Arc::new(Notify::new()),
        };
        let revisions: Vec<_> = revisions
            .iter()
            .map(|name| json!({"name": name, "service": name, "timeoutSeconds": 1}))
            .collect();
        let source: InferenceRoute = serde_json::from_value(json!({
            "apiVersion": "serving.serin.dev/v1alpha1", "kind": "InferenceRoute",
            "metadata": {"name": name, "uid": format!("uid-{name}"), "generation": generation},
            "spec": {"specGeneration": 1, "port": 10000, "size": 1, "stable": "a", "revisions": revisions},
        }))
        .expect("a valid route");
        Arc::new(builder.build(&source, None, &SliceIndex::default(), previous, StdInstant::now()).route)
    }

    fn names(report: &AckReport) -> Vec<(String, i64)> {
        report.routes.iter().map(|route| (route.name.clone(), route.generation)).collect()
    }

    #[tokio::test]
    async fn a_poll_answers_with_what_changed_or_waits() {
        let book = AckBook::new("pod".into());
        let first = book.poll(0, Duration::from_secs(60)).now_or_never().expect("since 0 answers at once");
        assert_eq!((first.version, first.routes.len()), (1, 0));
        let (one, two) = (build("one", 1, &["a"], None), build("two", 1, &["a"], None));
        book.update(&[one.clone(), two.clone()]);
        let all = book.poll(first.version, Duration::ZERO).await;
        assert_eq!(names(&all), [("one".into(), 1), ("two".into(), 1)]);
        assert_eq!((all.pod_uid.as_str(), all.instance.as_str()), ("pod", first.instance.as_str()));
        book.update(&[one.clone(), two.clone()]);
        let quiet = book.poll(all.version, Duration::from_millis(20)).await;
        assert_eq!((quiet.version, quiet.routes.len()), (all.version, 0), "nothing new: the wait is over");
        let waiting = book.poll(all.version, Duration::from_secs(60));
        let change = async { book.update(&[one.clone(), build("two", 2, &["a"], Some(&two))]) };
        let (new, ()) = tokio::join!(waiting, change);
        assert_eq!(names(&new), [("two".into(), 2)]);
        assert!(new.version > all.version);
        let from_another_process = book.poll(new.version + 100, Duration::from_secs(60)).now_or_never();
        assert_eq!(from_another_process.expect("it answers at once").routes.len(), 2);
        assert_ne!(AckBook::new("pod".into()).instance, book.instance);
    }

    #[tokio::test]
    async fn a_revision_that_left_is_told_until_its_last_request_ended() {
        let book = AckBook::new("pod".into());
        let before = build("one", 1, &["a", "b"], None);
        let old = before.revisions[1].state.clone();
        old.enter();
        let after = build("one", 2, &["a"], Some(&before));
        book.update(std::slice::from_ref(&after));
        let report = book.poll(0, Duration::ZERO).await;
        assert_eq!(report.routes[0].revisions["b"], RevisionAck { in_flight: 1, ..RevisionAck::default() });
        book.look_for_zero();
        assert_eq!(book.poll(report.version, Duration::ZERO).await.version, report.version, "nothing ended");
        old.leave();
        book.look_for_zero();
        let ended = book.poll(report.version, Duration::ZERO).await;
        assert_eq!(names(&ended), [("one".into(), 2)]);
        assert!(!ended.routes[0].revisions.contains_key("b"));
    }
}
