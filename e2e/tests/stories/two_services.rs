//! S10b: two services in one namespace, behind the same routers: one goes through a canary and a promotion, the other serves
//! undisturbed.

use anyhow::ensure;
use serde_json::{Value, json};

use serin_e2e::scene::{IRIS_RATE, Scene};
use serin_e2e::service::Service;
use serin_e2e::story::tell;
use serin_e2e::traffic::split;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: make e2e STORY=two_services"]
async fn two_services() -> anyhow::Result<()> {
    tell("two-services", async |story| {
        let mut scene = Scene::begin(story).await?;
        story.apply_changed("iris", |object: &mut Value| object["metadata"]["name"] = json!("rose")).await?;
        let rose = Service::new(story, "rose");
        rose.ready().await?;
        let other = rose.settled().await?;
        scene.serves(&other, "a");
        scene.load(&rose, IRIS_RATE).await?;
        let before = rose.pods(&other).await?;
        let object = rose.get().await?;

        story.apply(&["iris-canary"]).await?;
        let canary = scene.iris.share(10).await?;
        scene.serves(&canary, "b");
        scene.exact("10 %", &canary, 10).await?;
        scene.iris.ask(Some(50)).await?;
        scene.iris.share(50).await?;
        scene.exact("50 %", &canary, 50).await?;
        scene.iris.ask(None).await?;
        ensure!(scene.iris.settled().await? == canary, "expected {canary} to be stable");
        scene.iris.pods_ready(&scene.first, 0).await?;

        // A third service, whose requests cost 9 ms of a core each, gets a canary of its own.
        story.apply(&["magika-canary"]).await?;
        let magika = Service::new(story, "magika");
        let next = magika.share(10).await?;
        scene.serves(&next, "v3_3");
        let phase = scene.traffic.phase("magika", "10 %", 100).await?;
        let routers = scene.routers().await?;
        println!("  {}", split::check(&phase, &next, 1000, routers).map_err(|off| anyhow::anyhow!(off))?);

        let verdict = scene.stop("rose").await?;
        ensure!(
            verdict.answered.keys().eq([&other]),
            "expected answers of {other} alone, got {:?}",
            verdict.answered
        );
        let now = rose.pods(&other).await?;
        ensure!(now == before, "pods of {other} before: {before:?}, now: {now:?}");
        let untouched = rose.get().await?;
        ensure!(
            untouched.metadata.resource_version == object.metadata.resource_version,
            "rose was written while iris was rolled out"
        );
        scene.end().await
    })
    .await
}
