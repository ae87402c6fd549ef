//! The real router between real runtimes on iris, under a load whose every answer is checked: nothing is lost while
//! shares change, pods die and the router ends.

mod support;

use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use serin_crds::acks::AckReport;
use support::*;
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// Longer than anything here takes on a busy machine; reaching it fails the test.
const PATIENCE: Duration = Duration::from_secs(60);
const WORKERS: usize = 8;

/// A program of ours, killed when the test ends.
struct Program {
    child: Child,
    log: Receiver<String>,
}

impl Program {
    fn start(command: &mut Command) -> Program {
        let mut child =
            command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("the program starts");
        let lines = BufReader::new(child.stderr.take().expect("standard error is piped")).lines();
        let (sender, log) = channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Program { child, log }
    }

    /// Waits for the line of the log with this message.
    fn logged(&self, message: &str) -> Value {
        let mut seen = Vec::new();
        loop {
            let Ok(line) = self.log.recv_timeout(PATIENCE) else {
                panic!("the log has no `{message}`:\n{}", seen.join("\n"));
            };
            let parsed: Value = serde_json::from_str(&line).unwrap_or_default();
            // The router's events carry their message among the fields.
            let said = parsed["message"].as_str().or(parsed["fields"]["message"].as_str()).map(str::to_owned);
            seen.push(line);
            if said.as_deref() == Some(message) {
                return parsed;
            }
        }
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    async fn ended(mut self) -> i32 {
        let status = tokio::task::spawn_blocking(move || self.child.wait());
        let status =
            tokio::time::timeout(PATIENCE, status).await.expect("it ends in time").expect("no panic");
        status.expect("its status").code().unwrap_or(-1)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn cached(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache").join(path);
    assert!(path.exists(), "`{}` is missing. run: make models", path.display());
    path
}

/// A runtime that serves iris as one revision of `shop/iris`.
fn runtime(letter: char) -> (Program, u16) {
    let binary = Path::new(env!("CARGO_BIN_EXE_serin-router")).with_file_name("serin-runtime");
    assert!(binary.exists(), "`{}` is missing. run: cargo build -p serin-runtime", binary.display());
    let program = Program::start(
        Command::new(binary)
            .arg("serve")
            .arg(cached(&format!("models/iris-{letter}.onnx")))
            .args([
                "--model-name",
                "iris",
                "--host",
                "127.0.0.1",
                "--port",
                "0",
                "--admin-port",
                "0",
                "--threads",
                "1",
            ])
            .args(["--identity", &format!("shop/iris/iris-{letter}"), "--drain-idle", "1"])
            .env("ORT_DYLIB_PATH", cached("onnxruntime/libonnxruntime.so")),
    );
    let port = program.logged("ready")["port"].as_u64().expect("a port");
    (program, u16::try_from(port).expect("a port"))
}

/// Soft and hard limit of open files of a process.
fn file_limits(pid: u32) -> Vec<String> {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("the process lives");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("a line for it");
    line.split_whitespace().take(2).map(str::to_owned).collect()
}

#[test]
fn the_limit_of_open_files_is_raised() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("routes.json");
    std::fs::write(&file, r#"{"routes": [], "slices": []}"#).expect("the file is written");
    let program = Program::start(
        Command::new("sh")
            .args(["-c", "ulimit -Sn 256 && exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_serin-router")])
            .args(["--host", "127.0.0.1", "--admin-port", "0", "--routes-file"])
            .arg(file),
    );
    program.logged("ready");
    let limits = file_limits(program.child.id());
    assert_eq!(limits[0], limits[1]);
    assert_ne!(limits[0], "256");
}

/// The router's process and the file that feeds it.
struct RouterProcess {
    program: Program,
    directory: tempfile::TempDir,
    route: RouteSpec,
    slices: Vec<Value>,
    admin: u16,
}

impl RouterProcess {
    async fn start(route: RouteSpec, slices: Vec<Value>) -> RouterProcess {
        let directory = tempfile::tempdir().expect("a directory");
        let admin = free_port();
        let file = directory.path().join("routes.json");
        std::fs::write(&file, text(&route, &slices)).expect("the file is written");
        let program = Program::start(
            Command::new(env!("CARGO_BIN_EXE_serin-router"))
                .args(["--host", "127.0.0.1", "--namespace", "shop", "--pod-uid", "router-uid"])
                .args(["--drain-seconds", "1", "--drain-limit", "20", "--admin-port", &admin.to_string()])
                .arg("--routes-file")
                .arg(file),
        );
        program.logged("ready");
        RouterProcess { program, directory, route, slices, admin }
    }

    /// Puts another file in place.
    fn write(&self) {
        let next = self.directory.path().join("next");
        std::fs::write(&next, text(&self.route, &self.slices)).expect("the file is written");
        std::fs::rename(next, self.directory.path().join("routes.json")).expect("the file is put in place");
    }

    async fn acks(&self, since: u64) -> AckReport {
        let request = http::Request::get(format!("/v1/acks?since={since}&wait=30")).header("host", "x");
        let request = request.body(Full::new(Bytes::new())).expect("valid");
        serde_json::from_slice(send(self.admin, request).await.body()).expect("a report")
    }

    /// Puts another share in place and waits until the router says that it uses it.
    async fn set_share(&mut self, share: u16) {
        self.route = self.route.next().canary(share);
        self.write();
        let mut since = 0;
        loop {
            let report = self.acks(since).await;
            assert_eq!(report.pod_uid, "router-uid");
            since = report.version;
            if report.routes.iter().any(|route| route.generation == self.route.generation) {
                return;
            }
        }
    }

    async fn get(&self, path: &str) -> http::Response<Bytes> {
        let request =
            http::Request::get(path).header("host", "x").body(Full::new(Bytes::new())).expect("valid");
        send(self.admin, request).await
    }
}

fn text(route: &RouteSpec, slices: &[Value]) -> String {
    json!({"routes": [route.json()], "slices": slices}).to_string()
}

/// The rows on which the models disagree, with the label of each.
struct Ledger {
    rows: Vec<Value>,
    labels: [Vec<i64>; 2],
    answered: [AtomicUsize; 2],
    lost: parking_lot::Mutex<Vec<String>>,
    next: AtomicUsize,
}

impl Ledger {
    fn new() -> Arc<Ledger> {
        let text = std::fs::read(cached("models/disagree.json")).expect("the rows");
        let file: Value = serde_json::from_slice(&text).expect("JSON");
        let labels = |name: &str| serde_json::from_value(file[name].clone()).expect("labels");
        Arc::new(Ledger {
            rows: file["rows"].as_array().expect("rows").clone(),
            labels: [labels("a"), labels("b")],
            answered: Default::default(),
            lost: parking_lot::Mutex::default(),
            next: AtomicUsize::new(0),
        })
    }

    fn counts(&self) -> [usize; 2] {
        self.answered.each_ref().map(|count| count.load(Ordering::SeqCst))
    }

    fn total(&self) -> usize {
        self.counts().iter().sum()
    }

    /// Sends the next row. False: the router asked the client to leave.
    async fn one(&self, sender: &mut SendRequest<Full<Bytes>>) -> bool {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let row = number % self.rows.len();
        let body = json!({"instances": [self.rows[row]]}).to_string();
        let request = http::Request::post("/v1/models/iris:predict")
            .header("host", "iris")
            .header("content-type", "application/json")
            .header("x-request-id", number.to_string())
            .body(Full::new(Bytes::from(body)))
            .expect("valid");
        let response = match sender.send_request(request).await {
            Ok(response) => whole(response).await,
            Err(error) => {
                self.lost.lock().push(format!("request {number}: {error:?}"));
                return false;
            }
        };
        match self.check(row, number, &response) {
            Ok(revision) => drop(self.answered[revision].fetch_add(1, Ordering::SeqCst)),
            Err(why) => self.lost.lock().push(format!("request {number}: {why}: {response:?}")),
        }
        !response.headers().contains_key("connection")
    }

    /// Which revision answered, if the answer is its own and belongs to the request.
    fn check(&self, row: usize, number: usize, response: &http::Response<Bytes>) -> Result<usize, String> {
        if response.status() != 200 {
            return Err("status".to_owned());
        }
        let header =
            |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
        let revision = ["iris-a", "iris-b"].iter().position(|name| *name == header("serin-revision"));
        let revision = revision.ok_or("unknown revision")?;
        if header("x-request-id") != number.to_string() {
            return Err("the answer of another request".to_owned());
        }
        let answer: Value = serde_json::from_slice(response.body()).map_err(|error| error.to_string())?;
        let label = answer["predictions"][0]["label"].as_i64().ok_or("no label")?;
        let expected = self.labels[revision][row];
        if label == expected { Ok(revision) } else { Err(format!("label {label}, not {expected}")) }
    }
}

/// A load that goes on until it is told to end.
struct Load {
    ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
    progress: Arc<Notify>,
    workers: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(port: u16) -> Load {
        let (ledger, stop, progress) =
            (Ledger::new(), Arc::new(AtomicBool::new(false)), Arc::new(Notify::new()));
        let workers = (0..WORKERS)
            .map(|_| {
                let (ledger, stop, progress) = (ledger.clone(), stop.clone(), progress.clone());
                tokio::spawn(async move {
                    let mut sender = client(port).await;
                    while !stop.load(Ordering::Relaxed) && ledger.one(&mut sender).await {
                        progress.notify_one();
                    }
                })
            })
            .collect();
        Load { ledger, stop, progress, workers }
    }

    /// Waits until this many more requests were answered.
    async fn more(&self, count: usize) {
        let goal = self.ledger.total() + count;
        let wait = async {
            while self.ledger.total() < goal {
                self.progress.notified().await;
                let lost = self.ledger.lost.lock();
                assert!(lost.is_empty(), "lost {}: {}", lost.len(), lost[0]);
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the load goes on");
    }

    /// Ends the load; how many each revision answered.
    async fn end(self) -> [usize; 2] {
        self.stop.store(true, Ordering::Relaxed);
        self.join().await
    }

    /// Waits until each client was asked to leave, or told to end.
    async fn join(self) -> [usize; 2] {
        for worker in self.workers {
            worker.await.expect("no panic");
        }
        let lost = self.ledger.lost.lock();
        assert!(
            lost.is_empty(),
            "lost {} of {}: {:#?}",
            lost.len(),
            self.ledger.total(),
            &lost[..lost.len().min(5)]
        );
        self.ledger.counts()
    }
}

async fn client(port: u16) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.expect("the router listens");
    stream.set_nodelay(true).expect("an open connection");
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("a connection");
    tokio::spawn(connection);
    sender
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_split_is_exact_and_no_change_of_share_loses_a_request() {
    let ((_a, port_a), (_b, port_b)) = (runtime('a'), runtime('b'));
    let route = RouteSpec::new(free_port()).canary(0);
    let slices = vec![
        slice_json("iris-a", port_a, &[ready("pod-a")]),
        slice_json("iris-b", port_b, &[ready("pod-b")]),
    ];
    let mut router = RouterProcess::start(route, slices).await;
    // One request at a time, so that the requests of a share are told apart from those of the one before.
    let ledger = Ledger::new();
    let mut sender = client(route.port).await;
    for share in [1000, 5000, 9000, 10_000, 0, 2500] {
        router.set_share(share).await;
        let before = ledger.counts();
        for n in 1..=200usize {
            sender.ready().await.expect("the connection stays");
            assert!(ledger.one(&mut sender).await);
            let canary = (ledger.counts()[1] - before[1]) as f64;
            let exact = n as f64 * f64::from(share) / 10_000.0;
            assert!((canary - exact).abs() <= 5.0, "{canary} of {n} at {share}");
        }
    }
    assert_eq!(ledger.lost.lock().len(), 0);
    // Many at a time, while the share is changed as fast as it is acknowledged.
    let load = Load::start(route.port);
    for share in [0, 1000, 10_000, 5000, 0, 9000, 100, 10_000, 0, 3333].repeat(2) {
        router.set_share(share).await;
        load.more(100).await;
    }
    let counts = load.end().await;
    assert!(counts.iter().sum::<usize>() >= 2000 && counts.iter().all(|count| *count > 200), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_killed_in_the_middle_of_the_load_loses_nothing() {
    let (dying, dying_port) = runtime('a');
    let (_other, other_port) = runtime('a');
    let route = RouteSpec { size: 2, ..RouteSpec::new(free_port()) };
    let slices = vec![
        slice_json("iris-a", dying_port, &[ready("pod-1")]),
        slice_json("iris-a", other_port, &[ready("pod-2")]),
    ];
    let mut router = RouterProcess::start(route, slices).await;
    let load = Load::start(route.port);
    load.more(500).await;
    dying.signal("-KILL");
    // Kubernetes takes a while to notice: until then the slices call it ready.
    load.more(500).await;
    router.slices.remove(0);
    router.write();
    load.more(500).await;
    let metrics = String::from_utf8(router.get("/metrics").await.body().to_vec()).expect("text");
    load.end().await;
    let count = |reason: &str| -> u64 {
        let line = format!("serin_router_retries_total{{service=\"iris\",reason=\"{reason}\"}} ");
        metrics.lines().find_map(|l| l.strip_prefix(&line)).expect("the metric").parse().expect("a number")
    };
    assert!(count("connect") > 0, "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_deleted_drains_and_loses_nothing() {
    let (leaving, leaving_port) = runtime('a');
    let (_other, other_port) = runtime('a');
    let route = RouteSpec { size: 2, ..RouteSpec::new(free_port()) };
    let slices = vec![
        slice_json("iris-a", leaving_port, &[ready("pod-1")]),
        slice_json("iris-a", other_port, &[ready("pod-2")]),
    ];
    let mut router = RouterProcess::start(route, slices).await;
    let load = Load::start(route.port);
    load.more(300).await;
    // As Kubernetes does it: SIGTERM and the slice's news on their ways at the same time.
    leaving.signal("-TERM");
    load.more(100).await;
    let terminating = Pod { ready: false, terminating: true, ..ready("pod-1") };
    router.slices[0] = slice_json("iris-a", leaving_port, &[terminating]);
    router.write();
    assert_eq!(leaving.ended().await, 0, "it ends once it is idle");
    load.more(300).await;
    load.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_that_is_told_to_end_answers_everything_first() {
    let (_a, port_a) = runtime('a');
    let route = RouteSpec::new(free_port());
    let router = RouterProcess::start(route, vec![slice_json("iris-a", port_a, &[ready("pod-a")])]).await;
    assert_eq!(router.get("/readyz").await.status(), 200);
    assert_eq!(router.get("/livez").await.status(), 200);
    let load = Load::start(route.port);
    load.more(200).await;
    router.program.signal("-TERM");
    router.program.logged("draining: not ready, still accepting");
    assert_eq!(router.get("/readyz").await.status(), 503);
    // Somebody who has not heard yet still gets in.
    let late = Ledger::new();
    assert!(late.one(&mut client(route.port).await).await);
    assert_eq!(late.total(), 1);
    // Each client goes on until a response tells it to leave.
    let counts = load.join().await;
    assert!(counts[0] > 200, "{counts:?}");
    assert_eq!(router.program.ended().await, 0);
}
