//! ONNX models by ONNX Runtime, loaded as a shared library at run time. The only file that names `ort`.
//!
//! Reads the model's file; everything else is memory. A classifier's `sequence(map)` output, which skl2onnx and
//! onnxmltools write by default, is given as a matrix with one column for each label.

use super::{
    DataType, LoadError, Model, RunError, Signature, Stopper, Tensor, TensorData, TensorSpec, with_values,
};
use half::{bf16, f16};
use ort::session::builder::{GraphOptimizationLevel, PrepackedWeights, SessionBuilder};
use ort::session::{NoSelectedOutputs, RunOptions, Session, SessionInputValue, SessionInputs};
use ort::value::{DynValue, TensorElementType, TensorRef, ValueType};
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// The loaded library. One per process, as ONNX Runtime wants it; clones are the same one.
#[derive(Clone)]
pub struct Library {
    environment: ort::environment::Environment,
}

/// How a model's sessions are to run.
#[derive(Clone)]
pub struct SessionOptions {
    /// Threads that compute one operator together, at least 1.
    pub intra_threads: usize,
    /// Weights rearranged for this machine, kept once for all sessions of a model.
    weights: PrepackedWeights,
}

impl SessionOptions {
    /// Options for all sessions of one model.
    pub fn new(intra_threads: usize) -> Self {
        Self { intra_threads: intra_threads.max(1), weights: PrepackedWeights::new() }
    }
}

impl Library {
    /// Loads the shared library. Later calls give the one of the first.
    ///
    /// # Errors
    /// The file is missing, is not ONNX Runtime, or is older than the interface that this program was built for.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        static LOADED: OnceLock<ort::environment::Environment> = OnceLock::new();
        static LOADING: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let _one_at_a_time = LOADING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(environment) = LOADED.get() {
            return Ok(Self { environment: environment.clone() });
        }
        let failed = |message: String| LoadError::Library {
            path: path.display().to_string(),
            message: one_line(&message),
        };
        let builder = ort::init_from(path).map_err(|error| failed(error.to_string()))?;
        let environment = builder.with_telemetry(false).build().map_err(|error| failed(error.to_string()))?;
        environment.set_log_level(ort::logging::LogLevel::Warning);
        Ok(Self { environment: LOADED.get_or_init(|| environment).clone() })
    }

    /// Makes one session of the model in `file`.
    ///
    /// # Errors
    /// ONNX Runtime refuses the file, or an input has a type that no protocol can carry.
    pub fn open(&self, file: &Path, options: &SessionOptions) -> Result<OnnxModel, LoadError> {
        let session = builder(&self.environment, options)
            .and_then(|mut builder| builder.commit_from_file(file))
            .map_err(|error| LoadError::Refused {
                file: file.display().to_string(),
                message: one_line(error.message()),
            })?;
        OnnxModel::new(session)
    }
}

/// Threads never spin while idle: a model server shares its machine, and a spinning pool burns a core for nothing.
/// Memory patterns are off: they are kept for each shape that ever came, without a bound, and gain nothing measurable.
fn builder(
    environment: &ort::environment::Environment,
    options: &SessionOptions,
) -> ort::Result<SessionBuilder> {
    Ok(Session::builder(environment)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_parallel_execution(false)?
        .with_inter_threads(1)?
        .with_intra_threads(options.intra_threads)?
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?
        .with_memory_pattern(false)?
        .with_prepacked_weights(&options.weights)?)
}

/// How one served output is read from ONNX Runtime's value.
#[derive(Debug, Clone, PartialEq)]
enum Reading {
    Tensor(DataType),
    /// `sequence(map(int64 → float))`
    ScoresByNumber,
    /// `sequence(map(string → float))`
    ScoresByName,
}

/// One ONNX Runtime session.
pub struct OnnxModel {
    session: Session,
    options: Arc<RunOptions<NoSelectedOutputs>>,
    signature: Signature,
    /// For each served output: its position in the session, and how to read it.
    readings: Vec<(usize, Reading)>,
}

impl OnnxModel {
    fn new(session: Session) -> Result<Self, LoadError> {
        let mut signature = Signature::default();
        for outlet in session.inputs() {
            let spec = match outlet.dtype() {
                ValueType::Tensor { ty, shape, .. } => spec(outlet.name(), *ty, shape),
                _ => None,
            };
            signature.inputs.push(spec.ok_or_else(|| {
                let (name, dtype) = (outlet.name(), outlet.dtype());
                LoadError::Unsupported(format!(
                    "input `{name}` has type {dtype}, which no protocol can carry"
                ))
            })?);
        }
        let mut readings = Vec::new();
        for (position, outlet) in session.outputs().iter().enumerate() {
            match output(outlet.name(), outlet.dtype()) {
                Some((spec, reading)) => {
                    signature.outputs.push(spec);
                    readings.push((position, reading));
                }
                None => signature.left_out.push(format!("`{}` ({})", outlet.name(), outlet.dtype())),
            }
        }
        if signature.outputs.is_empty() {
            let outputs = signature.left_out.join(", ");
            return Err(LoadError::Unsupported(format!(
                "no output of the model can be served as a tensor: {outputs}"
            )));
        }
        let options = RunOptions::new().map_err(|error| LoadError::Unsupported(words(error)))?;
        Ok(Self { session, options: Arc::new(options), signature, readings })
    }
}

