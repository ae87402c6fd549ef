//! The Services: the address that callers use, and one of each revision, whose EndpointSlices the routers read. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serin_crds::labels;

use super::metadata::{Owner, revision_metadata, router_labels, service_metadata};

/// The address that callers use: port 80 leads to the service's own port in the router's pods, so the Host header does not matter.
pub fn main_service(owner: &Owner, route_port: u16) -> Service {
    let target = IntOrString::Int(i32::from(route_port));
    Service {
        metadata: service_metadata(owner),
        spec: Some(spec(router_labels(), target)),
        ..Service::default()
    }
}

/// The address of one revision. Its labels are those of its EndpointSlices, by which the routers find them.
pub fn revision_service(owner: &Owner, revision: &str) -> Service {
    let selector = [(labels::REVISION.to_owned(), revision.to_owned())].into();
    let target = IntOrString::String("http".to_owned());
    Service {
        metadata: revision_metadata(owner, revision),
        spec: Some(spec(selector, target)),
        ..Service::default()
    }
}

fn spec(selector: BTreeMap<String, String>, target: IntOrString) -> ServiceSpec {
    ServiceSpec {
        type_: Some("ClusterIP".to_owned()),
        selector: Some(selector),
        ports: Some(vec![ServicePort {
            name: Some("http".to_owned()),
            port: 80,
            protocol: Some("TCP".to_owned()),
            target_port: Some(target),
            ..ServicePort::default()
        }]),
        ..ServiceSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::owner;
    use super::*;

    #[test]
    fn for_callers() {
        insta::assert_yaml_snapshot!(main_service(&owner(), 10_003));
    }

    #[test]
    fn of_a_revision() {
        insta::assert_yaml_snapshot!(revision_service(&owner(), "iris-a"));
    }
}
