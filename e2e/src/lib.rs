//! End-to-end stories on a real cluster, and what they are told with.
//!
//! - [`cluster`]: makes sure that cluster, images, storage and chart are up; runs kubectl and helm.
//! - [`story`]: a namespace of its own for each story, a dump of everything in it when the story fails.
//! - [`scene`]: iris and magika, ready and under load; where most stories begin.
//! - [`service`]: an InferenceService as its user sees it: apply, patch, wait for its status.
//! - [`wait`]: waiting with watches.
//! - [`traffic`]: the load, and the ledger of every request.
//! - [`magika`]: from magika's scores to the type of a file.
//!
//! The stories themselves are in `tests/stories`, one file each; the demo and the figures are programs in `bin`.

pub mod cluster;
pub mod dump;
pub mod magika;
pub mod scene;
pub mod service;
pub mod story;
pub mod traffic;
pub mod wait;

use std::path::{Path, PathBuf};

/// Root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// Where `make models` writes.
pub fn models() -> PathBuf {
    repository().join(".cache/models")
}
