//! What the routers say: one long poll for each router pod, and what was heard over the connection that stands now.
//!
//! In: the router pods of a namespace, as the caches see them. Out: [`Heard`] for each pod and route, and a stream of the services
//! about which something new was heard. All of a router's words are forgotten with the connection over which they came.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use parking_lot::Mutex;
use serin_crds::acks::{AckReport, RouteAck};
use serin_crds::labels;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::cache::Group;

mod poll;

/// What is known of one router and one route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// The router has answered this process at least once.
    pub reached: bool,
    /// What it said of the route over the connection that stands now.
    pub ack: Option<RouteAck>,
    /// When it first said that it uses the generation of `ack`.
    pub acknowledged_at: Option<Timestamp>,
    /// Since when it answers over the connection that stands now.
    pub answers_since: Option<Timestamp>,
    /// Since when it cannot be reached; None: a poll is under way or has just been answered.
    pub silent_since: Option<Timestamp>,
}

/// The words of all routers. Clones share them.
#[derive(Clone, Debug)]
pub struct Acks {
    routers: Arc<Mutex<HashMap<String, Router>>>,
    news: mpsc::UnboundedSender<Group>,
}

/// One router pod that is polled.
#[derive(Debug)]
struct Router {
    namespace: String,
    address: SocketAddr,
    task: AbortHandle,
    words: Words,
}

/// What a router has said. Pure.
#[derive(Debug, Default)]
struct Words {
    instance: String,
    reached: bool,
    routes: BTreeMap<String, (RouteAck, Timestamp)>,
    answers_since: Option<Timestamp>,
    silent_since: Option<Timestamp>,
}

impl Acks {
    /// Nothing heard yet, and the stream of services about which something is heard.
    pub fn new() -> (Acks, mpsc::UnboundedReceiver<Group>) {
        let (news, receiver) = mpsc::unbounded_channel();
        (Acks { routers: Arc::default(), news }, receiver)
    }

    /// What is known of a router and a route.
    pub fn heard(&self, pod_uid: &str, route: &str) -> Heard {
        let routers = self.routers.lock();
        let Some(router) = routers.get(pod_uid) else { return Heard::default() };
        let said = router.words.routes.get(route);
        Heard {
            reached: router.words.reached,
            ack: said.map(|(ack, _)| ack.clone()),
            acknowledged_at: said.map(|(_, since)| *since),
            answers_since: router.words.answers_since,
            silent_since: router.words.silent_since,
        }
    }

    /// How many routers answer now.
    pub fn connected(&self) -> usize {
        self.routers.lock().values().filter(|router| router.words.silent_since.is_none()).count()
    }

    /// Polls exactly these routers of a namespace: starts with those that are new, stops with those that are gone.
    pub fn follow(&self, namespace: &str, pods: &[Arc<Pod>]) {
        let wanted: HashMap<String, SocketAddr> = pods.iter().filter_map(address).collect();
        let mut routers = self.routers.lock();
        routers.retain(|uid, router| {
            // A pod whose sandbox is made anew has another address.
            let keep = router.namespace != namespace || wanted.get(uid) == Some(&router.address);
            if !keep {
                router.task.abort();
            }
            keep
        });
        for (uid, address) in wanted {
            routers.entry(uid.clone()).or_insert_with(|| Router {
                namespace: namespace.to_owned(),
                address,
                task: tokio::spawn(poll::poll(self.clone(), uid, address)).abort_handle(),
                words: Words { silent_since: Some(Timestamp::now()), ..Words::default() },
            });
        }
    }

    /// Takes in an answer. `first`: of a new connection, hence of every route.
    fn take(&self, pod_uid: &str, report: AckReport, first: bool) {
        self.change(pod_uid, |words| words.take(report, first, Timestamp::now()));
    }

    /// The connection is gone, and with it everything that was said over it.
    fn lose(&self, pod_uid: &str) {
        self.change(pod_uid, |words| words.lose(Timestamp::now()));
    }

