//! Is the split between two revisions as exact as promised? Pure.

use super::wire::PhaseReport;

/// How far each router may be from exact, at any number of requests since the share was set.
pub const PER_ROUTER: u64 = 5;

/// Checks that `revision` got `parts` in 10,000 of a phase that began after every router used that share.
///
/// Each router counts for itself and stays within ±5 of exact. Answers do not tell the router, so the bound is 5 for each of
/// them, plus the requests under way at both ends of the phase: a router may have taken one of those before another that the
/// ledger counts on the other side of the mark. Nothing and everything are exact: there 5 would hide answers of a revision that
/// may give none.
///
/// # Errors
/// How far off it is, and the bound.
pub fn check(phase: &PhaseReport, revision: &str, parts: u16, routers: u64) -> Result<String, String> {
    let count = |wanted: Option<&str>| -> u64 {
        let counted =
            phase.answered.iter().filter(|answered| wanted.is_none_or(|name| answered.revision == name));
        counted.map(|answered| answered.count).sum()
    };
    let (got, all) = (count(Some(revision)), count(None));
    let per_router = if matches!(parts, 0 | 10_000) { 0 } else { PER_ROUTER };
    let bound = per_router * routers + phase.in_flight_at_start + phase.in_flight_at_end;
    // Both sides in 1/10,000 of a request, so that nothing is rounded.
    let off = (got * 10_000).abs_diff(all * u64::from(parts));
    let what = format!(
        "phase {}: {revision} got {got} of {all}, exact is {:.1}, off by {:.1}, bound {bound} ({per_router} for each of {routers} \
         routers + {} in flight at the borders)",
        phase.name,
        exact(all, parts),
        exact(off, 1),
        phase.in_flight_at_start + phase.in_flight_at_end,
    );
    if off <= bound * 10_000 { Ok(what) } else { Err(what) }
}

#[allow(clippy::cast_precision_loss, reason = "only printed")]
fn exact(all: u64, parts: u16) -> f64 {
    all as f64 * f64::from(parts) / 10_000.0
}

#[cfg(test)]
mod tests {
    use super::super::wire::Answered;
    use super::*;

    fn phase(stable: u64, canary: u64, in_flight: u64) -> PhaseReport {
        let answered =
            |revision: &str, count| Answered { revision: revision.to_owned(), count, ..Answered::default() };
        PhaseReport {
            answered: vec![answered("s", stable), answered("t", canary)],
            in_flight_at_start: in_flight,
            ..PhaseReport::default()
        }
    }

    fn check_is(phase: &PhaseReport, parts: u16, routers: u64, expect: bool) {
        let got = check(phase, "t", parts, routers);
        assert_eq!(got.is_ok(), expect, "{got:?}");
    }

    #[test]
    fn five_off_for_each_router_is_exact() {
        check_is(&phase(900, 100, 0), 1000, 2, true);
        check_is(&phase(890, 110, 0), 1000, 2, true);
        check_is(&phase(889, 111, 0), 1000, 2, false);
        check_is(&phase(911, 89, 0), 1000, 2, false);
        check_is(&phase(895, 105, 0), 1000, 1, true);
        check_is(&phase(894, 106, 0), 1000, 1, false);
    }

    #[test]
    fn requests_at_the_border_widen_the_bound() {
        check_is(&phase(887, 113, 2), 1000, 2, false);
        check_is(&phase(887, 113, 3), 1000, 2, true);
    }

    #[test]
    fn nothing_means_nothing() {
        check_is(&phase(1000, 0, 0), 0, 2, true);
        check_is(&phase(1000, 1, 0), 0, 2, false);
        check_is(&phase(1000, 1, 1), 0, 2, true);
        check_is(&phase(1, 1000, 0), 10_000, 2, false);
    }
}
