//! What stands in a revision's way, in the pod's own words. Pure.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod};
use kube::ResourceExt;
use serde::Deserialize;
use serin_crds::reasons;

use crate::controller::observe::pods::{condition, has_ended, is_ready};

/// Why a revision has no ready pod, or fewer than asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// One word.
    pub reason: String,
    /// The sentence, with the pod's name.
    pub message: String,
    /// Exit code of the container, where it ended.
    pub exit_code: Option<i32>,
}

/// The line that the model's server leaves when it ends.
#[derive(Deserialize)]
struct Farewell {
    reason: String,
    message: String,
}

/// What stands in the way of these pods: of the newest that has an obstacle, else of the Deployment, whose pods may not be let in.
pub fn obstacle(pods: &[Arc<Pod>], deployment: Option<&Deployment>) -> Option<Obstacle> {
    let mut waiting: Vec<&Arc<Pod>> = pods
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none() && !has_ended(pod) && !is_ready(pod))
        .collect();
    waiting.sort_by_key(|pod| std::cmp::Reverse(pod.creation_timestamp()));
    waiting.into_iter().find_map(|pod| of_pod(pod)).or_else(|| deployment.and_then(refusal))
}

/// A pod that quota or admission does not let in leaves its trace on the Deployment only.
fn refusal(deployment: &Deployment) -> Option<Obstacle> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    let failed = conditions.iter().find(|condition| {
        condition.type_.as_deref() == Some("ReplicaFailure") && condition.status.as_deref() == Some("True")
    })?;
    let message = failed.message.clone().unwrap_or_default();
    Some(Obstacle { reason: reasons::POD_REFUSED.to_owned(), message, exit_code: None })
}

fn of_pod(pod: &Pod) -> Option<Obstacle> {
    let name = pod.name_any();
    if let Some(scheduled) = condition(pod, "PodScheduled").filter(|scheduled| scheduled.status == "False") {
        let message = scheduled.message.clone().unwrap_or_default();
        let message = format!("pod {name}: {message}");
        return Some(Obstacle { reason: reasons::UNSCHEDULABLE.to_owned(), message, exit_code: None });
    }
    let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
    let found = containers.iter().find_map(of_container)?;
    Some(Obstacle { message: format!("pod {name}: {}", found.message), ..found })
}

fn of_container(container: &ContainerStatus) -> Option<Obstacle> {
    let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
    if let Some(waiting) = waiting {
        let message = waiting.message.clone().unwrap_or_default();
        let reason = match waiting.reason.as_deref().unwrap_or_default() {
            "ErrImagePull"
            | "ImagePullBackOff"
            | "InvalidImageName"
            | "ErrImageNeverPull"
            | "ImageInspectError"
            | "RegistryUnavailable" => Some(reasons::IMAGE_PULL),
            "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
                Some(reasons::CONTAINER_CONFIG)
            }
            _ => None,
        };
        if let Some(reason) = reason {
            return Some(Obstacle { reason: reason.to_owned(), message, exit_code: None });
        }
    }
    let ended = |state: &Option<ContainerState>| state.as_ref().and_then(|state| state.terminated.clone());
    of_end(&ended(&container.state).or_else(|| ended(&container.last_state))?)
}

/// Why a container ended, in its own words where it left some.
fn of_end(end: &ContainerStateTerminated) -> Option<Obstacle> {
    let exit_code = Some(end.exit_code);
    let reason = end.reason.as_deref().unwrap_or_default();
    if reason == "OOMKilled" {
        let message = "the container needed more memory than its limit".to_owned();
        return Some(Obstacle { reason: reasons::OOM_KILLED.to_owned(), message, exit_code });
    }
    let text = end.message.as_deref().unwrap_or_default();
    let farewell = text.lines().rev().find_map(|line| serde_json::from_str::<Farewell>(line).ok());
    if let Some(farewell) = farewell.filter(|farewell| is_word(&farewell.reason)) {
        return Some(Obstacle { reason: farewell.reason, message: farewell.message, exit_code });
    }
    if end.exit_code == 0 {
        return None;
    }
    let message =
        format!("the container ended with exit code {}; see `kubectl logs --previous`", end.exit_code);
    Some(Obstacle { reason: reasons::CRASH_LOOP.to_owned(), message, exit_code })
}

/// A condition's reason must be one word, or the API server refuses the status.
fn is_word(reason: &str) -> bool {
    reason.starts_with(|char: char| char.is_ascii_alphabetic())
        && reason.len() <= 128
        && reason.chars().all(|char| char.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(status: Value, expect: Option<(&str, &str, Option<i32>)>) {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "status": status})).unwrap();
        let found = obstacle(&[Arc::new(pod)], None);
        let found =
            found.as_ref().map(|found| (found.reason.as_str(), found.message.as_str(), found.exit_code));
        assert_eq!(found, expect);
    }

    fn container(state: Value, last: Value) -> Value {
        json!({"containerStatuses": [{
            "name": "model", "image": "", "imageID": "", "ready": false, "restartCount": 1, "state": state, "lastState": last
        }]})
    }

    #[test]
    fn a_pod_that_comes_up_has_no_obstacle() {
        check(json!({}), None);
        check(container(json!({"running": {}}), json!({})), None);
        check(container(json!({"waiting": {"reason": "ContainerCreating"}}), json!({})), None);
    }

    #[test]
    fn the_pods_own_words() {
        check(
            json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}]}),
            Some(("Unschedulable", "pod p: 0/1 nodes are available", None)),
        );
        check(
            container(json!({"waiting": {"reason": "ImagePullBackOff", "message": "back-off"}}), json!({})),
            Some(("ImagePullFailed", "pod p: back-off", None)),
        );
        let secret =
            json!({"waiting": {"reason": "CreateContainerConfigError", "message": "secret \"s\" not found"}});
        check(
            container(secret, json!({})),
            Some(("ContainerConfigError", "pod p: secret \"s\" not found", None)),
        );
        let back_off = || json!({"waiting": {"reason": "CrashLoopBackOff"}});
        check(
            container(back_off(), json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}})),
            Some(("OOMKilled", "pod p: the container needed more memory than its limit", Some(137))),
        );
        let words = "{\"reason\":\"ModelNotFound\",\"message\":\"s3://m/x: no such object\"}\n";
        check(
            container(back_off(), json!({"terminated": {"exitCode": 3, "message": words}})),
            Some(("ModelNotFound", "pod p: s3://m/x: no such object", Some(3))),
        );
        check(
            container(json!({"running": {}}), json!({"terminated": {"exitCode": 3, "message": words}})),
            Some(("ModelNotFound", "pod p: s3://m/x: no such object", Some(3))),
        );
        let crash = "pod p: the container ended with exit code 1; see `kubectl logs --previous`";
        check(
            container(back_off(), json!({"terminated": {"exitCode": 1, "message": "no json"}})),
            Some(("CrashLoop", crash, Some(1))),
        );
    }

    #[test]
    fn a_pod_that_is_not_let_in_shows_on_the_deployment() {
        let deployment: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "iris-a"}, "spec": {"selector": {}, "template": {}},
            "status": {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}]}
        }))
        .unwrap();
        let found = obstacle(&[], Some(&deployment)).unwrap();
        assert_eq!((found.reason.as_str(), found.message.as_str()), ("PodRefused", "exceeded quota"));
    }
}
