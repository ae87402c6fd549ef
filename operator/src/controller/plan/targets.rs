//! The table of the design (§2.2): from the facts to shares and pods that each revision should have. Pure.
//!
//! N size · e surge · u unavailable · x share asked · k ready pods · t pods of the target T · s pods that the stable S counts on:
//! `t = max(1, ceil(N * max(x, mirror)))` and `s = max(N - k_T - u, min(N, N + e - t))`, at least 1 while x < 100 %; what t has for
//! the mirror alone takes nothing from s.

use std::collections::BTreeMap;

use serin_crds::Share;

use super::Phase;
use super::facts::Facts;

/// What each revision should have now.
pub(super) struct Targets {
    pub(super) phase: Phase,
    /// The route's canary.
    pub(super) canary: Option<String>,
    /// x of the route's canary.
    pub(super) share: Share,
    /// t; 0 where T is S.
    pub(super) target_pods: u32,
    /// s.
    pub(super) stable_pods: u32,
    /// s as the route says it: 0 while S is away.
    pub(super) stable_count: u32,
    /// Replicas of Deployments, by revision. Fewer than now is done only once acknowledged.
    pub(super) pods: BTreeMap<String, u32>,
}

impl Targets {
    pub(super) fn new(facts: &Facts<'_>) -> Targets {
        match (facts.stable, leaving(facts)) {
            (None, _) => first(facts),
            (Some(stable), Some((name, share))) => leave(facts, stable, name, share),
            (Some(stable), None) if facts.is_steady() => steady(facts, stable),
            (Some(stable), None) => split(facts, stable),
        }
    }
}

/// No revision has been stable yet: T gets everything, and serves as its pods get ready.
fn first(facts: &Facts<'_>) -> Targets {
    let room = (facts.size + facts.surge).saturating_sub(occupied(facts, &[facts.target()]));
    let current = facts.view(facts.target()).replicas.unwrap_or(0);
    let wanted = facts.size.min(room.max(current));
    Targets {
        phase: Phase::First,
        canary: Some(facts.target().to_owned()),
        share: Share::ALL,
        target_pods: facts.size,
        stable_pods: 0,
        stable_count: 0,
        pods: BTreeMap::from([(facts.target().to_owned(), wanted)]),
    }
}

/// T is S: it has all requests and N pods; a percentage waits for the next change.
fn steady(facts: &Facts<'_>, stable: &str) -> Targets {
    let pods = grown_back(facts, stable, facts.size);
    Targets {
        phase: Phase::Steady,
        canary: None,
        share: Share::NONE,
        target_pods: 0,
        stable_pods: facts.size,
        stable_count: facts.size,
        pods: BTreeMap::from([(stable.to_owned(), pods)]),
    }
}

/// A revision that is neither S nor T and still has a part of the requests, with the share that it keeps for now:
/// `min(w, (N - u - k_S) / N)`, which is 0 as soon as S alone can carry what may not be missing. Where two have a part (somebody
/// wrote the record in the middle of a canary), the one with the greater part goes on; the other's falls to S with the same write.
fn leaving<'a>(facts: &Facts<'a>) -> Option<(&'a str, Share)> {
    let route = &facts.situation.route.as_ref()?.spec;
    let stable = facts.stable?;
    let is_other = |name: &&str| *name != stable && *name != facts.target();
    let missing = (facts.size - facts.unavailable).saturating_sub(facts.ready(stable));
    let missing = missing.max(u32::from(is_away(facts, stable)));
    let part = Share::from_parts(
        u16::try_from(10_000 * u64::from(missing) / u64::from(facts.size)).unwrap_or(10_000),
    );
    let kept = |name: &'a str| (name, facts.weight(name).min(part));
    // The canary stays the route's until every live router has it at 0.
    let at_zero = route.share == 0 && facts.observed_is_acknowledged();
    let canary = route.canary.as_deref().filter(is_other).filter(|_| !at_zero).map(kept);
    // The record has moved away from a revision that still serves: it leaves like a canary.
    let former = route.stable.as_deref().filter(is_other).map(kept).filter(|(_, share)| *share > Share::NONE);
    match (canary, former) {
        (Some(canary), Some(former)) if former.1 > canary.1 => Some(former),
        (canary, former) => canary.or(former),
    }
}

