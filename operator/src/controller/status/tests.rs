//! Statuses of typical situations, as a user reads them: one line of columns, one of conditions.

use std::collections::BTreeMap;

use serde_json::json;
use serin_crds::InferenceRouteSpec;
use serin_crds::acks::RouteAck;

use super::*;
use crate::controller::observe::Children;
use crate::controller::plan::Rollout;
use crate::controller::situation::{
    RevisionView, RouteView, RouterView, Situation, StableCopies, StableRecord,
};

fn service() -> InferenceService {
    serde_json::from_value(json!({
        "apiVersion": "serving.serin.dev/v1alpha1", "kind": "InferenceService",
        "metadata": {"name": "iris", "namespace": "ns", "uid": "u", "generation": 3},
        "spec": {"predictor": {"model": {"storageUri": "s3://m/a"}}}
    }))
    .unwrap()
}

fn revision(ready: usize, replicas: u32) -> RevisionView {
    RevisionView {
        recorded: true,
        replicas: Some(replicas),
        pods: replicas,
        ready: (0..ready).map(|number| format!("pod-{number}")).collect(),
        ..RevisionView::default()
    }
}

fn route() -> InferenceRouteSpec {
    InferenceRouteSpec {
        spec_generation: 3,
        port: 10_000,
        size: 2,
        stable: None,
        canary: None,
        share: 0,
        stable_count: 0,
        hold_seconds: 10,
        revisions: Vec::new(),
    }
}

fn router(name: &str) -> RouterView {
    let ack = RouteAck {
        name: "iris".to_owned(),
        route_uid: "r".to_owned(),
        generation: 7,
        revisions: BTreeMap::new(),
    };
    RouterView {
        pod_uid: name.to_owned(),
        pod_name: name.to_owned(),
        ack: Some(ack),
        acknowledged_at: None,
        silent_since: None,
    }
}

fn observed(revisions: &[(&str, RevisionView)]) -> Observed {
    let routers = serde_json::from_value(json!({
        "metadata": {"name": "serin-router"}, "spec": {"replicas": 2, "selector": {}, "template": {}},
        "status": {"readyReplicas": 2}
    }));
    Observed {
        situation: Situation {
            stable: StableRecord::Missing,
            copies: StableCopies::default(),
            revisions: revisions.iter().map(|(name, view)| ((*name).to_owned(), view.clone())).collect(),
            route: Some(RouteView { uid: "r".to_owned(), generation: 7, spec: route() }),
            port: 10_000,
            routers: vec![router("router-1"), router("router-2")],
        },
        children: Children::default(),
        snapshots: BTreeMap::new(),
        pods: BTreeMap::new(),
        router_pods: Vec::new(),
        router_deployment: Some(Arc::new(routers.unwrap())),
        presumed_gone: Vec::new(),
    }
}

fn plan(phase: Phase, stable: Option<&str>, target: &str) -> Plan {
    Plan {
        record: None,
        create: None,
        keep: Default::default(),
        route: route(),
        grow: BTreeMap::new(),
        shrink: BTreeMap::new(),
        delete: Default::default(),
        forget: Default::default(),
        rollout: Rollout {
            phase,
            stable: stable.map(str::to_owned),
            target: target.to_owned(),
            canary: None,
            asked: Share::NONE,
            in_force: Share::NONE,
            target_pods: 2,
            stable_pods: 2,
            waiting: None,
            unacknowledged: Vec::new(),
            silent: Vec::new(),
            nothing_to_split: false,
            deadline_exceeded: false,
        },
        look_again: None,
    }
}

fn canary(asked: u8, in_force: u8) -> Plan {
    let mut plan = plan(Phase::Canary, Some("a"), "b");
    plan.rollout.canary = Some("b".to_owned());
    plan.rollout.asked = Share::from_percent(asked);
    plan.rollout.in_force = Share::from_percent(in_force);
    plan
}

fn written(service: &InferenceService, observed: &Observed, outcome: Outcome<'_>) -> InferenceServiceStatus {
    let view = View { service, observed, trouble: None };
    status(&view, outcome, Timestamp::from_second(1000).unwrap())
}

