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
    /// A pod of the revision with this index is lost.
    PodLost { revision: usize },
    /// The Deployment of the revision with this index is deleted by hand.
    DeploymentLost { revision: usize },
    /// Somebody writes the stable record: a name, the empty string, or away with it.
    RecordByHand { record: StableRecord },
    /// A router takes over the route as it is now.
    RouterSeesRoute { router: usize },
    /// A router takes over the endpoints as they are now.
    RouterSeesEndpoints { router: usize },
    /// The requests that a router gave by an older table are answered.
    RequestsEnd { router: usize },
    /// The operator hears from a router.
    OperatorHears { router: usize },
    /// The connection to a router breaks: what it said counts no more.
    ConnectionLost { router: usize },
    /// A router's process starts again, from what is there now.
    RouterRestarts { router: usize },
    /// One router more.
    RouterJoins,
    /// One router less.
    RouterLeaves { router: usize },
    /// The user sets model and percentage.
    User { target: usize, percent: Option<u8> },
    /// The user patches the percentage alone.
    Percent { percent: Option<u8> },
    /// The user patches the size, or autoscaling does.
    Size { size: u32 },
    /// The user patches surge and unavailability.
    Limits { surge: Bound, unavailable: Bound },
    /// The canary is held, or let go.
    Held { held: bool },
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn percent() -> impl Strategy<Value = Option<u8>> {
    prop_oneof![Just(None), Just(Some(0)), Just(Some(100)), (0u8..=100).prop_map(Some)]
}

/// What happens by itself and by the user's wish.
fn ordinary() -> BoxedStrategy<Step> {
    prop_oneof![
        6 => (0usize..8).prop_map(|writes| Step::Operator { writes }),
        4 => Just(Step::Operator { writes: 8 }),
        5 => (0usize..4).prop_map(|revision| Step::PodReady { revision }),
        3 => (0usize..3).prop_map(|router| Step::RouterSeesRoute { router }),
        3 => (0usize..3).prop_map(|router| Step::RouterSeesEndpoints { router }),
        3 => (0usize..3).prop_map(|router| Step::OperatorHears { router }),
        1 => (0usize..3).prop_map(|router| Step::RequestsEnd { router }),
        1 => (0usize..4, percent()).prop_map(|(target, percent)| Step::User { target, percent }),
        1 => percent().prop_map(|percent| Step::Percent { percent }),
    ]
    .boxed()
}

/// Routers that come, go and forget; limits, sizes and holds that change on the way.
fn unquiet() -> BoxedStrategy<Step> {
    prop_oneof![
        12 => ordinary(),
        1 => (0usize..3).prop_map(|router| Step::ConnectionLost { router }),
        1 => (0usize..3).prop_map(|router| Step::RouterRestarts { router }),
        1 => Just(Step::RouterJoins),
        1 => (0usize..3).prop_map(|router| Step::RouterLeaves { router }),
        1 => (1u32..=6).prop_map(|size| Step::Size { size }),
        1 => any::<bool>().prop_map(|held| Step::Held { held }),
        1 => limits(6).prop_map(|(surge, unavailable)| Step::Limits { surge, unavailable }),
    ]
    .boxed()
}

/// Pods and Deployments that go away, and hands that write the record.
fn hostile() -> BoxedStrategy<Step> {
    let record = prop_oneof![
        Just(StableRecord::Missing),
        Just(StableRecord::None),
        (0usize..4).prop_map(|index| StableRecord::Named(NAMES[index].to_owned())),
        Just(StableRecord::Named("nothing".to_owned())),
    ];
    prop_oneof![
        18 => unquiet(),
        3 => (0usize..4).prop_map(|revision| Step::PodLost { revision }),
        1 => (0usize..4).prop_map(|revision| Step::DeploymentLost { revision }),
        1 => record.prop_map(|record| Step::RecordByHand { record }),
    ]
    .boxed()
}

