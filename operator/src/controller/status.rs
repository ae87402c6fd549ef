//! What the operator answers: the status of an InferenceService (pure), and the one patch that writes it where it differs.
//! Nothing is decided by it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use serin_crds::inference_service::{
    Address, ComponentStatus, Components, FailureInfo, ModelStatus, RouterStatus, TrafficTarget,
};
use serin_crds::{InferenceService, InferenceServiceStatus, Share, labels, reasons};
use thiserror::Error;

use super::observe::Observed;
use super::plan::{Phase, Plan, Standstill};
use super::validate::Refusal;
use crate::cache::Group;
use crate::context::Context;

pub mod conditions;
pub mod events;
pub mod obstacle;
#[cfg(test)]
mod tests;

use conditions::{Verdict, no};
use obstacle::{Obstacle, obstacle};

/// Field manager of the status.
const FIELD_MANAGER: &str = "serin-operator-status";

/// The status could not be written.
#[derive(Debug, Error)]
#[error("failed to write the status")]
pub struct Error(#[source] Box<kube::Error>);

/// What a pass came to.
#[derive(Clone, Copy, Debug)]
pub enum Outcome<'a> {
    /// There is a plan.
    Planned(&'a Plan),
    /// Nothing may be moved.
    Standstill(&'a Standstill),
    /// The spec cannot be served; what ran goes on.
    Refused(&'a Refusal),
}

/// Everything that the status is made of.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The InferenceService with its last status.
    pub service: &'a InferenceService,
    /// What was observed.
    pub observed: &'a Observed,
    /// What stopped the writes, where that is worth telling: a reason and a sentence.
    pub trouble: Option<&'a (&'static str, String)>,
}

impl View<'_> {
    /// The address of the service inside the cluster.
    pub fn url(&self) -> String {
        address(&self.service.name_any(), &self.service.namespace().unwrap_or_default())
    }

    /// A command that calls the model as it is pasted.
    pub fn example(&self) -> String {
        let (name, namespace) = (self.service.name_any(), self.service.namespace().unwrap_or_default());
        format!(
            "kubectl -n {namespace} port-forward svc/{name} 8080:80 >/dev/null & \
             curl -sS --retry 20 --retry-delay 1 --retry-connrefused http://localhost:8080/v2/models/{name}"
        )
    }

    fn before(&self) -> Option<&InferenceServiceStatus> {
        self.service.status.as_ref()
    }

    /// It could serve when the last status was written.
    pub fn was_ready(&self) -> bool {
        self.condition(reasons::conditions::READY).is_some_and(|ready| ready.status == "True")
    }

    /// A condition of the last status.
    pub fn condition(&self, name: &str) -> Option<&Condition> {
        self.before()?.conditions.iter().find(|condition| condition.type_ == name)
    }

    fn ready_pods(&self, revision: &str) -> u32 {
        let view = self.observed.situation.revisions.get(revision);
        view.map_or(0, |view| u32::try_from(view.ready.len()).unwrap_or(u32::MAX))
    }

    fn desired_pods(&self, revision: &str) -> u32 {
        self.observed.situation.revisions.get(revision).and_then(|view| view.replicas).unwrap_or(0)
    }

    fn missing_pods(&self, revision: &str) -> u32 {
        self.desired_pods(revision).saturating_sub(self.ready_pods(revision))
    }

    /// What stands in the way of a revision's pods.
    pub fn obstacle(&self, revision: &str) -> Option<Obstacle> {
        let none: &[Arc<Pod>] = &[];
        let pods = self.observed.pods.get(revision).map_or(none, Vec::as_slice);
        obstacle(pods, self.observed.children.deployments.get(revision).map(|deployment| &**deployment))
    }

    fn router_obstacle(&self) -> Option<Obstacle> {
        obstacle(&self.observed.router_pods, self.observed.router_deployment.as_deref())
    }

    /// Ready routers, and how many there should be.
    fn routers_ready(&self) -> (i32, i32) {
        let Some(deployment) = &self.observed.router_deployment else { return (0, 2) };
        let ready = deployment.status.as_ref().and_then(|status| status.ready_replicas);
        (ready.unwrap_or(0), deployment.spec.replicas.unwrap_or(2))
    }
}

fn address(name: &str, namespace: &str) -> String {
    format!("http://{name}.{namespace}.svc.cluster.local")
}

