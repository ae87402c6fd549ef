//! From the spec to what the rest can rely on. Pure: no client, no clock. After it nothing of `build` can fail.
//!
//! Rules that the API server can check stand in the CRD; here is what is left, and what an object written before a rule could break.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use serin_crds::inference_service::{PredictorSpec, RolloutSpec};
use serin_crds::{InferenceService, InferenceServiceSpec, Share, labels};
use thiserror::Error;

use super::build::metadata::Owner;
use super::revision::timeout_seconds;
use super::situation::{Bound, Wishes};

/// Environment variables of the model's server that Serin sets itself.
pub const OWN_VARIABLES: &[&str] = &[
    "SERIN_MODEL_URI",
    "SERIN_MODEL_NAME",
    "SERIN_IDENTITY",
    "SERIN_MODEL_DIR",
    "SERIN_PVC_ROOT",
    "SERIN_HOST",
    "SERIN_PORT",
    "SERIN_ADMIN_PORT",
    "SERIN_TERMINATION_LOG",
    "SERIN_TIMEOUT",
    "SERIN_CPU_REQUEST",
    "SERIN_DRAIN_IDLE",
    "SERIN_DRAIN_LIMIT",
];
const LONGEST_NAME: usize = 45;
const DEFAULT_PROGRESS_DEADLINE: u64 = 600;
const DEFAULT_HOLD_SECONDS: u32 = 10;
const DEFAULT_HISTORY_LIMIT: u32 = 10;

/// A spec that the API server let through and that cannot be served. What ran before goes on.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("{field}: expected {expected}, got {found}")]
pub struct Refusal {
    /// Path of the field.
    pub field: String,
    /// What it must be.
    pub expected: String,
    /// What it is.
    pub found: String,
}

fn refusal(field: &str, expected: impl Into<String>, found: impl ToString) -> Refusal {
    Refusal { field: field.to_owned(), expected: expected.into(), found: found.to_string() }
}

/// A checked spec.
#[derive(Clone, Debug, PartialEq)]
pub struct Valid {
    /// Whom children belong to.
    pub owner: Owner,
    /// The predictor as written.
    pub predictor: PredictorSpec,
    wishes: Wishes,
}

impl Valid {
    /// What is asked, once it is known which revision today's spec is.
    pub fn wishes(&self, target: &str) -> Wishes {
        Wishes { target: target.to_owned(), ..self.wishes.clone() }
    }

    /// N: size of the service.
    pub fn size(&self) -> u32 {
        self.wishes.size
    }
}

/// Checks a spec.
///
/// # Errors
/// The first field that cannot be served, with what was expected and what came.
pub fn validate(service: &InferenceService) -> Result<Valid, Refusal> {
    let spec = &service.spec;
    let size = number("spec.predictor.minReplicas", spec.predictor.min_replicas.map(i64::from), 1, 1..=1000)?;
    let (max_surge, max_unavailable) = bounds(spec.rollout.as_ref(), size)?;
    check_environment(&spec.predictor)?;
    check_arguments(&spec.predictor)?;
    check_labels(&spec.predictor)?;
    check_storage(&spec.predictor)?;
    number("spec.predictor.timeout", spec.predictor.timeout, 60, 1..=3600)?;
    Ok(Valid {
        owner: checked_owner(service)?,
        predictor: spec.predictor.clone(),
        wishes: Wishes {
            generation: service.metadata.generation.unwrap_or_default(),
            target: String::new(),
            percent: percent(spec)?,
            size,
            max_surge,
            max_unavailable,
            held: false,
            plan_share: None,
            mirror: Share::NONE,
            progress_deadline: Duration::from_secs(progress_deadline(spec)?),
            hold_seconds: number(
                "spec.router.holdSeconds",
                spec.router.as_ref().and_then(|router| router.hold_seconds),
                DEFAULT_HOLD_SECONDS,
                0..=600,
            )?,
            history_limit: spec.revision_history_limit.unwrap_or(DEFAULT_HISTORY_LIMIT) as usize,
            timeout_seconds: timeout_seconds(&spec.predictor),
            release_hold: service
                .annotations()
                .get(labels::RELEASE_HOLD)
                .and_then(|text| text.trim().parse().ok()),
        },
    })
}

