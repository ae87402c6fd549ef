//! `serin-bench`: the figures that the documents show, each printed by a command.

mod hop;
mod memory;
mod patch;
mod runtime;

use anyhow::Context;
use clap::Parser;

use serin_e2e::cluster::Cluster;
use serin_e2e::story::tell_on;

#[derive(Parser)]
#[command(about = "Measures what the documents say")]
enum Figure {
    /// From a committed patch of the percentage to the first request by the new share.
    Patch {
        /// How many patches.
        #[arg(long, default_value_t = 50)]
        patches: usize,
        /// Requests per second.
        #[arg(long, default_value_t = 1000.0)]
        rate: f64,
    },
    /// What the router adds to a request.
    Hop {
        /// Requests by each way.
        #[arg(long, default_value_t = 10_000)]
        requests: u64,
    },
    /// The model server beside a bare loop around the session.
    Runtime {
        /// Requests to each model.
        #[arg(long, default_value_t = 5_000)]
        requests: u64,
    },
    /// Memory of operator and routers, as they run now.
    Memory,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Figure::parse() {
        Figure::Patch { patches, rate } => {
            let cluster = Cluster::ready().await?;
            tell_on("bench-patch", cluster, async |story| patch::measure(story, patches, rate).await).await
        }
        Figure::Hop { requests } => {
            let cluster = Cluster::ready().await?;
            tell_on("bench-hop", cluster, async |story| hop::measure(story, requests).await).await
        }
        Figure::Runtime { requests } => runtime::measure(requests).await,
        Figure::Memory => memory::measure(&Cluster::ready().await?).await.context("memory"),
    }
}

/// The value below which `percent` of all lie; the values need not be sorted.
fn percentile(values: &[u64], percent: usize) -> u64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// Microseconds as milliseconds with two digits.
fn millis(micros: u64) -> String {
    format!("{}.{:02} ms", micros / 1000, micros % 1000 / 10)
}
