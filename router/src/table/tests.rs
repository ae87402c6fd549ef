//! The table as a function of what was seen and when: who counts, who is usable, and that absence is not an order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use proptest::prelude::*;
use serde_json::{Value, json};
use serin_crds::{InferenceRoute, Share};
use tokio::sync::Notify;

use super::*;
use crate::select::{Point, Tried};

const MINUTE: Duration = Duration::from_secs(60);

/// How a slice shows a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Ready,
    Unready,
    Terminating,
    Ended,
}
use Seen::{Ended, Ready, Terminating, Unready};

/// A router's view that the test moves on.
struct View {
    builder: Builder,
    slices: SliceIndex,
    source: InferenceRoute,
    route: Option<Route>,
    start: Instant,
    now: Duration,
}

impl View {
    /// Stable `a`, canary `b` with this share of a service of this size.
    fn new(size: u32, share: u16) -> View {
        let builder = Builder {
            namespace: "shop".into(),
            idle_timeout: Duration::from_secs(1),
            fell_to_zero: Arc::new(Notify::new()),
        };
        let mut view = View {
            builder,
            slices: SliceIndex::default(),
            source: route(size, Some("b"), share, &["a", "b"]),
            route: None,
            start: Instant::now(),
            now: Duration::ZERO,
        };
        view.build();
        view
    }

    fn build(&mut self) -> &Route {
        let now = self.start + self.now;
        let built = self.builder.build(&self.source, None, &self.slices, self.route.as_ref(), now);
        self.route.insert(built.route)
    }

    fn slice(&mut self, revision: &str, name: &str, pods: &[(&str, Seen)]) -> &Route {
        self.slices.apply(slice(revision, name, pods));
        self.build()
    }

    fn delete(&mut self, revision: &str, name: &str) -> &Route {
        self.slices.remove(&slice(revision, name, &[]));
        self.build()
    }

    fn after(&mut self, time: Duration) -> &Route {
        self.now += time;
        self.build()
    }

    fn revision(&self, name: &str) -> &Revision {
        let route = self.route.as_ref().expect("built");
        &route.revisions[route.position(name).expect("a revision of this name")]
    }

    fn counted(&self, name: &str) -> Vec<String> {
        self.revision(name).counted.iter().map(|uid| uid.to_string()).collect()
    }

    /// The first endpoint that a request would go to, and all that it could go to.
    fn reach(&self, name: &str) -> Vec<String> {
        let mut tried = Tried::default();
        let mut order = Vec::new();
        while let Some(endpoint) = self.revision(name).usable.pick(&tried, crate::endpoint::Moment::now()) {
            order.push(endpoint.uid().to_string());
            tried.add(endpoint);
        }
        order
    }
}

fn route(size: u32, canary: Option<&str>, share: u16, revisions: &[&str]) -> InferenceRoute {
    let revisions: Vec<Value> =
        revisions.iter().map(|name| json!({"name": name, "service": name, "timeoutSeconds": 60})).collect();
    serde_json::from_value(json!({
        "apiVersion": "serving.serin.dev/v1alpha1", "kind": "InferenceRoute",
        "metadata": {"name": "iris", "uid": "u", "generation": 1},
        "spec": {"specGeneration": 1, "port": 10000, "size": size, "stable": "a", "canary": canary, "share": share,
                 "stableCount": size, "revisions": revisions},
    }))
    .expect("a valid route")
}

fn slice(revision: &str, name: &str, pods: &[(&str, Seen)]) -> EndpointSlice {
    let endpoints: Vec<Value> = pods
        .iter()
        .map(|(uid, seen)| {
            let last = uid.bytes().map(u32::from).sum::<u32>() % 250;
            json!({
                "addresses": [format!("10.0.0.{last}")],
                "conditions": {
                    "ready": *seen == Ready,
                    "serving": matches!(seen, Ready | Terminating),
                    "terminating": matches!(seen, Terminating | Ended),
                },
                "targetRef": {"kind": "Pod", "uid": uid},
            })
        })
        .collect();
    serde_json::from_value(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": revision}},
        "ports": [{"name": "admin", "port": 8081}, {"name": "http", "port": 8080}],
        "endpoints": endpoints,
    }))
    .expect("a valid slice")
}

