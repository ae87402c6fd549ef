//! The Open Inference Protocol, version 2, in JSON: `POST /v2/models/{model}/infer` and the metadata.
//!
//! Fields may come in any order and `data` flat or nested, as long as the number of elements is the shape's. The
//! body is read once: where `data` comes before what says its type, it is passed over and read at the end.

use super::json::{self, Reader};
use super::{InvalidRequest, all_given, nested, unknown_input, write, wrong_shape};
use crate::model::{DataType, Signature, Tensor, TensorData, TensorSpec, element_count, quoted};

/// The one version of a model that a runtime has.
pub const MODEL_VERSION: &str = "1";

/// A request, checked against the model's signature.
#[derive(Debug, Clone, PartialEq)]
pub struct InferRequest {
    /// The caller's name for the request, given back in the answer.
    pub id: Option<String>,
    /// One tensor for each input of the model, in the model's order.
    pub inputs: Vec<Tensor>,
    /// Which outputs the answer is to have, as indices of the signature, in the caller's order.
    pub outputs: Vec<usize>,
}

/// Reads a request.
///
/// # Errors
/// Whatever the caller has to mend, with the input's name, what was expected and what came.
pub fn read_request(body: &[u8], signature: &Signature) -> Result<InferRequest, InvalidRequest> {
    let mut reader = Reader::new(body);
    let mut id = None;
    let mut tensors: Option<Vec<Option<Tensor>>> = None;
    let mut outputs = None;
    let mut first = true;
    reader.begin_object()?;
    while let Some(key) = reader.next_key(first)? {
        first = false;
        match &*key {
            "id" if reader.take_word("null") => {}
            "id" => id = Some(reader.string()?.into_owned()),
            "inputs" => tensors = Some(read_inputs(&mut reader, signature)?),
            "outputs" => outputs = read_outputs(&mut reader, signature)?,
            _ => reader.skip()?,
        }
    }
    reader.end()?;
    let tensors =
        tensors.ok_or_else(|| InvalidRequest::new("missing field `inputs`: expected an array of tensors"))?;
    let inputs = all_given(signature, tensors)?;
    let outputs = outputs.unwrap_or_else(|| signature.all_outputs());
    Ok(InferRequest { id, inputs, outputs })
}

fn read_inputs(
    reader: &mut Reader<'_>,
    signature: &Signature,
) -> Result<Vec<Option<Tensor>>, InvalidRequest> {
    let mut tensors: Vec<Option<Tensor>> = signature.inputs.iter().map(|_| None).collect();
    let mut first = true;
    reader.begin_array()?;
    while reader.next_element(first)? {
        first = false;
        let (index, tensor) = read_input(reader, signature)?;
        if tensors[index].replace(tensor).is_some() {
            return Err(InvalidRequest(format!("input `{}` is given twice", signature.inputs[index].name)));
        }
    }
    Ok(tensors)
}

/// The fields of one input tensor, gathered until all are there.
#[derive(Default)]
struct Fields {
    index: Option<usize>,
    datatype: Option<String>,
    shape: Option<Vec<usize>>,
    /// Where `data` stands, when it came too early to be read.
    postponed: Option<usize>,
    data: Option<TensorData>,
}

fn read_input(reader: &mut Reader<'_>, signature: &Signature) -> Result<(usize, Tensor), InvalidRequest> {
    let mut fields = Fields::default();
    let mut first = true;
    reader.begin_object()?;
    while let Some(key) = reader.next_key(first)? {
        first = false;
        match &*key {
            "name" => {
                let name = reader.string()?;
                let index = signature.input(&name).ok_or_else(|| unknown_input(&name, signature))?;
                fields.index = Some(index);
            }
            "datatype" => fields.datatype = Some(reader.string()?.into_owned()),
            "shape" => fields.shape = Some(read_shape(reader)?),
            "data" => match (&fields, fields.index, &fields.shape) {
                (Fields { datatype: Some(datatype), .. }, Some(index), Some(shape)) => {
                    let spec = &signature.inputs[index];
                    fields.data = Some(read_data(reader, spec, datatype, shape)?);
                }
                _ => {
                    reader.peek();
                    fields.postponed = Some(reader.position());
                    reader.skip()?;
                }
            },
            _ => reader.skip()?,
        }
    }
    finish_input(reader, signature, fields)
}

