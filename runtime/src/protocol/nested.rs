//! Arrays in arrays to one flat buffer and the shape that the nesting had. Pure.

use super::element::Element;
use super::json::{Error, Reader};
use crate::model::{TensorData, with_values};

/// More dimensions than any operator takes.
const MAX_RANK: usize = 32;

/// Reads one value, a scalar or an array nested to any depth, appends its leaves to `data`, and gives the shape of
/// the nesting (empty for a scalar).
///
/// # Errors
/// Ragged nesting, a leaf that the type cannot hold, or more than `limit` leaves in `data`.
pub(crate) fn read(
    reader: &mut Reader<'_>,
    data: &mut TensorData,
    limit: usize,
) -> Result<Vec<usize>, Error> {
    with_values!(data, values => read_values(reader, values, limit))
}

fn read_values<T: Element>(
    reader: &mut Reader<'_>,
    values: &mut Vec<T>,
    limit: usize,
) -> Result<Vec<usize>, Error> {
    let mut nesting = Nesting { shape: Vec::new(), leaf_depth: None, limit };
    nesting.value(reader, values, 0)?;
    Ok(nesting.shape)
}

struct Nesting {
    /// The length of the first array at each depth.
    shape: Vec<usize>,
    /// How many arrays surround a leaf, once one was read.
    leaf_depth: Option<usize>,
    limit: usize,
}

impl Nesting {
    fn value<T: Element>(
        &mut self,
        reader: &mut Reader<'_>,
        values: &mut Vec<T>,
        depth: usize,
    ) -> Result<(), Error> {
        if reader.peek() != Some(b'[') {
            return self.leaf(reader, values, depth);
        }
        if depth == MAX_RANK || self.leaf_depth.is_some_and(|leaves| leaves <= depth) {
            return Err(self.ragged_depth(reader, depth));
        }
        let start = reader.position();
        reader.begin_array()?;
        let seen_before = depth < self.shape.len();
        if !seen_before {
            self.shape.push(0);
        }
        let mut length = 0;
        while reader.next_element(length == 0)? {
            self.value(reader, values, depth + 1)?;
            length += 1;
        }
        if !seen_before {
            self.shape[depth] = length;
        } else if self.shape[depth] != length {
            let expected = self.shape[depth];
            return Err(reader.error_at(
                start,
                format!(
                    "ragged nesting: expected {expected} elements at depth {depth} as before, got {length}"
                ),
            ));
        }
        Ok(())
    }

    fn leaf<T: Element>(
        &mut self,
        reader: &mut Reader<'_>,
        values: &mut Vec<T>,
        depth: usize,
    ) -> Result<(), Error> {
        if depth < self.shape.len() || self.leaf_depth.is_some_and(|leaves| leaves != depth) {
            return Err(self.ragged_depth(reader, depth));
        }
        self.leaf_depth = Some(depth);
        if values.len() == self.limit {
            return Err(reader.error(format!("too many elements: expected {}, got more", self.limit)));
        }
        values.push(T::read(reader)?);
        Ok(())
    }

    #[cold]
    fn ragged_depth(&self, reader: &Reader<'_>, depth: usize) -> Error {
        if depth == MAX_RANK {
            return reader.error(format!("arrays are nested more than {MAX_RANK} deep"));
        }
        let expected = self.leaf_depth.unwrap_or(self.shape.len());
        let got = reader.next_in_words();
        reader.error(format!(
            "ragged nesting: expected elements at depth {expected} as before, got {got} at depth {depth}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::DataType;

    fn read_all(text: &str, limit: usize) -> Result<(Vec<usize>, TensorData), String> {
        let mut data = TensorData::with_capacity(DataType::Int32, 0);
        let mut reader = Reader::new(text.as_bytes());
        let shape = read(&mut reader, &mut data, limit).map_err(|error| error.message)?;
        Ok((shape, data))
    }

    #[test]
    fn nesting_gives_the_shape() {
        let check = |text: &str, shape: &[usize], values: &[i32]| {
            assert_eq!(
                read_all(text, 100),
                Ok((shape.to_vec(), TensorData::Int32(values.to_vec()))),
                "{text}"
            );
        };
        check("7", &[], &[7]);
        check("[]", &[0], &[]);
        check("[1, 2, 3]", &[3], &[1, 2, 3]);
        check("[[1, 2], [3, 4], [5, 6]]", &[3, 2], &[1, 2, 3, 4, 5, 6]);
        check("[[[1]], [[2]]]", &[2, 1, 1], &[1, 2]);
        check("[[], []]", &[2, 0], &[]);
    }

    #[test]
    fn ragged_nesting_and_surplus_are_refused() {
        let check = |text: &str, expect: &str| {
            assert_eq!(read_all(text, 4), Err(expect.to_owned()), "{text}");
        };
        check("[[1, 2], [3]]", "ragged nesting: expected 2 elements at depth 1 as before, got 1");
        check("[[1], [2, 3]]", "ragged nesting: expected 1 elements at depth 1 as before, got 2");
        check("[[1], 2]", "ragged nesting: expected elements at depth 2 as before, got 2 at depth 1");
        check("[1, [2]]", "ragged nesting: expected elements at depth 1 as before, got an array at depth 1");
        check("[[], [1]]", "ragged nesting: expected 0 elements at depth 1 as before, got 1");
        check("[[], 1]", "ragged nesting: expected elements at depth 2 as before, got 1 at depth 1");
        check("[1, 2, 3, 4, 5]", "too many elements: expected 4, got more");
        check(&"[".repeat(50), "arrays are nested more than 32 deep");
    }
}
