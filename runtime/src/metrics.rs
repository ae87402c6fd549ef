//! What the runtime counts, in Prometheus' words. Every name begins with `serin_runtime_`; no histogram has more than
//! twelve buckets, and no label takes a value that a caller chooses.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: u16,
}

/// All metrics and the registry that writes them.
pub struct Metrics {
    registry: Registry,
    requests: Family<CodeLabel, Counter>,
    /// The one that is counted most, without a look into the family.
    requests_ok: Counter,
    /// Seconds from a request's head to its answer, inference only.
    pub request_seconds: Histogram,
    /// Seconds that the model itself ran.
    pub run_seconds: Histogram,
    /// Requests that are being answered.
    pub in_flight: Gauge,
    /// Requests that wait for an instance.
    pub queue_depth: Gauge,
    /// Seconds that the model took from the start of the fetch to ready.
    pub model_load_seconds: Gauge<f64, AtomicU64>,
    /// Bytes of the model that were fetched so far.
    pub model_bytes: Gauge,
    /// 1 once the model answers.
    pub ready: Gauge,
    /// Threads of one instance.
    pub intra_threads: Gauge,
}

const SECONDS: [f64; 12] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0];

impl Metrics {
    /// Registers everything at zero.
    pub fn new() -> Self {
        let requests = Family::<CodeLabel, Counter>::default();
        let mut metrics = Self {
            registry: Registry::with_prefix("serin_runtime"),
            requests_ok: requests.get_or_create_owned(&CodeLabel { code: 200 }),
            requests,
            request_seconds: Histogram::new(SECONDS),
            run_seconds: Histogram::new(SECONDS),
            in_flight: Gauge::default(),
            queue_depth: Gauge::default(),
            model_load_seconds: Gauge::default(),
            model_bytes: Gauge::default(),
            ready: Gauge::default(),
            intra_threads: Gauge::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("requests", "Inference requests answered, by status code", self.requests.clone());
        registry.register(
            "request_duration_seconds",
            "Time from a request's head to its answer",
            self.request_seconds.clone(),
        );
        registry.register("model_run_duration_seconds", "Time the model ran", self.run_seconds.clone());
        registry.register("requests_in_flight", "Requests being answered", self.in_flight.clone());
        registry.register("queue_depth", "Requests that wait for an instance", self.queue_depth.clone());
        registry.register(
            "model_load_seconds",
            "Time from the start of the fetch to ready",
            self.model_load_seconds.clone(),
        );
        registry.register(
            "model_fetched_bytes",
            "Bytes of the model fetched so far",
            self.model_bytes.clone(),
        );
        registry.register("model_ready", "1 once the model answers", self.ready.clone());
        registry.register("intra_op_threads", "Threads of one instance", self.intra_threads.clone());
    }

    /// Counts one answer.
    pub fn count_request(&self, code: u16) {
        if code == 200 {
            self.requests_ok.inc();
        } else {
            self.requests.get_or_create(&CodeLabel { code }).inc();
        }
    }

    /// All metrics in the OpenMetrics text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_what_dashboards_will_ask_for() {
        let metrics = Metrics::new();
        metrics.count_request(200);
        metrics.count_request(400);
        metrics.queue_depth.set(3);
        metrics.request_seconds.observe(0.0002);
        let text = metrics.text();
        for line in [
            "serin_runtime_requests_total{code=\"200\"} 1",
            "serin_runtime_requests_total{code=\"400\"} 1",
            "serin_runtime_queue_depth 3",
            "serin_runtime_request_duration_seconds_bucket{le=\"0.00025\"} 1",
            "serin_runtime_model_ready 0",
        ] {
            assert!(text.lines().any(|got| got == line), "`{line}` is not in\n{text}");
        }
        assert!(SECONDS.len() <= 12);
    }
}
