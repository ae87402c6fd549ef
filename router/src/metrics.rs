//! What is counted, and the page that `/metrics` shows. Every counter is an atomic reached by a handle in the table's
//! entries: the hot path looks no label up and takes no lock.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the latency histogram in seconds; a last bucket holds the rest.
const BOUNDS: [f64; 11] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5, 10.0];

/// A count that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn add_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How a request ended, as far as the client can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A status of this class (2 for 200-299) passed, body included.
    Class(u8),
    /// The client went away, or the body broke, before the last byte.
    Cut,
}

impl Outcome {
    /// The outcome of a complete response with this status.
    pub fn of(status: http::StatusCode) -> Outcome {
        Outcome::Class((status.as_u16() / 100) as u8)
    }
}

const CODES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "cut"];

/// One revision's requests by outcome, and how long they took.
#[derive(Debug)]
pub struct RevisionMetrics {
    service: String,
    revision: String,
    outcomes: [Counter; 6],
    buckets: [Counter; BOUNDS.len() + 1],
    nanos: AtomicU64,
}

impl RevisionMetrics {
    /// Zeros for a revision of a service.
    pub fn new(service: &str, revision: &str) -> RevisionMetrics {
        RevisionMetrics {
            service: service.to_owned(),
            revision: revision.to_owned(),
            outcomes: Default::default(),
            buckets: Default::default(),
            nanos: AtomicU64::new(0),
        }
    }

    /// The revision's name.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// Counts a request that ended, `took` after its arrival.
    pub fn ended(&self, outcome: Outcome, took: Duration) {
        let index = match outcome {
            Outcome::Class(class @ 1..=5) => usize::from(class) - 1,
            Outcome::Class(_) | Outcome::Cut => 5,
        };
        self.outcomes[index].add_one();
        let seconds = took.as_secs_f64();
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[bucket].add_one();
        self.nanos.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
    }

    /// All requests that ended.
    pub fn total(&self) -> u64 {
        self.outcomes.iter().map(Counter::get).sum()
    }
}

/// Why an attempt was repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryReason {
    /// The endpoint could not be connected.
    Connect,
    /// The connection gave the request back before anything was sent.
    Unsent,
    /// REFUSED_STREAM, or GOAWAY before the stream.
    Refused,
    /// 421: the endpoint is something else.
    Misdirected,
    /// 429 or 503 of the runtime that says it executed nothing.
    NotExecuted,
    /// Sent, and the connection broke before the response head.
    Lost,
}

const RETRY_REASONS: [&str; 6] = ["connect", "unsent", "refused", "misdirected", "not-executed", "lost"];

/// What is counted per service.
#[derive(Debug, Default)]
pub struct RouteMetrics {
    retries: [Counter; 6],
    /// Requests that the revision chosen could not take and the other one did.
    pub fallbacks: Counter,
    /// Requests that waited for an endpoint.
    pub held: Counter,
    /// Requests that the router itself answered with an error.
    pub errors: Counter,
    /// Lost requests that were not repeated because the budget was spent.
    pub over_budget: Counter,
    /// Requests whose body was too large to be held.
    pub unheld: Counter,
}

impl RouteMetrics {
    /// Counts a repeated attempt.
    pub fn retried(&self, reason: RetryReason) {
        self.retries[reason as usize].add_one();
    }

    /// How often an attempt was repeated for this reason.
    pub fn retries(&self, reason: RetryReason) -> u64 {
        self.retries[reason as usize].get()
    }
}

/// One service in the page.
pub struct ServiceSample<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its counters.
    pub metrics: &'a RouteMetrics,
    /// Requests that wait for an endpoint now.
    pub waiting: usize,
    /// Generation of the route in use.
    pub generation: i64,
    /// Its revisions.
    pub revisions: Vec<RevisionSample<'a>>,
}

/// One revision in the page.
pub struct RevisionSample<'a> {
    /// Its counters.
    pub metrics: &'a RevisionMetrics,
    /// Requests in flight.
    pub in_flight: u64,
    /// Share in force in 1/10,000.
    pub share: u16,
    /// Ready endpoints.
    pub ready: usize,
}

/// What is counted once per process.
pub struct ProcessSample {
    /// Open connections from clients.
    pub connections: usize,
    /// Bytes of request bodies held for a repetition.
    pub held_bytes: usize,
    /// Whether the router is ready.
    pub ready: bool,
}

/// The page in Prometheus' text format.
pub fn page(process: &ProcessSample, services: &[ServiceSample<'_>]) -> String {
    let mut page = Page(String::with_capacity(4096));
    page.family("serin_router_ready", "gauge", "1 once the first full snapshot is in use");
    page.line("serin_router_ready", "", u64::from(process.ready));
    page.family("serin_router_connections", "gauge", "open connections from clients");
    page.line("serin_router_connections", "", process.connections as u64);
    page.family("serin_router_held_body_bytes", "gauge", "request bodies held for a repetition");
    page.line("serin_router_held_body_bytes", "", process.held_bytes as u64);
    for_services(&mut page, services);
    for_revisions(&mut page, services);
    page.0
}

struct Page(String);

// Writing to a String cannot fail.
impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: u64) {
        let _ = match labels {
            "" => writeln!(self.0, "{name} {value}"),
            labels => writeln!(self.0, "{name}{{{labels}}} {value}"),
        };
    }
}

