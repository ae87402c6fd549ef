//! The operator: turns each InferenceService into revisions, a route and a stable record, and tells in its status what is going on.
//!
//! [`run`] is the only place that wires the parts; [`controller`] lists the steps of one pass. The operator is never on the way of
//! a request: routers and model servers go on without it.

pub mod acks;
pub mod admin;
pub mod args;
pub mod cache;
pub mod causes;
pub mod context;
pub mod controller;
pub mod lease;
pub mod metrics;
pub mod routers;
pub mod run;
