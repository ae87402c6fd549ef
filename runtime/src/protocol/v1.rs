//! The older protocol of TensorFlow Serving and KServe: `POST /v1/models/{model}:predict`.
//!
//! `instances` is a list of rows, `inputs` the columns. A model with one input takes bare values, one with several
//! takes objects by input name (a model with one input may be sent those as well). Shapes are what the nesting says.

use super::json::Reader;
use super::{InvalidRequest, all_given, missing_inputs, nested, unknown_input, write, wrong_shape};
use crate::model::{DataType, Signature, Tensor, TensorData, TensorSpec};

/// Which of the two forms a request has; the answer has the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `instances` → `predictions`: this many rows.
    Rows(usize),
    /// `inputs` → `outputs`.
    Columns,
}

/// A request, checked against the model's signature.
#[derive(Debug, Clone, PartialEq)]
pub struct PredictRequest {
    /// How the caller wrote it.
    pub form: Form,
    /// One tensor for each input of the model, in the model's order.
    pub inputs: Vec<Tensor>,
}

/// Reads a request. Fields other than `instances` and `inputs` (such as `signature_name`) say nothing to an ONNX
/// model and are passed over.
///
/// # Errors
/// Whatever the caller has to mend, with the input's name, what was expected and what came.
pub fn read_request(body: &[u8], signature: &Signature) -> Result<PredictRequest, InvalidRequest> {
    let mut reader = Reader::new(body);
    let mut request = None;
    let mut first = true;
    reader.begin_object()?;
    while let Some(key) = reader.next_key(first)? {
        first = false;
        let read = match &*key {
            "instances" => read_rows,
            "inputs" => read_columns,
            _ => {
                reader.skip()?;
                continue;
            }
        };
        if request.replace(read(&mut reader, signature)?).is_some() {
            return Err(InvalidRequest::new("expected one of `instances` and `inputs`, got both"));
        }
    }
    reader.end()?;
    request.ok_or_else(|| {
        InvalidRequest::new("missing field `instances` (a list of rows) or `inputs` (columns)")
    })
}

/// The values of one input, growing row by row.
struct Column<'a> {
    spec: &'a TensorSpec,
    data: TensorData,
    /// The shape of the first row, which all others must have.
    row_shape: Option<Vec<usize>>,
    rows: usize,
}

impl<'a> Column<'a> {
    fn new(spec: &'a TensorSpec) -> Self {
        Self { spec, data: TensorData::with_capacity(spec.datatype, 16), row_shape: None, rows: 0 }
    }

    /// Reads a value of any shape, and gives that shape.
    fn read(&mut self, reader: &mut Reader<'_>) -> Result<Vec<usize>, InvalidRequest> {
        nested::read(reader, &mut self.data, usize::MAX)
            .map_err(|error| InvalidRequest(format!("input `{}`: {error}", self.spec.name)))
    }

    fn read_row(&mut self, reader: &mut Reader<'_>) -> Result<(), InvalidRequest> {
        let shape = self.read(reader)?;
        let row = self.rows;
        self.rows += 1;
        match &self.row_shape {
            None => self.row_shape = Some(shape),
            Some(expected) if *expected == shape => {}
            Some(expected) => {
                let name = &self.spec.name;
                return Err(InvalidRequest(format!(
                    "input `{name}`: expected shape {expected:?} in row {row} as in row 0, got {shape:?}"
                )));
            }
        }
        Ok(())
    }

    fn finish_rows(self) -> Result<Tensor, InvalidRequest> {
        let mut shape = vec![self.rows];
        shape.extend(self.row_shape.unwrap_or_default());
        fit(self.spec, shape, self.data)
    }
}

/// Makes the tensor. Bare scalars are also accepted where the model wants them as a column of width 1.
fn fit(spec: &TensorSpec, shape: Vec<usize>, data: TensorData) -> Result<Tensor, InvalidRequest> {
    let shape = if spec.accepts(&shape) {
        shape
    } else {
        let column = [shape.as_slice(), &[1]].concat();
        if spec.shape.last() != Some(&1) || !spec.accepts(&column) {
            return Err(wrong_shape(spec, &shape));
        }
        column
    };
    Tensor::new(shape, data).map_err(|(shape, _)| wrong_shape(spec, &shape))
}

fn read_rows(reader: &mut Reader<'_>, signature: &Signature) -> Result<PredictRequest, InvalidRequest> {
    let mut columns: Vec<Column<'_>> = signature.inputs.iter().map(Column::new).collect();
    let tensors = if let [column] = columns.as_mut_slice()
        && !first_row_is_named(reader, column.spec)
    {
        if reader.peek() != Some(b'[') {
            return Err(reader.error("field `instances`: expected a list of rows").into());
        }
        let shape = column.read(reader)?;
        columns
            .pop()
            .map(|column| fit(column.spec, shape, column.data))
            .into_iter()
            .collect::<Result<Vec<_>, _>>()?
    } else {
        let mut row = 0;
        reader.begin_array()?;
        while reader.next_element(row == 0)? {
            read_named_row(reader, signature, &mut columns, row)?;
            row += 1;
        }
        columns.into_iter().map(Column::finish_rows).collect::<Result<Vec<_>, _>>()?
    };
    let rows = tensors.first().and_then(|tensor| tensor.shape().first()).copied().unwrap_or(0);
    Ok(PredictRequest { form: Form::Rows(rows), inputs: tensors })
}

/// Whether the rows are objects by input name; for strings, `{"b64": ...}` is a value and not such an object.
fn first_row_is_named(reader: &Reader<'_>, spec: &TensorSpec) -> bool {
    let mut ahead = reader.clone();
    ahead.take(b'[') && object_by_name(&mut ahead, spec)
}

