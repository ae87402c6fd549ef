//! Tests of the real program with real models and the real ONNX Runtime, over real connections.
//!
//! `make models` makes what they need; they fail, and say so, where it is missing.

mod errors;
mod lifecycle;
mod serve;
mod storage;
mod support;
