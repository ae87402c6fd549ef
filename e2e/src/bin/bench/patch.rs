//! F1: from a committed patch of the percentage to its first use, seen in three places: by a caller, by every router's own
//! acknowledgement, and in status. The percentage goes 0 → 50 and back, again and again.

use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;
use tokio::task::JoinSet;

use serin_crds::acks::AckReport;
use serin_crds::labels;
use serin_e2e::scene::Scene;
use serin_e2e::story::Story;
use serin_e2e::traffic::generator::unix_micros;

use crate::{millis, percentile};

const SHARE: u8 = 50;
const WARM_UP: usize = 3;
const SEEN_WITHIN: Duration = Duration::from_secs(30);

/// The share in use at each router, and since when (microseconds since 1970).
type Uses = watch::Receiver<(u16, u64)>;

/// Measures and prints.
pub async fn measure(story: &Story, patches: usize, rate: f64) -> anyhow::Result<()> {
    let mut scene = Scene::begin(story).await?;
    story.apply(&["iris-canary"]).await?;
    scene.iris.ask(Some(0)).await?;
    let canary = scene.iris.share(0).await?;
    scene.serves(&canary, "b");
    scene.iris.pods_ready(&canary, 1).await?;
    scene.stop("iris").await?;
    scene.stop("magika").await?;
    scene.load(&scene.iris, rate).await?;
    let mut polls = JoinSet::new();
    let mut routers = follow(story, &canary, &mut polls).await?;

    let (mut by_caller, mut by_routers, mut in_status) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..WARM_UP + patches {
        used(&mut routers, 0).await?;
        scene.traffic.watch_for("iris", &canary).await?;
        scene.iris.ask(Some(SHARE)).await?;
        // The API server has committed it before it answers, so this is late by the way back, never early.
        let committed = unix_micros();
        let status = async {
            scene.iris.share(SHARE).await?;
            anyhow::Ok(unix_micros())
        };
        let (first, last_router, status) = tokio::try_join!(
            scene.traffic.first_answer("iris"),
            used(&mut routers, u16::from(SHARE) * 100),
            status
        )?;
        if round >= WARM_UP {
            by_caller.push(first.answered_at.saturating_sub(committed));
            by_routers.push(last_router.saturating_sub(committed));
            in_status.push(status.saturating_sub(committed));
        }
        scene.iris.ask(Some(0)).await?;
        scene.iris.share(0).await?;
    }
    scene.stop("iris").await?;
    println!(
        "{patches} patches 0 → {SHARE} %, {rate} requests/s, {} routers, after the patch was committed",
        routers.len()
    );
    for (what, values) in [
        ("first request answered by the new share", by_caller),
        ("every router says that it uses it", by_routers),
        ("seen in status", in_status),
    ] {
        let (p50, p99) = (percentile(&values, 50), percentile(&values, 99));
        println!("  {what:<42} p50 {:>10}   p99 {:>10}", millis(p50), millis(p99));
    }
    Ok(())
}

/// Waits until every router uses this share; when the last one said so.
async fn used(routers: &mut [Uses], share: u16) -> anyhow::Result<u64> {
    let mut last = 0;
    for router in routers {
        let seen = tokio::time::timeout(SEEN_WITHIN, router.wait_for(|(now, _)| *now == share)).await;
        last = last.max(seen.with_context(|| format!("a router does not use {share}/10000"))??.1);
    }
    Ok(last)
}

/// Polls the acknowledgements of each router.
async fn follow(story: &Story, canary: &str, polls: &mut JoinSet<()>) -> anyhow::Result<Vec<Uses>> {
    let selector = format!("{}={}", labels::COMPONENT, labels::COMPONENT_ROUTER);
    let pods = Api::<Pod>::namespaced(story.client.clone(), &story.namespace);
    let mut uses = Vec::new();
    for pod in pods.list(&ListParams::default().labels(&selector)).await? {
        let (say, hear) = watch::channel((u16::MAX, 0));
        let admin = labels::ROUTER_ADMIN_PORT;
        let path =
            format!("/api/v1/namespaces/{}/pods/{}:{admin}/proxy/v1/acks", story.namespace, pod.name_any());
        polls.spawn(poll(story.client.clone(), path, canary.to_owned(), say));
        uses.push(hear);
    }
    ensure!(!uses.is_empty(), "no router runs");
    Ok(uses)
}

async fn poll(client: Client, path: String, canary: String, say: watch::Sender<(u16, u64)>) {
    let mut since = 0;
    loop {
        let Ok(request) = http::Request::get(format!("{path}?since={since}&wait=30")).body(Vec::new()) else {
            return;
        };
        // A router that goes away ends the measurement: nobody hears of it any more.
        let Ok(report) = client.request::<AckReport>(request).await else { return };
        since = report.version;
        let share = report
            .routes
            .iter()
            .filter(|route| route.name == "iris")
            .find_map(|route| route.revisions.get(&canary));
        if let Some(revision) = share {
            say.send_replace((revision.share, unix_micros()));
        }
    }
}
