//! What a model takes and gives, as its file says it. Pure.

use super::DataType;

/// One named tensor of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    /// The name, as callers write it.
    pub name: String,
    /// The element type.
    pub datatype: DataType,
    /// The dimensions, −1 where they are free. ONNX cannot tell "a scalar" from "of any shape": both are empty here.
    pub shape: Vec<i64>,
    /// What the columns of a classifier's score matrix mean, where the model says it.
    pub labels: Option<Vec<String>>,
}

impl TensorSpec {
    /// Whether a tensor of this shape may stand here.
    pub fn accepts(&self, shape: &[usize]) -> bool {
        self.shape.is_empty()
            || self.shape.len() == shape.len()
                && self.shape.iter().zip(shape).all(|(expected, got)| {
                    *expected < 0 || usize::try_from(*expected).is_ok_and(|expected| expected == *got)
                })
    }

    /// Whether all dimensions are known.
    pub fn is_fixed(&self) -> bool {
        !self.shape.is_empty() && self.shape.iter().all(|dimension| *dimension >= 0)
    }
}

/// All tensors of a model, in the model's order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Signature {
    /// What a caller must send.
    pub inputs: Vec<TensorSpec>,
    /// What a caller can get.
    pub outputs: Vec<TensorSpec>,
    /// Outputs of the file that cannot be served, each with its type in ONNX's words.
    pub left_out: Vec<String>,
}

impl Signature {
    /// The position of an input.
    pub fn input(&self, name: &str) -> Option<usize> {
        self.inputs.iter().position(|spec| spec.name == name)
    }

    /// The position of an output.
    pub fn output(&self, name: &str) -> Option<usize> {
        self.outputs.iter().position(|spec| spec.name == name)
    }

    /// The indices of all outputs, for callers that name none.
    pub fn all_outputs(&self) -> Vec<usize> {
        (0..self.outputs.len()).collect()
    }
}

/// Names in backquotes, for a message.
pub(crate) fn quoted(specs: &[TensorSpec]) -> String {
    let names: Vec<String> = specs.iter().map(|spec| format!("`{}`", spec.name)).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_dimensions_take_anything_fixed_ones_do_not() {
        let spec = |shape: &[i64]| TensorSpec {
            name: "x".into(),
            datatype: DataType::Fp32,
            shape: shape.to_vec(),
            labels: None,
        };
        let check = |shape: &[i64], got: &[usize], expect: bool| {
            assert_eq!(spec(shape).accepts(got), expect, "{shape:?} {got:?}");
        };
        check(&[-1, 4], &[3, 4], true);
        check(&[-1, 4], &[0, 4], true);
        check(&[-1, 4], &[3, 5], false);
        check(&[-1, 4], &[4], false);
        check(&[-1, 4], &[1, 1, 4], false);
        check(&[], &[], true);
        check(&[], &[2, 2], true);
        check(&[0], &[0], true);
        check(&[0], &[1], false);
    }
}
