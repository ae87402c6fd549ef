//! Waiting, always with a watch and never with a pause: until an object, or a set of objects, is as asked. Talks to the
//! API server.

use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector::store;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Waits until an object exists and `done` holds for it.
///
/// # Errors
/// It did not within `limit`; the message holds what it looked like last.
pub async fn object<K>(
    api: &Api<K>,
    name: &str,
    what: &str,
    limit: Duration,
    done: impl Fn(&K) -> bool,
) -> anyhow::Result<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Serialize + Send + 'static,
{
    let (mut last, began) = (None, Instant::now());
    let mut changes = pin!(watcher::watch_object(api.clone(), name).default_backoff());
    let found = tokio::time::timeout(limit, async {
        loop {
            // The stream ends its backoff by itself; an error in between is the API server's absence.
            if let Ok(Some(object)) = changes.try_next().await {
                last = object;
                if let Some(object) = &last
                    && done(object)
                {
                    return object.clone();
                }
            }
        }
    })
    .await;
    match found {
        Ok(object) => {
            println!("  {:>6} ms  {what}", began.elapsed().as_millis());
            Ok(object)
        }
        Err(_) => bail!("waited {limit:?} for {what}; {name} was last: {}", shown(&last)),
    }
}

/// Waits until an object is gone.
///
/// # Errors
/// It is still there after `limit`.
pub async fn gone<K>(api: &Api<K>, name: &str, limit: Duration) -> anyhow::Result<()>
where
    K: Resource + Clone + Debug + DeserializeOwned + Serialize + Send + 'static,
{
    let mut last = None;
    let mut changes = pin!(watcher::watch_object(api.clone(), name).default_backoff());
    let gone = tokio::time::timeout(limit, async {
        loop {
            if let Ok(Some(object)) = changes.try_next().await {
                if object.is_none() {
                    return;
                }
                last = object;
            }
        }
    })
    .await;
    gone.ok()
        .with_context(|| format!("waited {limit:?} for {name} to be gone; it was last: {}", shown(&last)))
}

/// Waits until `done` holds for all objects that `config` selects.
///
/// # Errors
/// It did not within `limit`; the message names the objects seen last.
pub async fn list<K>(
    api: &Api<K>,
    config: watcher::Config,
    what: &str,
    limit: Duration,
    done: impl Fn(&[Arc<K>]) -> bool,
) -> anyhow::Result<Vec<Arc<K>>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let began = Instant::now();
    let (reader, writer) = store();
    let mut changes = pin!(watcher(api.clone(), config).default_backoff().reflect(writer));
    let found = tokio::time::timeout(limit, async {
        let mut complete = false;
        loop {
            if let Ok(Some(event)) = changes.try_next().await {
                complete |= matches!(event, watcher::Event::InitDone);
                let objects = reader.state();
                if complete && done(&objects) {
                    return objects;
                }
            }
        }
    })
    .await;
    match found {
        Ok(objects) => {
            println!("  {:>6} ms  {what}", began.elapsed().as_millis());
            Ok(objects)
        }
        Err(_) => {
            let names: Vec<_> =
                reader.state().iter().map(|object| reflector::ObjectRef::from_obj(&**object).name).collect();
            bail!("waited {limit:?} for {what}; there were last: {names:?}")
        }
    }
}

/// Whether a pod's condition `Ready` is true.
pub fn pod_is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}

/// Spec, annotations and status, without what nobody reads.
fn shown<K: Serialize>(object: &Option<K>) -> String {
    let Some(object) = object else { return "absent".to_owned() };
    let Ok(mut value) = serde_json::to_value(object) else { return "not to be shown as JSON".to_owned() };
    if let Some(metadata) = value["metadata"].as_object_mut() {
        metadata.retain(|key, _| ["generation", "annotations", "deletionTimestamp"].contains(&key.as_str()));
        if let Some(annotations) = metadata.get_mut("annotations").and_then(|a| a.as_object_mut()) {
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        }
    }
    serde_json::to_string_pretty(&value).unwrap_or_default()
}