/// The status as it should be. Pure.
pub fn status(view: &View<'_>, outcome: Outcome<'_>, now: Timestamp) -> InferenceServiceStatus {
    let generation = view.service.metadata.generation.unwrap_or_default();
    let before = view.before().cloned().unwrap_or_default();
    let old = before.conditions.clone();
    let dated = |verdicts| conditions::dated(verdicts, &old, generation, now);
    let base = InferenceServiceStatus {
        observed_generation: Some(generation),
        url: Some(view.url()),
        address: Some(Address { url: view.url() }),
        example: Some(view.example()),
        selector: Some(selector(&view.service.name_any())),
        replicas: Some(ready_replicas(view)),
        ..before
    };
    match outcome {
        Outcome::Planned(plan) => {
            let conditions = dated(conditions::of_plan(view, plan));
            InferenceServiceStatus {
                reason: Some(reason(view, plan, &conditions)),
                conditions,
                components: Some(Components { predictor: component(view, plan) }),
                model_status: Some(model_status(view, plan)),
                canary_revision: canary(plan),
                percent: percent(plan),
                routers: Some(routers(view, plan)),
                ..base
            }
        }
        Outcome::Standstill(Standstill::StableUnknown { candidates }) => {
            let verdict = no(reasons::STABLE_UNKNOWN, stable_unknown(view, candidates));
            stopped(view, base, verdict, dated, None)
        }
        Outcome::Refused(refusal) => {
            let verdict = no(reasons::INVALID_SPEC, refusal.to_string());
            stopped(view, base, verdict, dated, Some("InvalidSpec"))
        }
    }
}

