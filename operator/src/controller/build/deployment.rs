//! The Deployment of one revision, around its stored pod template. Pure.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serin_crds::labels;

use super::metadata::{Owner, revision_metadata};

/// The Deployment of a revision. Without `spec.replicas`: those have a field manager of their own.
///
/// The template never changes, so its rolling update is only for a template that was changed by hand and is put back.
pub fn deployment(owner: &Owner, revision: &str, template: &PodTemplateSpec) -> Deployment {
    Deployment {
        metadata: revision_metadata(owner, revision),
        spec: DeploymentSpec {
            selector: selector(revision),
            template: template.clone(),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::String("100%".to_owned())),
                    max_unavailable: Some(IntOrString::Int(0)),
                }),
            }),
            // Serin reports the lack of progress itself, by `rollout.progressDeadlineSeconds`; this value means "never".
            progress_deadline_seconds: Some(i32::MAX),
            revision_history_limit: Some(1),
            ..DeploymentSpec::default()
        },
        ..Deployment::default()
    }
}

/// What finds the pods of a revision.
pub fn selector(revision: &str) -> LabelSelector {
    LabelSelector {
        match_labels: Some([(labels::REVISION.to_owned(), revision.to_owned())].into()),
        ..LabelSelector::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::pod::template;
    use super::super::tests::{owner, predictor, settings};
    use super::*;

    #[test]
    fn of_a_small_model() {
        let predictor = predictor(json!({"model": {"storageUri": "s3://models/iris-a/model.onnx"}}));
        let template = template(&owner(), "iris-a", &predictor, &settings());
        insta::assert_yaml_snapshot!(deployment(&owner(), "iris-a", &template));
    }
}
