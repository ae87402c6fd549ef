//! Instances of a model: each is an operating system thread that owns one [`Model`] and pulls jobs from the shared
//! queue. A run takes `&mut` by ONNX Runtime's rules, and a thread of its own needs no lock.

use crate::metrics::Metrics;
use crate::model::{LoadError, Model, RunError, Signature, Stopper, Tensor, example};
use crate::queue::{Entry, Queue, Refused};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// One run that is asked for.
struct Job {
    inputs: Vec<Tensor>,
    outputs: Vec<usize>,
    reply: oneshot::Sender<Result<Vec<Tensor>, InferError>>,
}

impl Entry for Job {
    /// The receiving end is dropped when the caller hangs up and when its deadline passes.
    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }
}

/// Why a run gave no answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InferError {
    /// Nothing was executed; the caller may come back after this time, in seconds.
    #[error("the queue is full: {waiting} requests wait")]
    QueueFull {
        /// How many wait.
        waiting: usize,
        /// An estimate of when there will be room.
        retry_after: u64,
    },
    /// Nothing was executed; the model is being taken down.
    #[error("the model is shutting down")]
    ShuttingDown,
    /// The deadline passed while the request waited or ran.
    #[error("no answer within {0} ms")]
    DeadlineExceeded(u128),
    /// The model refused or failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The instance died under the request.
    #[error("the instance that ran the request died")]
    InstanceDied,
}

/// What a model says about itself once its instances stand.
#[derive(Debug)]
pub struct Loaded {
    /// The tensors, with what the warm-up found out.
    pub signature: Signature,
    /// Why the warm-up on generated inputs failed, if it did; real inputs may well work.
    pub warm_up_failure: Option<String>,
}

/// All instances of one model and the queue in front of them.
pub struct Instances {
    queue: Arc<Queue<Job>>,
    alive: Arc<AtomicUsize>,
    count: usize,
    threads: Mutex<Vec<(JoinHandle<()>, Stopper)>>,
    /// A moving average of what a run takes, in nanoseconds.
    run_nanoseconds: Arc<AtomicU64>,
}

/// Makes the model of one instance, on the instance's thread.
pub type Factory = Arc<dyn Fn() -> Result<Box<dyn Model>, LoadError> + Send + Sync>;

impl Instances {
    /// Starts `count` threads, lets each make its model and warm it up, and waits until all stand. One after the other,
    /// so that later ones find the weights that the first has prepared. `loaded` is called after each model was made
    /// and before it is warmed up.
    ///
    /// # Errors
    /// The first failure to make a model.
    pub fn start(
        count: usize,
        capacity: usize,
        factory: &Factory,
        metrics: &Arc<Metrics>,
        loaded: &(dyn Fn() + Send + Sync),
    ) -> Result<(Self, Loaded), LoadError> {
        let instances = Self {
            queue: Arc::new(Queue::new(capacity)),
            alive: Arc::new(AtomicUsize::new(0)),
            count: count.max(1),
            threads: Mutex::default(),
            run_nanoseconds: Arc::new(AtomicU64::new(0)),
        };
        let mut first = None;
        for number in 0..instances.count {
            let standing = instances.start_one(number, factory, metrics, loaded)?;
            first.get_or_insert(standing);
        }
        let standing = first.unwrap_or_else(|| unreachable!("at least one instance was started"));
        Ok((instances, standing))
    }

    fn start_one(
        &self,
        number: usize,
        factory: &Factory,
        metrics: &Arc<Metrics>,
        loaded: &(dyn Fn() + Send + Sync),
    ) -> Result<Loaded, LoadError> {
        let (made_sender, made) = std::sync::mpsc::channel();
        let (warm_sender, warm) = std::sync::mpsc::channel();
        let worker = Worker {
            queue: self.queue.clone(),
            alive: Alive::new(&self.alive, &self.queue),
            run_nanoseconds: self.run_nanoseconds.clone(),
            metrics: metrics.clone(),
        };
        let factory = factory.clone();
        let thread = std::thread::Builder::new().name(format!("instance-{number}"));
        let spawned = thread.spawn(move || {
            let mut model = match factory() {
                Ok(model) => model,
                Err(error) => return drop(made_sender.send(Err(error))),
            };
            drop(made_sender.send(Ok(model.stopper())));
            let warm_up_failure = warm_up(model.as_mut()).err().map(|error| error.to_string());
            drop(warm_sender.send(Loaded { signature: model.signature().clone(), warm_up_failure }));
            worker.work(model.as_mut());
        });
        let died =
            || LoadError::Unsupported("ONNX Runtime's binding panicked while it read the model".to_owned());
        let thread =
            spawned.map_err(|error| LoadError::Unsupported(format!("cannot start a thread: {error}")))?;
        let stopper = made.recv().map_err(|_| died())??;
        self.threads.lock().push((thread, stopper));
        loaded();
        warm.recv().map_err(|_| died())
    }

