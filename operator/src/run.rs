//! The only wiring: client, lease, caches, queues and the tasks that use them.

use std::convert::Infallible;
use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use futures::future::{BoxFuture, Shared};
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use kube::core::NamespaceResourceScope;
use kube::runtime::controller::{Action, Config, applier};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serin_crds::labels;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tracing::Instrument;

use crate::acks::Acks;
use crate::admin::{self, Admin};
use crate::args::Args;
use crate::cache::{Cache, Group, follow};
use crate::causes::causes;
use crate::context::{Caches, Context, Failures, Ports, Told};
use crate::controller::observe::routers::is_router;
use crate::controller::{self, Error, Watched, reconcile, retry};
use crate::lease::Leadership;
use crate::metrics::Metrics;
use crate::routers;

/// How many passes run at once: enough for a thousand services, few enough for a small API server.
const PASSES: u16 = 32;

type Stop = Shared<BoxFuture<'static, ()>>;
type PassError = kube::runtime::controller::Error<Error, Infallible>;

/// Runs the operator until a stop signal.
///
/// # Errors
/// When the API server cannot be reached at all, a port cannot be bound, or the lease is lost.
pub async fn run(args: Args) -> Result<()> {
    // Two crypto libraries may be linked; which one TLS uses must be said before the first connection.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let stop = stop_signal()?.boxed().shared();
    let config =
        kube::Config::infer().await.context("no way to the API server: neither in a pod nor a kubeconfig")?;
    let namespace = args.pod_namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config).context("failed to make a client")?;
    let metrics = Metrics::default();
    let (acks, news) = Acks::new();
    let (answered, ready) = watch::channel(false);
    let admin = Admin { ready, metrics: metrics.clone(), acks: acks.clone() };
    let listener = TcpListener::bind(("::", args.admin_port)).await;
    let listener = match listener {
        Ok(listener) => listener,
        // A machine without IPv6.
        Err(_) => {
            TcpListener::bind(("0.0.0.0", args.admin_port)).await.context("failed to bind the admin port")?
        }
    };
    tokio::spawn(admin::serve(listener, admin, stop.clone()));

    let mut leadership = Leadership::new(client.clone(), &namespace, &args.pod_name);
    tokio::select! {
        () = leadership.acquire(|| { answered.send_replace(true); }) => {}
        () = stop.clone() => return Ok(()),
    }
    metrics.leads(true);
    let scopes = start(&args, &client, &metrics, &acks, news, &stop);
    tokio::select! {
        lost = leadership.keep() => return Err(lost.into()),
        () = scopes => {}
    }
    leadership.release().await;
    if stop.peek().is_none() {
        bail!("the controller has ended by itself");
    }
    tracing::info!("stopped");
    Ok(())
}

/// One controller for each namespace to be served, or one for all.
async fn start(
    args: &Args,
    client: &Client,
    metrics: &Metrics,
    acks: &Acks,
    news: mpsc::UnboundedReceiver<Group>,
    stop: &Stop,
) {
    let recorder = Recorder::new(
        client.clone(),
        Reporter { controller: "serin-operator".to_owned(), instance: Some(args.pod_name.clone()) },
    );
    let (ports, failures, told) = (Ports::default(), Failures::default(), Told::default());
    let named = args.namespaces();
    let places: Vec<Option<String>> =
        if named.is_empty() { vec![None] } else { named.into_iter().map(Some).collect() };
    let mut scopes = Vec::new();
    let mut doors = Vec::new();
    for place in places {
        let (door, words) = mpsc::unbounded_channel();
        doors.push((place.clone(), door));
        let (caches, touched) = caches(client, place.as_deref(), acks);
        let context = Context {
            client: client.clone(),
            caches,
            acks: acks.clone(),
            settings: args.settings(),
            metrics: metrics.clone(),
            recorder: recorder.clone(),
            ports: ports.clone(),
            failures: failures.clone(),
            told: told.clone(),
        };
        scopes.push(scope(place, Arc::new(context), touched, words, stop.clone()));
    }
    tokio::spawn(hand_out(news, doors));
    stream::iter(scopes).for_each_concurrent(None, |scope| scope).await;
}

/// Gives the routers' words to the controller of their namespace.
async fn hand_out(
    mut news: mpsc::UnboundedReceiver<Group>,
    doors: Vec<(Option<String>, mpsc::UnboundedSender<Group>)>,
) {
    while let Some(group) = news.recv().await {
        let door =
            doors.iter().find(|(place, _)| place.as_ref().is_none_or(|place| *place == group.namespace));
        if let Some((_, door)) = door {
            let _ = door.send(group);
        }
    }
}

