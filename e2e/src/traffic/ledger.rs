//! Every request of one load: when it was sent, in which phase, and how it ended. Pure but for the clock it is handed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::wire::{Answered, FirstAnswer, Latency, LoadReport, Loss, PhaseReport};

/// Losses kept in full; all are counted.
const LOSSES_KEPT: usize = 100;

/// A request under way.
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    /// Number of the request, counted from 1.
    pub number: u64,
    phase: usize,
    /// When it was sent.
    pub sent: Instant,
    /// When it was sent, microseconds since 1970.
    pub sent_at: u64,
}

/// How a request ended.
#[derive(Debug)]
pub enum Outcome {
    /// One complete answer, right for `model`.
    Answered {
        /// The revision that the response names.
        revision: String,
        /// The model that gives such answers.
        model: String,
    },
    /// Anything else. `id`, `phase`, `sent_at` and `took` are filled in by the ledger.
    Lost(Box<Loss>),
}

/// The account of one load.
#[derive(Debug)]
pub struct Ledger {
    name: String,
    sent: u64,
    phases: Vec<Phase>,
    losses: Vec<Loss>,
    watched: Option<Watched>,
    /// See [`LoadReport::resent`].
    pub resent: u64,
    /// See [`LoadReport::reopened`].
    pub reopened: u64,
    /// See [`LoadReport::opened`].
    pub opened: u64,
}

#[derive(Debug)]
struct Phase {
    name: String,
    began: Instant,
    ended: Option<Instant>,
    sent: u64,
    completed: u64,
    lost: u64,
    in_flight_at_start: u64,
    in_flight_at_end: u64,
    answered: BTreeMap<(String, String), (u64, String)>,
    latency: Histogram<u64>,
}

#[derive(Debug)]
struct Watched {
    revision: String,
    since: u64,
    first: Option<FirstAnswer>,
}

impl Ledger {
    /// An empty account whose first phase is `start`.
    pub fn new(name: &str, now: Instant) -> Self {
        Self {
            name: name.to_owned(),
            sent: 0,
            phases: vec![Phase::new("start", now, 0)],
            losses: Vec::new(),
            watched: None,
            resent: 0,
            reopened: 0,
            opened: 0,
        }
    }

    /// Ends the phase and begins another.
    pub fn mark(&mut self, name: &str, now: Instant) {
        let in_flight = self.in_flight();
        for phase in &mut self.phases {
            if phase.ended.is_none() {
                phase.ended = Some(now);
                phase.in_flight_at_end = phase.sent - phase.completed;
            }
        }
        self.phases.push(Phase::new(name, now, in_flight));
    }

    /// A request is about to be sent.
    pub fn begin(&mut self, now: Instant, unix_micros: u64) -> Ticket {
        self.sent += 1;
        let phase = self.phases.len() - 1;
        self.phases[phase].sent += 1;
        Ticket { number: self.sent, phase, sent: now, sent_at: unix_micros }
    }

    /// The request's id: unique in the pod.
    pub fn id(&self, ticket: Ticket) -> String {
        format!("{}-{}", self.name, ticket.number)
    }

    /// A request has ended; `latency` is counted from when it was due.
    pub fn end(&mut self, ticket: Ticket, outcome: Outcome, now: Instant, latency: Duration) {
        let id = self.id(ticket);
        let took = micros(now.duration_since(ticket.sent));
        let phase = &mut self.phases[ticket.phase];
        phase.completed += 1;
        phase.latency.saturating_record(micros(latency).max(1));
        match outcome {
            Outcome::Answered { revision, model } => {
                if let Some(watched) = &mut self.watched
                    && watched.first.is_none()
                    && watched.revision == revision
                    && ticket.sent_at + took >= watched.since
                {
                    watched.first =
                        Some(FirstAnswer { sent_at: ticket.sent_at, answered_at: ticket.sent_at + took });
                }
                phase.answered.entry((revision, model)).or_insert((0, id)).0 += 1;
            }
            Outcome::Lost(loss) => {
                phase.lost += 1;
                if self.losses.len() < LOSSES_KEPT {
                    let phase = phase.name.clone();
                    self.losses.push(Loss { id, phase, sent_at: ticket.sent_at, took, ..*loss });
                }
            }
        }
    }

    /// From now on, remember the first answer of this revision.
    pub fn watch_for(&mut self, revision: &str, unix_micros: u64) {
        self.watched = Some(Watched { revision: revision.to_owned(), since: unix_micros, first: None });
    }

    /// The first answer of the revision that is watched for, once it is there.
    pub fn first_answer(&self) -> Option<FirstAnswer> {
        self.watched.as_ref().and_then(|watched| watched.first)
    }

    /// How many requests of the phase that runs have ended.
    pub fn completed_in_phase(&self) -> u64 {
        self.phases.last().map_or(0, |phase| phase.completed)
    }

    /// Requests under way.
    pub fn in_flight(&self) -> u64 {
        self.phases.iter().map(|phase| phase.sent - phase.completed).sum()
    }

    /// The account so far.
    pub fn report(&self, now: Instant) -> LoadReport {
        LoadReport {
            name: self.name.clone(),
            phases: self.phases.iter().map(|phase| phase.report(now)).collect(),
            losses: self.losses.clone(),
            resent: self.resent,
            reopened: self.reopened,
            opened: self.opened,
        }
    }
}

