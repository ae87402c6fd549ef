//! S11: each of two pods is deleted, gracefully, and replaced.

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::DeleteParams;

use serin_e2e::scene::{PHASE, Scene};
use serin_e2e::story::tell;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: make e2e STORY=pod_delete"]
async fn pod_delete() -> anyhow::Result<()> {
    tell("pod-delete", async |story| {
        let scene = Scene::begin(story).await?;
        let pods: Api<Pod> = Api::namespaced(story.client.clone(), &story.namespace);
        for pod in scene.iris.pods(&scene.first).await? {
            println!("  deleting {}", pod.name);
            scene.traffic.mark("iris", &pod.name).await?;
            pods.delete(&pod.name, &DeleteParams::default()).await?;
            scene.iris.pods_ready(&scene.first, 2).await?;
            scene.traffic.completed("iris", PHASE).await?;
        }
        scene.end().await
    })
    .await
}
