//! The test's end of the traffic pod: makes it, starts loads, marks phases, reads the account. Talks to the API server,
//! which passes requests on to the pod.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use http::Request;
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use kube::{Api, Client};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::verdict::Verdict;
use super::wire::{Case, Comparison, FirstAnswer, Latency, LoadReport, LoadSpec, PhaseReport};
use crate::wait;

const NAME: &str = "traffic";
const PORT: u16 = 9000;
const READY_WITHIN: Duration = Duration::from_secs(90);
/// Connections of a load. Enough that both routers get some of every load.
const CONNECTIONS: usize = 16;

/// What a load sends, and where.
pub struct Stream<'a> {
    /// Name of the load.
    pub name: &'a str,
    /// The InferenceService.
    pub service: &'a str,
    /// `host:port` of its Service.
    pub target: String,
    /// Requests per second.
    pub rate: f64,
    /// `spec.predictor.timeout`.
    pub timeout: Duration,
    /// The requests.
    pub cases: Vec<Case>,
}

/// The traffic pod of a namespace.
pub struct Traffic {
    client: Client,
    namespace: String,
}

impl Traffic {
    /// Makes the pod and waits until it takes orders.
    ///
    /// # Errors
    /// The pod does not become ready.
    pub async fn start(client: &Client, namespace: &str, image: &str) -> anyhow::Result<Self> {
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let pod: Pod = serde_json::from_value(manifest(image))?;
        pods.create(&PostParams::default(), &pod).await.context("create the traffic pod")?;
        wait::object(&pods, NAME, "the traffic pod to be ready", READY_WITHIN, wait::pod_is_ready).await?;
        Ok(Self { client: client.clone(), namespace: namespace.to_owned() })
    }

    /// Starts a load.
    ///
    /// # Errors
    /// The pod refuses, for example because the target takes no connections.
    pub async fn load(&self, stream: Stream<'_>) -> anyhow::Result<()> {
        let spec = LoadSpec {
            name: stream.name.to_owned(),
            target: stream.target,
            model: stream.service.to_owned(),
            rate: stream.rate,
            connections: CONNECTIONS,
            timeout_ms: u64::try_from(stream.timeout.as_millis())?,
            cases: stream.cases,
        };
        self.post("v1/loads", &spec).await.map(drop)
    }

    /// Ends the phase of a load and begins another.
    ///
    /// # Errors
    /// There is no such load.
    pub async fn mark(&self, load: &str, phase: &str) -> anyhow::Result<()> {
        self.post(&format!("v1/loads/{load}/mark"), &json!({"name": phase})).await.map(drop)
    }

    /// Waits until so many requests of the running phase have ended, and gives the account.
    ///
    /// # Errors
    /// They did not within two minutes.
    pub async fn completed(&self, load: &str, requests: u64) -> anyhow::Result<LoadReport> {
        let report: LoadReport =
            self.get(&format!("v1/loads/{load}/report?completed={requests}&wait=120")).await?;
        let phase = report.phases.last().context("a report without a phase")?;
        ensure!(
            phase.completed >= requests,
            "load {load}, phase {}: expected {requests} requests to end within 120 s, {} did",
            phase.name,
            phase.completed
        );
        Ok(report)
    }

    /// A phase of its own, of so many requests; what happened in it.
    ///
    /// # Errors
    /// The requests did not end.
    pub async fn phase(&self, load: &str, phase: &str, requests: u64) -> anyhow::Result<PhaseReport> {
        self.mark(load, phase).await?;
        let report = self.completed(load, requests).await?;
        report.phases.into_iter().next_back().context("a report without a phase")
    }

    /// The account so far.
    ///
    /// # Errors
    /// There is no such load.
    pub async fn report(&self, load: &str) -> anyhow::Result<LoadReport> {
        self.get(&format!("v1/loads/{load}/report")).await
    }

    /// Ends a load, waits for what is under way, and judges the account.
    ///
    /// # Errors
    /// There is no such load.
    pub async fn stop(&self, load: &str, models: &BTreeMap<String, String>) -> anyhow::Result<Verdict> {
        let answer = self.post(&format!("v1/loads/{load}/stop"), &json!({})).await?;
        let report: LoadReport = serde_json::from_str(&answer).context("report of a stopped load")?;
        Ok(Verdict::new(&report, models))
    }

    /// From now on, watch for the first answer of a revision.
    ///
    /// # Errors
    /// There is no such load.
    pub async fn watch_for(&self, load: &str, revision: &str) -> anyhow::Result<()> {
        self.post(&format!("v1/loads/{load}/first"), &json!({"name": revision})).await.map(drop)
    }

    /// The first answer of the revision that is watched for.
    ///
    /// # Errors
    /// There is none within 30 s.
    pub async fn first_answer(&self, load: &str) -> anyhow::Result<FirstAnswer> {
        let first: Option<FirstAnswer> = self.get(&format!("v1/loads/{load}/first?wait=30")).await?;
        first.context("no answer of the revision that is watched for within 30 s")
    }

    /// Latency by several ways to the same model, called in turn.
    ///
    /// # Errors
    /// One of the answers is wrong.
    pub async fn compare(&self, comparison: &Comparison) -> anyhow::Result<BTreeMap<String, Latency>> {
        let answer = self.post("v1/compare", comparison).await?;
        serde_json::from_str(&answer).context("answer to a comparison")
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let answer = self
            .send(Request::get(self.url(path)), Vec::new())
            .await
            .with_context(|| format!("GET {path} of the traffic pod"))?;
        serde_json::from_str(&answer).with_context(|| format!("answer of the traffic pod to {path}"))
    }

    async fn post(&self, path: &str, body: &impl Serialize) -> anyhow::Result<String> {
        let request = Request::post(self.url(path)).header(http::header::CONTENT_TYPE, "application/json");
        self.send(request, serde_json::to_vec(body)?)
            .await
            .with_context(|| format!("POST {path} of the traffic pod"))
    }

    async fn send(&self, request: http::request::Builder, body: Vec<u8>) -> anyhow::Result<String> {
        Ok(self.client.request_text(request.body(body)?).await?)
    }

    fn url(&self, path: &str) -> String {
        format!("/api/v1/namespaces/{}/pods/{NAME}:{PORT}/proxy/{path}", self.namespace)
    }
}

fn manifest(image: &str) -> Value {
    json!({
        "metadata": {"name": NAME, "labels": {"app.kubernetes.io/name": NAME}},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": NAME,
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "command": ["/serin-traffic"],
                "ports": [{"name": "control", "containerPort": PORT}],
                "readinessProbe": {"httpGet": {"path": "/readyz", "port": PORT}, "periodSeconds": 1},
                "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                },
            }],
        },
    })
}
