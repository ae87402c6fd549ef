//! The seven conditions of an InferenceService. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use serin_crds::{labels, reasons};

use super::View;
use super::obstacle::Obstacle;
use crate::controller::plan::{Phase, Plan};

/// What a condition says, without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    /// One word.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

/// It is so.
pub fn yes(reason: &str, message: impl Into<String>) -> Verdict {
    Verdict { status: "True", reason: reason.to_owned(), message: message.into() }
}

/// It is not so.
pub fn no(reason: &str, message: impl Into<String>) -> Verdict {
    Verdict { status: "False", reason: reason.to_owned(), message: message.into() }
}

/// Nobody knows.
fn unknown(reason: &str, message: impl Into<String>) -> Verdict {
    Verdict { status: "Unknown", reason: reason.to_owned(), message: message.into() }
}

fn by(obstacle: &Obstacle) -> Verdict {
    no(&obstacle.reason, obstacle.message.clone())
}

/// All conditions of a pass that has a plan, by type.
pub fn of_plan(view: &View<'_>, plan: &Plan) -> Vec<(&'static str, Verdict)> {
    let predictor = predictor_ready(view, plan);
    let router = router_ready(view, plan);
    let traffic = traffic_applied(view, plan);
    vec![
        (reasons::conditions::READY, ready(view, plan, [&predictor, &router, &traffic])),
        (reasons::conditions::PREDICTOR_READY, predictor),
        (reasons::conditions::ROUTER_READY, router),
        (reasons::conditions::CANARY_READY, canary_ready(view, plan)),
        (reasons::conditions::PROGRESSING, progressing(view, plan)),
        (reasons::conditions::TRAFFIC_APPLIED, traffic),
        (reasons::conditions::PROMOTED, promoted(plan)),
    ]
}

/// Can serve now. What has once been ready does not wait for acknowledgements: the routers go on with what they have.
fn ready(view: &View<'_>, plan: &Plan, [predictor, router, traffic]: [&Verdict; 3]) -> Verdict {
    if predictor.status != "True" {
        return predictor.clone();
    }
    if router.status == "False" {
        // "Waiting for pods" would be read as the model's.
        let waits = router.reason == reasons::WAITING_FOR_PODS;
        let reason = if waits { reasons::WAITING_FOR_ROUTERS } else { &router.reason };
        return no(reason, router.message.clone());
    }
    if !view.was_ready() {
        if plan.rollout.stable.is_none() {
            return no(reasons::FIRST_REVISION, "the first ready pod is about to be recorded");
        }
        if traffic.status == "False" {
            return traffic.clone();
        }
    }
    yes(reasons::READY, format!("answers at {}", view.url()))
}

/// The revisions that requests go to by the plan: S, else the canary or the first revision.
fn predictor_ready(view: &View<'_>, plan: &Plan) -> Verdict {
    let rollout = &plan.rollout;
    let serving = rollout.stable.iter().chain(rollout.canary.iter().filter(|_| rollout.asked.parts() > 0));
    let mut serving: Vec<&String> = serving.collect();
    if serving.is_empty() {
        serving.push(&rollout.target);
    }
    if let Some(name) = serving.iter().find(|name| view.ready_pods(name) > 0) {
        let (ready, desired) = (view.ready_pods(name), view.desired_pods(name));
        return yes(reasons::READY, format!("{ready} of {desired} pods of {name} are ready"));
    }
    let first = serving[0];
    match view.obstacle(first) {
        Some(obstacle) => by(&obstacle),
        None if rollout.stable.is_none() => no(
            reasons::WAITING_FOR_PODS,
            format!("no pod of {first} is ready yet; the model is being fetched and loaded"),
        ),
        None => no(reasons::NO_READY_PODS, format!("no pod of {first} is ready")),
    }
}

fn router_ready(view: &View<'_>, plan: &Plan) -> Verdict {
    let (ready, desired) = view.routers_ready();
    if ready == 0 {
        return match view.router_obstacle() {
            Some(obstacle) => by(&obstacle),
            None => no(reasons::WAITING_FOR_PODS, format!("0 of {desired} routers are ready")),
        };
    }
    let routers = &view.observed.situation.routers;
    let nobody_answers =
        routers.iter().all(|router| router.ack.is_none() && plan.rollout.silent.contains(&router.pod_name));
    if !routers.is_empty() && nobody_answers {
        return unknown(
            reasons::ADMIN_PORT_UNREACHABLE,
            format!(
                "no router answers on port {}; a NetworkPolicy must let the operator's pod reach that port of pods labelled {}={}",
                labels::ROUTER_ADMIN_PORT,
                labels::COMPONENT,
                labels::COMPONENT_ROUTER
            ),
        );
    }
    yes(reasons::READY, format!("{ready} of {desired} routers are ready"))
}

