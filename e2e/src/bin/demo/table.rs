//! The live table: who is asked for what share, who has it, who answered. Prints.

use std::io::IsTerminal;

use serin_crds::InferenceService;
use serin_e2e::service::component;
use serin_e2e::traffic::wire::LoadReport;

/// A service and the account of its load.
pub struct Seen {
    /// The object.
    pub service: InferenceService,
    /// Its load.
    pub report: LoadReport,
}

/// Draws over itself on a terminal; writes one line below another elsewhere.
pub struct Table {
    terminal: bool,
    drawn: usize,
}

impl Table {
    /// A table on standard output.
    pub fn new() -> Self {
        Self { terminal: std::io::stdout().is_terminal(), drawn: 0 }
    }

    /// What follows is written below what is drawn now.
    pub fn keep(&mut self) {
        self.drawn = 0;
    }

    /// Shows the state of this second.
    pub fn draw(&mut self, seconds: u64, seen: &[Seen]) {
        let mut lines = Vec::new();
        if self.terminal || self.drawn == 0 {
            lines.push(format!(
                "{:>5}  {:<22} {:>6} {:>9} {:>11} {:>9} {:>5}",
                "time", "revision", "asked", "in force", "share seen", "requests", "lost"
            ));
        }
        for one in seen {
            lines.extend(rows(seconds, one));
        }
        if self.terminal && self.drawn > 0 {
            // Up to the first line, and clear from there.
            print!("\x1b[{}A\x1b[J", self.drawn);
        }
        println!("{}", lines.join("\n"));
        self.drawn = if self.terminal { lines.len() } else { 1 };
    }
}

fn rows(seconds: u64, seen: &Seen) -> Vec<String> {
    let phase = seen.report.phases.last();
    let of_phase = |revision: &str| -> u64 {
        let answered = phase.iter().flat_map(|phase| &phase.answered);
        answered.filter(|answered| answered.revision == revision).map(|answered| answered.count).sum()
    };
    let in_all = |revision: &str| -> u64 {
        let answered = seen.report.phases.iter().flat_map(|phase| &phase.answered);
        answered.filter(|answered| answered.revision == revision).map(|answered| answered.count).sum()
    };
    let all = phase.map_or(0, |phase| phase.answered.iter().map(|answered| answered.count).sum::<u64>());
    let lost: u64 = seen.report.phases.iter().map(|phase| phase.lost).sum();
    let traffic = component(&seen.service).map_or(&[][..], |component| &component.traffic);
    let row = |target: &serin_crds::inference_service::TrafficTarget| {
        format!(
            "{seconds:>4}s  {:<22} {:>6} {:>9} {:>11} {:>9} {lost:>5}",
            target.revision_name,
            format!("{} %", target.percent),
            format!("{} %", target.in_force),
            percent(of_phase(&target.revision_name), all),
            in_all(&target.revision_name),
        )
    };
    traffic.iter().map(row).collect()
}

#[allow(clippy::cast_precision_loss, reason = "only printed")]
fn percent(part: u64, all: u64) -> String {
    if all == 0 { "-".to_owned() } else { format!("{:.1} %", 100.0 * part as f64 / all as f64) }
}
