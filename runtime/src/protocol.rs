//! The inference protocols: bytes from the wire to tensors and back. Pure: no IO, no clock, no HTTP status beyond the
//! fact that everything here that fails is the caller's to mend.

mod element;
pub mod json;
mod nested;
pub mod v1;
pub mod v2;
pub mod write;

use crate::model::{Signature, Tensor, TensorSpec, quoted};

/// A request that cannot be served as it stands: what was expected and what came, for the caller to read.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidRequest(pub String);

impl InvalidRequest {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// Why JSON could not become what was asked of it.
impl From<json::Error> for InvalidRequest {
    fn from(error: json::Error) -> Self {
        Self(error.to_string())
    }
}

pub(crate) fn unknown_input(name: &str, signature: &Signature) -> InvalidRequest {
    InvalidRequest(format!("unknown input `{name}`: the model takes {}", quoted(&signature.inputs)))
}

pub(crate) fn missing_inputs(missing: &[&TensorSpec]) -> InvalidRequest {
    let missing: Vec<String> = missing.iter().map(|spec| describe(spec)).collect();
    InvalidRequest(format!("missing input {}", missing.join(", ")))
}

/// The tensors of all inputs, in the signature's order, or which of them the request does not have.
pub(crate) fn all_given(
    signature: &Signature,
    tensors: Vec<Option<Tensor>>,
) -> Result<Vec<Tensor>, InvalidRequest> {
    let pairs = signature.inputs.iter().zip(&tensors);
    let missing: Vec<&TensorSpec> =
        pairs.filter(|(_, tensor)| tensor.is_none()).map(|(spec, _)| spec).collect();
    if missing.is_empty() {
        Ok(tensors.into_iter().flatten().collect())
    } else {
        Err(missing_inputs(&missing))
    }
}

pub(crate) fn wrong_shape(spec: &TensorSpec, got: &[usize]) -> InvalidRequest {
    InvalidRequest(format!("input `{}`: expected shape {:?}, got {got:?}", spec.name, spec.shape))
}

/// `name` (FP32 [-1, 4])
fn describe(spec: &TensorSpec) -> String {
    format!("`{}` ({} {:?})", spec.name, spec.datatype, spec.shape)
}
