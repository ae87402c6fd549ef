//! A model server on ONNX Runtime: the Open Inference Protocol V2 and the older V1, over HTTP/1.1 and h2c.
//!
//! Data flows one way: `http` takes bytes, `protocol` makes tensors of them, `instance` queues and runs them on the
//! thread that owns the `model`, and the answer goes the same way back. `repository` brings the model from `storage`
//! to ready; `run` wires it all. The program is usable without Kubernetes and knows of it only what the environment
//! says.

pub mod admin;
pub mod args;
pub mod cpu_budget;
pub mod http;
pub mod instance;
pub mod metrics;
pub mod model;
pub mod protocol;
pub mod queue;
pub mod repository;
pub mod run;
pub mod shutdown;
pub mod storage;