/// A former canary leaves: S is grown back first, T's pods start where there is room, T's share has to wait.
fn leave(facts: &Facts<'_>, stable: &str, name: &str, share: Share) -> Targets {
    let mut pods = BTreeMap::from([(stable.to_owned(), grown_back(facts, stable, facts.size))]);
    // Pods that S has already replaced give room to the rest of S.
    let needed = needed_beside(facts, stable);
    let current = facts.view(name).replicas.unwrap_or(0);
    pods.insert(name.to_owned(), if share == Share::NONE { current } else { current.min(needed) });
    let mut target_pods = 0;
    if !facts.is_steady() {
        target_pods = pods_for(facts, asked(facts));
        // It has no share yet: where the size or the limits have changed, its pods give way to S.
        pods.insert(facts.target().to_owned(), target_pods.min(room_for_target(facts, stable, facts.size)));
    }
    let stable_count = counted_in_route(facts, stable, facts.size);
    let canary = Some(name.to_owned());
    Targets { phase: Phase::Leaving, canary, share, target_pods, stable_pods: facts.size, stable_count, pods }
}

/// T beside S.
fn split(facts: &Facts<'_>, stable: &str) -> Targets {
    let target = facts.target();
    let wanted = asked(facts);
    let share = not_before_stable_is_back(facts, stable, wanted);
    let target_ready = facts.acknowledged_ready(target);
    let current = facts.view(target).replicas.unwrap_or(0);

    // While S has nobody and T may serve, T is to carry everything, and goes on until S is back. An S of no pods is not down but
    // shrunk: T has to make room for it.
    let view = facts.view(stable);
    let mut carried = wanted.pods_of(facts.size).max(1);
    let stable_pods = counted_on(facts, wanted, carried, target_ready);
    let stable_is_down = facts.ready(stable) == 0 && view.replicas.unwrap_or(0) > 0;
    let stable_comes_back = facts.ready(stable) < stable_pods
        && view.replicas.unwrap_or(0) >= stable_pods
        && current >= facts.size;
    if wanted > Share::NONE && (stable_is_down || stable_comes_back) {
        carried = facts.size;
    }
    let stable_pods = counted_on(facts, wanted, carried, target_ready);
    let target_pods = carried.max(facts.wishes.mirror.pods_of(facts.size));

    // T's pods go as far as S needs their room, and only as far as what is ready of S allows.
    let allowed = target_pods.min((facts.size + facts.surge).saturating_sub(stable_pods));
    let target_replicas = if current > allowed {
        current.min(allowed.max(needed_beside(facts, stable).min(facts.ready(target))))
    } else {
        target_pods.min(room_for_target(facts, stable, stable_pods)).max(current)
    };
    let pods = BTreeMap::from([
        (stable.to_owned(), grown_back(facts, stable, stable_pods)),
        (target.to_owned(), target_replicas),
    ]);
    let (phase, canary) = (phase(facts, share), Some(target.to_owned()));
    let stable_count = counted_in_route(facts, stable, stable_pods);
    Targets { phase, canary, share, target_pods, stable_pods, stable_count, pods }
}

fn phase(facts: &Facts<'_>, share: Share) -> Phase {
    if facts.wishes.held {
        Phase::Held
    } else if share == Share::NONE {
        Phase::AtZero
    } else if asked(facts) == Share::ALL {
        Phase::Promoting
    } else {
        Phase::Canary
    }
}

