//! S13: what a spec can get wrong is refused by the API server, with a message that says what to write instead.
//!
//! Every CEL rule of the CRD must be met by a case: those of fields that are not served are made from the CRD itself, the
//! others stand in a table, and a rule that no case meets fails the story.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use kube::Api;
use kube::api::{ApiResource, DynamicObject, PostParams};
use kube::core::Status;
use serde_json::{Value, json};

use serin_crds::InferenceService;
use serin_crds::manifest::manifests;
use serin_e2e::cluster::Cluster;
use serin_e2e::repository;
use serin_e2e::story::{Story, tell_on};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: make e2e STORY=invalid_specs"]
async fn invalid_specs() -> anyhow::Result<()> {
    tell_on("invalid-specs", Cluster::with_crds().await?, async |story| {
        let server = Server::new(story);
        let mut unmet: BTreeSet<String> = messages(&crd()?).into_iter().collect();
        let rules = unmet.len();
        let mut failures = Vec::new();
        for case in table().into_iter().chain(not_served(&crd()?)) {
            match server.refusal(&case.object).await? {
                Some(refusal) if refusal.contains(&case.message) => {}
                Some(refusal) => {
                    failures.push(format!("{}: expected {:?}, got {refusal}", case.what, case.message))
                }
                None => {
                    failures.push(format!("{}: expected {:?}, and it was accepted", case.what, case.message))
                }
            }
            unmet.remove(&case.message);
        }
        for (what, object) in accepted()? {
            if let Some(refusal) = server.refusal(&object).await? {
                failures.push(format!("{what}: expected it to be accepted, got {refusal}"));
            }
        }
        failures.extend(unmet.into_iter().map(|message| format!("no case meets the rule {message:?}")));
        println!("  {rules} rules");
        ensure!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
        Ok(())
    })
    .await
}

/// An object that must be refused.
struct Case {
    what: String,
    object: Value,
    /// Part of the refusal; for a CEL rule its whole message.
    message: String,
}

/// The API server, asked what it would say.
struct Server {
    api: Api<DynamicObject>,
}

impl Server {
    fn new(story: &Story) -> Self {
        let resource = ApiResource::erase::<InferenceService>(&());
        Self { api: Api::namespaced_with(story.client.clone(), &story.namespace, &resource) }
    }

    async fn refusal(&self, object: &Value) -> anyhow::Result<Option<String>> {
        let object: DynamicObject = serde_json::from_value(object.clone())?;
        match self.api.create(&PostParams { dry_run: true, ..PostParams::default() }, &object).await {
            Ok(_) => Ok(None),
            Err(kube::Error::Api(status)) => {
                let Status { message, code, .. } = *status;
                ensure!(code == 422 || code == 400, "expected a refusal, got {code}: {message}");
                Ok(Some(message))
            }
            Err(error) => Err(error).context("dry run"),
        }
    }
}

fn crd() -> anyhow::Result<Value> {
    let found = manifests().into_iter().find(|manifest| manifest.file_name.contains("inferenceservices"));
    Ok(found.context("no CRD of InferenceService")?.crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        .clone())
}

/// Messages of all rules of a schema.
fn messages(schema: &Value) -> Vec<String> {
    match schema {
        Value::Object(object) => {
            let own = object.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten();
            let own = own.filter_map(|rule| rule["message"].as_str()).map(str::to_owned);
            own.chain(
                object
                    .iter()
                    .filter(|(key, _)| *key != "x-kubernetes-validations")
                    .flat_map(|(_, v)| messages(v)),
            )
            .collect()
        }
        Value::Array(items) => items.iter().flat_map(messages).collect(),
        _ => Vec::new(),
    }
}

/// A spec that is accepted, with something merged into it.
fn with(spec: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "serving.serin.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": "iris"},
        "spec": {"predictor": {"model": {"storageUri": "s3://models/iris-a/model.onnx"}}},
    });
    merge(&mut object["spec"], spec);
    object
}

