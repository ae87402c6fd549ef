//! Tensors in memory: a shape and one flat, row-major, typed buffer. Pure.

use half::{bf16, f16};

/// The element types that the Open Inference Protocol names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum DataType {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
    /// Strings; the protocol calls them BYTES.
    Bytes,
}

impl DataType {
    /// Every type, in the protocol's order.
    pub const ALL: [Self; 14] = [
        Self::Bool,
        Self::Uint8,
        Self::Uint16,
        Self::Uint32,
        Self::Uint64,
        Self::Int8,
        Self::Int16,
        Self::Int32,
        Self::Int64,
        Self::Fp16,
        Self::Bf16,
        Self::Fp32,
        Self::Fp64,
        Self::Bytes,
    ];

    /// The protocol's name of the type.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Uint8 => "UINT8",
            Self::Uint16 => "UINT16",
            Self::Uint32 => "UINT32",
            Self::Uint64 => "UINT64",
            Self::Int8 => "INT8",
            Self::Int16 => "INT16",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp16 => "FP16",
            Self::Bf16 => "BF16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Bytes => "BYTES",
        }
    }

    /// The type of that name, if the protocol has it.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|datatype| datatype.name() == name)
    }
}

impl std::fmt::Display for DataType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The elements of a tensor, flat and row-major.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum TensorData {
    Bool(Vec<bool>),
    Uint8(Vec<u8>),
    Uint16(Vec<u16>),
    Uint32(Vec<u32>),
    Uint64(Vec<u64>),
    Int8(Vec<i8>),
    Int16(Vec<i16>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Fp16(Vec<f16>),
    Bf16(Vec<bf16>),
    Fp32(Vec<f32>),
    Fp64(Vec<f64>),
    Bytes(Vec<String>),
}

/// Evaluates one expression for whichever element type the data has, with `$values` bound to its vector.
macro_rules! with_values {
    ($data:expr, $values:ident => $body:expr) => {
        match $data {
            $crate::model::TensorData::Bool($values) => $body,
            $crate::model::TensorData::Uint8($values) => $body,
            $crate::model::TensorData::Uint16($values) => $body,
            $crate::model::TensorData::Uint32($values) => $body,
            $crate::model::TensorData::Uint64($values) => $body,
            $crate::model::TensorData::Int8($values) => $body,
            $crate::model::TensorData::Int16($values) => $body,
            $crate::model::TensorData::Int32($values) => $body,
            $crate::model::TensorData::Int64($values) => $body,
            $crate::model::TensorData::Fp16($values) => $body,
            $crate::model::TensorData::Bf16($values) => $body,
            $crate::model::TensorData::Fp32($values) => $body,
            $crate::model::TensorData::Fp64($values) => $body,
            $crate::model::TensorData::Bytes($values) => $body,
        }
    };
}
pub(crate) use with_values;

impl TensorData {
    /// An empty buffer of the type with room for `capacity` elements.
    pub fn with_capacity(datatype: DataType, capacity: usize) -> Self {
        match datatype {
            DataType::Bool => Self::Bool(Vec::with_capacity(capacity)),
            DataType::Uint8 => Self::Uint8(Vec::with_capacity(capacity)),
            DataType::Uint16 => Self::Uint16(Vec::with_capacity(capacity)),
            DataType::Uint32 => Self::Uint32(Vec::with_capacity(capacity)),
            DataType::Uint64 => Self::Uint64(Vec::with_capacity(capacity)),
            DataType::Int8 => Self::Int8(Vec::with_capacity(capacity)),
            DataType::Int16 => Self::Int16(Vec::with_capacity(capacity)),
            DataType::Int32 => Self::Int32(Vec::with_capacity(capacity)),
            DataType::Int64 => Self::Int64(Vec::with_capacity(capacity)),
            DataType::Fp16 => Self::Fp16(Vec::with_capacity(capacity)),
            DataType::Bf16 => Self::Bf16(Vec::with_capacity(capacity)),
            DataType::Fp32 => Self::Fp32(Vec::with_capacity(capacity)),
            DataType::Fp64 => Self::Fp64(Vec::with_capacity(capacity)),
            DataType::Bytes => Self::Bytes(Vec::with_capacity(capacity)),
        }
    }

    /// The element type.
    pub fn datatype(&self) -> DataType {
        match self {
            Self::Bool(_) => DataType::Bool,
            Self::Uint8(_) => DataType::Uint8,
            Self::Uint16(_) => DataType::Uint16,
            Self::Uint32(_) => DataType::Uint32,
            Self::Uint64(_) => DataType::Uint64,
            Self::Int8(_) => DataType::Int8,
            Self::Int16(_) => DataType::Int16,
            Self::Int32(_) => DataType::Int32,
            Self::Int64(_) => DataType::Int64,
            Self::Fp16(_) => DataType::Fp16,
            Self::Bf16(_) => DataType::Bf16,
            Self::Fp32(_) => DataType::Fp32,
            Self::Fp64(_) => DataType::Fp64,
            Self::Bytes(_) => DataType::Bytes,
        }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        with_values!(self, values => values.len())
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A shape and as many elements as it says.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    data: TensorData,
}

impl Tensor {
    /// Joins a shape and its elements, or gives them back when their counts differ.
    pub fn new(shape: Vec<usize>, data: TensorData) -> Result<Self, (Vec<usize>, TensorData)> {
        if element_count(&shape) == Some(data.len()) { Ok(Self { shape, data }) } else { Err((shape, data)) }
    }

    /// The dimensions, outermost first; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements.
    pub fn data(&self) -> &TensorData {
        &self.data
    }
}

/// How many elements a shape holds, or `None` where the number does not fit.
pub(crate) fn element_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |count, dimension| count.checked_mul(*dimension))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_types_are_one_to_one() {
        for datatype in DataType::ALL {
            assert_eq!(DataType::from_name(datatype.name()), Some(datatype));
            assert_eq!(TensorData::with_capacity(datatype, 0).datatype(), datatype);
        }
        assert_eq!(DataType::from_name("FLOAT"), None);
    }

    #[test]
    fn a_tensor_holds_what_its_shape_says() {
        assert!(Tensor::new(vec![2, 2], TensorData::Int8(vec![1, 2, 3, 4])).is_ok());
        assert!(Tensor::new(vec![], TensorData::Int8(vec![1])).is_ok());
        assert!(Tensor::new(vec![0, 7], TensorData::Int8(vec![])).is_ok());
        assert!(Tensor::new(vec![2, 2], TensorData::Int8(vec![1, 2, 3])).is_err());
        assert!(Tensor::new(vec![usize::MAX, 2], TensorData::Int8(vec![])).is_err());
    }
}
