//! Carries out a plan. The order of writes lives here and nowhere else; each place in it has its reason.
//!
//! A crash between any two writes ends in the same state, because the next pass starts from what is there. All writes but events
//! and status pass through [`writer::Writer`].

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ListParams};
use serin_crds::{InferenceRoute, InferenceRouteSpec, InferenceService, labels};
use thiserror::Error;
use tokio::time::Instant;

use super::build::metadata::{Ownership, ownership};
use super::build::{budget, deployment, pod, revision, route, service};
use super::observe::{Observed, last_promotion, routers};
use super::plan::{Plan, Record, RecordCause};
use super::revision::Snapshot;
use super::situation::{RouterView, StableRecord};
use super::validate::Valid;
use crate::cache::Group;
use crate::context::Context;

mod contains;
pub mod writer;

use writer::Writer;
pub use writer::{FIELD_MANAGER, is_ending};

/// Why a plan was not carried out to its end.
#[derive(Debug, Error)]
pub enum Error {
    /// A write was not made.
    #[error(transparent)]
    Write(#[from] writer::Error),
    /// The routers could not be listed, so nothing was taken away.
    #[error("failed to list the routers")]
    ListRouters(#[source] Box<kube::Error>),
    /// Other routers are live than those that the plan heard.
    #[error("the routers have changed meanwhile")]
    RoutersChanged,
}

impl Error {
    /// The kind of the error, for metrics.
    pub fn category(&self) -> &'static str {
        match self {
            Error::Write(error) => error.category(),
            Error::ListRouters(_) => "list_routers",
            Error::RoutersChanged => "routers_changed",
        }
    }

    /// Somebody else has to finish first (the garbage collector).
    pub fn is_waiting(&self) -> bool {
        matches!(self, Error::Write(writer::Error::Going { .. }))
    }

    /// The pass has only to be done again: nothing is wrong.
    pub fn is_passing(&self) -> bool {
        match self {
            Error::Write(error) => error.is_passing(),
            Error::RoutersChanged => true,
            Error::ListRouters(_) => false,
        }
    }
}

/// What was done, for events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Revisions that were made.
    pub created: Vec<String>,
    /// Revisions whose pods were taken away.
    pub deleted: Vec<String>,
    /// The stable record that was written.
    pub recorded: Option<Record>,
    /// The route before and after, where it was written. None before: it is new.
    pub route: Option<(Option<InferenceRouteSpec>, InferenceRouteSpec)>,
}

/// One plan and what it was made from.
pub struct Pass<'a> {
    /// The InferenceService as read.
    pub service: &'a InferenceService,
    /// Its checked spec.
    pub valid: &'a Valid,
    /// What was observed.
    pub observed: &'a Observed,
    /// What to do.
    pub plan: &'a Plan,
    /// Client, caches and settings.
    pub context: &'a Context,
    /// When the pass began.
    pub began: Instant,
}

/// Carries out a plan; `applied` tells what was done also where it ends with an error.
///
/// # Errors
/// The first write that failed. Everything before it is done; the next pass goes on.
pub async fn apply(pass: &Pass<'_>, applied: &mut Applied) -> Result<(), Error> {
    let owner = &pass.valid.owner;
    let whose = |metadata: &ObjectMeta| -> Ownership { ownership(metadata, owner) };
    let writer = Writer::new(&pass.context.client, &owner.namespace, &pass.context.metrics, &whose);
    // A crash after the first child must not leave "no record, but children", which nobody could read.
    pass.record(&writer, applied, &[RecordCause::Begin, RecordCause::Recovered, RecordCause::First]).await?;
    // Callers feel the route, and a lowered share must not wait for anything. What it names may come after it: a revision without
    // endpoints has no share in force.
    let routed = pass.observed.children.routes.contains_key(&owner.name);
    if routed {
        pass.route(&writer, applied).await?;
    }
    pass.revisions(&writer, applied).await?;
    // The address comes before the first route, so that the route's port is never without its Service.
    pass.main_service(&writer).await?;
    if !routed {
        pass.route(&writer, applied).await?;
    }
    pass.grow(&writer).await?;
    // What rests on acknowledgements comes only now, and only if the routers that acknowledged are all that there are.
    if pass.rests_on_acknowledgements() {
        pass.same_routers().await?;
    }
    pass.record(&writer, applied, &[RecordCause::Promoted]).await?;
    // A copy of the record, hence after it.
    pass.count_promotion(&writer).await?;
    // Last of all, what takes away.
    pass.shrink(&writer).await?;
    pass.delete(&writer, applied).await?;
    pass.sweep(&writer).await?;
    pass.forget(&writer).await
}

