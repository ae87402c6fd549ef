//! The InferenceRoute: what the plan decided, as the routers read it. Pure.

use serin_crds::{InferenceRoute, InferenceRouteSpec};

use super::metadata::{Owner, service_metadata};

/// The route of a service.
pub fn route(owner: &Owner, spec: &InferenceRouteSpec) -> InferenceRoute {
    InferenceRoute { metadata: service_metadata(owner), spec: spec.clone() }
}

#[cfg(test)]
mod tests {
    use serin_crds::RouteRevision;

    use super::super::tests::owner;
    use super::*;

    #[test]
    fn with_a_canary() {
        let revision = |name: &str| RouteRevision {
            name: name.to_owned(),
            service: name.to_owned(),
            timeout_seconds: 60,
        };
        let spec = InferenceRouteSpec {
            spec_generation: 4,
            port: 10_003,
            size: 2,
            stable: Some("iris-a".to_owned()),
            canary: Some("iris-b".to_owned()),
            share: 1000,
            stable_count: 2,
            hold_seconds: 10,
            revisions: vec![revision("iris-a"), revision("iris-b")],
        };
        insta::assert_yaml_snapshot!(route(&owner(), &spec));
    }
}
