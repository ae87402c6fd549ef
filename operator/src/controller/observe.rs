//! What is there of one InferenceService: reads the caches and the routers' words; no call of the API, so that a patched percentage
//! reaches the route without waiting for a list.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use kube::{Resource, ResourceExt};
use serin_crds::{InferenceRoute, InferenceService, labels};
use thiserror::Error;

use super::build::metadata::{Owner, Ownership, ownership};
use super::revision::{DEFAULT_TIMEOUT_SECONDS, Known, Snapshot};
use super::situation::{RevisionView, RouteView, Situation, StableCopies, StableRecord};
use crate::cache::{Cache, Group};
use crate::context::{Caches, Context};

pub mod pods;
pub mod routers;

/// Why nothing can be decided yet.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum Error {
    /// A child of an earlier InferenceService of this name is still there; the garbage collector is about to take it.
    #[error("{kind} {name} of an earlier InferenceService of this name is still there")]
    Awaited {
        /// Kind of the child.
        kind: String,
        /// Name of the child.
        name: String,
    },
}

/// The children of one InferenceService, by name. Those of others are not among them.
#[derive(Clone, Debug, Default)]
pub struct Children {
    /// Snapshots.
    pub revisions: BTreeMap<String, Arc<ControllerRevision>>,
    /// Deployments.
    pub deployments: BTreeMap<String, Arc<Deployment>>,
    /// Services: the one for callers and those of revisions.
    pub services: BTreeMap<String, Arc<Service>>,
    /// Disruption budgets.
    pub budgets: BTreeMap<String, Arc<PodDisruptionBudget>>,
    /// The route, by the service's name.
    pub routes: BTreeMap<String, Arc<InferenceRoute>>,
}

/// Everything that one pass reads.
#[derive(Clone, Debug)]
pub struct Observed {
    /// What `plan` reads.
    pub situation: Situation,
    /// Live children, for `apply`.
    pub children: Children,
    /// What the revisions hold.
    pub snapshots: BTreeMap<String, Snapshot>,
    /// Pods by revision, terminating ones too.
    pub pods: BTreeMap<String, Vec<Arc<Pod>>>,
    /// The routers' pods.
    pub router_pods: Vec<Arc<Pod>>,
    /// The routers' Deployment.
    pub router_deployment: Option<Arc<Deployment>>,
    /// Routers whose deletion is so old that they count as gone, by pod name.
    pub presumed_gone: Vec<String>,
}

impl Observed {
    /// The revisions that today's spec is compared with.
    pub fn known(&self) -> Vec<Known> {
        let views = self.situation.revisions.iter();
        let known = views.map(|(name, view)| Known {
            name: name.clone(),
            predictor: self.snapshots.get(name).map(|snapshot| snapshot.predictor.clone()),
            running: view.is_running(),
            created_at: view.created_at,
        });
        known.collect()
    }

    /// The stable revision as far as it can be told without a plan: the record, else the copies in their order.
    pub fn stable(&self) -> Option<&str> {
        match &self.situation.stable {
            StableRecord::Named(name) => Some(name),
            StableRecord::None => None,
            StableRecord::Missing => {
                let copies = &self.situation.copies;
                copies.route.as_deref().or(copies.status.as_deref()).or(copies.promotion.as_deref())
            }
        }
    }
}

/// Reads what is there.
///
/// # Errors
/// [`Error::Awaited`] while children of an earlier InferenceService of this name are there.
pub fn observe(
    service: &InferenceService,
    owner: &Owner,
    context: &Context,
    now: Timestamp,
) -> Result<Observed, Error> {
    let group = Group::of(&owner.namespace, &owner.name);
    let caches = &context.caches;
    let children = Children {
        revisions: own(&caches.revisions, &group, owner)?,
        deployments: own(&caches.deployments, &group, owner)?,
        services: own(&caches.services, &group, owner)?,
        budgets: own(&caches.budgets, &group, owner)?,
        routes: own(&caches.routes, &group, owner)?,
    };
    let route = children.routes.get(&owner.name).filter(|route| is_kept(*route));
    // Where the route is missing, callers are led to the port that the Service has.
    let own = route.map(|route| route.spec.port);
    let own = own.or_else(|| children.services.get(&owner.name).and_then(|service| routed_port(service)));
    let port = context.ports.of(&group, own, || ports_in_use(caches, &owner.namespace));
    let pods = by_revision(caches.pods.of(&group));
    let shared = Group::shared(&owner.namespace);
    let router_pods: Vec<Arc<Pod>> =
        caches.pods.of(&shared).into_values().filter(|pod| routers::is_router(pod)).collect();
    let routers = routers::live(&router_pods, route, &context.acks, now);
    let snapshots: BTreeMap<_, _> = children
        .revisions
        .iter()
        .filter_map(|(name, revision)| Some((name.clone(), Snapshot::read(revision)?)))
        .collect();
    let situation = Situation {
        stable: stable_record(service),
        copies: StableCopies {
            route: route.and_then(|route| route.spec.stable.clone()),
            status: status_copy(service),
            promotion: last_promotion(&children).map(|(name, _)| name),
        },
        revisions: views(&children, &snapshots, &pods),
        route: route.map(|route| RouteView {
            uid: route.uid().unwrap_or_default(),
            generation: route.metadata.generation.unwrap_or_default(),
            spec: route.spec.clone(),
        }),
        port,
        routers: routers.live,
    };
    Ok(Observed {
        situation,
        children,
        snapshots,
        pods,
        router_pods,
        router_deployment: caches.deployments.of(&shared).get(labels::ROUTER_NAME).cloned(),
        presumed_gone: routers.presumed_gone,
    })
}

