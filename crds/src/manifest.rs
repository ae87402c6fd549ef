//! The CRDs as the chart ships them: what the types describe, plus the fields of KServe's API that are refused by name,
//! minus the manuals of Kubernetes' own types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

use crate::{InferenceRoute, InferenceService};

mod refused;

/// One CRD and the name of the file that holds it.
pub struct Manifest {
    /// `<group>_<plural>.yaml`.
    pub file_name: String,
    /// The CustomResourceDefinition as JSON.
    pub crd: Value,
}

/// All CRDs of Serin.
///
/// # Panics
/// Only when a type's schema is not JSON, which the tests of this crate rule out.
pub fn manifests() -> Vec<Manifest> {
    vec![manifest(InferenceService::crd(), refused::refuse_in), manifest(InferenceRoute::crd(), |_| {})]
}

fn manifest(crd: CustomResourceDefinition, amend: impl Fn(&mut Value)) -> Manifest {
    let file_name = format!("{}_{}.yaml", crd.spec.group, crd.spec.names.plural);
    let mut crd = serde_json::to_value(crd).expect("a CRD made of types is JSON");
    let schema = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    // The type's own words describe the whole object best.
    schema["description"] = schema["properties"]["spec"]["description"].clone();
    amend(&mut schema["properties"]["spec"]);
    trim_foreign_descriptions(&mut crd, true);
    Manifest { file_name, crd }
}

/// Types of Kubernetes bring a manual of their own; below their top field it is left out, which keeps the CRD readable and
/// small enough for `kubectl apply`.
fn trim_foreign_descriptions(value: &mut Value, keep: bool) {
    const FOREIGN: &[&str] = &[
        "affinity",
        "tolerations",
        "topologySpreadConstraints",
        "env",
        "envFrom",
        "resources",
        "imagePullSecrets",
    ];
    match value {
        Value::Object(object) => {
            if !keep && object.get("description").is_some_and(Value::is_string) {
                object.remove("description");
            }
            for (key, child) in object.iter_mut() {
                let foreign = FOREIGN.contains(&key.as_str());
                if foreign && keep {
                    let own = child.get("description").cloned();
                    trim_foreign_descriptions(child, false);
                    if let (Some(own), Value::Object(child)) = (own, child) {
                        child.insert("description".to_owned(), own);
                    }
                } else {
                    trim_foreign_descriptions(child, keep);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| trim_foreign_descriptions(item, keep)),
        _ => {}
    }
}
