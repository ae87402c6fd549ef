//! Single writes: each skipped where it would change nothing, and each with the preconditions of what was read. IO.

use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::NamespaceResourceScope;
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use serin_crds::labels;
use thiserror::Error;

use super::contains::contains;
use crate::cache::Cache;
use crate::controller::build::metadata::Ownership;
use crate::controller::revision::{short_hash, sorted};
use crate::metrics::Metrics;

/// Field manager of everything that the operator applies, sizes and status apart.
pub const FIELD_MANAGER: &str = "serin-operator";
/// Field manager of `spec.replicas`.
pub const SCALE_MANAGER: &str = "serin-operator-scale";

/// Why a write was not made.
#[derive(Debug, Error)]
pub enum Error {
    /// An object of that name belongs to something else and is left alone.
    #[error("{kind} {name} exists already: {whose}")]
    NameTaken {
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
        /// Whose it is.
        whose: String,
    },
    /// An object of that name is about to go, or its whole namespace.
    #[error("{kind} {name}, or its namespace, is being deleted")]
    Going {
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
    },
    /// What was read is no longer what is there; the next pass reads again.
    #[error("{0} has changed meanwhile")]
    Stale(String),
    /// The API server refused or did not answer.
    #[error("failed to {verb} {kind} {name}")]
    Write {
        /// What was tried.
        verb: &'static str,
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
        /// Its answer.
        #[source]
        source: Box<kube::Error>,
    },
}

impl Error {
    /// The kind of the error, for metrics.
    pub fn category(&self) -> &'static str {
        match self {
            Error::NameTaken { .. } => "name_taken",
            Error::Going { .. } => "going",
            Error::Stale(_) => "stale",
            Error::Write { .. } => "write",
        }
    }

    /// The pass has only to be done again: nothing is wrong.
    pub fn is_passing(&self) -> bool {
        matches!(self, Error::Stale(_) | Error::Going { .. })
    }
}

/// A kind that is written here.
pub trait Child:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Serialize + DeserializeOwned
{
}

impl<K> Child for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
{
}

/// Writes objects of one namespace.
pub struct Writer<'a> {
    client: &'a Client,
    namespace: &'a str,
    metrics: &'a Metrics,
    whose: &'a (dyn Fn(&ObjectMeta) -> Ownership + Send + Sync),
}

