//! `InferenceService`: what a data scientist writes. Every doc comment here is the API's manual (`kubectl explain isvc`).
//!
//! The shape and the names are those of KServe's `serving.kserve.io/v1beta1`; rules that the API server can check stand
//! beside the field in CEL, so that a wrong spec is refused by `kubectl apply` and no webhook is needed.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, EnvFromSource, EnvVar, LocalObjectReference, ResourceRequirements, Toleration,
    TopologySpreadConstraint,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod status;

pub use status::*;

/// A model served over the V1 and V2 inference protocols, with canary rollouts. Changing the model makes a new revision;
/// `predictor.canaryTrafficPercent` is the share of requests that the new revision gets until it is promoted.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "serving.serin.dev",
    version = "v1alpha1",
    kind = "InferenceService",
    namespaced,
    shortname = "isvc",
    category = "serin",
    status = "InferenceServiceStatus",
    derive = "PartialEq",
    scale(spec_replicas_path = ".spec.predictor.minReplicas", status_replicas_path = ".status.replicas", label_selector_path = ".status.selector"),
    validation = Rule::new("self.metadata.name.size() <= 45").message("metadata.name: at most 45 characters, because names of revisions and pods are made from it"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name: lower-case letters, digits and '-', beginning with a letter (it becomes the name of a Service)"),
    printcolumn(name = "URL", type_ = "string", json_path = ".status.url"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Stable", type_ = "string", json_path = ".status.components.predictor.latestRolledoutRevision"),
    printcolumn(name = "Canary", type_ = "string", json_path = ".status.canaryRevision"),
    printcolumn(name = "Percent", type_ = "string", json_path = ".status.percent", description = "asked, and in force where it differs"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct InferenceServiceSpec {
    /// What answers requests: the model, its resources and how many pods serve it.
    pub predictor: PredictorSpec,
    /// How a new revision replaces the old one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutSpec>,
    /// How requests reach the predictor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<RouterSpec>,
    /// How many revisions that no longer run are remembered. Default 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub revision_history_limit: Option<u32>,
}

/// The model and the pods that serve it. A change of any field makes a new revision, except `canaryTrafficPercent`,
/// `minReplicas` and `maxReplicas`, which never restart a pod.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!has(self.minReplicas) || !has(self.maxReplicas) || self.maxReplicas == 0 || self.minReplicas <= self.maxReplicas").message("minReplicas must not be greater than maxReplicas"))]
#[serde(rename_all = "camelCase")]
pub struct PredictorSpec {
    /// The model to serve.
    pub model: ModelSpec,
    /// The share of requests, in percent, that a changed model gets: 0 runs it without requests (it can be reached with the
    /// header `Serin-Revision: canary`), 100 or no value promotes it as soon as it is ready. While there is nothing new to
    /// split, the value waits for the next change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 0 && self <= 100").message("canaryTrafficPercent must be between 0 and 100"))]
    pub canary_traffic_percent: Option<i64>,
    /// Pods of the service. Default 1; 2 or more survive the loss of a node. A patch scales without a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 1000").message("minReplicas must be between 1 and 1000 (scale to zero is not served by this version)"))]
    pub min_replicas: Option<i32>,
    /// Upper bound for autoscaling. This version runs `minReplicas` pods; the bound is checked and kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 0 && self <= 1000").message("maxReplicas must be between 0 (no bound) and 1000"))]
    pub max_replicas: Option<i32>,
    /// How long a request may take, in seconds. Default 60.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 3600").message("timeout must be between 1 and 3600 seconds"))]
    pub timeout: Option<i64>,
    /// Labels added to the model's pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[x_kube(validation = Rule::new("self.all(k, !k.startsWith('serving.serin.dev/') && k != 'app.kubernetes.io/managed-by')").message("labels: keys of serving.serin.dev/ and app.kubernetes.io/managed-by are set by Serin"))]
    #[schemars(extend("maxProperties" = 64))]
    pub labels: BTreeMap<String, String>,
    /// Annotations added to the model's pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// ServiceAccount of the model's pods. Default `default`; its token is not mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account_name: Option<String>,
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// Scheduling constraints of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// RuntimeClass of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_class_name: Option<String>,
    /// PriorityClass of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
    /// Secrets for pulling the runtime's image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// How pods spread over nodes. Default: over hostnames where that is possible.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    /// Any text; changing it makes a new revision although nothing else changed (for example to take up a new runtime image).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub revision_nonce: Option<String>,
}

/// Where the model is and how its server runs.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelSpec {
    /// Format of the model. Default and only value: `onnx`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_format: Option<ModelFormat>,
    /// Where the model is: `s3://bucket/key`, `http(s)://host/path`, `pvc://claim/path` or `file:///path` (inside the image or a
    /// volume). A file, or a folder that holds `model.onnx` or a single `.onnx` file.
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(validation = Rule::new("self.matches('^(s3|https?|pvc|file)://')").message("storageUri must begin with s3://, http://, https://, pvc:// or file://"))]
    #[x_kube(validation = Rule::new("!self.matches('^(s3|https?|pvc)://(/|$)')").message("storageUri: a bucket, host or claim must follow the scheme, as in s3://bucket/key, https://host/path or pvc://claim/path"))]
    #[x_kube(validation = Rule::new("!self.matches('^[a-z0-9]+://[^/]*@')").message("storageUri must not carry credentials; put them into a Secret and name it in storageSecret"))]
    #[x_kube(validation = Rule::new("!self.matches('/[.][.](/|$)')").message("storageUri must not contain '..'"))]
    pub storage_uri: String,
    /// A Secret of the same namespace whose keys become environment variables of the model's server, for example
    /// AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_REGION.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_secret: Option<SecretName>,
    /// Protocol that callers use. V1 and V2 over REST are always served, so this is a note for people and tools that read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == 'v1' || self == 'v2'").message("protocolVersion: v1 or v2 (both are always served)"))]
    #[schemars(length(max = 16))]
    pub protocol_version: Option<String>,
    /// Tag of the runtime image. Default: the one of the operator that made the revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub runtime_version: Option<String>,
    /// CPU and memory of one pod. Threads follow the CPU limit, else the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Environment variables of the model's server.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvVar>,
    /// Sources of environment variables of the model's server.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env_from: Vec<EnvFromSource>,
    /// Further arguments of the model's server; see `serin-runtime serve --help`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub args: Vec<String>,
}

/// Format of the model.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelFormat {
    /// Name of the format.
    #[schemars(length(max = 64))]
    #[x_kube(validation = Rule::new("self == 'onnx'").message("modelFormat.name: only onnx is served; export the model to ONNX (skl2onnx, torch.onnx, tf2onnx, onnxmltools)"))]
    pub name: String,
    /// Version of the format; kept, not interpreted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// The name of a Secret in the same namespace.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretName {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// How a new revision replaces the old one.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!(has(self.maxSurge) && has(self.maxUnavailable) && (type(self.maxSurge) == int ? self.maxSurge == 0 : self.maxSurge == '0%') && (type(self.maxUnavailable) == int ? self.maxUnavailable == 0 : self.maxUnavailable == '0%'))").message("rollout.maxSurge and rollout.maxUnavailable must not both be 0: no pod could be replaced"))]
#[x_kube(validation = Rule::new("!has(self.maxSurge) || has(self.maxUnavailable) || !(type(self.maxSurge) == int ? self.maxSurge == 0 : self.maxSurge == '0%')").message("rollout.maxSurge: 0 needs rollout.maxUnavailable of at least 1"))]
#[serde(rename_all = "camelCase")]
pub struct RolloutSpec {
    /// How many pods there may be above the size of the service while a new revision comes up: a number or a percentage of
    /// the size, rounded up. Default 100%: the new revision gets all its pods beside the old ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("type(self) == int ? self >= 0 && self <= 1000 : self.matches('^(100|[1-9]?[0-9])%$')").message("maxSurge must be a number of pods (0 or more) or a percentage from 0% to 100%"))]
    #[schemars(extend("maxLength" = 4))]
    pub max_surge: Option<IntOrString>,
    /// How many pods fewer than the size of the service may be ready while a new revision comes up: a number or a percentage
    /// of the size, rounded down. Default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("type(self) == int ? self >= 0 && self <= 1000 : self.matches('^(100|[1-9]?[0-9])%$')").message("maxUnavailable must be a number of pods (0 or more) or a percentage from 0% to 100%"))]
    #[schemars(extend("maxLength" = 4))]
    pub max_unavailable: Option<IntOrString>,
    /// After how many seconds without a new ready pod a revision that comes up is reported as stuck. Default 600. Nothing is
    /// rolled back by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 10 && self <= 86400").message("progressDeadlineSeconds must be between 10 and 86400"))]
    pub progress_deadline_seconds: Option<i64>,
}

/// How requests reach the predictor.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouterSpec {
    /// How long, in seconds, a request waits for a pod while none can take it, before it gets 503. Default 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 0 && self <= 600").message("holdSeconds must be between 0 and 600"))]
    pub hold_seconds: Option<i64>,
}
