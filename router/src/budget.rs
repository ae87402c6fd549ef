//! How many lost requests may be repeated: 20 % of a service's requests and 10 a second beside. Costs the hot path
//! nothing: what was earned is worked out from the request counters when a repetition asks for it.

use std::time::Instant;

use parking_lot::Mutex;

/// Of how many requests one earns a repetition.
const REQUESTS_PER_RETRY: f64 = 5.0;
/// Repetitions earned per second without any request.
const PER_SECOND: f64 = 10.0;
/// What is saved up at most: ten seconds without requests, or what 5,000 requests earn.
const MOST_SAVED: f64 = 1000.0;

/// One service's budget.
#[derive(Debug)]
pub struct Budget(Mutex<State>);

#[derive(Debug)]
struct State {
    saved: f64,
    requests_seen: u64,
    at: Instant,
}

impl Budget {
    /// A budget that starts with one second's worth.
    pub fn new(now: Instant) -> Budget {
        Budget(Mutex::new(State { saved: PER_SECOND, requests_seen: 0, at: now }))
    }

    /// Takes one repetition, if there is one. `requests`: how many the service has had so far.
    pub fn take(&self, requests: u64, now: Instant) -> bool {
        let mut state = self.0.lock();
        let new_requests = requests.saturating_sub(state.requests_seen) as f64;
        let seconds = now.saturating_duration_since(state.at).as_secs_f64().min(10.0);
        state.saved =
            (state.saved + new_requests / REQUESTS_PER_RETRY + seconds * PER_SECOND).min(MOST_SAVED);
        state.requests_seen = requests;
        state.at = now;
        let enough = state.saved >= 1.0;
        if enough {
            state.saved -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn taken(budget: &Budget, requests: u64, now: Instant) -> u32 {
        let mut count = 0;
        while count < 10_000 && budget.take(requests, now) {
            count += 1;
        }
        count
    }

    #[test]
    fn a_fifth_of_the_requests_and_ten_a_second() {
        let start = Instant::now();
        let budget = Budget::new(start);
        assert_eq!(taken(&budget, 0, start), 10);
        assert_eq!(taken(&budget, 1000, start), 200);
        assert_eq!(taken(&budget, 1000, start + Duration::from_secs(3)), 30);
        assert_eq!(taken(&budget, 1_000_000, start + Duration::from_secs(3)), 1000, "saved up to a bound");
    }
}
