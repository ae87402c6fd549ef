//! From an InferenceRoute, the slices and the route before to the route in use. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serin_crds::labels;
use serin_crds::share::{ShareInput, in_force};
use serin_crds::{InferenceRoute, RouteRevision, Share};
use tokio::sync::Notify;

use super::members::{self, GONE_AFTER, Member, Standing};
use super::{Revision, Route, RouteState};
use crate::endpoint::Endpoint;
use crate::in_flight::RevisionState;
use crate::select::{Sequence, Usable};

/// The label by which a slice names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The EndpointSlices that exist, by Service and by their own name.
#[derive(Debug, Default)]
pub struct SliceIndex(BTreeMap<String, BTreeMap<String, EndpointSlice>>);

impl SliceIndex {
    /// Takes a slice in; answers the Service that it belongs to, if any.
    pub fn apply(&mut self, slice: EndpointSlice) -> Option<String> {
        let service = service_of(&slice)?.to_owned();
        let name = slice.metadata.name.clone().unwrap_or_default();
        self.0.entry(service.clone()).or_default().insert(name, slice);
        Some(service)
    }

    /// Takes a slice out; answers the Service that it belonged to, if any.
    pub fn remove(&mut self, slice: &EndpointSlice) -> Option<String> {
        let service = service_of(slice)?.to_owned();
        let slices = self.0.get_mut(&service)?;
        slices.remove(slice.metadata.name.as_deref().unwrap_or_default());
        if slices.is_empty() {
            self.0.remove(&service);
        }
        Some(service)
    }

    /// The slices of a Service.
    pub fn of(&self, service: &str) -> Vec<&EndpointSlice> {
        self.0.get(service).map(|slices| slices.values().collect()).unwrap_or_default()
    }
}

fn service_of(slice: &EndpointSlice) -> Option<&str> {
    slice.metadata.labels.as_ref()?.get(SERVICE_NAME).map(String::as_str)
}

/// What every route is built with.
#[derive(Clone, Debug)]
pub struct Builder {
    /// The namespace, part of each revision's identity.
    pub namespace: String,
    /// Idle connections to a runtime are closed after this time.
    pub idle_timeout: Duration,
    /// Notified when a revision without share has no request in flight any more.
    pub fell_to_zero: Arc<Notify>,
}

/// A route, and when time alone will change it.
#[derive(Debug)]
pub struct Built {
    /// The route to use.
    pub route: Route,
    /// When something that vanished is over.
    pub expires: Option<Instant>,
}

impl Builder {
    /// The route in use for this InferenceRoute, which is gone since `absent_since` if that is given.
    pub fn build(
        &self,
        source: &InferenceRoute,
        absent_since: Option<Instant>,
        slices: &SliceIndex,
        previous: Option<&Route>,
        now: Instant,
    ) -> Built {
        let spec = &source.spec;
        let name = source.metadata.name.as_deref().unwrap_or_default();
        let revisions: Vec<Revision> = spec
            .revisions
            .iter()
            .map(|revision| self.revision(name, revision, slices, previous, now))
            .collect();
        let position = |name: &Option<String>| {
            let name = name.as_deref()?;
            revisions.iter().position(|revision| &*revision.name == name)
        };
        let (stable, canary) = (position(&spec.stable), position(&spec.canary));
        let canary = canary.filter(|canary| Some(*canary) != stable);
        let ready = |index: Option<usize>| index.map_or(0, |index| revisions[index].counted.len() as u32);
        let asked = if canary.is_some() { Share::from_parts(spec.share) } else { Share::NONE };
        let share = in_force(ShareInput {
            asked,
            size: spec.size,
            stable_count: spec.stable_count,
            stable_ready: ready(stable),
            canary_ready: ready(canary),
        });
        let sequence = sequence(previous, &revisions, stable, canary, share);
        let expires = revisions
            .iter()
            .flat_map(|revision| &revision.members)
            .filter_map(|member| member.gone_since)
            .min()
            .map(|since| since + GONE_AFTER);
        let route = Route {
            name: previous.map_or_else(|| name.into(), |previous| previous.name.clone()),
            uid: source.metadata.uid.clone().unwrap_or_default(),
            generation: source.metadata.generation.unwrap_or_default(),
            port: spec.port,
            stable,
            canary,
            asked,
            share,
            sequence,
            hold: Duration::from_secs(spec.hold_seconds.into()),
            absent_since,
            retired: retired(previous, &revisions),
            state: previous.map_or_else(|| RouteState::new(now), |previous| previous.state.clone()),
            revisions,
        };
        watch_idle(&route);
        Built { route, expires }
    }