fn named(name: &str) -> Value {
    let mut object = with(&json!({}));
    object["metadata"]["name"] = json!(name);
    object
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

fn predictor(value: Value) -> Value {
    with(&json!({"predictor": value}))
}

fn without_model(predictor: Value) -> Value {
    let mut object = with(&json!({}));
    object["spec"]["predictor"] = predictor;
    object
}

fn uri(uri: &str) -> Value {
    predictor(json!({"model": {"storageUri": uri}}))
}

/// Fields of KServe's API that are refused by name, each with a value of its type.
fn not_served(schema: &Value) -> Vec<Case> {
    let mut cases = Vec::new();
    let spec = &schema["properties"]["spec"];
    let predictor = &spec["properties"]["predictor"];
    for (path, schema) in [
        (&[][..], spec),
        (&["predictor"][..], predictor),
        (&["predictor", "model"][..], &predictor["properties"]["model"]),
    ] {
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            let Some(field) = rule["rule"].as_str().and_then(refused_field) else { continue };
            let value = match schema["properties"][field]["type"].as_str() {
                Some("object") => json!({}),
                Some("array") => json!([]),
                Some("integer") => json!(1),
                Some("boolean") => json!(true),
                _ => json!("x"),
            };
            let nested = path.iter().rev().fold(json!({field: value}), |inner, step| json!({*step: inner}));
            cases.push(Case {
                what: format!("spec.{}", [path, &[field]].concat().join(".")),
                object: with(&nested),
                message: rule["message"].as_str().unwrap_or_default().to_owned(),
            });
        }
    }
    cases
}

/// The field of a rule `!has(self.<field>)`.
fn refused_field(rule: &str) -> Option<&str> {
    let field = rule.strip_prefix("!has(self.")?.strip_suffix(')')?;
    field.chars().all(char::is_alphanumeric).then_some(field)
}