/// Whom the children of a service belong to.
pub fn owner(service: &InferenceService) -> Owner {
    Owner {
        namespace: service.namespace().unwrap_or_default(),
        name: service.name_any(),
        uid: service.uid().unwrap_or_default(),
    }
}

fn checked_owner(service: &InferenceService) -> Result<Owner, Refusal> {
    let owner = owner(service);
    if owner.name.len() > LONGEST_NAME {
        return Err(refusal("metadata.name", format!("at most {LONGEST_NAME} characters"), owner.name.len()));
    }
    if owner.uid.is_empty() {
        return Err(refusal("metadata.uid", "an object of the API server", "none"));
    }
    Ok(owner)
}

/// A whole number within bounds, or its default.
fn number(
    field: &str,
    value: Option<i64>,
    default: u32,
    allowed: std::ops::RangeInclusive<u32>,
) -> Result<u32, Refusal> {
    let Some(value) = value else { return Ok(default) };
    let number = u32::try_from(value).ok().filter(|number| allowed.contains(number));
    number.ok_or_else(|| {
        refusal(field, format!("a number from {} to {}", allowed.start(), allowed.end()), value)
    })
}

fn percent(spec: &InferenceServiceSpec) -> Result<Option<u8>, Refusal> {
    let Some(value) = spec.predictor.canary_traffic_percent else { return Ok(None) };
    let percent = u8::try_from(value).ok().filter(|percent| *percent <= 100);
    percent
        .map(Some)
        .ok_or_else(|| refusal("spec.predictor.canaryTrafficPercent", "a percentage from 0 to 100", value))
}

fn progress_deadline(spec: &InferenceServiceSpec) -> Result<u64, Refusal> {
    let Some(value) = spec.rollout.as_ref().and_then(|rollout| rollout.progress_deadline_seconds) else {
        return Ok(DEFAULT_PROGRESS_DEADLINE);
    };
    let seconds = u64::try_from(value).ok().filter(|seconds| (10..=86_400).contains(seconds));
    seconds.ok_or_else(|| refusal("spec.rollout.progressDeadlineSeconds", "seconds from 10 to 86400", value))
}

/// Surge and unavailability. Both 0 for this size would mean that no pod can ever be replaced; the API server sees only the texts,
/// not that 20 % of 3 pods is no pod.
fn bounds(rollout: Option<&RolloutSpec>, size: u32) -> Result<(Bound, Bound), Refusal> {
    let surge = rollout.and_then(|rollout| rollout.max_surge.as_ref());
    let unavailable = rollout.and_then(|rollout| rollout.max_unavailable.as_ref());
    let surge = surge.map_or(Ok(Bound::Percent(100)), |value| bound("spec.rollout.maxSurge", value))?;
    let unavailable =
        unavailable.map_or(Ok(Bound::Pods(0)), |value| bound("spec.rollout.maxUnavailable", value))?;
    if surge.rounded_up(size) == 0 && unavailable.rounded_down(size) == 0 {
        return Err(refusal(
            "spec.rollout",
            format!("maxSurge or maxUnavailable to be at least one of {size} pods"),
            format!(
                "maxSurge {} and maxUnavailable {}, which are both 0 pods",
                text(surge),
                text(unavailable)
            ),
        ));
    }
    Ok((surge, unavailable))
}

fn bound(field: &str, value: &IntOrString) -> Result<Bound, Refusal> {
    let expected = "a number of pods from 0 to 1000, or a percentage from 0% to 100%";
    match value {
        IntOrString::Int(pods) => u32::try_from(*pods)
            .ok()
            .filter(|pods| *pods <= 1000)
            .map(Bound::Pods)
            .ok_or_else(|| refusal(field, expected, pods)),
        IntOrString::String(text) => text
            .strip_suffix('%')
            .and_then(|digits| digits.parse::<u32>().ok())
            .filter(|percent| *percent <= 100)
            .map(Bound::Percent)
            .ok_or_else(|| refusal(field, expected, format!("`{text}`"))),
    }
}

fn text(bound: Bound) -> String {
    match bound {
        Bound::Pods(pods) => pods.to_string(),
        Bound::Percent(percent) => format!("{percent}%"),
    }
}

