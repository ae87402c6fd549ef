//! Label, annotation and header keys, and the fixed names of what each served namespace holds.

/// Label on every object that Serin makes; its value is [`MANAGED_BY_VALUE`].
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`].
pub const MANAGED_BY_VALUE: &str = "serin";
/// Label: the InferenceService that an object belongs to.
pub const SERVICE: &str = "serving.serin.dev/service";
/// Label: the revision that an object belongs to.
pub const REVISION: &str = "serving.serin.dev/revision";
/// Label: [`COMPONENT_PREDICTOR`] or [`COMPONENT_ROUTER`].
pub const COMPONENT: &str = "serving.serin.dev/component";
/// Value of [`COMPONENT`] on what runs a model.
pub const COMPONENT_PREDICTOR: &str = "predictor";
/// Value of [`COMPONENT`] on what routes requests.
pub const COMPONENT_ROUTER: &str = "router";

/// Annotation on the InferenceService: the recorded stable revision. Present and empty means "no stable yet".
/// A promotion is exactly one write of this annotation.
pub const STABLE_REVISION: &str = "serving.serin.dev/stable-revision";
/// Annotation on the InferenceService: the route generation for which a person releases the wait for acknowledgements.
pub const RELEASE_HOLD: &str = "serving.serin.dev/release-hold";
/// Annotation on a ControllerRevision: how many promotions had happened when this one was recorded as stable.
pub const PROMOTION: &str = "serving.serin.dev/promotion";
/// Annotation on children: hash of what was last applied, so that a second reconcile writes nothing.
pub const APPLIED_HASH: &str = "serving.serin.dev/applied-hash";

/// Name of the router's Deployment, ServiceAccount, RoleBinding and PodDisruptionBudget in a served namespace,
/// and of the ClusterRole that the chart ships for it.
pub const ROUTER_NAME: &str = "serin-router";

/// Header: a request pins a revision (`canary`, `stable` or its name); a response names the one that answered.
pub const HEADER_REVISION: &str = "serin-revision";
/// Header from router to runtime: `<namespace>/<service>/<revision>`; a runtime that is something else answers 421.
pub const HEADER_EXPECT: &str = "serin-expect";
/// Header of a runtime's refusal: nothing was executed, the request may go elsewhere.
pub const HEADER_NOT_EXECUTED: &str = "serin-not-executed";
/// Header of a runtime's response: digest of the model that answered.
pub const HEADER_DIGEST: &str = "serin-digest";
/// Header of an error that the router itself made: the cause in one kebab-case word.
pub const HEADER_CAUSE: &str = "serin-cause";

/// First port of the range from which each service of a namespace gets its own in the router's pods.
pub const ROUTE_PORT_FIRST: u16 = 10_000;
/// Last port of that range.
pub const ROUTE_PORT_LAST: u16 = 19_999;
/// Admin port of a router: readiness, metrics, acknowledgements.
pub const ROUTER_ADMIN_PORT: u16 = 9901;
/// Port on which a runtime serves the inference protocols.
pub const RUNTIME_PORT: u16 = 8080;
/// Admin port of a runtime: liveness, readiness, metrics.
pub const RUNTIME_ADMIN_PORT: u16 = 8081;

/// The value of [`HEADER_EXPECT`] and of a runtime's identity.
pub fn identity(namespace: &str, service: &str, revision: &str) -> String {
    format!("{namespace}/{service}/{revision}")
}