/// x as asked: a hold first, then the person's percentage, then the plan's, else a promotion.
fn asked(facts: &Facts<'_>) -> Share {
    let wishes = facts.wishes;
    match (wishes.held, wishes.percent, wishes.plan_share) {
        (true, _, _) => Share::NONE,
        (false, Some(percent), _) => Share::from_percent(percent),
        (false, None, Some(share)) => share,
        (false, None, None) => Share::ALL,
    }
}

/// A share is taken from T at once, except where the rollout itself has shrunk S to nothing: then T keeps what it has until
/// every live router knows a pod of S.
fn not_before_stable_is_back(facts: &Facts<'_>, stable: &str, wanted: Share) -> Share {
    let has = facts.weight(facts.target());
    if wanted == Share::NONE && has > Share::NONE && is_away(facts, stable) { has } else { wanted }
}

/// The rollout itself (or a hand that moved the record) has left S without a pod that every live router knows. The observed route
/// remembers it by counting no pod of S, from the shrink until S is back. An S that died by itself is counted as before, and one
/// that goes on with some pods is not away, whoever is silent.
fn is_away(facts: &Facts<'_>, stable: &str) -> bool {
    let Some(route) = facts.situation.route.as_ref().map(|route| &route.spec) else { return false };
    let uncounted = if route.stable.as_deref() == Some(stable) {
        route.stable_count == 0
    } else {
        route.canary.as_deref() != Some(stable)
    };
    uncounted && facts.acknowledged_ready(stable) == 0
}

/// s for the route. While S is away none of its pods is counted, which is also the memory that it is away.
fn counted_in_route(facts: &Facts<'_>, stable: &str, stable_pods: u32) -> u32 {
    if is_away(facts, stable) { 0 } else { stable_pods }
}

/// Pods beside S's known ones without which more than u would be missing; one at least while S is away, if S has room beside it.
fn needed_beside(facts: &Facts<'_>, stable: &str) -> u32 {
    let missing = (facts.size - facts.unavailable).saturating_sub(facts.acknowledged_ready(stable));
    let room = (facts.size + facts.surge).saturating_sub(1);
    missing.max(u32::from(is_away(facts, stable))).min(room)
}

/// t.
fn pods_for(facts: &Facts<'_>, share: Share) -> u32 {
    share.max(facts.wishes.mirror).pods_of(facts.size).max(1)
}

/// s, where T's share is carried by `carried` pods: pods that only mirror carry nothing for S. While T has less than all, S keeps a
/// pod, also at 0: somebody has to serve.
fn counted_on(facts: &Facts<'_>, share: Share, carried: u32, target_ready: u32) -> u32 {
    let needed = facts.size.saturating_sub(target_ready).saturating_sub(facts.unavailable);
    let beside = facts.size.min((facts.size + facts.surge).saturating_sub(carried));
    needed.max(beside).max(u32::from(share < Share::ALL))
}

/// S's replicas: `wanted`, but above what it has now only as far as N + e allows.
fn grown_back(facts: &Facts<'_>, stable: &str, wanted: u32) -> u32 {
    let current = facts.view(stable).replicas.unwrap_or(0);
    let room = (facts.size + facts.surge).saturating_sub(occupied(facts, &[stable]));
    if wanted > current { wanted.min(room).max(current) } else { wanted }
}

/// How many pods T can have beside all others, S counted with what it has or is to have.
fn room_for_target(facts: &Facts<'_>, stable: &str, stable_pods: u32) -> u32 {
    let stable_occupies = facts.view(stable).occupies().max(stable_pods);
    let others = occupied(facts, &[stable, facts.target()]);
    (facts.size + facts.surge).saturating_sub(stable_occupies + others)
}

/// Pods of all revisions but those named.
fn occupied(facts: &Facts<'_>, but: &[&str]) -> u32 {
    let views = facts.situation.revisions.iter().filter(|(name, _)| !but.contains(&name.as_str()));
    views.map(|(_, view)| view.occupies()).sum()
}
