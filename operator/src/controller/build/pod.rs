//! The pod template of a revision: the model's server, its model, and how it starts and ends. Pure.
//!
//! Rendered once, by the operator that makes the revision, and stored; later operators apply what is stored. So a change here reaches
//! a model only with its next revision.

use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvFromSource, EnvVar, HTTPGetAction,
    Lifecycle, LifecycleHandler, PersistentVolumeClaimVolumeSource, PodSecurityContext, PodSpec,
    PodTemplateSpec, Probe, ResourceRequirements, SeccompProfile, SecretEnvSource, SecurityContext,
    SleepAction, TopologySpreadConstraint, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serin_crds::inference_service::PredictorSpec;
use serin_crds::labels;

use super::deployment::selector;
use super::metadata::{Owner, child_labels};
use crate::args::Settings;
use crate::controller::revision::timeout_seconds;
use crate::controller::validate::claim;

/// The container that runs the model's server.
pub const CONTAINER: &str = "model";
/// Between the removal of a pod and its SIGTERM: most routers have read the removal by then.
const PRE_STOP_SECONDS: u32 = 2;
/// Idle this long after SIGTERM, the server ends: longer than the change of an endpoint takes to reach the routers.
const DRAIN_IDLE_SECONDS: u32 = 3;
/// A lone pod lives at least this long after SIGTERM while requests still come.
const SHORTEST_DRAIN_SECONDS: u32 = 60;
const MODEL_FOLDER: &str = "/var/lib/serin";
const VOLUMES_FOLDER: &str = "/mnt/pvc";
/// A model may be fetched for as long as a day before the pod counts as failed.
const STARTUP_SECONDS: i32 = 86_400;
/// User and group of everything that Serin runs.
const NOBODY: i64 = 65_532;

/// The pod template of a new revision.
pub fn template(
    owner: &Owner,
    revision: &str,
    predictor: &PredictorSpec,
    settings: &Settings,
) -> PodTemplateSpec {
    let mut all_labels = predictor.labels.clone();
    all_labels.extend(child_labels(&owner.name, Some(revision)));
    let mut annotations = predictor.annotations.clone();
    annotations
        .entry("kubectl.kubernetes.io/default-container".to_owned())
        .or_insert_with(|| CONTAINER.to_owned());
    let drain = drain_seconds(predictor);
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(all_labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            containers: vec![container(owner, revision, predictor, settings)],
            volumes: Some(volumes(predictor)),
            security_context: Some(pod_security()),
            // The model's server never talks to the API server.
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            service_account_name: predictor.service_account_name.clone(),
            termination_grace_period_seconds: Some(i64::from(PRE_STOP_SECONDS + drain + 5)),
            node_selector: (!predictor.node_selector.is_empty()).then(|| predictor.node_selector.clone()),
            tolerations: filled(&predictor.tolerations),
            affinity: predictor.affinity.clone(),
            runtime_class_name: predictor.runtime_class_name.clone(),
            priority_class_name: predictor.priority_class_name.clone(),
            image_pull_secrets: filled(&predictor.image_pull_secrets),
            topology_spread_constraints: Some(match filled(&predictor.topology_spread_constraints) {
                Some(written) => written,
                None => vec![over_hosts(selector(revision))],
            }),
            ..PodSpec::default()
        }),
    }
}

/// How long the server goes on after SIGTERM, at most: a request that came last may take its whole timeout.
fn drain_seconds(predictor: &PredictorSpec) -> u32 {
    timeout_seconds(predictor).max(SHORTEST_DRAIN_SECONDS)
}

