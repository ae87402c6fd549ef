//! What a router says about the routes that it uses: the answer of `GET /v1/acks?since=<version>&wait=<seconds>`.
//!
//! It is a long poll: it answers at once with every route that changed after `since` (0: all), else waits until one
//! changes in generation, counted endpoints or share, or until a revision's `inFlight` falls to 0, and after `wait`
//! seconds answers with no route and the same version. What it says holds for this process and this connection only: after an error the
//! operator forgets all of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One answer of a router.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AckReport {
    /// The router pod's uid.
    pub pod_uid: String,
    /// Random per process: a restarted container is another router.
    pub instance: String,
    /// To be sent as `since` with the next poll. Grows with every change; starts at 1.
    pub version: u64,
    /// The routes that changed after `since`, all of one namespace.
    pub routes: Vec<RouteAck>,
}

/// The table that a router uses for one route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteAck {
    /// Name of the InferenceRoute, which is the service's.
    pub name: String,
    /// uid of the InferenceRoute.
    pub route_uid: String,
    /// `metadata.generation` of the InferenceRoute that the table was made from.
    pub generation: i64,
    /// Every revision that the table names, and every older one that still has requests in flight.
    pub revisions: BTreeMap<String, RevisionAck>,
}

/// One revision in a router's table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevisionAck {
    /// uids of the pods that count (`ready`, ejected ones too), sorted.
    pub endpoints: Vec<String>,
    /// Share in force in 1/10,000.
    pub share: u16,
    /// Requests that were given to this revision and whose last byte has not passed, counted from before the table was read.
    pub in_flight: u64,
}
