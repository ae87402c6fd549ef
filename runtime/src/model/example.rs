//! Inputs made from nothing but a signature: for warming a model up and for the example request that a user is shown.
//! Pure, and always the same for the same signature.

use super::{DataType, Signature, Tensor, TensorData, TensorSpec};
use half::{bf16, f16};

/// One tensor for each input, free dimensions taken as 1.
pub fn inputs(signature: &Signature) -> Vec<Tensor> {
    signature.inputs.iter().map(tensor).collect()
}

fn tensor(spec: &TensorSpec) -> Tensor {
    let shape: Vec<usize> =
        spec.shape.iter().map(|dimension| usize::try_from(*dimension).unwrap_or(1)).collect();
    let count = shape.iter().product();
    let data = values(spec.datatype, count);
    Tensor::new(shape, data).unwrap_or_else(|(_, data)| unreachable!("{} elements were made", data.len()))
}

/// Small, harmless values: ones are valid token ids, masks and lengths; the fractions keep a network away from zeros.
fn values(datatype: DataType, count: usize) -> TensorData {
    let fractions = || (0..count).map(|index| (index % 10) as f32 / 10.0 + 0.1);
    match datatype {
        DataType::Bool => TensorData::Bool(vec![true; count]),
        DataType::Uint8 => TensorData::Uint8(vec![1; count]),
        DataType::Uint16 => TensorData::Uint16(vec![1; count]),
        DataType::Uint32 => TensorData::Uint32(vec![1; count]),
        DataType::Uint64 => TensorData::Uint64(vec![1; count]),
        DataType::Int8 => TensorData::Int8(vec![1; count]),
        DataType::Int16 => TensorData::Int16(vec![1; count]),
        DataType::Int32 => TensorData::Int32(vec![1; count]),
        DataType::Int64 => TensorData::Int64(vec![1; count]),
        DataType::Fp16 => TensorData::Fp16(fractions().map(f16::from_f32).collect()),
        DataType::Bf16 => TensorData::Bf16(fractions().map(bf16::from_f32).collect()),
        DataType::Fp32 => TensorData::Fp32(fractions().collect()),
        DataType::Fp64 => TensorData::Fp64(fractions().map(f64::from).collect()),
        DataType::Bytes => TensorData::Bytes(vec!["a".to_owned(); count]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_and_shape_gets_an_input_that_fits() {
        for datatype in DataType::ALL {
            for shape in [vec![], vec![-1, 4], vec![2, 3], vec![0, 5], vec![-1, -1, -1]] {
                let spec = TensorSpec { name: "x".into(), datatype, shape, labels: None };
                let made = tensor(&spec);
                assert!(spec.accepts(made.shape()), "{spec:?}");
                assert_eq!(made.data().datatype(), datatype);
            }
        }
    }
}