    fn revision(
        &self,
        service: &str,
        spec: &RouteRevision,
        slices: &SliceIndex,
        previous: Option<&Route>,
        now: Instant,
    ) -> Revision {
        let before = previous.and_then(|route| Some(&route.revisions[route.position(&spec.name)?]));
        let known = before.map(|revision| revision.members.as_slice()).unwrap_or_default();
        let members = members::update(&slices.of(&spec.service), known, now, |uid, address| {
            Endpoint::new(uid, address, self.idle_timeout)
        });
        let state = before.map(|revision| revision.state.clone()).or_else(|| {
            let retired = &previous?.retired;
            retired.iter().find(|state| state.name() == spec.name).cloned()
        });
        let header =
            |value: String| HeaderValue::try_from(value).unwrap_or_else(|_| HeaderValue::from_static(""));
        Revision {
            name: spec.name.as_str().into(),
            timeout: Duration::from_secs(spec.timeout_seconds.into()),
            usable: usable(&members),
            counted: counted(&members),
            members,
            answered_by: header(spec.name.clone()),
            identity: header(labels::identity(&self.namespace, service, &spec.name)),
            state: state
                .unwrap_or_else(|| RevisionState::new(service, &spec.name, self.fell_to_zero.clone())),
        }
    }
}

fn usable(members: &[Member]) -> Usable {
    let of = |wanted: fn(&Member) -> bool| {
        members.iter().filter(|member| wanted(member)).map(|member| member.endpoint.clone()).collect()
    };
    Usable {
        ready: of(|member| member.standing == Standing::Ready && !member.last_resort),
        terminating: of(|member| member.standing == Standing::Terminating),
        last_resort: of(|member| member.last_resort),
    }
}

/// uids of the pods that count, sorted and each once.
fn counted(members: &[Member]) -> Vec<Arc<str>> {
    let mut uids: Vec<Arc<str>> = members
        .iter()
        .filter(|member| member.standing == Standing::Ready && !member.last_resort)
        .map(|member| member.endpoint.uid().clone())
        .collect();
    uids.sort();
    uids.dedup();
    uids
}

/// The sequence goes on while the split is the same, and begins at a random place when it is not.
fn sequence(
    previous: Option<&Route>,
    revisions: &[Revision],
    stable: Option<usize>,
    canary: Option<usize>,
    share: Share,
) -> Arc<Sequence> {
    let name = |index: Option<usize>| index.map(|index| &*revisions[index].name);
    match previous {
        Some(route)
            if route.share == share
                && route.stable.map(|index| &*route.revisions[index].name) == name(stable)
                && route.canary.map(|index| &*route.revisions[index].name) == name(canary) =>
        {
            route.sequence.clone()
        }
        _ => Arc::new(Sequence::new(rand::random())),
    }
}

/// Revisions that were in use and are not any more. One that leaves now is kept whatever its count says, since the
/// table that names it is still the current one; one that left earlier is dropped as soon as nothing is in flight.
fn retired(previous: Option<&Route>, revisions: &[Revision]) -> Vec<Arc<RevisionState>> {
    let Some(previous) = previous else { return Vec::new() };
    let leaving = previous.revisions.iter().map(|revision| &revision.state);
    let left = previous.retired.iter().filter(|state| state.in_flight() > 0);
    let in_use =
        |state: &Arc<RevisionState>| revisions.iter().any(|revision| Arc::ptr_eq(&revision.state, state));
    leaving.chain(left).filter(|state| !in_use(state)).cloned().collect()
}

/// Whoever takes a revision away waits until one without share has nothing in flight.
fn watch_idle(route: &Route) {
    for (index, revision) in route.revisions.iter().enumerate() {
        revision.state.watch(route.share_of(index) == Share::NONE);
    }
    for state in &route.retired {
        state.watch(true);
    }
}