    /// Runs the model once. Dropping the future drops the request if it still waits.
    ///
    /// # Errors
    /// See [`InferError`].
    pub async fn infer(
        &self,
        inputs: Vec<Tensor>,
        outputs: Vec<usize>,
        timeout: Duration,
    ) -> Result<Vec<Tensor>, InferError> {
        let (reply, answer) = oneshot::channel();
        self.queue.push(Job { inputs, outputs, reply }).map_err(|refused| match refused {
            Refused::Full(_) => self.full(),
            Refused::Closed(_) => InferError::ShuttingDown,
        })?;
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(InferError::InstanceDied),
            Err(_) => Err(InferError::DeadlineExceeded(timeout.as_millis())),
        }
    }

    fn full(&self) -> InferError {
        let waiting = self.queue.len();
        let nanoseconds = self.run_nanoseconds.load(Ordering::Relaxed).saturating_mul(waiting as u64);
        let seconds = nanoseconds / self.count as u64 / 1_000_000_000;
        InferError::QueueFull { waiting, retry_after: seconds.clamp(1, 60) }
    }

    /// How many requests wait for an instance.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Takes no more requests, cuts short what runs, and waits until the threads have ended.
    pub fn stop(&self) {
        self.queue.close();
        for (thread, stopper) in self.threads.lock().drain(..) {
            stopper();
            // One that panicked has ended as well.
            let _ = thread.join();
        }
    }

    /// Whether every instance still lives.
    pub fn all_alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed) == self.count
    }
}

impl Drop for Instances {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// The first runs allocate and plan; they are made before anybody waits for them.
fn warm_up(model: &mut dyn Model) -> Result<(), RunError> {
    let inputs = example::inputs(model.signature());
    let outputs = model.signature().all_outputs();
    for _ in 0..2 {
        model.run(&inputs, &outputs)?;
    }
    Ok(())
}

/// Counts a thread while it lives. The last to go, by a panic too, sends away whoever still waits.
struct Alive {
    count: Arc<AtomicUsize>,
    queue: Arc<Queue<Job>>,
}

impl Alive {
    fn new(count: &Arc<AtomicUsize>, queue: &Arc<Queue<Job>>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self { count: count.clone(), queue: queue.clone() }
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        if self.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.queue.close();
            while let Some(job) = self.queue.pull() {
                drop(job.reply.send(Err(InferError::ShuttingDown)));
            }
        }
    }
}

struct Worker {
    queue: Arc<Queue<Job>>,
    #[allow(dead_code, reason = "held for its drop")]
    alive: Alive,
    run_nanoseconds: Arc<AtomicU64>,
    metrics: Arc<Metrics>,
}

impl Worker {
    fn work(&self, model: &mut dyn Model) {
        while let Some(job) = self.queue.pull() {
            let started = Instant::now();
            let result = model.run(&job.inputs, &job.outputs).map_err(InferError::from);
            let took = started.elapsed();
            self.metrics.run_seconds.observe(took.as_secs_f64());
            self.remember(took);
            // The caller may have gone meanwhile; then nobody wants the result.
            drop(job.reply.send(result));
        }
    }

