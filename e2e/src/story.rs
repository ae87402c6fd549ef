//! A story: a namespace of its own that enforces Pod Security `restricted`, and a dump of all that is in it when the
//! story fails. Talks to the API server.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use futures::FutureExt;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::dump;
use crate::repository;
use crate::wait;

/// Label of namespaces that stories make.
const LABEL: &str = "serin-e2e/story";

/// The namespace of the demo.
pub const DEMO_NAMESPACE: &str = "serin-demo";

/// Model pods take up to their grace to go.
const GONE_WITHIN: Duration = Duration::from_secs(180);

/// A story that is being told.
#[derive(Clone)]
pub struct Story {
    /// Its name: the name of its file.
    pub name: String,
    /// The namespace in which it happens.
    pub namespace: String,
    /// The cluster's tools.
    pub cluster: Cluster,
    /// The cluster's API server.
    pub client: Client,
}

impl Story {
    /// Makes the namespace. What an earlier telling of the same story left behind is deleted.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn begin(name: &str, cluster: Cluster) -> anyhow::Result<Self> {
        let client = cluster.client().await?;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        for old in namespaces.list(&ListParams::default().labels(&format!("{LABEL}={name}"))).await? {
            let old = old.metadata.name.unwrap_or_default();
            // Gone already is as good.
            let _ = namespaces.delete(&old, &DeleteParams::default()).await;
        }
        // The demo leaves its services running; on a small node a story would wait for their CPU.
        if namespaces.get_opt(DEMO_NAMESPACE).await?.is_some() {
            println!("  deleting {DEMO_NAMESPACE}, which the demo has left");
            let _ = namespaces.delete(DEMO_NAMESPACE, &DeleteParams::default()).await;
        }
        let namespace: Namespace = serde_json::from_value(json!({
            "metadata": {
                "generateName": format!("e2e-{name}-"),
                "labels": {LABEL: name, "pod-security.kubernetes.io/enforce": "restricted"},
            },
        }))?;
        let made =
            namespaces.create(&PostParams::default(), &namespace).await.context("create a namespace")?;
        let namespace = made.metadata.name.context("a namespace without a name")?;
        Ok(Self { name: name.to_owned(), namespace, cluster, client })
    }

    /// A story in a namespace of this name, emptied first.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn in_namespace(name: &str, cluster: Cluster) -> anyhow::Result<Self> {
        let client = cluster.client().await?;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        if namespaces.get_opt(name).await?.is_some() {
            namespaces
                .delete(name, &DeleteParams::default())
                .await
                .context("delete the namespace of last time")?;
            wait::gone(&namespaces, name, GONE_WITHIN).await?;
        }
        let namespace: Namespace = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {LABEL: name, "pod-security.kubernetes.io/enforce": "restricted"}},
        }))?;
        namespaces.create(&PostParams::default(), &namespace).await.context("create a namespace")?;
        Ok(Self { name: name.to_owned(), namespace: name.to_owned(), cluster, client })
    }

    /// Runs kubectl in the story's namespace; its standard output.
    ///
    /// # Errors
    /// It fails; its standard error is in the message.
    pub async fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.cluster.kubectl(&[&["-n", &self.namespace], arguments].concat()).await
    }

    /// Applies files of `examples/`, as their reader would.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn apply(&self, examples: &[&str]) -> anyhow::Result<()> {
        let files: Vec<_> = examples.iter().map(|name| format!("examples/{name}.yaml")).collect();
        let mut arguments = vec!["apply"];
        arguments.extend(files.iter().flat_map(|file| ["-f", file]));
        self.kubectl(&arguments).await.map(drop)
    }

    /// Applies one file of `examples/` with something changed in each of its objects.
    ///
    /// # Errors
    /// The file cannot be read, or the API server refuses.
    pub async fn apply_changed(&self, example: &str, change: impl Fn(&mut Value)) -> anyhow::Result<()> {
        let text = changed(example, change)?;
        let arguments = ["-n", &self.namespace, "apply", "-f", "-"];
        self.cluster.kubectl_with(&arguments, &text).await.map(drop)
    }

    /// Deletes the namespace; nobody waits for its end.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn end(&self) -> anyhow::Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces
            .delete(&self.namespace, &DeleteParams::default())
            .await
            .map(drop)
            .context("delete the namespace")
    }
}

/// A file of `examples/` with something changed in each of its objects.
///
/// # Errors
/// The file cannot be read.
pub fn changed(example: &str, change: impl Fn(&mut Value)) -> anyhow::Result<String> {
    let path = repository().join("examples").join(example).with_extension("yaml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let mut documents: Vec<Value> =
        serde_saphyr::from_multiple(&text).with_context(|| format!("read {}", path.display()))?;
    documents.iter_mut().for_each(change);
    // JSON is YAML.
    Ok(documents.iter().map(|document| format!("---\n{document}\n")).collect())
}

/// Tells a story on a cluster with Serin installed. Where it fails, everything in its namespace is written to
/// `target/e2e/<story>/`. `E2E_KEEP=1` keeps the namespace.
///
/// # Errors
/// What went wrong in it.
pub async fn tell(name: &str, happens: impl AsyncFnOnce(&Story) -> anyhow::Result<()>) -> anyhow::Result<()> {
    tell_on(name, Cluster::ready().await?, happens).await
}

/// As [`tell`], on this cluster.
///
/// # Errors
/// What went wrong in it.
pub async fn tell_on(
    name: &str,
    cluster: Cluster,
    happens: impl AsyncFnOnce(&Story) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let began = Instant::now();
    let story = Story::begin(name, cluster).await?;
    println!("story {name} in namespace {}", story.namespace);
    let told = AssertUnwindSafe(happens(&story)).catch_unwind().await;
    let told = told.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(anyhow!("panicked: {}", text.unwrap_or_default()))
    });
    println!(
        "story {name}: {} after {:.1} s",
        if told.is_ok() { "told" } else { "FAILED" },
        began.elapsed().as_secs_f64()
    );
    if let Err(error) = &told {
        println!("{error:#}");
        match dump::everything(&story).await {
            Ok(place) => println!("everything in namespace {} is in {}", story.namespace, place.display()),
            Err(error) => println!("the dump failed too: {error:#}"),
        }
    }
    if std::env::var_os("E2E_KEEP").is_none() {
        story.end().await?;
    }
    told
}
