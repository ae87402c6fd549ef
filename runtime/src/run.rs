//! The wiring, and nothing else: settings to parts, parts to servers, signals to the end.

use crate::admin::Admin;
use crate::args::Serve;
use crate::cpu_budget::{self, Budget, Source};
use crate::http::{App, Listener, Settings as HttpSettings};
use crate::metrics::Metrics;
use crate::model::example;
use crate::protocol::v2;
use crate::repository::{self, Failure, Repository, Served};
use crate::shutdown::{self, Drain, Limits};
use crate::storage::{self, Location, default_model_name, without_secrets};
use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::IsTerminal;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// The model can never be loaded; starting again would not help.
const EXIT_PERMANENT: u8 = 3;
/// How long a run that was cut short may take to notice.
const UNLOAD_LIMIT: Duration = Duration::from_secs(3);
/// For writing the answers to runs that were cut short.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Serves a model until told to stop.
///
/// # Errors
/// What keeps the program from starting at all, such as a port in use.
pub fn serve(args: &Serve) -> anyhow::Result<ExitCode> {
    start_log();
    raise_file_limit();
    let in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    let threads = Threads::choose(args);
    // Reading and writing JSON is the servers' work; more workers than cores would only compete with the model.
    let workers = threads.budget.threads().min(8);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let code = runtime.block_on(Server::new(args, in_pod, threads).run());
    // A thread may still sit in ONNX Runtime; nothing is lost by not waiting for it.
    runtime.shutdown_background();
    code
}

/// Text for people, JSON lines for machines, on standard error; standard output has only what is meant for scripts.
fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("SERIN_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,ort=warn"));
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // Fails only where a log is set up already, which then serves.
    let _ = if std::io::stderr().is_terminal() {
        log.try_init()
    } else {
        log.json().flatten_event(true).try_init()
    };
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

/// How the cores are used.
#[derive(Debug, Clone, Copy)]
struct Threads {
    budget: Budget,
    intra: usize,
    instances: usize,
}

impl Threads {
    fn choose(args: &Serve) -> Self {
        let budget = cpu_budget::decide(cpu_budget::facts(args.cpu_request));
        let instances = usize::from(args.instances);
        match args.threads {
            Some(intra) => {
                let budget = Budget { source: Source::Flag, ..budget };
                Self { budget, intra: usize::from(intra), instances }
            }
            None => Self { budget, intra: (budget.threads() / instances).max(1), instances },
        }
    }
}

struct Server<'a> {
    args: &'a Serve,
    in_pod: bool,
    threads: Threads,
    name: String,
    metrics: Arc<Metrics>,
    repository: Arc<Repository>,
    drain: Arc<Drain>,
}

impl<'a> Server<'a> {
    fn new(args: &'a Serve, in_pod: bool, threads: Threads) -> Self {
        let name = args.model_name.clone().unwrap_or_else(|| default_model_name(&args.model));
        let metrics = Arc::new(Metrics::new());
        metrics.intra_threads.set(threads.intra as i64);
        let repository = Arc::new(Repository::new(name.clone(), metrics.clone()));
        Self { args, in_pod, threads, name, metrics, repository, drain: Arc::default() }
    }

    async fn run(self) -> anyhow::Result<ExitCode> {
        let mut signals = Signals::listen()?;
        let traffic = bind(self.args, self.args.port, "--port").await?;
        let admin = bind(self.args, self.args.admin_port, "--admin-port").await?;
        let (port, admin_port) = (traffic.address().port(), admin.address().port());
        self.log_start(port, admin_port);
        // The admin port goes on answering to the very end, so that probes and scrapes see the drain.
        tokio::spawn(admin.serve(self.admin().router(), std::future::pending()));
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async move { drop(stopped.await) };
        let traffic = tokio::spawn(traffic.serve(self.app()?.router(), stopped));
        let scratch = Scratch::new(self.args.model_dir.clone());

        let loading = self.load(&scratch.0);
        tokio::pin!(loading);
        tokio::select! {
            loaded = &mut loading => match loaded {
                Ok(served) => self.announce(&served, port, admin_port),
                Err(failure) => return Ok(self.give_up(&failure)),
            },
            name = signals.next() => {
                tracing::info!(signal = name, "stopped while the model was {}", self.repository.phase().name());
                return Ok(ExitCode::SUCCESS);
            }
        }

        let name = signals.next().await;
        tracing::info!(signal = name, in_flight = self.drain.in_flight(), "draining");
        tokio::select! {
            () = self.end(stop, traffic) => tracing::info!("drained"),
            name = signals.next() => tracing::warn!(signal = name, "stopped without waiting"),
        }
        self.unload().await;
        Ok(ExitCode::SUCCESS)
    }

    /// Serves until it is quiet, lets the connections end, and at the limit cuts short what still runs.
    async fn end(&self, stop: oneshot::Sender<()>, mut traffic: JoinHandle<()>) {
        let limits = Limits { idle: self.args.drain_idle(self.in_pod), limit: self.args.drain_limit };
        let deadline = tokio::time::Instant::now() + limits.limit;
        shutdown::finished(&self.drain, limits).await;
        drop(stop);
        if tokio::time::timeout_at(deadline, &mut traffic).await.is_err() {
            tracing::warn!(in_flight = self.drain.in_flight(), "the drain's limit is reached");
            self.unload().await;
            let _ = tokio::time::timeout(LAST_ANSWERS, traffic).await;
        }
    }

