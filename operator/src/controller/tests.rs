//! Whole passes against an API server in memory: what is written, in which order, and what a failure leaves behind.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::core::DeserializeGuard;
use kube::runtime::events::{Recorder, Reporter};
use serde_json::{Value, json};

use super::*;
use crate::acks::Acks;
use crate::args::Settings;
use crate::cache::Cache;
use crate::context::{Caches, Failures, Ports};
use crate::metrics::Metrics;
use api::Api;

mod api;

const SERVICE: &str = "serving.serin.dev/v1alpha1/namespaces/ns/inferenceservices/iris";
const ROUTE: &str = "serving.serin.dev/v1alpha1/namespaces/ns/inferenceroutes/iris";

/// One namespace, its API server and the operator's context. There are no routers, hence none to wait for.
struct World {
    api: Api,
    context: Arc<Context>,
}

impl World {
    fn new(spec: Value) -> World {
        let api = Api::default();
        api.put(
            SERVICE,
            json!({
                "apiVersion": "serving.serin.dev/v1alpha1", "kind": "InferenceService",
                "metadata": {"name": "iris", "namespace": "ns", "generation": 1}, "spec": spec
            }),
        );
        let context = Arc::new(context(&api));
        World { api, context }
    }

    fn service(&self) -> Arc<Watched> {
        Arc::new(DeserializeGuard(Ok(serde_json::from_value(self.api.get(SERVICE).unwrap()).unwrap())))
    }

    async fn pass(&self) -> Result<Action, Error> {
        reconcile(self.service(), self.context.clone()).await
    }

    /// Passes until one writes nothing; gives all writes.
    async fn settle(&self) -> Vec<String> {
        let mut all = Vec::new();
        for _ in 0..20 {
            self.pass().await.unwrap();
            let writes = self.api.writes();
            if writes.is_empty() {
                return all;
            }
            all.extend(writes);
        }
        let status = self.api.get(SERVICE).unwrap()["status"].to_string();
        panic!("never at rest: {all:#?}\n{status}");
    }

    /// Changes the spec, as a user does.
    fn change(&self, change: impl FnOnce(&mut Value)) {
        let mut service = self.api.get(SERVICE).unwrap();
        change(&mut service["spec"]);
        let generation = service["metadata"]["generation"].as_i64().unwrap();
        service["metadata"]["generation"] = json!(generation + 1);
        self.api.put(SERVICE, service);
    }

    /// Names of the revisions that have a Deployment.
    fn revisions(&self) -> Vec<String> {
        let prefix = "apps/v1/namespaces/ns/deployments/";
        self.api.paths().iter().filter_map(|path| path.strip_prefix(prefix)).map(str::to_owned).collect()
    }

    /// So many ready pods of a revision, as the kubelet would report them.
    fn ready(&self, revision: &str, count: usize) {
        for number in 0..count {
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {
                    "name": format!("{revision}-{number}"), "namespace": "ns", "uid": format!("{revision}-{number}"),
                    "resourceVersion": "1",
                    "labels": {"serving.serin.dev/service": "iris", "serving.serin.dev/revision": revision}
                },
                "status": {"phase": "Running", "conditions": [
                    {"type": "Ready", "status": "True", "lastTransitionTime": Timestamp::now().to_string()}
                ]}
            }))
            .unwrap();
            self.context.caches.pods.put(pod);
        }
    }

    fn stable(&self) -> Value {
        self.api.get(SERVICE).unwrap()["metadata"]["annotations"]["serving.serin.dev/stable-revision"].clone()
    }

    fn condition(&self, name: &str) -> (String, String) {
        let service = self.api.get(SERVICE).unwrap();
        let conditions = service["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.into_iter().find(|condition| condition["type"] == name).unwrap();
        let text = |key: &str| found[key].as_str().unwrap().to_owned();
        (text("status"), text("reason"))
    }

    /// A first revision with a ready pod, recorded.
    async fn serving(spec: Value) -> (World, String) {
        let world = World::new(spec);
        world.settle().await;
        let first = world.revisions().remove(0);
        world.ready(&first, 2);
        world.settle().await;
        assert_eq!(world.stable(), json!(first));
        world.api.events();
        (world, first)
    }
}

fn context(api: &Api) -> Context {
    let client = api.client();
    Context {
        recorder: Recorder::new(client.clone(), Reporter { controller: "test".to_owned(), instance: None }),
        client,
        caches: Caches {
            deployments: Cache::holding([]),
            services: Cache::holding([]),
            revisions: Cache::holding([]),
            budgets: Cache::holding([]),
            pods: Cache::holding([]),
            routes: Cache::holding([]),
            accounts: Cache::holding([]),
            bindings: Cache::holding([]),
        },
        acks: Acks::new().0,
        settings: Settings {
            router_image: "serin:v1".to_owned(),
            runtime_image: "serin-runtime:v1".to_owned(),
            image_pull_policy: "IfNotPresent".to_owned(),
        },
        metrics: Metrics::default(),
        ports: Ports::default(),
        failures: Failures::default(),
        told: Default::default(),
    }
}

