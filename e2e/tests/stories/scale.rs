//! S12: `kubectl scale` up and down. Growing replaces no pod; what leaves has answered everything it was given.

use anyhow::ensure;

use serin_e2e::scene::{PHASE, Scene};
use serin_e2e::story::tell;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: make e2e STORY=scale"]
async fn scale() -> anyhow::Result<()> {
    tell("scale", async |story| {
        let scene = Scene::begin(story).await?;
        let two = scene.iris.pods(&scene.first).await?;

        story.kubectl(&["scale", "isvc/iris", "--replicas=4"]).await?;
        let four = scene.iris.pods_ready(&scene.first, 4).await?;
        ensure!(two.iter().all(|pod| four.contains(pod)), "pods before: {two:?}, after growing: {four:?}");
        scene.traffic.phase("iris", "four pods", PHASE).await?;

        story.kubectl(&["scale", "isvc/iris", "--replicas=1"]).await?;
        let one = scene.iris.pods_ready(&scene.first, 1).await?;
        ensure!(four.contains(&one[0]), "pods before: {four:?}, after shrinking: {one:?}");
        scene.traffic.phase("iris", "one pod", PHASE).await?;

        story.kubectl(&["scale", "isvc/iris", "--replicas=2"]).await?;
        let again = scene.iris.pods_ready(&scene.first, 2).await?;
        ensure!(again.contains(&one[0]), "pods before: {one:?}, after growing: {again:?}");
        let revisions = scene.iris.revisions().await?;
        ensure!(revisions == [scene.first.clone()], "expected one revision, got {revisions:?}");
        scene.end().await
    })
    .await
}
