//! What an account says once it is known which revision serves which model. Pure.

use std::collections::BTreeMap;
use std::fmt;

use super::wire::LoadReport;

/// The sum over one load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The load's name.
    pub load: String,
    /// Requests sent.
    pub sent: u64,
    /// Right answers by revision.
    pub answered: BTreeMap<String, u64>,
    /// Requests without one complete, right answer of a revision that serves that model.
    pub lost: u64,
    /// The losses, one line each, as far as they were kept.
    pub losses: Vec<String>,
    /// See [`LoadReport::resent`].
    pub resent: u64,
    /// See [`LoadReport::reopened`].
    pub reopened: u64,
    /// Median and 99th percentile of the last phase, microseconds.
    pub latency: (u64, u64),
}

impl Verdict {
    /// Judges an account. `models` tells the model of every revision that may have answered.
    pub fn new(report: &LoadReport, models: &BTreeMap<String, String>) -> Self {
        let mut verdict = Self {
            load: report.name.clone(),
            sent: 0,
            answered: BTreeMap::new(),
            lost: 0,
            losses: report.losses.iter().map(line).collect(),
            resent: report.resent,
            reopened: report.reopened,
            latency: report.phases.last().map_or((0, 0), |phase| (phase.latency.p50, phase.latency.p99)),
        };
        for phase in &report.phases {
            verdict.sent += phase.sent;
            // A request that has not ended when the account is closed has no answer either.
            verdict.lost += phase.lost + (phase.sent - phase.completed);
            for answered in &phase.answered {
                if models.get(&answered.revision) == Some(&answered.model) {
                    *verdict.answered.entry(answered.revision.clone()).or_default() += answered.count;
                } else {
                    verdict.lost += answered.count;
                    verdict.losses.push(format!(
                        "{} answers from {} in phase {}: revision {} gave what model {} answers, but it serves {} ",
                        answered.count,
                        answered.first_id,
                        phase.name,
                        answered.revision,
                        answered.model,
                        models.get(&answered.revision).map_or("a model that this story does not know", String::as_str),
                    ));
                }
            }
        }
        verdict
    }
}

fn line(loss: &super::wire::Loss) -> String {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    format!(
        "{} at {} after {} µs in phase {}: {}: {} | status {} cause {} revision {} body {:?}",
        loss.id,
        clock(loss.sent_at),
        loss.took,
        loss.phase,
        loss.kind,
        loss.detail,
        loss.status.map_or_else(|| "-".to_owned(), |status| status.to_string()),
        or_dash(&loss.cause),
        or_dash(&loss.revision),
        loss.body,
    )
}

/// Time of day (UTC), to be found again in logs.
fn clock(unix_micros: u64) -> String {
    let (seconds, micros) = (unix_micros / 1_000_000 % 86_400, unix_micros % 1_000_000);
    format!("{:02}:{:02}:{:02}.{micros:06}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// `iris: sent 1000, lost 0 (< 3/1000), ...`. By the rule of three, none of N means fewer than 3 in N, at 95 %.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: sent {}, lost {}", self.load, self.sent, self.lost)?;
        if self.lost == 0 && self.sent > 0 {
            write!(f, " (< 3/{})", self.sent)?;
        }
        for (revision, count) in &self.answered {
            write!(f, ", {revision} {count}")?;
        }
        write!(
            f,
            ", resent {} (given back unsent), connections closed by the server {}",
            self.resent, self.reopened
        )?;
        write!(f, ", p50 {} µs, p99 {} µs", self.latency.0, self.latency.1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::{Answered, PhaseReport};
    use super::*;

    fn report(answered: &[(&str, &str, u64)], sent: u64, lost: u64) -> LoadReport {
        let answered: Vec<_> = answered
            .iter()
            .map(|(revision, model, count)| Answered {
                revision: (*revision).to_owned(),
                model: (*model).to_owned(),
                count: *count,
                first_id: "iris-1".to_owned(),
            })
            .collect();
        let completed = answered.iter().map(|answered| answered.count).sum::<u64>() + lost;
        let phase = PhaseReport {
            name: "start".to_owned(),
            sent,
            completed,
            answered,
            lost,
            ..PhaseReport::default()
        };
        LoadReport { name: "iris".to_owned(), phases: vec![phase], ..LoadReport::default() }
    }

    fn models() -> BTreeMap<String, String> {
        [("r1".to_owned(), "a".to_owned()), ("r2".to_owned(), "b".to_owned())].into()
    }

    #[test]
    fn right_answers_of_known_revisions_are_not_lost() {
        let verdict = Verdict::new(&report(&[("r1", "a", 90), ("r2", "b", 10)], 100, 0), &models());
        assert_eq!(verdict.lost, 0);
        assert!(
            verdict.to_string().starts_with("iris: sent 100, lost 0 (< 3/100), r1 90, r2 10"),
            "{verdict}"
        );
    }

    #[test]
    fn an_answer_under_the_wrong_revision_is_lost() {
        let verdict = Verdict::new(&report(&[("r1", "a", 90), ("r2", "a", 10)], 100, 0), &models());
        assert_eq!(verdict.lost, 10);
        assert!(
            verdict.losses[0].contains("revision r2 gave what model a answers, but it serves b"),
            "{verdict:?}"
        );
        assert_eq!(Verdict::new(&report(&[("r9", "a", 3)], 3, 0), &models()).lost, 3);
    }

    #[test]
    fn what_never_ended_is_lost() {
        assert_eq!(Verdict::new(&report(&[("r1", "a", 90)], 100, 4), &models()).lost, 10);
    }

    #[test]
    fn times_are_those_of_logs() {
        assert_eq!(clock(1_795_366_805_000_007), "17:00:05.000007");
    }
}