fn iris() -> Value {
    json!({"predictor": {"minReplicas": 2, "model": {"storageUri": "s3://models/iris-a"}}})
}

/// The hash of a name, which says nothing here, as a letter.
fn plain(writes: Vec<String>, names: &[(&str, &str)]) -> Vec<String> {
    let replace =
        |write: String| names.iter().fold(write, |write, (name, letter)| write.replace(name, letter));
    writes.into_iter().map(replace).collect()
}

#[tokio::test]
async fn a_new_service_is_made_in_an_order_that_a_crash_cannot_break() {
    let world = World::new(iris());
    let writes = world.settle().await;
    let name = world.revisions().remove(0);
    assert_eq!(
        plain(writes, &[(&name, "A"), ("serving.serin.dev/v1alpha1/", "")]),
        [
            "PATCH inferenceservices/iris",
            "PATCH controllerrevisions/A",
            "PATCH services/A",
            "PATCH deployments/A",
            "PATCH policy/v1/poddisruptionbudgets/A",
            "PATCH services/iris",
            "PATCH inferenceroutes/iris",
            "PATCH deployments/A (scale)",
            "PATCH inferenceservices/iris/status",
            // The Deployment that the first status could not know yet.
            "PATCH inferenceservices/iris/status",
        ]
    );
    assert_eq!(world.stable(), json!(""), "no stable revision yet");
    assert_eq!(world.condition("Promoted"), ("False".to_owned(), "FirstRevision".to_owned()));
}

#[tokio::test]
async fn the_first_ready_pod_is_recorded() {
    let (world, first) = World::serving(iris()).await;
    assert_eq!(world.condition("Promoted"), ("True".to_owned(), "Promoted".to_owned()));
    let route = world.api.get(ROUTE).unwrap();
    assert_eq!((&route["spec"]["stable"], &route["spec"]["share"]), (&json!(first), &json!(0)));
    let revision = world.api.get(&format!("apps/v1/namespaces/ns/controllerrevisions/{first}")).unwrap();
    assert_eq!(revision["metadata"]["annotations"]["serving.serin.dev/promotion"], "1");
}

#[tokio::test]
async fn nothing_is_written_at_rest_nor_after_a_restart() {
    let (world, _) = World::serving(iris()).await;
    world.pass().await.unwrap();
    assert_eq!(world.api.writes(), Vec::<String>::new());
}

#[tokio::test]
async fn a_patched_percentage_is_one_write_of_the_route() {
    let (world, first) = World::serving(iris()).await;
    world.change(|spec| {
        spec["predictor"]["model"]["storageUri"] = json!("s3://models/iris-b");
        spec["predictor"]["canaryTrafficPercent"] = json!(10);
    });
    world.settle().await;
    let second = world.revisions().into_iter().find(|name| *name != first).unwrap();
    world.ready(&second, 2);
    world.settle().await;
    world.change(|spec| spec["predictor"]["canaryTrafficPercent"] = json!(50));
    world.pass().await.unwrap();
    assert_eq!(
        world.api.writes(),
        [
            "PATCH serving.serin.dev/v1alpha1/inferenceroutes/iris",
            "PATCH serving.serin.dev/v1alpha1/inferenceservices/iris/status"
        ]
    );
    assert_eq!(world.api.get(ROUTE).unwrap()["spec"]["share"], 5000);
    assert_eq!(world.api.events(), ["RevisionCreated", "ShareChanged", "CanaryServing", "ShareChanged"]);
}

#[tokio::test]
async fn a_promotion_is_recorded_before_the_old_revision_is_taken_away() {
    let (world, first) = World::serving(iris()).await;
    world.change(|spec| spec["predictor"]["model"]["storageUri"] = json!("s3://models/iris-b"));
    world.settle().await;
    let second = world.revisions().into_iter().find(|name| *name != first).unwrap();
    world.ready(&second, 2);
    let writes = plain(world.settle().await, &[(&first, "A"), (&second, "B")]);
    let at = |call: &str| {
        writes.iter().position(|write| write == call).unwrap_or_else(|| panic!("{call}: {writes:#?}"))
    };
    let record = at("PATCH serving.serin.dev/v1alpha1/inferenceservices/iris");
    assert!(record < at("DELETE deployments/A"), "{writes:#?}");
    assert!(at("DELETE deployments/A") < at("DELETE services/A"), "{writes:#?}");
    assert_eq!(world.stable(), json!(second));
    assert_eq!(world.revisions(), std::slice::from_ref(&second));
    assert!(world.api.events().contains(&"StableRecorded".to_owned()));
    let copy = world.api.get(&format!("apps/v1/namespaces/ns/controllerrevisions/{second}")).unwrap();
    assert_eq!(copy["metadata"]["annotations"]["serving.serin.dev/promotion"], "2");
}