impl Phase {
    fn new(name: &str, now: Instant, in_flight_at_start: u64) -> Self {
        Self {
            name: name.to_owned(),
            began: now,
            ended: None,
            sent: 0,
            completed: 0,
            lost: 0,
            in_flight_at_start,
            in_flight_at_end: 0,
            answered: BTreeMap::new(),
            latency: histogram(),
        }
    }

    fn report(&self, now: Instant) -> PhaseReport {
        let answered = self.answered.iter().map(|((revision, model), (count, first_id))| Answered {
            revision: revision.clone(),
            model: model.clone(),
            count: *count,
            first_id: first_id.clone(),
        });
        let under_way = self.sent - self.completed;
        let length = self.ended.unwrap_or(now).duration_since(self.began);
        PhaseReport {
            name: self.name.clone(),
            sent: self.sent,
            completed: self.completed,
            answered: answered.collect(),
            lost: self.lost,
            in_flight_at_start: self.in_flight_at_start,
            in_flight_at_end: if self.ended.is_some() { self.in_flight_at_end } else { under_way },
            millis: micros(length) / 1000,
            latency: latency(&self.latency),
        }
    }
}

/// For latencies from a microsecond to five minutes; a longer one counts as that.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 300_000_000, 3).expect("bounds and 3 significant digits are allowed")
}

/// Percentiles of a histogram of microseconds.
pub fn latency(histogram: &Histogram<u64>) -> Latency {
    Latency {
        p50: histogram.value_at_quantile(0.5),
        p99: histogram.value_at_quantile(0.99),
        max: histogram.max(),
    }
}

/// A duration in microseconds.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(revision: &str) -> Outcome {
        Outcome::Answered { revision: revision.to_owned(), model: "a".to_owned() }
    }

    fn lost() -> Outcome {
        Outcome::Lost(Box::new(Loss {
            id: String::new(),
            phase: String::new(),
            sent_at: 0,
            took: 0,
            kind: "status".to_owned(),
            detail: "503".to_owned(),
            status: Some(503),
            cause: Some("no-endpoint".to_owned()),
            revision: None,
            body: String::new(),
        }))
    }

    #[test]
    fn requests_belong_to_the_phase_in_which_they_were_sent() {
        let now = Instant::now();
        let after = |ms| now + Duration::from_millis(ms);
        let mut ledger = Ledger::new("iris", now);
        let (one, two) = (ledger.begin(now, 0), ledger.begin(now, 0));
        ledger.end(one, answered("r1"), after(2), Duration::from_millis(2));
        ledger.mark("10 %", after(3));
        let three = ledger.begin(after(4), 4_000);
        ledger.end(two, lost(), after(5), Duration::from_millis(5));
        ledger.end(three, answered("r2"), after(6), Duration::from_millis(2));
        ledger.begin(after(7), 7_000);

        let report = ledger.report(after(8));
        let seen: Vec<_> = report
            .phases
            .iter()
            .map(|p| (p.name.as_str(), p.sent, p.completed, p.lost, p.in_flight_at_start, p.in_flight_at_end))
            .collect();
        assert_eq!(seen, [("start", 2, 2, 1, 0, 1), ("10 %", 2, 1, 0, 1, 1)]);
        assert_eq!(report.losses.len(), 1);
        assert_eq!((report.losses[0].id.as_str(), report.losses[0].phase.as_str()), ("iris-2", "start"));
        assert_eq!(report.losses[0].took, 5_000);
        assert_eq!(report.phases[1].answered[0].first_id, "iris-3");
    }

    #[test]
    fn latency_is_what_was_recorded() {
        let now = Instant::now();
        let mut ledger = Ledger::new("iris", now);
        for millis in 1..=100 {
            let ticket = ledger.begin(now, 0);
            ledger.end(ticket, answered("r1"), now, Duration::from_millis(millis));
        }
        let latency = ledger.report(now).phases[0].latency;
        let near = |got: u64, expected: u64| {
            assert!(got.abs_diff(expected) * 100 <= expected, "{got}, expected {expected}")
        };
        near(latency.p50, 50_000);
        near(latency.p99, 99_000);
        near(latency.max, 100_000);
    }

    #[test]
    fn losses_past_the_kept_ones_are_still_counted() {
        let now = Instant::now();
        let mut ledger = Ledger::new("iris", now);
        for _ in 0..LOSSES_KEPT + 5 {
            let ticket = ledger.begin(now, 0);
            ledger.end(ticket, lost(), now, Duration::ZERO);
        }
        let report = ledger.report(now);
        assert_eq!(report.losses.len(), LOSSES_KEPT);
        assert_eq!(report.phases[0].lost, LOSSES_KEPT as u64 + 5);
    }

    #[test]
    fn the_first_answer_of_a_watched_revision_is_kept() {
        let now = Instant::now();
        let mut ledger = Ledger::new("iris", now);
        let early = ledger.begin(now, 1_000);
        ledger.end(early, answered("r2"), now, Duration::ZERO);
        ledger.watch_for("r2", 2_000);
        assert_eq!(ledger.first_answer(), None);
        for sent_at in [3_000, 4_000] {
            let ticket = ledger.begin(now, sent_at);
            ledger.end(ticket, answered("r2"), now + Duration::from_micros(7), Duration::ZERO);
        }
        assert_eq!(ledger.first_answer(), Some(FirstAnswer { sent_at: 3_000, answered_at: 3_007 }));
    }
}