/// Names twice in a list would make the API server refuse the Deployment long after `kubectl apply` has gone.
fn check_environment(predictor: &PredictorSpec) -> Result<(), Refusal> {
    let mut seen = BTreeSet::new();
    for variable in &predictor.model.env {
        let field = "spec.predictor.model.env";
        if OWN_VARIABLES.contains(&variable.name.as_str()) {
            return Err(refusal(field, "variables that Serin does not set itself", &variable.name));
        }
        if !seen.insert(&variable.name) {
            return Err(refusal(field, "each variable once", format!("{} twice", variable.name)));
        }
    }
    Ok(())
}

/// A flag wins over its variable: a model's server on another port would be ready and out of reach.
fn check_arguments(predictor: &PredictorSpec) -> Result<(), Refusal> {
    let flag_of =
        |name: &str| format!("--{}", name.trim_start_matches("SERIN_").to_lowercase().replace('_', "-"));
    let mut flags = predictor.model.args.iter().filter_map(|argument| argument.split('=').next());
    match flags.find(|flag| OWN_VARIABLES.iter().any(|name| flag_of(name) == *flag)) {
        Some(flag) => Err(refusal("spec.predictor.model.args", "flags that Serin does not set itself", flag)),
        None => Ok(()),
    }
}

fn check_labels(predictor: &PredictorSpec) -> Result<(), Refusal> {
    let field = "spec.predictor.labels";
    let ours = |key: &&String| key.starts_with("serving.serin.dev/") || *key == labels::MANAGED_BY;
    if let Some(key) = predictor.labels.keys().find(ours) {
        return Err(refusal(field, "keys that Serin does not set itself", key));
    }
    for (key, value) in &predictor.labels {
        if !is_label_value(value) {
            let expected =
                "values of at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends";
            return Err(refusal(field, expected, format!("{key}={value}")));
        }
    }
    Ok(())
}

fn is_label_value(value: &str) -> bool {
    let inner = |char: char| char.is_ascii_alphanumeric() || "-_.".contains(char);
    let edge = |char: Option<char>| char.is_none_or(|char| char.is_ascii_alphanumeric());
    value.len() <= 63 && value.chars().all(inner) && edge(value.chars().next()) && edge(value.chars().last())
}

/// The claim of a `pvc://` URI becomes the name of a volume and a path in the pod.
fn check_storage(predictor: &PredictorSpec) -> Result<(), Refusal> {
    let Some(claim) = claim(&predictor.model.storage_uri) else { return Ok(()) };
    let char = |char: char| char.is_ascii_lowercase() || char.is_ascii_digit() || "-.".contains(char);
    let edge = |char: Option<char>| char.is_some_and(|char| char.is_ascii_alphanumeric());
    if claim.len() > 253
        || !claim.chars().all(char)
        || !edge(claim.chars().next())
        || !edge(claim.chars().last())
    {
        return Err(refusal(
            "spec.predictor.model.storageUri",
            "pvc://CLAIM/PATH with the name of a PersistentVolumeClaim",
            &predictor.model.storage_uri,
        ));
    }
    Ok(())
}

