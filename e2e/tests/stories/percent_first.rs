//! S5: a percentage that is set before there is anything to split does nothing, and waits for the change.

use anyhow::ensure;

use serin_e2e::scene::Scene;
use serin_e2e::story::tell;

use crate::uri;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: make e2e STORY=percent_first"]
async fn percent_first() -> anyhow::Result<()> {
    tell("percent-first", async |story| {
        let mut scene = Scene::begin(story).await?;
        let before = scene.iris.pods(&scene.first).await?;

        scene.iris.ask(Some(30)).await?;
        let stable = scene.iris.settled().await?;
        ensure!(stable == scene.first, "expected {} to be stable, got {stable}", scene.first);
        scene.exact("nothing to split", &stable, 100).await?;
        let revisions = scene.iris.revisions().await?;
        ensure!(revisions == [stable.clone()], "expected one revision, got {revisions:?}");
        let events = story.kubectl(&["get", "events", "-o", "jsonpath={.items[*].reason}"]).await?;
        ensure!(events.contains("NothingToSplit"), "expected an event NothingToSplit, got {events}");

        scene.iris.model(&uri("b")).await?;
        let canary = scene.iris.share(30).await?;
        scene.serves(&canary, "b");
        scene.exact("30 %", &canary, 30).await?;
        scene.first_untouched(&before).await?;
        scene.end().await
    })
    .await
}
