//! The one model of this server on its way from a URI to ready: fetched, loaded, warmed up. Others look at where it
//! stands without ever waiting.

use crate::instance::{Factory, Instances};
use crate::metrics::Metrics;
use crate::model::onnx::{Library, SessionOptions};
use crate::model::{LoadError, Model, Signature};
use crate::storage::{self, Location, Progress, StorageError};
use arc_swap::ArcSwapOption;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

/// What stands between now and the first answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Bytes are coming.
    Fetching,
    /// ONNX Runtime reads the file.
    Loading,
    /// The first runs, on generated inputs.
    WarmingUp,
    /// The model answers.
    Ready,
}

impl Phase {
    /// A word for answers and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fetching => "fetching",
            Self::Loading => "loading",
            Self::WarmingUp => "warming-up",
            Self::Ready => "ready",
        }
    }
}

/// A model that answers.
pub struct Served {
    /// Names, types and shapes.
    pub signature: Signature,
    /// `sha256:<hex>` of the files that were loaded.
    pub digest: String,
    /// The file that was loaded.
    pub file: PathBuf,
    /// Bytes of all its files.
    pub bytes: u64,
    /// Those who run it.
    pub instances: Instances,
}

/// How the model is to be loaded.
pub struct Settings {
    /// Where it is.
    pub location: Location,
    /// How it is fetched.
    pub storage: storage::Settings,
    /// The shared library of ONNX Runtime.
    pub onnxruntime: PathBuf,
    /// Threads of each instance.
    pub threads: usize,
    /// How many instances run side by side.
    pub instances: usize,
    /// How many requests may wait.
    pub queue_size: usize,
}

/// Why the model can never be ready.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It could not be fetched.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// It was fetched, but could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
}

impl Failure {
    /// A word for the termination message.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Storage(StorageError::Permanent { reason, .. }) => reason,
            Self::Storage(StorageError::Transient(_)) => "StorageUnavailable",
            Self::Load(error) => error.reason(),
        }
    }
}

/// The model's name and state.
pub struct Repository {
    name: String,
    phase: AtomicU8,
    progress: Progress,
    served: ArcSwapOption<Served>,
    metrics: Arc<Metrics>,
}

impl Repository {
    /// Nothing is loaded yet.
    pub fn new(name: String, metrics: Arc<Metrics>) -> Self {
        let phase = AtomicU8::new(Phase::Fetching as u8);
        Self { name, phase, progress: Progress::default(), served: ArcSwapOption::empty(), metrics }
    }

    /// The model's name in every protocol.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the model stands.
    pub fn phase(&self) -> Phase {
        [Phase::Fetching, Phase::Loading, Phase::WarmingUp, Phase::Ready]
            [usize::from(self.phase.load(Ordering::Acquire)).min(3)]
    }

    /// Bytes fetched so far.
    pub fn fetched_bytes(&self) -> u64 {
        self.progress.bytes()
    }

    /// The model, once it answers.
    pub fn served(&self) -> Option<Arc<Served>> {
        self.served.load_full()
    }

    /// Whether requests would be answered: loaded, and no instance has died.
    pub fn is_ready(&self) -> bool {
        self.served.load().as_ref().is_some_and(|served| served.instances.all_alive())
    }

    /// Takes the model away and waits until its instances have ended. Blocks.
    pub fn unload(&self) {
        if let Some(served) = self.served.swap(None) {
            served.instances.stop();
        }
    }

    /// Brings the model to ready.
    ///
    /// # Errors
    /// Only what stays true however often it is tried.
    pub async fn load(self: &Arc<Self>, settings: Settings) -> Result<Arc<Served>, Failure> {
        let started = Instant::now();
        let fetched = storage::fetch(&settings.location, &settings.storage, &self.progress).await?;
        self.progress.set(fetched.bytes);
        tracing::info!(bytes = fetched.bytes, digest = fetched.digest, "the model is here");
        self.enter(Phase::Loading);
        let (this, file) = (self.clone(), fetched.model_file.clone());
        let started_instances = tokio::task::spawn_blocking(move || this.start(&settings, file));
        let (instances, loaded) = started_instances
            .await
            .map_err(|error| LoadError::Unsupported(format!("loading the model panicked: {error}")))??;
        if let Some(failure) = loaded.warm_up_failure {
            tracing::warn!("the warm-up on generated inputs failed, which real inputs may not: {failure}");
        }
        for output in &loaded.signature.left_out {
            tracing::warn!("output {output} is not a tensor and is left out");
        }
        let served = Arc::new(Served {
            signature: loaded.signature,
            digest: fetched.digest,
            file: fetched.model_file,
            bytes: fetched.bytes,
            instances,
        });
        self.metrics.model_load_seconds.set(started.elapsed().as_secs_f64());
        self.served.store(Some(served.clone()));
        self.enter(Phase::Ready);
        self.metrics.ready.set(1);
        Ok(served)
    }

    fn start(
        &self,
        settings: &Settings,
        file: PathBuf,
    ) -> Result<(Instances, crate::instance::Loaded), LoadError> {
        let library = Library::load(&settings.onnxruntime)?;
        let options = SessionOptions::new(settings.threads);
        let factory: Factory =
            Arc::new(move || library.open(&file, &options).map(|model| Box::new(model) as Box<dyn Model>));
        let warming_up = || self.enter(Phase::WarmingUp);
        Instances::start(settings.instances, settings.queue_size, &factory, &self.metrics, &warming_up)
    }

    fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
        tracing::debug!(phase = phase.name(), "phase");
    }
}
