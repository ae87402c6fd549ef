//! Serin's router: the layer-7 data plane of one namespace. It splits the requests of each service between its
//! revisions and loses none on the way.
//!
//! ```text
//! source (watches) ─▶ control ─▶ table (pure) ─▶ in_flight (epoch) ─▶ forward ─▶ select ─▶ endpoint ─▶ runtime pod
//!                        ├─▶ server (a port per route)                    └▶ replay · headers · error
//!                        └─▶ acks ─▶ admin (acknowledgements, readiness, metrics)
//! ```
//! The operator is never on the way of a request, and the API server only on the way of a change.

pub mod acks;
pub mod admin;
pub mod args;
pub mod budget;
pub mod control;
pub mod endpoint;
pub mod error;
pub mod forward;
pub mod headers;
pub mod in_flight;
pub mod metrics;
pub mod replay;
pub mod run;
pub mod select;
pub mod server;
pub mod source;
pub mod table;
