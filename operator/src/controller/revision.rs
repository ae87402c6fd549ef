//! Which revision today's spec is: the user's part, its name, and whether it exists already. Pure.
//!
//! The user's part is everything of the predictor that makes a revision. Two parts are compared after today's defaults were filled
//! in, so that an operator with other defaults restarts nothing; the hash only makes the name.

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use serin_crds::inference_service::{ModelFormat, PredictorSpec};
use sha2::{Digest, Sha256};

/// How long a request may take where the spec does not say, in seconds.
pub const DEFAULT_TIMEOUT_SECONDS: u32 = 60;
const SNAPSHOT_VERSION: u32 = 1;
const HASH_LENGTH: usize = 10;

/// What a ControllerRevision holds, never changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Version of this shape.
    pub snapshot_version: u32,
    /// The user's part, without defaults.
    pub predictor: PredictorSpec,
    /// The pod template as it was rendered by the operator that made the revision.
    pub pod_template: PodTemplateSpec,
}

impl Snapshot {
    /// The snapshot of a new revision.
    pub fn new(predictor: &PredictorSpec, pod_template: PodTemplateSpec) -> Snapshot {
        Snapshot { snapshot_version: SNAPSHOT_VERSION, predictor: user_part(predictor), pod_template }
    }

    /// Reads a ControllerRevision; None where it is not one that this operator understands.
    pub fn read(revision: &ControllerRevision) -> Option<Snapshot> {
        serde_json::from_value(revision.data.0.clone()).ok()
    }

    /// How long a request to this revision may take, in seconds.
    pub fn timeout_seconds(&self) -> u32 {
        timeout_seconds(&self.predictor)
    }
}

/// `predictor.timeout` with its default.
pub fn timeout_seconds(predictor: &PredictorSpec) -> u32 {
    predictor.timeout.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(DEFAULT_TIMEOUT_SECONDS)
}

/// An existing revision that today's spec is compared with.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its name.
    pub name: String,
    /// What it holds; None where the ControllerRevision is gone or cannot be read.
    pub predictor: Option<PredictorSpec>,
    /// It has a Deployment.
    pub running: bool,
    /// When its ControllerRevision was made.
    pub created_at: Option<Timestamp>,
}

/// T: the name of the revision of today's spec. An existing revision with the same user's part is taken, S first, then a running
/// one, then the newest; otherwise the name comes from the hash. A name that stands for other content already is passed over.
pub fn target(service: &str, predictor: &PredictorSpec, known: &[Known], stable: Option<&str>) -> String {
    let wanted = canonical(&normalised(predictor));
    let same = |revision: &&Known| {
        revision.predictor.as_ref().is_some_and(|predictor| canonical(&normalised(predictor)) == wanted)
    };
    let best = known.iter().filter(same).max_by_key(|revision| {
        (stable == Some(revision.name.as_str()), revision.running, revision.created_at, revision.name.clone())
    });
    if let Some(revision) = best {
        return revision.name.clone();
    }
    let taken =
        |name: &str| known.iter().any(|revision| revision.name == name && revision.predictor.is_some());
    let names = (0u32..).map(|counter| name(service, &wanted, counter));
    names.take(1000).find(|name| !taken(name)).unwrap_or_else(|| name(service, &wanted, 0))
}

fn name(service: &str, canonical: &str, counter: u32) -> String {
    let input = if counter == 0 { canonical.to_owned() } else { format!("{canonical}#{counter}") };
    format!("{service}-{}", short_hash(&input))
}

/// The first 50 bits of the SHA-256 of a text, as 10 characters of lower-case base32 (RFC 4648).
pub fn short_hash(text: &str) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let digest = Sha256::digest(text.as_bytes());
    let bits = digest.iter().take(8).fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
    (0..HASH_LENGTH).map(|place| char::from(ALPHABET[(bits >> (59 - 5 * place) & 31) as usize])).collect()
}

/// What makes a revision, without defaults: all of the predictor but the percentage and the number of pods.
pub fn user_part(predictor: &PredictorSpec) -> PredictorSpec {
    PredictorSpec {
        canary_traffic_percent: None,
        min_replicas: None,
        max_replicas: None,
        ..predictor.clone()
    }
}

/// The user's part with today's defaults filled in, so that writing a default down makes no revision.
fn normalised(predictor: &PredictorSpec) -> PredictorSpec {
    let mut part = user_part(predictor);
    part.timeout.get_or_insert(i64::from(DEFAULT_TIMEOUT_SECONDS));
    part.service_account_name.get_or_insert_with(|| "default".to_owned());
    part.model.model_format.get_or_insert_with(|| ModelFormat { name: "onnx".to_owned(), version: None });
    if part.model.resources.as_ref().is_some_and(|resources| *resources == Default::default()) {
        part.model.resources = None;
    }
    part
}

