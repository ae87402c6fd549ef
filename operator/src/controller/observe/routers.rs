//! Which routers are live, that is, may still hold requests, and what they say. Pure but for the words that it is given.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use serin_crds::{InferenceRoute, labels};

use super::pods::{condition, has_ended};
use crate::acks::{Acks, Heard};
use crate::controller::apply::FIELD_MANAGER;
use crate::controller::situation::RouterView;

/// A pod that was to be gone this long ago is gone, whatever its node says.
const PRESUMED_GONE_AFTER: SignedDuration = SignedDuration::from_secs(60);

/// The routers of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routers {
    /// Those that may still hold requests.
    pub live: Vec<RouterView>,
    /// Those whose deletion is so old that they count as gone, by pod name.
    pub presumed_gone: Vec<String>,
}

/// Whether a router may still hold requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It may.
    Live,
    /// It has ended, or has never begun.
    Gone,
    /// Its end is so long overdue that it counts as gone.
    PresumedGone,
}

/// The live routers and what they say of a route.
pub fn live<'a>(
    pods: impl IntoIterator<Item = &'a Arc<Pod>>,
    route: Option<&Arc<InferenceRoute>>,
    acks: &Acks,
    now: Timestamp,
) -> Routers {
    let mut routers = Routers::default();
    for pod in pods.into_iter().filter(|pod| is_router(pod)) {
        let uid = pod.uid().unwrap_or_default();
        let heard = acks.heard(&uid, route.map(|route| route.name_any()).as_deref().unwrap_or_default());
        match life(pod, heard.reached, now) {
            Life::Live => routers.live.push(view(pod, uid, heard, route)),
            Life::PresumedGone => routers.presumed_gone.push(pod.name_any()),
            Life::Gone => {}
        }
    }
    routers
}

/// The pod is a router.
pub fn is_router(pod: &Pod) -> bool {
    pod.labels().get(labels::COMPONENT).is_some_and(|component| component == labels::COMPONENT_ROUTER)
}

/// Whether a router may still hold requests; `reached`: it has answered this process.
pub fn life(pod: &Pod, reached: bool, now: Timestamp) -> Life {
    if has_ended(pod) || !has_started(pod) {
        return Life::Gone;
    }
    // The API server writes the time at which the grace is over.
    let overdue = pod
        .metadata
        .deletion_timestamp
        .as_ref()
        .is_some_and(|end| now.duration_since(end.0) > PRESUMED_GONE_AFTER);
    if overdue {
        return Life::PresumedGone;
    }
    if !reached && !has_been_ready(pod) { Life::Gone } else { Life::Live }
}

fn has_started(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref());
    let started = |container: &ContainerStatus| {
        let state = container.state.as_ref();
        container.restart_count > 0
            || state.is_some_and(|state| state.running.is_some() || state.terminated.is_some())
            || container.last_state.as_ref().is_some_and(|state| state.terminated.is_some())
    };
    statuses.unwrap_or_default().iter().any(started)
}

/// The kubelet writes all conditions of a new pod at the same moment; `Ready` that is still False since then has never been True.
fn has_been_ready(pod: &Pod) -> bool {
    let Some(ready) = condition(pod, "Ready") else { return false };
    if ready.status == "True" {
        return true;
    }
    let first =
        condition(pod, "Initialized").and_then(|initialized| initialized.last_transition_time.as_ref());
    ready.last_transition_time.as_ref() != first
}

fn view(pod: &Pod, uid: String, heard: Heard, route: Option<&Arc<InferenceRoute>>) -> RouterView {
    RouterView {
        pod_uid: uid,
        pod_name: pod.name_any(),
        silent_since: heard.silent_since.or_else(|| overdue_since(&heard, route?)),
        acknowledged_at: heard.acknowledged_at,
        ack: heard.ack,
    }
}

