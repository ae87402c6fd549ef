//! Ending without losing a request. After SIGTERM a pod is still sent requests until every router and kube-proxy has
//! heard of it, so the server goes on as before and exits when nobody has asked for a while, or at a limit.
//!
//! [`Drain`] counts; [`next`] decides and is pure; [`finished`] waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How long to wait for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Quiet time after which the server exits.
    pub idle: Duration,
    /// Time after which it exits in any case.
    pub limit: Duration,
}

/// What is going on, shared by all connections.
pub struct Drain {
    origin: Instant,
    draining: AtomicBool,
    in_flight: AtomicUsize,
    /// When the last request came, in milliseconds since `origin`; kept only while draining.
    last_request: AtomicU64,
    quiet: Notify,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            origin: Instant::now(),
            draining: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            last_request: AtomicU64::new(0),
            quiet: Notify::new(),
        }
    }
}

impl Drain {
    /// Notes a request; it counts until the guard is dropped.
    pub fn request(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        if self.is_draining() {
            self.touch();
        }
        InFlight(self.clone())
    }

    /// Whether the server is on its way out.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Requests that are being answered.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    fn touch(&self) {
        let now = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_request.store(now, Ordering::Release);
    }
}

/// One request that is being answered.
pub struct InFlight(Arc<Drain>);

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 && self.0.is_draining() {
            self.0.touch();
            self.0.quiet.notify_one();
        }
    }
}

/// What to do while draining.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Leave.
    Exit,
    /// Look again after this time, or as soon as nothing is in flight.
    Wait(Duration),
}

/// Decides, given the times since the signal and since the last request or answer.
pub fn next(limits: Limits, in_flight: usize, since_signal: Duration, since_last: Duration) -> Next {
    let until_limit = limits.limit.saturating_sub(since_signal);
    let until_idle = if in_flight > 0 { until_limit } else { limits.idle.saturating_sub(since_last) };
    match until_idle.min(until_limit) {
        Duration::ZERO => Next::Exit,
        wait => Next::Wait(wait),
    }
}

/// Begins the drain and returns when the server is to exit.
pub async fn finished(drain: &Arc<Drain>, limits: Limits) {
    let signal = Instant::now();
    drain.touch();
    drain.draining.store(true, Ordering::Release);
    loop {
        let last = drain.origin + Duration::from_millis(drain.last_request.load(Ordering::Acquire));
        match next(limits, drain.in_flight(), signal.elapsed(), last.elapsed()) {
            Next::Exit => return,
            Next::Wait(wait) => {
                let _ = tokio::time::timeout(wait, drain.quiet.notified()).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn it_leaves_when_quiet_or_late() {
        let limits = Limits { idle: seconds(3), limit: seconds(60) };
        let check = |in_flight, since_signal, since_last, expect| {
            assert_eq!(next(limits, in_flight, seconds(since_signal), seconds(since_last)), expect);
        };
        check(0, 0, 0, Next::Wait(seconds(3)));
        check(0, 2, 2, Next::Wait(seconds(1)));
        check(0, 3, 3, Next::Exit);
        check(0, 30, 1, Next::Wait(seconds(2)));
        check(0, 59, 0, Next::Wait(seconds(1)));
        check(4, 10, 10, Next::Wait(seconds(50)));
        check(4, 60, 0, Next::Exit);
        let at_once = Limits { idle: Duration::ZERO, limit: seconds(60) };
        assert_eq!(next(at_once, 0, Duration::ZERO, Duration::ZERO), Next::Exit);
        assert_eq!(next(at_once, 1, Duration::ZERO, Duration::ZERO), Next::Wait(seconds(60)));
    }

    #[tokio::test]
    async fn the_last_answer_ends_the_wait() {
        let drain = Arc::new(Drain::default());
        let request = drain.request();
        let limits = Limits { idle: Duration::ZERO, limit: seconds(600) };
        let finished = finished(&drain, limits);
        tokio::pin!(finished);
        assert!(futures::poll!(&mut finished).is_pending());
        assert!(drain.is_draining());
        drop(request);
        finished.await;
        assert_eq!(drain.in_flight(), 0);
    }
}
