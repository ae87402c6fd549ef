//! `InferenceRoute`: what the operator tells the routers of one service. Not for people to write.

// Each printed column has a type of its own; the lint takes the second `integer` for a repeated attribute.
#![allow(clippy::duplicated_attributes)]

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// How the routers of a namespace split the requests of one InferenceService. Written by the operator, read by the
/// routers; the object has the service's name and carries every number that a router needs, so that routers go on while
/// the operator is away.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "serving.serin.dev",
    version = "v1alpha1",
    kind = "InferenceRoute",
    namespaced,
    shortname = "iroute",
    category = "serin",
    derive = "PartialEq",
    printcolumn(name = "Port", type_ = "integer", json_path = ".spec.port"),
    printcolumn(name = "Stable", type_ = "string", json_path = ".spec.stable"),
    printcolumn(name = "Canary", type_ = "string", json_path = ".spec.canary"),
    printcolumn(name = "Share", type_ = "integer", json_path = ".spec.share"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct InferenceRouteSpec {
    /// `metadata.generation` of the InferenceService that this route was made from. No lower one is ever written.
    pub spec_generation: i64,
    /// The port in the router's pods on which this service is served (10000-19999, unique in the namespace).
    #[schemars(range(min = 10000, max = 19999))]
    pub port: u16,
    /// N: the size of the service in pods, at least 1.
    #[schemars(range(min = 1))]
    pub size: u32,
    /// The recorded stable revision; absent while the first revision has never been ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable: Option<String>,
    /// The revision that takes `share` of the requests. Others listed have none and can only be pinned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<String>,
    /// The share asked of the canary in 1/10,000. Each router computes the share in force from the ready pods that it sees.
    #[schemars(range(min = 0, max = 10000))]
    #[serde(default)]
    pub share: u16,
    /// How many ready pods of the stable revision count when the share in force is computed.
    #[serde(default)]
    pub stable_count: u32,
    /// How long, in seconds, a request may wait for a usable endpoint before 503.
    #[serde(default = "default_hold_seconds")]
    pub hold_seconds: u32,
    /// Every live revision of the service.
    #[serde(default)]
    pub revisions: Vec<RouteRevision>,
}

fn default_hold_seconds() -> u32 {
    10
}

/// One revision that requests can reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteRevision {
    /// Name of the revision.
    pub name: String,
    /// Name of the Service whose EndpointSlices list the revision's pods.
    pub service: String,
    /// How long, in seconds, a request may take.
    pub timeout_seconds: u32,
}
