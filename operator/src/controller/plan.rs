//! From what is asked and what is observed to what is to be done now. Pure and infallible: no client, no clock.
//!
//! The order that loses nothing is a property of this function: it gives shares and pods at once, and takes pods away only after
//! every live router has acknowledged a route that no longer needs them. Every pass starts from nothing but its arguments, so a
//! crash between any two writes ends in the same state.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use serin_crds::{InferenceRouteSpec, RouteRevision, Share};

use super::situation::{Situation, Wishes};

mod facts;
mod stable;
mod targets;
#[cfg(test)]
mod tests;

use facts::Facts;
use targets::Targets;

/// What is to be done now, in the order of the fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Write the stable record. Nothing else of this plan depends on it; the next pass goes on from there.
    pub record: Option<Record>,
    /// The revision of today's spec does not exist yet: make its ControllerRevision, Service and Deployment (with 0 replicas; `grow` sizes it).
    pub create: Option<String>,
    /// Revisions whose objects are kept as they should be, `create` included.
    pub keep: BTreeSet<String>,
    /// The route that should be. Its port is the one of the situation.
    pub route: InferenceRouteSpec,
    /// Replicas of Deployments that are to rise, by revision.
    pub grow: BTreeMap<String, u32>,
    /// Replicas of Deployments that are to fall, by revision. Every live router has acknowledged what makes it safe; the set of live
    /// routers must be the same when it is listed once more.
    pub shrink: BTreeMap<String, u32>,
    /// Revisions whose Deployment and Service are to be deleted, on the same condition.
    pub delete: BTreeSet<String>,
    /// ControllerRevisions beyond the history limit.
    pub forget: BTreeSet<String>,
    /// What status and events tell of this pass.
    pub rollout: Rollout,
    /// Look again after this time although nothing has changed.
    pub look_again: Option<Duration>,
}

/// A write of the stable record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The value of the annotation; empty: no stable revision yet.
    pub revision: String,
    /// Why.
    pub cause: RecordCause,
}

/// Why the stable record is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordCause {
    /// Before the first child is made.
    Begin,
    /// The record was lost and a copy names this revision.
    Recovered,
    /// The first revision has its first ready pod.
    First,
    /// The canary has all requests, on every router, with all its pods.
    Promoted,
}

/// Where the rollout stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No revision has been stable yet.
    First,
    /// Today's spec is the stable revision.
    Steady,
    /// A former canary is being taken out of traffic first.
    Leaving,
    /// The canary takes the share asked.
    Canary,
    /// The canary runs at 0 %.
    AtZero,
    /// The canary is held back.
    Held,
    /// The canary is to become stable.
    Promoting,
}

/// What status and events tell of a pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rollout {
    /// Where it stands.
    pub phase: Phase,
    /// S.
    pub stable: Option<String>,
    /// T.
    pub target: String,
    /// The route's canary.
    pub canary: Option<String>,
    /// x: share asked of the route's canary.
    pub asked: Share,
    /// w: share in force by the pods that the operator sees.
    pub in_force: Share,
    /// t: pods that T should have (0 where T is S).
    pub target_pods: u32,
    /// s: pods that S may count on.
    pub stable_pods: u32,
    /// Why the share in force is below the share asked, or why the next act waits; a reason of `serin_crds::reasons` and a sentence.
    pub waiting: Option<(&'static str, String)>,
    /// Live routers that have not acknowledged the route as it should be, by pod name.
    pub unacknowledged: Vec<String>,
    /// Live routers from which nothing has been heard for 5 s, by pod name.
    pub silent: Vec<String>,
    /// A percentage below 100 is set while there is nothing to split.
    pub nothing_to_split: bool,
    /// T has made no progress for `progressDeadlineSeconds`.
    pub deadline_exceeded: bool,
}

/// Nothing may be moved or deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standstill {
    /// Children exist, and neither the record nor a copy says which revision is stable.
    StableUnknown {
        /// Revisions that exist.
        candidates: Vec<String>,
    },
}

