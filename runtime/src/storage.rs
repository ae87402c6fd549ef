//! Brings a model's files to this machine: local paths and volumes as they are, downloads into a fresh directory that
//! gets its final name only when everything in it is complete and checked.
//!
//! All network and file IO of loading is here. What can never succeed is told apart from what may succeed later; the
//! latter is retried here for as long as it takes.

mod download;
mod http;
mod local;
mod s3;
mod uri;

pub use download::Backoff;
pub use uri::{Location, default_model_name, without_secrets};

use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A model's files, ready to be opened.
#[derive(Debug, Clone, PartialEq)]
pub struct Fetched {
    /// The `.onnx` file.
    pub model_file: PathBuf,
    /// `sha256:<hex>` of the file, or of the list of all files where there are several (see [`digest`]).
    pub digest: String,
    /// Bytes of all files together.
    pub bytes: u64,
}

/// A failure to fetch.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum StorageError {
    /// Trying again cannot help.
    #[error("{message}")]
    Permanent {
        /// A word for the termination message and for conditions.
        reason: &'static str,
        /// What was tried and what came back.
        message: String,
    },
    /// Trying again may help.
    #[error("{0}")]
    Transient(String),
}

impl StorageError {
    pub(crate) fn invalid_uri(message: impl Into<String>) -> Self {
        Self::Permanent { reason: "InvalidModelUri", message: message.into() }
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::Permanent { reason: "ModelNotFound", message: message.into() }
    }

    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::Permanent { reason: "StorageForbidden", message: message.into() }
    }

    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self::Permanent { reason: "StorageRefused", message: message.into() }
    }

    pub(crate) fn too_large(limit: u64) -> Self {
        let message = format!("the model has more than {limit} bytes (--model-size-limit)");
        Self::Permanent { reason: "ModelTooLarge", message }
    }

    /// By an HTTP status, in the store's words.
    pub(crate) fn by_status(status: u16, message: String) -> Self {
        match status {
            404 | 410 => Self::not_found(message),
            401 | 403 => Self::forbidden(message),
            408 | 425 | 429 | 500.. => Self::Transient(message),
            _ => Self::refused(message),
        }
    }
}

/// How to fetch.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where downloads go; it is made if it is missing.
    pub directory: PathBuf,
    /// Most bytes of all files together.
    pub size_limit: u64,
    /// Pauses between attempts.
    pub backoff: Backoff,
    /// Variables of the environment that S3 is configured with (`AWS_...`).
    pub environment: Vec<(String, String)>,
}

/// How many bytes have come so far; shared with whoever shows it.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<AtomicU64>);

impl Progress {
    /// Bytes of the present attempt.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self, bytes: u64) {
        self.0.store(bytes, Ordering::Relaxed);
    }
}

/// Fetches a model, retrying for as long as trying again may help.
///
/// # Errors
/// Only permanent ones, as reason and message.
pub async fn fetch(
    location: &Location,
    settings: &Settings,
    progress: &Progress,
) -> Result<Fetched, StorageError> {
    match location {
        Location::Path { path, within } => {
            let (path, within, limit) = (path.clone(), within.clone(), settings.size_limit);
            let read = tokio::task::spawn_blocking(move || local::open(&path, within.as_deref(), limit));
            read.await
                .map_err(|error| StorageError::refused(format!("reading the model panicked: {error}")))?
        }
        Location::Http(url) => download::download(&http::Source::new(url.clone()), settings, progress).await,
        Location::S3 { bucket, key } => {
            let source = s3::Source::new(bucket, key, &settings.environment)?;
            download::download(&source, settings, progress).await
        }
    }
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct File {
    /// Below the model's directory, with `/`.
    pub(crate) name: String,
    pub(crate) sha256: String,
    pub(crate) bytes: u64,
}

/// The digest of a model: of a single file its own sha256; of several the sha256 of the lines that `sha256sum` prints
/// for them, sorted by name.
pub(crate) fn digest(files: &mut [File]) -> String {
    files.sort();
    if let [file] = files {
        return format!("sha256:{}", file.sha256);
    }
    let mut hash = Sha256::new();
    for file in files {
        hash.update(format!("{}  {}\n", file.sha256, file.name));
    }
    format!("sha256:{}", hex(&hash.finalize()))
}

/// TLS by ring, which the rest of the workspace uses as well. Has to be said once before the first client is made.
pub(crate) fn choose_tls() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    // Fails only where somebody has chosen before, which then holds.
    ONCE.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Which of the files is the model: `model.onnx`, else the only `.onnx` at the top.
pub(crate) fn choose_model<'a>(
    names: impl Iterator<Item = &'a str>,
    place: &str,
) -> Result<&'a str, StorageError> {
    let candidates: Vec<&str> = names
        .filter(|name| !name.contains('/') && Path::new(name).extension().is_some_and(|it| it == "onnx"))
        .collect();
    match candidates.as_slice() {
        [only] => Ok(only),
        [] => Err(StorageError::not_found(format!("{place} has no .onnx file"))),
        _ if candidates.contains(&"model.onnx") => Ok("model.onnx"),
        _ => Err(StorageError::invalid_uri(format!(
            "{place} has several .onnx files ({}): name one, or call it model.onnx",
            candidates.join(", ")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, sha256: &str) -> File {
        File { name: name.into(), sha256: sha256.into(), bytes: 1 }
    }

    #[test]
    fn one_file_is_its_own_digest_and_order_does_not_matter() {
        assert_eq!(digest(&mut [file("a", "01")]), "sha256:01");
        let two = digest(&mut [file("a", "01"), file("b", "02")]);
        assert_eq!(two, digest(&mut [file("b", "02"), file("a", "01")]));
        // printf '01  a\n02  b\n' | sha256sum
        assert_eq!(two, "sha256:1faf9ec52b222ec39f008f3930d01bb693ae7942753ec35e05434619006cd076");
    }

    #[test]
    fn the_model_is_the_obvious_file() {
        let check = |names: &[&str], expect: Result<&str, &str>| {
            let chosen = choose_model(names.iter().copied(), "x").map_err(|error| error.to_string());
            assert_eq!(chosen.as_deref().map_err(String::as_str), expect, "{names:?}");
        };
        check(&["iris.onnx", "config.json"], Ok("iris.onnx"));
        check(&["a.onnx", "model.onnx", "model.onnx.data"], Ok("model.onnx"));
        check(&["sub/a.onnx", "b.onnx"], Ok("b.onnx"));
        check(&["config.json"], Err("x has no .onnx file"));
        check(
            &["a.onnx", "b.onnx"],
            Err("x has several .onnx files (a.onnx, b.onnx): name one, or call it model.onnx"),
        );
    }

    #[test]
    fn statuses_are_permanent_or_not() {
        let check = |status, expect| {
            let reason = match StorageError::by_status(status, String::new()) {
                StorageError::Permanent { reason, .. } => Some(reason),
                StorageError::Transient(_) => None,
            };
            assert_eq!(reason, expect, "{status}");
        };
        check(404, Some("ModelNotFound"));
        check(403, Some("StorageForbidden"));
        check(401, Some("StorageForbidden"));
        check(400, Some("StorageRefused"));
        check(429, None);
        check(500, None);
        check(503, None);
    }
}