fn api<K>(client: &Client, place: Option<&str>) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    match place {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// The caches of one scope, and what happens in them.
fn caches(client: &Client, place: Option<&str>, acks: &Acks) -> (Caches, BoxStream<'static, Group>) {
    fn ours<K>(
        client: &Client,
        place: Option<&str>,
        trim: fn(&mut K),
    ) -> (Cache<K>, BoxStream<'static, Group>)
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        K: Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let selector = format!("{}={}", labels::MANAGED_BY, labels::MANAGED_BY_VALUE);
        let (cache, touched) = follow(api(client, place), watcher::Config::default().labels(&selector), trim);
        (cache, touched.boxed())
    }
    fn unmanaged<K: Resource>(object: &mut K) {
        object.meta_mut().managed_fields = None;
    }
    // Who wrote what is read of Deployments (replicas) and routes (when).
    let (deployments, a) = ours(client, place, |_| {});
    let (routes, b) = ours(client, place, |_| {});
    let (services, c) = ours(client, place, unmanaged);
    let (revisions, d) = ours(client, place, unmanaged);
    let (budgets, e) = ours(client, place, unmanaged);
    let (pods, f) = ours(client, place, unmanaged);
    let (accounts, g) = ours(client, place, unmanaged);
    let (bindings, h) = ours(client, place, unmanaged);
    let (polled, acks) = (pods.clone(), acks.clone());
    let f = f.inspect(move |group| {
        if group.service.is_none() {
            let all = polled.of(group).into_values().filter(|pod| is_router(pod)).collect::<Vec<_>>();
            acks.follow(&group.namespace, &all);
        }
    });
    let touched = stream::select_all([a, b, c, d, e, f.boxed(), g, h]).boxed();
    (Caches { deployments, services, revisions, budgets, pods, routes, accounts, bindings }, touched)
}

/// One controller and the routers of its namespaces, until told to stop. A pass that has begun is ended.
async fn scope(
    place: Option<String>,
    context: Arc<Context>,
    touched: BoxStream<'static, Group>,
    words: mpsc::UnboundedReceiver<Group>,
    stop: Stop,
) {
    let (reader, writer) = store::<Watched>();
    let (namespaces, names) = mpsc::unbounded_channel();
    let served = namespaces.clone();
    let services = watcher(api::<Watched>(&context.client, place.as_deref()), watcher::Config::default())
        .default_backoff()
        .reflect(writer)
        .touched_objects()
        .filter_map(move |touched| {
            let touched = touched.inspect_err(|error| tracing::warn!(%error, "watch failed, goes on")).ok();
            if let Some(namespace) = touched.as_ref().and_then(|service| service.namespace()) {
                let _ = served.send(namespace);
            }
            std::future::ready(touched.map(|service| ObjectRef::from_obj(&service)))
        });
    let known = reader.clone();
    let children = touched.flat_map(move |group| stream::iter(concerned(&known, group, &namespaces)));
    let words = UnboundedReceiverStream::new(words).filter_map(|group| async move { reference(&group) });
    let queue = stream::select_all([services.boxed(), children.boxed(), words.boxed()]);
    let queue = queue.take_until(stop.clone()).map(Ok::<_, Infallible>);
    let known = reader.clone();
    let is_served = move |namespace: &str| serves(&known, namespace);
    let names = UnboundedReceiverStream::new(names).take_until(stop);
    let settled = settle(reader.clone(), context.caches.clone()).shared();
    let ready = settled.clone();
    let routers = async {
        ready.await;
        routers::run(context.clone(), names, is_served).await;
    };
    let passes = applier(
        move |service, context| Box::pin(spawned(service, context, settled.clone())),
        |service, error: &Error, context: Arc<Context>| retry(&service, error, &context),
        context.clone(),
        reader,
        queue,
        Config::default().concurrency(PASSES),
    );
    tokio::join!(passes.for_each(|result| async { report(result) }), routers);
}

/// Waits until everything has been listed once: before that, what is missing could be there.
async fn settle(services: Store<Watched>, mut caches: Caches) {
    let _ = services.wait_until_ready().await;
    caches.deployments.ready().await;
    caches.services.ready().await;
    caches.revisions.ready().await;
    caches.budgets.ready().await;
    caches.pods.ready().await;
    caches.routes.ready().await;
    caches.accounts.ready().await;
    caches.bindings.ready().await;
}

/// A pass in a task of its own, so that passes use all cores and a bug in one ends only that one.
async fn spawned(
    service: Arc<Watched>,
    context: Arc<Context>,
    settled: impl Future<Output = ()> + Send + 'static,
) -> Result<Action, Error> {
    let pass = async move {
        settled.await;
        reconcile(service, context).await
    };
    tokio::spawn(pass.in_current_span()).await.unwrap_or(Err(Error::Panicked))
}

/// The services that an event concerns: its own, or all of a namespace where it is about their routers.
fn concerned(
    known: &Store<Watched>,
    group: Group,
    namespaces: &mpsc::UnboundedSender<String>,
) -> Vec<ObjectRef<Watched>> {
    if let Some(reference) = reference(&group) {
        return vec![reference];
    }
    let _ = namespaces.send(group.namespace.clone());
    let all =
        known.state().into_iter().filter(|service| service.namespace().as_ref() == Some(&group.namespace));
    all.map(|service| ObjectRef::from_obj(&*service)).collect()
}

fn reference(group: &Group) -> Option<ObjectRef<Watched>> {
    group.service.as_ref().map(|name| ObjectRef::new(name).within(&group.namespace))
}

/// The namespace has an InferenceService that is not on its way out.
fn serves(known: &Store<Watched>, namespace: &str) -> bool {
    let is_there = |service: &Watched| {
        service.namespace().as_deref() == Some(namespace) && service.meta().deletion_timestamp.is_none()
    };
    known.find(is_there).is_some()
}

fn report(result: Result<(ObjectRef<Watched>, Action), PassError>) {
    use kube::runtime::controller::Error as Queue;
    match result {
        Ok((object, action)) => tracing::debug!(%object, ?action, "passed"),
        Err(Queue::ReconcilerFailed(error @ controller::Error::Observe(_), object)) => {
            tracing::info!(%object, error = causes(&error), "waits");
        }
        Err(Queue::ReconcilerFailed(controller::Error::Apply(error), object)) if error.is_passing() => {
            tracing::debug!(%object, error = causes(&error), "looks again");
        }
        Err(Queue::ReconcilerFailed(error, object)) => {
            tracing::warn!(%object, error = causes(&error), "pass failed");
        }
        // A child of a service that is gone.
        Err(Queue::ObjectNotFound(object)) => tracing::debug!(%object, "gone"),
        Err(error) => tracing::error!(error = causes(&error), "controller failed"),
    }
}

/// SIGTERM or SIGINT.
fn stop_signal() -> Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