#[test]
fn pods_count_once_by_uid_and_only_while_ready() {
    let mut view = View::new(4, 5000);
    view.slice("a", "a-1", &[("p1", Ready), ("p2", Ready), ("p3", Unready), ("p4", Terminating)]);
    // The slice controller is moving p2: two slices show it.
    view.slice("a", "a-2", &[("p2", Ready), ("p5", Ended)]);
    assert_eq!(view.counted("a"), ["p1", "p2"]);
    let reach = view.reach("a");
    assert_eq!(reach.len(), 3);
    assert_eq!(reach[2], "p4", "a terminating pod comes last");
    assert_eq!(view.revision("a").usable.ready[0].address().port(), 8080, "the port named http");
}

#[test]
fn the_share_in_force_follows_the_ready_pods() {
    let mut view = View::new(4, 5000);
    view.slice("a", "a", &[("a1", Ready), ("a2", Ready), ("a3", Ready), ("a4", Ready)]);
    assert_eq!(view.build().share, Share::NONE, "the canary has no pod");
    assert_eq!(view.slice("b", "b", &[("b1", Ready)]).share, Share::from_percent(25));
    assert_eq!(view.slice("b", "b", &[("b1", Ready), ("b2", Ready)]).share, Share::from_percent(50));
    assert_eq!(view.slice("b", "b", &[("b1", Ready), ("b2", Unready)]).share, Share::from_percent(25));
    assert_eq!(view.slice("b", "b", &[("b1", Terminating)]).share, Share::NONE);
}

#[test]
fn the_sequence_begins_anew_with_each_new_share_and_only_then() {
    let mut view = View::new(1, 1000);
    view.slice("a", "a", &[("a1", Ready)]);
    view.slice("b", "b", &[("b1", Ready)]);
    let first = view.build().sequence.clone();
    let same = view.slice("a", "a", &[("a1", Ready), ("a2", Ready)]).sequence.clone();
    assert!(Arc::ptr_eq(&first, &same), "a further pod changes no share");
    view.source.spec.share = 2000;
    assert!(!Arc::ptr_eq(&first, &view.build().sequence));
}

#[test]
fn a_pod_seen_terminating_is_dropped_when_it_vanishes() {
    let mut view = View::new(2, 0);
    view.slice("a", "a", &[("p1", Ready), ("p2", Ready)]);
    view.slice("a", "a", &[("p1", Ready), ("p2", Terminating)]);
    view.slice("a", "a", &[("p1", Ready)]);
    assert_eq!(view.reach("a"), ["p1"]);
}

#[test]
fn a_pod_that_vanishes_without_a_word_is_the_last_resort_for_a_minute() {
    let mut view = View::new(2, 0);
    view.slice("a", "a", &[("p1", Ready), ("p2", Ready), ("p3", Unready)]);
    view.slice("a", "a", &[("p1", Ready)]);
    assert_eq!(view.counted("a"), ["p1"], "it does not count");
    assert_eq!(view.reach("a"), ["p1", "p2"], "it is tried last; what was not ready is not tried");
    view.after(MINUTE - Duration::from_millis(1));
    assert_eq!(view.reach("a"), ["p1", "p2"]);
    view.after(Duration::from_millis(1));
    assert_eq!(view.reach("a"), ["p1"]);
}

#[test]
fn an_empty_list_or_a_deleted_slice_changes_nothing_for_a_minute() {
    let mut view = View::new(2, 5000);
    view.slice("a", "a", &[("a1", Ready), ("a2", Terminating)]);
    let before = view.slice("b", "b", &[("b1", Ready)]).share;
    view.delete("a", "a");
    let after = view.delete("b", "b").share;
    assert_eq!(before, after, "the split is as it was");
    assert_eq!((view.counted("a"), view.counted("b")), (vec!["a1".to_owned()], vec!["b1".to_owned()]));
    assert_eq!(view.reach("a"), ["a1"], "who was leaving is gone");
    view.after(MINUTE / 2);
    assert_eq!(view.slice("a", "a", &[("a1", Ready)]).share, before, "back before the minute is over");
    view.after(MINUTE);
    assert_eq!(
        (view.counted("a"), view.reach("b")),
        (vec!["a1".to_owned()], vec![]),
        "the other one is over"
    );
}