#[derive(Clone, Debug, Default, PartialEq)]
struct RouterWorld {
    route: Option<RouteView>,
    endpoints: BTreeMap<String, BTreeSet<String>>,
    /// Revisions that have requests of an older table.
    in_flight: BTreeSet<String>,
    /// It had somebody who answers once; from then on it must.
    answered: bool,
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

    fn take_route(&mut self, route: Option<RouteView>) {
        let given = self.shares().into_iter().filter(|(_, share)| *share > Share::NONE);
        self.in_flight.extend(given.map(|(name, _)| name));
        self.route = route;
    }

    fn ack(&self) -> Option<RouteAck> {
        let route = self.route.as_ref()?;
        let shares = self.shares();
        let named = route.spec.revisions.iter().map(|revision| &revision.name).chain(&self.in_flight);
        let revisions = named.map(|name| {
            let endpoints = self.endpoints.get(name).into_iter().flatten().cloned().collect();
            let share = shares.get(name).map_or(0, |share| share.parts());
            let in_flight = u64::from(self.in_flight.contains(name));
            (name.clone(), RevisionAck { endpoints, share, in_flight })
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
    routers: Vec<RouterWorld>,
    next: u32,
    /// The stable revision has had N ready pods once, since the limits or the size were patched last.
    was_up: bool,
    /// Something was taken away by force: from then on only the end is checked, not the capacity on the way.
    robbed: bool,
}

impl World {
    fn new(size: u32, surge: Bound, unavailable: Bound) -> World {
        let scene = Scene::new("a", None, size).surge(surge, unavailable);
        let mut world = World { scene, routers: Vec::new(), next: 0, was_up: false, robbed: false };
        world.take(&Step::RouterJoins);
        world.take(&Step::RouterJoins);
        world
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Operator { writes } => self.operator(*writes),
            Step::PodReady { revision } => self.pod_ready(NAMES[*revision]),
            Step::PodLost { revision } => {
                let view = self.scene.situation.revisions.get_mut(NAMES[*revision]);
                self.robbed |= view.is_some_and(|view| view.ready.pop_first().is_some());
            }
            Step::DeploymentLost { revision } => {
                if let Some(view) = self.scene.situation.revisions.get_mut(NAMES[*revision]) {
                    (view.replicas, view.pods) = (None, 0);
                    view.ready.clear();
                    self.robbed = true;
                }
            }
            Step::RecordByHand { record } => {
                self.scene.situation.stable = record.clone();
                self.robbed = true;
            }
            Step::User { target, percent } => {
                self.scene.wishes.target = NAMES[*target].to_owned();
                self.scene.wishes.percent = *percent;
                self.scene.wishes.generation += 1;
            }
            Step::Percent { percent } => {
                self.scene.wishes.percent = *percent;
                self.scene.wishes.generation += 1;
            }
            Step::Size { size } => {
                self.scene.wishes.size = *size;
                self.was_up = false;
            }
            Step::Limits { surge, unavailable } => {
                (self.scene.wishes.max_surge, self.scene.wishes.max_unavailable) = (*surge, *unavailable);
                self.was_up = false;
            }
            Step::Held { held } => self.scene.wishes.held = *held,
            Step::RouterJoins => self.router_joins(),
            Step::RouterSeesRoute { router }
            | Step::RouterSeesEndpoints { router }
            | Step::RequestsEnd { router }
            | Step::OperatorHears { router }
            | Step::ConnectionLost { router }
            | Step::RouterRestarts { router }
            | Step::RouterLeaves { router } => {
                if *router < self.routers.len() {
                    self.router(step, *router);
                }
            }
        }
    }

    fn router(&mut self, step: &Step, index: usize) {
        let (route, endpoints) = (self.scene.situation.route.clone(), self.endpoints());
        let (router, view) = (&mut self.routers[index], &mut self.scene.situation.routers[index]);
        match step {
            Step::RouterSeesRoute { .. } => router.take_route(route),
            Step::RouterSeesEndpoints { .. } => router.endpoints = endpoints,
            Step::RequestsEnd { .. } => router.in_flight.clear(),
            Step::OperatorHears { .. } => (view.ack, view.acknowledged_at) = (router.ack(), Some(now())),
            Step::ConnectionLost { .. } => (view.ack, view.acknowledged_at) = (None, None),
            Step::RouterRestarts { .. } => {
                (view.ack, view.acknowledged_at) = (None, None);
                *router = RouterWorld { route, endpoints, ..RouterWorld::default() };
            }
            Step::RouterLeaves { .. } => {
                self.routers.remove(index);
                self.scene.situation.routers.remove(index);
            }
            _ => unreachable!("not a router's step: {step:?}"),
        }
    }

    fn router_joins(&mut self) {
        if self.routers.len() == 3 {
            return;
        }
        self.next += 1;
        self.scene.situation.routers.push(RouterView {
            pod_uid: format!("router-{}", self.next),
            pod_name: format!("router-{}", self.next),
            ack: None,
            acknowledged_at: None,
            silent_since: None,
        });
        let (route, endpoints) = (self.scene.situation.route.clone(), self.endpoints());
        self.routers.push(RouterWorld { route, endpoints, ..RouterWorld::default() });
    }

    fn endpoints(&self) -> BTreeMap<String, BTreeSet<String>> {
        self.scene.situation.revisions.iter().map(|(name, view)| (name.clone(), view.ready.clone())).collect()
    }

    fn pod_ready(&mut self, name: &str) {
        let Some(view) = self.scene.situation.revisions.get_mut(name) else { return };
        if count(view) < view.replicas.unwrap_or(0) {
            self.next += 1;
            view.ready.insert(format!("{name}-{:04}", self.next));
            view.last_ready_at = Some(now());
        }
    }

    /// A pass of the operator, cut off after `limit` writes.
    fn operator(&mut self, limit: usize) {
        self.scene.situation.copies.route =
            self.scene.situation.route.as_ref().and_then(|route| route.spec.stable.clone());
        let Ok(plan) = plan(&self.scene.wishes, &self.scene.situation, now()) else { return };
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
            let route =
                RouteView { uid: "route".to_owned(), generation: generation + 1, spec: plan.route.clone() };
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
        if record.cause == RecordCause::First {
            // Before there is a stable revision, each T replaces the one before at once.
            self.routers.iter_mut().for_each(|router| router.answered = false);
        }
        self.scene.situation.stable = if record.revision.is_empty() {
            StableRecord::None
        } else {
            StableRecord::Named(record.revision.clone())
        };
    }

    fn resize(&mut self, name: &str, replicas: u32) {
        let view = self.scene.situation.revisions.get_mut(name).unwrap();
        let grows = view.replicas.is_some_and(|before| before < replicas);
        (view.replicas, view.pods) = (Some(replicas), replicas);
        // A ReplicaSet takes its unready pods first, then the youngest.
        while count(view) > replicas {
            view.ready.pop_last();
        }
        let wishes = &self.scene.wishes;
        let surge = wishes.max_surge.rounded_up(wishes.size);
        let all: u32 = self.scene.situation.revisions.values().filter_map(|view| view.replicas).sum();
        assert!(
            !grows || all <= wishes.size + surge,
            "{name} grows: {all} pods of N {} + e {surge}",
            wishes.size
        );
    }

    /// No router gives requests to a revision that goes away, or waits for its answers.
    fn assert_unreferenced(&self, name: &str) {
        for router in &self.routers {
            let named = router
                .route
                .as_ref()
                .is_some_and(|route| route.spec.revisions.iter().any(|r| r.name == name));
            assert!(!named, "{name} is deleted while a router's table names it");
            assert!(!router.in_flight.contains(name), "{name} is deleted while it has requests");
        }
    }

    /// Ready pods of the revisions that may serve.
    fn ready_pods(&self) -> u32 {
        let route = self.scene.situation.route.as_ref().map(|route| &route.spec);
        let may_serve = |name: &String| {
            route.is_some_and(|route| {
                [&route.stable, &route.canary].into_iter().flatten().any(|listed| listed == name)
            })
        };
        self.scene
            .situation
            .revisions
            .iter()
            .filter(|(name, _)| may_serve(name))
            .map(|(_, view)| count(view))
            .sum()
    }

    /// What must hold after every step.
    fn check(&mut self) {
        let wishes = &self.scene.wishes;
        let unavailable = wishes.max_unavailable.rounded_down(wishes.size).min(wishes.size);
        if let StableRecord::Named(stable) = &self.scene.situation.stable {
            self.was_up |=
                self.scene.situation.revisions.get(stable).is_some_and(|view| count(view) >= wishes.size);
        }
        if self.was_up && !self.robbed {
            let ready = self.ready_pods();
            assert!(
                ready + unavailable >= wishes.size,
                "{ready} ready pods of N {} - u {unavailable}\n{}",
                wishes.size,
                self.told()
            );
        }
        let mut answered = Vec::new();
        for router in &self.routers {
            let shares = router.shares();
            let given = || shares.iter().filter(|(_, share)| **share > Share::NONE).map(|(name, _)| name);
            for name in given() {
                let runs = self.scene.situation.revisions.get(name).is_some_and(RevisionView::is_running);
                assert!(runs || self.robbed, "{name} has a share in a router and does not run");
            }
            let answers = |name: &String| {
                let view = &self.scene.situation.revisions[name];
                router
                    .endpoints
                    .get(name)
                    .is_some_and(|known| known.iter().any(|uid| view.ready.contains(uid)))
            };
            let must_answer = router.answered && self.was_up && !self.robbed && unavailable < wishes.size;
            let is_answered = given().any(answers);
            assert!(!must_answer || is_answered, "nobody answers a router: {shares:?}\n{}", self.told());
            answered.push(is_answered);
        }
        for (router, answered) in self.routers.iter_mut().zip(answered) {
            router.answered |= answered;
        }
    }

    /// Operator and routers go on until nothing changes, while no pod gets ready.
    fn rest(&mut self) {
        let mut last = Vec::new();
        for round in 0..60 {
            let before = (self.scene.situation.clone(), self.routers.clone());
            self.operator(usize::MAX);
            self.check();
            for router in 0..self.routers.len() {
                self.take(&Step::RouterSeesRoute { router });
                self.take(&Step::RouterSeesEndpoints { router });
                self.take(&Step::RequestsEnd { router });
                self.take(&Step::OperatorHears { router });
                self.check();
            }
            if before == (self.scene.situation.clone(), self.routers.clone()) {
                return;
            }
            if round >= 55 {
                last.push(self.told());
            }
        }
        panic!("no rest:\n{}", last.join("\n"));
    }

    /// Everything happens, again and again, until nothing changes: one pod at a time, each after all else has come to rest.
    fn settle(&mut self) {
        for _ in 0..200 {
            self.rest();
            if plan(&self.scene.wishes, &self.scene.situation, now()).is_err() {
                // The person that took the record away settles it by the command that the message has.
                self.scene.situation.stable = StableRecord::None;
                continue;
            }
            let before = self.next;
            for name in NAMES {
                self.pod_ready(name);
                if self.next > before {
                    break;
                }
            }
            if self.next == before {
                return;
            }
        }
        panic!("not settled: {}", self.told());
    }

    /// The world in a few lines, for a failure's message.
    fn told(&self) -> String {
        let (wishes, situation) = (&self.scene.wishes, &self.scene.situation);
        let mut text = format!(
            "stable {:?}, asked {} at {:?}, held {}, N {} e {:?} u {:?}\n",
            situation.stable,
            wishes.target,
            wishes.percent,
            wishes.held,
            wishes.size,
            wishes.max_surge,
            wishes.max_unavailable,
        );
        for (name, view) in &situation.revisions {
            text += &format!("{name}: {} of {:?} ready\n", view.ready.len(), view.replicas);
        }
        if let Some(route) = &situation.route {
            let spec = &route.spec;
            text += &format!(
                "route {}: {:?} + {:?} at {}, s {}\n",
                route.generation, spec.stable, spec.canary, spec.share, spec.stable_count
            );
        }
        if let Ok(plan) = plan(wishes, situation, now()) {
            let route = &plan.route;
            text += &format!(
                "plan: {:?} + {:?} at {}, s {} ",
                route.stable, route.canary, route.share, route.stable_count
            );
            text += &format!(
                "grow {:?} shrink {:?} delete {:?} record {:?}\n",
                plan.grow, plan.shrink, plan.delete, plan.record
            );
        }
        text
    }

    /// The end that the spec asks for, however it was reached.
    fn assert_arrived(&self) {
        let wishes = &self.scene.wishes;
        let StableRecord::Named(stable) = &self.scene.situation.stable else {
            panic!("no stable revision: {}", self.told())
        };
        let running: BTreeSet<&str> = self
            .scene
            .situation
            .revisions
            .iter()
            .filter(|(_, view)| view.is_running())
            .map(|(name, _)| name.as_str())
            .collect();
        let asked =
            if wishes.held { Share::NONE } else { Share::from_percent(wishes.percent.unwrap_or(100)) };
        if asked == Share::ALL {
            assert_eq!(stable, &wishes.target, "{}", self.told());
        }
        let expected: BTreeSet<&str> = [stable.as_str(), wishes.target.as_str()].into();
        assert_eq!(running, expected, "{}", self.told());
        let replicas = |name: &str| self.scene.situation.revisions[name].replicas.unwrap();
        if *stable == wishes.target {
            assert_eq!(replicas(stable), wishes.size, "{}", self.told());
            return;
        }
        // What the formulas give: S its part of N + e, T the rest as far as its share needs pods.
        let (size, room) = (wishes.size, wishes.size + wishes.max_surge.rounded_up(wishes.size));
        let target_pods = asked.pods_of(size).max(1);
        let stable_pods = size.min(room - target_pods).max(1);
        assert_eq!(replicas(stable), stable_pods, "{}", self.told());
        assert_eq!(replicas(&wishes.target), target_pods.min(room - stable_pods), "{}", self.told());
        let reached = target_pods.min(room - stable_pods) * 10_000 / size;
        for router in &self.routers {
            let share = u32::from(router.shares()[&wishes.target].parts());
            assert_eq!(
                share,
                u32::from(asked.parts()).min(reached),
                "the share asked is in force: {}",
                self.told()
            );
        }
    }
}

fn limits(size: u32) -> impl Strategy<Value = (Bound, Bound)> {
    prop_oneof![
        Just((Bound::Percent(100), Bound::Pods(0))),
        ((0..=size).prop_map(Bound::Pods), (1..=size).prop_map(Bound::Pods)),
        (Just(Bound::Pods(0)), Just(Bound::Pods(1))),
        ((1..=size).prop_map(Bound::Pods), Just(Bound::Pods(0))),
    ]
}

fn start() -> impl Strategy<Value = (u32, (Bound, Bound))> {
    (1u32..=6).prop_flat_map(|size| (Just(size), limits(size)))
}

fn live(size: u32, (surge, unavailable): (Bound, Bound), steps: &[Step]) {
    let mut world = World::new(size, surge, unavailable);
    for step in steps {
        world.take(step);
        world.check();
    }
    world.settle();
    world.assert_arrived();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_keeps_capacity_and_arrives((size, limits) in start(), steps in prop::collection::vec(ordinary(), 0..120)) {
        live(size, limits, &steps);
    }

    #[test]
    fn any_history_of_changing_limits_and_routers_keeps_capacity_and_arrives(
        (size, limits) in start(),
        steps in prop::collection::vec(unquiet(), 0..120),
    ) {
        live(size, limits, &steps);
    }

    #[test]
    fn any_history_with_lost_pods_and_records_arrives((size, limits) in start(), steps in prop::collection::vec(hostile(), 0..120)) {
        live(size, limits, &steps);
    }
}
