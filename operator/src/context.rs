//! What every pass is given: the client, the caches, the routers' words and the settings. Shared by all passes of one scope.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment};
use k8s_openapi::api::core::v1::{Pod, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::Client;
use kube::runtime::events::Recorder;
use parking_lot::Mutex;
use serin_crds::{InferenceRoute, InferenceServiceStatus, labels};

use crate::acks::Acks;
use crate::args::Settings;
use crate::cache::{Cache, Group};
use crate::metrics::Metrics;

/// The caches of one scope: all namespaces, or one.
#[derive(Clone, Debug)]
pub struct Caches {
    /// Deployments, the routers' among them.
    pub deployments: Cache<Deployment>,
    /// Services.
    pub services: Cache<Service>,
    /// Snapshots of revisions.
    pub revisions: Cache<ControllerRevision>,
    /// Disruption budgets.
    pub budgets: Cache<PodDisruptionBudget>,
    /// Pods, the routers' among them.
    pub pods: Cache<Pod>,
    /// Routes.
    pub routes: Cache<InferenceRoute>,
    /// The routers' accounts.
    pub accounts: Cache<ServiceAccount>,
    /// The routers' rights.
    pub bindings: Cache<RoleBinding>,
}

/// What every pass is given.
#[derive(Clone)]
pub struct Context {
    /// The API server.
    pub client: Client,
    /// What is seen of the cluster.
    pub caches: Caches,
    /// What the routers say.
    pub acks: Acks,
    /// What children are built from.
    pub settings: Settings,
    /// Counters.
    pub metrics: Metrics,
    /// Writes events.
    pub recorder: Recorder,
    /// Ports given out.
    pub ports: Ports,
    /// Failed passes, by object.
    pub failures: Failures,
    /// What was told last, by object.
    pub told: Told,
}

/// What was told last. A pass that begins before the watch has brought the status that the last one wrote would tell all of it again.
/// Nothing is decided by it.
#[derive(Clone, Debug, Default)]
pub struct Told {
    statuses: Arc<Mutex<HashMap<Group, (u64, InferenceServiceStatus)>>>,
    gone: Arc<Mutex<HashSet<String>>>,
}

impl Told {
    /// A status was written, and the object has this version now.
    pub fn wrote(&self, object: Group, version: u64, status: InferenceServiceStatus) {
        self.statuses.lock().insert(object, (version, status));
    }

    /// The status that was written last, where it is newer than this version of the object.
    pub fn newer(&self, object: &Group, version: u64) -> Option<InferenceServiceStatus> {
        let mut statuses = self.statuses.lock();
        if statuses.get(object).is_some_and(|(written, _)| *written <= version) {
            statuses.remove(object);
        }
        statuses.get(object).map(|(_, status)| status.clone())
    }

    /// The first time that this router is presumed gone.
    pub fn is_first_time(&self, pod: &str) -> bool {
        self.gone.lock().insert(pod.to_owned())
    }
}

/// Ports of routes that were given out by this process: two services made at once must not get the same one before either route
/// is seen.
#[derive(Clone, Debug, Default)]
pub struct Ports {
    given: Arc<Mutex<HashMap<String, HashMap<String, u16>>>>,
}

impl Ports {
    /// The port of a service: its `own` where route or Service has one, else the one given before, else a free one that no `other`
    /// has. Ports are given out upwards and the lowest free one only after the last: routers that missed the end of a route go on
    /// serving it on its port for a while.
    pub fn of(&self, group: &Group, own: Option<u16>, others: impl FnOnce() -> Vec<u16>) -> u16 {
        let Some(service) = group.service.clone() else { return labels::ROUTE_PORT_FIRST };
        let mut given = self.given.lock();
        let in_namespace = given.entry(group.namespace.clone()).or_default();
        if let Some(port) = own.or_else(|| in_namespace.get(&service).copied()) {
            in_namespace.insert(service, port);
            return port;
        }
        let others = others();
        let used: BTreeSet<u16> = others.iter().chain(in_namespace.values()).copied().collect();
        let port = next_port(&used).unwrap_or_else(|| {
            // Most of those given out are of services that are long gone.
            in_namespace.clear();
            next_port(&others.into_iter().collect()).unwrap_or(labels::ROUTE_PORT_LAST)
        });
        in_namespace.insert(service, port);
        port
    }
}

fn next_port(used: &BTreeSet<u16>) -> Option<u16> {
    let after = used.last().map_or(labels::ROUTE_PORT_FIRST, |last| last.saturating_add(1));
    let free = |port: &u16| !used.contains(port);
    let upwards = (after..=labels::ROUTE_PORT_LAST).find(free);
    let lowest = || (labels::ROUTE_PORT_FIRST..=labels::ROUTE_PORT_LAST).find(free);
    upwards.or_else(lowest)
}

/// How often each object's pass has failed in a row.
#[derive(Clone, Debug, Default)]
pub struct Failures {
    counts: Arc<Mutex<HashMap<Group, u32>>>,
}

impl Failures {
    const SHORTEST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(60);

    /// A pass has failed: how long to wait before the next, twice as long each time.
    pub fn delay(&self, object: &Group) -> Duration {
        let mut counts = self.counts.lock();
        let count = counts.entry(object.clone()).or_default();
        let delay = Self::SHORTEST.saturating_mul(2u32.saturating_pow(*count));
        *count = count.saturating_add(1);
        delay.min(Self::LONGEST)
    }

    /// A pass has succeeded.
    pub fn reset(&self, object: &Group) {
        self.counts.lock().remove(object);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_given_once_and_a_freed_one_last() {
        let ports = Ports::default();
        assert_eq!(ports.of(&Group::of("ns", "a"), None, Vec::new), 10_000);
        assert_eq!(ports.of(&Group::of("ns", "b"), None, Vec::new), 10_001);
        assert_eq!(ports.of(&Group::of("ns", "a"), None, Vec::new), 10_000, "the one given before");
        assert_eq!(ports.of(&Group::of("other", "a"), None, Vec::new), 10_000, "namespaces are apart");
        assert_eq!(ports.of(&Group::of("ns", "c"), Some(10_007), Vec::new), 10_007, "the route's own");
        assert_eq!(ports.of(&Group::of("ns", "d"), None, || vec![10_004]), 10_008);
    }

    #[test]
    fn ports_of_services_that_are_gone_are_given_again_before_one_is_given_twice() {
        let (ports, kept) = (Ports::default(), labels::ROUTE_PORT_FIRST);
        for number in labels::ROUTE_PORT_FIRST..=labels::ROUTE_PORT_LAST {
            assert_eq!(ports.of(&Group::of("ns", &number.to_string()), None, Vec::new), number);
        }
        assert_eq!(ports.of(&Group::of("ns", "next"), None, || vec![kept]), kept + 1);
    }

    #[test]
    fn a_status_is_remembered_until_the_watch_has_brought_it() {
        let (told, object) = (Told::default(), Group::of("ns", "iris"));
        told.wrote(object.clone(), 7, InferenceServiceStatus::default());
        assert!(told.newer(&object, 6).is_some());
        assert!(told.newer(&object, 7).is_none());
        assert!(told.newer(&object, 6).is_none(), "forgotten");
        assert!(told.is_first_time("router") && !told.is_first_time("router"));
    }

    #[test]
    fn past_the_last_port_the_lowest_free_one_is_next() {
        assert_eq!(next_port(&[19_999].into()), Some(10_000));
        assert_eq!(next_port(&[10_000, 10_001, 19_999].into()), Some(10_002));
    }

    #[test]
    fn each_failure_doubles_the_delay() {
        let failures = Failures::default();
        let object = Group::of("ns", "iris");
        let delays: Vec<u128> = (0..4).map(|_| failures.delay(&object).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800]);
        assert_eq!(failures.delay(&Group::of("ns", "other")).as_millis(), 100);
        for _ in 0..40 {
            failures.delay(&object);
        }
        assert_eq!(failures.delay(&object), Failures::LONGEST);
        failures.reset(&object);
        assert_eq!(failures.delay(&object).as_millis(), 100);
    }
}
