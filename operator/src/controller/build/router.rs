//! The routers of a namespace: two pods that serve every InferenceService in it, each on a port of its own. Pure.
//!
//! They belong to no single InferenceService, so they have no owner; the operator removes them with the namespace's last one.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{
    Container, EnvVar, EnvVarSource, ObjectFieldSelector, PodSpec, PodTemplateSpec, ResourceRequirements,
    ServiceAccount,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{RoleBinding, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serin_crds::labels;

use super::budget::budget;
use super::metadata::router_labels;
use super::pod::{
    container_security, liveness_probe, over_hosts, pod_security, port, readiness_probe, startup_probe,
};
use crate::args::Settings;

/// Two routers, so that one may go.
const REPLICAS: i32 = 2;
/// How long a router goes on accepting after SIGTERM: longer than the change of an endpoint takes to reach every node.
const DRAIN_SECONDS: u32 = 5;
/// How long a router waits for its last requests after that.
const DRAIN_LIMIT_SECONDS: u32 = 60;

/// Whom the routers' pods run as.
pub fn account(namespace: &str) -> ServiceAccount {
    ServiceAccount {
        metadata: metadata(namespace),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

/// What the routers may read: the ClusterRole of the chart, in this namespace only.
pub fn binding(namespace: &str) -> RoleBinding {
    RoleBinding {
        metadata: metadata(namespace),
        role_ref: RoleRef {
            api_group: Some("rbac.authorization.k8s.io".to_owned()),
            kind: "ClusterRole".to_owned(),
            name: labels::ROUTER_NAME.to_owned(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name: labels::ROUTER_NAME.to_owned(),
            namespace: Some(namespace.to_owned()),
            api_group: None,
        }]),
    }
}

/// One router may be drained at a time.
pub fn router_budget(namespace: &str) -> PodDisruptionBudget {
    budget(metadata(namespace), selector())
}

/// The routers. They follow the operator's version: another image rolls them, one by one.
pub fn deployment(namespace: &str, settings: &Settings) -> Deployment {
    Deployment {
        metadata: metadata(namespace),
        spec: DeploymentSpec {
            replicas: Some(REPLICAS),
            selector: selector(),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(1)),
                    max_unavailable: Some(IntOrString::Int(0)),
                }),
            }),
            revision_history_limit: Some(1),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(router_labels()),
                    annotations: Some(
                        [("kubectl.kubernetes.io/default-container".to_owned(), "router".to_owned())].into(),
                    ),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod(settings)),
            },
            ..DeploymentSpec::default()
        },
        ..Deployment::default()
    }
}

fn pod(settings: &Settings) -> PodSpec {
    PodSpec {
        containers: vec![container(settings)],
        service_account_name: Some(labels::ROUTER_NAME.to_owned()),
        automount_service_account_token: Some(true),
        enable_service_links: Some(false),
        security_context: Some(pod_security()),
        termination_grace_period_seconds: Some(i64::from(DRAIN_SECONDS + DRAIN_LIMIT_SECONDS + 5)),
        topology_spread_constraints: Some(vec![over_hosts(selector())]),
        ..PodSpec::default()
    }
}

fn container(settings: &Settings) -> Container {
    Container {
        name: "router".to_owned(),
        image: Some(settings.router_image.clone()),
        image_pull_policy: Some(settings.image_pull_policy.clone()),
        command: Some(vec!["/serin-router".to_owned()]),
        args: Some(vec![
            format!("--drain-seconds={DRAIN_SECONDS}"),
            format!("--drain-limit={DRAIN_LIMIT_SECONDS}"),
        ]),
        env: Some(vec![
            field("POD_NAMESPACE", "metadata.namespace"),
            field("POD_NAME", "metadata.name"),
            field("POD_UID", "metadata.uid"),
        ]),
        ports: Some(vec![port("admin", i32::from(labels::ROUTER_ADMIN_PORT))]),
        // No CPU limit: throttling would show in every request. The memory limit holds what requests may be held.
        resources: Some(ResourceRequirements {
            requests: Some(
                [("cpu", "100m"), ("memory", "64Mi")]
                    .map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned())))
                    .into(),
            ),
            limits: Some([("memory".to_owned(), Quantity("512Mi".to_owned()))].into()),
            ..ResourceRequirements::default()
        }),
        startup_probe: Some(startup_probe(120)),
        readiness_probe: Some(readiness_probe()),
        liveness_probe: Some(liveness_probe()),
        security_context: Some(container_security()),
        ..Container::default()
    }
}

fn field(name: &str, path: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: Some("v1".to_owned()),
                field_path: path.to_owned(),
            }),
            ..EnvVarSource::default()
        }),
    }
}

fn selector() -> LabelSelector {
    LabelSelector { match_labels: Some(router_labels()), ..LabelSelector::default() }
}

fn metadata(namespace: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(labels::ROUTER_NAME.to_owned()),
        namespace: Some(namespace.to_owned()),
        labels: Some(router_labels()),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::settings;
    use super::*;

    #[test]
    fn of_a_namespace() {
        insta::assert_yaml_snapshot!("deployment", deployment("ns", &settings()));
        insta::assert_yaml_snapshot!("budget", router_budget("ns"));
        insta::assert_yaml_snapshot!("rights", (account("ns"), binding("ns")));
    }
}