/// The claim that a `pvc://` URI names.
pub fn claim(storage_uri: &str) -> Option<&str> {
    storage_uri.strip_prefix("pvc://").map(|rest| rest.split('/').next().unwrap_or(rest))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(spec: Value) -> InferenceService {
        let mut all = json!({
            "apiVersion": "serving.serin.dev/v1alpha1", "kind": "InferenceService",
            "metadata": {"name": "iris", "namespace": "ns", "uid": "uid-1", "generation": 3},
            "spec": {"predictor": {"model": {"storageUri": "s3://models/a"}}}
        });
        merge(&mut all["spec"], spec);
        serde_json::from_value(all).unwrap()
    }

    fn merge(into: &mut Value, from: Value) {
        match (into, from) {
            (Value::Object(into), Value::Object(from)) => {
                from.into_iter()
                    .for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
            }
            (into, from) => *into = from,
        }
    }

    fn refused(spec: Value, expect: &str) {
        assert_eq!(validate(&service(spec)).unwrap_err().to_string(), expect);
    }

    #[test]
    fn defaults() {
        let wishes = validate(&service(json!({}))).unwrap().wishes("iris-a");
        assert_eq!(
            wishes,
            Wishes {
                generation: 3,
                target: "iris-a".to_owned(),
                percent: None,
                size: 1,
                max_surge: Bound::Percent(100),
                max_unavailable: Bound::Pods(0),
                held: false,
                plan_share: None,
                mirror: Share::NONE,
                progress_deadline: Duration::from_secs(600),
                hold_seconds: 10,
                history_limit: 10,
                timeout_seconds: 60,
                release_hold: None,
            }
        );
    }

    #[test]
    fn what_is_written_is_taken() {
        let written = service(json!({
            "predictor": {"canaryTrafficPercent": 0, "minReplicas": 5, "timeout": 30},
            "rollout": {"maxSurge": "20%", "maxUnavailable": 1, "progressDeadlineSeconds": 30},
            "router": {"holdSeconds": 0}, "revisionHistoryLimit": 0
        }));
        let wishes = validate(&written).unwrap().wishes("t");
        assert_eq!((wishes.percent, wishes.size, wishes.timeout_seconds), (Some(0), 5, 30));
        assert_eq!((wishes.max_surge, wishes.max_unavailable), (Bound::Percent(20), Bound::Pods(1)));
        assert_eq!((wishes.hold_seconds, wishes.history_limit), (0, 0));
        assert_eq!(wishes.progress_deadline, Duration::from_secs(30));
    }

    #[test]
    fn a_release_is_a_generation() {
        let mut released = service(json!({}));
        released.annotations_mut().insert(labels::RELEASE_HOLD.to_owned(), " 7 ".to_owned());
        assert_eq!(validate(&released).unwrap().wishes("t").release_hold, Some(7));
        released.annotations_mut().insert(labels::RELEASE_HOLD.to_owned(), "yes".to_owned());
        assert_eq!(validate(&released).unwrap().wishes("t").release_hold, None);
    }

    #[test]
    fn no_pod_could_be_replaced() {
        refused(
            json!({"predictor": {"minReplicas": 3}, "rollout": {"maxSurge": 0, "maxUnavailable": "20%"}}),
            "spec.rollout: expected maxSurge or maxUnavailable to be at least one of 3 pods, got maxSurge 0 and maxUnavailable 20%, \
             which are both 0 pods",
        );
        let enough =
            json!({"predictor": {"minReplicas": 5}, "rollout": {"maxSurge": 0, "maxUnavailable": "20%"}});
        assert!(validate(&service(enough)).is_ok());
    }

    #[test]
    fn what_cel_let_through() {
        let bounds = "a number of pods from 0 to 1000, or a percentage from 0% to 100%";
        refused(
            json!({"rollout": {"maxSurge": "150%"}}),
            &format!("spec.rollout.maxSurge: expected {bounds}, got `150%`"),
        );
        refused(
            json!({"rollout": {"maxUnavailable": "two"}}),
            &format!("spec.rollout.maxUnavailable: expected {bounds}, got `two`"),
        );
        refused(
            json!({"rollout": {"maxSurge": -1}}),
            &format!("spec.rollout.maxSurge: expected {bounds}, got -1"),
        );
        refused(
            json!({"predictor": {"canaryTrafficPercent": 101}}),
            "spec.predictor.canaryTrafficPercent: expected a percentage from 0 to 100, got 101",
        );
        refused(
            json!({"predictor": {"minReplicas": 0}}),
            "spec.predictor.minReplicas: expected a number from 1 to 1000, got 0",
        );
        refused(
            json!({"predictor": {"model": {"env": [{"name": "A"}, {"name": "A"}]}}}),
            "spec.predictor.model.env: expected each variable once, got A twice",
        );
        refused(
            json!({"predictor": {"model": {"env": [{"name": "SERIN_IDENTITY", "value": "x"}]}}}),
            "spec.predictor.model.env: expected variables that Serin does not set itself, got SERIN_IDENTITY",
        );
        for args in [json!(["--instances", "2", "--admin-port=9000"]), json!(["--admin-port", "9000"])] {
            refused(
                json!({"predictor": {"model": {"args": args}}}),
                "spec.predictor.model.args: expected flags that Serin does not set itself, got --admin-port",
            );
        }
        refused(
            json!({"predictor": {"labels": {"team": "a b"}}}),
            "spec.predictor.labels: expected values of at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both \
             ends, got team=a b",
        );
        refused(
            json!({"predictor": {"model": {"storageUri": "pvc://Models/a"}}}),
            "spec.predictor.model.storageUri: expected pvc://CLAIM/PATH with the name of a PersistentVolumeClaim, got pvc://Models/a",
        );
    }
}
