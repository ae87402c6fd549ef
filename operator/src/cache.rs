//! What the operator sees of the cluster: one index for each kind, filled by a watch and grouped by InferenceService.
//!
//! In: watch events, and the answers to our own writes, so that a pass reads what the one before it wrote. Out: the objects of one
//! service, and a stream that names the service (or the namespace's routers) that something happened to. No reads of the API
//! beside the watches.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use kube::api::Api;
use kube::core::NamespaceResourceScope;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Resource, ResourceExt};
use parking_lot::RwLock;
use serde::de::DeserializeOwned;
use serin_crds::labels;
use tokio::sync::watch;

/// The group of an object: the service that its label names, or None for what all services of a namespace share.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Group {
    /// Namespace of the object.
    pub namespace: String,
    /// Value of its label `serving.serin.dev/service`.
    pub service: Option<String>,
}

impl Group {
    /// The group of one service.
    pub fn of(namespace: &str, service: &str) -> Group {
        Group { namespace: namespace.to_owned(), service: Some(service.to_owned()) }
    }

    /// What the services of a namespace share: the routers.
    pub fn shared(namespace: &str) -> Group {
        Group { namespace: namespace.to_owned(), service: None }
    }

    fn of_object<K: Resource>(object: &K) -> Group {
        Group {
            namespace: object.namespace().unwrap_or_default(),
            service: object.labels().get(labels::SERVICE).cloned(),
        }
    }
}

/// The objects of one kind. Clones share what they hold.
#[derive(Debug)]
pub struct Cache<K> {
    index: Arc<RwLock<Index<K>>>,
    ready: watch::Receiver<bool>,
}

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Cache { index: self.index.clone(), ready: self.ready.clone() }
    }
}

impl<K: Resource + Clone> Cache<K> {
    /// The objects of a group, by name.
    pub fn of(&self, group: &Group) -> BTreeMap<String, Arc<K>> {
        self.index.read().groups.get(group).cloned().unwrap_or_default()
    }

    /// Every object of a namespace.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let index = self.index.read();
        let groups = index.groups.iter().filter(|(group, _)| group.namespace == namespace);
        groups.flat_map(|(_, objects)| objects.values().cloned()).collect()
    }

    /// Takes in what a write answered, unless the watch has brought something newer.
    pub fn put(&self, object: K) {
        self.index.write().apply(object);
    }

    /// Takes out what a write deleted.
    pub fn forget(&self, object: &K) {
        self.index.write().remove(object);
    }

    /// Waits for the first complete list. False when the watch has ended.
    pub async fn ready(&mut self) -> bool {
        self.ready.wait_for(|ready| *ready).await.is_ok()
    }

    /// A cache that holds these objects and follows nothing.
    #[cfg(test)]
    pub fn holding(objects: impl IntoIterator<Item = K>) -> Cache<K> {
        let cache = Cache { index: Arc::default(), ready: watch::channel(true).1 };
        objects.into_iter().for_each(|object| cache.put(object));
        cache
    }
}

/// Follows a kind: its cache, and the group of every object that appears, changes or goes. The cache is filled only while the
/// stream is polled; `trim` takes away what nobody reads. Errors of the watch are logged, and it goes on with a growing delay.
pub fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    trim: fn(&mut K),
) -> (Cache<K>, impl Stream<Item = Group> + Send + 'static)
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let (first_list, ready) = watch::channel(false);
    let index = Arc::new(RwLock::new(Index::<K>::default()));
    let cache = Cache { index: index.clone(), ready };
    let events = watcher(api, config).modify(trim).default_backoff().flat_map(move |event| {
        let touched = match event {
            Ok(event) => {
                let complete = matches!(event, watcher::Event::InitDone);
                let touched = index.write().take(event);
                if complete {
                    first_list.send_replace(true);
                }
                touched
            }
            Err(error) => {
                tracing::warn!(kind = %K::kind(&()), %error, "watch failed, goes on");
                HashSet::new()
            }
        };
        futures::stream::iter(touched)
    });
    (cache, events)
}

/// Objects by group and name.
#[derive(Debug)]
struct Index<K> {
    groups: HashMap<Group, BTreeMap<String, Arc<K>>>,
    places: HashMap<(String, String), Group>,
    listing: Vec<K>,
}

impl<K> Default for Index<K> {
    fn default() -> Self {
        Index { groups: HashMap::new(), places: HashMap::new(), listing: Vec::new() }
    }
}

impl<K: Resource + Clone> Index<K> {
    /// Takes in an event and tells which groups it touches. A list that is under way changes nothing before it is complete.
    fn take(&mut self, event: watcher::Event<K>) -> HashSet<Group> {
        match event {
            watcher::Event::Apply(object) => self.apply(object),
            watcher::Event::Delete(object) => self.remove(&object),
            watcher::Event::Init => {
                self.listing.clear();
                HashSet::new()
            }
            watcher::Event::InitApply(object) => {
                self.listing.push(object);
                HashSet::new()
            }
            watcher::Event::InitDone => {
                let mut touched: HashSet<Group> = self.groups.drain().map(|(group, _)| group).collect();
                self.places.clear();
                for object in std::mem::take(&mut self.listing) {
                    touched.extend(self.apply(object));
                }
                touched
            }
        }
    }