#[tokio::test]
async fn a_router_that_nobody_has_heard_stops_what_takes_away() {
    let (world, first) = World::serving(iris()).await;
    world.change(|spec| spec["predictor"]["model"]["storageUri"] = json!("s3://models/iris-b"));
    world.settle().await;
    let second = world.revisions().into_iter().find(|name| *name != first).unwrap();
    // The API server knows a router that the cache has not seen.
    world.api.put(
        "v1/namespaces/ns/pods/serin-router-1",
        json!({
            "metadata": {"name": "serin-router-1", "namespace": "ns", "labels": {"serving.serin.dev/component": "router"}},
            "status": {
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [
                    {"name": "router", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}}
                ]
            }
        }),
    );
    world.ready(&second, 2);
    let mut stopped = false;
    for _ in 0..10 {
        match world.pass().await {
            Err(Error::Apply(apply::Error::RoutersChanged)) => stopped = true,
            other => {
                other.unwrap();
            }
        }
    }
    assert!(stopped);
    assert_eq!(world.revisions().len(), 2, "nothing was taken away");
    assert_eq!(world.stable(), json!(first), "nothing was recorded");
    world.api.remove("v1/namespaces/ns/pods/serin-router-1");
    world.settle().await;
    assert_eq!(world.revisions(), [second]);
}

#[tokio::test]
async fn a_lost_route_comes_back_on_the_port_that_callers_are_led_to() {
    let (world, _) = World::serving(iris()).await;
    let route = world.context.caches.routes.of(&Group::of("ns", "iris")).remove("iris").unwrap();
    world.context.caches.routes.forget(&route);
    world.api.remove(ROUTE);
    // Another service had the first port before, and this process does not remember which was whose.
    let path = "v1/namespaces/ns/services/iris";
    let mut service = world.api.get(path).unwrap();
    service["spec"]["ports"][0]["targetPort"] = json!(10_005);
    world.api.put(path, service.clone());
    service["metadata"]["resourceVersion"] = json!("999999");
    world.context.caches.services.put(serde_json::from_value(service).unwrap());
    let context = Arc::new(Context { ports: Ports::default(), ..Context::clone(&world.context) });
    reconcile(world.service(), context.clone()).await.unwrap();
    assert_eq!(world.api.get(ROUTE).unwrap()["spec"]["port"], 10_005);
    let other = observe::observe(
        &serde_json::from_value(json!({
            "metadata": {"name": "magika", "namespace": "ns", "uid": "m"}, "spec": iris()
        }))
        .unwrap(),
        &build::metadata::Owner {
            namespace: "ns".to_owned(),
            name: "magika".to_owned(),
            uid: "m".to_owned(),
        },
        &context,
        Timestamp::now(),
    );
    assert_eq!(other.unwrap().situation.port, 10_006);
}

#[tokio::test]
async fn a_size_falls_only_from_what_the_plan_has_read() {
    let (world, first) = World::serving(iris()).await;
    world.change(|spec| spec["predictor"]["minReplicas"] = json!(1));
    world.pass().await.unwrap();
    // A hand changes the Deployment; putting it back makes another version than the plan has read.
    let path = format!("apps/v1/namespaces/ns/deployments/{first}");
    let mut deployment = world.api.get(&path).unwrap();
    deployment["spec"]["progressDeadlineSeconds"] = json!(1);
    world.api.put(&path, deployment);
    let changed = serde_json::from_value(world.api.get(&path).unwrap()).unwrap();
    world.context.caches.deployments.put(changed);
    let error = world.pass().await.unwrap_err();
    assert_eq!(error.category(), "stale");
    assert_eq!(world.api.get(&path).unwrap()["spec"]["replicas"], 2);
    world.settle().await;
    let settled = world.api.get(&path).unwrap();
    assert_eq!(
        (&settled["spec"]["replicas"], &settled["spec"]["progressDeadlineSeconds"]),
        (&json!(1), &json!(i32::MAX))
    );
}

#[tokio::test]
async fn a_revision_that_is_gone_already_is_not_told_of_again() {
    let (world, first) = World::serving(iris()).await;
    let deployment = world.context.caches.deployments.of(&Group::of("ns", "iris")).remove(&first).unwrap();
    world.change(|spec| spec["predictor"]["model"]["storageUri"] = json!("s3://models/iris-b"));
    world.settle().await;
    let second = world.revisions().into_iter().find(|name| *name != first).unwrap();
    world.ready(&second, 2);
    world.settle().await;
    assert!(world.api.events().contains(&"RevisionDeleted".to_owned()));
    // An event of the watch that was on its way when the Deployment was deleted.
    world.context.caches.deployments.put((*deployment).clone());
    world.settle().await;
    assert_eq!(world.api.events(), Vec::<String>::new());
    assert_eq!(world.revisions(), [second]);
}

