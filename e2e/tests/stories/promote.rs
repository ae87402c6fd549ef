//! S3: a canary is promoted: its pods stay as they are, and `kubectl apply && kubectl wait` needs no pause between. Then a
//! change without a percentage is promoted as soon as it is ready.

use anyhow::ensure;
use serde_json::Value;

use serin_e2e::scene::Scene;
use serin_e2e::story::{changed, tell};

use crate::uri;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: make e2e STORY=promote"]
async fn promote() -> anyhow::Result<()> {
    tell("promote", async |story| {
        let mut scene = Scene::begin(story).await?;
        story.apply(&["iris-canary"]).await?;
        let canary = scene.iris.share(10).await?;
        scene.serves(&canary, "b");
        let before = scene.iris.pods(&canary).await?;

        apply_and_wait(story, "b").await?;
        let stable = scene.iris.promoted().await?;
        ensure!(stable == canary, "expected {canary} to be stable, got {stable}");
        scene.iris.settled().await?;
        scene.iris.pods_ready(&scene.first, 0).await?;
        let now = scene.iris.pods_ready(&canary, 2).await?;
        ensure!(
            before.iter().all(|pod| now.contains(pod)),
            "canary pods before: {before:?}, after the promotion: {now:?}"
        );
        scene.exact("promoted", &canary, 100).await?;

        apply_and_wait(story, "c").await?;
        let third = scene.iris.settled().await?;
        ensure!(third != canary, "expected a new stable revision, got {third}");
        scene.serves(&third, "c");
        scene.exact("promoted without a canary", &third, 100).await?;
        scene.end().await
    })
    .await
}

/// The two commands as the documents show them.
async fn apply_and_wait(story: &serin_e2e::story::Story, model: &str) -> anyhow::Result<()> {
    let text = changed("iris", |object: &mut Value| {
        object["spec"]["predictor"]["model"]["storageUri"] = uri(model).into()
    })?;
    let place = serin_e2e::repository().join("target/e2e");
    std::fs::create_dir_all(&place)?;
    let file = place.join(format!("{}-{model}.yaml", story.namespace));
    std::fs::write(&file, text)?;
    let (namespace, path) = (&story.namespace, file.display());
    let line = format!(
        "kubectl -n {namespace} apply -f {path} && kubectl -n {namespace} wait --for=condition=Promoted isvc/iris --timeout=120s"
    );
    let done = story.cluster.bash(&line).await;
    std::fs::remove_file(&file)?;
    println!("  {}", done?.trim().replace('\n', "\n  "));
    Ok(())
}
