//! F3: the model server, one request at a time on this machine, beside the same model in a bare loop around its session
//! (`runtime/examples/session_loop.rs`). Runs programs, no cluster.

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use serin_e2e::traffic::connection::Connections;
use serin_e2e::traffic::ledger::{Outcome, histogram, latency, micros};
use serin_e2e::traffic::wire::Case;
use serin_e2e::traffic::{cases, generator};
use serin_e2e::{models, repository};

const READY_WITHIN: Duration = Duration::from_secs(60);
const WARM_UP: u64 = 200;

/// Measures and prints.
pub async fn measure(requests: u64) -> anyhow::Result<()> {
    let mut build = cargo(&["build", "--release", "--locked", "-p", "serin-runtime", "--bins", "--examples"]);
    ensure!(build.status().await?.success(), "serin-runtime does not build");
    println!(
        "one request at a time, one thread, {requests} requests or runs; JSON over loopback beside the bare session"
    );
    let iris = cases::iris(&models(), "iris")?.into_iter().nth(1).context("no case of iris")?;
    let magika = cases::magika(&models(), "magika")?.into_iter().next().context("no case of magika")?;
    for (name, file, case, requests) in [
        ("iris", "iris-a.onnx", iris, requests),
        // Each costs 9 ms.
        ("magika", "standard_v3_2/model.onnx", magika, requests.div_ceil(5)),
    ] {
        let (loop_p50, loop_p99) = bare_loop(file, requests).await?;
        let server = Server::start(name, file).await?;
        let seen = server.ask(name, &case, requests).await?;
        let added = i128::from(seen.p50) - i128::from(loop_p50);
        println!("  {name:<8} bare loop  p50 {loop_p50:>6} µs   p99 {loop_p99:>6} µs");
        println!(
            "  {name:<8} server     p50 {:>6} µs   p99 {:>6} µs   added p50 {added} µs",
            seen.p50, seen.p99
        );
    }
    Ok(())
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(arguments).arg("--quiet").current_dir(repository());
    command
}

/// p50 and p99 of a run in microseconds.
async fn bare_loop(file: &str, runs: u64) -> anyhow::Result<(u64, u64)> {
    let mut command = Command::new(repository().join("target/release/examples/session_loop"));
    command
        .arg(models().join(file))
        .args([runs.to_string(), "1".to_owned()])
        .env("ORT_DYLIB_PATH", library());
    let output = command.output().await.context("run session_loop")?;
    ensure!(output.status.success(), "session_loop: {}", String::from_utf8_lossy(&output.stderr));
    let seen: Value = serde_json::from_slice(&output.stdout).context("what session_loop printed")?;
    let whole = |name: &str| {
        seen[name].as_f64().map(|value| value.round().max(0.0)).with_context(|| format!("no {name}"))
    };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rounded and not negative")]
    Ok((whole("p50_us")? as u64, whole("p99_us")? as u64))
}

fn library() -> std::path::PathBuf {
    repository().join(".cache/onnxruntime/libonnxruntime.so")
}

struct Server {
    address: String,
    /// Ended when it is dropped.
    _process: Child,
}

impl Server {
    /// Starts it on a free port and waits for its line `ready`.
    async fn start(name: &str, file: &str) -> anyhow::Result<Self> {
        let mut command = Command::new(repository().join("target/release/serin-runtime"));
        command.arg("serve").arg(models().join(file)).args(["--model-name", name, "--threads", "1"]);
        command
            .args(["--host", "127.0.0.1", "--port", "0", "--admin-port", "0"])
            .env("ORT_DYLIB_PATH", library());
        command.stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().context("start serin-runtime")?;
        let mut lines = BufReader::new(process.stderr.take().context("no log")?).lines();
        let port = tokio::time::timeout(READY_WITHIN, async {
            while let Some(line) = lines.next_line().await? {
                let said: Value = serde_json::from_str(&line).unwrap_or_default();
                if said["message"] == "ready" {
                    return said["port"].as_u64().context("no port in the line `ready`");
                }
            }
            bail!("serin-runtime ended before it was ready")
        });
        let port =
            port.await.with_context(|| format!("serin-runtime is not ready within {READY_WITHIN:?}"))??;
        // Its log must go on being read, or a full pipe would stop it.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { address: format!("127.0.0.1:{port}"), _process: process })
    }

    async fn ask(
        &self,
        name: &str,
        case: &Case,
        requests: u64,
    ) -> anyhow::Result<serin_e2e::traffic::wire::Latency> {
        let connections = Arc::new(Connections::new(&self.address, 1));
        let mut seen = histogram();
        for number in 0..WARM_UP + requests {
            let id = format!("{name}-{number}");
            let request = generator::request(case, &self.address, &id)?;
            let sent = Instant::now();
            let response = connections
                .call(request)
                .await
                .map_err(|failure| anyhow!("{}: {}", failure.kind, failure.detail))?;
            let took = sent.elapsed();
            match generator::judge(case, name, &id, &response) {
                // Without a router nobody names a revision.
                Outcome::Lost(loss) if loss.kind != "revision" => {
                    bail!("{}: {} {}", loss.kind, loss.detail, loss.body)
                }
                _ if number >= WARM_UP => seen.saturating_record(micros(took).max(1)),
                _ => {}
            }
        }
        Ok(latency(&seen))
    }
}
