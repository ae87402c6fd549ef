//! What a model is to the rest of the server: named tensors in, named tensors out, one run at a time.
//!
//! Nothing here knows HTTP or JSON, and only [`onnx`] knows which library does the work. No IO except in [`onnx`],
//! which reads the model's file.

pub mod example;
pub mod onnx;
mod signature;
mod tensor;

pub(crate) use signature::quoted;
pub use signature::{Signature, TensorSpec};
pub(crate) use tensor::element_count;
pub(crate) use tensor::with_values;
pub use tensor::{DataType, Tensor, TensorData};

/// A loaded model that one thread owns and runs.
pub trait Model: Send {
    /// The tensors that the model takes and gives.
    fn signature(&self) -> &Signature;

    /// Runs the model once.
    ///
    /// `inputs` stand in the order of [`Signature::inputs`] and have been checked against it; `outputs` are indices
    /// into [`Signature::outputs`], and the answer has one tensor for each of them, in their order.
    fn run(&mut self, inputs: &[Tensor], outputs: &[usize]) -> Result<Vec<Tensor>, RunError>;

    /// What other threads call to make the run under way, and all later ones, end soon with an error. A process must
    /// not end while the library computes.
    fn stopper(&self) -> Stopper {
        Box::new(|| {})
    }
}

/// See [`Model::stopper`].
pub type Stopper = Box<dyn Fn() + Send + Sync>;

/// Why a model could not be made ready. All of these stay true however often the load is repeated.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The shared library of ONNX Runtime is missing or too old.
    #[error("cannot load ONNX Runtime from `{path}`: {message}")]
    Library {
        /// Where it was looked for.
        path: String,
        /// The loader's words.
        message: String,
    },
    /// The library refused the file.
    #[error("ONNX Runtime cannot load `{file}`: {message}")]
    Refused {
        /// The model's file.
        file: String,
        /// ONNX Runtime's words.
        message: String,
    },
    /// The model loads, but has a tensor that no protocol can carry.
    #[error("{0}")]
    Unsupported(String),
}

impl LoadError {
    /// A word for metrics, events and the termination message.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Library { .. } => "RuntimeLibraryMissing",
            Self::Refused { .. } => "ModelLoadFailed",
            Self::Unsupported(_) => "ModelUnsupported",
        }
    }
}

/// Why one run gave no answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RunError {
    /// The inputs contradict the model in a way that only running it shows, such as two dimensions of one name that
    /// differ. The caller can mend it.
    #[error("{0}")]
    InvalidInput(String),
    /// The model itself failed.
    #[error("{0}")]
    Failed(String),
}
