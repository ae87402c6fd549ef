//! Condition types and reasons: the words that `kubectl wait`, dashboards and people rely on.

/// Condition types of an InferenceService.
pub mod conditions {
    /// Can serve requests now; never drops because of a canary.
    pub const READY: &str = "Ready";
    /// The revision that serves has ready pods.
    pub const PREDICTOR_READY: &str = "PredictorReady";
    /// The namespace's routers are ready.
    pub const ROUTER_READY: &str = "RouterReady";
    /// The canary can take its share (True with reason `NoCanary` when there is none).
    pub const CANARY_READY: &str = "CanaryReady";
    /// The rollout is moving or has arrived; False when something stands in its way.
    pub const PROGRESSING: &str = "Progressing";
    /// Every live router uses the shares of the current route.
    pub const TRAFFIC_APPLIED: &str = "TrafficApplied";
    /// The revision of today's spec is the recorded stable one.
    pub const PROMOTED: &str = "Promoted";
}

/// There is no canary: today's spec is the stable revision.
pub const NO_CANARY: &str = "NoCanary";
/// Everything that this condition speaks of is as asked.
pub const READY: &str = "Ready";
/// The canary's pods carry the share asked.
pub const CANARY_SERVING: &str = "CanaryServing";
/// The canary runs at 0 % by request.
pub const CANARY_PAUSED: &str = "CanaryAtZero";
/// Pods are being created or are loading the model.
pub const WAITING_FOR_PODS: &str = "WaitingForPods";
/// Fewer pods are ready than the share asked needs.
pub const WEIGHT_LIMITED: &str = "WaitingForReadyPods";
/// No new ready pod and no loaded byte for `rollout.progressDeadlineSeconds`.
pub const PROGRESS_DEADLINE_EXCEEDED: &str = "ProgressDeadlineExceeded";
/// Children exist, but nothing says which revision is stable.
pub const STABLE_UNKNOWN: &str = "StableUnknown";
/// A child of this name belongs to something else.
pub const NAME_TAKEN: &str = "NameTaken";
/// The spec passes the API server's rules and is refused by the operator; what ran before goes on.
pub const INVALID_SPEC: &str = "InvalidSpec";
/// The canary is held back from its share.
pub const HELD: &str = "Held";
/// A router has not acknowledged the route for 5 s.
pub const ROUTER_SILENT: &str = "RouterSilent";
/// Waiting for the routers to acknowledge the route.
pub const WAITING_FOR_ROUTERS: &str = "WaitingForRouters";
/// No router's admin port could be reached.
pub const ADMIN_PORT_UNREACHABLE: &str = "AdminPortUnreachable";
/// Nothing serves.
pub const NO_READY_PODS: &str = "NoReadyPods";
/// The promotion is under way.
pub const PROMOTING: &str = "Promoting";
/// A canary takes its share; it is not the stable revision.
pub const CANARY_RUNNING: &str = "CanaryRunning";
/// The revision of today's spec is recorded as stable.
pub const PROMOTED: &str = "Promoted";
/// The first revision has no ready pod yet.
pub const FIRST_REVISION: &str = "FirstRevision";
/// The rollout has arrived at what the spec asks.
pub const COMPLETE: &str = "Complete";
/// The image could not be pulled.
pub const IMAGE_PULL: &str = "ImagePullFailed";
/// No node has room for the pod, or none matches.
pub const UNSCHEDULABLE: &str = "Unschedulable";
/// The container was killed for memory.
pub const OOM_KILLED: &str = "OOMKilled";
/// The container ends again and again.
pub const CRASH_LOOP: &str = "CrashLoop";
/// The pod could not be created (quota, admission).
pub const POD_REFUSED: &str = "PodRefused";
/// The pod's containers cannot be made (missing Secret or ConfigMap, ...).
pub const CONTAINER_CONFIG: &str = "ContainerConfigError";

/// Event reasons that are not condition reasons.
pub mod events {
    /// A percentage was set while there is nothing to split.
    pub const NOTHING_TO_SPLIT: &str = "NothingToSplit";
    /// The first ready pod of the first revision, or a promotion, was recorded.
    pub const STABLE_RECORDED: &str = "StableRecorded";
    /// A revision was created.
    pub const REVISION_CREATED: &str = "RevisionCreated";
    /// A revision was drained and deleted.
    pub const REVISION_DELETED: &str = "RevisionDeleted";
    /// The share asked of the canary changed.
    pub const SHARE_CHANGED: &str = "ShareChanged";
    /// A router whose deletion is older than its grace + 60 s counts as gone.
    pub const ROUTER_PRESUMED_GONE: &str = "RouterPresumedGone";
    /// A router that is silent holds back what needs its acknowledgement.
    pub const ROUTER_SILENT: &str = "RouterSilent";
    /// A revision's obstacle.
    pub const REVISION_FAILED: &str = "RevisionFailed";
    /// The service can serve.
    pub const READY: &str = "Ready";
}
