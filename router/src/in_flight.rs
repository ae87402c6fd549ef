//! Counting requests so that an acknowledgement is true: "the router uses generation g, and 0 are in flight on revision R".
//!
//! # The invariant
//! When [`Tables::publish`] has returned and a revision's count is then read as 0, no request that was placed by an older table
//! can reach the revision any more.
//!
//! A request is placed by [`Tables::enter`]: (1) it reads the epoch, (2) reads the table and chooses, (3) adds itself to the
//! revision's count, (4) reads the epoch again, and starts over when it has changed. `publish` (a) stores the table, (b) raises
//! the epoch; the count is read (c) after that. All of 1, 3, 4, b and c are sequentially consistent. If c reads a
//! count without the request's addition, then 3 comes after c, so 4 comes after b: either the request began after b, too, and
//! thus read the new table, or it sees another epoch and starts over by the new table. The request stays counted until the last
//! byte of its response has passed or its body is dropped; so "counted" begins before the table is read for good.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::{ArcSwap, Guard};
use tokio::sync::Notify;

use crate::metrics::RevisionMetrics;

/// What outlives the tables that name a revision.
#[derive(Debug)]
pub struct RevisionState {
    count: Count,
    /// Whether somebody waits for the count to fall to 0: the revision has no share.
    watched: AtomicBool,
    /// The count fell to 0 while watched; taken by whoever reports it.
    fell: AtomicBool,
    signal: Arc<Notify>,
    /// Requests by outcome and time.
    pub metrics: RevisionMetrics,
}

#[derive(Debug)]
#[repr(align(128))]
struct Count(AtomicU64);

impl RevisionState {
    /// A revision without requests; `signal` is notified when its count falls to 0 while it is watched.
    pub fn new(service: &str, revision: &str, signal: Arc<Notify>) -> Arc<RevisionState> {
        Arc::new(RevisionState {
            count: Count(AtomicU64::new(0)),
            watched: AtomicBool::new(false),
            fell: AtomicBool::new(false),
            signal,
            metrics: RevisionMetrics::new(service, revision),
        })
    }

    /// The revision's name.
    pub fn name(&self) -> &str {
        self.metrics.revision()
    }

    /// Requests placed on the revision that have not ended.
    pub fn in_flight(&self) -> u64 {
        self.count.0.load(Ordering::SeqCst)
    }

    /// Whether a fall of the count to 0 is to be signalled. Set before the count is reported: then either the report
    /// has the 0, or the signal comes.
    pub fn watch(&self, watched: bool) {
        self.watched.store(watched, Ordering::SeqCst);
    }

    /// Whether the count fell to 0 since the last call.
    pub fn take_fell(&self) -> bool {
        self.fell.swap(false, Ordering::SeqCst)
    }

    /// Counts one request until [`RevisionState::leave`].
    pub fn enter(&self) {
        self.count.0.fetch_add(1, Ordering::SeqCst);
    }

    /// Ends what [`RevisionState::enter`] began.
    pub fn leave(&self) {
        if self.count.0.fetch_sub(1, Ordering::SeqCst) == 1 && self.watched.load(Ordering::SeqCst) {
            self.fell.store(true, Ordering::SeqCst);
            self.signal.notify_one();
        }
    }
}

/// The table in use and its epoch.
#[derive(Debug)]
pub struct Tables<T> {
    current: ArcSwap<T>,
    epoch: AtomicU64,
}

impl<T> Tables<T> {
    /// Begins with this table.
    pub fn new(table: T) -> Tables<T> {
        Tables { current: ArcSwap::from_pointee(table), epoch: AtomicU64::new(0) }
    }

    /// The current table, for reading only: a request is placed by [`Tables::enter`].
    pub fn load(&self) -> Guard<Arc<T>> {
        self.current.load()
    }

    /// Puts a table in use. Whoever reports what is in flight does so after this.
    pub fn publish(&self, table: T) {
        self.current.store(Arc::new(table));
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// Places a request: `place` chooses by the table and counts the request, by a guard in its answer. It is called
    /// again, and the earlier answer dropped, when the table changed meanwhile.
    pub fn enter<P>(&self, mut place: impl FnMut(&T) -> P) -> P {
        loop {
            let epoch = self.epoch.load(Ordering::SeqCst);
            let placed = place(&self.current.load());
            if self.epoch.load(Ordering::SeqCst) == epoch {
                return placed;
            }
            drop(placed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// The table of the test: which of two revisions takes the requests, and in which generation.
    struct Turn {
        revision: usize,
    }

    struct Entered<'a>(&'a RevisionState, usize);

    impl Drop for Entered<'_> {
        fn drop(&mut self) {
            self.0.leave();
        }
    }

    /// The promise under stress: once a table without revision R is published and R's count was read as 0, nobody is
    /// found inside R until R is put in use again.
    #[test]
    fn nobody_enters_a_revision_that_was_reported_empty() {
        let signal = Arc::new(Notify::new());
        let revisions =
            [RevisionState::new("s", "a", signal.clone()), RevisionState::new("s", "b", signal.clone())];
        let closed = [AtomicBool::new(false), AtomicBool::new(true)];
        let tables = Tables::new(Turn { revision: 0 });
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let entered = tables.enter(|turn| {
                            let state = &*revisions[turn.revision];
                            // The gap between reading the table and being counted, made wide.
                            thread::yield_now();
                            state.enter();
                            Entered(state, turn.revision)
                        });
                        assert!(
                            !closed[entered.1].load(Ordering::SeqCst),
                            "a request runs on a revision that was reported empty"
                        );
                    }
                });
            }
            for round in 0..5_000usize {
                let (old, new) = (round % 2, (round + 1) % 2);
                closed[new].store(false, Ordering::SeqCst);
                tables.publish(Turn { revision: new });
                while revisions[old].in_flight() != 0 {
                    thread::yield_now();
                }
                closed[old].store(true, Ordering::SeqCst);
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(revisions.each_ref().map(|state| state.in_flight()), [0, 0]);
    }

    #[test]
    fn the_fall_to_zero_is_signalled_only_while_watched() {
        let state = RevisionState::new("s", "a", Arc::new(Notify::new()));
        state.enter();
        state.leave();
        assert!(!state.take_fell());
        state.enter();
        state.watch(true);
        state.enter();
        state.leave();
        assert!(!state.take_fell(), "one is still in flight");
        state.leave();
        assert!(state.take_fell());
        assert!(!state.take_fell(), "taken once");
    }
}