impl<'a> Writer<'a> {
    /// A writer that touches only what `whose` says is ours or nobody's.
    pub fn new(
        client: &'a Client,
        namespace: &'a str,
        metrics: &'a Metrics,
        whose: &'a (dyn Fn(&ObjectMeta) -> Ownership + Send + Sync),
    ) -> Writer<'a> {
        Writer { client, namespace, metrics, whose }
    }

    /// Applies an object unless it is as it should be already. `precise`: only onto the version that was read. True: it was written.
    ///
    /// # Errors
    /// [`Error::NameTaken`] or [`Error::Going`] where the object of that name is not ours to write; else what the API server said.
    pub async fn ensure<K: Child>(
        &self,
        desired: K,
        cache: &Cache<K>,
        live: Option<&Arc<K>>,
        precise: bool,
    ) -> Result<bool, Error> {
        let name = desired.name_any();
        let found = match live {
            Some(live) => Some(live.clone()),
            // Before anything is made, an object of that name that is not ours must be found: an apply would take it over.
            None => self.look(&name, cache).await?,
        };
        let desired = prepared(&desired);
        let Some(live) = found else {
            self.patch(&name, cache, &desired, FIELD_MANAGER, "create").await?;
            return Ok(true);
        };
        self.check(&*live)?;
        let current = serde_json::to_value(&*live).unwrap_or_default();
        if contains(&current, &desired) {
            return Ok(false);
        }
        let mut body = with_replicas(desired, &*live, &current);
        if precise {
            body["metadata"]["resourceVersion"] = json!(live.resource_version());
        }
        self.patch(&name, cache, &body, FIELD_MANAGER, "apply").await?;
        Ok(true)
    }

    /// Sets the replicas of a Deployment; `precise`: only of the version that was read, which a fall needs.
    ///
    /// # Errors
    /// [`Error::Stale`] where it has changed meanwhile; else what the API server said.
    pub async fn scale(
        &self,
        live: &Deployment,
        replicas: u32,
        cache: &Cache<Deployment>,
        precise: bool,
    ) -> Result<(), Error> {
        let mut body = json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": live.name_any(), "namespace": self.namespace, "uid": live.uid()},
            "spec": {"replicas": replicas}
        });
        if precise {
            body["metadata"]["resourceVersion"] = json!(live.resource_version());
        }
        self.patch(&live.name_any(), cache, &body, SCALE_MANAGER, "scale").await
    }

    /// Deletes exactly the version that was read. Its dependents go after it. False: it was gone already.
    ///
    /// # Errors
    /// [`Error::Stale`] where it has changed meanwhile; else what the API server said.
    pub async fn delete<K: Child>(&self, live: &K, cache: &Cache<K>) -> Result<bool, Error> {
        let name = live.name_any();
        self.check(live)?;
        let parameters = DeleteParams {
            preconditions: Some(Preconditions { uid: live.uid(), resource_version: live.resource_version() }),
            ..DeleteParams::background()
        };
        match self.api::<K>().delete(&name, &parameters).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_not_found() => {
                cache.forget(live);
                return Ok(false);
            }
            Err(error) => return Err(failure::<K>("delete", &name, error)),
        }
        self.metrics.wrote("delete", &K::kind(&()));
        cache.forget(live);
        Ok(true)
    }

    /// Changes annotations and nothing else; `precise`: only of the version that was read.
    ///
    /// # Errors
    /// [`Error::Stale`] where it has changed meanwhile; else what the API server said.
    pub async fn annotate<K: Child>(
        &self,
        live: &K,
        key: &str,
        value: &str,
        precise: bool,
    ) -> Result<K, Error> {
        let name = live.name_any();
        let mut body = json!({"metadata": {"annotations": {key: value}}});
        if precise {
            body["metadata"]["resourceVersion"] = json!(live.resource_version());
        }
        let parameters =
            PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let written = self.api::<K>().patch(&name, &parameters, &Patch::Merge(&body)).await;
        let written = written.map_err(|error| failure::<K>("annotate", &name, error))?;
        self.metrics.wrote("annotate", &K::kind(&()));
        Ok(written)
    }

    fn api<K: Child>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), self.namespace)
    }

    async fn look<K: Child>(&self, name: &str, cache: &Cache<K>) -> Result<Option<Arc<K>>, Error> {
        let found = self.api::<K>().get_opt(name).await.map_err(|error| failure::<K>("read", name, error))?;
        let Some(found) = found else { return Ok(None) };
        self.check(&found)?;
        cache.put(found.clone());
        Ok(Some(Arc::new(found)))
    }

    fn check<K: Child>(&self, live: &K) -> Result<(), Error> {
        let (kind, name) = (K::kind(&()).into_owned(), live.name_any());
        match (self.whose)(live.meta()) {
            Ownership::Foreign(whose) => Err(Error::NameTaken { kind, name, whose }),
            Ownership::Dead => Err(Error::Going { kind, name }),
            Ownership::Ours | Ownership::Orphan if live.meta().deletion_timestamp.is_some() => {
                Err(Error::Going { kind, name })
            }
            Ownership::Ours | Ownership::Orphan => Ok(()),
        }
    }

    async fn patch<K: Child>(
        &self,
        name: &str,
        cache: &Cache<K>,
        body: &Value,
        manager: &str,
        verb: &'static str,
    ) -> Result<(), Error> {
        let parameters = PatchParams::apply(manager).force();
        let written = self.api::<K>().patch(name, &parameters, &Patch::Apply(body)).await;
        cache.put(written.map_err(|error| failure::<K>(verb, name, error))?);
        self.metrics.wrote(verb, &K::kind(&()));
        Ok(())
    }
}

fn failure<K: Child>(verb: &'static str, name: &str, error: kube::Error) -> Error {
    let kind = K::kind(&()).into_owned();
    match error {
        // Everything in it goes, the InferenceService too.
        error if is_ending(&error) => Error::Going { kind, name: name.to_owned() },
        kube::Error::Api(status) if status.code == 409 => Error::Stale(format!("{kind} {name}")),
        source => Error::Write { verb, kind, name: name.to_owned(), source: Box::new(source) },
    }
}

/// The object or its namespace is gone, or the namespace is being deleted: nothing can be made in it.
pub fn is_ending(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
    // Its end may come between two writes.
    if status.code == 404 {
        return true;
    }
    status.code == 403 && causes.iter().any(|cause| cause.reason == "NamespaceTerminating")
}

/// The object as JSON, with the hash of itself as an annotation: a field that is no longer wanted makes another hash, so that the
/// next apply takes it away.
fn prepared<K: Child>(desired: &K) -> Value {
    let mut value = sorted(serde_json::to_value(desired).unwrap_or_default());
    // A size is no part of what is applied: it has a manager of its own.
    let replicas =
        value.get_mut("spec").and_then(Value::as_object_mut).and_then(|spec| spec.remove("replicas"));
    let hash = short_hash(&value.to_string());
    if let Some(replicas) = replicas {
        value["spec"]["replicas"] = replicas;
    }
    let metadata = &mut value["metadata"];
    if !metadata["annotations"].is_object() {
        metadata["annotations"] = json!({});
    }
    metadata["annotations"][labels::APPLIED_HASH] = json!(hash);
    value
}

/// An apply that leaves out replicas which it owned would set them to 1. They are handed over once [`SCALE_MANAGER`] has them.
fn with_replicas<K: Child>(mut desired: Value, live: &K, current: &Value) -> Value {
    let managers = live.meta().managed_fields.as_deref().unwrap_or_default();
    let sized = managers.iter().any(|entry| entry.manager.as_deref() == Some(SCALE_MANAGER));
    let replicas = &current["spec"]["replicas"];
    if K::kind(&()) == "Deployment" && !sized && desired["spec"]["replicas"].is_null() && replicas.is_number()
    {
        desired["spec"]["replicas"] = replicas.clone();
    }
    desired
}
