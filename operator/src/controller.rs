//! One pass over one InferenceService: the steps, in order.

pub mod plan;
pub mod situation;