/// Decides what to do now.
///
/// # Errors
/// [`Standstill`] where any act could take the wrong revision away.
pub fn plan(wishes: &Wishes, situation: &Situation, now: Timestamp) -> Result<Plan, Standstill> {
    let known = stable::resolve(wishes, situation)?;
    let facts = Facts::new(wishes, situation, known.revision.as_deref(), now);
    let targets = Targets::new(&facts);
    let route = route(&facts, &targets);
    let settled = facts.is_acknowledged(&route);

    let record = known.record.or_else(|| facts.promotion(&targets, settled));
    let (grow, mut shrink) = sizes(&facts, &targets, settled);
    let (delete, last) = deletions(&facts, &route, settled);
    shrink.extend(last);
    let forget = forgettable(&facts, &delete);

    let mut keep: BTreeSet<String> =
        facts.running().map(str::to_owned).filter(|name| !delete.contains(name)).collect();
    keep.insert(wishes.target.clone());
    keep.extend(known.revision.clone());
    let create = (!facts.view(&wishes.target).recorded).then(|| wishes.target.clone());
    let rollout = rollout(&facts, &targets, &route, settled);
    let look_again = look_again(&facts, &targets, &rollout, &route);
    Ok(Plan { record, create, keep, route, grow, shrink, delete, forget, rollout, look_again })
}

/// The route that should be: who is stable, who takes which share, who can be reached at all.
fn route(facts: &Facts<'_>, targets: &Targets) -> InferenceRouteSpec {
    let mut names: BTreeSet<&str> = BTreeSet::new();
    names.extend(facts.stable);
    names.insert(facts.target());
    names.extend(targets.canary.as_deref());
    let revisions = names
        .into_iter()
        .map(|name| RouteRevision {
            name: name.to_owned(),
            service: name.to_owned(),
            timeout_seconds: facts.timeout_seconds(name),
        })
        .collect();
    InferenceRouteSpec {
        spec_generation: facts.wishes.generation,
        port: facts.situation.port,
        size: facts.size,
        stable: facts.stable.map(str::to_owned),
        canary: targets.canary.clone(),
        share: targets.share.parts(),
        stable_count: targets.stable_count,
        hold_seconds: facts.wishes.hold_seconds,
        revisions,
    }
}

/// Replicas that rise now, and those that fall now because every live router uses the route that no longer needs them.
fn sizes(
    facts: &Facts<'_>,
    targets: &Targets,
    settled: bool,
) -> (BTreeMap<String, u32>, BTreeMap<String, u32>) {
    let (mut grow, mut shrink) = (BTreeMap::new(), BTreeMap::new());
    for (name, wanted) in &targets.pods {
        let view = facts.view(name);
        let current = view.replicas.unwrap_or(0);
        if *wanted > current {
            grow.insert(name.clone(), *wanted);
        } else if *wanted < current && settled {
            shrink.insert(name.clone(), *wanted);
        }
    }
    (grow, shrink)
}

/// Revisions that no router references any more, and that have answered everything they were given. While nobody that the route gives
/// requests to has a pod, the one of them that has most of the ready pods stays, with N - u at most: the rest is room for the others.
fn deletions(
    facts: &Facts<'_>,
    route: &InferenceRouteSpec,
    settled: bool,
) -> (BTreeSet<String>, Option<(String, u32)>) {
    if !settled {
        return (BTreeSet::new(), None);
    }
    let is_listed = |name: &&str| route.revisions.iter().any(|revision| revision.name == *name);
    let over = || facts.running().filter(|name| !is_listed(name));
    let least = facts.size - facts.unavailable;
    let last = over()
        .filter(|name| facts.ready(name) > 0 && least > 0 && !facts.somebody_serves(route))
        .max_by_key(|name| facts.ready(name));
    let delete =
        over().filter(|name| Some(*name) != last && facts.is_drained(name)).map(str::to_owned).collect();
    let shrunk = last.filter(|name| facts.view(name).replicas.unwrap_or(0) > least);
    (delete, shrunk.map(|name| (name.to_owned(), least)))
}