fn for_services(page: &mut Page, services: &[ServiceSample<'_>]) {
    type Get = fn(&ServiceSample<'_>) -> u64;
    let families: [(&str, &str, &str, Get); 7] = [
        (
            "serin_router_fallbacks_total",
            "counter",
            "requests that another revision than the chosen one took",
            |s| s.metrics.fallbacks.get(),
        ),
        ("serin_router_held_total", "counter", "requests that waited for an endpoint", |s| {
            s.metrics.held.get()
        }),
        ("serin_router_errors_total", "counter", "requests that the router answered with an error", |s| {
            s.metrics.errors.get()
        }),
        ("serin_router_over_budget_total", "counter", "lost requests not repeated for want of budget", |s| {
            s.metrics.over_budget.get()
        }),
        ("serin_router_unheld_total", "counter", "requests whose body was too large to be held", |s| {
            s.metrics.unheld.get()
        }),
        ("serin_router_waiting", "gauge", "requests that wait for an endpoint", |s| s.waiting as u64),
        ("serin_router_route_generation", "gauge", "generation of the route in use", |s| s.generation as u64),
    ];
    for (name, kind, help, get) in families {
        page.family(name, kind, help);
        for service in services {
            page.line(name, &format!("service=\"{}\"", service.name), get(service));
        }
    }
    page.family("serin_router_retries_total", "counter", "attempts repeated, by reason");
    for service in services {
        for (reason, count) in RETRY_REASONS.iter().zip(&service.metrics.retries) {
            let labels = format!("service=\"{}\",reason=\"{reason}\"", service.name);
            page.line("serin_router_retries_total", &labels, count.get());
        }
    }
}

fn for_revisions(page: &mut Page, services: &[ServiceSample<'_>]) {
    let revisions = || services.iter().flat_map(|service| &service.revisions);
    let labels = |sample: &RevisionSample<'_>| {
        format!("service=\"{}\",revision=\"{}\"", sample.metrics.service, sample.metrics.revision)
    };
    page.family("serin_router_in_flight", "gauge", "requests placed on the revision that have not ended");
    for revision in revisions() {
        page.line("serin_router_in_flight", &labels(revision), revision.in_flight);
    }
    page.family("serin_router_share", "gauge", "share in force in 1/10000");
    for revision in revisions() {
        page.line("serin_router_share", &labels(revision), u64::from(revision.share));
    }
    page.family("serin_router_ready_endpoints", "gauge", "ready endpoints");
    for revision in revisions() {
        page.line("serin_router_ready_endpoints", &labels(revision), revision.ready as u64);
    }
    page.family("serin_router_requests_total", "counter", "requests that ended, by class of status");
    for revision in revisions() {
        for (code, count) in CODES.iter().zip(&revision.metrics.outcomes) {
            let labels = format!("{},code=\"{code}\"", labels(revision));
            page.line("serin_router_requests_total", &labels, count.get());
        }
    }
    page.family("serin_router_request_seconds", "histogram", "arrival to last byte");
    for revision in revisions() {
        histogram(page, revision.metrics, &labels(revision));
    }
}

fn histogram(page: &mut Page, metrics: &RevisionMetrics, labels: &str) {
    let mut sum = 0;
    for (index, bucket) in metrics.buckets.iter().enumerate() {
        sum += bucket.get();
        let bound = BOUNDS.get(index).map_or_else(|| "+Inf".to_owned(), f64::to_string);
        page.line("serin_router_request_seconds_bucket", &format!("{labels},le=\"{bound}\""), sum);
    }
    let seconds = metrics.nanos.load(Ordering::Relaxed) as f64 / 1e9;
    let _ = writeln!(page.0, "serin_router_request_seconds_sum{{{labels}}} {seconds}");
    page.line("serin_router_request_seconds_count", labels, sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_shows_what_was_counted() {
        let revision = RevisionMetrics::new("iris", "iris-a");
        revision.ended(Outcome::of(http::StatusCode::OK), Duration::from_millis(3));
        revision.ended(Outcome::of(http::StatusCode::NOT_FOUND), Duration::from_secs(60));
        revision.ended(Outcome::Cut, Duration::from_micros(10));
        let route = RouteMetrics::default();
        route.retried(RetryReason::Lost);
        let services = [ServiceSample {
            name: "iris",
            metrics: &route,
            waiting: 2,
            generation: 7,
            revisions: vec![RevisionSample { metrics: &revision, in_flight: 5, share: 10_000, ready: 1 }],
        }];
        let page = page(&ProcessSample { connections: 1, held_bytes: 0, ready: true }, &services);
        for line in [
            "serin_router_requests_total{service=\"iris\",revision=\"iris-a\",code=\"2xx\"} 1",
            "serin_router_requests_total{service=\"iris\",revision=\"iris-a\",code=\"4xx\"} 1",
            "serin_router_requests_total{service=\"iris\",revision=\"iris-a\",code=\"cut\"} 1",
            "serin_router_request_seconds_bucket{service=\"iris\",revision=\"iris-a\",le=\"0.005\"} 2",
            "serin_router_request_seconds_bucket{service=\"iris\",revision=\"iris-a\",le=\"+Inf\"} 3",
            "serin_router_retries_total{service=\"iris\",reason=\"lost\"} 1",
            "serin_router_in_flight{service=\"iris\",revision=\"iris-a\"} 5",
            "serin_router_route_generation{service=\"iris\"} 7",
        ] {
            assert!(page.lines().any(|l| l == line), "missing {line} in\n{page}");
        }
        assert!(revision.buckets.len() <= 12);
    }
}
