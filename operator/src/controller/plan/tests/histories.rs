//! Random histories: a small world of pods, routers and an operator that is cut off after any write, and what must hold in it
//! after every step. Each router learns of routes and of endpoints separately and late; the operator learns of each router late.

use proptest::prelude::*;

use super::*;

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    /// The operator makes a pass and is cut off after so many of its writes.
    Operator { writes: usize },
    /// A pod of the revision with this index gets ready.
    PodReady { revision: usize },
    /// A pod of the revision with this index is lost. From then on only the end is checked, not the capacity on the way.
    PodLost { revision: usize },
    /// A router takes over the route as it is now.
    RouterSeesRoute { router: usize },
    /// A router takes over the endpoints as they are now.
    RouterSeesEndpoints { router: usize },
    /// The operator hears from a router.
    OperatorHears { router: usize },
    /// The user sets model and percentage.
    User { target: usize, percent: Option<u8> },
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// Any step; a pod is lost `lost` times in 20.
fn step(lost: u32) -> impl Strategy<Value = Step> {
    let percent = prop_oneof![Just(None), (0u8..=100).prop_map(Some)];
    prop_oneof![
        6 => (0usize..8).prop_map(|writes| Step::Operator { writes }),
        5 => (0usize..4).prop_map(|revision| Step::PodReady { revision }),
        lost => (0usize..4).prop_map(|revision| Step::PodLost { revision }),
        3 => (0usize..2).prop_map(|router| Step::RouterSeesRoute { router }),
        3 => (0usize..2).prop_map(|router| Step::RouterSeesEndpoints { router }),
        3 => (0usize..2).prop_map(|router| Step::OperatorHears { router }),
        1 => (0usize..4, percent).prop_map(|(target, percent)| Step::User { target, percent }),
    ]
}

#[derive(Clone, Debug, Default)]
struct RouterWorld {
    route: Option<RouteView>,
    endpoints: BTreeMap<String, BTreeSet<String>>,
}

impl RouterWorld {
    fn shares(&self) -> BTreeMap<String, Share> {
        let Some(route) = &self.route else { return BTreeMap::new() };
        let ready = |name: &String| u32::try_from(self.endpoints.get(name).map_or(0, BTreeSet::len)).unwrap();
        let spec = &route.spec;
        let canary = spec.canary.as_ref().map_or(Share::NONE, |canary| {
            serin_crds::share::in_force(serin_crds::share::ShareInput {
                asked: Share::from_parts(spec.share),
                size: spec.size,
                stable_count: spec.stable_count,
                stable_ready: spec.stable.as_ref().map_or(0, ready),
                canary_ready: ready(canary),
            })
        });
        let canary_share = spec.canary.iter().map(|name| (name.clone(), canary));
        let stable_share = spec.stable.iter().map(|name| (name.clone(), canary.rest()));
        canary_share.chain(stable_share).collect()
    }

    fn ack(&self) -> Option<RouteAck> {
        let route = self.route.as_ref()?;
        let shares = self.shares();
        let revisions = route.spec.revisions.iter().map(|revision| {
            let endpoints = self.endpoints.get(&revision.name).into_iter().flatten().cloned().collect();
            let share = shares.get(&revision.name).map_or(0, |share| share.parts());
            (revision.name.clone(), RevisionAck { endpoints, share, in_flight: 0 })
        });
        Some(RouteAck {
            name: "iris".to_owned(),
            route_uid: route.uid.clone(),
            generation: route.generation,
            revisions: revisions.collect(),
        })
    }
}

struct World {
    scene: Scene,
    routers: [RouterWorld; 2],
    next_pod: u32,
    /// The stable revision has had N ready pods once.
    was_up: bool,
    /// A pod was lost by itself.
    lost_pods: bool,
}