fn finish_input(
    reader: &Reader<'_>,
    signature: &Signature,
    fields: Fields,
) -> Result<(usize, Tensor), InvalidRequest> {
    let index = fields.index.ok_or_else(|| reader_error(reader, "an input has no field `name`"))?;
    let spec = &signature.inputs[index];
    let absent = |field: &str| InvalidRequest(format!("input `{}` has no field `{field}`", spec.name));
    let datatype = fields.datatype.ok_or_else(|| absent("datatype"))?;
    let shape = fields.shape.ok_or_else(|| absent("shape"))?;
    let data = match (fields.data, fields.postponed) {
        (Some(data), _) => data,
        (None, Some(at)) => read_data(&mut reader.at(at), spec, &datatype, &shape)?,
        (None, None) => return Err(absent("data")),
    };
    let tensor = Tensor::new(shape, data).map_err(|(shape, data)| {
        let (name, got) = (&spec.name, data.len());
        let expected = element_count(&shape).unwrap_or(usize::MAX);
        InvalidRequest(format!(
            "input `{name}`: expected {expected} elements for the shape {shape:?}, got {got}"
        ))
    })?;
    Ok((index, tensor))
}

fn reader_error(reader: &Reader<'_>, message: &str) -> InvalidRequest {
    reader.error(message).into()
}

fn read_shape(reader: &mut Reader<'_>) -> Result<Vec<usize>, InvalidRequest> {
    let mut data = TensorData::with_capacity(DataType::Uint64, 4);
    let nesting = nested::read(reader, &mut data, 64).map_err(|error| in_field("shape", &error))?;
    let TensorData::Uint64(dimensions) = data else { unreachable!("the buffer keeps its type") };
    if nesting.len() != 1 {
        return Err(reader_error(reader, "field `shape`: expected an array of dimensions"));
    }
    dimensions
        .into_iter()
        .map(|dimension| {
            usize::try_from(dimension).map_err(|_| reader_error(reader, "field `shape`: too large"))
        })
        .collect()
}

fn in_field(field: &str, error: &json::Error) -> InvalidRequest {
    InvalidRequest(format!("field `{field}`: {error}"))
}

fn read_data(
    reader: &mut Reader<'_>,
    spec: &TensorSpec,
    datatype: &str,
    shape: &[usize],
) -> Result<TensorData, InvalidRequest> {
    if datatype != spec.datatype.name() {
        let (name, expected) = (&spec.name, spec.datatype);
        return Err(InvalidRequest(format!("input `{name}`: expected datatype {expected}, got {datatype}")));
    }
    if !spec.accepts(shape) {
        return Err(wrong_shape(spec, shape));
    }
    let Some(count) = element_count(shape) else {
        return Err(InvalidRequest(format!("input `{}`: the shape {shape:?} is too large", spec.name)));
    };
    // An element takes at least two bytes with its comma, so the body bounds what is set aside.
    let mut data = TensorData::with_capacity(spec.datatype, count.min(reader.remaining() / 2 + 1));
    reader.peek();
    let start = reader.position();
    let nesting = nested::read(reader, &mut data, count)
        .map_err(|error| InvalidRequest(format!("input `{}`: {error}", spec.name)))?;
    if nesting.is_empty() && !shape.is_empty() {
        let error = reader.error_at(start, format!("input `{}`: expected an array in `data`", spec.name));
        return Err(error.into());
    }
    Ok(data)
}

fn read_outputs(
    reader: &mut Reader<'_>,
    signature: &Signature,
) -> Result<Option<Vec<usize>>, InvalidRequest> {
    if reader.take_word("null") {
        return Ok(None);
    }
    let mut outputs = Vec::new();
    let mut first = true;
    reader.begin_array()?;
    while reader.next_element(first)? {
        first = false;
        let index = read_output(reader, signature)?;
        if outputs.contains(&index) {
            return Err(InvalidRequest(format!(
                "output `{}` is asked for twice",
                signature.outputs[index].name
            )));
        }
        outputs.push(index);
    }
    Ok((!outputs.is_empty()).then_some(outputs))
}