impl Model for OnnxModel {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&mut self, inputs: &[Tensor], outputs: &[usize]) -> Result<Vec<Tensor>, RunError> {
        let values: Vec<SessionInputValue<'_>> =
            inputs.iter().map(input_value).collect::<ort::Result<_>>().map_err(input_error)?;
        let inputs = SessionInputs::<'_, '_, 0>::ValueSlice(&values);
        let answers = self.session.run_with_options(inputs, &self.options).map_err(run_error)?;
        let mut tensors = Vec::with_capacity(outputs.len());
        for index in outputs {
            let (position, reading) = &self.readings[*index];
            let (tensor, labels) = read(&answers[*position], reading).map_err(|message| {
                RunError::Failed(format!("output `{}`: {message}", self.signature.outputs[*index].name))
            })?;
            if let Some(labels) = labels {
                learn_labels(&mut self.signature.outputs[*index], labels)?;
            }
            tensors.push(tensor);
        }
        Ok(tensors)
    }

    fn stopper(&self) -> Stopper {
        let options = self.options.clone();
        Box::new(move || {
            if let Err(error) = options.terminate() {
                tracing::warn!("cannot end the run: {}", words(error));
            }
        })
    }
}

/// The labels of a classifier stand nowhere but in its answers; the first one (normally the warm-up's) tells them,
/// and later ones must say the same, or the columns would change their meaning.
fn learn_labels(spec: &mut TensorSpec, labels: Vec<String>) -> Result<(), RunError> {
    match &spec.labels {
        None => {
            if let Some(columns) = spec.shape.get_mut(1) {
                *columns = labels.len() as i64;
            }
            spec.labels = Some(labels);
            Ok(())
        }
        Some(known) if *known == labels => Ok(()),
        Some(known) => Err(RunError::Failed(format!(
            "output `{}`: labels changed from {known:?} to {labels:?}",
            spec.name
        ))),
    }
}

fn spec(name: &str, element: TensorElementType, shape: &[i64]) -> Option<TensorSpec> {
    let shape = shape.iter().map(|dimension| (*dimension).max(-1)).collect();
    Some(TensorSpec { name: name.to_owned(), datatype: datatype(element)?, shape, labels: None })
}

fn output(name: &str, dtype: &ValueType) -> Option<(TensorSpec, Reading)> {
    match dtype {
        ValueType::Tensor { ty, shape, .. } => {
            let spec = spec(name, *ty, shape)?;
            let reading = Reading::Tensor(spec.datatype);
            Some((spec, reading))
        }
        ValueType::Sequence(element) => {
            let reading = match **element {
                ValueType::Map { key: TensorElementType::Int64, value: TensorElementType::Float32 } => {
                    Reading::ScoresByNumber
                }
                ValueType::Map { key: TensorElementType::String, value: TensorElementType::Float32 } => {
                    Reading::ScoresByName
                }
                _ => return None,
            };
            Some((spec(name, TensorElementType::Float32, &[-1, -1])?, reading))
        }
        _ => None,
    }
}

fn datatype(element: TensorElementType) -> Option<DataType> {
    Some(match element {
        TensorElementType::Bool => DataType::Bool,
        TensorElementType::Uint8 => DataType::Uint8,
        TensorElementType::Uint16 => DataType::Uint16,
        TensorElementType::Uint32 => DataType::Uint32,
        TensorElementType::Uint64 => DataType::Uint64,
        TensorElementType::Int8 => DataType::Int8,
        TensorElementType::Int16 => DataType::Int16,
        TensorElementType::Int32 => DataType::Int32,
        TensorElementType::Int64 => DataType::Int64,
        TensorElementType::Float16 => DataType::Fp16,
        TensorElementType::Bfloat16 => DataType::Bf16,
        TensorElementType::Float32 => DataType::Fp32,
        TensorElementType::Float64 => DataType::Fp64,
        TensorElementType::String => DataType::Bytes,
        _ => return None,
    })
}

