//! S14: a service is deleted in the middle of a canary, and nothing of it is left; the other service of the namespace serves
//! on. With the last service the routers go as well.

use std::time::Duration;

use anyhow::ensure;

use serin_e2e::scene::Scene;
use serin_e2e::service::Service;
use serin_e2e::story::{Story, tell};

const GONE_WITHIN: Duration = Duration::from_secs(120);
const KINDS: [&str; 11] = [
    "inferenceservices.serving.serin.dev",
    "inferenceroutes.serving.serin.dev",
    "controllerrevisions.apps",
    "deployments.apps",
    "replicasets.apps",
    "pods",
    "services",
    "endpointslices.discovery.k8s.io",
    "poddisruptionbudgets.policy",
    "serviceaccounts",
    "rolebindings.rbac.authorization.k8s.io",
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: make e2e STORY=delete"]
async fn delete() -> anyhow::Result<()> {
    tell("delete", async |story| {
        let mut scene = Scene::begin(story).await?;
        story.apply_changed("iris-canary", |object| object["metadata"]["name"] = "rose".into()).await?;
        let rose = Service::new(story, "rose");
        rose.ready().await?;
        rose.settled().await?;
        rose.model(&crate::uri("c")).await?;
        rose.share(10).await?;
        let first = scene.first.clone();
        scene.exact("beside rose", &first, 100).await?;

        story.kubectl(&["delete", "isvc", "rose", "--timeout=60s"]).await?;
        nothing_left(story, "serving.serin.dev/service=rose").await?;
        scene.exact("without rose", &first, 100).await?;
        // Its port may be given to another service only now; iris must keep its own.
        story.apply_changed("iris-canary", |object| object["metadata"]["name"] = "tulip".into()).await?;
        let tulip = Service::new(story, "tulip");
        tulip.ready().await?;
        let tulip_revision = tulip.settled().await?;
        scene.serves(&tulip_revision, "b");
        scene.load(&tulip, 50.0).await?;
        scene.traffic.completed("tulip", 200).await?;
        scene.stop("tulip").await?;
        scene.end().await?;

        story.kubectl(&["delete", "isvc", "--all", "--timeout=60s"]).await?;
        nothing_left(story, "app.kubernetes.io/managed-by=serin").await
    })
    .await
}

/// Waits until no object with these labels is there.
async fn nothing_left(story: &Story, selector: &str) -> anyhow::Result<()> {
    for kind in KINDS {
        let waiting =
            ["wait", "--for=delete", kind, "-l", selector, &format!("--timeout={}s", GONE_WITHIN.as_secs())];
        let gone = story.kubectl(&waiting).await;
        // kubectl wait fails where there is nothing to wait for.
        let left = story.kubectl(&["get", kind, "-l", selector, "-o", "name"]).await?;
        ensure!(left.is_empty(), "expected no {kind} with {selector}, found:\n{left}{gone:?}");
    }
    println!("  nothing left of {selector}");
    Ok(())
}