impl World {
    fn new(size: u32, surge: Bound, unavailable: Bound) -> World {
        let mut scene = Scene::new("a", None, size).surge(surge, unavailable);
        let router = |name: &str| RouterView {
            pod_uid: name.to_owned(),
            pod_name: name.to_owned(),
            ack: None,
            acknowledged_at: None,
            silent_since: None,
        };
        scene.situation.routers = vec![router("router-0"), router("router-1")];
        World { scene, routers: Default::default(), next_pod: 0, was_up: false, lost_pods: false }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Operator { writes } => self.operator(*writes),
            Step::PodReady { revision } => self.pod_ready(NAMES[*revision]),
            Step::PodLost { revision } => self.pod_lost(NAMES[*revision]),
            Step::RouterSeesRoute { router } => self.routers[*router].route = self.scene.situation.route.clone(),
            Step::RouterSeesEndpoints { router } => {
                let revisions = &self.scene.situation.revisions;
                self.routers[*router].endpoints =
                    revisions.iter().map(|(name, view)| (name.clone(), view.ready.clone())).collect();
            }
            Step::OperatorHears { router } => {
                self.scene.situation.routers[*router].ack = self.routers[*router].ack();
                self.scene.situation.routers[*router].acknowledged_at = Some(now());
            }
            Step::User { target, percent } => {
                self.scene.wishes.target = NAMES[*target].to_owned();
                self.scene.wishes.percent = *percent;
                self.scene.wishes.generation += 1;
            }
        }
    }

    fn pod_ready(&mut self, name: &str) {
        let Some(view) = self.scene.situation.revisions.get_mut(name) else { return };
        if count(view) < view.replicas.unwrap_or(0) {
            view.ready.insert(format!("{name}-{}", self.next_pod));
            view.last_ready_at = Some(now());
            self.next_pod += 1;
        }
    }

    fn pod_lost(&mut self, name: &str) {
        let view = self.scene.situation.revisions.get_mut(name);
        if view.is_some_and(|view| view.ready.pop_first().is_some()) {
            self.lost_pods = true;
        }
    }

    /// A pass of the operator, cut off after `limit` writes.
    fn operator(&mut self, limit: usize) {
        let plan = self.scene.plan();
        let mut left = limit;
        let mut may_write = || {
            let may = left > 0;
            left = left.saturating_sub(1);
            may
        };
        let early = |record: &&Record| matches!(record.cause, RecordCause::Begin | RecordCause::Recovered);
        if let Some(record) = plan.record.as_ref().filter(early)
            && may_write()
        {
            self.record(record);
        }
        for name in &plan.keep {
            if self.scene.situation.revisions.get(name).is_none_or(|view| !view.is_running()) && may_write() {
                let view = self.scene.situation.revisions.entry(name.clone()).or_default();
                (view.recorded, view.replicas, view.created_at) = (true, Some(0), Some(now()));
                view.timeout_seconds = 60;
            }
        }
        let generation = self.scene.situation.route.as_ref().map_or(0, |route| route.generation);
        if self.scene.situation.route.as_ref().is_none_or(|route| route.spec != plan.route) && may_write() {
            let route = RouteView { uid: "route".to_owned(), generation: generation + 1, spec: plan.route.clone() };
            self.scene.situation.route = Some(route);
        }
        for (name, replicas) in plan.grow.iter().chain(&plan.shrink) {
            if self.scene.situation.revisions.contains_key(name) && may_write() {
                self.resize(name, *replicas);
            }
        }
        if let Some(record) = plan.record.as_ref().filter(|record| !early(record))
            && may_write()
        {
            self.record(record);
        }
        for name in &plan.delete {
            if may_write() {
                self.assert_unreferenced(name);
                let view = self.scene.situation.revisions.get_mut(name).unwrap();
                view.ready.clear();
                (view.replicas, view.pods) = (None, 0);
            }
        }
    }

    fn record(&mut self, record: &Record) {
        self.scene.situation.stable = if record.revision.is_empty() {
            StableRecord::None
        } else {
            StableRecord::Named(record.revision.clone())
        };
    }

    fn resize(&mut self, name: &str, replicas: u32) {
        let view = self.scene.situation.revisions.get_mut(name).unwrap();
        (view.replicas, view.pods) = (Some(replicas), replicas);
        while count(view) > replicas {
            view.ready.pop_first();
        }
    }

    /// No router gives requests to a revision that goes away.
    fn assert_unreferenced(&self, name: &str) {
        for router in &self.routers {
            let named = router.route.as_ref().is_some_and(|route| route.spec.revisions.iter().any(|r| r.name == name));
            assert!(!named, "{name} is deleted while a router's table names it");
        }
    }

    /// Ready pods of the revisions that may serve.
    fn ready_pods(&self) -> u32 {
        let route = self.scene.situation.route.as_ref().map(|route| &route.spec);
        let may_serve = |name: &String| {
            route.is_some_and(|route| [&route.stable, &route.canary].into_iter().flatten().any(|listed| listed == name))
        };
        self.scene.situation.revisions.iter().filter(|(name, _)| may_serve(name)).map(|(_, view)| count(view)).sum()
    }

    /// What must hold after every step.
    fn check(&mut self) {
        let wishes = &self.scene.wishes;
        let surge = wishes.max_surge.rounded_up(wishes.size);
        let unavailable = wishes.max_unavailable.rounded_down(wishes.size);
        let replicas: u32 = self.scene.situation.revisions.values().filter_map(|view| view.replicas).sum();
        assert!(replicas <= wishes.size + surge, "{replicas} pods of N {} + e {surge}", wishes.size);
        if let StableRecord::Named(stable) = &self.scene.situation.stable {
            self.was_up |= self.scene.situation.revisions.get(stable).is_some_and(|view| count(view) >= wishes.size);
        }
        if self.was_up && !self.lost_pods {
            let ready = self.ready_pods();
            assert!(ready + unavailable >= wishes.size, "{ready} ready pods of N {} - u {unavailable}", wishes.size);
        }
        for router in &self.routers {
            for (name, share) in router.shares() {
                let runs = self.scene.situation.revisions.get(&name).is_some_and(RevisionView::is_running);
                assert!(share == Share::NONE || runs, "{name} has {share} % of a router and does not run");
            }
        }
    }

    /// Everything happens, again and again, until nothing changes.
    fn settle(&mut self) {
        for _ in 0..400 {
            let before = format!("{:?}{:?}", self.scene.situation, self.routers);
            self.operator(usize::MAX);
            self.check();
            for name in NAMES {
                for _ in 0..self.scene.wishes.size {
                    self.pod_ready(name);
                }
            }
            for router in 0..2 {
                self.take(&Step::RouterSeesRoute { router });
                self.take(&Step::RouterSeesEndpoints { router });
                self.take(&Step::OperatorHears { router });
                self.check();
            }
            if before == format!("{:?}{:?}", self.scene.situation, self.routers) {
                return;
            }
        }
        panic!("not settled: {:#?}\n{:#?}", self.scene.plan(), self.scene.situation);
    }

    /// The world in a few lines, for a failure's message.
    fn told(&self) -> String {
        let (wishes, situation) = (&self.scene.wishes, &self.scene.situation);
        let mut text = format!("stable {:?}, asked {} at {:?}\n", situation.stable, wishes.target, wishes.percent);
        for (name, view) in &situation.revisions {
            text += &format!("{name}: {} of {:?} ready\n", view.ready.len(), view.replicas);
        }
        let plan = self.scene.plan();
        format!("{text}{:#?}\n{:#?}", situation.route, (plan.route, plan.grow, plan.shrink, plan.delete, plan.record, plan.rollout))
    }

    /// The end that the spec asks for, however it was reached.
    fn assert_arrived(&self) {
        let wishes = &self.scene.wishes;
        let StableRecord::Named(stable) = &self.scene.situation.stable else { panic!("no stable revision") };
        let running: BTreeSet<&str> =
            self.scene.situation.revisions.iter().filter(|(_, view)| view.is_running()).map(|(name, _)| name.as_str()).collect();
        let promoted = wishes.percent.is_none_or(|percent| percent == 100);
        if promoted {
            assert_eq!(stable, &wishes.target, "{}", self.told());
        }
        let expected: BTreeSet<&str> = [stable.as_str(), wishes.target.as_str()].into();
        assert_eq!(running, expected, "{}", self.told());
        if *stable == wishes.target {
            assert_eq!(self.scene.situation.revisions[stable].replicas, Some(wishes.size));
        } else if wishes.max_surge == Bound::Percent(100) {
            let share = self.routers[0].shares()[&wishes.target];
            assert_eq!(share, Share::from_percent(wishes.percent.unwrap_or(100)), "the share asked is in force");
        }
    }
}

fn limits() -> impl Strategy<Value = (u32, Bound, Bound)> {
    (1u32..=6).prop_flat_map(|size| {
        let tight = (Just(size), (0..=size).prop_map(Bound::Pods), (1..=size).prop_map(Bound::Pods));
        let some_surge = (Just(size), (1..=size).prop_map(Bound::Pods), Just(Bound::Pods(0)));
        prop_oneof![Just((size, Bound::Percent(100), Bound::Pods(0))), tight, some_surge]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn any_history_keeps_capacity_and_arrives(
        (size, surge, unavailable) in limits(),
        steps in prop::collection::vec(step(0), 0..120),
    ) {
        let mut world = World::new(size, surge, unavailable);
        for step in &steps {
            world.take(step);
            world.check();
        }
        world.settle();
        world.assert_arrived();
    }

    #[test]
    fn any_history_with_lost_pods_arrives(
        (size, surge, unavailable) in limits(),
        steps in prop::collection::vec(step(2), 0..120),
    ) {
        let mut world = World::new(size, surge, unavailable);
        for step in &steps {
            world.take(step);
            world.check();
        }
        world.settle();
        world.assert_arrived();
    }
}
