//! S4: back from a canary: 0 takes its requests away at once, then the old spec is applied again. The stable pods were never
//! touched.

use anyhow::ensure;

use serin_e2e::scene::Scene;
use serin_e2e::story::tell;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: make e2e STORY=rollback"]
async fn rollback() -> anyhow::Result<()> {
    tell("rollback", async |story| {
        let mut scene = Scene::begin(story).await?;
        let before = scene.iris.pods(&scene.first).await?;
        story.apply(&["iris-canary"]).await?;
        let canary = scene.iris.share(10).await?;
        scene.serves(&canary, "b");
        scene.iris.ask(Some(50)).await?;
        scene.iris.share(50).await?;
        scene.exact("50 %", &canary, 50).await?;

        scene.iris.ask(Some(0)).await?;
        scene.iris.share(0).await?;
        let phase = scene.exact("0 %", &canary, 0).await?;
        let at_border = phase.in_flight_at_start;
        let got: u64 = phase.answered.iter().filter(|one| one.revision == canary).map(|one| one.count).sum();
        ensure!(
            got == 0,
            "expected no answer of {canary} at 0 %, got {got} ({at_border} in flight at the border)"
        );
        let running = scene.iris.pods(&canary).await?;
        ensure!(!running.is_empty(), "expected {canary} to run on at 0 %");

        story.apply(&["iris"]).await?;
        let stable = scene.iris.settled().await?;
        ensure!(stable == scene.first, "expected {} to be stable, got {stable}", scene.first);
        scene.iris.pods_ready(&canary, 0).await?;
        scene.exact("rolled back", &stable, 100).await?;
        scene.first_untouched(&before).await?;
        scene.end().await
    })
    .await
}
