//! Which revision and which endpoint a request goes to. Pure apart from its counters; hot path: no lock, no log, no allocation.
//!
//! The revision comes from a golden-ratio sequence: the n-th request takes the point `start + n·φ` of the unit interval
//! and goes to the canary when the point lies below the share in force. Such points are spread so evenly that the count
//! stays within a few requests of exact at any moment, where a random draw would be off by a hundred in 100,000.
//! The endpoint is the better of two drawn at random (power of two choices).

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serin_crds::Share;

use crate::endpoint::{Endpoint, Moment};

/// 2^64 divided by the golden ratio, made odd.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// A request's place in the unit interval, as a fraction of 2^64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point(pub u64);

impl Point {
    /// Whether a canary with this share takes the request. Raising the share only moves points towards the canary.
    pub fn takes_canary(self, share: Share) -> bool {
        u128::from(self.0) * 10_000 < u128::from(share.parts()) << 64
    }
}

/// The golden-ratio sequence of one route at one share: one atomic, alone on its cache line.
#[derive(Debug)]
#[repr(align(128))]
pub struct Sequence {
    next: AtomicU64,
}

impl Sequence {
    /// A sequence that begins at `start`; routers begin at random places so that few requests over many routers
    /// do not all fall to the same revision.
    pub fn new(start: u64) -> Sequence {
        Sequence { next: AtomicU64::new(start) }
    }

    /// The next request's point.
    pub fn draw(&self) -> Point {
        Point(self.next.fetch_add(GOLDEN, Ordering::Relaxed))
    }
}

thread_local! {
    static RANDOM: Cell<u64> = Cell::new(rand::random());
}

/// A cheap random number (SplitMix64), one state per thread.
fn random() -> u64 {
    RANDOM.with(|state| {
        let next = state.get().wrapping_add(GOLDEN);
        state.set(next);
        let mixed = (next ^ (next >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    })
}

/// A random index below `bound`, which is not 0.
fn below(bound: usize) -> usize {
    ((u128::from(random()) * bound as u128) >> 64) as usize
}

/// The endpoints that a request has been to. Empty, and without memory of its own, until something went wrong.
#[derive(Debug, Default)]
pub struct Tried(Vec<u64>);

impl Tried {
    /// Remembers an endpoint.
    pub fn add(&mut self, endpoint: &Endpoint) {
        self.0.push(endpoint.id());
    }

    /// Forgets all, when a request starts over after a wait.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Whether nothing has been tried yet.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn has(&self, endpoint: &Endpoint) -> bool {
        self.0.contains(&endpoint.id())
    }
}

/// The usable endpoints of one revision, in the order in which they are wanted.
#[derive(Clone, Debug, Default)]
pub struct Usable {
    /// Ready: the ones that count.
    pub ready: Vec<Arc<Endpoint>>,
    /// Terminating, still serving.
    pub terminating: Vec<Arc<Endpoint>>,
    /// Vanished without having been seen terminating.
    pub last_resort: Vec<Arc<Endpoint>>,
}

impl Usable {
    /// The endpoint for the next attempt of a request that has been to `tried`, or none that is left.
    pub fn pick(&self, tried: &Tried, now: Moment) -> Option<&Arc<Endpoint>> {
        pick(&self.ready, tried, now)
            .or_else(|| pick(&self.terminating, tried, now))
            .or_else(|| pick(&self.last_resort, tried, now))
    }

    /// Whether there is no endpoint of any kind.
    pub fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.terminating.is_empty() && self.last_resort.is_empty()
    }

    /// Every endpoint.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.ready.iter().chain(&self.terminating).chain(&self.last_resort)
    }
}

/// Power of two choices; one that failed to connect a moment ago is taken only when the draw meets no other.
fn pick<'a>(endpoints: &'a [Arc<Endpoint>], tried: &Tried, now: Moment) -> Option<&'a Arc<Endpoint>> {
    let count = endpoints.len();
    if count == 0 {
        return None;
    }
    let first = below(count);
    let second = if count > 1 { (first + 1 + below(count - 1)) % count } else { first };
    let (first, second) = (&endpoints[first], &endpoints[second]);
    let better = if second.is_better_than(first, now) { second } else { first };
    if !tried.has(better) && !better.is_suspended(now) {
        return Some(better);
    }
    pick_of_rest(endpoints, tried, now)
}