/// A view of the tensor's own buffer: numbers are not copied, strings have to be.
fn input_value(tensor: &Tensor) -> ort::Result<SessionInputValue<'_>> {
    let shape = tensor.shape();
    if let TensorData::Bytes(strings) = tensor.data() {
        return ort::value::Tensor::from_string_array((shape, strings.as_slice()))
            .map(SessionInputValue::from);
    }
    macro_rules! view {
        ($($variant:ident)*) => {
            match tensor.data() {
                $(TensorData::$variant(values) => {
                    TensorRef::from_array_view((shape, values.as_slice())).map(SessionInputValue::from)
                })*
                TensorData::Bytes(_) => unreachable!("strings are made above"),
            }
        };
    }
    view!(Bool Uint8 Uint16 Uint32 Uint64 Int8 Int16 Int32 Int64 Fp16 Bf16 Fp32 Fp64)
}

type Labelled = (Tensor, Option<Vec<String>>);

fn read(value: &DynValue, reading: &Reading) -> Result<Labelled, String> {
    match reading {
        Reading::Tensor(datatype) => read_tensor(value, *datatype).map(|tensor| (tensor, None)),
        Reading::ScoresByNumber => read_scores::<i64>(value),
        Reading::ScoresByName => read_scores::<String>(value),
    }
}

fn read_tensor(value: &DynValue, datatype: DataType) -> Result<Tensor, String> {
    macro_rules! copy {
        ($($variant:ident: $element:ty,)*) => {
            match datatype {
                $(DataType::$variant => {
                    let (shape, values) = value.try_extract_tensor::<$element>().map_err(words)?;
                    (dimensions(shape), TensorData::$variant(values.to_vec()))
                })*
                DataType::Bytes => {
                    let (shape, values) = value.try_extract_strings().map_err(words)?;
                    (dimensions(shape), TensorData::Bytes(values))
                }
            }
        };
    }
    let (shape, data) = copy! {
        Bool: bool, Uint8: u8, Uint16: u16, Uint32: u32, Uint64: u64, Int8: i8, Int16: i16, Int32: i32, Int64: i64,
        Fp16: f16, Bf16: bf16, Fp32: f32, Fp64: f64,
    };
    tensor(shape, data)
}

fn dimensions(shape: &[i64]) -> Vec<usize> {
    shape.iter().map(|dimension| usize::try_from(*dimension).unwrap_or(0)).collect()
}

fn tensor(shape: Vec<usize>, data: TensorData) -> Result<Tensor, String> {
    Tensor::new(shape, data).map_err(|(shape, data)| {
        let count = with_values!(&data, values => values.len());
        format!("ONNX Runtime gave {count} elements for the shape {shape:?}")
    })
}

/// The keys that a classifier's scores can have.
trait Label: ort::value::IntoTensorElementType + Clone + std::hash::Hash + Ord + ToString {}
impl Label for i64 {}
impl Label for String {}

/// One map for each row becomes one row of a matrix, columns in ascending order of the keys.
fn read_scores<K: Label>(value: &DynValue) -> Result<Labelled, String> {
    let rows = value.try_extract_sequence::<ort::value::DynMapValueType>().map_err(words)?;
    let mut labels: Option<Vec<K>> = None;
    let mut scores = Vec::new();
    for (row, map) in rows.iter().enumerate() {
        let mut entries = map.try_extract_key_values::<K, f32>().map_err(words)?;
        if !entries.is_sorted_by(|a, b| a.0 < b.0) {
            entries.sort_by(|a, b| a.0.cmp(&b.0));
        }
        match &labels {
            None => labels = Some(entries.iter().map(|(key, _)| key.clone()).collect()),
            Some(labels) if labels.iter().eq(entries.iter().map(|(key, _)| key)) => {}
            Some(_) => return Err(format!("row {row} has other labels than row 0")),
        }
        scores.extend(entries.iter().map(|(_, score)| *score));
    }
    let labels: Option<Vec<String>> = labels.map(|labels| labels.iter().map(ToString::to_string).collect());
    let columns = labels.as_ref().map_or(0, Vec::len);
    Ok((tensor(vec![rows.len(), columns], TensorData::Fp32(scores))?, labels))
}

fn words(error: ort::Error) -> String {
    one_line(error.message())
}

fn input_error(error: ort::Error) -> RunError {
    RunError::InvalidInput(words(error))
}

/// ONNX Runtime says INVALID_ARGUMENT both for inputs that it refuses before it starts and for operators that fail on
/// the way; only the second kind names a node, and only the first is the caller's.
fn run_error(error: ort::Error) -> RunError {
    let message = one_line(error.message());
    let before_start = error.code() == ort::ErrorCode::InvalidArgument && !message.contains("while running");
    if before_start { RunError::InvalidInput(message) } else { RunError::Failed(message) }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
