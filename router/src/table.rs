//! The immutable table that requests are routed by, and the pure step that makes a new one from routes, slices and the
//! table before. No IO and no clock: the caller says what time it is.

mod build;
mod members;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use http::HeaderValue;
use serin_crds::Share;
use tokio::sync::watch;

pub use self::build::{Builder, Built, SliceIndex};
pub use self::members::{GONE_AFTER, Member, Standing};
use crate::budget::Budget;
use crate::in_flight::RevisionState;
use crate::metrics::RouteMetrics;
use crate::select::{Sequence, Usable};

/// Every route in use, by its port.
#[derive(Debug, Default)]
pub struct Table {
    routes: HashMap<u16, Arc<Route>>,
}

impl Table {
    /// A table of these routes, whose ports differ.
    pub fn new(routes: impl IntoIterator<Item = Arc<Route>>) -> Table {
        Table { routes: routes.into_iter().map(|route| (route.port, route)).collect() }
    }

    /// The route served on a port.
    pub fn by_port(&self, port: u16) -> Option<&Arc<Route>> {
        self.routes.get(&port)
    }

    /// Every route, in no order.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.routes.values()
    }
}

/// One service as it is served in this generation.
#[derive(Debug)]
pub struct Route {
    /// Name of the InferenceRoute and of the service.
    pub name: Arc<str>,
    /// uid of the InferenceRoute.
    pub uid: String,
    /// `metadata.generation` that this was made from.
    pub generation: i64,
    /// The port in this pod on which it is served.
    pub port: u16,
    /// Every revision that can be reached.
    pub revisions: Vec<Revision>,
    /// Index of the recorded stable revision.
    pub stable: Option<usize>,
    /// Index of the canary.
    pub canary: Option<usize>,
    /// x: the share asked of the canary.
    pub asked: Share,
    /// w: the canary's share in force.
    pub share: Share,
    /// Hands each unpinned request its point; a new one at each new share.
    pub sequence: Arc<Sequence>,
    /// How long a request may wait for an endpoint.
    pub hold: Duration,
    /// Since when the InferenceRoute is gone; absence is not an order, so the route stays for a while.
    pub absent_since: Option<Instant>,
    /// Older revisions that may still have requests in flight.
    pub retired: Vec<Arc<RevisionState>>,
    /// What outlives generations.
    pub state: Arc<RouteState>,
}

impl Route {
    /// The revision that unpinned requests fall to at this point, before its endpoints are looked at.
    pub fn chosen(&self, point: crate::select::Point) -> Option<usize> {
        match (self.stable, self.canary) {
            (Some(_), Some(canary)) if point.takes_canary(self.share) => Some(canary),
            (Some(stable), _) => Some(stable),
            // Where `stable` names nobody, a canary that is held back stays held back.
            (None, canary) => canary.filter(|_| self.asked > Share::NONE),
        }
    }

    /// Where a request that prefers this revision may go, in order: there, else stable, else (where it has a share asked) canary.
    pub fn candidates(&self, preferred: Option<usize>) -> impl Iterator<Item = usize> {
        let stable = self.stable.filter(|stable| Some(*stable) != preferred);
        let canary = self.canary.filter(|canary| Some(*canary) != preferred && self.asked > Share::NONE);
        preferred.into_iter().chain(stable).chain(canary)
    }

    /// The revision that a pin names: `canary`, `stable` or its name.
    pub fn pinned(&self, pin: &[u8]) -> Option<usize> {
        match pin {
            b"canary" => self.canary,
            b"stable" => self.stable,
            name => self.revisions.iter().position(|revision| revision.name.as_bytes() == name),
        }
    }

    /// The index of a revision of this name.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.revisions.iter().position(|revision| &*revision.name == name)
    }

    /// The share of one revision in force.
    pub fn share_of(&self, revision: usize) -> Share {
        if Some(revision) == self.canary {
            self.share
        } else if Some(revision) == self.stable {
            self.share.rest()
        } else {
            Share::NONE
        }
    }

    /// Requests of this service that ended, over all of its revisions.
    pub fn total_requests(&self) -> u64 {
        let revisions = self.revisions.iter().map(|revision| &revision.state);
        revisions.chain(&self.retired).map(|state| state.metrics.total()).sum()
    }
}

/// One revision of a route in this generation.
#[derive(Debug)]
pub struct Revision {
    /// Its name.
    pub name: Arc<str>,
    /// How long a request may take.
    pub timeout: Duration,
    /// Where requests can go.
    pub usable: Usable,
    /// Every endpoint that is remembered, the unusable ones too.
    pub members: Vec<Member>,
    /// uids of the pods that count, sorted.
    pub counted: Vec<Arc<str>>,
    /// Its name, as the response says it.
    pub answered_by: HeaderValue,
    /// `namespace/service/revision`, as the request says it.
    pub identity: HeaderValue,
    /// What outlives generations.
    pub state: Arc<RevisionState>,
}

/// What outlives the generations of a route.
#[derive(Debug)]
pub struct RouteState {
    /// Requests that wait for an endpoint.
    pub waiting: AtomicUsize,
    /// Raised with each generation of the route; those that wait look again.
    pub changed: watch::Sender<u64>,
    /// Repetitions of lost requests.
    pub budget: Budget,
    /// Counters.
    pub metrics: RouteMetrics,
}

impl RouteState {
    fn new(now: Instant) -> Arc<RouteState> {
        Arc::new(RouteState {
            waiting: AtomicUsize::new(0),
            changed: watch::Sender::new(0),
            budget: Budget::new(now),
            metrics: RouteMetrics::default(),
        })
    }
}
