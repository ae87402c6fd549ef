//! Every type that crosses a process border in Serin, and the one formula that operator and router share.
//!
//! - [`InferenceService`]: what a user writes; its status is what the operator answers.
//! - [`InferenceRoute`]: what the operator tells the routers of one service.
//! - [`acks`]: what a router answers about the routes that it uses.
//! - [`share`]: from asked share and ready pods to the share in force (pure).
//! - [`manifest`]: the CRDs as YAML is made from them.
//! - [`labels`] and [`reasons`]: keys and words that more than one program must spell alike.
//!
//! No client, no async runtime, no IO.

pub mod acks;
pub mod inference_route;
pub mod inference_service;
pub mod labels;
pub mod manifest;
pub mod reasons;
pub mod share;

pub use inference_route::{InferenceRoute, InferenceRouteSpec, RouteRevision};
pub use inference_service::{InferenceService, InferenceServiceSpec, InferenceServiceStatus};
pub use share::Share;

/// API group of every custom resource of Serin.
pub const GROUP: &str = "serving.serin.dev";
/// The version served and stored.
pub const VERSION: &str = "v1alpha1";
