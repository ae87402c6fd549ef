//! Tensors to JSON text. Writes straight into the body's buffer; NaN and the infinities, which JSON does not have,
//! become `null`. Pure.

use crate::model::{TensorData, with_values};
use half::{bf16, f16};
use std::ops::Range;

/// An element that JSON can show.
pub(crate) trait Element {
    /// Appends the element.
    fn write(&self, out: &mut Vec<u8>);
}

macro_rules! integers {
    ($($type:ty)*) => {$(
        impl Element for $type {
            #[inline]
            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(itoa::Buffer::new().format(*self).as_bytes());
            }
        }
    )*};
}

integers! { u8 u16 u32 u64 i8 i16 i32 i64 }

macro_rules! floats {
    ($($type:ty)*) => {$(
        impl Element for $type {
            #[inline]
            fn write(&self, out: &mut Vec<u8>) {
                if self.is_finite() {
                    out.extend_from_slice(zmij::Buffer::new().format_finite(*self).as_bytes());
                } else {
                    out.extend_from_slice(b"null");
                }
            }
        }
    )*};
}

floats! { f32 f64 }

impl Element for f16 {
    fn write(&self, out: &mut Vec<u8>) {
        self.to_f32().write(out);
    }
}

impl Element for bf16 {
    fn write(&self, out: &mut Vec<u8>) {
        self.to_f32().write(out);
    }
}

impl Element for bool {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(if *self { b"true" } else { b"false" });
    }
}

impl Element for String {
    fn write(&self, out: &mut Vec<u8>) {
        string(out, self);
    }
}

/// Appends a JSON string, quotes included.
pub(crate) fn string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut plain = 0;
    for (at, byte) in text.bytes().enumerate() {
        let escape: &[u8] = match byte {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            0..=0x1f => b"",
            _ => continue,
        };
        out.extend_from_slice(&text.as_bytes()[plain..at]);
        if escape.is_empty() {
            out.extend_from_slice(format!("\\u{byte:04x}").as_bytes());
        } else {
            out.extend_from_slice(escape);
        }
        plain = at + 1;
    }
    out.extend_from_slice(&text.as_bytes()[plain..]);
    out.push(b'"');
}

/// Appends elements as one flat array.
pub(crate) fn flat(out: &mut Vec<u8>, data: &TensorData) {
    with_values!(data, values => array(out, values));
}

/// Appends elements as arrays nested as `shape` says; a scalar stands alone. `range` picks the elements.
pub(crate) fn nested(out: &mut Vec<u8>, shape: &[usize], data: &TensorData, range: Range<usize>) {
    with_values!(data, values => nest(out, shape, &values[range]));
}

fn nest<T: Element>(out: &mut Vec<u8>, shape: &[usize], values: &[T]) {
    match shape {
        [] => {
            if let Some(value) = values.first() {
                value.write(out);
            }
        }
        [_] => array(out, values),
        [length, inner @ ..] => {
            let size = values.len().checked_div(*length).unwrap_or(0);
            out.push(b'[');
            for index in 0..*length {
                if index > 0 {
                    out.push(b',');
                }
                nest(out, inner, &values[index * size..(index + 1) * size]);
            }
            out.push(b']');
        }
    }
}

fn array<T: Element>(out: &mut Vec<u8>, values: &[T]) {
    out.push(b'[');
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        value.write(out);
    }
    out.push(b']');
}

/// A shape as an array of numbers.
pub(crate) fn shape<T: Element>(out: &mut Vec<u8>, dimensions: &[T]) {
    array(out, dimensions);
}

/// Dimensions of memory are counted in `usize`.
impl Element for usize {
    fn write(&self, out: &mut Vec<u8>) {
        (*self as u64).write(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn flat_text(data: &TensorData) -> String {
        let mut out = Vec::new();
        flat(&mut out, data);
        String::from_utf8(out).expect("UTF-8")
    }

    fn nested_text(shape: &[usize], data: &TensorData) -> String {
        let mut out = Vec::new();
        nested(&mut out, shape, data, 0..data.len());
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn elements_of_each_type() {
        let check = |data: TensorData, expect: &str| assert_eq!(flat_text(&data), expect);
        check(TensorData::Bool(vec![true, false]), "[true,false]");
        check(TensorData::Uint64(vec![u64::MAX]), "[18446744073709551615]");
        check(TensorData::Int64(vec![i64::MIN]), "[-9223372036854775808]");
        check(
            TensorData::Fp32(vec![0.1, -2.0, f32::NAN, f32::INFINITY, 3.4e38]),
            "[0.1,-2.0,null,null,3.4e+38]",
        );
        check(TensorData::Fp64(vec![0.1, 1e-300]), "[0.1,1e-300]");
        check(TensorData::Fp16(vec![f16::from_f32(0.5), f16::NAN]), "[0.5,null]");
        check(TensorData::Bf16(vec![bf16::from_f32(-3.0)]), "[-3.0]");
        check(TensorData::Bytes(vec!["a\"\\\n\u{1}é".into()]), r#"["a\"\\\n\u0001é"]"#);
    }

    #[test]
    fn nesting_follows_the_shape() {
        let data = TensorData::Int8(vec![1, 2, 3, 4]);
        let check = |shape: &[usize], expect: &str| assert_eq!(nested_text(shape, &data), expect);
        check(&[4], "[1,2,3,4]");
        check(&[2, 2], "[[1,2],[3,4]]");
        check(&[4, 1], "[[1],[2],[3],[4]]");
        check(&[1, 2, 2], "[[[1,2],[3,4]]]");
        assert_eq!(nested_text(&[], &TensorData::Int8(vec![7])), "7");
        assert_eq!(nested_text(&[0, 3], &TensorData::Int8(vec![])), "[]");
        assert_eq!(nested_text(&[2, 0], &TensorData::Int8(vec![])), "[[],[]]");
    }

    proptest! {
        #[test]
        fn floats_come_back_as_they_were(wide in any::<f64>(), narrow in any::<f32>()) {
            prop_assume!(wide.is_finite() && narrow.is_finite());
            let text = flat_text(&TensorData::Fp64(vec![wide]));
            prop_assert_eq!(text.trim_matches(['[', ']']).parse::<f64>(), Ok(wide));
            let text = flat_text(&TensorData::Fp32(vec![narrow]));
            prop_assert_eq!(text.trim_matches(['[', ']']).parse::<f32>(), Ok(narrow));
        }

        #[test]
        fn strings_are_read_back_by_others(text in "\\PC*|[\\x00-\\x20\"\\\\]*") {
            let mut out = Vec::new();
            string(&mut out, &text);
            prop_assert_eq!(serde_json::from_slice::<String>(&out).expect("JSON"), text);
        }
    }
}