/// `READY STABLE CANARY PERCENT REASON`, and the conditions as `Type=Status:Reason`.
fn check(observed: &Observed, plan: &Plan, columns: &str, conditions: &[&str]) {
    let status = written(&service(), observed, Outcome::Planned(plan));
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let stable = status.components.as_ref().and_then(|all| all.predictor.latest_rolledout_revision.clone());
    let found = format!(
        "{} {} {} {} {}",
        status.conditions[0].status,
        text(&stable),
        text(&status.canary_revision),
        text(&status.percent),
        text(&status.reason)
    );
    assert_eq!(found, columns);
    let found: Vec<String> = status
        .conditions
        .iter()
        .map(|condition| format!("{}={}:{}", condition.type_, condition.status, condition.reason))
        .collect();
    assert_eq!(found, conditions);
    assert!(status.conditions.iter().all(|condition| condition.observed_generation == Some(3)));
}

#[test]
fn a_first_revision_that_comes_up() {
    check(
        &observed(&[("a", revision(0, 2))]),
        &plan(Phase::First, None, "a"),
        "False - - - WaitingForPods",
        &[
            "Ready=False:WaitingForPods",
            "PredictorReady=False:WaitingForPods",
            "RouterReady=True:Ready",
            "CanaryReady=True:NoCanary",
            "Progressing=True:FirstRevision",
            "TrafficApplied=True:Ready",
            "Promoted=False:FirstRevision",
        ],
    );
}

#[test]
fn a_service_at_rest() {
    check(
        &observed(&[("a", revision(2, 2))]),
        &plan(Phase::Steady, Some("a"), "a"),
        "True a - - Ready",
        &[
            "Ready=True:Ready",
            "PredictorReady=True:Ready",
            "RouterReady=True:Ready",
            "CanaryReady=True:NoCanary",
            "Progressing=True:Complete",
            "TrafficApplied=True:Ready",
            "Promoted=True:Promoted",
        ],
    );
}

#[test]
fn a_canary_that_carries_its_share() {
    check(
        &observed(&[("a", revision(2, 2)), ("b", revision(1, 1))]),
        &canary(10, 10),
        "True a b 10 CanaryRunning",
        &[
            "Ready=True:Ready",
            "PredictorReady=True:Ready",
            "RouterReady=True:Ready",
            "CanaryReady=True:CanaryServing",
            "Progressing=True:CanaryRunning",
            "TrafficApplied=True:Ready",
            "Promoted=False:CanaryRunning",
        ],
    );
}

#[test]
fn a_share_that_waits_for_pods_says_for_how_many() {
    let mut plan = canary(50, 20);
    plan.rollout.waiting = Some((reasons::WEIGHT_LIMITED, "waiting for 2 of 5 pods".to_owned()));
    let observed = observed(&[("a", revision(5, 5)), ("b", revision(1, 3))]);
    check(
        &observed,
        &plan,
        "True a b 50→20 WaitingForReadyPods",
        &[
            "Ready=True:Ready",
            "PredictorReady=True:Ready",
            "RouterReady=True:Ready",
            "CanaryReady=False:WaitingForReadyPods",
            "Progressing=True:WaitingForReadyPods",
            "TrafficApplied=True:Ready",
            "Promoted=False:CanaryRunning",
        ],
    );
    let status = written(&service(), &observed, Outcome::Planned(&plan));
    let traffic = status.components.unwrap().predictor.traffic;
    let lines: Vec<String> = traffic
        .iter()
        .map(|target| {
            format!("{} {} {}→{}", target.revision_name, target.tag, target.percent, target.in_force)
        })
        .collect();
    assert_eq!(lines, ["a stable 50→80", "b canary 50→20"]);
}

