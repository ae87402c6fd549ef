//! One JSON value to one element of a tensor, exactly: a number that the type cannot hold is refused, never rounded
//! to another integer or wrapped.

use super::json::{Error, Number, Reader};
use base64::Engine;
use half::{bf16, f16};

/// An element type that JSON can carry.
pub(crate) trait Element: Sized {
    /// Reads one element.
    fn read(reader: &mut Reader<'_>) -> Result<Self, Error>;
}

#[cold]
fn wrong_kind(reader: &Reader<'_>, expected: &str) -> Error {
    reader.error(format!("expected {expected}, got {}", reader.next_in_words()))
}

macro_rules! integers {
    ($($type:ty: $name:literal,)*) => {$(
        impl Element for $type {
            #[inline]
            fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
                let Some(number) = reader.number()? else {
                    return Err(wrong_kind(reader, concat!("an integer for ", $name)));
                };
                let value = if number.integral && number.exact {
                    let magnitude = i128::from(number.mantissa);
                    <$type>::try_from(if number.negative { -magnitude } else { magnitude }).ok()
                } else if number.integral {
                    number.text.parse().ok()
                } else {
                    None
                };
                value.ok_or_else(|| refused(reader, &number, $name))
            }
        }
    )*};
}

integers! {
    u8: "UINT8", u16: "UINT16", u32: "UINT32", u64: "UINT64", i8: "INT8", i16: "INT16", i32: "INT32", i64: "INT64",
}

#[cold]
fn refused(reader: &Reader<'_>, number: &Number<'_>, name: &str) -> Error {
    let at = reader.position() - number.text.len();
    let message = if number.integral {
        format!("{} is out of range for {name}", number.text)
    } else {
        format!("expected an integer for {name}, got {}", number.text)
    };
    reader.error_at(at, message)
}

/// Powers of ten that the type holds exactly; a product or quotient of two exact values is rounded once, as it should.
const TENS_F64: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18,
    1e19, 1e20, 1e21, 1e22,
];
const TENS_F32: [f32; 11] = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10];

macro_rules! floats {
    ($($type:ty: $name:literal, $tens:ident, $digits:literal;)*) => {$(
        impl Element for $type {
            #[inline]
            fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
                let Some(number) = reader.number()? else { return not_a_number(reader, $name).map(|value| value as $type) };
                let power = number.exponent.unsigned_abs() as usize;
                if number.exact && number.mantissa < 1 << $digits && power < $tens.len() {
                    let magnitude = number.mantissa as $type;
                    let value =
                        if number.exponent < 0 { magnitude / $tens[power] } else { magnitude * $tens[power] };
                    return Ok(if number.negative { -value } else { value });
                }
                match number.text.parse::<$type>() {
                    Ok(value) if value.is_finite() => Ok(value),
                    _ => Err(out_of_range(reader, number.text, $name)),
                }
            }
        }
    )*};
}

floats! { f32: "FP32", TENS_F32, 24; f64: "FP64", TENS_F64, 53; }

macro_rules! halves {
    ($($type:ty: $name:literal,)*) => {$(
        impl Element for $type {
            #[inline]
            fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
                let start = reader.position();
                let wide = f64::read(reader).map_err(|error| error.renamed("FP64", $name))?;
                let value = <$type>::from_f64(wide);
                if wide.is_finite() && !value.is_finite() {
                    return Err(reader.error_at(start, format!("{wide:e} is out of range for {}", $name)));
                }
                Ok(value)
            }
        }
    )*};
}

halves! { f16: "FP16", bf16: "BF16", }

impl Error {
    fn renamed(mut self, from: &str, to: &str) -> Self {
        self.message = self.message.replace(from, to);
        self
    }
}

#[cold]
fn out_of_range(reader: &Reader<'_>, text: &str, name: &str) -> Error {
    reader.error_at(reader.position() - text.len(), format!("{text} is out of range for {name}"))
}

/// What stands where a number has none: `null`, which answers use as well, and the words that Python and TF Serving
/// write.
#[cold]
fn not_a_number(reader: &mut Reader<'_>, name: &str) -> Result<f64, Error> {
    if reader.take_word("null") || reader.take_word("NaN") {
        Ok(f64::NAN)
    } else if reader.take_word("Infinity") {
        Ok(f64::INFINITY)
    } else if reader.take_word("-Infinity") {
        Ok(f64::NEG_INFINITY)
    } else {
        Err(wrong_kind(reader, &format!("a number for {name}")))
    }
}

impl Element for bool {
    #[inline]
    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        if reader.take_word("true") || reader.take(b'1') {
            Ok(true)
        } else if reader.take_word("false") || reader.take(b'0') {
            Ok(false)
        } else {
            Err(wrong_kind(reader, "true or false for BOOL"))
        }
    }
}

