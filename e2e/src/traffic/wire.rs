//! What the test process and the traffic pod say to each other, as JSON. Types only, no IO.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A load to be started: an endless stream of requests at a fixed rate, whatever the answers do (open loop).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LoadSpec {
    /// The load's name in reports, and the prefix of its request ids.
    pub name: String,
    /// `host:port` that is called.
    pub target: String,
    /// The model's name in answers.
    pub model: String,
    /// Requests per second.
    pub rate: f64,
    /// Keep-alive connections that are held open and used in turn. More are opened while all of them are busy.
    pub connections: usize,
    /// How long the caller waits for the whole answer, in milliseconds.
    pub timeout_ms: u64,
    /// The requests, sent in turn.
    pub cases: Vec<Case>,
}

/// One request, and what each model answers to it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Case {
    /// Which protocol body and answer are written in.
    pub protocol: Protocol,
    /// Path of the request.
    pub path: String,
    /// The body, a JSON object. For [`Protocol::V2`] the field `id` is added to it.
    pub body: String,
    /// What is expected, by a name for the model (not the service's name: `a`, `b`, `v3_2`). Must differ from model to
    /// model, since the answer tells which one gave it.
    pub expected: BTreeMap<String, Expected>,
}

/// Protocol of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// `:predict` with `instances`.
    V1,
    /// `/infer` with `inputs`.
    V2,
}

/// What a model answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Expected {
    /// Every output, flat, each number within 1e-5.
    Outputs(BTreeMap<String, Vec<f64>>),
    /// The largest number of one output, within 2e-4; for models whose whole answer is too long to be carried.
    Top {
        /// Name of the output.
        output: String,
        /// How many numbers it has.
        length: usize,
        /// The largest one.
        score: f64,
    },
}

/// What one load has seen so far.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LoadReport {
    /// The load's name.
    pub name: String,
    /// What happened, split at each mark. Requests belong to the phase in which they were sent.
    pub phases: Vec<PhaseReport>,
    /// The first losses, in full.
    pub losses: Vec<Loss>,
    /// Requests that met a connection which the server had closed, were given back with no byte written, and were sent
    /// once more, as HTTP clients do.
    pub resent: u64,
    /// Connections that the server closed and the client opened again.
    pub reopened: u64,
    /// Connections opened in all.
    pub opened: u64,
}

/// What happened between two marks.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PhaseReport {
    /// Its name.
    pub name: String,
    /// Requests sent in it.
    pub sent: u64,
    /// Of those, how many have ended, well or not.
    pub completed: u64,
    /// Right and complete answers.
    pub answered: Vec<Answered>,
    /// Requests that did not get one.
    pub lost: u64,
    /// Requests of earlier phases under way when it began.
    pub in_flight_at_start: u64,
    /// Requests of its own under way when it ended, or now.
    pub in_flight_at_end: u64,
    /// Length in milliseconds so far.
    pub millis: u64,
    /// Latency from the moment a request was due to the last byte of its answer, in microseconds.
    pub latency: Latency,
}

/// Right and complete answers of one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// The revision that the response header names.
    pub revision: String,
    /// The model that gives such answers.
    pub model: String,
    /// How many.
    pub count: u64,
    /// Id of the first of them.
    pub first_id: String,
}

/// Percentiles in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// Median.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
    /// The longest.
    pub max: u64,
}

/// A request that did not get one complete and right answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// `x-request-id`.
    pub id: String,
    /// Phase in which it was sent.
    pub phase: String,
    /// When it was sent, microseconds since 1970.
    pub sent_at: u64,
    /// How long it took until it was given up, in microseconds.
    pub took: u64,
    /// What was wrong: `connect`, `connection`, `truncated`, `timeout`, `status`, `id`, `revision`, `content`.
    pub kind: String,
    /// The whole story: error, status.
    pub detail: String,
    /// HTTP status, where one came.
    pub status: Option<u16>,
    /// `Serin-Cause`, where the router sent one.
    pub cause: Option<String>,
    /// `Serin-Revision`, where one came.
    pub revision: Option<String>,
    /// The first bytes of the body.
    pub body: String,
}

/// When a revision answered for the first time after it was asked to be watched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstAnswer {
    /// When the request was sent, microseconds since 1970.
    pub sent_at: u64,
    /// When its last byte came.
    pub answered_at: u64,
}

/// Two or more ways to the same model, called in turn, one request at a time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Comparison {
    /// Name and `host:port` of each way.
    pub ways: Vec<(String, String)>,
    /// The request.
    pub case: Case,
    /// The model's name in answers.
    pub model: String,
    /// How many requests on each way are counted.
    pub requests: u64,
}