fn object_by_name(ahead: &mut Reader<'_>, spec: &TensorSpec) -> bool {
    ahead.take(b'{')
        && (spec.datatype != DataType::Bytes
            || spec.name == "b64"
            || !matches!(ahead.next_key(true), Ok(Some(key)) if key == "b64"))
}

fn read_named_row(
    reader: &mut Reader<'_>,
    signature: &Signature,
    columns: &mut [Column<'_>],
    row: usize,
) -> Result<(), InvalidRequest> {
    if reader.peek() != Some(b'{') {
        let names = crate::model::quoted(&signature.inputs);
        let got = reader.next_in_words();
        return Err(reader.error(format!("row {row}: expected an object with {names}, got {got}")).into());
    }
    read_by_name(reader, signature, |reader, index| {
        if columns[index].rows > row {
            return Err(InvalidRequest(format!(
                "input `{}` is given twice in row {row}",
                columns[index].spec.name
            )));
        }
        columns[index].read_row(reader)
    })?;
    let missing: Vec<&TensorSpec> =
        columns.iter().filter(|column| column.rows == row).map(|column| column.spec).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(InvalidRequest(format!("row {row}: {}", missing_inputs(&missing))))
}

/// Calls `read` with the position of each input that an object names.
fn read_by_name<'a>(
    reader: &mut Reader<'a>,
    signature: &Signature,
    mut read: impl FnMut(&mut Reader<'a>, usize) -> Result<(), InvalidRequest>,
) -> Result<(), InvalidRequest> {
    let mut first = true;
    reader.begin_object()?;
    while let Some(name) = reader.next_key(first)? {
        first = false;
        let index = signature.input(&name).ok_or_else(|| unknown_input(&name, signature))?;
        read(reader, index)?;
    }
    Ok(())
}

fn read_columns(reader: &mut Reader<'_>, signature: &Signature) -> Result<PredictRequest, InvalidRequest> {
    let mut tensors: Vec<Option<Tensor>> = signature.inputs.iter().map(|_| None).collect();
    let mut read_one = |reader: &mut Reader<'_>, index: usize| {
        let mut column = Column::new(&signature.inputs[index]);
        let shape = column.read(reader)?;
        if tensors[index].replace(fit(column.spec, shape, column.data)?).is_some() {
            return Err(InvalidRequest(format!("input `{}` is given twice", column.spec.name)));
        }
        Ok(())
    };
    match signature.inputs.as_slice() {
        [spec] if !object_by_name(&mut reader.clone(), spec) => read_one(reader, 0)?,
        _ => read_by_name(reader, signature, read_one)?,
    }
    let inputs = all_given(signature, tensors)?;
    Ok(PredictRequest { form: Form::Columns, inputs })
}

/// Writes an answer of all outputs, in the form of the request. A model with one output answers bare values.
///
/// # Errors
/// Rows were asked for, and an output does not have one row for each.
pub fn write_response(
    form: Form,
    signature: &Signature,
    tensors: &[Tensor],
) -> Result<Vec<u8>, InvalidRequest> {
    let elements: usize = tensors.iter().map(|tensor| tensor.data().len()).sum();
    let mut out = Vec::with_capacity(64 + 16 * elements);
    match form {
        Form::Rows(rows) => {
            check_rows(rows, signature, tensors)?;
            out.extend_from_slice(b"{\"predictions\":");
            write_rows(&mut out, rows, signature, tensors);
        }
        Form::Columns => {
            out.extend_from_slice(b"{\"outputs\":");
            write_named(&mut out, signature, tensors, |out, tensor| {
                write::nested(out, tensor.shape(), tensor.data(), 0..tensor.data().len());
            });
        }
    }
    out.push(b'}');
    Ok(out)
}

fn check_rows(rows: usize, signature: &Signature, tensors: &[Tensor]) -> Result<(), InvalidRequest> {
    for (spec, tensor) in signature.outputs.iter().zip(tensors) {
        if tensor.shape().first() != Some(&rows) {
            let (name, shape) = (&spec.name, tensor.shape());
            return Err(InvalidRequest(format!(
                "output `{name}` of shape {shape:?} does not have one row for each of {rows} instances: \
                 send `inputs` instead of `instances`, or use /v2"
            )));
        }
    }
    Ok(())
}

fn write_rows(out: &mut Vec<u8>, rows: usize, signature: &Signature, tensors: &[Tensor]) {
    if let [tensor] = tensors {
        return write::nested(out, tensor.shape(), tensor.data(), 0..tensor.data().len());
    }
    out.push(b'[');
    for row in 0..rows {
        if row > 0 {
            out.push(b',');
        }
        write_named(out, signature, tensors, |out, tensor| {
            let size = tensor.data().len() / rows;
            write::nested(out, &tensor.shape()[1..], tensor.data(), row * size..(row + 1) * size);
        });
    }
    out.push(b']');
}

/// One output bare, several as an object by name.
fn write_named(
    out: &mut Vec<u8>,
    signature: &Signature,
    tensors: &[Tensor],
    mut value: impl FnMut(&mut Vec<u8>, &Tensor),
) {
    if let [tensor] = tensors {
        return value(out, tensor);
    }
    for (position, (spec, tensor)) in signature.outputs.iter().zip(tensors).enumerate() {
        out.push(if position == 0 { b'{' } else { b',' });
        write::string(out, &spec.name);
        out.push(b':');
        value(out, tensor);
    }
    out.push(b'}');
}

#[cfg(test)]
mod tests;
