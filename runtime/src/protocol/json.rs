//! A pull reader of JSON over bytes that are already in memory.
//!
//! Inference requests are mostly numbers. Reading them straight into typed buffers, without a tree in between, is
//! what makes JSON bearable; and owning the reader is what lets every error name the byte where it happened.

use std::borrow::Cow;

/// Deeper than any tensor; keeps a hostile request from using up the stack.
const MAX_DEPTH: usize = 64;

/// Values that are words; the last three are not JSON, but Python and TF Serving write them.
const WORDS: [&str; 6] = ["true", "false", "null", "NaN", "Infinity", "-Infinity"];

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message} (byte {at}, line {line}, column {column})")]
pub struct Error {
    /// What was expected and what came.
    pub message: String,
    /// Offset in the body, from 0.
    pub at: usize,
    /// From 1.
    pub line: usize,
    /// In bytes, from 1.
    pub column: usize,
}

/// The result of reading.
pub type Result<T> = std::result::Result<T, Error>;

/// A number as it is written, taken apart but not yet given a type.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Number<'a> {
    /// The digits as written, for what the fast ways cannot do exactly.
    pub(crate) text: &'a str,
    pub(crate) negative: bool,
    /// All digits without the point, where they fit (see `exact`).
    pub(crate) mantissa: u64,
    /// The power of ten that the mantissa is to be multiplied with.
    pub(crate) exponent: i32,
    /// Whether `mantissa` and `exponent` say the whole truth.
    pub(crate) exact: bool,
    /// Written without point and exponent.
    pub(crate) integral: bool,
}