fn table() -> Vec<Case> {
    let percent = "canaryTrafficPercent must be between 0 and 100";
    let replicas = "minReplicas must be between 1 and 1000 (scale to zero is not served by this version)";
    let bound = "maxReplicas must be between 0 (no bound) and 1000";
    let timeout = "timeout must be between 1 and 3600 seconds";
    let scheme = "storageUri must begin with s3://, http://, https://, pvc:// or file://";
    let host = "storageUri: a bucket, host or claim must follow the scheme, as in s3://bucket/key, https://host/path or pvc://claim/path";
    let credentials =
        "storageUri must not carry credentials; put them into a Secret and name it in storageSecret";
    let long = "metadata.name: at most 45 characters, because names of revisions and pods are made from it";
    let letters = "metadata.name: lower-case letters, digits and '-', beginning with a letter (it becomes the name of a Service)";
    let labels = "labels: keys of serving.serin.dev/ and app.kubernetes.io/managed-by are set by Serin";
    let surge = "maxSurge must be a number of pods (0 or more) or a percentage from 0% to 100%";
    let unavailable = "maxUnavailable must be a number of pods (0 or more) or a percentage from 0% to 100%";
    let both = "rollout.maxSurge and rollout.maxUnavailable must not both be 0: no pod could be replaced";
    let deadline = "progressDeadlineSeconds must be between 10 and 86400";
    let model = "predictor.model is needed, as in model: {storageUri: s3://bucket/model.onnx}";
    let rollout = |value: Value| with(&json!({"rollout": value}));
    let cases: Vec<(&str, Value, &str)> = vec![
        ("percent below", predictor(json!({"canaryTrafficPercent": -1})), percent),
        ("percent above", predictor(json!({"canaryTrafficPercent": 101})), percent),
        ("percent as text", predictor(json!({"canaryTrafficPercent": "10"})), "must be of type integer"),
        ("no pods", predictor(json!({"minReplicas": 0})), replicas),
        ("negative bound", predictor(json!({"maxReplicas": -1})), bound),
        (
            "bounds crossed",
            predictor(json!({"minReplicas": 3, "maxReplicas": 2})),
            "minReplicas must not be greater than maxReplicas",
        ),
        ("no time", predictor(json!({"timeout": 0})), timeout),
        ("too much time", predictor(json!({"timeout": 3601})), timeout),
        ("reserved label", predictor(json!({"labels": {"serving.serin.dev/revision": "x"}})), labels),
        ("managed-by", predictor(json!({"labels": {"app.kubernetes.io/managed-by": "x"}})), labels),
        ("scheme", uri("ftp://host/model.onnx"), scheme),
        ("no scheme", uri("/models/model.onnx"), scheme),
        ("scheme of a later version", uri("gs://bucket/model.onnx"), scheme),
        ("no bucket", uri("s3:///model.onnx"), host),
        ("no host", uri("https://"), host),
        ("credentials", uri("https://me:secret@host/model.onnx"), credentials),
        ("way out", uri("pvc://claim/../other/model.onnx"), "storageUri must not contain '..'"),
        ("way out at the end", uri("s3://bucket/models/.."), "storageUri must not contain '..'"),
        ("no model", without_model(json!({"minReplicas": 1})), model),
        ("KServe's older form", without_model(json!({"sklearn": {"storageUri": "s3://bucket/key"}})), model),
        ("no uri", predictor(json!({"model": {"storageUri": ""}})), "spec.predictor.model.storageUri"),
        (
            "format",
            predictor(json!({"model": {"modelFormat": {"name": "sklearn"}}})),
            "modelFormat.name: only onnx is served; export the model to ONNX (skl2onnx, torch.onnx, tf2onnx, onnxmltools)",
        ),
        (
            "protocol",
            predictor(json!({"model": {"protocolVersion": "grpc-v2"}})),
            "protocolVersion: v1 or v2 (both are always served)",
        ),
        ("surge as text", rollout(json!({"maxSurge": "all"})), surge),
        ("surge above", rollout(json!({"maxSurge": "101%"})), surge),
        ("surge below", rollout(json!({"maxSurge": -1})), surge),
        ("unavailable as text", rollout(json!({"maxUnavailable": "1.5%"})), unavailable),
        ("both 0", rollout(json!({"maxSurge": 0, "maxUnavailable": 0})), both),
        ("both 0%", rollout(json!({"maxSurge": "0%", "maxUnavailable": "0%"})), both),
        (
            "no surge alone",
            rollout(json!({"maxSurge": 0})),
            "rollout.maxSurge: 0 needs rollout.maxUnavailable of at least 1",
        ),
        ("short deadline", rollout(json!({"progressDeadlineSeconds": 9})), deadline),
        (
            "long hold",
            with(&json!({"router": {"holdSeconds": 601}})),
            "holdSeconds must be between 0 and 600",
        ),
        ("long name", named(&"a".repeat(46)), long),
        ("name of digits", named("1iris"), letters),
        ("name with a dot", named("iris.v1"), letters),
        ("history", with(&json!({"revisionHistoryLimit": 101})), "revisionHistoryLimit"),
    ];
    let case = |(what, object, message): (&str, Value, &str)| Case {
        what: what.to_owned(),
        object,
        message: message.to_owned(),
    };
    cases.into_iter().map(case).collect()
}

/// What must pass: every example, and the edges of what is allowed.
fn accepted() -> anyhow::Result<Vec<(String, Value)>> {
    let mut objects = vec![
        ("longest name".to_owned(), named(&"a".repeat(45))),
        ("0 %".to_owned(), predictor(json!({"canaryTrafficPercent": 0}))),
        ("100 %".to_owned(), predictor(json!({"canaryTrafficPercent": 100}))),
        ("no upper bound".to_owned(), predictor(json!({"minReplicas": 3, "maxReplicas": 0}))),
        (
            "surge 0, unavailable 1".to_owned(),
            with(&json!({"rollout": {"maxSurge": 0, "maxUnavailable": 1}})),
        ),
        ("surge 25%".to_owned(), with(&json!({"rollout": {"maxSurge": "25%", "maxUnavailable": "0%"}}))),
        ("folder on a claim".to_owned(), uri("pvc://claim/models/iris")),
        ("file".to_owned(), uri("file:///models/iris.onnx")),
        ("two dots in a name".to_owned(), uri("s3://bucket/iris..v2/model.onnx")),
    ];
    for entry in std::fs::read_dir(repository().join("examples"))? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path)?;
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(&text).with_context(|| format!("read {}", path.display()))?;
        let services = documents.into_iter().filter(|document| document["kind"] == "InferenceService");
        objects.extend(services.map(|service| (path.display().to_string(), service)));
    }
    ensure!(objects.len() >= 9 + 7, "expected at least 7 examples, found {}", objects.len() - 9);
    Ok(objects)
}