    fn apply(&mut self, object: K) -> HashSet<Group> {
        let mut touched = HashSet::new();
        let place = (object.namespace().unwrap_or_default(), object.name_any());
        let group = Group::of_object(&object);
        if let Some(before) = self.places.get(&place).cloned() {
            if before != group {
                self.take_out(&before, &place.1);
                touched.insert(before);
            } else if self
                .groups
                .get(&group)
                .and_then(|objects| objects.get(&place.1))
                .is_some_and(|known| is_older(&object, known))
            {
                return touched;
            }
        }
        self.groups.entry(group.clone()).or_default().insert(place.1.clone(), Arc::new(object));
        self.places.insert(place, group.clone());
        touched.insert(group);
        touched
    }

    fn remove(&mut self, object: &K) -> HashSet<Group> {
        let place = (object.namespace().unwrap_or_default(), object.name_any());
        let Some(group) = self.places.get(&place).cloned() else { return HashSet::new() };
        let known = self.groups.get(&group).and_then(|objects| objects.get(&place.1));
        if known.is_some_and(|known| known.uid() != object.uid()) {
            return HashSet::new();
        }
        self.places.remove(&place);
        self.take_out(&group, &place.1);
        HashSet::from([group])
    }

    fn take_out(&mut self, group: &Group, name: &str) {
        if let Some(objects) = self.groups.get_mut(group) {
            objects.remove(name);
            if objects.is_empty() {
                self.groups.remove(group);
            }
        }
    }
}

/// Resource versions of one object grow; the API guarantees that they can be compared as numbers.
fn is_older<K: Resource>(object: &K, known: &K) -> bool {
    let version = |object: &K| object.resource_version().and_then(|version| version.parse::<u64>().ok());
    match (version(object), version(known)) {
        (Some(new), Some(old)) => object.uid() == known.uid() && new < old,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use kube::api::ObjectMeta;
    use watcher::Event;

    use super::*;

    fn pod(name: &str, service: Option<&str>, uid: &str, version: u64) -> Pod {
        Pod {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some("ns".to_owned()),
                uid: Some(uid.to_owned()),
                resource_version: Some(version.to_string()),
                labels: service.map(|service| [(labels::SERVICE.to_owned(), service.to_owned())].into()),
                ..ObjectMeta::default()
            },
            ..Pod::default()
        }
    }

    fn names(index: &Index<Pod>, group: &Group) -> Vec<String> {
        index.groups.get(group).map(|objects| objects.keys().cloned().collect()).unwrap_or_default()
    }

    #[test]
    fn objects_are_found_by_service_and_routers_by_namespace() {
        let mut index = Index::default();
        assert_eq!(
            index.take(Event::Apply(pod("a", Some("iris"), "1", 1))),
            [Group::of("ns", "iris")].into()
        );
        assert_eq!(index.take(Event::Apply(pod("r", None, "2", 2))), [Group::shared("ns")].into());
        assert_eq!(names(&index, &Group::of("ns", "iris")), ["a"]);
        assert_eq!(names(&index, &Group::shared("ns")), ["r"]);
    }

    #[test]
    fn what_went_while_the_watch_was_away_is_noticed_when_the_list_is_complete() {
        let mut index = Index::default();
        index.take(Event::Apply(pod("a", Some("iris"), "1", 1)));
        index.take(Event::Init);
        assert!(index.take(Event::InitApply(pod("b", Some("magika"), "2", 2))).is_empty());
        assert_eq!(names(&index, &Group::of("ns", "iris")), ["a"], "a list under way changes nothing");
        let touched = index.take(Event::InitDone);
        assert_eq!(touched, [Group::of("ns", "iris"), Group::of("ns", "magika")].into());
        assert!(names(&index, &Group::of("ns", "iris")).is_empty());
    }

    #[test]
    fn an_older_version_never_replaces_what_a_write_answered() {
        let mut index = Index::default();
        index.apply(pod("a", Some("iris"), "1", 10));
        assert!(index.take(Event::Apply(pod("a", Some("iris"), "1", 9))).is_empty());
        assert!(!index.take(Event::Apply(pod("a", Some("iris"), "1", 11))).is_empty());
        assert!(
            !index.take(Event::Apply(pod("a", Some("iris"), "2", 5))).is_empty(),
            "a new object of the name"
        );
        assert!(index.take(Event::Delete(pod("a", Some("iris"), "1", 12))).is_empty(), "the old one's end");
        assert_eq!(names(&index, &Group::of("ns", "iris")), ["a"]);
    }

    #[test]
    fn a_changed_label_moves_the_object() {
        let mut index = Index::default();
        index.apply(pod("a", Some("iris"), "1", 1));
        let touched = index.apply(pod("a", Some("magika"), "1", 2));
        assert_eq!(touched, [Group::of("ns", "iris"), Group::of("ns", "magika")].into());
        assert!(names(&index, &Group::of("ns", "iris")).is_empty());
    }
}
