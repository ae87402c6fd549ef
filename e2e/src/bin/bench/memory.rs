//! F5: working set of operator and routers, as the kubelet counts it.

use std::collections::BTreeMap;

use anyhow::ensure;
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::Value;

use serin_e2e::cluster::Cluster;

/// Measures and prints.
pub async fn measure(cluster: &Cluster) -> anyhow::Result<()> {
    let client = cluster.client().await?;
    let mut found: BTreeMap<String, u64> = BTreeMap::new();
    for node in Api::<Node>::all(client.clone()).list(&ListParams::default()).await? {
        let path = format!("/api/v1/nodes/{}/proxy/stats/summary", node.name_any());
        let summary: Value = client.request(http::Request::get(path).body(Vec::new())?).await?;
        for pod in summary["pods"].as_array().into_iter().flatten() {
            let name = pod["podRef"]["name"].as_str().unwrap_or_default();
            if !name.starts_with("serin-operator") && !name.starts_with("serin-router") {
                continue;
            }
            let namespace = pod["podRef"]["namespace"].as_str().unwrap_or_default();
            let containers = pod["containers"].as_array().into_iter().flatten();
            let bytes =
                containers.filter_map(|container| container["memory"]["workingSetBytes"].as_u64()).sum();
            found.insert(format!("{namespace}/{name}"), bytes);
        }
    }
    ensure!(!found.is_empty(), "no operator and no router runs");
    for (name, bytes) in found {
        println!("{:>7.1} MB  {name}", megabytes(bytes));
    }
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "only printed")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