fn container(owner: &Owner, revision: &str, predictor: &PredictorSpec, settings: &Settings) -> Container {
    let resources = with_default_requests(predictor.model.resources.clone());
    let mut args = vec!["serve".to_owned()];
    args.extend(predictor.model.args.iter().cloned());
    Container {
        name: CONTAINER.to_owned(),
        image: Some(settings.runtime_image_at(predictor.model.runtime_version.as_deref())),
        image_pull_policy: Some(settings.image_pull_policy.clone()),
        args: Some(args),
        env: Some(environment(owner, revision, predictor, &resources)),
        env_from: filled(&environment_sources(predictor)),
        ports: Some(vec![
            port("http", i32::from(labels::RUNTIME_PORT)),
            port("admin", i32::from(labels::RUNTIME_ADMIN_PORT)),
        ]),
        volume_mounts: Some(mounts(predictor)),
        resources: Some(resources),
        startup_probe: Some(startup_probe(STARTUP_SECONDS)),
        readiness_probe: Some(readiness_probe()),
        liveness_probe: Some(liveness_probe()),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                sleep: Some(SleepAction { seconds: i64::from(PRE_STOP_SECONDS) }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        security_context: Some(container_security()),
        termination_message_path: Some("/dev/termination-log".to_owned()),
        ..Container::default()
    }
}

fn environment(
    owner: &Owner,
    revision: &str,
    predictor: &PredictorSpec,
    resources: &ResourceRequirements,
) -> Vec<EnvVar> {
    let set =
        |name: &str, value: String| EnvVar { name: name.to_owned(), value: Some(value), value_from: None };
    let mut all = vec![
        set("SERIN_MODEL_URI", predictor.model.storage_uri.clone()),
        set("SERIN_MODEL_NAME", owner.name.clone()),
        set("SERIN_IDENTITY", labels::identity(&owner.namespace, &owner.name, revision)),
        set("SERIN_MODEL_DIR", MODEL_FOLDER.to_owned()),
        set("SERIN_TERMINATION_LOG", "/dev/termination-log".to_owned()),
        set("SERIN_TIMEOUT", timeout_seconds(predictor).to_string()),
        set("SERIN_DRAIN_IDLE", DRAIN_IDLE_SECONDS.to_string()),
        set("SERIN_DRAIN_LIMIT", drain_seconds(predictor).to_string()),
    ];
    // Where there is no limit, threads follow the request, which a process cannot find out by itself.
    if let Some(cpu) = resources.requests.as_ref().and_then(|requests| requests.get("cpu")) {
        all.push(set("SERIN_CPU_REQUEST", cpu.0.clone()));
    }
    all.extend(predictor.model.env.iter().cloned());
    all
}

/// The storage's Secret comes last, so that its keys win over those of other sources.
fn environment_sources(predictor: &PredictorSpec) -> Vec<EnvFromSource> {
    let secret = predictor.model.storage_secret.as_ref().map(|secret| EnvFromSource {
        secret_ref: Some(SecretEnvSource { name: secret.name.clone(), optional: None }),
        ..EnvFromSource::default()
    });
    predictor.model.env_from.iter().cloned().chain(secret).collect()
}

/// A pod without any request would be the first to be evicted and would get one thread of CPU by chance.
fn with_default_requests(written: Option<ResourceRequirements>) -> ResourceRequirements {
    let mut resources = written.unwrap_or_default();
    for (name, default) in [("cpu", "100m"), ("memory", "128Mi")] {
        let limited = resources.limits.as_ref().is_some_and(|limits| limits.contains_key(name));
        let requests = resources.requests.get_or_insert_default();
        // A limit alone is its own request, by Kubernetes' rules.
        if !limited {
            requests.entry(name.to_owned()).or_insert_with(|| Quantity(default.to_owned()));
        }
    }
    if resources.requests.as_ref().is_some_and(|requests| requests.is_empty()) {
        resources.requests = None;
    }
    resources
}

fn volumes(predictor: &PredictorSpec) -> Vec<Volume> {
    let scratch = |name: &str| Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource::default()),
        ..Volume::default()
    };
    let mut all = vec![scratch("models"), scratch("tmp")];
    if let Some(claim) = claim(&predictor.model.storage_uri) {
        all.push(Volume {
            name: "claim".to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.to_owned(),
                read_only: Some(true),
            }),
            ..Volume::default()
        });
    }
    all
}

