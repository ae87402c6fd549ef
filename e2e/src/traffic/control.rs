//! The traffic pod's control API: what the test process asks of it. HTTP server.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use parking_lot::Mutex;
use serde::Deserialize;

use super::connection::Connections;
use super::generator::{self, Load, unix_micros};
use super::ledger::{Outcome, histogram, latency, micros};
use super::wire::{Comparison, FirstAnswer, Latency, LoadReport, LoadSpec};

/// Answered before they are counted, so that connections, caches and clocks of the processor are warm.
const WARM_UP: u64 = 200;
/// Largest body of a request: the cases of a load.
const BODY_LIMIT: usize = 64 << 20;

type Loads = Arc<Mutex<BTreeMap<String, Arc<Load>>>>;
type Refusal = (StatusCode, String);

/// The routes of the control API.
pub fn routes() -> Router {
    Router::new()
        .route("/readyz", get(|| async { "ok" }))
        .route("/v1/loads", post(start))
        .route("/v1/loads/{name}/report", get(report))
        .route("/v1/loads/{name}/mark", post(mark))
        .route("/v1/loads/{name}/stop", post(stop))
        .route("/v1/loads/{name}/first", post(watch_for).get(first))
        .route("/v1/compare", post(compare))
        .layer(axum::extract::DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(Loads::default())
}

#[derive(Deserialize)]
struct Wait {
    /// Answer once so many requests of the phase have ended.
    #[serde(default)]
    completed: u64,
    /// Seconds to wait at most.
    #[serde(default)]
    wait: u64,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

async fn start(State(loads): State<Loads>, Json(spec): Json<LoadSpec>) -> Result<(), Refusal> {
    let name = spec.name.clone();
    if loads.lock().contains_key(&name) {
        return Err((StatusCode::CONFLICT, format!("load {name} runs already")));
    }
    let load = Load::start(spec).await.map_err(|why| (StatusCode::BAD_REQUEST, why))?;
    loads.lock().insert(name, load);
    Ok(())
}

fn find(loads: &Loads, name: &str) -> Result<Arc<Load>, Refusal> {
    loads.lock().get(name).cloned().ok_or_else(|| (StatusCode::NOT_FOUND, format!("no load {name}")))
}

async fn report(
    State(loads): State<Loads>,
    Path(name): Path<String>,
    Query(wait): Query<Wait>,
) -> Result<Json<LoadReport>, Refusal> {
    let load = find(&loads, &name)?;
    let enough = load.until(|ledger| ledger.completed_in_phase() >= wait.completed);
    // Past the limit the report is given as it is: the caller sees how many there were.
    let _ = tokio::time::timeout(Duration::from_secs(wait.wait), enough).await;
    Ok(Json(load.report()))
}

async fn mark(
    State(loads): State<Loads>,
    Path(name): Path<String>,
    Json(phase): Json<Named>,
) -> Result<(), Refusal> {
    find(&loads, &name)?.ledger().mark(&phase.name, Instant::now());
    Ok(())
}

async fn stop(State(loads): State<Loads>, Path(name): Path<String>) -> Result<Json<LoadReport>, Refusal> {
    let load = find(&loads, &name)?;
    load.stop().await;
    loads.lock().remove(&name);
    Ok(Json(load.report()))
}

async fn watch_for(
    State(loads): State<Loads>,
    Path(name): Path<String>,
    Json(revision): Json<Named>,
) -> Result<(), Refusal> {
    find(&loads, &name)?.ledger().watch_for(&revision.name, unix_micros());
    Ok(())
}

async fn first(
    State(loads): State<Loads>,
    Path(name): Path<String>,
    Query(wait): Query<Wait>,
) -> Result<Json<Option<FirstAnswer>>, Refusal> {
    let load = find(&loads, &name)?;
    let seen = load.until(|ledger| ledger.first_answer().is_some());
    let _ = tokio::time::timeout(Duration::from_secs(wait.wait), seen).await;
    let first = load.ledger().first_answer();
    Ok(Json(first))
}

/// Calls the ways in turn, one request at a time, so that whatever else the machine does meets all of them alike.
async fn compare(Json(asked): Json<Comparison>) -> Result<Json<BTreeMap<String, Latency>>, Refusal> {
    let bad = |why: String| (StatusCode::BAD_GATEWAY, why);
    let mut ways: Vec<_> = asked
        .ways
        .iter()
        .map(|(name, target)| (name, target, Arc::new(Connections::new(target, 1)), histogram()))
        .collect();
    for (name, _, connections, _) in &ways {
        generator::reachable(connections)
            .await
            .map_err(|failure| bad(format!("{name}: {}", failure.detail)))?;
    }
    for number in 0..WARM_UP + asked.requests {
        for (name, target, connections, seen) in &mut ways {
            let id = format!("{name}-{number}");
            let request =
                generator::request(&asked.case, target, &id).map_err(|error| bad(error.to_string()))?;
            let sent = Instant::now();
            let response = connections
                .call(request)
                .await
                .map_err(|failure| bad(format!("{name}: {}: {}", failure.kind, failure.detail)))?;
            let took = sent.elapsed();
            if let Outcome::Lost(loss) = generator::judge(&asked.case, &asked.model, &id, &response)
                // A pod that is called directly does not know its revision's name: the router adds that header.
                && loss.kind != "revision"
            {
                return Err(bad(format!("{name}: {}: {} {}", loss.kind, loss.detail, loss.body)));
            }
            if number >= WARM_UP {
                seen.saturating_record(micros(took).max(1));
            }
        }
    }
    Ok(Json(ways.into_iter().map(|(name, _, _, seen)| (name.clone(), latency(&seen))).collect()))
}
