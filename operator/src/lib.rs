//! The operator: turns each InferenceService into revisions, a route and a stable record, and tells in its status what is going on.
//!
//! [`run`](crate::run::run) is the only place that wires the parts; [`controller`] lists the steps of one pass.

pub mod args;
pub mod cache;
pub mod controller;
