//! S8: a canary that cannot load: its reason is in status and in the column, and stable keeps every request.

use anyhow::ensure;
use serde_json::{Value, json};

use serin_crds::reasons::conditions;
use serin_e2e::scene::Scene;
use serin_e2e::service::condition;
use serin_e2e::story::{Story, tell};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: make e2e STORY=broken_canary"]
async fn broken_canary() -> anyhow::Result<()> {
    tell("broken-canary", async |story| {
        let scene = Scene::begin(story).await?;
        let before = scene.iris.pods(&scene.first).await?;

        story.apply(&["broken"]).await?;
        fails(story, &scene, "ModelLoadFailed").await?;
        scene.iris.model("s3://models/nothing/model.onnx").await?;
        fails(story, &scene, "ModelNotFound").await?;
        let wrong = |secret: &mut Value| {
            secret["metadata"]["name"] = json!("wrong");
            secret["stringData"]["AWS_SECRET_ACCESS_KEY"] = json!("not-the-key");
        };
        story.apply_changed("storage-secret", wrong).await?;
        let secret = json!({"storageUri": crate::uri("b"), "storageSecret": {"name": "wrong"}});
        scene.iris.patch(&json!({"spec": {"predictor": {"model": secret}}})).await?;
        fails(story, &scene, "StorageForbidden").await?;

        story.apply(&["iris"]).await?;
        let stable = scene.iris.settled().await?;
        ensure!(stable == scene.first, "expected {} to be stable, got {stable}", scene.first);
        scene.first_untouched(&before).await?;
        scene.end().await
    })
    .await
}

/// The canary says this reason, in the condition and in the column; the service is ready and stable answers everything.
async fn fails(story: &Story, scene: &Scene<'_>, reason: &str) -> anyhow::Result<()> {
    let what = format!("CanaryReady=False, {reason}");
    let service = scene.iris.until(&what, |service| {
        let canary = condition(service, conditions::CANARY_READY);
        let says = canary.is_some_and(|canary| {
            canary.status == "False"
                && canary.reason == reason
                && canary.observed_generation == service.metadata.generation
        });
        says && service.status.as_ref().is_some_and(|status| status.reason.as_deref() == Some(reason))
    });
    let service = service.await?;
    let message = condition(&service, conditions::CANARY_READY)
        .map(|canary| canary.message.clone())
        .unwrap_or_default();
    println!("  {reason}: {message}");
    ensure!(!message.is_empty(), "expected a message with {reason}");
    let ready = condition(&service, conditions::READY);
    ensure!(ready.is_some_and(|ready| ready.status == "True"), "expected Ready to be true, got {ready:?}");
    println!("{}", story.kubectl(&["get", "isvc", "iris"]).await?);
    scene.exact(reason, &scene.first, 100).await.map(drop)
}
