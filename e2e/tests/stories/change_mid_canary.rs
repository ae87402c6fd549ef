//! S6: A → B → C: the spec changes while B is a canary. B's requests go first, then C begins; A serves on.

use anyhow::ensure;

use serin_e2e::scene::Scene;
use serin_e2e::story::tell;

use crate::uri;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: make e2e STORY=change_mid_canary"]
async fn change_mid_canary() -> anyhow::Result<()> {
    tell("change-mid-canary", async |story| {
        let mut scene = Scene::begin(story).await?;
        let before = scene.iris.pods(&scene.first).await?;
        story.apply(&["iris-canary"]).await?;
        let second = scene.iris.share(10).await?;
        scene.serves(&second, "b");
        scene.iris.ask(Some(50)).await?;
        scene.iris.share(50).await?;
        scene.exact("B at 50 %", &second, 50).await?;

        scene.iris.model(&uri("c")).await?;
        let changed = scene.iris.until("C at 50 % in force", |service| {
            serin_e2e::service::canary(service)
                .is_some_and(|canary| canary.revision_name != second && canary.in_force == "50")
        });
        let third = serin_e2e::service::canary(&changed.await?)
            .map(|canary| canary.revision_name.clone())
            .unwrap_or_default();
        scene.serves(&third, "c");
        ensure!(scene.iris.share(50).await? == third, "expected {third} to be the canary");
        scene.iris.pods_ready(&second, 0).await?;
        let phase = scene.exact("C at 50 %", &third, 50).await?;
        let names: Vec<_> = phase.answered.iter().map(|one| one.revision.as_str()).collect();
        ensure!(
            !names.contains(&second.as_str()),
            "expected no answer of {second} any more, got answers of {names:?}"
        );
        scene.first_untouched(&before).await?;

        scene.iris.ask(None).await?;
        let stable = scene.iris.settled().await?;
        ensure!(stable == third, "expected {third} to be stable, got {stable}");
        scene.end().await
    })
    .await
}
