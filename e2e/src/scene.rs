//! Where most stories begin: iris with two pods and magika with one, applied from `examples/`, ready, each under a
//! checked load; and where they end: nothing lost. Talks to the API server and to the traffic pod.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;

use serin_crds::labels;

use crate::models;
use crate::service::{PodSeen, Service};
use crate::story::Story;
use crate::traffic::pod::Stream;
use crate::traffic::wire::PhaseReport;
use crate::traffic::{Traffic, Verdict, cases, split};

/// Requests per second on iris.
pub const IRIS_RATE: f64 = 200.0;
/// Requests per second on magika, each of which costs 9 ms of a core.
pub const MAGIKA_RATE: f64 = 10.0;
/// Requests after which the split of a phase is looked at.
pub const PHASE: u64 = 1_000;

/// iris and magika under load.
pub struct Scene<'a> {
    /// The story that it belongs to.
    pub story: &'a Story,
    /// Two pods of `iris-a`.
    pub iris: Service,
    /// The revision with which iris began.
    pub first: String,
    /// The traffic pod; loads `iris` and `magika` run in it.
    pub traffic: Traffic,
    models: BTreeMap<String, String>,
}

impl<'a> Scene<'a> {
    /// Applies the examples, waits until they are ready, and starts the loads.
    ///
    /// # Errors
    /// Something does not become ready.
    pub async fn begin(story: &'a Story) -> anyhow::Result<Self> {
        story.apply(&["storage-secret", "iris", "magika"]).await?;
        let (iris, magika) = (Service::new(story, "iris"), Service::new(story, "magika"));
        let image = story.cluster.traffic_image();
        let (traffic, _, _) = tokio::try_join!(
            Traffic::start(&story.client, &story.namespace, &image),
            iris.ready(),
            magika.ready()
        )?;
        let (first, magika_revision) = tokio::try_join!(iris.settled(), magika.settled())?;
        iris.pods_ready(&first, 2).await?;
        let mut scene = Self { story, iris, first: first.clone(), traffic, models: BTreeMap::new() };
        scene.serves(&first, "a");
        scene.serves(&magika_revision, "v3_2");
        scene.load(&Service::new(story, "magika"), MAGIKA_RATE).await?;
        scene.load(&Service::new(story, "iris"), IRIS_RATE).await?;
        scene.traffic.completed("iris", PHASE).await?;
        Ok(scene)
    }

    /// Starts a load on a service: magika's where it is called so, else iris's.
    ///
    /// # Errors
    /// The traffic pod refuses.
    pub async fn load(&self, service: &Service, rate: f64) -> anyhow::Result<()> {
        let name = service.name.as_str();
        let requests = if name.starts_with("magika") { cases::magika } else { cases::iris };
        let timeout = service.get().await?.spec.predictor.timeout.unwrap_or(60);
        let stream = Stream {
            name,
            service: name,
            target: service.address().await?,
            rate,
            timeout: Duration::from_secs(u64::try_from(timeout)?),
            cases: requests(&models(), name)?,
        };
        self.traffic.load(stream).await
    }

    /// From now on answers of this revision must be those of this model (`a`, `b`, `c`, `v3_2`, `v3_3`).
    pub fn serves(&mut self, revision: &str, model: &str) {
        println!("  revision {revision} serves model {model}");
        self.models.insert(revision.to_owned(), model.to_owned());
    }

    /// How many routers share the load now.
    ///
    /// # Errors
    /// The API server does not list them.
    pub async fn routers(&self) -> anyhow::Result<u64> {
        let pods = Api::<Pod>::namespaced(self.story.client.clone(), &self.story.namespace);
        let selector = format!("{}={}", labels::COMPONENT, labels::COMPONENT_ROUTER);
        let routers = pods.list(&ListParams::default().labels(&selector)).await?;
        Ok(u64::try_from(routers.items.len())?)
    }

    /// Counts a phase of iris that begins now, and checks that `revision` gets exactly `percent` of it.
    ///
    /// # Errors
    /// It does not, or requests were lost.
    pub async fn exact(&self, name: &str, revision: &str, percent: u8) -> anyhow::Result<PhaseReport> {
        let phase = self.traffic.phase("iris", name, PHASE).await?;
        let said = split::check(&phase, revision, u16::from(percent) * 100, self.routers().await?);
        println!("  {}", said.map_err(|off| anyhow::anyhow!(off))?);
        Ok(phase)
    }

    /// Checks that the pods of the first revision are what they were: none replaced, none restarted.
    ///
    /// # Errors
    /// One of them is not.
    pub async fn first_untouched(&self, before: &[PodSeen]) -> anyhow::Result<()> {
        let now = self.iris.pods(&self.first).await?;
        ensure!(now == before, "pods of {} before: {before:?}, now: {now:?}", self.first);
        Ok(())
    }

    /// Ends both loads; fails unless every request got its answer.
    ///
    /// # Errors
    /// Requests were lost.
    pub async fn end(self) -> anyhow::Result<()> {
        // Longer than it takes the routers and kube-proxy to forget what has just been deleted.
        self.traffic.phase("iris", "end", PHASE).await?;
        let iris = self.stop("iris").await?;
        let magika = self.stop("magika").await?;
        ensure!(
            iris.sent >= 2 * PHASE,
            "expected at least {} requests on iris, sent {}",
            2 * PHASE,
            iris.sent
        );
        ensure!(magika.sent > 0, "magika got no request");
        Ok(())
    }

    /// Ends one load; fails unless every request got its answer.
    ///
    /// # Errors
    /// Requests were lost.
    pub async fn stop(&self, load: &str) -> anyhow::Result<Verdict> {
        let verdict =
            self.traffic.stop(load, &self.models).await.with_context(|| format!("stop load {load}"))?;
        println!("  {verdict}");
        ensure!(
            verdict.lost == 0,
            "{} of {} requests lost:\n{}",
            verdict.lost,
            verdict.sent,
            verdict.losses.join("\n")
        );
        Ok(verdict)
    }
}
