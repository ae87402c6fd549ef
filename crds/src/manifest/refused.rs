//! Fields of KServe's API that this version does not serve.
//!
//! The API server drops unknown fields silently, so a field that is not served stands in the schema all the same, with a
//! CEL rule that refuses it and says what to write instead.

use serde_json::{Value, json};

const LATER: &str = "is not served by this version; remove it";
const REMOVE: &str = "is not served; remove it";
const RESTRICTED: &str = "is not served; model pods run under Pod Security 'restricted'";
const PROBES: &str = "is not served; the runtime's probes are set by Serin";

/// What a field holds in KServe's API. CEL sees only fields of a known type, so each is declared with its own; a value of
/// another type is refused for that.
#[derive(Clone, Copy)]
enum Shape {
    Object,
    Objects,
    Text,
    Texts,
    Number,
    Switch,
}
use Shape::{Number, Object, Objects, Switch, Text, Texts};

/// (field, what it holds, what to do instead)
const IN_SPEC: &[(&str, Shape, &str)] = &[
    ("transformer", Object, LATER),
    ("explainer", Object, REMOVE),
    ("canary", Objects, "is not served; use predictor.canaryTrafficPercent"),
];

const IN_PREDICTOR: &[(&str, Shape, &str)] = &[
    ("scaleMetric", Text, "is not served by this version: minReplicas sets the number of pods; remove it"),
    ("scaleTarget", Number, "is not served by this version: minReplicas sets the number of pods; remove it"),
    (
        "scaleMetricType",
        Text,
        "is not served by this version: minReplicas sets the number of pods; remove it",
    ),
    ("autoScaling", Object, "is not served by this version: minReplicas sets the number of pods; remove it"),
    ("containerConcurrency", Number, LATER),
    ("batcher", Object, LATER),
    ("logger", Object, LATER),
    ("accelerator", Text, LATER),
    (
        "deploymentStrategy",
        Object,
        "is not served; use spec.rollout.maxSurge and spec.rollout.maxUnavailable",
    ),
    ("canary", Object, "is not served; use canaryTrafficPercent"),
    ("containers", Objects, LATER),
    ("initContainers", Objects, "is not served; the runtime fetches the model itself"),
    ("volumes", Objects, "is not served; use a storageUri with pvc://"),
    ("workerSpec", Object, "is not served; a model runs in one pod"),
    ("hostNetwork", Switch, RESTRICTED),
    ("hostIPC", Switch, RESTRICTED),
    ("hostPID", Switch, RESTRICTED),
    ("securityContext", Object, RESTRICTED),
    ("terminationGracePeriodSeconds", Number, "is not served; it follows predictor.timeout"),
    ("dnsPolicy", Text, REMOVE),
    ("dnsConfig", Object, REMOVE),
    ("hostAliases", Objects, REMOVE),
    ("nodeName", Text, "is not served; use nodeSelector or affinity"),
    ("hostUsers", Switch, RESTRICTED),
    ("hostname", Text, REMOVE),
    ("subdomain", Text, REMOVE),
    ("setHostnameAsFQDN", Switch, REMOVE),
    ("os", Object, REMOVE),
    ("activeDeadlineSeconds", Number, "is not served; model pods have no end"),
    ("restartPolicy", Text, "is not served; model pods are always restarted"),
    ("automountServiceAccountToken", Switch, "is not served; model pods mount no token"),
    ("serviceAccount", Text, "is not served; use serviceAccountName"),
    ("enableServiceLinks", Switch, REMOVE),
    ("ephemeralContainers", Objects, "is not served; use kubectl debug"),
    ("priority", Number, "is not served; use priorityClassName"),
    ("preemptionPolicy", Text, "is not served; use priorityClassName"),
    ("readinessGates", Objects, REMOVE),
    ("schedulingGates", Objects, REMOVE),
    ("resourceClaims", Objects, LATER),
    ("resources", Object, "is not served; use predictor.model.resources"),
    ("shareProcessNamespace", Switch, REMOVE),
    ("schedulerName", Text, REMOVE),
    ("overhead", Object, "is not served; use runtimeClassName"),
    ("onnx", Object, "is not served; use model with modelFormat {name: onnx}"),
    ("sklearn", Object, "is not served; export the model to ONNX with skl2onnx and use model"),
    ("xgboost", Object, "is not served; export the model to ONNX with onnxmltools and use model"),
    ("lightgbm", Object, "is not served; export the model to ONNX with onnxmltools and use model"),
    ("tensorflow", Object, "is not served; export the model to ONNX with tf2onnx and use model"),
    ("pytorch", Object, "is not served; export the model to ONNX with torch.onnx and use model"),
    ("huggingface", Object, "is not served; export the model to ONNX with optimum and use model"),
    ("paddle", Object, "is not served; export the model to ONNX with paddle2onnx and use model"),
    ("pmml", Object, "is not served; export the model to ONNX and use model"),
    ("triton", Object, "is not served; use model with modelFormat {name: onnx}"),
];

