//! Names, labels and owners of children. Pure.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serin_crds::{GROUP, VERSION, labels};

/// The InferenceService that children belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its namespace.
    pub namespace: String,
    /// Its name, which is also the model's name in every protocol.
    pub name: String,
    /// Its uid: an object of the same name made later is another owner.
    pub uid: String,
}

impl Owner {
    /// What makes a child go when its owner goes.
    pub fn reference(&self) -> OwnerReference {
        OwnerReference {
            api_version: format!("{GROUP}/{VERSION}"),
            kind: "InferenceService".to_owned(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }
    }
}

/// Whose an object is, seen from one InferenceService.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// Ours.
    Ours,
    /// It carries our labels and has no owner: it is adopted by the next apply.
    Orphan,
    /// It belongs to an InferenceService of our name that is gone; the garbage collector takes it, which is awaited.
    Dead,
    /// It belongs to something else, in these words.
    Foreign(String),
}

/// Whose an object is.
pub fn ownership(metadata: &ObjectMeta, owner: &Owner) -> Ownership {
    let references = metadata.owner_references.as_deref().unwrap_or_default();
    if references.iter().any(|reference| reference.uid == owner.uid) {
        return Ownership::Ours;
    }
    match references.first() {
        Some(reference) if reference.kind == "InferenceService" && reference.name == owner.name => {
            Ownership::Dead
        }
        Some(reference) => Ownership::Foreign(format!("it belongs to {} {}", reference.kind, reference.name)),
        None if is_labelled(metadata, &owner.name) => Ownership::Orphan,
        None => Ownership::Foreign("it was not made by Serin".to_owned()),
    }
}

fn is_labelled(metadata: &ObjectMeta, service: &str) -> bool {
    let Some(found) = &metadata.labels else { return false };
    found.get(labels::MANAGED_BY).is_some_and(|value| value == labels::MANAGED_BY_VALUE)
        && found.get(labels::SERVICE).is_some_and(|value| value == service)
}

/// Labels of a child; those of one revision name it.
pub fn child_labels(service: &str, revision: Option<&str>) -> BTreeMap<String, String> {
    let mut all = BTreeMap::from([
        (labels::MANAGED_BY.to_owned(), labels::MANAGED_BY_VALUE.to_owned()),
        (labels::SERVICE.to_owned(), service.to_owned()),
        (labels::COMPONENT.to_owned(), labels::COMPONENT_PREDICTOR.to_owned()),
    ]);
    if let Some(revision) = revision {
        all.insert(labels::REVISION.to_owned(), revision.to_owned());
    }
    all
}

/// Labels of the routers and of what belongs to them.
pub fn router_labels() -> BTreeMap<String, String> {
    BTreeMap::from([
        (labels::MANAGED_BY.to_owned(), labels::MANAGED_BY_VALUE.to_owned()),
        (labels::COMPONENT.to_owned(), labels::COMPONENT_ROUTER.to_owned()),
    ])
}

/// Metadata of a child that belongs to the whole service.
pub fn service_metadata(owner: &Owner) -> ObjectMeta {
    metadata(owner, &owner.name, None)
}

/// Metadata of a child that belongs to one revision; it has the revision's name.
pub fn revision_metadata(owner: &Owner, revision: &str) -> ObjectMeta {
    metadata(owner, revision, Some(revision))
}

fn metadata(owner: &Owner, name: &str, revision: Option<&str>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(owner.namespace.clone()),
        labels: Some(child_labels(&owner.name, revision)),
        owner_references: Some(vec![owner.reference()]),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner() -> Owner {
        Owner { namespace: "ns".to_owned(), name: "iris".to_owned(), uid: "uid-1".to_owned() }
    }

    #[test]
    fn an_object_is_touched_only_by_its_owner() {
        let ours = revision_metadata(&owner(), "iris-a");
        assert_eq!(ownership(&ours, &owner()), Ownership::Ours);
        let before = Owner { uid: "uid-0".to_owned(), ..owner() };
        assert_eq!(ownership(&revision_metadata(&before, "iris-a"), &owner()), Ownership::Dead);
        let orphan = ObjectMeta { owner_references: None, ..ours.clone() };
        assert_eq!(ownership(&orphan, &owner()), Ownership::Orphan);
        let other = Owner { name: "magika".to_owned(), uid: "uid-2".to_owned(), ..owner() };
        let taken = Ownership::Foreign("it belongs to InferenceService magika".to_owned());
        assert_eq!(ownership(&revision_metadata(&other, "iris-a"), &owner()), taken);
        let bare = ObjectMeta { labels: None, owner_references: None, ..ours };
        assert_eq!(ownership(&bare, &owner()), Ownership::Foreign("it was not made by Serin".to_owned()));
    }
}
