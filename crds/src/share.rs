//! The share of requests in force, from the share asked and the ready pods. Pure; used by router and operator alike.
//!
//! `w = min(x, k_T / min(N, k_S + k_T))`, where x is the share asked of the canary, N the size of the service and k the
//! ready pods of canary (T) and stable (S); of S at most `stable_count` pods count, so that a shrink of S shows first as a higher
//! share in force and only then as fewer pods. So no pod carries more than its part: with one of five canary pods ready,
//! the canary takes at most a fifth, whatever was asked.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A share of requests in 1/10,000: 0 to 10,000.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Share(u16);

impl Share {
    /// No request.
    pub const NONE: Share = Share(0);
    /// Every request.
    pub const ALL: Share = Share(10_000);

    /// A share of `parts` in 10,000; more than 10,000 is all.
    pub fn from_parts(parts: u16) -> Share {
        Share(parts.min(10_000))
    }

    /// A share of `percent` in 100; more than 100 is all.
    pub fn from_percent(percent: u8) -> Share {
        Share(u16::from(percent.min(100)) * 100)
    }

    /// The share in 1/10,000.
    pub fn parts(self) -> u16 {
        self.0
    }

    /// What the others have: 10,000 − self.
    pub fn rest(self) -> Share {
        Share(10_000 - self.0)
    }

    /// How many of `size` pods carry this share, rounded up.
    pub fn pods_of(self, size: u32) -> u32 {
        let pods = (u64::from(size) * u64::from(self.0)).div_ceil(10_000);
        u32::try_from(pods).unwrap_or(size)
    }
}

/// As a percentage: `10`, `12.5`, `33.33`.
impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, part) = (self.0 / 100, self.0 % 100);
        match part {
            0 => write!(f, "{whole}"),
            p if p % 10 == 0 => write!(f, "{whole}.{}", p / 10),
            p => write!(f, "{whole}.{p:02}"),
        }
    }
}

/// What the formula reads. Pods are counted by distinct uid and only while `ready`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShareInput {
    /// x: the share asked of the canary.
    pub asked: Share,
    /// N: the size of the service, at least 1 (0 is read as 1).
    pub size: u32,
    /// s: how many pods the stable revision may count on.
    pub stable_count: u32,
    /// k_S: ready pods of the stable revision.
    pub stable_ready: u32,
    /// k_T: ready pods of the canary.
    pub canary_ready: u32,
}

/// w: the canary's share in force, rounded down to 1/10,000. The stable revision has the rest.
pub fn in_force(input: ShareInput) -> Share {
    let ShareInput { asked, size, stable_count, stable_ready, canary_ready } = input;
    if asked == Share::NONE || canary_ready == 0 {
        return Share::NONE;
    }
    if stable_ready == 0 {
        return Share::ALL;
    }
    let counted = u64::from(stable_ready.min(stable_count)) + u64::from(canary_ready);
    let pods = counted.min(u64::from(size.max(1)));
    let capacity = (10_000 * u64::from(canary_ready) / pods).min(10_000);
    Share(asked.0.min(u16::try_from(capacity).unwrap_or(10_000)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(percent: u8, size: u32, stable_count: u32, stable_ready: u32, canary_ready: u32, expect: &str) {
        let asked = Share::from_percent(percent);
        let share = in_force(ShareInput { asked, size, stable_count, stable_ready, canary_ready });
        assert_eq!(
            share.to_string(),
            expect,
            "{percent}% of {size}, s={stable_count} k_S={stable_ready} k_T={canary_ready}"
        );
    }

    #[test]
    fn nothing_asked_or_nothing_ready_is_nothing() {
        check(0, 2, 2, 2, 2, "0");
        check(10, 2, 2, 2, 0, "0");
        check(100, 2, 2, 0, 0, "0");
        check(0, 2, 2, 0, 1, "0");
    }

    #[test]
    fn without_a_ready_stable_pod_the_canary_takes_all() {
        check(1, 5, 5, 0, 1, "100");
        check(100, 1, 1, 0, 1, "100");
    }

    #[test]
    fn ready_pods_limit_the_share() {
        check(10, 1, 1, 1, 1, "10");
        check(10, 10, 10, 10, 1, "10");
        check(50, 10, 10, 10, 1, "10");
        check(50, 5, 5, 5, 2, "40");
        check(100, 3, 3, 3, 1, "33.33");
        check(100, 3, 3, 3, 3, "100");
        check(90, 2, 2, 2, 2, "90");
    }

    #[test]
    fn fewer_pods_than_the_size_are_what_is_divided() {
        // 3 of 10 pods are ready in all, one of them the canary's: a third of what there is.
        check(100, 10, 10, 2, 1, "33.33");
    }

    #[test]
    fn a_planned_shrink_of_the_stable_revision_raises_the_share_first() {
        // Without surge 2 of 5 pods are the canary's; s = 3, although the fourth and fifth stable pods are still there.
        check(100, 5, 5, 5, 2, "40");
        check(100, 5, 3, 5, 2, "40");
        check(100, 5, 1, 5, 2, "66.66");
    }

    proptest! {
        #[test]
        fn share_is_bounded_and_monotone(
            asked in 0u16..=10_000, size in 0u32..50, s in 0u32..60, k_s in 0u32..60, k_t in 0u32..60
        ) {
            let input = ShareInput {
                asked: Share::from_parts(asked), size, stable_count: s, stable_ready: k_s, canary_ready: k_t,
            };
            let share = in_force(input);
            prop_assert!(share <= Share::ALL);
            if k_s > 0 { prop_assert!(share <= input.asked); }
            let more = in_force(ShareInput { canary_ready: k_t + 1, ..input });
            prop_assert!(more >= share, "a further ready canary pod never lowers the share");
            let higher = in_force(ShareInput { asked: Share::from_parts(asked + 1), ..input });
            prop_assert!(higher >= share, "asking for more never gives less");
        }

        #[test]
        fn pods_carry_the_share(parts in 0u16..=10_000, size in 1u32..1000) {
            let share = Share::from_parts(parts);
            let pods = share.pods_of(size);
            prop_assert!(pods <= size);
            prop_assert!(u64::from(pods) * 10_000 >= u64::from(parts) * u64::from(size));
        }
    }
}
