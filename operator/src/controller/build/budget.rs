//! Disruption budgets: a drained node takes one pod at a time. Pure.

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::deployment::selector;
use super::metadata::{Owner, revision_metadata};

/// The budget of a live revision of a service with two or more pods.
pub fn revision_budget(owner: &Owner, revision: &str) -> PodDisruptionBudget {
    budget(revision_metadata(owner, revision), selector(revision))
}

/// One pod at a time; a pod that is not ready anyway may always be evicted, so that a broken one never blocks a drain.
pub fn budget(metadata: ObjectMeta, selector: LabelSelector) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata,
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(selector),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::owner;
    use super::*;

    #[test]
    fn of_a_revision() {
        insta::assert_yaml_snapshot!(revision_budget(&owner(), "iris-a"));
    }
}
