//! Starts the program on free ports, reads its log, and talks to it.

use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// Longer than anything here takes on a busy machine; reaching it fails the test.
const PATIENCE: Duration = Duration::from_secs(60);

fn cache() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache")
}

fn existing(path: PathBuf) -> PathBuf {
    assert!(path.exists(), "`{}` is missing. run: make models", path.display());
    path
}

/// A model of `make models`.
pub(crate) fn model(name: &str) -> PathBuf {
    let models = std::env::var_os("SERIN_MODELS_DIR").map_or_else(|| cache().join("models"), PathBuf::from);
    existing(models.join(name))
}

/// The shared library of ONNX Runtime.
pub(crate) fn onnxruntime() -> PathBuf {
    let given = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from);
    existing(given.unwrap_or_else(|| cache().join("onnxruntime/libonnxruntime.so")))
}

/// A client that knows no proxy.
pub(crate) fn client() -> reqwest::Client {
    // Fails only where another test was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().tls_certs_only([]).build().expect("a client")
}

/// A running server. It is killed when the test ends without having ended it.
pub(crate) struct Server {
    child: Child,
    #[allow(dead_code, reason = "where a killed server leaves its downloads; removed with the test")]
    scratch: tempfile::TempDir,
    log: Receiver<String>,
    seen: Vec<String>,
    /// `http://127.0.0.1:port` of the protocols.
    pub(crate) url: String,
    /// The same of the admin port.
    pub(crate) admin: String,
    pub(crate) client: reqwest::Client,
}

impl Server {
    /// Starts the program with more flags and variables, and waits until it listens.
    pub(crate) fn launch(model: &str, flags: &[&str], variables: &[(&str, &str)]) -> Self {
        // With as few open files as a container engine may give, and more if it asks for them.
        let mut command = Command::new("sh");
        let program = env!("CARGO_BIN_EXE_serin-runtime");
        command.args(["-c", "ulimit -Sn 256 && exec \"$0\" \"$@\"", program]);
        // Nothing of the machine's own settings may matter.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if ["SERIN_", "AWS_", "KUBERNETES_"].iter().any(|prefix| name.starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        let scratch = tempfile::tempdir().expect("a directory");
        command
            .args(["serve", model, "--host", "127.0.0.1", "--port", "0", "--admin-port", "0"])
            .args(flags)
            .env("ORT_DYLIB_PATH", onnxruntime())
            .env("TMPDIR", scratch.path())
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let lines = BufReader::new(child.stderr.take().expect("standard error is piped")).lines();
        let (sender, log) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let (url, admin) = (String::new(), String::new());
        let mut server = Self { child, scratch, log, seen: Vec::new(), url, admin, client: client() };
        let listening = server.logged("listening");
        server.url = format!("http://127.0.0.1:{}", listening["port"]);
        server.admin = format!("http://127.0.0.1:{}", listening["admin_port"]);
        server
    }

    /// Starts the program and waits until its model answers.
    pub(crate) fn start(model: &str, flags: &[&str]) -> Self {
        let mut server = Self::launch(&self::model(model).to_string_lossy(), flags, &[]);
        server.logged("ready");
        server
    }

    /// The next line of the log whose message contains this text.
    pub(crate) fn logged(&mut self, message: &str) -> Value {
        loop {
            let Ok(line) = self.log.recv_timeout(PATIENCE) else {
                panic!("the log has no `{message}`:\n{}", self.seen.join("\n"));
            };
            let parsed: Value = serde_json::from_str(&line).unwrap_or_default();
            self.seen.push(line);
            if parsed["message"].as_str().is_some_and(|text| text.contains(message)) {
                return parsed;
            }
        }
    }

    /// Soft and hard limit of its open files.
    pub(crate) fn file_limits(&self) -> (String, String) {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", self.child.id())).expect("it lives");
        let line =
            limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("a line for it");
        let mut fields = line.split_whitespace().map(str::to_owned);
        (fields.next().expect("a soft limit"), fields.next().expect("a hard limit"))
    }

    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(status.expect("kill runs").success());
    }

    /// Waits for the program's end, which closes its log. Connections of the test go on meanwhile.
    pub(crate) async fn end(mut self) -> (ExitStatus, Vec<String>) {
        let waiting = tokio::task::spawn_blocking(move || {
            while let Ok(line) = self.log.recv_timeout(PATIENCE) {
                self.seen.push(line);
            }
            (self.child.wait().expect("the program ends"), std::mem::take(&mut self.seen))
        });
        waiting.await.expect("no panic")
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        answer(self.client.get(format!("{}{path}", self.url))).await
    }

    pub(crate) async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> (u16, Value) {
        answer(self.client.post(format!("{}{path}", self.url)).body(body)).await
    }

    /// A request that must be answered.
    pub(crate) async fn infer(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.post(path, body.to_string()).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }
}

async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.expect("an answer");
    let status = response.status().as_u16();
    let text = response.text().await.expect("a body");
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One V2 input.
pub(crate) fn input(name: &str, datatype: &str, shape: &[usize], data: Value) -> Value {
    serde_json::json!({ "name": name, "datatype": datatype, "shape": shape, "data": data })
}

/// A V2 request.
pub(crate) fn request(inputs: &[Value]) -> Value {
    serde_json::json!({ "inputs": inputs })
}
