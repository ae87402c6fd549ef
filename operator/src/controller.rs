//! One pass over one InferenceService: the steps, in order.

pub mod build;
pub mod plan;
pub mod revision;
pub mod situation;
pub mod validate;
