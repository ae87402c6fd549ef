//! An InferenceService as its user sees it: apply, patch, wait for its status. Talks to the API server.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::{Pod, Service as KubeService};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{ListParams, Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use serin_crds::InferenceService;
use serin_crds::inference_service::{ComponentStatus, TrafficTarget};
use serin_crds::labels;
use serin_crds::reasons::conditions;

use crate::story::Story;
use crate::wait;

/// How long anything that starts pods may take on a small machine.
pub const LIMIT: Duration = Duration::from_secs(120);

/// One InferenceService of a story.
#[derive(Clone)]
pub struct Service {
    /// Its name.
    pub name: String,
    story: Story,
    api: Api<InferenceService>,
}

/// A pod, as far as stories compare pods: if any of it changes, the pod was replaced or restarted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodSeen {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Restarts of its containers.
    pub restarts: i32,
}

impl Service {
    /// The InferenceService of that name, whether it exists yet or not.
    pub fn new(story: &Story, name: &str) -> Self {
        let api = Api::namespaced(story.client.clone(), &story.namespace);
        Self { name: name.to_owned(), story: story.clone(), api }
    }

    /// The object.
    ///
    /// # Errors
    /// It does not exist.
    pub async fn get(&self) -> anyhow::Result<InferenceService> {
        self.api.get(&self.name).await.with_context(|| format!("get {}", self.name))
    }

    /// Merges into the object, as `kubectl patch --type merge`; the object after it.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn patch(&self, patch: &Value) -> anyhow::Result<InferenceService> {
        let patched = self.api.patch(&self.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.with_context(|| format!("patch {} with {patch}", self.name))
    }

    /// Asks for a share of the canary in percent; none promotes.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn ask(&self, percent: Option<u8>) -> anyhow::Result<InferenceService> {
        self.patch(&json!({"spec": {"predictor": {"canaryTrafficPercent": percent}}})).await
    }

    /// Names another model, without any other change.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn model(&self, uri: &str) -> anyhow::Result<InferenceService> {
        self.patch(&json!({"spec": {"predictor": {"model": {"storageUri": uri}}}})).await
    }

    /// Waits until `done` holds for the object.
    ///
    /// # Errors
    /// It did not within [`LIMIT`]; the message holds the object's status.
    pub async fn until(
        &self,
        what: &str,
        done: impl Fn(&InferenceService) -> bool,
    ) -> anyhow::Result<InferenceService> {
        let what = format!("{}: {what}", self.name);
        wait::object(&self.api, &self.name, &what, LIMIT, done).await
    }

    /// Waits until it can serve today's spec's generation.
    ///
    /// # Errors
    /// It does not.
    pub async fn ready(&self) -> anyhow::Result<InferenceService> {
        self.until("Ready", |service| holds(service, conditions::READY)).await
    }

    /// Waits until the revision of today's spec is the stable one; its name.
    ///
    /// # Errors
    /// It does not become it.
    pub async fn promoted(&self) -> anyhow::Result<String> {
        let service = self.until("Promoted", |service| holds(service, conditions::PROMOTED)).await?;
        stable(&service).context("promoted, and no stable revision in status")
    }

    /// Waits until every router gives the canary exactly this percentage; the canary's name.
    ///
    /// # Errors
    /// They do not.
    pub async fn share(&self, percent: u8) -> anyhow::Result<String> {
        let wanted = percent.to_string();
        let service = self
            .until(&format!("{percent} % in force at every router"), |service| {
                holds(service, conditions::TRAFFIC_APPLIED)
                    && canary(service)
                        .is_some_and(|canary| canary.in_force == wanted && canary.percent == wanted)
            })
            .await?;
        canary(&service).map(|canary| canary.revision_name.clone()).context("no canary in status")
    }

    /// Waits until there is no canary, every router knows it, and nothing is under way any more; the stable revision.
    ///
    /// # Errors
    /// It does not come to that.
    pub async fn settled(&self) -> anyhow::Result<String> {
        let service = self
            .until("one revision, at rest", |service| {
                let traffic = component(service).map_or(&[][..], |component| &component.traffic);
                holds(service, conditions::PROMOTED)
                    && holds(service, conditions::TRAFFIC_APPLIED)
                    && holds(service, conditions::READY)
                    && traffic.len() == 1
            })
            .await?;
        stable(&service).context("at rest, and no stable revision in status")
    }

    /// Pods of a revision that are not being deleted, by name.
    ///
    /// # Errors
    /// The API server does not list them.
    pub async fn pods(&self, revision: &str) -> anyhow::Result<Vec<PodSeen>> {
        let pods = Api::<Pod>::namespaced(self.story.client.clone(), &self.story.namespace);
        let list = pods.list(&ListParams::default().labels(&selector(&self.name, revision))).await?;
        let mut seen: Vec<_> =
            list.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).map(PodSeen::of).collect();
        seen.sort();
        Ok(seen)
    }

    /// Waits until a revision has exactly `count` pods, all of them ready and none being deleted.
    ///
    /// # Errors
    /// It does not come to that.
    pub async fn pods_ready(&self, revision: &str, count: usize) -> anyhow::Result<Vec<PodSeen>> {
        let pods = Api::<Pod>::namespaced(self.story.client.clone(), &self.story.namespace);
        let config = watcher::Config::default().labels(&selector(&self.name, revision));
        let what = format!("{count} ready pods of {revision}");
        let pods = wait::list(&pods, config, &what, LIMIT, |pods| {
            pods.len() == count
                && pods.iter().all(|pod| wait::pod_is_ready(pod) && pod.metadata.deletion_timestamp.is_none())
        });
        let mut seen: Vec<_> = pods.await?.iter().map(|pod| PodSeen::of(pod)).collect();
        seen.sort();
        Ok(seen)
    }

    /// Names of all revisions that are remembered.
    ///
    /// # Errors
    /// The API server does not list them.
    pub async fn revisions(&self) -> anyhow::Result<Vec<String>> {
        use k8s_openapi::api::apps::v1::ControllerRevision;
        let revisions =
            Api::<ControllerRevision>::namespaced(self.story.client.clone(), &self.story.namespace);
        let selector = format!("{}={}", labels::SERVICE, self.name);
        let mut names: Vec<_> = revisions
            .list(&ListParams::default().labels(&selector))
            .await?
            .iter()
            .map(ResourceExt::name_any)
            .collect();
        names.sort();
        Ok(names)
    }

    /// `address:port` of the Service: its cluster IP, so that no name server stands between the load and the routers.
    ///
    /// # Errors
    /// There is no such Service, or it has no address.
    pub async fn address(&self) -> anyhow::Result<String> {
        let services = Api::<KubeService>::namespaced(self.story.client.clone(), &self.story.namespace);
        let service = services.get(&self.name).await.with_context(|| format!("Service {}", self.name))?;
        let spec = service.spec.unwrap_or_default();
        let address = spec.cluster_ip.filter(|ip| ip != "None").context("a Service without a cluster IP")?;
        let port = spec
            .ports
            .unwrap_or_default()
            .first()
            .map(|port| port.port)
            .context("a Service without a port")?;
        ensure!(port == 80, "Service {}: expected port 80, got {port}", self.name);
        Ok(format!("{address}:{port}"))
    }
}

