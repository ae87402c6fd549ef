//! The routers of each namespace, apart from the passes over its services: made with its first InferenceService, kept as they
//! should be, removed with the last.
//!
//! In: names of namespaces in which something happened. One namespace at a time, so that a new version of the operator does not
//! roll the routers of all of them at once.

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, ListParams};
use kube::runtime::scheduler::{ScheduleRequest, scheduler};
use serin_crds::{InferenceService, labels};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::cache::{Cache, Group};
use crate::causes::causes;
use crate::context::Context;
use crate::controller::apply::writer::{self, Child, Writer};
use crate::controller::build::metadata::Ownership;
use crate::controller::build::router;

/// Why the routers of a namespace are not as they should be.
#[derive(Debug, Error)]
pub enum Error {
    /// A write was not made.
    #[error(transparent)]
    Write(#[from] writer::Error),
    /// It could not be found out whether an InferenceService is left.
    #[error("failed to list the InferenceServices")]
    List(#[source] Box<kube::Error>),
}

/// Keeps the routers of every namespace that is named, until the names end. `is_served`: the cache knows an InferenceService there.
pub async fn run(
    context: Arc<Context>,
    names: impl Stream<Item = String> + Send,
    is_served: impl Fn(&str) -> bool + Send,
) {
    let (again, later) = mpsc::unbounded_channel();
    let soon = names.map(|namespace| ScheduleRequest { message: namespace, run_at: Instant::now() });
    // The retries end with the names: a sender of them lives here.
    let (ended, end) = tokio::sync::oneshot::channel::<()>();
    let soon = soon.chain(stream::once(async move { drop(ended) }).filter_map(|()| async { None }));
    let requests = stream::select(soon, UnboundedReceiverStream::new(later).take_until(end));
    let mut due = std::pin::pin!(scheduler(requests));
    while let Some(namespace) = due.next().await {
        let group = Group::shared(&namespace);
        match keep(&context, &namespace, is_served(&namespace)).await {
            Ok(()) => context.failures.reset(&group),
            Err(error) => {
                let passing = matches!(&error, Error::Write(error) if error.is_passing());
                let delay = if passing { Duration::from_secs(1) } else { context.failures.delay(&group) };
                if !passing {
                    tracing::warn!(namespace, error = causes(&error), "failed to keep the routers");
                }
                let _ = again.send(ScheduleRequest { message: namespace, run_at: Instant::now() + delay });
            }
        }
    }
}

/// Makes the routers of a namespace as they should be, or removes them.
///
/// # Errors
/// The first call that failed.
pub async fn keep(context: &Context, namespace: &str, served: bool) -> Result<(), Error> {
    let writer = Writer::new(&context.client, namespace, &context.metrics, &whose);
    if served {
        return ensure(context, &writer, namespace).await;
    }
    let shared = Group::shared(namespace);
    if context.caches.deployments.of(&shared).is_empty()
        && context.caches.accounts.of(&shared).is_empty()
        && context.caches.bindings.of(&shared).is_empty()
    {
        return Ok(());
    }
    // A cache may miss a service that was made just now; its routers must not go.
    let services: Api<InferenceService> = Api::namespaced(context.client.clone(), namespace);
    let left = services.list_metadata(&ListParams::default().limit(1)).await;
    if !left.map_err(|error| Error::List(Box::new(error)))?.items.is_empty() {
        return Ok(());
    }
    remove(context, &writer, &shared).await
}

/// Rights before pods: a router without them would restart.
async fn ensure(context: &Context, writer: &Writer<'_>, namespace: &str) -> Result<(), Error> {
    let (caches, shared) = (&context.caches, Group::shared(namespace));
    one(writer, router::account(namespace), &caches.accounts, &shared).await?;
    one(writer, router::binding(namespace), &caches.bindings, &shared).await?;
    one(writer, router::router_budget(namespace), &caches.budgets, &shared).await?;
    one(writer, router::deployment(namespace, &context.settings), &caches.deployments, &shared).await
}

async fn one<K: Child>(
    writer: &Writer<'_>,
    desired: K,
    cache: &Cache<K>,
    shared: &Group,
) -> Result<(), Error> {
    let live = cache.of(shared).get(labels::ROUTER_NAME).cloned();
    writer.ensure(desired, cache, live.as_ref(), false).await?;
    Ok(())
}

/// Pods before rights: a router drains with what it may read.
async fn remove(context: &Context, writer: &Writer<'_>, shared: &Group) -> Result<(), Error> {
    let caches = &context.caches;
    gone(writer, &caches.deployments, shared).await?;
    gone(writer, &caches.budgets, shared).await?;
    gone(writer, &caches.bindings, shared).await?;
    gone(writer, &caches.accounts, shared).await
}

async fn gone<K: Child>(writer: &Writer<'_>, cache: &Cache<K>, shared: &Group) -> Result<(), Error> {
    if let Some(live) = cache.of(shared).get(labels::ROUTER_NAME) {
        writer.delete(&**live, cache).await?;
    }
    Ok(())
}

/// What carries our labels is ours: these objects have no owner.
fn whose(metadata: &ObjectMeta) -> Ownership {
    let found = metadata.labels.clone().unwrap_or_default();
    let is = |key: &str, value: &str| found.get(key).is_some_and(|found| found == value);
    if is(labels::MANAGED_BY, labels::MANAGED_BY_VALUE) && is(labels::COMPONENT, labels::COMPONENT_ROUTER) {
        Ownership::Ours
    } else {
        Ownership::Foreign("it was not made by Serin".to_owned())
    }
}
