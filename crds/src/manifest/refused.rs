//! Fields of KServe's API that this version does not serve.
//!
//! The API server drops unknown fields silently, so a field that is not served stands in the schema all the same, with a
//! CEL rule that refuses it and says what to write instead.

use serde_json::{Value, json};

const LATER: &str = "is not served by this version; remove it";

/// (field, what to do instead)
const IN_SPEC: &[(&str, &str)] = &[("transformer", LATER), ("explainer", "is not served; remove it")];

const IN_PREDICTOR: &[(&str, &str)] = &[
    ("scaleMetric", "is not served by this version: minReplicas sets the number of pods; remove it"),
    ("scaleTarget", "is not served by this version: minReplicas sets the number of pods; remove it"),
    ("scaleMetricType", "is not served by this version: minReplicas sets the number of pods; remove it"),
    ("autoScaling", "is not served by this version: minReplicas sets the number of pods; remove it"),
    ("containerConcurrency", LATER),
    ("batcher", LATER),
    ("logger", LATER),
    ("accelerator", LATER),
    ("deploymentStrategy", "is not served; use spec.rollout.maxSurge and spec.rollout.maxUnavailable"),
    ("canary", "is not served; use canaryTrafficPercent"),
    ("containers", LATER),
    ("initContainers", "is not served; the runtime fetches the model itself"),
    ("volumes", "is not served; use a storageUri with pvc://"),
    ("workerSpec", "is not served; a model runs in one pod"),
    ("hostNetwork", "is not served; model pods run under Pod Security 'restricted'"),
    ("hostIPC", "is not served; model pods run under Pod Security 'restricted'"),
    ("hostPID", "is not served; model pods run under Pod Security 'restricted'"),
    ("securityContext", "is not served; model pods run under Pod Security 'restricted'"),
    ("terminationGracePeriodSeconds", "is not served; it follows predictor.timeout"),
    ("dnsPolicy", "is not served; remove it"),
    ("dnsConfig", "is not served; remove it"),
    ("hostAliases", "is not served; remove it"),
    ("nodeName", "is not served; use nodeSelector or affinity"),
    ("schedulerName", "is not served; remove it"),
    ("overhead", "is not served; use runtimeClassName"),
    ("onnx", "is not served; use model with modelFormat {name: onnx}"),
    ("sklearn", "is not served; export the model to ONNX with skl2onnx and use model"),
    ("xgboost", "is not served; export the model to ONNX with onnxmltools and use model"),
    ("lightgbm", "is not served; export the model to ONNX with onnxmltools and use model"),
    ("tensorflow", "is not served; export the model to ONNX with tf2onnx and use model"),
    ("pytorch", "is not served; export the model to ONNX with torch.onnx and use model"),
    ("huggingface", "is not served; export the model to ONNX with optimum and use model"),
    ("paddle", "is not served; export the model to ONNX with paddle2onnx and use model"),
    ("pmml", "is not served; export the model to ONNX and use model"),
    ("triton", "is not served; use model with modelFormat {name: onnx}"),
];

const IN_MODEL: &[(&str, &str)] = &[
    ("runtime", "is not served; Serin has one runtime, its image tag is runtimeVersion"),
    ("storage", "is not served; use storageUri and storageSecret"),
    ("image", "is not served; use runtimeVersion for the tag of Serin's runtime"),
    ("command", "is not served; use args"),
    ("ports", "is not served; V1 and V2 are served on one port"),
    ("volumeMounts", "is not served; use a storageUri with pvc://"),
    ("livenessProbe", "is not served; the runtime's probes are set by Serin"),
    ("readinessProbe", "is not served; the runtime's probes are set by Serin"),
    ("startupProbe", "is not served; the runtime's probes are set by Serin"),
    ("lifecycle", "is not served; the runtime drains by itself"),
    ("securityContext", "is not served; model pods run under Pod Security 'restricted'"),
    ("workingDir", "is not served; remove it"),
    ("updatePolicy", LATER),
];

/// Adds the refused fields and their rules to the schema of `spec`.
pub(super) fn refuse_in(spec: &mut Value) {
    refuse(spec, "spec", IN_SPEC);
    refuse(&mut spec["properties"]["predictor"], "predictor", IN_PREDICTOR);
    refuse(&mut spec["properties"]["predictor"]["properties"]["model"], "predictor.model", IN_MODEL);
}

/// Adds each field to the schema as "anything", and the rule that refuses it.
fn refuse(schema: &mut Value, path: &str, fields: &[(&str, &str)]) {
    if schema.get("x-kubernetes-validations").is_none() {
        schema["x-kubernetes-validations"] = json!([]);
    }
    for (field, advice) in fields {
        schema["properties"][*field] = json!({
            "description": format!("{path}.{field} {advice}."),
            "x-kubernetes-preserve-unknown-fields": true,
        });
        let rule =
            json!({"rule": format!("!has(self.{field})"), "message": format!("{path}.{field} {advice}")});
        if let Value::Array(rules) = &mut schema["x-kubernetes-validations"] {
            rules.push(rule);
        }
    }
}