    fn change(&self, pod_uid: &str, change: impl FnOnce(&mut Words) -> Vec<String>) {
        let mut routers = self.routers.lock();
        let Some(router) = routers.get_mut(pod_uid) else { return };
        for service in change(&mut router.words) {
            // The receiver lives as long as the controller; without one nothing is left to tell.
            let _ = self.news.send(Group::of(&router.namespace, &service));
        }
    }
}

impl Words {
    /// Services about which this answer says something new.
    fn take(&mut self, report: AckReport, first: bool, now: Timestamp) -> Vec<String> {
        let mut changed = Vec::new();
        if first || self.instance != report.instance {
            changed.extend(std::mem::take(&mut self.routes).into_keys());
            self.instance = report.instance;
            self.answers_since = Some(now);
        }
        self.reached = true;
        self.silent_since = None;
        for ack in report.routes {
            let since = match self.routes.get(&ack.name) {
                Some((known, since))
                    if (&known.route_uid, known.generation) == (&ack.route_uid, ack.generation) =>
                {
                    *since
                }
                _ => now,
            };
            changed.push(ack.name.clone());
            self.routes.insert(ack.name.clone(), (ack, since));
        }
        changed
    }

    fn lose(&mut self, now: Timestamp) -> Vec<String> {
        self.silent_since.get_or_insert(now);
        self.answers_since = None;
        std::mem::take(&mut self.routes).into_keys().collect()
    }
}

/// uid and admin port of a router that has an address and has not ended.
fn address(pod: &Arc<Pod>) -> Option<(String, SocketAddr)> {
    let status = pod.status.as_ref()?;
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let ip: IpAddr = status.pod_ip.as_deref()?.parse().ok()?;
    Some((pod.uid()?, SocketAddr::new(ip, labels::ROUTER_ADMIN_PORT)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(instance: &str, version: u64, routes: &[(&str, i64)]) -> AckReport {
        AckReport {
            pod_uid: "pod".to_owned(),
            instance: instance.to_owned(),
            version,
            routes: routes
                .iter()
                .map(|(name, generation)| RouteAck {
                    name: (*name).to_owned(),
                    route_uid: "route".to_owned(),
                    generation: *generation,
                    revisions: BTreeMap::new(),
                })
                .collect(),
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_time_of_an_acknowledgement_is_that_of_its_generation() {
        let mut words = Words { silent_since: Some(at(0)), ..Words::default() };
        assert_eq!(words.take(report("i", 1, &[("iris", 4)]), true, at(1)), ["iris"]);
        assert_eq!(words.silent_since, None);
        words.take(report("i", 2, &[("iris", 4)]), false, at(2));
        assert_eq!(words.routes["iris"].1, at(1), "a change of endpoints is no new generation");
        words.take(report("i", 3, &[("iris", 5)]), false, at(3));
        assert_eq!((words.routes["iris"].0.generation, words.routes["iris"].1), (5, at(3)));
    }

    #[test]
    fn an_answer_with_nothing_new_keeps_what_is_known() {
        let mut words = Words::default();
        words.take(report("i", 1, &[("iris", 4)]), true, at(1));
        assert!(words.take(report("i", 1, &[]), false, at(31)).is_empty());
        assert_eq!(words.routes.len(), 1);
    }

    #[test]
    fn everything_is_forgotten_with_the_connection_or_the_process() {
        let mut words = Words::default();
        words.take(report("i", 1, &[("iris", 4), ("magika", 2)]), true, at(1));
        assert_eq!(words.lose(at(5)), ["iris", "magika"]);
        assert!(words.routes.is_empty());
        words.lose(at(9));
        assert_eq!(words.silent_since, Some(at(5)), "silent since the first failure");
        words.take(report("i", 1, &[("iris", 4), ("magika", 2)]), true, at(10));
        let told = words.take(report("j", 1, &[("iris", 4)]), false, at(12));
        assert_eq!(told, ["iris", "magika", "iris"], "another process is another router");
        assert_eq!(words.answers_since, Some(at(12)));
        words.take(report("j", 2, &[("iris", 4)]), false, at(14));
        assert_eq!(words.answers_since, Some(at(12)));
        assert_eq!((words.routes.len(), words.routes["iris"].1), (1, at(12)));
    }
}