/// An answer through the API server's proxy.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// `Serin-Revision`.
    pub revision: Option<String>,
    /// `Serin-Cause`.
    pub cause: Option<String>,
    /// The body.
    pub body: String,
}

impl Service {
    /// Posts JSON to the service, through the API server; with `pin`, to that revision.
    ///
    /// # Errors
    /// The API server does not pass it on. An answer of any status is none.
    pub async fn call(&self, path: &str, body: &Value, pin: Option<&str>) -> anyhow::Result<Answer> {
        use http_body_util::BodyExt;
        let namespace = &self.story.namespace;
        let url = format!("/api/v1/namespaces/{namespace}/services/{}:80/proxy{path}", self.name);
        let mut request = http::Request::post(url).header(http::header::CONTENT_TYPE, "application/json");
        if let Some(revision) = pin {
            request = request.header(labels::HEADER_REVISION, revision);
        }
        let response = self.story.client.send(request.body(serde_json::to_vec(body)?.into())?).await?;
        let header = |name| {
            let value = response.headers().get(name)?;
            Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let (revision, cause) = (header(labels::HEADER_REVISION), header(labels::HEADER_CAUSE));
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        Ok(Answer { status, revision, cause, body: String::from_utf8_lossy(&body).into_owned() })
    }
}

impl PodSeen {
    fn of(pod: &Pod) -> Self {
        let containers = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
        Self {
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            restarts: containers.map_or(0, |all| all.iter().map(|container| container.restart_count).sum()),
        }
    }
}

fn selector(service: &str, revision: &str) -> String {
    format!("{}={service},{}={revision}", labels::SERVICE, labels::REVISION)
}

/// A condition, whatever its status.
pub fn condition<'a>(service: &'a InferenceService, kind: &str) -> Option<&'a Condition> {
    service.status.as_ref()?.conditions.iter().find(|condition| condition.type_ == kind)
}

/// Whether a condition is true and speaks of today's spec: what `kubectl wait` would take.
pub fn holds(service: &InferenceService, kind: &str) -> bool {
    condition(service, kind).is_some_and(|condition| {
        condition.status == "True" && condition.observed_generation == service.metadata.generation
    })
}

/// Revisions and what they get.
pub fn component(service: &InferenceService) -> Option<&ComponentStatus> {
    service.status.as_ref()?.components.as_ref().map(|components| &components.predictor)
}

/// The stable revision by status.
pub fn stable(service: &InferenceService) -> Option<String> {
    component(service)?.latest_rolledout_revision.clone()
}

/// What the canary gets by status.
pub fn canary(service: &InferenceService) -> Option<&TrafficTarget> {
    component(service)?.traffic.iter().find(|target| target.tag == "canary")
}

/// Traffic in force by revision.
pub fn in_force(service: &InferenceService) -> BTreeMap<String, String> {
    let traffic = component(service).map(|component| component.traffic.iter());
    traffic
        .into_iter()
        .flatten()
        .map(|target| (target.revision_name.clone(), target.in_force.clone()))
        .collect()
}