impl Pass<'_> {
    async fn record(
        &self,
        writer: &Writer<'_>,
        applied: &mut Applied,
        causes: &[RecordCause],
    ) -> Result<(), Error> {
        let Some(record) = self.plan.record.as_ref().filter(|record| causes.contains(&record.cause)) else {
            return Ok(());
        };
        // With the version that was read: whoever changed the service meanwhile, its new spec is looked at first.
        writer.annotate(self.service, labels::STABLE_REVISION, &record.revision, true).await?;
        applied.recorded = Some(record.clone());
        Ok(())
    }

    async fn route(&self, writer: &Writer<'_>, applied: &mut Applied) -> Result<(), Error> {
        let owner = &self.valid.owner;
        let live = self.observed.children.routes.get(&owner.name);
        let before = live.map(|live| live.spec.clone());
        let newest = before.as_ref().map_or(0, |before| before.spec_generation);
        if newest > self.plan.route.spec_generation {
            return Err(writer::Error::Stale(format!("InferenceService {}", owner.name)).into());
        }
        let desired: InferenceRoute = route::route(owner, &self.plan.route);
        if writer.ensure(desired, &self.context.caches.routes, live, true).await? {
            self.context.metrics.route_written(self.began.elapsed().as_secs_f64());
            applied.route = Some((before, self.plan.route.clone()));
        }
        Ok(())
    }

    /// Snapshot, Service, Deployment and budget of every revision that is kept, the new one included.
    async fn revisions(&self, writer: &Writer<'_>, applied: &mut Applied) -> Result<(), Error> {
        for name in &self.plan.keep {
            // The snapshot first: a Deployment whose revision is unknown could not be put back.
            let snapshot = self.snapshot(writer, name, applied).await?;
            self.revision_objects(writer, name, snapshot.as_ref()).await?;
        }
        Ok(())
    }

    /// What a revision holds; that of a new one is made here.
    async fn snapshot(
        &self,
        writer: &Writer<'_>,
        name: &str,
        applied: &mut Applied,
    ) -> Result<Option<Snapshot>, Error> {
        let (owner, caches) = (&self.valid.owner, &self.context.caches);
        let children = &self.observed.children;
        if let Some(live) = children.revisions.get(name) {
            writer.ensure(revision::kept(owner, live), &caches.revisions, Some(live), false).await?;
            return Ok(self.observed.snapshots.get(name).cloned());
        }
        if self.plan.create.as_deref() != Some(name) {
            return Ok(None);
        }
        let predictor = &self.valid.predictor;
        let template = pod::template(owner, name, predictor, &self.context.settings);
        let snapshot = Snapshot::new(predictor, template);
        let last = children.revisions.values().filter_map(|revision| revision.revision).max();
        let desired = revision::controller_revision(owner, name, last.unwrap_or(0) + 1, &snapshot);
        if writer.ensure(desired, &caches.revisions, None, false).await? {
            applied.created.push(name.to_owned());
        }
        Ok(Some(snapshot))
    }

    async fn revision_objects(
        &self,
        writer: &Writer<'_>,
        name: &str,
        snapshot: Option<&Snapshot>,
    ) -> Result<(), Error> {
        let (owner, caches) = (&self.valid.owner, &self.context.caches);
        let children = &self.observed.children;
        let desired = service::revision_service(owner, name);
        writer.ensure(desired, &caches.services, children.services.get(name), false).await?;
        if let Some(snapshot) = snapshot {
            let live = children.deployments.get(name);
            let mut desired = deployment::deployment(owner, name, &snapshot.pod_template);
            if live.is_none() {
                // Without a number the API server would start one pod; `grow` gives it.
                desired.spec.replicas = Some(0);
            }
            writer.ensure(desired, &caches.deployments, live, false).await?;
        }
        let live = children.budgets.get(name);
        if self.plan.route.size >= 2 {
            writer.ensure(budget::revision_budget(owner, name), &caches.budgets, live, false).await?;
        } else if let Some(live) = live {
            writer.delete(&**live, &caches.budgets).await?;
        }
        Ok(())
    }

    async fn main_service(&self, writer: &Writer<'_>) -> Result<(), Error> {
        let owner = &self.valid.owner;
        let live = self.observed.children.services.get(&owner.name);
        let desired = service::main_service(owner, self.plan.route.port);
        writer.ensure(desired, &self.context.caches.services, live, false).await?;
        Ok(())
    }

    async fn grow(&self, writer: &Writer<'_>) -> Result<(), Error> {
        for (name, replicas) in &self.plan.grow {
            if let Some(live) = self.deployment(name) {
                writer.scale(&live, *replicas, &self.context.caches.deployments, false).await?;
            }
        }
        Ok(())
    }

    /// Only of the Deployments as the plan has read them.
    async fn shrink(&self, writer: &Writer<'_>) -> Result<(), Error> {
        for (name, replicas) in &self.plan.shrink {
            if let Some(live) = self.observed.children.deployments.get(name) {
                writer.scale(live, *replicas, &self.context.caches.deployments, true).await?;
            }
        }
        Ok(())
    }

    /// A Deployment as the cache has it now: one that this pass has just made too.
    fn deployment(&self, name: &str) -> Option<Arc<Deployment>> {
        let owner = &self.valid.owner;
        let group = Group::of(&owner.namespace, &owner.name);
        self.context.caches.deployments.of(&group).get(name).cloned()
    }

    /// The stable revision bears the highest number: the last of the copies that tell it.
    async fn count_promotion(&self, writer: &Writer<'_>) -> Result<(), Error> {
        let StableRecord::Named(stable) = &self.observed.situation.stable else { return Ok(()) };
        let last = last_promotion(&self.observed.children);
        let Some(live) = self.observed.children.revisions.get(stable) else { return Ok(()) };
        if last.as_ref().is_some_and(|(name, _)| name == stable) {
            return Ok(());
        }
        let number = last.map_or(0, |(_, number)| number) + 1;
        let written = writer.annotate(&**live, labels::PROMOTION, &number.to_string(), true).await?;
        self.context.caches.revisions.put(written);
        Ok(())
    }

    /// The plan records a promotion, or takes pods away.
    fn rests_on_acknowledgements(&self) -> bool {
        let promotes = self.plan.record.as_ref().is_some_and(|record| record.cause == RecordCause::Promoted);
        promotes || !self.plan.shrink.is_empty() || !self.plan.delete.is_empty()
    }

    /// Lists the live routers from the API server itself, with quorum: a router that the cache has not seen yet may hold a table that
    /// nobody has acknowledged for it.
    async fn same_routers(&self) -> Result<(), Error> {
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &self.valid.owner.namespace);
        let selector = format!("{}={}", labels::COMPONENT, labels::COMPONENT_ROUTER);
        let listed = api.list(&ListParams::default().labels(&selector)).await;
        let listed = listed.map_err(|error| Error::ListRouters(Box::new(error)))?;
        let pods: Vec<Arc<Pod>> = listed.items.into_iter().map(Arc::new).collect();
        let now = routers::live(&pods, None, &self.context.acks, Timestamp::now());
        let uids = |views: &[RouterView]| -> BTreeSet<String> {
            views.iter().map(|view| view.pod_uid.clone()).collect()
        };
        if uids(&now.live) == uids(&self.observed.situation.routers) {
            Ok(())
        } else {
            Err(Error::RoutersChanged)
        }
    }

    /// The Deployment first: it holds the precondition. Budget and Service follow it, here or in [`Pass::sweep`] after a crash.
    async fn delete(&self, writer: &Writer<'_>, applied: &mut Applied) -> Result<(), Error> {
        for name in &self.plan.delete {
            if let Some(live) = self.observed.children.deployments.get(name) {
                // What an old event of the watch has brought back is told of once all the same.
                if writer.delete(&**live, &self.context.caches.deployments).await? {
                    applied.deleted.push(name.clone());
                }
            }
        }
        Ok(())
    }

    /// Services and budgets of revisions that have no Deployment any more.
    async fn sweep(&self, writer: &Writer<'_>) -> Result<(), Error> {
        let (children, caches) = (&self.observed.children, &self.context.caches);
        let is_over = |metadata: &ObjectMeta| {
            let revision = metadata.labels.as_ref().and_then(|labels| labels.get(labels::REVISION));
            revision.is_some_and(|name| !self.plan.keep.contains(name) && self.deployment(name).is_none())
        };
        for live in children.budgets.values().filter(|live| is_over(&live.metadata)) {
            writer.delete(&**live, &caches.budgets).await?;
        }
        for live in children.services.values().filter(|live| is_over(&live.metadata)) {
            writer.delete(&**live, &caches.services).await?;
        }
        Ok(())
    }

    async fn forget(&self, writer: &Writer<'_>) -> Result<(), Error> {
        for name in &self.plan.forget {
            if let Some(live) = self.observed.children.revisions.get(name) {
                writer.delete(&**live, &self.context.caches.revisions).await?;
            }
        }
        Ok(())
    }
}
