//! What wishes and situation say, in the words of the formulas: N, e, u, k, who has acknowledged what. Pure.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serin_crds::acks::RouteAck;
use serin_crds::share::{ShareInput, in_force};
use serin_crds::{InferenceRouteSpec, Share};

use super::targets::Targets;
use super::{Phase, Record, RecordCause};
use crate::controller::situation::{RevisionView, RouteView, RouterView, Situation, Wishes};

static ABSENT: LazyLock<RevisionView> = LazyLock::new(RevisionView::default);

/// The arguments of one pass and the numbers that follow from them alone.
pub(super) struct Facts<'a> {
    pub(super) wishes: &'a Wishes,
    pub(super) situation: &'a Situation,
    /// S.
    pub(super) stable: Option<&'a str>,
    pub(super) now: Timestamp,
    /// N.
    pub(super) size: u32,
    /// e: pods that there may be above N.
    pub(super) surge: u32,
    /// u: pods below N that need not be ready.
    pub(super) unavailable: u32,
}

impl<'a> Facts<'a> {
    pub(super) fn new(
        wishes: &'a Wishes,
        situation: &'a Situation,
        stable: Option<&'a str>,
        now: Timestamp,
    ) -> Self {
        let size = wishes.size.max(1);
        let surge = wishes.max_surge.rounded_up(size);
        let unavailable = wishes.max_unavailable.rounded_down(size).min(size);
        Facts { wishes, situation, stable, now, size, surge, unavailable }
    }

