//! The bounded queue in front of the instances: many request tasks put jobs in, each instance thread pulls the next
//! one when it is free. No IO; it blocks only those who pull.

use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;

/// Something that may have become pointless while it waited.
pub trait Entry {
    /// Whether nobody waits for the result any more.
    fn is_abandoned(&self) -> bool;
}

/// Why an entry was not taken; it is given back.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused<T> {
    /// As many entries wait as may wait.
    Full(T),
    /// Nobody will pull again.
    Closed(T),
}

/// First in, first out, with a limit.
pub struct Queue<T> {
    state: Mutex<State<T>>,
    arrived: Condvar,
    capacity: usize,
}

struct State<T> {
    entries: VecDeque<T>,
    waiting_pullers: usize,
    closed: bool,
}

impl<T: Entry> Queue<T> {
    /// A queue in which at most `capacity` entries wait (at least 1).
    pub fn new(capacity: usize) -> Self {
        let state = State { entries: VecDeque::new(), waiting_pullers: 0, closed: false };
        Self { state: Mutex::new(state), arrived: Condvar::new(), capacity: capacity.max(1) }
    }

    /// Puts an entry at the end. A full queue first throws out what was abandoned, so that callers who gave up do not
    /// keep others from being served.
    ///
    /// # Errors
    /// The queue is full or closed.
    pub fn push(&self, entry: T) -> Result<(), Refused<T>> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Refused::Closed(entry));
        }
        if state.entries.len() >= self.capacity {
            state.entries.retain(|waiting| !waiting.is_abandoned());
            if state.entries.len() >= self.capacity {
                return Err(Refused::Full(entry));
            }
        }
        state.entries.push_back(entry);
        let wake = state.waiting_pullers > 0;
        drop(state);
        if wake {
            self.arrived.notify_one();
        }
        Ok(())
    }

    /// Takes the oldest entry that somebody still waits for, waiting for one if need be. `None` once the queue is
    /// closed and empty.
    pub fn pull(&self) -> Option<T> {
        let mut state = self.state.lock();
        loop {
            while let Some(entry) = state.entries.pop_front() {
                if !entry.is_abandoned() {
                    return Some(entry);
                }
            }
            if state.closed {
                return None;
            }
            state.waiting_pullers += 1;
            self.arrived.wait(&mut state);
            state.waiting_pullers -= 1;
        }
    }

    /// How many entries wait.
    pub fn len(&self) -> usize {
        self.state.lock().entries.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes no more; what waits is still given out.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.arrived.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[derive(Debug)]
    struct Job(u32, Arc<AtomicBool>);

    impl Entry for Job {
        fn is_abandoned(&self) -> bool {
            self.1.load(Ordering::Relaxed)
        }
    }

    fn job(number: u32) -> (Job, Arc<AtomicBool>) {
        let abandoned = Arc::new(AtomicBool::new(false));
        (Job(number, abandoned.clone()), abandoned)
    }

    fn pulled(queue: &Queue<Job>) -> Option<u32> {
        queue.pull().map(|job| job.0)
    }

    #[test]
    fn a_full_queue_refuses_until_somebody_gives_up() {
        let queue = Queue::new(2);
        let (first, gave_up) = job(1);
        queue.push(first).expect("room");
        queue.push(job(2).0).expect("room");
        assert!(matches!(queue.push(job(3).0), Err(Refused::Full(Job(3, _)))));
        gave_up.store(true, Ordering::Relaxed);
        queue.push(job(4).0).expect("the abandoned one made room");
        queue.close();
        assert_eq!((pulled(&queue), pulled(&queue), pulled(&queue)), (Some(2), Some(4), None));
    }

    #[test]
    fn the_abandoned_are_passed_over() {
        let queue = Queue::new(8);
        let (first, gave_up) = job(1);
        queue.push(first).expect("room");
        queue.push(job(2).0).expect("room");
        gave_up.store(true, Ordering::Relaxed);
        assert_eq!(pulled(&queue), Some(2));
    }

    #[test]
    fn a_closed_queue_gives_out_what_it_has_and_wakes_everybody() {
        let queue = Arc::new(Queue::new(8));
        let pullers: Vec<_> = (0..3)
            .map(|_| {
                let queue = queue.clone();
                std::thread::spawn(move || std::iter::from_fn(|| queue.pull()).count())
            })
            .collect();
        for number in 0..5 {
            queue.push(job(number).0).expect("room");
        }
        queue.close();
        assert!(matches!(queue.push(job(9).0), Err(Refused::Closed(_))));
        let pulled: usize = pullers.into_iter().map(|puller| puller.join().expect("no panic")).sum();
        assert_eq!(pulled, 5);
    }
}