fn canary_ready(view: &View<'_>, plan: &Plan) -> Verdict {
    let rollout = &plan.rollout;
    let target = &rollout.target;
    if matches!(rollout.phase, Phase::First | Phase::Steady) || rollout.stable.as_ref() == Some(target) {
        return yes(reasons::NO_CANARY, "there is no canary");
    }
    if rollout.phase == Phase::Held {
        return no(reasons::HELD, format!("{target} is held back from its share"));
    }
    if rollout.phase == Phase::Leaving {
        let leaving = rollout.canary.as_deref().unwrap_or("the former canary");
        return no(reasons::WAITING_FOR_ROUTERS, format!("{target} gets its share once {leaving} has none"));
    }
    let missing = view.ready_pods(target) < rollout.target_pods;
    if let Some(obstacle) = view.obstacle(target).filter(|_| missing) {
        return by(&obstacle);
    }
    if rollout.deadline_exceeded {
        return no(reasons::PROGRESS_DEADLINE_EXCEEDED, deadline(view, target));
    }
    if view.ready_pods(target) == 0 {
        return no(reasons::WAITING_FOR_PODS, format!("no pod of {target} is ready yet"));
    }
    if rollout.phase == Phase::AtZero {
        return yes(reasons::CANARY_PAUSED, format!("{target} runs at 0 %, as asked"));
    }
    if rollout.in_force < rollout.asked {
        let message = match &rollout.waiting {
            Some((_, message)) => message.clone(),
            None => format!("waiting for {} of {} pods", view.missing_pods(target), rollout.target_pods),
        };
        return no(reasons::WEIGHT_LIMITED, message);
    }
    yes(reasons::CANARY_SERVING, format!("{target} takes {} % of the requests", rollout.in_force))
}

fn deadline(view: &View<'_>, target: &str) -> String {
    match view.obstacle(target) {
        Some(obstacle) => format!("{target} makes no progress: {}: {}", obstacle.reason, obstacle.message),
        None => format!("{target} makes no progress"),
    }
}

fn progressing(view: &View<'_>, plan: &Plan) -> Verdict {
    let rollout = &plan.rollout;
    if let Some((reason, message)) = view.trouble {
        return no(reason, message.clone());
    }
    if rollout.deadline_exceeded {
        return no(reasons::PROGRESS_DEADLINE_EXCEEDED, deadline(view, &rollout.target));
    }
    if let Some((reason, message)) = &rollout.waiting {
        return yes(reason, message.clone());
    }
    match rollout.phase {
        Phase::Steady => yes(reasons::COMPLETE, format!("{} is stable", rollout.target)),
        Phase::First => yes(reasons::FIRST_REVISION, format!("{} comes up", rollout.target)),
        Phase::Promoting => yes(reasons::PROMOTING, format!("{} is taking over", rollout.target)),
        Phase::AtZero => yes(reasons::CANARY_PAUSED, format!("{} runs at 0 %", rollout.target)),
        Phase::Held => yes(reasons::HELD, format!("{} is held", rollout.target)),
        Phase::Leaving => yes(reasons::WAITING_FOR_ROUTERS, "the former canary is taken out of traffic"),
        Phase::Canary => {
            yes(reasons::CANARY_RUNNING, format!("{} is asked to take {} %", rollout.target, rollout.asked))
        }
    }
}

fn traffic_applied(view: &View<'_>, plan: &Plan) -> Verdict {
    let rollout = &plan.rollout;
    let live = view.observed.situation.routers.len();
    if live == 0 {
        return no(reasons::WAITING_FOR_ROUTERS, "no router runs yet");
    }
    if !rollout.silent.is_empty() {
        let generation = view.observed.situation.route.as_ref().map_or(0, |route| route.generation);
        return unknown(
            reasons::ROUTER_SILENT,
            format!(
                "no acknowledgement of generation {generation} of the route for 5 s from {}; what takes capacity away waits for it",
                rollout.silent.join(", ")
            ),
        );
    }
    if !rollout.unacknowledged.is_empty() {
        let names = rollout.unacknowledged.join(", ");
        return no(reasons::WAITING_FOR_ROUTERS, format!("{names} has not acknowledged the route yet"));
    }
    yes(reasons::READY, format!("{live} of {live} routers use the shares of the route"))
}

fn promoted(plan: &Plan) -> Verdict {
    let rollout = &plan.rollout;
    let target = &rollout.target;
    if rollout.stable.as_ref() == Some(target) {
        return yes(reasons::PROMOTED, format!("{target} is stable"));
    }
    match rollout.phase {
        Phase::First => no(reasons::FIRST_REVISION, format!("{target} has no ready pod yet")),
        Phase::Held => no(reasons::HELD, format!("{target} is held")),
        Phase::Promoting => no(reasons::PROMOTING, format!("{target} is taking over")),
        _ => no(reasons::CANARY_RUNNING, format!("{target} is a canary")),
    }
}

/// The conditions as they are written: of each verdict the old one's time where its status is the same.
pub fn dated(
    verdicts: Vec<(&'static str, Verdict)>,
    before: &[Condition],
    generation: i64,
    now: Timestamp,
) -> Vec<Condition> {
    let mut all: Vec<Condition> = verdicts
        .into_iter()
        .map(|(name, verdict)| {
            let old =
                before.iter().find(|condition| condition.type_ == name && condition.status == verdict.status);
            Condition {
                type_: name.to_owned(),
                status: verdict.status.to_owned(),
                reason: verdict.reason,
                message: verdict.message,
                observed_generation: Some(generation),
                last_transition_time: old.map_or(Time(seconds(now)), |old| old.last_transition_time.clone()),
            }
        })
        .collect();
    // What this pass says nothing of stays as it was, with the generation that it spoke of.
    let others = before.iter().filter(|old| !all.iter().any(|new| new.type_ == old.type_)).cloned();
    let others: Vec<Condition> = others.collect();
    all.extend(others);
    all.sort_by_key(|condition| ORDER.iter().position(|name| *name == condition.type_));
    all
}

const ORDER: [&str; 7] = [
    reasons::conditions::READY,
    reasons::conditions::PREDICTOR_READY,
    reasons::conditions::ROUTER_READY,
    reasons::conditions::CANARY_READY,
    reasons::conditions::PROGRESSING,
    reasons::conditions::TRAFFIC_APPLIED,
    reasons::conditions::PROMOTED,
];

/// The API server keeps whole seconds; a fraction would differ from what is read back.
fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}
