//! The ControllerRevision: the immutable snapshot of a revision. Pure.

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;

use super::metadata::{Owner, revision_metadata};
use crate::controller::revision::{Snapshot, sorted};

/// The ControllerRevision of a new revision. `number` orders revisions for people; nothing is decided by it.
pub fn controller_revision(
    owner: &Owner,
    name: &str,
    number: i64,
    snapshot: &Snapshot,
) -> ControllerRevision {
    ControllerRevision {
        metadata: revision_metadata(owner, name),
        data: RawExtension(sorted(serde_json::to_value(snapshot).unwrap_or_default())),
        revision: Some(number),
    }
}

/// An existing ControllerRevision with the metadata that it should have; what it holds is never changed.
pub fn kept(owner: &Owner, live: &ControllerRevision) -> ControllerRevision {
    let name = live.metadata.name.as_deref().unwrap_or_default();
    ControllerRevision {
        metadata: revision_metadata(owner, name),
        data: live.data.clone(),
        revision: live.revision,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::pod::template;
    use super::super::tests::{owner, predictor, settings};
    use super::*;

    #[test]
    fn keeps_the_users_part_without_defaults_and_the_template_as_rendered() {
        let predictor = predictor(json!({
            "model": {"storageUri": "https://models.example/iris.onnx"}, "canaryTrafficPercent": 10, "minReplicas": 2
        }));
        let snapshot = Snapshot::new(&predictor, template(&owner(), "iris-a", &predictor, &settings()));
        let revision = controller_revision(&owner(), "iris-a", 1, &snapshot);
        assert_eq!(Snapshot::read(&revision), Some(snapshot));
        insta::assert_yaml_snapshot!(revision);
    }
}
