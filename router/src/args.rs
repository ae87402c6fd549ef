//! What the router is told when it starts. Every flag has an environment variable.

use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use clap::Parser;
use serin_crds::labels::ROUTER_ADMIN_PORT;

/// Splits the requests of the InferenceServices of one namespace between their revisions.
#[derive(Clone, Debug, Parser)]
#[command(name = "serin-router", version)]
pub struct Args {
    /// The namespace whose routes are served.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// uid of this pod, by which the operator knows it.
    #[arg(long, env = "POD_UID", default_value = "")]
    pub pod_uid: String,
    /// Name of this pod, for logs.
    #[arg(long, env = "POD_NAME", default_value = "")]
    pub pod_name: String,
    /// Address to listen on, for routes and admin port.
    #[arg(long, env = "SERIN_HOST", default_value_t = IpAddr::V6(Ipv6Addr::UNSPECIFIED))]
    pub host: IpAddr,
    /// Port of /livez, /readyz, /metrics and /v1/acks.
    #[arg(long, env = "SERIN_ADMIN_PORT", default_value_t = ROUTER_ADMIN_PORT)]
    pub admin_port: u16,
    /// Take routes from this file instead of a cluster: `{"routes": [InferenceRoute], "slices": [EndpointSlice]}`.
    /// It is read again whenever another file is put in its place.
    #[arg(long, env = "SERIN_ROUTES_FILE")]
    pub routes_file: Option<PathBuf>,
    /// Seconds after SIGTERM in which everything goes on as before, so that the endpoints' news can spread.
    #[arg(long, env = "SERIN_DRAIN_SECONDS", default_value_t = 5)]
    pub drain_seconds: u64,
    /// Seconds after that in which requests under way may end.
    #[arg(long, env = "SERIN_DRAIN_LIMIT", default_value_t = 60)]
    pub drain_limit: u64,
    /// Worker threads; 0: one for each core that the process may use.
    #[arg(long, env = "SERIN_ROUTER_THREADS", default_value_t = 0)]
    pub threads: usize,
    /// Connections from clients at most.
    #[arg(long, env = "SERIN_MAX_CONNECTIONS", default_value_t = 20_000)]
    pub max_connections: usize,
    /// Largest request body in bytes.
    #[arg(long, env = "SERIN_MAX_BODY_BYTES", default_value_t = 1 << 30)]
    pub max_body_bytes: u64,
    /// Largest request body in bytes that is held so that the request can be repeated.
    #[arg(long, env = "SERIN_HELD_BODY_BYTES", default_value_t = 1 << 20)]
    pub held_body_bytes: usize,
    /// Bytes of request bodies that are held at one time.
    #[arg(long, env = "SERIN_HELD_TOTAL_BYTES", default_value_t = 64 << 20)]
    pub held_total_bytes: usize,
    /// Requests of one service that may wait for an endpoint.
    #[arg(long, env = "SERIN_MAX_WAITING", default_value_t = 1024)]
    pub max_waiting: usize,
    /// Seconds in which a client has to send the head of its first request.
    #[arg(long, env = "SERIN_HEAD_SECONDS", default_value_t = 10)]
    pub head_seconds: u64,
    /// Seconds in which a client has to send a body that is read before it is sent on.
    #[arg(long, env = "SERIN_BODY_SECONDS", default_value_t = 60)]
    pub body_seconds: u64,
    /// Seconds after which a client's connection without requests is closed.
    #[arg(long, env = "SERIN_IDLE_SECONDS", default_value_t = 75)]
    pub idle_seconds: u64,
    /// Seconds after which an idle connection to a runtime is closed: less than the runtime keeps it.
    #[arg(long, env = "SERIN_UPSTREAM_IDLE_SECONDS", default_value_t = 15)]
    pub upstream_idle_seconds: u64,
}
