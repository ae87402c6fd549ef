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
pub struct Tried(Vec<*const Endpoint>);

// The pointers are compared, never followed.
#[allow(unsafe_code)]
unsafe impl Send for Tried {}

impl Tried {
    /// Remembers an endpoint.
    pub fn add(&mut self, endpoint: &Arc<Endpoint>) {
        self.0.push(Arc::as_ptr(endpoint));
    }

    /// Forgets all, when a request starts over after a wait.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Whether nothing has been tried yet.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn has(&self, endpoint: &Arc<Endpoint>) -> bool {
        self.0.contains(&Arc::as_ptr(endpoint))
    }
}
