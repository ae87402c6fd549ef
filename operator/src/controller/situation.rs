//! What `plan` reads: the wishes of one InferenceService and what was observed of it. Plain data; no client, no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use serin_crds::acks::RouteAck;
use serin_crds::{InferenceRouteSpec, Share};

/// A checked number of pods or percentage of the service's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// So many pods.
    Pods(u32),
    /// So many hundredths of the size.
    Percent(u32),
}

impl Bound {
    /// e: of `size` pods, a percentage rounded up.
    pub fn rounded_up(self, size: u32) -> u32 {
        match self {
            Bound::Pods(pods) => pods,
            Bound::Percent(percent) => (size * percent).div_ceil(100),
        }
    }

    /// u: of `size` pods, a percentage rounded down.
    pub fn rounded_down(self, size: u32) -> u32 {
        match self {
            Bound::Pods(pods) => pods,
            Bound::Percent(percent) => size * percent / 100,
        }
    }
}

/// What the user asks, checked. Made by `validate`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// `metadata.generation` of the spec.
    pub generation: i64,
    /// T: name of the revision of today's spec.
    pub target: String,
    /// p: `canaryTrafficPercent`.
    pub percent: Option<u8>,
    /// N: size of the service, at least 1.
    pub size: u32,
    /// `rollout.maxSurge`, default 100 %.
    pub max_surge: Bound,
    /// `rollout.maxUnavailable`, default 0.
    pub max_unavailable: Bound,
    /// T is held back (signature, approval) or aborted: x is 0 whatever the percentage.
    pub held: bool,
    /// What a progressive plan asks while no percentage is set.
    pub plan_share: Option<Share>,
    /// Share of S's requests that is copied to T; T needs pods for it.
    pub mirror: Share,
    /// `rollout.progressDeadlineSeconds`.
    pub progress_deadline: Duration,
    /// `spec.router.holdSeconds`.
    pub hold_seconds: u32,
    /// `spec.revisionHistoryLimit`.
    pub history_limit: usize,
    /// `predictor.timeout` of today's spec, in seconds.
    pub timeout_seconds: u32,
    /// The route generation for which a person has released the wait for acknowledgements.
    pub release_hold: Option<i64>,
}

/// The annotation that records the stable revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StableRecord {
    /// The annotation is not there.
    Missing,
    /// It is there and empty: no revision has been stable yet.
    None,
    /// It names a revision.
    Named(String),
}

/// Copies of the stable record, in the order in which they are believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StableCopies {
    /// `InferenceRoute.spec.stable`.
    pub route: Option<String>,
    /// `status.components.predictor.latestRolledoutRevision`.
    pub status: Option<String>,
    /// The revision with the highest promotion number.
    pub promotion: Option<String>,
}

/// One revision as observed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RevisionView {
    /// Its ControllerRevision exists.
    pub recorded: bool,
    /// When its ControllerRevision was made.
    pub created_at: Option<Timestamp>,
    /// `spec.replicas` of its Deployment; None: there is no Deployment.
    pub replicas: Option<u32>,
    /// Pods that exist and have not ended, terminating ones excepted.
    pub pods: u32,
    /// uids of its pods that are Ready and not terminating.
    pub ready: BTreeSet<String>,
    /// When a pod of it last became ready, or was made.
    pub last_ready_at: Option<Timestamp>,
    /// How long a request to it may take, in seconds, from its snapshot.
    pub timeout_seconds: u32,
}

impl RevisionView {
    /// Something of it can still receive requests or holds resources.
    pub fn is_running(&self) -> bool {
        self.replicas.is_some()
    }

    /// Pods that it has or will have.
    pub fn occupies(&self) -> u32 {
        self.replicas.unwrap_or(0).max(self.pods)
    }
}

/// The route as observed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteView {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// Its spec.
    pub spec: InferenceRouteSpec,
}

/// One live router: a pod whose container has ever started and that can still hold requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterView {
    /// uid of the pod.
    pub pod_uid: String,
    /// Name of the pod, for messages.
    pub pod_name: String,
    /// What it said of this route over the connection that stands now; None: nothing is known.
    pub ack: Option<RouteAck>,
    /// When it first said that it uses the generation that it has acknowledged.
    pub acknowledged_at: Option<Timestamp>,
    /// Since when nothing has been heard from it; None: it answers.
    pub silent_since: Option<Timestamp>,
}

/// Everything that `plan` reads beside the wishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Situation {
    /// The recorded stable revision.
    pub stable: StableRecord,
    /// Its copies.
    pub copies: StableCopies,
    /// Every revision of which a ControllerRevision or a Deployment exists, by name.
    pub revisions: BTreeMap<String, RevisionView>,
    /// The route, where there is one.
    pub route: Option<RouteView>,
    /// The port that the route has, or will get.
    pub port: u16,
    /// Every live router.
    pub routers: Vec<RouterView>,
}
