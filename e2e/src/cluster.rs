//! The cluster that stories run on: brought up by the scripts of `e2e/cluster`, filled with images, storage and chart.
//! Runs programs (bash, make, kubectl, helm) and talks to the API server.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::OnceCell;

use crate::repository;

/// Namespace of the operator.
pub const SYSTEM: &str = "serin-system";
/// Name of the Helm release, and of nothing else.
const RELEASE: &str = "serin";
/// Longest silence of a single call of a program.
const COMMAND_LIMIT: Duration = Duration::from_secs(3600);

/// A cluster that is up, and how its tools are called.
#[derive(Clone, Debug)]
pub struct Cluster {
    environment: BTreeMap<String, String>,
    /// Where the images are: `localhost` in the test cluster, else `E2E_REGISTRY`.
    registry: String,
    tag: String,
}

/// What a program printed, and whether it ended well.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit status 0.
    pub success: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Cluster {
    /// A cluster with Serin installed and the models in its storage.
    ///
    /// # Errors
    /// One of the steps fails; its output is in the message.
    pub async fn ready() -> anyhow::Result<Self> {
        static READY: OnceCell<Cluster> = OnceCell::const_new();
        let ready = READY.get_or_try_init(|| async {
            let cluster = Self::with_crds().await?;
            cluster.fill().await?;
            cluster.install().await?;
            anyhow::Ok(cluster)
        });
        ready.await.cloned()
    }

    /// A cluster that knows Serin's types, and may not run Serin.
    ///
    /// # Errors
    /// One of the steps fails; its output is in the message.
    pub async fn with_crds() -> anyhow::Result<Self> {
        static UP: OnceCell<Cluster> = OnceCell::const_new();
        let up = UP.get_or_try_init(|| async {
            let mut cluster = Self {
                environment: BTreeMap::new(),
                registry: std::env::var("E2E_REGISTRY").unwrap_or_else(|_| "localhost".to_owned()),
                tag: std::env::var("E2E_TAG").unwrap_or_else(|_| "dev".to_owned()),
            };
            cluster.step("cluster", "bash", &["e2e/cluster/up"]).await?;
            // -0 keeps values whole, whatever is in them.
            let environment =
                cluster.output("bash", &["-c", "eval \"$(e2e/cluster/env)\" && env -0"], None).await?;
            cluster.environment = variables(&environment.checked("e2e/cluster/env")?);
            // Helm makes CRDs, but never changes them.
            let crds = ["apply", "--server-side", "--force-conflicts", "-f", "charts/serin/crds"];
            cluster.step("types", "kubectl", &crds).await?;
            anyhow::Ok(cluster)
        });
        up.await.cloned()
    }

    /// Images and models. `E2E_IMAGES=keep` takes the images that the cluster has.
    async fn fill(&self) -> anyhow::Result<()> {
        let keep = std::env::var("E2E_IMAGES").is_ok_and(|images| images == "keep");
        if !keep && std::env::var("E2E_REGISTRY").is_err() {
            self.step("images", "make", &["--no-print-directory", "images"]).await?;
            self.step("load", "make", &["--no-print-directory", "load"]).await?;
        }
        self.step("storage", "bash", &["e2e/cluster/storage"]).await
    }

    async fn install(&self) -> anyhow::Result<()> {
        let values = [
            format!("image.registry={}", self.registry),
            format!("image.tag={}", self.tag),
            // The tag stays when the image changes, so its id makes the pod a new one.
            format!("podAnnotations.image={}", self.image_id().await),
        ];
        let mut arguments = vec!["upgrade", "--install", RELEASE, "charts/serin", "--namespace", SYSTEM];
        arguments.extend(["--create-namespace", "--wait", "--timeout", "3m"]);
        for value in &values {
            arguments.extend(["--set-string", value]);
        }
        self.step("chart", "helm", &arguments).await?;
        let enforce = "pod-security.kubernetes.io/enforce=restricted";
        self.step("pod security", "kubectl", &["label", "namespace", SYSTEM, enforce, "--overwrite"])
            .await
            .map(drop)
    }

    async fn image_id(&self) -> String {
        let script =
            ". e2e/cluster/settings.sh && \"$CLIENT\" image inspect -f '{{.Id}}' localhost/serin:dev";
        match self.output("bash", &["-c", script], None).await {
            Ok(Output { success: true, stdout, .. }) => stdout.trim().replace(':', "-"),
            _ => self.tag.clone(),
        }
    }

    /// The image that holds the traffic generator.
    pub fn traffic_image(&self) -> String {
        format!("{}/serin-e2e:{}", self.registry, self.tag)
    }

    /// A client of the cluster's API server.
    ///
    /// # Errors
    /// The kubeconfig cannot be read.
    pub async fn client(&self) -> anyhow::Result<Client> {
        // Two crypto libraries may be compiled in; the first who asks decides.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = match self.environment.get("KUBECONFIG").filter(|path| !path.is_empty()) {
            Some(path) => {
                let read = Kubeconfig::read_from(path).with_context(|| format!("read {path}"))?;
                Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?
            }
            None => Config::infer().await?,
        };
        Ok(Client::try_from(config)?)
    }

    /// Runs kubectl; its standard output.
    ///
    /// # Errors
    /// It fails; its standard error is in the message.
    pub async fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.output("kubectl", arguments, None).await?.checked(&format!("kubectl {}", arguments.join(" ")))
    }

    /// Runs kubectl with something on its standard input.
    ///
    /// # Errors
    /// It fails; its standard error is in the message.
    pub async fn kubectl_with(&self, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        self.output("kubectl", arguments, Some(input))
            .await?
            .checked(&format!("kubectl {}", arguments.join(" ")))
    }

    /// Runs a line of bash where kubectl and helm mean this cluster.
    ///
    /// # Errors
    /// It fails; its output is in the message.
    pub async fn bash(&self, line: &str) -> anyhow::Result<String> {
        self.output("bash", &["-euo", "pipefail", "-c", line], None).await?.checked(line)
    }

    /// Starts a line of bash, to be ended by dropping it.
    ///
    /// # Errors
    /// There is no bash.
    pub fn start(&self, line: &str) -> anyhow::Result<tokio::process::Child> {
        let mut command = self.command("bash", &["-euo", "pipefail", "-c", line]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        command.spawn().with_context(|| format!("start {line}"))
    }

    /// Runs a program and gives what it printed, whether it ended well or not.
    ///
    /// # Errors
    /// The program cannot be run at all.
    pub async fn output(
        &self,
        program: &str,
        arguments: &[&str],
        input: Option<&str>,
    ) -> anyhow::Result<Output> {
        let mut command = self.command(program, arguments);
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("run {program}"))?;
        if let (Some(mut pipe), Some(input)) = (child.stdin.take(), input) {
            pipe.write_all(input.as_bytes()).await.with_context(|| format!("write to {program}"))?;
        }
        let ended = tokio::time::timeout(COMMAND_LIMIT, child.wait_with_output()).await;
        let output = ended
            .with_context(|| format!("{program} {}: no end in {COMMAND_LIMIT:?}", arguments.join(" ")))??;
        Ok(Output {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(repository()).envs(&self.environment);
        command
    }

    /// A step of the preparation: named, timed, its output shown as it comes.
    async fn step(&self, name: &str, program: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let began = Instant::now();
        eprintln!("{name} ...");
        let mut command = self.command(program, arguments);
        let status = command.stdin(Stdio::null()).kill_on_drop(true).status().await;
        let status = status.with_context(|| format!("run {program}"))?;
        ensure!(status.success(), "{name}: {program} {} ended with {status}", arguments.join(" "));
        eprintln!("{name}: {:.1} s", began.elapsed().as_secs_f64());
        Ok(())
    }
}

impl Output {
    /// The standard output, where the program ended well.
    ///
    /// # Errors
    /// It did not; everything it printed is in the message.
    pub fn checked(self, what: &str) -> anyhow::Result<String> {
        if !self.success {
            bail!("{what} failed:\n{}{}", self.stdout, self.stderr);
        }
        Ok(self.stdout)
    }
}

/// `NAME=value` pairs, each ended by NUL.
fn variables(printed: &str) -> BTreeMap<String, String> {
    let pairs = printed.split('\0').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_the_environment_may_hold_anything() {
        let found = variables("A=1\0B=two\nlines=x\0C=\0");
        let expected = [("A", "1"), ("B", "two\nlines=x"), ("C", "")];
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    }
}