const IN_MODEL: &[(&str, Shape, &str)] = &[
    ("runtime", Text, "is not served; Serin has one runtime, its image tag is runtimeVersion"),
    ("storage", Object, "is not served; use storageUri and storageSecret"),
    ("image", Text, "is not served; use runtimeVersion for the tag of Serin's runtime"),
    ("command", Texts, "is not served; use args"),
    ("ports", Objects, "is not served; V1 and V2 are served on one port"),
    ("volumeMounts", Objects, "is not served; use a storageUri with pvc://"),
    ("livenessProbe", Object, PROBES),
    ("readinessProbe", Object, PROBES),
    ("startupProbe", Object, PROBES),
    ("lifecycle", Object, "is not served; the runtime drains by itself"),
    ("securityContext", Object, RESTRICTED),
    ("name", Text, "is not served; the model's name is the service's"),
    ("imagePullPolicy", Text, "is not served; the chart's image.pullPolicy holds for every pod"),
    ("resizePolicy", Objects, REMOVE),
    ("restartPolicy", Text, "is not served; model pods are always restarted"),
    ("terminationMessagePath", Text, "is not served; the runtime writes its own"),
    ("terminationMessagePolicy", Text, "is not served; the runtime writes its own"),
    ("volumeDevices", Objects, "is not served; use a storageUri with pvc://"),
    ("stdin", Switch, REMOVE),
    ("stdinOnce", Switch, REMOVE),
    ("tty", Switch, REMOVE),
    ("workingDir", Text, REMOVE),
    ("updatePolicy", Text, LATER),
];

/// Adds the refused fields and their rules to the schema of `spec`.
pub(super) fn refuse_in(spec: &mut Value) {
    refuse(spec, "spec", IN_SPEC);
    need_model(&mut spec["properties"]["predictor"]);
    refuse(&mut spec["properties"]["predictor"], "predictor", IN_PREDICTOR);
    refuse(&mut spec["properties"]["predictor"]["properties"]["model"], "predictor.model", IN_MODEL);
}

/// Asks for `predictor.model` by a rule instead of by the schema: who writes `predictor.sklearn` has no model, and the API
/// server runs no rule, hence gives no advice, where a field that the schema needs is missing.
fn need_model(predictor: &mut Value) {
    if let Value::Array(needed) = &mut predictor["required"] {
        needed.retain(|field| field != "model");
    }
    if predictor["required"] == json!([])
        && let Value::Object(predictor) = predictor
    {
        predictor.remove("required");
    }
    let rule = json!({
        "rule": "has(self.model)",
        "message": "predictor.model is needed, as in model: {storageUri: s3://bucket/model.onnx}",
    });
    match &mut predictor["x-kubernetes-validations"] {
        Value::Array(rules) => rules.push(rule),
        missing => *missing = json!([rule]),
    }
}

impl Shape {
    fn schema(self) -> Value {
        match self {
            Object => json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
            Objects => json!({"type": "array", "items": Object.schema()}),
            Text => json!({"type": "string"}),
            Texts => json!({"type": "array", "items": Text.schema()}),
            Number => json!({"type": "integer"}),
            Switch => json!({"type": "boolean"}),
        }
    }
}

/// Adds each field to the schema, and the rule that refuses it.
fn refuse(schema: &mut Value, path: &str, fields: &[(&str, Shape, &str)]) {
    if schema.get("x-kubernetes-validations").is_none() {
        schema["x-kubernetes-validations"] = json!([]);
    }
    for (field, shape, advice) in fields {
        let mut declared = shape.schema();
        declared["description"] = json!(format!("{path}.{field} {advice}."));
        schema["properties"][*field] = declared;
        let rule =
            json!({"rule": format!("!has(self.{field})"), "message": format!("{path}.{field} {advice}")});
        if let Value::Array(rules) = &mut schema["x-kubernetes-validations"] {
            rules.push(rule);
        }
    }
}
