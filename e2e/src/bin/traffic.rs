//! `serin-traffic`: the load generator that runs as a pod in the cluster. It does nothing until the test process tells
//! it to over the control API on port 9000.

use std::net::SocketAddr;

use anyhow::Context;
use clap::Parser;

#[derive(Parser)]
#[command(about = "Sends checked requests at a fixed rate and keeps a ledger of every one")]
struct Args {
    /// Address of the control API.
    #[arg(long, default_value = "0.0.0.0:9000", env = "SERIN_TRAFFIC_LISTEN")]
    listen: SocketAddr,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let listener = tokio::net::TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("listen on {}", args.listen))?;
    println!("control API on {}", listener.local_addr()?);
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        served = axum::serve(listener, serin_e2e::traffic::control::routes()) => served.context("control API"),
        _ = terminate.recv() => Ok(()),
    }
}
