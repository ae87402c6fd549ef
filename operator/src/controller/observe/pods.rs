//! What a pod's status says of it. Pure.

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::jiff::Timestamp;

/// A condition of a pod.
pub fn condition<'a>(pod: &'a Pod, name: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == name)
}

/// It has ended and will not come back.
pub fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// It exists, has not ended and is not on its way out.
pub fn is_staying(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none() && !has_ended(pod)
}

/// It takes requests.
pub fn is_ready(pod: &Pod) -> bool {
    is_staying(pod) && condition(pod, "Ready").is_some_and(|ready| ready.status == "True")
}

/// Since when it has been ready.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    if !is_ready(pod) {
        return None;
    }
    condition(pod, "Ready")?.last_transition_time.as_ref().map(|time| time.0)
}

/// Since when it has existed, while it is to stay.
pub fn staying_since(pod: &Pod) -> Option<Timestamp> {
    is_staying(pod).then(|| pod.metadata.creation_timestamp.as_ref().map(|time| time.0))?
}