/// JSON with sorted keys, without spaces and without nulls.
fn canonical(predictor: &PredictorSpec) -> String {
    let value = serde_json::to_value(predictor).unwrap_or_default();
    sorted(value).to_string()
}

/// The value with the keys of every object sorted, whatever map serde_json was built with, and without nulls.
pub fn sorted(value: Value) -> Value {
    match value {
        Value::Object(object) => {
            let mut entries: Vec<_> = object.into_iter().filter(|(_, value)| !value.is_null()).collect();
            entries.sort_by(|left, right| left.0.cmp(&right.0));
            Value::Object(entries.into_iter().map(|(key, value)| (key, sorted(value))).collect::<Map<_, _>>())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn predictor(value: Value) -> PredictorSpec {
        serde_json::from_value(value).unwrap()
    }

    fn iris() -> PredictorSpec {
        predictor(json!({"model": {"storageUri": "s3://models/iris-a/model.onnx"}}))
    }

    fn known(name: &str, predictor: &PredictorSpec, running: bool, second: i64) -> Known {
        Known {
            name: name.to_owned(),
            predictor: Some(predictor.clone()),
            running,
            created_at: Timestamp::from_second(second).ok(),
        }
    }

    /// Names of revisions in running clusters were made by this hash: it must not change.
    #[test]
    fn names_stay_as_they_were_in_every_release() {
        let full = predictor(json!({
            "model": {
                "modelFormat": {"name": "onnx", "version": "1"}, "storageUri": "s3://models/a", "storageSecret": {"name": "s"},
                "resources": {"requests": {"cpu": "100m"}, "limits": {"memory": "1Gi"}}, "args": ["--instances", "2"],
                "env": [{"name": "A", "value": "b"}], "runtimeVersion": "v2"
            },
            "timeout": 30, "labels": {"team": "x"}, "tolerations": [{"key": "gpu", "operator": "Exists"}], "revisionNonce": "1"
        }));
        assert_eq!(target("iris", &iris(), &[], None), "iris-m5girz57sq");
        assert_eq!(target("iris", &full, &[], None), "iris-uf4lunfvrx");
    }

    #[test]
    fn replicas_percentage_and_written_defaults_make_no_revision() {
        let same = predictor(json!({
            "model": {"storageUri": "s3://models/iris-a/model.onnx", "modelFormat": {"name": "onnx"}, "resources": {}},
            "minReplicas": 5, "maxReplicas": 9, "canaryTrafficPercent": 10, "timeout": 60, "serviceAccountName": "default"
        }));
        assert_eq!(target("iris", &same, &[], None), target("iris", &iris(), &[], None));
        let nonce = PredictorSpec { revision_nonce: Some("2".to_owned()), ..iris() };
        assert_ne!(target("iris", &nonce, &[], None), target("iris", &iris(), &[], None));
    }

    #[test]
    fn the_same_part_is_the_same_revision_whatever_its_name() {
        let old = [known("iris-old", &iris(), false, 10)];
        assert_eq!(target("iris", &iris(), &old, None), "iris-old");
        let many = [
            known("iris-newest", &iris(), false, 30),
            known("iris-running", &iris(), true, 20),
            known("iris-stable", &iris(), false, 10),
        ];
        assert_eq!(target("iris", &iris(), &many, Some("iris-stable")), "iris-stable");
        assert_eq!(target("iris", &iris(), &many, None), "iris-running");
        assert_eq!(target("iris", &iris(), &many[..1], None), "iris-newest");
    }

    #[test]
    fn a_name_that_stands_for_other_content_is_passed_over() {
        let other = predictor(json!({"model": {"storageUri": "s3://models/b"}}));
        let first = target("iris", &iris(), &[], None);
        let second = target("iris", &iris(), &[known(&first, &other, true, 1)], Some(&first));
        assert_ne!(first, second);
        assert_eq!(second, target("iris", &iris(), &[known(&first, &other, true, 1)], None));
        // A Deployment whose ControllerRevision was lost keeps its name.
        let lost = Known { name: first.clone(), predictor: None, running: true, created_at: None };
        assert_eq!(target("iris", &iris(), &[lost], None), first);
    }

    #[test]
    fn hashes_are_names() {
        assert_eq!(short_hash(""), "4oymiquy7q");
        assert!(short_hash("x").chars().all(|char| char.is_ascii_lowercase() || char.is_ascii_digit()));
    }
}