fn mounts(predictor: &PredictorSpec) -> Vec<VolumeMount> {
    let mount = |name: &str, path: String, read_only: Option<bool>| VolumeMount {
        name: name.to_owned(),
        mount_path: path,
        read_only,
        ..VolumeMount::default()
    };
    let mut all = vec![mount("models", MODEL_FOLDER.to_owned(), None), mount("tmp", "/tmp".to_owned(), None)];
    if let Some(claim) = claim(&predictor.model.storage_uri) {
        all.push(mount("claim", format!("{VOLUMES_FOLDER}/{claim}"), Some(true)));
    }
    all
}

/// Pods lie on different nodes where there are some; one node is no reason to wait.
pub fn over_hosts(selector: LabelSelector) -> TopologySpreadConstraint {
    TopologySpreadConstraint {
        max_skew: 1,
        topology_key: "kubernetes.io/hostname".to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        label_selector: Some(selector),
        ..TopologySpreadConstraint::default()
    }
}

/// What Pod Security `restricted` asks of a pod.
pub fn pod_security() -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(NOBODY),
        run_as_group: Some(NOBODY),
        fs_group: Some(NOBODY),
        seccomp_profile: Some(SeccompProfile {
            type_: "RuntimeDefault".to_owned(),
            ..SeccompProfile::default()
        }),
        ..PodSecurityContext::default()
    }
}

/// What Pod Security `restricted` asks of a container, and a read-only root.
pub fn container_security() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        ..SecurityContext::default()
    }
}

/// Until the program listens, at most so many seconds; the other probes wait for it.
pub fn startup_probe(seconds: i32) -> Probe {
    Probe { period_seconds: Some(1), failure_threshold: Some(seconds), ..http_probe("/livez", "admin") }
}

/// Whether requests may come: looked at each second.
pub fn readiness_probe() -> Probe {
    Probe { period_seconds: Some(1), failure_threshold: Some(2), ..http_probe("/readyz", "admin") }
}

/// Whether the program hangs: patient, since a restart costs more than a minute of waiting.
pub fn liveness_probe() -> Probe {
    Probe {
        period_seconds: Some(10),
        timeout_seconds: Some(5),
        failure_threshold: Some(6),
        ..http_probe("/livez", "admin")
    }
}

/// A GET that must answer 200, on a named port.
fn http_probe(path: &str, port: &str) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(port.to_owned()),
            ..HTTPGetAction::default()
        }),
        ..Probe::default()
    }
}

/// A named port of a container.
pub fn port(name: &str, number: i32) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: number,
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

fn filled<T: Clone>(list: &[T]) -> Option<Vec<T>> {
    (!list.is_empty()).then(|| list.to_vec())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{owner, predictor, settings};
    use super::*;

    #[test]
    fn everything_that_a_user_can_say_reaches_the_pod() {
        let predictor = predictor(json!({
            "model": {
                "modelFormat": {"name": "onnx"}, "storageUri": "pvc://models/iris-a", "storageSecret": {"name": "s3"},
                "runtimeVersion": "v2", "args": ["--instances", "2"],
                "resources": {"requests": {"cpu": "2"}, "limits": {"memory": "1Gi"}},
                "env": [{"name": "AWS_REGION", "value": "x"}], "envFrom": [{"configMapRef": {"name": "more"}}]
            },
            "timeout": 300, "labels": {"team": "flowers"}, "annotations": {"note": "hello"},
            "serviceAccountName": "reader", "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}}, "runtimeClassName": "gvisor", "priorityClassName": "high",
            "imagePullSecrets": [{"name": "pull"}],
            "topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
            ]
        }));
        insta::assert_yaml_snapshot!(template(&owner(), "iris-a", &predictor, &settings()));
    }

    #[test]
    fn requests_have_defaults_where_neither_request_nor_limit_is_written() {
        let check = |written: serde_json::Value, expect: serde_json::Value| {
            let written: Option<ResourceRequirements> = serde_json::from_value(written).unwrap();
            assert_eq!(serde_json::to_value(with_default_requests(written)).unwrap(), expect);
        };
        check(json!(null), json!({"requests": {"cpu": "100m", "memory": "128Mi"}}));
        check(
            json!({"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}}),
            json!({"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}}),
        );
        check(
            json!({"limits": {"cpu": "1", "memory": "1Gi"}}),
            json!({"limits": {"cpu": "1", "memory": "1Gi"}}),
        );
    }
}