    /// An eighth of each new run: smooth, and following a change of load within a dozen requests.
    fn remember(&self, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let before = self.run_nanoseconds.load(Ordering::Relaxed);
        let average = if before == 0 { took } else { before - before / 8 + took / 8 };
        self.run_nanoseconds.store(average, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{DataType, TensorData, TensorSpec};
    use std::sync::mpsc;

    /// Doubles its input; negative numbers fail, 99 kills the thread, and 0 waits until it is let go.
    struct Double {
        signature: Signature,
        gate: Arc<parking_lot::Mutex<mpsc::Receiver<()>>>,
    }

    impl Model for Double {
        fn signature(&self) -> &Signature {
            &self.signature
        }

        fn run(&mut self, inputs: &[Tensor], _: &[usize]) -> Result<Vec<Tensor>, RunError> {
            let TensorData::Int32(values) = inputs[0].data() else {
                unreachable!("the signature says INT32")
            };
            match values[0] {
                99 => panic!("asked for"),
                0 => drop(self.gate.lock().recv()),
                value if value < 0 => return Err(RunError::Failed("negative".into())),
                _ => {}
            }
            Ok(vec![number(values[0] * 2)])
        }
    }

    fn number(value: i32) -> Tensor {
        Tensor::new(vec![1], TensorData::Int32(vec![value])).expect("one element")
    }

    fn start(capacity: usize) -> (Instances, Loaded, mpsc::Sender<()>) {
        let spec = |name: &str| TensorSpec {
            name: name.into(),
            datatype: DataType::Int32,
            shape: vec![1],
            labels: None,
        };
        let signature = Signature { inputs: vec![spec("x")], outputs: vec![spec("y")], left_out: vec![] };
        let (open, gate) = mpsc::channel();
        let gate = Arc::new(parking_lot::Mutex::new(gate));
        let factory: Factory =
            Arc::new(move || Ok(Box::new(Double { signature: signature.clone(), gate: gate.clone() }) as _));
        let (instances, loaded) =
            Instances::start(1, capacity, &factory, &Arc::new(Metrics::new()), &|| {}).expect("it starts");
        (instances, loaded, open)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn answers_failures_and_a_dead_instance_reach_the_caller() {
        let (instances, loaded, _open) = start(4);
        assert_eq!(loaded.warm_up_failure, None);
        assert_eq!(instances.infer(vec![number(4)], vec![0], LONG).await, Ok(vec![number(8)]));
        let failed = instances.infer(vec![number(-1)], vec![0], LONG).await;
        assert_eq!(failed, Err(InferError::Run(RunError::Failed("negative".into()))));
        assert!(instances.all_alive());
        let killed = instances.infer(vec![number(99)], vec![0], LONG);
        let waiting = instances.infer(vec![number(1)], vec![0], LONG);
        let (killed, waiting) = futures::join!(killed, waiting);
        assert_eq!((killed, waiting), (Err(InferError::InstanceDied), Err(InferError::ShuttingDown)));
        assert!(!instances.all_alive());
    }

    #[tokio::test]
    async fn a_full_queue_refuses_and_a_passed_deadline_frees_a_place() {
        let (instances, _, open) = start(1);
        let running = instances.infer(vec![number(0)], vec![0], LONG);
        tokio::pin!(running);
        assert!(futures::poll!(&mut running).is_pending());
        while instances.waiting() > 0 {
            tokio::task::yield_now().await;
        }
        let waiting = instances.infer(vec![number(2)], vec![0], LONG);
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        let refused = instances.infer(vec![number(3)], vec![0], LONG).await;
        assert!(matches!(refused, Err(InferError::QueueFull { waiting: 1, retry_after: 1 })), "{refused:?}");
        waiting.set(instances.infer(vec![number(2)], vec![0], Duration::ZERO));
        assert_eq!(
            waiting.as_mut().await,
            Err(InferError::DeadlineExceeded(0)),
            "the first waiter was dropped"
        );
        open.send(()).expect("the instance waits");
        assert_eq!(running.await, Ok(vec![number(0)]));
    }

    #[test]
    fn a_model_that_cannot_be_made_is_reported() {
        let factory: Factory = Arc::new(|| Err(LoadError::Unsupported("no".into())));
        let started = Instances::start(2, 1, &factory, &Arc::new(Metrics::new()), &|| {});
        assert!(matches!(started, Err(LoadError::Unsupported(message)) if message == "no"));
    }
}
