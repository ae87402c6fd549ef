//! F2: latency over Service and router beside latency to the pod itself, from a pod in the cluster, one request at a time, in
//! turn.

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;

use serin_e2e::models;
use serin_e2e::service::Service;
use serin_e2e::story::Story;
use serin_e2e::traffic::wire::Comparison;
use serin_e2e::traffic::{Traffic, cases};

/// Measures and prints.
pub async fn measure(story: &Story, requests: u64) -> anyhow::Result<()> {
    story.apply(&["storage-secret"]).await?;
    story.apply_changed("iris", |object| object["spec"]["predictor"]["minReplicas"] = 1.into()).await?;
    let iris = Service::new(story, "iris");
    let traffic = Traffic::start(&story.client, &story.namespace, &story.cluster.traffic_image()).await?;
    iris.ready().await?;
    let revision = iris.settled().await?;
    let pods = iris.pods_ready(&revision, 1).await?;
    let pod = Api::<Pod>::namespaced(story.client.clone(), &story.namespace).get(&pods[0].name).await?;
    let address = pod.status.and_then(|status| status.pod_ip).context("a pod without an address")?;
    let case = cases::iris(&models(), "iris")?.into_iter().nth(1).context("no case")?;
    let ways =
        vec![("router".to_owned(), iris.address().await?), ("pod".to_owned(), format!("{address}:8080"))];
    let comparison = Comparison { ways, case, model: "iris".to_owned(), requests };
    let seen = traffic.compare(&comparison).await?;
    let (router, pod) = (seen.get("router").context("no router")?, seen.get("pod").context("no pod")?);
    println!("iris, V2, {requests} requests by each way, one at a time, in turn");
    println!("  to the pod       p50 {:>6} µs   p99 {:>6} µs", pod.p50, pod.p99);
    println!("  over the router  p50 {:>6} µs   p99 {:>6} µs", router.p50, router.p99);
    ensure!(
        router.p50 >= pod.p50,
        "the way over the router is shorter than the direct one: something is wrong"
    );
    println!("  added            p50 {:>6} µs", router.p50 - pod.p50);
    Ok(())
}