/// ControllerRevisions of revisions that neither run nor are referenced, beyond the newest `revisionHistoryLimit`.
fn forgettable(facts: &Facts<'_>, delete: &BTreeSet<String>) -> BTreeSet<String> {
    let route = facts.situation.route.as_ref().map(|route| &route.spec);
    let is_referenced = |name: &str| {
        facts.stable == Some(name)
            || facts.target() == name
            || route.is_some_and(|route| route.revisions.iter().any(|revision| revision.name == name))
    };
    let mut old: Vec<_> = facts
        .situation
        .revisions
        .iter()
        .filter(|(name, view)| {
            view.recorded && !is_referenced(name) && (!view.is_running() || delete.contains(*name))
        })
        .map(|(name, view)| (view.created_at, name))
        .collect();
    old.sort();
    let surplus = old.len().saturating_sub(facts.wishes.history_limit);
    // A revision that is deleted in this pass keeps its record until its Deployment is gone.
    old.into_iter()
        .take(surplus)
        .map(|(_, name)| name.clone())
        .filter(|name| !delete.contains(name))
        .collect()
}

fn rollout(facts: &Facts<'_>, targets: &Targets, route: &InferenceRouteSpec, settled: bool) -> Rollout {
    let in_force = facts.in_force(route);
    let unacknowledged = facts.unacknowledged(route);
    let deadline_exceeded = facts.deadline(targets).is_some_and(|deadline| deadline <= facts.now);
    Rollout {
        phase: targets.phase,
        stable: route.stable.clone(),
        target: facts.target().to_owned(),
        canary: route.canary.clone(),
        asked: targets.share,
        in_force,
        target_pods: targets.target_pods,
        stable_pods: targets.stable_pods,
        waiting: waiting(facts, targets, in_force, settled, &unacknowledged),
        unacknowledged,
        silent: facts.silent(),
        nothing_to_split: targets.phase == Phase::Steady
            && facts.wishes.percent.is_some_and(|percent| percent < 100),
        deadline_exceeded,
    }
}

/// The sentence that says why less is in force than asked, or what the next act waits for.
fn waiting(
    facts: &Facts<'_>,
    targets: &Targets,
    in_force: Share,
    settled: bool,
    unacknowledged: &[String],
) -> Option<(&'static str, String)> {
    use serin_crds::reasons;
    let pods = |name: &str, wanted: u32| {
        format!("waiting for {} of {wanted} pods of {name}", wanted.saturating_sub(facts.ready(name)))
    };
    if let Some(canary) = targets.canary.as_deref()
        && in_force < targets.share
    {
        let wanted = targets.share.pods_of(facts.size).max(1);
        let room = (facts.size + facts.surge).saturating_sub(targets.stable_pods);
        // In a promotion S makes room by and by; any other share leaves S what it has.
        if room < wanted && facts.ready(canary) >= room && targets.share < Share::ALL {
            let text = format!(
                "maxSurge leaves room for {room} of {wanted} pods of {canary} beside {} of the stable revision; {in_force} % of {} % is in force",
                targets.stable_pods, targets.share
            );
            return Some((reasons::WEIGHT_LIMITED, text));
        }
        return Some((
            reasons::WEIGHT_LIMITED,
            format!("{}; {in_force} % of {} % is in force", pods(canary, wanted), targets.share),
        ));
    }
    if !settled && !unacknowledged.is_empty() {
        let names = unacknowledged.join(", ");
        return Some((reasons::WAITING_FOR_ROUTERS, format!("waiting for {names} to acknowledge the route")));
    }
    let target = facts.target();
    let wanted = if facts.is_steady() { targets.stable_pods } else { targets.target_pods };
    (wanted > facts.ready(target)).then(|| (reasons::WAITING_FOR_PODS, pods(target, wanted)))
}

/// When to look again although nothing happens: at T's deadline, when a drain's time is over, and while a router is silent.
fn look_again(
    facts: &Facts<'_>,
    targets: &Targets,
    rollout: &Rollout,
    route: &InferenceRouteSpec,
) -> Option<Duration> {
    const SILENCE: Duration = Duration::from_secs(5);
    let until = |at: Timestamp| {
        Duration::try_from(at.duration_since(facts.now)).unwrap_or_default().max(Duration::from_millis(100))
    };
    let deadline = facts.deadline(targets).filter(|at| *at > facts.now).map(until);
    let drain = facts
        .running()
        .filter(|name| !route.revisions.iter().any(|revision| revision.name == *name))
        .filter_map(|name| facts.drained_at(name))
        .map(until)
        .min();
    let silence = (!rollout.unacknowledged.is_empty()).then_some(SILENCE);
    [deadline, drain, silence].into_iter().flatten().min()
}
