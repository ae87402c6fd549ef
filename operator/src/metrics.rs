//! What the operator counts, and how it is read (OpenMetrics text).

use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Result of a pass: `ok`, or the category of the error.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

/// A write: what was done, and to which kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Write {
    verb: &'static str,
    kind: String,
}

/// Counters of the operator. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    passes: Family<Outcome, Counter>,
    duration: Histogram,
    route_delay: Histogram,
    writes: Family<Write, Counter>,
    leader: Gauge,
    routers: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let buckets = || [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0].into_iter();
        let mut registry = Registry::with_prefix("serin_operator");
        let passes = Family::default();
        let duration = Histogram::new(buckets());
        let route_delay = Histogram::new(buckets());
        let writes = Family::default();
        let (leader, routers) = (Gauge::default(), Gauge::default());
        registry.register("reconciles", "Passes over InferenceServices by result", passes.clone());
        registry.register("reconcile_seconds", "How long a pass takes", duration.clone());
        let help = "From the beginning of a pass to the written route, where it wrote one";
        registry.register("route_write_seconds", help, route_delay.clone());
        registry.register("writes", "Writes to the API server, events apart", writes.clone());
        registry.register("leader", "1 while this process holds the lease", leader.clone());
        registry.register("routers_connected", "Routers whose acknowledgements are heard", routers.clone());
        Metrics { registry: Arc::new(registry), passes, duration, route_delay, writes, leader, routers }
    }
}

impl Metrics {
    /// A pass has ended: `ok` or the category of its error, and its seconds.
    pub fn passed(&self, result: &'static str, seconds: f64) {
        self.passes.get_or_create(&Outcome { result }).inc();
        self.duration.observe(seconds);
    }

    /// A route was written so many seconds after its pass began.
    pub fn route_written(&self, seconds: f64) {
        self.route_delay.observe(seconds);
    }

    /// Something was written.
    pub fn wrote(&self, verb: &'static str, kind: &str) {
        self.writes.get_or_create(&Write { verb, kind: kind.to_owned() }).inc();
    }

    /// This process leads, or no longer.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// All of it as OpenMetrics text; `routers`: how many routers answer now.
    ///
    /// # Errors
    /// Only when the text cannot be written.
    pub fn text(&self, routers: usize) -> Result<String, std::fmt::Error> {
        self.routers.set(i64::try_from(routers).unwrap_or(i64::MAX));
        let mut all = String::new();
        text::encode(&mut all, &self.registry)?;
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_read() {
        let metrics = Metrics::default();
        metrics.passed("ok", 0.003);
        metrics.wrote("apply", "InferenceRoute");
        metrics.leads(true);
        let text = metrics.text(2).unwrap();
        for line in [
            "serin_operator_reconciles_total{result=\"ok\"} 1",
            "serin_operator_writes_total{verb=\"apply\",kind=\"InferenceRoute\"} 1",
            "serin_operator_leader 1",
            "serin_operator_routers_connected 2",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
