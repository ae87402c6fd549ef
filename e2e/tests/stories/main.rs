//! The stories: each a file, each in a namespace of its own, all on one cluster.
//!
//! They need a cluster, so `cargo test` alone passes them over; `make e2e` tells them all, `make e2e STORY=canary` one.

mod apply;
mod back_to_stable;
mod broken_canary;
mod canary;
mod change_mid_canary;
mod delete;
mod invalid_specs;
mod operator_restart;
mod percent_first;
mod pod_delete;
mod promote;
mod rollback;
mod router_rolling_restart;
mod scale;
mod two_services;

/// Where the models lie in the storage of the examples.
fn uri(model: &str) -> String {
    format!("s3://models/iris-{model}/model.onnx")
}