#[test]
fn a_broken_canary_lowers_its_own_condition_only() {
    let mut observed = observed(&[("a", revision(2, 2)), ("b", revision(0, 1))]);
    let words = "{\"reason\":\"ModelNotFound\",\"message\":\"s3://m/b: no such object\"}";
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "b-1"}, "status": {"containerStatuses": [{
            "name": "model", "image": "", "imageID": "", "ready": false, "restartCount": 2,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 3, "message": words}}
        }]}
    }))
    .unwrap();
    observed.pods.insert("b".to_owned(), vec![Arc::new(pod)]);
    let plan = canary(10, 0);
    check(
        &observed,
        &plan,
        "True a b 10→0 ModelNotFound",
        &[
            "Ready=True:Ready",
            "PredictorReady=True:Ready",
            "RouterReady=True:Ready",
            "CanaryReady=False:ModelNotFound",
            "Progressing=True:CanaryRunning",
            "TrafficApplied=True:Ready",
            "Promoted=False:CanaryRunning",
        ],
    );
    let model = written(&service(), &observed, Outcome::Planned(&plan)).model_status.unwrap();
    assert_eq!(model.transition_status, "BlockedByFailedLoad");
    let failure = model.last_failure_info.unwrap();
    assert_eq!((failure.exit_code, failure.model_revision_name.as_str()), (Some(3), "b"));
}

#[test]
fn a_silent_router_is_named_and_takes_nothing_away_from_ready() {
    let mut observed = observed(&[("a", revision(2, 2))]);
    let mut plan = plan(Phase::Steady, Some("a"), "a");
    plan.rollout.silent = vec!["router-2".to_owned()];
    plan.rollout.unacknowledged = vec!["router-2".to_owned()];
    observed.situation.routers[1].ack = None;
    let status = written(&service(), &observed, Outcome::Planned(&plan));
    let traffic = &status.conditions[5];
    assert_eq!((traffic.status.as_str(), traffic.reason.as_str()), ("Unknown", "RouterSilent"));
    assert!(
        traffic.message.contains("generation 7 of the route for 5 s from router-2;"),
        "{}",
        traffic.message
    );
    assert_eq!(
        (status.conditions[0].status.as_str(), status.reason.as_deref()),
        ("True", Some("RouterSilent"))
    );
    let routers = status.routers.unwrap();
    assert_eq!((routers.total, routers.acknowledged), (2, 1));
}

#[test]
fn no_router_answers_at_all() {
    let mut observed = observed(&[("a", revision(2, 2))]);
    let mut plan = plan(Phase::Steady, Some("a"), "a");
    plan.rollout.silent = vec!["router-1".to_owned(), "router-2".to_owned()];
    observed.situation.routers.iter_mut().for_each(|router| router.ack = None);
    let status = written(&service(), &observed, Outcome::Planned(&plan));
    let router = &status.conditions[2];
    assert_eq!((router.status.as_str(), router.reason.as_str()), ("Unknown", "AdminPortUnreachable"));
    assert!(
        router.message.contains("NetworkPolicy") && router.message.contains("9901"),
        "{}",
        router.message
    );
}

#[test]
fn a_condition_keeps_its_time_while_its_status_is_the_same() {
    let observed = observed(&[("a", revision(2, 2))]);
    let steady = plan(Phase::Steady, Some("a"), "a");
    let mut before = service();
    before.status = Some(written(&before, &observed, Outcome::Planned(&steady)));
    let view = View { service: &before, observed: &observed, trouble: None };
    let later = Timestamp::from_second(2000).unwrap();
    assert_eq!(Some(status(&view, Outcome::Planned(&steady), later)), before.status, "nothing to write");
    let plan = canary(10, 10);
    let after = status(&view, Outcome::Planned(&plan), later);
    assert_eq!(
        after.conditions[0].last_transition_time,
        before.status.unwrap().conditions[0].last_transition_time
    );
    assert_eq!(after.conditions[6].last_transition_time.0, later, "Promoted turned");
}

#[test]
fn ready_is_the_last_event_and_ends_with_a_command() {
    let observed = observed(&[("a", revision(2, 2))]);
    let plan = plan(Phase::Steady, Some("a"), "a");
    let service = service();
    let view = View { service: &service, observed: &observed, trouble: None };
    let status = written(&service, &observed, Outcome::Planned(&plan));
    let news = events::news(&view, Outcome::Planned(&plan), &Default::default(), &status);
    let last = news.last().unwrap();
    assert_eq!(last.reason, "Ready");
    assert!(last.note.ends_with("http://localhost:8080/v2/models/iris"), "{}", last.note);
}
