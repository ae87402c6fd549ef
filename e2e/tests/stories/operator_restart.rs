//! S9: the operator is killed in the middle of a canary, a promotion, a change and a rollback, at once after each write and
//! again as soon as the next object shows. Every one of them ends as it would have without that.

use std::time::Duration;

use anyhow::ensure;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams};
use kube::runtime::watcher;
use kube::{Api, ResourceExt};

use serin_e2e::cluster::SYSTEM;
use serin_e2e::scene::Scene;
use serin_e2e::service::canary;
use serin_e2e::story::{Story, tell};
use serin_e2e::wait;

use crate::uri;

const SELECTOR: &str = "app.kubernetes.io/name=serin-operator";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: make e2e STORY=operator_restart"]
async fn operator_restart() -> anyhow::Result<()> {
    tell("operator-restart", async |story| {
        let mut scene = Scene::begin(story).await?;

        // A canary begins, and its share is changed.
        story.apply(&["iris-canary"]).await?;
        kill(story).await?;
        let second = scene.iris.until("a canary", |service| canary(service).is_some()).await?;
        let second = canary(&second).map(|canary| canary.revision_name.clone()).unwrap_or_default();
        scene.serves(&second, "b");
        kill(story).await?;
        ensure!(scene.iris.share(10).await? == second, "expected {second} to be the canary still");
        scene.iris.ask(Some(50)).await?;
        kill(story).await?;
        scene.iris.share(50).await?;
        scene.exact("50 %", &second, 50).await?;

        // It is promoted.
        scene.iris.ask(None).await?;
        kill(story).await?;
        let stable = scene.iris.promoted().await?;
        kill(story).await?;
        ensure!(stable == second, "expected {second} to be stable, got {stable}");
        ensure!(scene.iris.settled().await? == second, "expected {second} to stay stable");
        scene.iris.pods_ready(&scene.first, 0).await?;
        scene.exact("promoted", &second, 100).await?;

        // Another canary, which is changed on its way.
        let before = scene.iris.pods(&second).await?;
        scene.iris.ask(Some(30)).await?;
        scene.iris.model(&uri("c")).await?;
        let third = scene.iris.share(30).await?;
        scene.serves(&third, "c");
        scene.iris.model(&uri("a")).await?;
        kill(story).await?;
        let changed = scene.iris.until("another canary", |service| {
            canary(service).is_some_and(|canary| canary.revision_name != third)
        });
        let fourth = canary(&changed.await?).map(|canary| canary.revision_name.clone()).unwrap_or_default();
        scene.serves(&fourth, "a");
        kill(story).await?;
        ensure!(scene.iris.share(30).await? == fourth, "expected {fourth} to be the canary");
        scene.iris.pods_ready(&third, 0).await?;
        scene.exact("changed", &fourth, 30).await?;

        // And rolled back.
        scene.iris.ask(Some(0)).await?;
        kill(story).await?;
        scene.iris.share(0).await?;
        scene.iris.model(&uri("b")).await?;
        kill(story).await?;
        ensure!(scene.iris.settled().await? == second, "expected {second} to be stable");
        scene.iris.pods_ready(&fourth, 0).await?;
        let now = scene.iris.pods(&second).await?;
        ensure!(now == before, "pods of {second} before: {before:?}, now: {now:?}");
        scene.exact("rolled back", &second, 100).await?;
        scene.end().await
    })
    .await
}

/// SIGKILL to the process, without a moment to say goodbye; then waits until there is another one. The pod is deleted too, because the
/// kubelet would wait longer before each further restart of its container. A cluster of the user's own lets nobody at its
/// processes: there the deletion without grace has to do.
async fn kill(story: &Story) -> anyhow::Result<()> {
    let pods: Api<Pod> = Api::namespaced(story.client.clone(), SYSTEM);
    let running = pods.list(&ListParams::default().labels(SELECTOR)).await?;
    let killed: Vec<_> = running.iter().map(ResourceExt::name_any).collect();
    ensure!(!killed.is_empty(), "no operator runs in {SYSTEM}");
    if std::env::var("E2E_CLUSTER").as_deref() != Ok("existing") {
        story
            .cluster
            .output("e2e/cluster/kill", &["serin-operator"], None)
            .await?
            .checked("kill the operator")?;
    }
    for name in &killed {
        pods.delete(name, &DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() }).await?;
    }
    println!("  killed {}", killed.join(", "));
    let config = watcher::Config::default().labels(SELECTOR);
    let another = wait::list(&pods, config, "another operator", Duration::from_secs(60), |pods| {
        pods.iter().any(|pod| !killed.contains(&pod.name_any()) && wait::pod_is_ready(pod))
    });
    another.await.map(drop)
}