/// A string, or `{"b64": "..."}` as TF Serving has it.
impl Element for String {
    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let start = match reader.peek() {
            Some(b'"') => return plain_string(reader),
            _ => reader.position(),
        };
        if !reader.take(b'{') {
            return Err(wrong_kind(reader, "a string for BYTES"));
        }
        if reader.next_key(true)?.as_deref() != Some("b64") {
            return Err(reader
                .error_at(start, "expected a string for BYTES or {\"b64\": \"...\"}, got another object"));
        }
        let text = reader.string()?;
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(text.as_bytes())
            .map_err(|error| reader.error_at(start, format!("invalid base64: {error}")))?;
        if reader.next_key(false)?.is_some() {
            return Err(reader.error_at(start, "expected only the key `b64` in the object"));
        }
        let text = String::from_utf8(bytes)
            .map_err(|_| reader.error_at(start, "BYTES that are not UTF-8 cannot be passed to the model"))?;
        without_nul(reader, start, text)
    }
}

fn plain_string(reader: &mut Reader<'_>) -> Result<String, Error> {
    let start = reader.position();
    let text = reader.string()?.into_owned();
    without_nul(reader, start, text)
}

/// ONNX Runtime takes strings that end with a zero byte, so none may stand inside.
fn without_nul(reader: &Reader<'_>, start: usize, text: String) -> Result<String, Error> {
    if text.contains('\0') {
        return Err(reader.error_at(start, "BYTES with a zero byte inside cannot be passed to the model"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fmt::Debug;

    fn read<T: Element>(text: &str) -> Result<T, Error> {
        let mut reader = Reader::new(text.as_bytes());
        let value = T::read(&mut reader)?;
        reader.end()?;
        Ok(value)
    }

    fn check<T: Element + PartialEq + Debug>(text: &str, expect: T) {
        assert_eq!(read::<T>(text), Ok(expect), "{text}");
    }

    fn refuses<T: Element + Debug>(text: &str, expect: &str) {
        let message = read::<T>(text).expect_err(text).message;
        assert_eq!(message, expect, "{text}");
    }

    #[test]
    fn elements_of_each_type() {
        check::<u8>("255", 255);
        check::<i8>("-128", -128);
        check::<u64>("18446744073709551615", u64::MAX);
        check::<i64>("-9223372036854775808", i64::MIN);
        check::<f32>("-0.1", -0.1);
        check::<f32>("16777217", 16_777_216.0);
        check::<f64>("5e-324", 5e-324);
        check::<f64>("123456789012345678901234567890", 1.234_567_890_123_456_8e29);
        check::<f32>("Infinity", f32::INFINITY);
        check::<f32>("-Infinity", f32::NEG_INFINITY);
        check::<f16>("0.5", f16::from_f32(0.5));
        check::<bf16>("-3", bf16::from_f32(-3.0));
        check::<bool>("true", true);
        check::<bool>("0", false);
        check::<String>(r#""a\nb""#, "a\nb".to_owned());
        check::<String>(r#"{"b64": "aGVsbG8="}"#, "hello".to_owned());
        assert!(read::<f64>("null").is_ok_and(f64::is_nan));
        assert!(read::<f16>("NaN").is_ok_and(f16::is_nan));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        refuses::<u8>("256", "256 is out of range for UINT8");
        refuses::<u8>("-1", "-1 is out of range for UINT8");
        refuses::<i64>("9223372036854775808", "9223372036854775808 is out of range for INT64");
        refuses::<u64>("99999999999999999999999", "99999999999999999999999 is out of range for UINT64");
        refuses::<i32>("1.0", "expected an integer for INT32, got 1.0");
        refuses::<i32>("\"1\"", "expected an integer for INT32, got a string");
        refuses::<i32>("null", "expected an integer for INT32, got null");
        refuses::<f32>("1e39", "1e39 is out of range for FP32");
        refuses::<f32>("[1]", "expected a number for FP32, got an array");
        refuses::<f16>("65520", "6.552e4 is out of range for FP16");
        refuses::<f16>("true", "expected a number for FP16, got a boolean");
        refuses::<bool>("2", "expected true or false for BOOL, got 2");
        refuses::<String>("1", "expected a string for BYTES, got 1");
        refuses::<String>(r#"{"b64": "/w=="}"#, "BYTES that are not UTF-8 cannot be passed to the model");
        refuses::<String>(r#""a\u0000""#, "BYTES with a zero byte inside cannot be passed to the model");
    }

    proptest! {
        #[test]
        fn floats_are_read_as_the_standard_library_reads_them(text in "-?(0|[1-9][0-9]{0,25})(\\.[0-9]{1,25})?([eE][+-]?[0-9]{1,2})?") {
            let expect: f64 = text.parse().expect("a number");
            prop_assert_eq!(read::<f64>(&text), Ok(expect));
            let expect: f32 = text.parse().expect("a number");
            if expect.is_finite() {
                prop_assert_eq!(read::<f32>(&text), Ok(expect));
            }
        }

        #[test]
        fn integers_round_trip(signed in any::<i64>(), unsigned in any::<u64>()) {
            prop_assert_eq!(read::<i64>(&signed.to_string()), Ok(signed));
            prop_assert_eq!(read::<u64>(&unsigned.to_string()), Ok(unsigned));
            prop_assert_eq!(read::<i16>(&signed.to_string()).ok(), i16::try_from(signed).ok());
        }
    }
}