/// The cheapest endpoint not yet tried; suspended ones last. Walks all: only for requests that met trouble.
#[cold]
fn pick_of_rest<'a>(endpoints: &'a [Arc<Endpoint>], tried: &Tried, now: Moment) -> Option<&'a Arc<Endpoint>> {
    endpoints.iter().filter(|endpoint| !tried.has(endpoint)).min_by(|a, b| {
        let key = |endpoint: &Endpoint| (endpoint.is_suspended(now), endpoint.cost(now));
        let ((a_suspended, a_cost), (b_suspended, b_cost)) = (key(a), key(b));
        a_suspended.cmp(&b_suspended).then(a_cost.total_cmp(&b_cost))
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn endpoints(count: usize) -> Vec<Arc<Endpoint>> {
        (0..count)
            .map(|n| {
                Endpoint::new(
                    format!("pod-{n}"),
                    ([127, 0, 0, 1], 1000 + n as u16).into(),
                    Duration::from_secs(10),
                )
            })
            .collect()
    }

    fn usable(count: usize) -> Usable {
        Usable { ready: endpoints(count), ..Usable::default() }
    }

    proptest! {
        #[test]
        fn the_split_is_within_five_requests_of_exact_at_any_moment(parts in 0u16..=10_000, start: u64) {
            let sequence = Sequence::new(start);
            let mut canary = 0u32;
            for n in 1..=20_000u32 {
                canary += u32::from(sequence.draw().takes_canary(Share::from_parts(parts)));
                let exact = f64::from(n) * f64::from(parts) / 10_000.0;
                prop_assert!((f64::from(canary) - exact).abs() <= 5.0, "{canary} of {n} at {parts}/10000");
            }
        }

        #[test]
        fn a_higher_share_takes_no_point_from_the_canary(point: u64, lower in 0u16..=10_000, more in 0u16..=10_000) {
            let point = Point(point);
            if point.takes_canary(Share::from_parts(lower)) {
                prop_assert!(point.takes_canary(Share::from_parts(lower + more.min(10_000 - lower))));
            }
        }
    }

    #[test]
    fn none_and_all_are_exact() {
        for point in [0, 1, u64::MAX / 2, u64::MAX].map(Point) {
            assert!(!point.takes_canary(Share::NONE));
            assert!(point.takes_canary(Share::ALL));
        }
    }

    #[test]
    fn every_endpoint_is_picked_and_the_busy_one_less() {
        let usable = usable(3);
        let now = Moment::now();
        let load: Vec<_> = (0..10).map(|_| usable.ready[0].begin()).collect();
        let mut counts = [0; 3];
        for _ in 0..3000 {
            let picked = usable.pick(&Tried::default(), now).expect("three endpoints");
            counts[usize::from(picked.address().port()) - 1000] += 1;
        }
        assert_eq!(counts[0], 0, "two idle ones beat the one with ten requests in flight");
        assert!(counts[1] > 1000 && counts[2] > 1000, "{counts:?}");
        drop(load);
    }

    #[test]
    fn each_endpoint_is_tried_once_and_the_suspended_one_last() {
        let usable = usable(4);
        let now = Moment::now();
        usable.ready[2].suspend(now);
        let mut tried = Tried::default();
        let mut order = Vec::new();
        while let Some(picked) = usable.pick(&tried, now) {
            order.push(picked.address().port() - 1000);
            tried.add(picked);
        }
        assert_eq!(order.len(), 4);
        assert_eq!(order[3], 2);
    }

    #[test]
    fn terminating_endpoints_serve_only_when_no_ready_one_is_left() {
        let now = Moment::now();
        let mut usable = usable(1);
        usable.terminating = endpoints(1);
        usable.last_resort = endpoints(1);
        let mut tried = Tried::default();
        for expected in
            [usable.ready[0].clone(), usable.terminating[0].clone(), usable.last_resort[0].clone()]
        {
            let picked = usable.pick(&tried, now).expect("one is left");
            assert_eq!(picked.id(), expected.id());
            tried.add(picked);
        }
        assert!(usable.pick(&tried, now).is_none());
    }
}
