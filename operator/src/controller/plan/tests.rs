//! Every row of the design's table (§2.2) by name, then random histories.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serin_crds::acks::{RevisionAck, RouteAck};
use serin_crds::{InferenceRouteSpec, Share};

use super::*;
use crate::controller::situation::*;

mod histories;
mod table;

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn wishes(target: &str, percent: Option<u8>, size: u32) -> Wishes {
    Wishes {
        generation: 1,
        target: target.to_owned(),
        percent,
        size,
        max_surge: Bound::Percent(100),
        max_unavailable: Bound::Pods(0),
        held: false,
        plan_share: None,
        mirror: Share::NONE,
        progress_deadline: Duration::from_secs(600),
        hold_seconds: 10,
        history_limit: 10,
        timeout_seconds: 60,
        release_hold: None,
    }
}

/// A situation, built by what a test wants to say. Two routers, which have acknowledged everything that is there.
#[derive(Clone)]
struct Scene {
    wishes: Wishes,
    situation: Situation,
}

impl Scene {
    fn new(target: &str, percent: Option<u8>, size: u32) -> Scene {
        let situation = Situation {
            stable: StableRecord::Missing,
            copies: StableCopies::default(),
            revisions: BTreeMap::new(),
            route: None,
            port: 10_000,
            routers: Vec::new(),
        };
        Scene { wishes: wishes(target, percent, size), situation }
    }

    fn stable(mut self, name: &str) -> Scene {
        self.situation.stable =
            if name.is_empty() { StableRecord::None } else { StableRecord::Named(name.to_owned()) };
        self
    }

    /// A revision of `replicas` pods, of which the first `ready` are ready.
    fn revision(mut self, name: &str, replicas: u32, ready: u32) -> Scene {
        let view = RevisionView {
            recorded: true,
            created_at: Some(now() - SignedDuration::from_secs(60)),
            replicas: Some(replicas),
            pods: replicas,
            ready: (0..ready).map(|index| format!("{name}-{index}")).collect(),
            last_ready_at: (ready > 0).then(now),
            timeout_seconds: 60,
        };
        self.situation.revisions.insert(name.to_owned(), view);
        self
    }

    fn surge(mut self, surge: Bound, unavailable: Bound) -> Scene {
        self.wishes.max_surge = surge;
        self.wishes.max_unavailable = unavailable;
        self
    }

    /// The route that stands, acknowledged by both routers.
    fn route(mut self, stable: &str, canary: &str, share: u16, stable_count: u32) -> Scene {
        let name = |name: &str| (!name.is_empty()).then(|| name.to_owned());
        let mut names: Vec<String> = [name(stable), name(canary)].into_iter().flatten().collect();
        names.sort();
        self.situation.route = Some(RouteView {
            uid: "route".to_owned(),
            generation: 5,
            spec: InferenceRouteSpec {
                spec_generation: 1,
                port: 10_000,
                size: self.wishes.size,
                stable: name(stable),
                canary: name(canary),
                share,
                stable_count,
                hold_seconds: 10,
                revisions: names
                    .into_iter()
                    .map(|name| RouteRevision { service: name.clone(), name, timeout_seconds: 60 })
                    .collect(),
            },
        });
        self.acknowledged()
    }

    /// Both routers use the route and see every ready pod.
    fn acknowledged(mut self) -> Scene {
        self.situation.routers = ["router-1", "router-2"]
            .map(|name| RouterView {
                pod_uid: name.to_owned(),
                pod_name: name.to_owned(),
                ack: self.ack(),
                acknowledged_at: Some(now()),
                silent_since: None,
            })
            .to_vec();
        self
    }

    fn ack(&self) -> Option<RouteAck> {
        let route = self.situation.route.as_ref()?;
        let w = |name: &str| {
            let facts = facts::Facts::new(&self.wishes, &self.situation, None, now());
            facts.weight(name).parts()
        };
        let revisions = self.situation.revisions.iter().map(|(name, view)| {
            let endpoints = view.ready.iter().cloned().collect();
            (name.clone(), RevisionAck { endpoints, share: w(name), in_flight: 0 })
        });
        Some(RouteAck {
            name: "iris".to_owned(),
            route_uid: route.uid.clone(),
            generation: route.generation,
            revisions: revisions.collect(),
        })
    }

    fn plan(&self) -> Plan {
        plan(&self.wishes, &self.situation, now()).expect("no standstill")
    }

    /// Carries the plan out, and lets the routers follow.
    fn carried_out(mut self) -> Scene {
        let plan = self.plan();
        if let Some(record) = &plan.record {
            self = self.stable(&record.revision);
        }
        for name in &plan.keep {
            let view = self.situation.revisions.entry(name.clone()).or_default();
            view.recorded = true;
            view.replicas = Some(view.replicas.unwrap_or(0));
            view.created_at = view.created_at.or(Some(now()));
        }
        for (name, replicas) in plan.grow.iter().chain(&plan.shrink) {
            let view = self.situation.revisions.get_mut(name).expect("sized revisions are kept");
            view.replicas = Some(*replicas);
            view.pods = *replicas;
            while count(view) > *replicas {
                view.ready.pop_last();
            }
        }
        for name in &plan.delete {
            let view = self.situation.revisions.get_mut(name).expect("deleted revisions exist");
            (view.replicas, view.pods) = (None, 0);
            view.ready.clear();
        }
        let generation = self.situation.route.as_ref().map_or(1, |route| route.generation);
        let changed = self.situation.route.as_ref().is_none_or(|route| route.spec != plan.route);
        let generation = generation + i64::from(changed);
        self.situation.route = Some(RouteView { uid: "route".to_owned(), generation, spec: plan.route });
        self.acknowledged()
    }

    /// Every pod that was asked for is ready.
    fn all_ready(mut self) -> Scene {
        for (name, view) in &mut self.situation.revisions {
            view.pods = view.replicas.unwrap_or(0);
            view.ready = (0..view.pods).map(|index| format!("{name}-{index}")).collect();
            view.last_ready_at = Some(now());
        }
        self.acknowledged()
    }

    /// Carries out plans, with every pod ready in between, until nothing is left to do.
    fn settled(mut self) -> Scene {
        for _ in 0..200 {
            let next = self.clone().carried_out().all_ready();
            if next.situation == self.situation {
                return next;
            }
            self = next;
        }
        panic!("no end after 200 passes: {:#?}", self.plan());
    }
}

fn count(view: &RevisionView) -> u32 {
    u32::try_from(view.ready.len()).unwrap()
}

fn pods<const N: usize>(pairs: [(&str, u32); N]) -> BTreeMap<String, u32> {
    pairs.into_iter().map(|(name, pods)| (name.to_owned(), pods)).collect()
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}