    /// T.
    pub(super) fn target(&self) -> &'a str {
        &self.wishes.target
    }

    /// Today's spec is the stable revision.
    pub(super) fn is_steady(&self) -> bool {
        self.stable == Some(self.target())
    }

    pub(super) fn view(&self, name: &str) -> &RevisionView {
        self.situation.revisions.get(name).unwrap_or(&ABSENT)
    }

    /// Revisions that have a Deployment.
    pub(super) fn running(&self) -> impl Iterator<Item = &'a str> + '_ {
        self.situation.revisions.iter().filter(|(_, view)| view.is_running()).map(|(name, _)| name.as_str())
    }

    /// k as the operator sees it.
    pub(super) fn ready(&self, name: &str) -> u32 {
        count(self.view(name).ready.len())
    }

    /// k that every live router has acknowledged; without a live router, as the operator sees it. Where a person has released the
    /// wait, a router of which nothing is known is not waited for.
    pub(super) fn acknowledged_ready(&self, name: &str) -> u32 {
        let mut common: Option<BTreeSet<&str>> = None;
        let released = self.is_released();
        for router in
            self.situation.routers.iter().filter(|router| !released || self.ack_of(router).is_some())
        {
            let endpoints: BTreeSet<&str> = self
                .ack_of(router)
                .and_then(|ack| ack.revisions.get(name))
                .map(|revision| revision.endpoints.iter().map(String::as_str).collect())
                .unwrap_or_default();
            common = Some(match common {
                None => endpoints,
                Some(common) => common.intersection(&endpoints).copied().collect(),
            });
        }
        let ready = &self.view(name).ready;
        match common {
            None => count(ready.len()),
            // A router may not have heard yet of a pod that has just gone.
            Some(common) => count(common.into_iter().filter(|uid| ready.contains(*uid)).count()),
        }
    }

    /// The timeout of requests to a revision: of its snapshot, or of today's spec while it has none.
    pub(super) fn timeout_seconds(&self, name: &str) -> u32 {
        match self.view(name).timeout_seconds {
            0 => self.wishes.timeout_seconds,
            seconds => seconds,
        }
    }

    /// w under a route, by the pods that the operator sees.
    pub(super) fn in_force(&self, route: &InferenceRouteSpec) -> Share {
        let Some(canary) = route.canary.as_deref() else { return Share::NONE };
        in_force(ShareInput {
            asked: Share::from_parts(route.share),
            size: route.size,
            stable_count: route.stable_count,
            stable_ready: route.stable.as_deref().map_or(0, |stable| self.ready(stable)),
            canary_ready: self.ready(canary),
        })
    }

    /// The share that a revision has now, under the route as observed.
    pub(super) fn weight(&self, name: &str) -> Share {
        let Some(route) = self.situation.route.as_ref().map(|route| &route.spec) else { return Share::NONE };
        let canary = self.in_force(route);
        if route.canary.as_deref() == Some(name) {
            canary
        } else if route.stable.as_deref() == Some(name) {
            canary.rest()
        } else {
            Share::NONE
        }
    }

    /// A router uses the observed route. One that speaks of a newer generation shows that the observation is old: what it
    /// acknowledges is not what this pass decides by.
    fn uses(&self, router: &RouterView, route: &RouteView) -> bool {
        self.ack_of(router).is_some_and(|ack| ack.generation == route.generation)
    }

    /// What a router said of this very route; nothing else counts.
    fn ack_of<'r>(&self, router: &'r RouterView) -> Option<&'r RouteAck> {
        let route = self.situation.route.as_ref()?;
        router.ack.as_ref().filter(|ack| ack.route_uid == route.uid)
    }

    /// Every live router uses the observed route, or a person has released the wait for it.
    pub(super) fn observed_is_acknowledged(&self) -> bool {
        let Some(route) = &self.situation.route else { return false };
        self.is_released() || self.situation.routers.iter().all(|router| self.uses(router, route))
    }

    /// A person has released the wait for acknowledgements of the observed route.
    fn is_released(&self) -> bool {
        self.situation.route.as_ref().is_some_and(|route| self.wishes.release_hold == Some(route.generation))
    }

    /// The route as it should be is the one observed, and every live router uses it.
    pub(super) fn is_acknowledged(&self, wanted: &InferenceRouteSpec) -> bool {
        self.situation.route.as_ref().is_some_and(|route| route.spec == *wanted)
            && self.observed_is_acknowledged()
    }

    /// Live routers that do not use the route as it should be, by pod name.
    pub(super) fn unacknowledged(&self, wanted: &InferenceRouteSpec) -> Vec<String> {
        let observed = self.situation.route.as_ref().filter(|route| route.spec == *wanted);
        let routers = self
            .situation
            .routers
            .iter()
            .filter(|router| !observed.is_some_and(|route| self.uses(router, route)));
        routers.map(|router| router.pod_name.clone()).collect()
    }

    /// Live routers that have been silent for 5 s, by pod name.
    pub(super) fn silent(&self) -> Vec<String> {
        const LIMIT: SignedDuration = SignedDuration::from_secs(5);
        let is_silent = |router: &&RouterView| {
            router.silent_since.is_some_and(|since| self.now.duration_since(since) >= LIMIT)
        };
        self.situation.routers.iter().filter(is_silent).map(|router| router.pod_name.clone()).collect()
    }

    /// Nothing that a router gave to this revision is unanswered. Reads as it should only once the observed route, which does
    /// not name the revision, is acknowledged.
    pub(super) fn is_drained(&self, name: &str) -> bool {
        let in_flight = |router: &RouterView| {
            self.ack_of(router)
                .and_then(|ack| ack.revisions.get(name))
                .is_some_and(|revision| revision.in_flight > 0)
        };
        self.situation.routers.iter().all(|router| {
            !in_flight(router) || router.acknowledged_at.is_some_and(|at| at + self.timeout(name) <= self.now)
        })
    }

    /// When the last request to a revision that is no longer routed to has had its time, where one is in flight.
    pub(super) fn drained_at(&self, name: &str) -> Option<Timestamp> {
        let timeout = self.timeout(name);
        self.situation
            .routers
            .iter()
            .filter_map(|router| router.acknowledged_at)
            .map(|at| at + timeout)
            .filter(|at| *at > self.now)
            .max()
    }

    fn timeout(&self, name: &str) -> SignedDuration {
        SignedDuration::from_secs(i64::from(self.timeout_seconds(name)))
    }

    /// Some revision that this route gives requests to has a pod that every router knows.
    pub(super) fn somebody_serves(&self, route: &InferenceRouteSpec) -> bool {
        let canary = route.canary.as_deref().filter(|_| route.share > 0);
        route.stable.as_deref().into_iter().chain(canary).any(|name| self.acknowledged_ready(name) > 0)
    }

    /// The record of a promotion, where it is due.
    pub(super) fn promotion(&self, targets: &Targets, settled: bool) -> Option<Record> {
        let everything = settled
            && targets.phase == Phase::Promoting
            && targets.share == Share::ALL
            && targets.canary.as_deref() == Some(self.target())
            && self.acknowledged_ready(self.target()) >= self.size
            && self.every_router_gives(self.target(), Share::ALL);
        everything.then(|| Record { revision: self.target().to_owned(), cause: RecordCause::Promoted })
    }

    fn every_router_gives(&self, name: &str, share: Share) -> bool {
        let released = self.is_released();
        self.situation.routers.iter().all(|router| {
            let given =
                self.ack_of(router).and_then(|ack| ack.revisions.get(name)).map(|revision| revision.share);
            given.map_or(released, |given| given >= share.parts())
        })
    }

    /// When T counts as stuck; None while nothing is waited for.
    pub(super) fn deadline(&self, targets: &Targets) -> Option<Timestamp> {
        let wanted = if self.is_steady() { targets.stable_pods } else { targets.target_pods };
        let view = self.view(self.target());
        if self.ready(self.target()) >= wanted {
            return None;
        }
        let last = view.last_ready_at.max(view.created_at)?;
        let deadline = SignedDuration::try_from(self.wishes.progress_deadline).unwrap_or(SignedDuration::MAX);
        last.checked_add(deadline).ok()
    }
}

fn count(pods: usize) -> u32 {
    u32::try_from(pods).unwrap_or(u32::MAX)
}