/// Reads JSON values one after the other.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// A second reader of the same bytes that stands elsewhere.
    pub(crate) fn at(&self, at: usize) -> Self {
        Self { bytes: self.bytes, at }
    }

    /// The offset of the next byte.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    /// How many bytes are left.
    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// An error at the next byte.
    #[cold]
    pub(crate) fn error(&self, message: impl Into<String>) -> Error {
        self.error_at(self.at, message)
    }

    /// An error at a byte that was read before.
    #[cold]
    pub(crate) fn error_at(&self, at: usize, message: impl Into<String>) -> Error {
        let before = &self.bytes[..at.min(self.bytes.len())];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let column = before.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
        Error { message: message.into(), at, line, column }
    }

    #[cold]
    fn expected(&self, what: &str) -> Error {
        self.error(format!("invalid JSON: expected {what}, got {}", self.next_in_words()))
    }

    /// What stands at the next byte, for a message: a kind of value where one begins.
    #[cold]
    pub(crate) fn next_in_words(&self) -> String {
        match self.bytes.get(self.at) {
            None => "the end of the body".to_owned(),
            Some(b'{') => "an object".to_owned(),
            Some(b'[') => "an array".to_owned(),
            Some(b'"') => "a string".to_owned(),
            Some(b't' | b'f') => "a boolean".to_owned(),
            Some(b'n') => "null".to_owned(),
            Some(b'-' | b'0'..=b'9') => {
                let token = self.bytes[self.at..]
                    .iter()
                    .take(24)
                    .take_while(|byte| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'));
                token.map(|byte| *byte as char).collect()
            }
            Some(byte) if byte.is_ascii_graphic() => format!("`{}`", *byte as char),
            Some(byte) => format!("byte 0x{byte:02x}"),
        }
    }

    /// The first byte of the next value, white space skipped.
    #[inline]
    pub(crate) fn peek(&mut self) -> Option<u8> {
        loop {
            match self.bytes.get(self.at) {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.at += 1,
                other => return other.copied(),
            }
        }
    }

    /// Takes `byte` if it is next.
    #[inline]
    pub(crate) fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    /// Takes a word such as `null` if it is next.
    #[inline]
    pub(crate) fn take_word(&mut self, word: &str) -> bool {
        self.peek();
        let found = self.bytes[self.at..].starts_with(word.as_bytes());
        if found {
            self.at += word.len();
        }
        found
    }

    /// Enters an array: `[`.
    pub(crate) fn begin_array(&mut self) -> Result<()> {
        if self.take(b'[') { Ok(()) } else { Err(self.expected("an array")) }
    }

    /// Whether an array has another element, which then comes next; leaves the array where it has none.
    #[inline]
    pub(crate) fn next_element(&mut self, first: bool) -> Result<bool> {
        match self.peek() {
            Some(b']') => {
                self.at += 1;
                Ok(false)
            }
            Some(b',') if !first => {
                self.at += 1;
                Ok(true)
            }
            Some(_) if first => Ok(true),
            _ => Err(self.expected("`,` or `]`")),
        }
    }

    /// Enters an object: `{`.
    pub(crate) fn begin_object(&mut self) -> Result<()> {
        if self.take(b'{') { Ok(()) } else { Err(self.expected("an object")) }
    }

    /// The next key of an object, its colon taken, or `None` where the object ends.
    pub(crate) fn next_key(&mut self, first: bool) -> Result<Option<Cow<'a, str>>> {
        match self.peek() {
            Some(b'}') => {
                self.at += 1;
                return Ok(None);
            }
            Some(b',') if !first => {
                self.at += 1;
                self.peek();
            }
            _ if first => {}
            _ => return Err(self.expected("`,` or `}`")),
        }
        if self.bytes.get(self.at) != Some(&b'"') {
            return Err(self.expected("a key in double quotes"));
        }
        let key = self.string()?;
        if self.take(b':') { Ok(Some(key)) } else { Err(self.expected("`:`")) }
    }

    /// A string, borrowed where it has no escapes.
    pub(crate) fn string(&mut self) -> Result<Cow<'a, str>> {
        if !self.take(b'"') {
            return Err(self.expected("a string"));
        }
        let start = self.at;
        loop {
            match self.bytes.get(self.at) {
                Some(b'"') => {
                    let text = self.utf8(start, self.at)?;
                    self.at += 1;
                    return Ok(Cow::Borrowed(text));
                }
                Some(b'\\') => return self.escaped_string(start).map(Cow::Owned),
                Some(0..=0x1f) => return Err(self.error("invalid JSON: control character in a string")),
                Some(_) => self.at += 1,
                None => return Err(self.expected("the end of the string")),
            }
        }
    }

    fn utf8(&self, start: usize, end: usize) -> Result<&'a str> {
        std::str::from_utf8(&self.bytes[start..end]).map_err(|error| {
            self.error_at(start + error.valid_up_to(), "invalid JSON: a string is not UTF-8")
        })
    }

    fn escaped_string(&mut self, start: usize) -> Result<String> {
        let mut text = self.utf8(start, self.at)?.to_owned();
        let mut plain = self.at;
        loop {
            match self.bytes.get(self.at) {
                Some(b'"') => {
                    text.push_str(self.utf8(plain, self.at)?);
                    self.at += 1;
                    return Ok(text);
                }
                Some(b'\\') => {
                    text.push_str(self.utf8(plain, self.at)?);
                    self.at += 1;
                    text.push(self.escape()?);
                    plain = self.at;
                }
                Some(0..=0x1f) => return Err(self.error("invalid JSON: control character in a string")),
                Some(_) => self.at += 1,
                None => return Err(self.expected("the end of the string")),
            }
        }
    }

    fn escape(&mut self) -> Result<char> {
        let escape = self.bytes.get(self.at).copied();
        let plain = match escape {
            Some(b'u') => return self.unicode_escape(),
            Some(byte @ (b'"' | b'\\' | b'/')) => byte as char,
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            _ => return Err(self.expected("an escape such as `\\n` or `\\u0041`")),
        };
        self.at += 1;
        Ok(plain)
    }

    fn unicode_escape(&mut self) -> Result<char> {
        let start = self.at;
        let high = self.hex()?;
        let code = if (0xd800..0xdc00).contains(&high) && self.bytes.get(self.at) == Some(&b'\\') {
            self.at += 1;
            let low = self.hex()?;
            if !(0xdc00..0xe000).contains(&low) {
                return Err(self.error_at(start, "invalid JSON: half of a surrogate pair"));
            }
            0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00)
        } else {
            high
        };
        char::from_u32(code).ok_or_else(|| self.error_at(start, "invalid JSON: half of a surrogate pair"))
    }

    /// `u` and four hexadecimal digits.
    fn hex(&mut self) -> Result<u32> {
        let digits = self.bytes.get(self.at + 1..self.at + 5).filter(|_| self.bytes[self.at] == b'u');
        let value = digits.and_then(|digits| {
            digits.iter().try_fold(0, |value, digit| Some(value * 16 + (*digit as char).to_digit(16)?))
        });
        match value {
            Some(value) => {
                self.at += 5;
                Ok(value)
            }
            None => Err(self.expected("`u` and four hexadecimal digits")),
        }
    }

    /// A number, or `None` where the next value is something else.
    #[inline]
    pub(crate) fn number(&mut self) -> Result<Option<Number<'a>>> {
        match self.peek() {
            Some(b'0'..=b'9') => self.some_number().map(Some),
            Some(b'-') if self.bytes.get(self.at + 1) != Some(&b'I') => self.some_number().map(Some),
            _ => Ok(None),
        }
    }

    #[inline]
    fn some_number(&mut self) -> Result<Number<'a>> {
        let start = self.at;
        let negative = self.bytes[self.at] == b'-';
        self.at += usize::from(negative);
        let mut number = Number { text: "", negative, mantissa: 0, exponent: 0, exact: true, integral: true };
        let mut significant = 0_u32;
        let integer_start = self.at;
        self.digits(&mut number, &mut significant);
        match self.at - integer_start {
            0 => return Err(self.expected("a digit")),
            1 => {}
            _ if self.bytes[integer_start] == b'0' => {
                return Err(self.error_at(integer_start, "invalid JSON: a number begins with a needless 0"));
            }
            _ => {}
        }
        if self.bytes.get(self.at) == Some(&b'.') {
            self.at += 1;
            number.integral = false;
            let fraction_start = self.at;
            self.digits(&mut number, &mut significant);
            if self.at == fraction_start {
                return Err(self.expected("a digit after the point"));
            }
            number.exponent -= i32::try_from(self.at - fraction_start).unwrap_or(i32::MAX);
        }
        if let Some(b'e' | b'E') = self.bytes.get(self.at) {
            number.integral = false;
            self.exponent(&mut number)?;
        }
        number.exact &= significant <= 19;
        // The bytes taken are ASCII, so this cannot fail.
        number.text = std::str::from_utf8(&self.bytes[start..self.at]).unwrap_or_default();
        Ok(number)
    }

    #[inline]
    fn digits(&mut self, number: &mut Number<'a>, significant: &mut u32) {
        while let Some(digit @ b'0'..=b'9') = self.bytes.get(self.at) {
            *significant += u32::from(*significant > 0 || *digit != b'0');
            number.mantissa = number.mantissa.wrapping_mul(10).wrapping_add(u64::from(*digit - b'0'));
            self.at += 1;
        }
    }

    fn exponent(&mut self, number: &mut Number<'a>) -> Result<()> {
        self.at += 1;
        let negative = self.bytes.get(self.at) == Some(&b'-');
        if let Some(b'-' | b'+') = self.bytes.get(self.at) {
            self.at += 1;
        }
        let start = self.at;
        let mut exponent = 0_i32;
        while let Some(digit @ b'0'..=b'9') = self.bytes.get(self.at) {
            exponent = exponent.saturating_mul(10).saturating_add(i32::from(*digit - b'0'));
            self.at += 1;
        }
        if self.at == start {
            return Err(self.expected("a digit in the exponent"));
        }
        number.exponent = number.exponent.saturating_add(if negative { -exponent } else { exponent });
        number.exact &= exponent < 10_000;
        Ok(())
    }

    /// Passes over one value of any kind, checking that it is JSON.
    pub(crate) fn skip(&mut self) -> Result<()> {
        self.skip_at_depth(0)
    }

    fn skip_at_depth(&mut self, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(self.error("invalid JSON: nested too deeply"));
        }
        let mut first = true;
        match self.peek() {
            Some(b'{') => {
                self.at += 1;
                while self.next_key(first)?.is_some() {
                    first = false;
                    self.skip_at_depth(depth + 1)?;
                }
            }
            Some(b'[') => {
                self.at += 1;
                while self.next_element(first)? {
                    first = false;
                    self.skip_at_depth(depth + 1)?;
                }
            }
            Some(b'"') => drop(self.string()?),
            _ if self.number()?.is_some() => {}
            _ if WORDS.into_iter().any(|word| self.take_word(word)) => {}
            _ => return Err(self.expected("a value")),
        }
        Ok(())
    }

    /// Makes sure that nothing but white space follows.
    pub(crate) fn end(&mut self) -> Result<()> {
        if self.peek().is_none() { Ok(()) } else { Err(self.expected("the end of the body")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn skip_all(text: &str) -> Result<()> {
        let mut reader = Reader::new(text.as_bytes());
        reader.skip()?;
        reader.end()
    }

    #[test]
    fn what_is_not_json_is_refused_with_its_place() {
        let check = |text: &str, expect: &str| {
            assert_eq!(skip_all(text).map_err(|error| error.to_string()), Err(expect.to_owned()), "{text}");
        };
        check("", "invalid JSON: expected a value, got the end of the body (byte 0, line 1, column 1)");
        check(
            "{\"a\":1,\n x}",
            "invalid JSON: expected a key in double quotes, got `x` (byte 9, line 2, column 2)",
        );
        check("[1 2]", "invalid JSON: expected `,` or `]`, got 2 (byte 3, line 1, column 4)");
        check("[1,]", "invalid JSON: expected a value, got `]` (byte 3, line 1, column 4)");
        check("01", "invalid JSON: a number begins with a needless 0 (byte 0, line 1, column 1)");
        check(
            "1.",
            "invalid JSON: expected a digit after the point, got the end of the body (byte 2, line 1, column 3)",
        );
        check(
            "1e",
            "invalid JSON: expected a digit in the exponent, got the end of the body (byte 2, line 1, column 3)",
        );
        check(
            "\"a",
            "invalid JSON: expected the end of the string, got the end of the body (byte 2, line 1, column 3)",
        );
        check(
            "\"\\x\"",
            "invalid JSON: expected an escape such as `\\n` or `\\u0041`, got `x` (byte 2, line 1, column 3)",
        );
        check("\"\\ud800\"", "invalid JSON: half of a surrogate pair (byte 2, line 1, column 3)");
        check(
            "{} {}",
            "invalid JSON: expected the end of the body, got an object (byte 3, line 1, column 4)",
        );
        assert!(
            skip_all(&"[".repeat(100_000)).is_err_and(|error| error.message.contains("nested too deeply"))
        );
    }

    #[test]
    fn strings_are_unescaped() {
        let check = |text: &str, expect: &str| {
            assert_eq!(Reader::new(text.as_bytes()).string().as_deref(), Ok(expect), "{text}");
        };
        check(r#""plain""#, "plain");
        check(r#""a\"b\\c\/d\b\f\n\r\t""#, "a\"b\\c/d\u{8}\u{c}\n\r\t");
        check(r#""\u00e9\ud83d\ude00""#, "é😀");
        check("\"é😀\"", "é😀");
    }

    proptest! {
        #[test]
        fn whatever_serde_json_writes_is_read(text in "\\PC*", number in any::<f64>(), integer in any::<i64>()) {
            let value = serde_json::json!({ "text": text, "list": [number, integer, null, true, {}] });
            prop_assert_eq!(skip_all(&value.to_string()), Ok(()));
            let quoted = serde_json::Value::from(text.as_str()).to_string();
            prop_assert_eq!(Reader::new(quoted.as_bytes()).string().expect("a string"), text);
        }

        #[test]
        fn the_reader_and_serde_json_agree_on_what_json_is(text in "[\\[\\]{},:\"0-9eE.+\\- truefalsn\\\\]{0,12}") {
            let theirs = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            prop_assert_eq!(skip_all(&text).is_ok(), theirs, "{}", text);
        }
    }
}