#[tokio::test]
async fn whichever_call_fails_the_same_state_is_reached() {
    let expect = {
        let (world, _) = World::serving(iris()).await;
        world.api.paths()
    };
    for status in [409, 500] {
        for number in 0..28 {
            let world = World::new(iris());
            world.api.fail(number, status);
            let mut readied = false;
            for _ in 0..12 {
                let passed = world.pass().await.is_ok();
                let name = world.revisions().first().cloned();
                if let (Some(name), true) = (name, passed && !readied) {
                    world.ready(&name, 2);
                    readied = true;
                }
            }
            world.api.writes();
            assert_eq!(world.settle().await, Vec::<String>::new(), "call {number} failed with {status}");
            assert_eq!(world.api.paths(), expect, "call {number} failed with {status}");
            assert_eq!(world.stable(), json!(world.revisions()[0]));
        }
    }
}

#[tokio::test]
async fn what_belongs_to_others_is_left_alone_and_told() {
    let world = World::new(iris());
    let theirs = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "iris", "namespace": "ns"},
        "spec": {"ports": [{"port": 1}]}
    });
    world.api.put("v1/namespaces/ns/services/iris", theirs);
    let before = world.api.get("v1/namespaces/ns/services/iris");
    let error = world.pass().await.unwrap_err();
    assert_eq!(error.category(), "name_taken");
    assert_eq!(world.api.get("v1/namespaces/ns/services/iris"), before);
    assert_eq!(world.condition("Progressing"), ("False".to_owned(), "NameTaken".to_owned()));
    assert!(world.api.events().contains(&"NameTaken".to_owned()));
}

#[tokio::test]
async fn a_spec_that_cannot_be_served_freezes_what_runs() {
    let (world, first) = World::serving(iris()).await;
    world.change(|spec| {
        spec["predictor"]["model"]["storageUri"] = json!("s3://models/iris-b");
        spec["rollout"] = json!({"maxSurge": 0, "maxUnavailable": "10%"});
    });
    let writes = world.settle().await;
    assert_eq!(writes, ["PATCH serving.serin.dev/v1alpha1/inferenceservices/iris/status"]);
    assert_eq!(world.condition("Progressing"), ("False".to_owned(), "InvalidSpec".to_owned()));
    assert_eq!(world.revisions(), [first]);
    let service = world.api.get(SERVICE).unwrap();
    assert_eq!(service["status"]["modelStatus"]["transitionStatus"], "InvalidSpec");
    let promoted = service["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|condition| condition["type"] == "Promoted")
        .unwrap();
    assert_eq!(promoted["observedGeneration"], 1, "nothing is said of the new spec");
}

#[tokio::test]
async fn a_lost_record_with_children_and_no_copy_moves_nothing() {
    let (world, first) = World::serving(iris()).await;
    let mut service = world.api.get(SERVICE).unwrap();
    service["metadata"]["annotations"].as_object_mut().unwrap().remove("serving.serin.dev/stable-revision");
    service["status"] = json!({});
    world.api.put(SERVICE, service);
    let group = Group::of("ns", "iris");
    let route = world.context.caches.routes.of(&group).remove("iris").unwrap();
    world.context.caches.routes.forget(&route);
    let live = world.context.caches.revisions.of(&group).remove(&first).unwrap();
    let mut bare = (*live).clone();
    bare.metadata.annotations.as_mut().unwrap().remove("serving.serin.dev/promotion");
    bare.metadata.resource_version = Some("999999".to_owned());
    world.context.caches.revisions.put(bare);
    world.pass().await.unwrap();
    assert_eq!(world.condition("Progressing"), ("False".to_owned(), "StableUnknown".to_owned()));
    let service = world.api.get(SERVICE).unwrap();
    let text = service["status"]["conditions"].to_string();
    assert!(
        text.contains(&format!("annotate isvc iris serving.serin.dev/stable-revision={first}")),
        "{text}"
    );
}

#[tokio::test]
async fn children_of_an_earlier_service_of_the_name_are_awaited() {
    let (world, _) = World::serving(iris()).await;
    let mut service = world.api.get(SERVICE).unwrap();
    service["metadata"]["uid"] = json!("another");
    world.api.put(SERVICE, service);
    assert!(matches!(world.pass().await, Err(Error::Observe(observe::Error::Awaited { .. }))));
    assert_eq!(world.api.writes(), Vec::<String>::new());
}