fn read_output(reader: &mut Reader<'_>, signature: &Signature) -> Result<usize, InvalidRequest> {
    let mut index = None;
    let mut first = true;
    reader.begin_object()?;
    while let Some(key) = reader.next_key(first)? {
        first = false;
        if key != "name" {
            reader.skip()?;
            continue;
        }
        let name = reader.string()?;
        index = signature.output(&name);
        if index.is_none() {
            let outputs = quoted(&signature.outputs);
            return Err(InvalidRequest(format!("unknown output `{name}`: the model gives {outputs}")));
        }
    }
    index.ok_or_else(|| reader_error(reader, "an output has no field `name`"))
}

/// Writes an answer: `tensors` belong to the outputs that `outputs` lists, in that order.
pub fn write_response(
    model: &str,
    id: Option<&str>,
    signature: &Signature,
    outputs: &[usize],
    tensors: &[Tensor],
) -> Vec<u8> {
    let elements: usize = tensors.iter().map(|tensor| tensor.data().len()).sum();
    let mut out = Vec::with_capacity(160 + 96 * tensors.len() + 12 * elements);
    out.extend_from_slice(b"{\"model_name\":");
    write::string(&mut out, model);
    out.extend_from_slice(b",\"model_version\":\"1\"");
    if let Some(id) = id {
        out.extend_from_slice(b",\"id\":");
        write::string(&mut out, id);
    }
    out.extend_from_slice(b",\"outputs\":[");
    for (position, (index, tensor)) in outputs.iter().zip(tensors).enumerate() {
        if position > 0 {
            out.push(b',');
        }
        write_tensor(&mut out, &signature.outputs[*index].name, tensor);
    }
    out.extend_from_slice(b"]}");
    out
}

fn write_tensor(out: &mut Vec<u8>, name: &str, tensor: &Tensor) {
    out.extend_from_slice(b"{\"name\":");
    write::string(out, name);
    out.extend_from_slice(b",\"datatype\":\"");
    out.extend_from_slice(tensor.data().datatype().name().as_bytes());
    out.extend_from_slice(b"\",\"shape\":");
    write::shape(out, tensor.shape());
    out.extend_from_slice(b",\"data\":");
    write::flat(out, tensor.data());
    out.push(b'}');
}

/// Writes a request of these inputs, in the order of the signature; what [`read_request`] reads.
pub fn write_request(signature: &Signature, inputs: &[Tensor]) -> Vec<u8> {
    let mut out = b"{\"inputs\":[".to_vec();
    for (position, (spec, tensor)) in signature.inputs.iter().zip(inputs).enumerate() {
        if position > 0 {
            out.push(b',');
        }
        write_tensor(&mut out, &spec.name, tensor);
    }
    out.extend_from_slice(b"]}");
    out
}

/// The model's metadata, in the protocol's order of fields.
#[derive(Debug, serde::Serialize)]
pub struct Metadata<'a> {
    name: &'a str,
    versions: [&'static str; 1],
    platform: &'static str,
    inputs: Vec<TensorMetadata<'a>>,
    outputs: Vec<TensorMetadata<'a>>,
}

#[derive(Debug, serde::Serialize)]
struct TensorMetadata<'a> {
    name: &'a str,
    datatype: &'static str,
    shape: &'a [i64],
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Parameters>,
}

/// The protocol's parameters hold no arrays, so the labels are a JSON array in a string.
#[derive(Debug, serde::Serialize)]
struct Parameters {
    labels: String,
}

/// What callers can learn about the model, with the labels of a classifier's columns in its output's parameters.
pub fn metadata<'a>(model: &'a str, signature: &'a Signature) -> Metadata<'a> {
    let tensors = |specs: &'a [TensorSpec]| specs.iter().map(tensor_metadata).collect();
    Metadata {
        name: model,
        versions: [MODEL_VERSION],
        platform: "onnx_onnxv1",
        inputs: tensors(&signature.inputs),
        outputs: tensors(&signature.outputs),
    }
}

fn tensor_metadata(spec: &TensorSpec) -> TensorMetadata<'_> {
    let labels =
        spec.labels.as_ref().map(|labels| Parameters { labels: serde_json::json!(labels).to_string() });
    TensorMetadata {
        name: &spec.name,
        datatype: spec.datatype.name(),
        shape: &spec.shape,
        parameters: labels,
    }
}

#[cfg(test)]
mod tests;