/// Nothing moves: what was said before stays, with the generation of which it was said, beside the reason.
fn stopped(
    view: &View<'_>,
    base: InferenceServiceStatus,
    verdict: Verdict,
    dated: impl Fn(Vec<(&'static str, Verdict)>) -> Vec<Condition>,
    transition: Option<&str>,
) -> InferenceServiceStatus {
    let reason = verdict.reason.clone();
    let mut verdicts = vec![(reasons::conditions::PROGRESSING, verdict.clone())];
    if view.condition(reasons::conditions::READY).is_none() {
        verdicts.push((reasons::conditions::READY, verdict));
    }
    let model_status = transition
        .map(|word| ModelStatus { transition_status: word.to_owned(), last_failure_info: None })
        .or_else(|| base.model_status.clone());
    InferenceServiceStatus { reason: Some(reason), conditions: dated(verdicts), model_status, ..base }
}

fn stable_unknown(view: &View<'_>, candidates: &[String]) -> String {
    let (name, namespace) = (view.service.name_any(), view.service.namespace().unwrap_or_default());
    format!(
        "nothing says which of {} is stable, so nothing is moved or deleted; settle it with: kubectl -n {namespace} annotate isvc \
         {name} {}={}",
        candidates.join(", "),
        labels::STABLE_REVISION,
        candidates.first().map_or("<revision>", String::as_str)
    )
}

fn selector(service: &str) -> String {
    format!("{}={service},{}={}", labels::SERVICE, labels::COMPONENT, labels::COMPONENT_PREDICTOR)
}

fn ready_replicas(view: &View<'_>) -> i32 {
    let ready: usize = view.observed.situation.revisions.values().map(|revision| revision.ready.len()).sum();
    i32::try_from(ready).unwrap_or(i32::MAX)
}

/// The one word that tells most: what stands in the way first, then what goes on.
fn reason(view: &View<'_>, plan: &Plan, conditions: &[Condition]) -> String {
    let of = |name: &str| conditions.iter().find(|condition| condition.type_ == name);
    let not_true = |name: &str| of(name).filter(|condition| condition.status != "True");
    let obstacle =
        view.obstacle(&plan.rollout.target).filter(|_| view.missing_pods(&plan.rollout.target) > 0);
    let first = of(reasons::conditions::PROGRESSING)
        .filter(|condition| {
            condition.status == "False" && condition.reason != reasons::PROGRESS_DEADLINE_EXCEEDED
        })
        .or_else(|| not_true(reasons::conditions::READY))
        .map(|condition| condition.reason.clone());
    let then = || obstacle.map(|obstacle| obstacle.reason);
    let last = || {
        [
            not_true(reasons::conditions::CANARY_READY),
            of(reasons::conditions::TRAFFIC_APPLIED).filter(|condition| condition.status == "Unknown"),
            not_true(reasons::conditions::ROUTER_READY),
            of(reasons::conditions::PROMOTED).filter(|condition| condition.status != "True"),
            of(reasons::conditions::READY),
        ]
        .into_iter()
        .flatten()
        .next()
        .map(|condition| condition.reason.clone())
    };
    first.or_else(then).or_else(last).unwrap_or_default()
}

fn component(view: &View<'_>, plan: &Plan) -> ComponentStatus {
    let rollout = &plan.rollout;
    let revisions = &view.observed.situation.revisions;
    let with_pods = revisions.iter().filter(|(_, revision)| !revision.ready.is_empty());
    let newest = with_pods.max_by_key(|(_, revision)| revision.created_at).map(|(name, _)| name.clone());
    ComponentStatus {
        latest_created_revision: Some(rollout.target.clone()),
        latest_ready_revision: newest,
        latest_rolledout_revision: rollout.stable.clone(),
        previous_rolledout_revision: previous(view, rollout.stable.as_deref()),
        traffic: traffic(view, plan),
    }
}

/// The revision that was stable before, by the numbers of promotions.
fn previous(view: &View<'_>, stable: Option<&str>) -> Option<String> {
    let number = |name: &String| {
        let revision = view.observed.children.revisions.get(name)?;
        revision.annotations().get(labels::PROMOTION)?.parse::<u64>().ok()
    };
    let names = view.observed.children.revisions.keys().filter(|name| stable != Some(name.as_str()));
    names.filter_map(|name| Some((number(name)?, name.clone()))).max().map(|(_, name)| name)
}

/// Who gets what: every revision that runs, stable first.
fn traffic(view: &View<'_>, plan: &Plan) -> Vec<TrafficTarget> {
    let rollout = &plan.rollout;
    let running = view.observed.situation.revisions.iter().filter(|(_, revision)| revision.is_running());
    let mut all: Vec<TrafficTarget> = running
        .map(|(name, _)| {
            let is_stable = rollout.stable.as_ref().unwrap_or(&rollout.target) == name;
            let is_canary = rollout.canary.as_ref() == Some(name);
            let (tag, asked, in_force) = if is_canary && rollout.stable.is_some() {
                ("canary", rollout.asked, rollout.in_force)
            } else if is_stable {
                match rollout.stable {
                    Some(_) => ("stable", rollout.asked.rest(), rollout.in_force.rest()),
                    None => ("stable", Share::ALL, Share::ALL),
                }
            } else if *name == rollout.target {
                ("canary", Share::NONE, Share::NONE)
            } else {
                ("leaving", Share::NONE, Share::NONE)
            };
            TrafficTarget {
                revision_name: name.clone(),
                tag: tag.to_owned(),
                percent: asked.to_string(),
                in_force: in_force.to_string(),
                ready_pods: i32::try_from(view.ready_pods(name)).unwrap_or(i32::MAX),
                desired_pods: i32::try_from(view.desired_pods(name)).unwrap_or(i32::MAX),
                url: Some(address(name, &view.service.namespace().unwrap_or_default())),
            }
        })
        .collect();
    all.sort_by_key(|target| (target.tag != "stable", target.tag != "canary", target.revision_name.clone()));
    all
}

fn model_status(view: &View<'_>, plan: &Plan) -> ModelStatus {
    let target = &plan.rollout.target;
    let obstacle = view.obstacle(target).filter(|_| view.missing_pods(target) > 0);
    let word = match &obstacle {
        Some(_) => "BlockedByFailedLoad",
        None if view.ready_pods(target) == 0 => "InProgress",
        None => "UpToDate",
    };
    ModelStatus {
        transition_status: word.to_owned(),
        last_failure_info: obstacle.map(|obstacle| FailureInfo {
            reason: obstacle.reason,
            message: obstacle.message,
            model_revision_name: target.clone(),
            exit_code: obstacle.exit_code,
        }),
    }
}

/// The revision beside the stable one: today's, or the former one that is on its way out.
fn canary(plan: &Plan) -> Option<String> {
    let rollout = &plan.rollout;
    let stable = rollout.stable.as_ref()?;
    if rollout.target == *stable { rollout.canary.clone() } else { Some(rollout.target.clone()) }
}

/// `10`, or `10→5` where fewer pods are ready than the share needs.
fn percent(plan: &Plan) -> Option<String> {
    let rollout = &plan.rollout;
    if matches!(rollout.phase, Phase::First | Phase::Steady) {
        return None;
    }
    if rollout.asked == rollout.in_force {
        return Some(rollout.asked.to_string());
    }
    Some(format!("{}→{}", rollout.asked, rollout.in_force))
}

fn routers(view: &View<'_>, plan: &Plan) -> RouterStatus {
    let live = view.observed.situation.routers.len();
    let acknowledged = live.saturating_sub(plan.rollout.unacknowledged.len());
    let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    RouterStatus { total: count(live), acknowledged: count(acknowledged) }
}

/// The resourceVersion as the number that it is.
pub fn version(service: &InferenceService) -> u64 {
    service.resource_version().and_then(|version| version.parse().ok()).unwrap_or_default()
}

/// Writes a status where it differs from the one that was read. True: it was written.
///
/// # Errors
/// What the API server said.
pub async fn write(
    context: &Context,
    service: &InferenceService,
    status: &InferenceServiceStatus,
) -> Result<bool, Error> {
    if service.status.as_ref() == Some(status) {
        return Ok(false);
    }
    let name = service.name_any();
    let body = json!({
        "apiVersion": format!("{}/{}", serin_crds::GROUP, serin_crds::VERSION),
        "kind": "InferenceService",
        "metadata": {"name": name, "uid": service.uid()},
        "status": status
    });
    let api: Api<InferenceService> =
        Api::namespaced(context.client.clone(), &service.namespace().unwrap_or_default());
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    let written = api.patch_status(&name, &parameters, &Patch::Apply(&body)).await;
    let written = written.map_err(|error| Error(Box::new(error)))?;
    context.metrics.wrote("status", "InferenceService");
    let object = Group::of(&service.namespace().unwrap_or_default(), &name);
    context.told.wrote(object, version(&written), status.clone());
    Ok(true)
}
