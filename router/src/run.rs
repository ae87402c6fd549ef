//! The only wiring: builds the parts, starts them, and ends the process in order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, interval, sleep};

use crate::acks::AckBook;
use crate::admin::{self, Admin};
use crate::args::Args;
use crate::control::Control;
use crate::forward::{Context, Limits};
use crate::in_flight::Tables;
use crate::replay::HeldMemory;
use crate::server::{Server, Settings, bind, usable_host};
use crate::source;
use crate::table::{Builder, Table};

/// Changes that may wait for the control task.
const CHANGES: usize = 1024;
/// How often the open connections are looked at while the process ends.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// After how many looks without connections it is over.
const QUIET_LOOKS: u32 = 10;

/// Runs the router until it was told to end and has ended what it was doing.
///
/// # Errors
/// When it cannot start: the admin port is taken, or nothing says where the cluster is.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate()).context("SIGTERM cannot be listened to")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be listened to")?;
    raise_file_limit();
    let parts = start(&args).await?;
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    drain(&args, &parts).await;
    Ok(())
}

/// Every connection takes a file descriptor. Container engines begin a process with 1,024 of them and let it raise that
/// itself, which Go programs do unasked.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, most) {
        tracing::warn!(%error, current = limit.current, "the limit of open files stays as it is");
    }
}

/// What ending needs to know.
struct Parts {
    context: Arc<Context>,
    draining: Arc<AtomicBool>,
    connections: Arc<AtomicUsize>,
}

async fn start(args: &Args) -> anyhow::Result<Parts> {
    let context = Arc::new(Context {
        tables: Tables::new(Table::default()),
        memory: Arc::new(HeldMemory::new(args.held_body_bytes, args.held_total_bytes)),
        limits: Limits {
            max_body: args.max_body_bytes,
            body_timeout: Duration::from_secs(args.body_seconds),
            max_waiting: args.max_waiting,
        },
        closing: AtomicBool::new(false),
    });
    let host = usable_host(args.host);
    let settings = Settings {
        host,
        max_connections: args.max_connections,
        head_timeout: Duration::from_secs(args.head_seconds),
        idle_timeout: Duration::from_secs(args.idle_seconds),
    };
    let server = Server::new(context.clone(), settings);
    let connections = server.open_connections();
    let acks = Arc::new(AckBook::new(args.pod_uid.clone()));
    let (ready, draining) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let admin = Admin {
        context: context.clone(),
        acks: acks.clone(),
        ready: ready.clone(),
        draining: draining.clone(),
        connections: connections.clone(),
    };
    let address = SocketAddr::new(host, args.admin_port);
    let listener = bind(address).with_context(|| format!("the admin port {address} cannot be bound"))?;
    let address = listener.local_addr().unwrap_or(address);
    tokio::spawn(admin::serve(listener, Arc::new(admin)));
    let builder = Builder {
        namespace: args.namespace.clone(),
        idle_timeout: Duration::from_secs(args.upstream_idle_seconds),
        fell_to_zero: Arc::new(Notify::new()),
    };
    let (changes, receiver) = mpsc::channel(CHANGES);
    tokio::spawn(Control::new(context.clone(), server, acks, builder, ready).run(receiver));
    tracing::info!(namespace = args.namespace, pod = args.pod_name, admin = %address, "serin-router started");
    match &args.routes_file {
        Some(path) => drop(tokio::spawn(source::follow_file(path.clone(), changes))),
        None => {
            // Set by hand, so that a second provider in the build can never make the choice ambiguous.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let client = kube::Client::try_default().await.context(
                "no cluster: outside of a pod a kubeconfig is needed, or --routes-file for a router without a cluster",
            )?;
            tokio::spawn(source::watch(client, args.namespace.clone(), changes));
        }
    }
    Ok(Parts { context, draining, connections })
}

/// Not ready, then everything as before for a while, then the connections end one by one, each after a response. New ones
/// are accepted to the very end: somebody may not have heard yet.
async fn drain(args: &Args, parts: &Parts) {
    parts.draining.store(true, Ordering::SeqCst);
    tracing::info!(seconds = args.drain_seconds, "draining: not ready, still accepting");
    sleep(Duration::from_secs(args.drain_seconds)).await;
    parts.context.closing.store(true, Ordering::SeqCst);
    tracing::info!(seconds = args.drain_limit, "draining: closing connections after their next response");
    let limit = Instant::now() + Duration::from_secs(args.drain_limit);
    let mut look = interval(LOOK_INTERVAL);
    let mut quiet = 0;
    // One look without connections may only be the moment between a client's last and its next.
    while quiet < QUIET_LOOKS && Instant::now() < limit {
        look.tick().await;
        quiet = if parts.connections.load(Ordering::Relaxed) == 0 { quiet + 1 } else { 0 };
    }
    let left = parts.connections.load(Ordering::Relaxed);
    if left > 0 {
        tracing::warn!(connections = left, "the drain limit is over; connections are cut");
    } else {
        tracing::info!("drained");
    }
}
