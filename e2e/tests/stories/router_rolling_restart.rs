//! S10: the namespace's routers are restarted one after another while a canary has half of the requests; twice.

use anyhow::ensure;

use serin_e2e::scene::Scene;
use serin_e2e::story::tell;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: make e2e STORY=router_rolling_restart"]
async fn router_rolling_restart() -> anyhow::Result<()> {
    tell("router-rolling-restart", async |story| {
        let mut scene = Scene::begin(story).await?;
        ensure!(scene.routers().await? == 2, "expected 2 routers");
        story.apply(&["iris-canary"]).await?;
        let canary = scene.iris.share(10).await?;
        scene.serves(&canary, "b");
        scene.iris.ask(Some(50)).await?;
        scene.iris.share(50).await?;
        let before = (scene.iris.pods(&scene.first).await?, scene.iris.pods(&canary).await?);

        for round in ["first", "second"] {
            scene.traffic.mark("iris", &format!("{round} restart")).await?;
            story.kubectl(&["rollout", "restart", "deployment/serin-router"]).await?;
            story.kubectl(&["rollout", "status", "deployment/serin-router", "--timeout=180s"]).await?;
        }
        // Old routers drain for some seconds after the new ones are ready; then the split is that of the new ones alone.
        let selector = "serving.serin.dev/component=router";
        let config = kube::runtime::watcher::Config::default().labels(selector);
        let pods =
            kube::Api::<k8s_openapi::api::core::v1::Pod>::namespaced(story.client.clone(), &story.namespace);
        serin_e2e::wait::list(&pods, config, "2 routers alone", serin_e2e::service::LIMIT, |pods| {
            pods.len() == 2 && pods.iter().all(|pod| serin_e2e::wait::pod_is_ready(pod))
        })
        .await?;
        scene.iris.share(50).await?;
        scene.exact("50 % at new routers", &canary, 50).await?;
        let now = (scene.iris.pods(&scene.first).await?, scene.iris.pods(&canary).await?);
        ensure!(now == before, "model pods before: {before:?}, now: {now:?}");
        scene.end().await
    })
    .await
}