/// A router that hangs keeps its connection and says nothing. A poll is answered at once when there is something new, so silence
/// about the route of today counts from when it was written, or from when the router began to answer: a new one has yet to read it.
fn overdue_since(heard: &Heard, route: &InferenceRoute) -> Option<Timestamp> {
    let generation = route.metadata.generation.unwrap_or_default();
    let current = heard.ack.as_ref().is_some_and(|ack| {
        Some(&ack.route_uid) == route.metadata.uid.as_ref() && ack.generation >= generation
    });
    if current {
        return None;
    }
    let written = route.metadata.managed_fields.as_deref().unwrap_or_default().iter();
    let ours = written.filter(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER));
    let written = ours.filter_map(|entry| entry.time.as_ref()).map(|time| time.0).max()?;
    Some(heard.answers_since.map_or(written, |since| since.max(written)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: i64 = 1_000_000_000;

    fn time(second: i64) -> Value {
        json!(Timestamp::from_second(second).unwrap().to_string())
    }

    fn pod(status: Value, deleted: Option<i64>) -> Pod {
        let mut pod = json!({"metadata": {"name": "serin-router-1", "uid": "pod"}, "status": status});
        if let Some(second) = deleted {
            pod["metadata"]["deletionTimestamp"] = time(second);
        }
        serde_json::from_value(pod).unwrap()
    }

    fn running(ready: &str, ready_since: i64) -> Value {
        json!({
            "phase": "Running",
            "conditions": [
                {"type": "Initialized", "status": "True", "lastTransitionTime": time(100)},
                {"type": "Ready", "status": ready, "lastTransitionTime": time(ready_since)}
            ],
            "containerStatuses": [{
                "name": "router", "image": "", "imageID": "", "ready": ready == "True", "restartCount": 0,
                "state": {"running": {"startedAt": time(101)}}
            }]
        })
    }

    fn check(pod: Pod, reached: bool, expect: Life) {
        assert_eq!(life(&pod, reached, Timestamp::from_second(NOW).unwrap()), expect, "{pod:?}");
    }

    #[test]
    fn a_router_lives_from_its_first_ready_to_its_end() {
        check(pod(running("True", 105), None), false, Life::Live);
        check(pod(running("False", 900), None), false, Life::Live);
        check(pod(running("False", 100), None), false, Life::Gone);
        check(pod(running("False", 100), None), true, Life::Live);
        check(pod(running("False", 900), Some(NOW + 30)), false, Life::Live);
        check(pod(running("False", 900), Some(NOW - 59)), false, Life::Live);
        check(pod(running("False", 900), Some(NOW - 61)), true, Life::PresumedGone);
        check(pod(json!({"phase": "Failed"}), None), true, Life::Gone);
        check(pod(json!({"phase": "Pending"}), None), false, Life::Gone);
    }

    #[test]
    fn a_container_between_restarts_has_started() {
        let mut status = running("False", 900);
        status["containerStatuses"][0]["state"] = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        status["containerStatuses"][0]["lastState"] = json!({"terminated": {"exitCode": 1}});
        check(pod(status, None), false, Life::Live);
    }

    #[test]
    fn silence_about_todays_route_counts_from_when_it_was_written() {
        let route: InferenceRoute = serde_json::from_value(json!({
            "apiVersion": "serving.serin.dev/v1alpha1", "kind": "InferenceRoute",
            "metadata": {"name": "iris", "uid": "route", "generation": 4, "managedFields": [
                {"manager": FIELD_MANAGER, "operation": "Apply", "time": time(50)},
                {"manager": "kubectl", "operation": "Update", "time": time(90)}
            ]},
            "spec": {"specGeneration": 1, "port": 10000, "size": 1}
        }))
        .unwrap();
        let ack = |uid: &str, generation: i64| Heard {
            ack: Some(serin_crds::acks::RouteAck {
                name: "iris".to_owned(),
                route_uid: uid.to_owned(),
                generation,
                revisions: Default::default(),
            }),
            ..Heard::default()
        };
        let written = Timestamp::from_second(50).ok();
        assert_eq!(overdue_since(&ack("route", 4), &route), None);
        assert_eq!(overdue_since(&ack("route", 3), &route), written);
        assert_eq!(overdue_since(&ack("earlier", 9), &route), written);
        assert_eq!(overdue_since(&Heard::default(), &route), written);
        let answers_since =
            |second| Heard { answers_since: Timestamp::from_second(second).ok(), ..Heard::default() };
        assert_eq!(overdue_since(&answers_since(20), &route), written);
        assert_eq!(overdue_since(&answers_since(70), &route), Timestamp::from_second(70).ok());
    }
}