#[test]
fn endpoints_and_their_state_live_through_tables() {
    let mut view = View::new(2, 0);
    view.slice("a", "a", &[("p1", Ready)]);
    let endpoint = view.revision("a").usable.ready[0].clone();
    view.slice("a", "a", &[("p1", Unready)]);
    view.slice("a", "a", &[("p1", Ready), ("p2", Ready)]);
    assert!(view.revision("a").usable.ready.iter().any(|now| Arc::ptr_eq(now, &endpoint)));
}

#[test]
fn a_revision_that_leaves_is_remembered_while_it_has_requests() {
    let mut view = View::new(1, 5000);
    let state = view.revision("b").state.clone();
    state.enter();
    view.source = route(1, None, 0, &["a"]);
    assert_eq!(view.build().retired.len(), 1);
    assert_eq!(view.build().retired.len(), 1, "still in flight");
    view.source = route(1, Some("b"), 5000, &["a", "b"]);
    assert!(view.build().retired.is_empty());
    assert!(Arc::ptr_eq(&view.revision("b").state, &state), "the count goes on when it comes back");
    state.leave();
    view.source = route(1, None, 0, &["a"]);
    assert_eq!(view.build().retired.len(), 1, "the table before it may still place requests");
    assert!(view.build().retired.is_empty());
}

#[test]
fn candidates_never_include_a_canary_without_share() {
    let mut view = View::new(1, 0);
    let order = |route: &Route, preferred| route.candidates(preferred).collect::<Vec<_>>();
    assert_eq!(order(view.build(), Some(0)), [0]);
    assert_eq!(order(view.build(), Some(1)), [1, 0]);
    view.source.spec.share = 1;
    assert_eq!(order(view.build(), Some(0)), [0, 1]);
    assert_eq!(order(view.build(), None), [0, 1]);
    assert_eq!(view.build().chosen(Point(0)), Some(0), "no pod, no share in force");
}

#[test]
fn a_route_without_stable_sends_all_to_the_first_revision() {
    let mut view = View::new(1, 10_000);
    view.source.spec.stable = None;
    assert_eq!(view.slice("b", "b", &[("b1", Ready)]).share, Share::ALL);
    assert_eq!(view.build().chosen(Point(u64::MAX)), Some(1));
    assert_eq!(view.build().pinned(b"stable"), None);
    view.source.spec.share = 0;
    assert_eq!(
        view.build().chosen(Point(0)),
        None,
        "a canary without a share is held back, whoever is missing"
    );
}

proptest! {
    /// Whatever the slices say in whatever order: nobody who was seen leaving or unready last is called ready, nobody who is
    /// ready is forgotten, and everyone who counts is usable.
    #[test]
    fn who_counts_is_who_was_last_seen_ready(steps in prop::collection::vec((0usize..3, 0usize..5, 0u64..40), 1..40)) {
        let pods = ["p0", "p1", "p2"];
        let mut shown: [Option<Seen>; 3] = [Some(Ready); 3];
        let mut view = View::new(3, 0);
        for (pod, what, seconds) in steps {
            shown[pod] = [Some(Ready), Some(Unready), Some(Terminating), Some(Ended), None][what];
            view.now += Duration::from_secs(seconds);
            let now: Vec<_> = pods.iter().zip(shown).filter_map(|(uid, seen)| Some((*uid, seen?))).collect();
            view.slice("a", "a", &now);
            let ready: Vec<_> = now.iter().filter(|(_, seen)| *seen == Ready).map(|(uid, _)| *uid).collect();
            prop_assert_eq!(view.counted("a"), ready);
            let reach = view.reach("a");
            for uid in view.counted("a") {
                prop_assert!(reach.contains(&uid));
            }
            for (uid, seen) in now {
                prop_assert_eq!(reach.contains(&uid.to_owned()), matches!(seen, Ready | Terminating));
            }
        }
    }
}
