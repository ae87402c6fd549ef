//! One pod as the router sees it: load, latency, recent failures and its connections. Shared by every generation of the
//! table, so that a new table starts with what is known. No IO here; [`pool`] connects.

pub mod pool;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use self::pool::Pool;

/// How long an endpoint that could not be connected is wanted less than the others.
const SUSPENSION: Duration = Duration::from_secs(1);
/// Time constant of the latency average.
const DECAY_NANOS: f64 = 5e9;
/// What an endpoint that has answered nothing yet is assumed to take.
const FIRST_LATENCY_NANOS: f64 = 1e6;
/// How long the retries of requests that were in flight on a lost endpoint stay outside of the budget.
const LOSS_WINDOW: Duration = Duration::from_secs(5);

static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A point in time in nanoseconds since the process's first, so that it fits an atomic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// Now.
    pub fn now() -> Moment {
        Moment::from(Instant::now())
    }
}

impl From<Instant> for Moment {
    fn from(instant: Instant) -> Moment {
        let nanos = instant.saturating_duration_since(*EPOCH).as_nanos();
        Moment(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// A pod at an address.
#[derive(Debug)]
#[repr(align(128))]
pub struct Endpoint {
    in_flight: AtomicU32,
    /// Peak EWMA of the time to the response head in nanoseconds, as the bits of an f64; 0 before the first answer.
    latency: AtomicU64,
    /// When `latency` was last written.
    measured: AtomicU64,
    /// Wanted less until then.
    suspended_until: AtomicU64,
    id: u64,
    uid: Arc<str>,
    address: SocketAddr,
    loss: Mutex<Option<Loss>>,
    /// Open connections.
    pub pool: Pool,
}

/// The requests that a lost endpoint took with it, whose retries do not count against the budget.
#[derive(Debug)]
struct Loss {
    since: Instant,
    retries_left: u32,
}

impl Endpoint {
    /// The pod with this uid at this address; idle connections to it are closed after `idle_timeout`.
    pub fn new(uid: impl Into<Arc<str>>, address: SocketAddr, idle_timeout: Duration) -> Arc<Endpoint> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        Arc::new(Endpoint {
            in_flight: AtomicU32::new(0),
            latency: AtomicU64::new(0),
            measured: AtomicU64::new(0),
            suspended_until: AtomicU64::new(0),
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            uid: uid.into(),
            address,
            loss: Mutex::new(None),
            pool: Pool::new(address, idle_timeout),
        })
    }

    /// Unique in this process: tells two endpoints apart even where a pod's uid is the same.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The pod's uid.
    pub fn uid(&self) -> &Arc<str> {
        &self.uid
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests sent to it that have not ended.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Counts a request until the guard is dropped.
    pub fn begin(self: &Arc<Endpoint>) -> Load {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Load(self.clone())
    }

    /// What another request would cost here: requests in flight times the latency expected. The latency fades with
    /// time, so that one slow answer does not keep an idle endpoint out for ever.
    pub fn cost(&self, now: Moment) -> f64 {
        let latency = f64::from_bits(self.latency.load(Ordering::Relaxed));
        let latency = if latency == 0.0 { FIRST_LATENCY_NANOS } else { latency };
        let age = now.0.saturating_sub(self.measured.load(Ordering::Relaxed)) as f64;
        f64::from(self.in_flight() + 1) * latency / (1.0 + age / DECAY_NANOS)
    }

    /// Whether another request is better off here than there. One that has answered nothing yet is compared by its
    /// requests in flight alone: a new pod gets its part at once, and no rush before it has shown what it can do.
    pub fn is_better_than(&self, other: &Endpoint, now: Moment) -> bool {
        let known = |endpoint: &Endpoint| endpoint.latency.load(Ordering::Relaxed) != 0;
        if known(self) && known(other) {
            self.cost(now) < other.cost(now)
        } else {
            self.in_flight() < other.in_flight()
        }
    }

    /// Takes in how long a response head took: a slower one counts at once, a faster one by and by (peak EWMA).
    /// Two writers at once may lose a sample, which costs less than a lock.
    pub fn answered(&self, took: Duration, now: Moment) {
        let sample = took.as_nanos() as f64;
        let average = f64::from_bits(self.latency.load(Ordering::Relaxed));
        let age = now.0.saturating_sub(self.measured.swap(now.0, Ordering::Relaxed)) as f64;
        let average = if average == 0.0 || sample > average {
            sample
        } else {
            let weight = age / (age + DECAY_NANOS);
            average + (sample - average) * weight.max(0.01)
        };
        self.latency.store(average.to_bits(), Ordering::Relaxed);
    }

    /// Makes the endpoint wanted less for a moment: it could not be connected, or is something else than expected.
    pub fn suspend(&self, now: Moment) {
        let until = now.0.saturating_add(SUSPENSION.as_nanos() as u64);
        self.suspended_until.store(until, Ordering::Relaxed);
    }

    /// Whether it is wanted less at this moment.
    pub fn is_suspended(&self, now: Moment) -> bool {
        self.suspended_until.load(Ordering::Relaxed) > now.0
    }

    /// Says that a request was lost here, before its [`Load`] is dropped. True: its retry is one of those that were in
    /// flight when the endpoint was lost, and needs no budget.
    pub fn lost_one(&self) -> bool {
        let mut loss = self.loss.lock();
        let now = Instant::now();
        match &mut *loss {
            Some(loss) if now - loss.since < LOSS_WINDOW => match loss.retries_left.checked_sub(1) {
                Some(left) => {
                    loss.retries_left = left;
                    true
                }
                None => false,
            },
            _ => {
                *loss = Some(Loss { since: now, retries_left: self.in_flight().saturating_sub(1) });
                true
            }
        }
    }
}

/// A request in flight on an endpoint.
#[derive(Debug)]
pub struct Load(Arc<Endpoint>);

impl Load {
    /// The endpoint that carries it.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.0
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> Arc<Endpoint> {
        Endpoint::new("pod", ([127, 0, 0, 1], 1).into(), Duration::from_secs(1))
    }

    fn at(millis: u64) -> Moment {
        Moment(millis * 1_000_000)
    }

    #[test]
    fn a_slow_answer_counts_at_once_and_fades() {
        let endpoint = endpoint();
        endpoint.answered(Duration::from_millis(1), at(1));
        let fast = endpoint.cost(at(1));
        endpoint.answered(Duration::from_millis(100), at(2));
        let slow = endpoint.cost(at(2));
        assert!(slow > 90.0 * fast);
        assert!(endpoint.cost(at(20_000)) < slow / 4.0, "without traffic the cost fades");
        for n in 0..1000 {
            endpoint.answered(Duration::from_millis(1), at(3 + n));
        }
        assert!(endpoint.cost(at(1003)) < 2.0 * fast, "fast answers bring it down");
    }

    #[test]
    fn a_new_pod_is_compared_by_its_load_alone() {
        let (old, new) = (endpoint(), endpoint());
        old.answered(Duration::from_micros(10), at(1));
        assert!(!old.is_better_than(&new, at(1)) && !new.is_better_than(&old, at(1)), "both are idle");
        let _load = new.begin();
        assert!(old.is_better_than(&new, at(1)));
        new.answered(Duration::from_millis(10), at(1));
        let _more = (0..3).map(|_| old.begin()).collect::<Vec<_>>();
        assert!(old.is_better_than(&new, at(1)), "three in flight here are done before one there");
    }

    #[test]
    fn load_counts_until_the_guard_is_dropped() {
        let endpoint = endpoint();
        let (one, two) = (endpoint.begin(), endpoint.begin());
        assert_eq!(endpoint.in_flight(), 2);
        drop(one);
        assert_eq!(endpoint.in_flight(), 1);
        drop(two);
        assert_eq!(endpoint.in_flight(), 0);
    }

    #[test]
    fn a_lost_endpoint_gives_back_what_was_in_flight_and_no_more() {
        let endpoint = endpoint();
        let loads: Vec<_> = (0..3).map(|_| endpoint.begin()).collect();
        let covered = loads
            .into_iter()
            .map(|load| {
                let covered = endpoint.lost_one();
                drop(load);
                covered
            })
            .collect::<Vec<_>>();
        assert_eq!(covered, [true, true, true]);
        let _late = endpoint.begin();
        assert!(!endpoint.lost_one(), "a further one in the same window needs the budget");
    }
}
