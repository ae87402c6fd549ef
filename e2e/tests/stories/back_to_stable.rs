//! S7: A → B → A: the spec returns to the stable model while B is a canary. Nothing new is made, A's pods are untouched.

use anyhow::ensure;

use serin_e2e::scene::Scene;
use serin_e2e::story::tell;

use crate::uri;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: make e2e STORY=back_to_stable"]
async fn back_to_stable() -> anyhow::Result<()> {
    tell("back-to-stable", async |story| {
        let mut scene = Scene::begin(story).await?;
        let before = scene.iris.pods(&scene.first).await?;
        story.apply(&["iris-canary"]).await?;
        let canary = scene.iris.share(10).await?;
        scene.serves(&canary, "b");
        scene.iris.ask(Some(90)).await?;
        scene.iris.share(90).await?;
        scene.exact("90 %", &canary, 90).await?;

        scene.iris.model(&uri("a")).await?;
        let stable = scene.iris.settled().await?;
        ensure!(stable == scene.first, "expected {} to be stable, got {stable}", scene.first);
        scene.iris.pods_ready(&canary, 0).await?;
        scene.exact("back", &stable, 100).await?;
        scene.first_untouched(&before).await?;
        let revisions = scene.iris.revisions().await?;
        ensure!(revisions.len() == 2, "expected the 2 revisions from before, got {revisions:?}");

        // The same model once more is the same revision.
        scene.iris.model(&uri("b")).await?;
        ensure!(scene.iris.share(90).await? == canary, "expected {canary} again");
        scene.exact("B again", &canary, 90).await?;
        scene.end().await
    })
    .await
}
