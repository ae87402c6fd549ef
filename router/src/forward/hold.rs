//! Requests that wait for an endpoint: bounded in number and in time, woken by the route's next generation.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout_at;

use crate::error::Failure;
use crate::table::Route;

/// How long a request waits before it tries endpoints again that are in the table and could not be reached.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// One request's place among those that wait.
#[derive(Debug)]
pub struct Hold {
    route: Arc<Route>,
    changed: watch::Receiver<u64>,
    until: Instant,
}

impl Hold {
    /// Joins those that wait, until the route's hold time or the request's deadline is over.
    ///
    /// # Errors
    /// When `limit` requests wait already.
    pub fn begin(route: &Arc<Route>, limit: usize, deadline: Option<Instant>) -> Result<Hold, Failure> {
        let before = route.state.waiting.fetch_add(1, Ordering::Relaxed);
        let until = Instant::now() + route.hold;
        let hold = Hold {
            route: route.clone(),
            changed: route.state.changed.subscribe(),
            until: deadline.map_or(until, |deadline| deadline.min(until)),
        };
        if before >= limit {
            return Err(Failure::HoldQueueFull(route.name.to_string()));
        }
        route.state.metrics.held.add_one();
        Ok(hold)
    }

    /// Waits until the route has changed; or, with `unreachable` endpoints in the table, until it is time to try them again.
    ///
    /// # Errors
    /// When the time to wait is over.
    pub async fn wait(&mut self, unreachable: bool) -> Result<(), Failure> {
        let soon = Instant::now() + TRY_AGAIN_AFTER;
        let until = if unreachable { soon.min(self.until) } else { self.until };
        match timeout_at(until.into(), self.changed.changed()).await {
            Ok(Ok(())) => Ok(()),
            Err(_) if until < self.until => Ok(()),
            _ => Err(self.over(unreachable)),
        }
    }

    fn over(&self, unreachable: bool) -> Failure {
        let why = if unreachable { "could be reached" } else { "was ready" };
        Failure::NoEndpoint(format!(
            "no endpoint of `{}` {why} within {} s",
            self.route.name,
            self.route.hold.as_secs()
        ))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.route.state.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