    async fn unload(&self) {
        let repository = self.repository.clone();
        let unloaded = tokio::task::spawn_blocking(move || repository.unload());
        if tokio::time::timeout(UNLOAD_LIMIT, unloaded).await.is_err() {
            tracing::warn!("the model does not end its run");
        }
    }

    async fn load(&self, directory: &Path) -> Result<Arc<Served>, Failure> {
        let settings = repository::Settings {
            location: Location::parse(&self.args.model, &self.args.pvc_root)?,
            storage: storage::Settings {
                directory: directory.to_owned(),
                size_limit: self.args.model_size_limit,
                backoff: storage::Backoff::default(),
                environment: std::env::vars().filter(|(name, _)| name.starts_with("AWS_")).collect(),
            },
            onnxruntime: self.args.onnxruntime.clone(),
            threads: self.threads.intra,
            instances: self.threads.instances,
            queue_size: self.args.queue_size as usize,
        };
        self.repository.load(settings).await
    }

    fn app(&self) -> anyhow::Result<App> {
        let settings = HttpSettings {
            identity: self.args.identity.clone(),
            timeout: self.args.timeout,
            max_request_bytes: usize::try_from(self.args.max_request_bytes).context("--max-request-bytes")?,
        };
        Ok(App::new(self.repository.clone(), self.metrics.clone(), self.drain.clone(), settings))
    }

    fn admin(&self) -> Admin {
        let choices = serde_json::json!({
            "uri": without_secrets(&self.args.model),
            "identity": self.args.identity,
            "cores": self.threads.budget.cores,
            "coresFrom": self.threads.budget.source.to_string(),
            "intraThreads": self.threads.intra,
            "instances": self.threads.instances,
            "queueSize": self.args.queue_size,
            "timeoutSeconds": self.args.timeout.as_secs_f64(),
        });
        Admin {
            repository: self.repository.clone(),
            metrics: self.metrics.clone(),
            choices: Arc::new(choices),
        }
    }

    fn log_start(&self, port: u16, admin_port: u16) {
        let Threads { budget, intra, instances } = self.threads;
        let uri = without_secrets(&self.args.model);
        tracing::info!(port, admin_port, model = self.name, uri, "listening");
        tracing::info!(
            cores = budget.cores,
            source = %budget.source,
            intra_threads = intra,
            inter_threads = 1,
            instances,
            spinning = false,
            "threads"
        );
        if intra * instances > budget.threads() {
            tracing::warn!("{} threads will share {} cores", intra * instances, budget.cores);
        }
    }

    /// One line for machines, and for people a command that works.
    fn announce(&self, served: &Served, port: u16, admin_port: u16) {
        tracing::info!(model = self.name, digest = served.digest, port, admin_port, "ready");
        if std::io::stdout().is_terminal() {
            println!("{}", try_it(&self.name, served, port, admin_port));
        }
    }

    fn give_up(&self, failure: &Failure) -> ExitCode {
        let (reason, message) = (failure.reason(), failure.to_string());
        tracing::error!(reason, "the model can never be loaded: {message}");
        if let Some(path) = self.args.termination_log(self.in_pod) {
            let line = serde_json::json!({ "reason": reason, "message": message });
            if let Err(error) = std::fs::write(&path, format!("{line}\n")) {
                tracing::error!("cannot write `{}`: {error}", path.display());
            }
        }
        ExitCode::from(EXIT_PERMANENT)
    }
}

/// A `curl` that can be pasted; where the inputs are too many to show, it asks the admin port for them.
fn try_it(name: &str, served: &Served, port: u16, admin_port: u16) -> String {
    let body = v2::write_request(&served.signature, &example::inputs(&served.signature));
    let body = String::from_utf8_lossy(&body);
    let url = format!("http://localhost:{port}/v2/models/{name}/infer");
    let command = if body.len() <= 600 {
        format!("curl -s {url} -d '{}'", body.replace('\'', r"'\''"))
    } else {
        format!("curl -s http://localhost:{admin_port}/example | curl -s {url} -d @-")
    };
    format!("\n{name} is ready. Try:\n\n  {command}\n")
}

/// Without an address given, all of them; a machine without IPv6 has only those of IPv4.
async fn bind(args: &Serve, port: u16, flag: &str) -> anyhow::Result<Listener> {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    if args.host.is_none()
        && let Ok(listener) = Listener::bind(any).await
    {
        return Ok(listener);
    }
    let address = SocketAddr::new(args.host.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), port);
    Listener::bind(address).await.with_context(|| format!("cannot listen on {address} ({flag})"))
}

/// Where downloads go. One that was made here is removed at the end.
struct Scratch(PathBuf, bool);

impl Scratch {
    fn new(given: Option<PathBuf>) -> Self {
        match given {
            Some(directory) => Self(directory, false),
            None => Self(std::env::temp_dir().join(format!("serin-{:016x}", rand::random::<u64>())), true),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.1 {
            // Not there unless something was downloaded.
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
