//! S2: 10 → 50 → 90. The share is exact, and a patch of the percentage neither restarts a pod nor makes a revision.

use anyhow::ensure;
use serde_json::json;

use serin_e2e::scene::Scene;
use serin_e2e::story::tell;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: make e2e STORY=canary"]
async fn canary() -> anyhow::Result<()> {
    tell("canary", async |story| {
        let mut scene = Scene::begin(story).await?;
        let before = scene.iris.pods(&scene.first).await?;

        story.apply(&["iris-canary"]).await?;
        let canary = scene.iris.share(10).await?;
        scene.serves(&canary, "b");
        scene.exact("10 %", &canary, 10).await?;
        let revisions = scene.iris.revisions().await?;
        ensure!(revisions.len() == 2, "expected 2 revisions, got {revisions:?}");
        let mut canary_pods = scene.iris.pods(&canary).await?;
        pinned(&scene, &canary).await?;

        for percent in [50, 90] {
            scene.iris.ask(Some(percent)).await?;
            scene.iris.share(percent).await?;
            scene.exact(&format!("{percent} %"), &canary, percent).await?;
            scene.first_untouched(&before).await?;
            let now = scene.iris.pods(&canary).await?;
            ensure!(
                canary_pods.iter().all(|pod| now.contains(pod)),
                "canary pods before: {canary_pods:?}, now: {now:?}"
            );
            canary_pods = now;
            let now = scene.iris.revisions().await?;
            ensure!(now == revisions, "revisions before: {revisions:?}, now: {now:?}");
        }
        scene.end().await
    })
    .await
}

/// A header reaches a revision whatever its share.
async fn pinned(scene: &Scene<'_>, canary: &str) -> anyhow::Result<()> {
    let body = json!({"instances": [[5.1, 3.5, 1.4, 0.2]]});
    for (pin, expected) in
        [("canary", canary), ("stable", &scene.first), (canary, canary), (&scene.first, &scene.first)]
    {
        let answer = scene.iris.call("/v1/models/iris:predict", &body, Some(pin)).await?;
        ensure!(
            answer.status == 200 && answer.revision.as_deref() == Some(expected),
            "Serin-Revision: {pin}: expected an answer of {expected}, got {answer:?}"
        );
    }
    let unknown = scene.iris.call("/v1/models/iris:predict", &body, Some("iris-nobody")).await?;
    ensure!(
        unknown.status == 404 && unknown.body.contains(canary) && unknown.cause.is_some(),
        "Serin-Revision: iris-nobody: expected 404 with the names of the revisions, got {unknown:?}"
    );
    Ok(())
}
