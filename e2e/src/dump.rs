//! Everything in a story's namespace, written to files when the story fails. Runs kubectl, writes below `target/e2e`.

use std::path::PathBuf;

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use crate::cluster::SYSTEM;
use crate::repository;
use crate::story::Story;

const KINDS: &str = "inferenceservices,inferenceroutes,controllerrevisions,deployments,replicasets,pods,services,endpointslices,\
                     poddisruptionbudgets,configmaps,serviceaccounts,rolebindings,persistentvolumeclaims";

/// Writes objects, descriptions, events and logs; the folder they are in.
///
/// # Errors
/// The folder cannot be made. What kubectl cannot get is left out, with its own words in place.
pub async fn everything(story: &Story) -> anyhow::Result<PathBuf> {
    let place = repository().join("target/e2e").join(&story.name);
    // Files of an earlier failure would be read as this one's.
    let _ = std::fs::remove_dir_all(&place);
    std::fs::create_dir_all(&place).with_context(|| format!("make {}", place.display()))?;
    let namespace = story.namespace.as_str();
    let commands: &[(&str, &[&str])] = &[
        ("overview.txt", &["-n", namespace, "get", KINDS, "-o", "wide"]),
        ("objects.yaml", &["-n", namespace, "get", KINDS, "-o", "yaml", "--show-managed-fields"]),
        ("describe.txt", &["-n", namespace, "describe", "inferenceservices,deployments,pods"]),
        ("events.txt", &["-n", namespace, "get", "events", "--sort-by=.lastTimestamp", "-o", "wide"]),
        ("node.txt", &["describe", "nodes"]),
        ("system.txt", &["-n", SYSTEM, "get", "pods,leases", "-o", "wide"]),
    ];
    for (file, arguments) in commands {
        write(story, &place, file, arguments).await?;
    }
    for namespace in [namespace, SYSTEM] {
        let pods: Api<Pod> = Api::namespaced(story.client.clone(), namespace);
        for pod in pods.list(&ListParams::default()).await? {
            let name = pod.name_any();
            let logs = ["-n", namespace, "logs", &name, "--all-containers", "--timestamps"];
            write(story, &place, &format!("{name}.log"), &logs).await?;
            let restarts = pod.status.and_then(|status| status.container_statuses).unwrap_or_default();
            if restarts.iter().any(|container| container.restart_count > 0) {
                write(story, &place, &format!("{name}.previous.log"), &[&logs[..], &["--previous"]].concat())
                    .await?;
            }
        }
    }
    Ok(place)
}

async fn write(story: &Story, place: &std::path::Path, file: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output = story.cluster.output("kubectl", arguments, None).await?;
    let path = place.join(file);
    std::fs::write(&path, format!("{}{}", output.stdout, output.stderr))
        .with_context(|| format!("write {}", path.display()))
}