/// The objects of a group that are ours or can be adopted.
fn own<K>(cache: &Cache<K>, group: &Group, owner: &Owner) -> Result<BTreeMap<String, Arc<K>>, Error>
where
    K: Resource<DynamicType = ()> + Clone,
{
    let mut all = cache.of(group);
    let dead = all.iter().find(|(_, object)| ownership(object.meta(), owner) == Ownership::Dead);
    if let Some((name, _)) = dead {
        return Err(Error::Awaited { kind: K::kind(&()).into_owned(), name: name.clone() });
    }
    all.retain(|_, object| matches!(ownership(object.meta(), owner), Ownership::Ours | Ownership::Orphan));
    Ok(all)
}

/// Every port of a namespace that a route has or a Service leads to.
fn ports_in_use(caches: &Caches, namespace: &str) -> Vec<u16> {
    let routes = caches.routes.in_namespace(namespace).into_iter().map(|route| route.spec.port);
    let services = caches.services.in_namespace(namespace);
    routes.chain(services.iter().filter_map(|service| routed_port(service))).collect()
}

/// The port in the routers' pods that the Service for callers leads to.
fn routed_port(service: &Service) -> Option<u16> {
    let ports = service.spec.as_ref()?.ports.as_ref()?;
    let Some(IntOrString::Int(port)) = ports.first()?.target_port else { return None };
    u16::try_from(port)
        .ok()
        .filter(|port| (labels::ROUTE_PORT_FIRST..=labels::ROUTE_PORT_LAST).contains(port))
}

fn is_kept<K: Resource>(object: &Arc<K>) -> bool {
    object.meta().deletion_timestamp.is_none()
}

fn by_revision(pods: BTreeMap<String, Arc<Pod>>) -> BTreeMap<String, Vec<Arc<Pod>>> {
    let mut all: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
    for pod in pods.into_values() {
        if let Some(revision) = pod.labels().get(labels::REVISION).cloned() {
            all.entry(revision).or_default().push(pod);
        }
    }
    all
}

fn stable_record(service: &InferenceService) -> StableRecord {
    match service.annotations().get(labels::STABLE_REVISION).map(|name| name.trim()) {
        None => StableRecord::Missing,
        Some("") => StableRecord::None,
        Some(name) => StableRecord::Named(name.to_owned()),
    }
}

fn status_copy(service: &InferenceService) -> Option<String> {
    let components = service.status.as_ref()?.components.as_ref()?;
    components.predictor.latest_rolledout_revision.clone()
}

/// The revision that was promoted last, by the copies on the ControllerRevisions, and the number of promotions.
pub fn last_promotion(children: &Children) -> Option<(String, u64)> {
    let number =
        |metadata: &ObjectMeta| metadata.annotations.as_ref()?.get(labels::PROMOTION)?.parse::<u64>().ok();
    let promotions = children
        .revisions
        .iter()
        .filter_map(|(name, revision)| Some((name.clone(), number(&revision.metadata)?)));
    promotions.max_by_key(|(_, number)| *number)
}

fn views(
    children: &Children,
    snapshots: &BTreeMap<String, Snapshot>,
    pods: &BTreeMap<String, Vec<Arc<Pod>>>,
) -> BTreeMap<String, RevisionView> {
    let recorded = children.revisions.iter().filter(|(_, revision)| is_kept(*revision));
    let running = children.deployments.iter().filter(|(_, deployment)| is_kept(*deployment));
    let names = recorded.map(|(name, _)| name).chain(running.map(|(name, _)| name));
    names.map(|name| (name.clone(), view(name, children, snapshots, pods))).collect()
}

fn view(
    name: &str,
    children: &Children,
    snapshots: &BTreeMap<String, Snapshot>,
    pods: &BTreeMap<String, Vec<Arc<Pod>>>,
) -> RevisionView {
    let revision = children.revisions.get(name).filter(|revision| is_kept(*revision));
    let deployment = children.deployments.get(name).filter(|deployment| is_kept(*deployment));
    let pods = pods.get(name).map(Vec::as_slice).unwrap_or_default();
    RevisionView {
        recorded: revision.is_some(),
        created_at: revision.and_then(|revision| revision.creation_timestamp()).map(|time| time.0),
        replicas: deployment.map(|deployment| {
            deployment.spec.replicas.and_then(|replicas| u32::try_from(replicas).ok()).unwrap_or(1)
        }),
        pods: u32::try_from(pods.iter().filter(|pod| pods::is_staying(pod)).count()).unwrap_or(u32::MAX),
        ready: pods.iter().filter(|pod| pods::is_ready(pod)).filter_map(|pod| pod.uid()).collect(),
        // A pod that has just been asked for is progress too: what is resized late is not stuck at once.
        last_ready_at: pods
            .iter()
            .filter_map(|pod| pods::ready_since(pod).or_else(|| pods::staying_since(pod)))
            .max(),
        timeout_seconds: snapshots.get(name).map_or(DEFAULT_TIMEOUT_SECONDS, Snapshot::timeout_seconds),
    }
}
