//! Fetching over the network: into a fresh directory, hashed on the way, capped in size, renamed into place when
//! complete. Attempts that fail for a passing reason are repeated with growing pauses; files that were complete stay.

use super::{Fetched, File, Progress, Settings, StorageError, choose_model, digest, hex};
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use sha2::{Digest, Sha256};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;

/// One file that a store has.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Remote {
    /// Where the store has it: an object's key; empty where the source is one file.
    pub(super) key: String,
    /// Where it belongs below the model's directory, with `/`.
    pub(super) name: String,
    /// Bytes, where the store tells.
    pub(super) bytes: Option<u64>,
    /// What changes when the contents do, where the store tells.
    pub(super) tag: Option<String>,
}

/// The contents of one file as they come.
pub(super) struct Contents {
    /// How many bytes are to come, where the store tells.
    pub(super) bytes: Option<u64>,
    pub(super) chunks: BoxStream<'static, Result<Bytes, StorageError>>,
}

/// A store that a model is fetched from.
pub(super) trait Source: Sync {
    /// Names the source in messages.
    fn describe(&self) -> String;
    /// The model's files.
    fn list(&self) -> BoxFuture<'_, Result<Vec<Remote>, StorageError>>;
    /// Opens one of them.
    fn get<'a>(&'a self, remote: &'a Remote) -> BoxFuture<'a, Result<Contents, StorageError>>;
}

/// Pauses between attempts: doubling from the first to the longest, each shortened at random by up to a quarter so
/// that many pods do not come back at once.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// After the first failure.
    pub first: Duration,
    /// Never longer than this.
    pub longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(500), longest: Duration::from_secs(30) }
    }
}

impl Backoff {
    fn pause(self, attempt: u32) -> Duration {
        let doubled = self.first.saturating_mul(1_u32.checked_shl(attempt.min(16)).unwrap_or(u32::MAX));
        doubled.min(self.longest).mul_f64(1.0 - rand::random::<f64>() / 4.0)
    }
}

pub(super) async fn download(
    source: &impl Source,
    settings: &Settings,
    progress: &Progress,
) -> Result<Fetched, StorageError> {
    let mut download = Download::begin(settings, progress)?;
    for attempt in 0.. {
        let failure = match download.attempt(source).await {
            Ok(()) => break,
            Err(StorageError::Transient(message)) => message,
            Err(permanent) => return Err(permanent),
        };
        let pause = settings.backoff.pause(attempt);
        tracing::warn!(
            source = source.describe(),
            attempt = attempt + 1,
            bytes_so_far = download.progress.bytes(),
            retry_in_ms = pause.as_millis() as u64,
            "fetching the model failed: {failure}"
        );
        tokio::time::sleep(pause).await;
    }
    download.finish(source)
}

/// A fetch under way. Its directory is removed unless it was renamed into place.
struct Download<'a> {
    settings: &'a Settings,
    progress: &'a Progress,
    directory: PathBuf,
    #[allow(dead_code, reason = "held for as long as the directory is in use")]
    lock: std::fs::File,
    complete: Vec<(Remote, File)>,
    last_report: Instant,
}

const REPORT_EVERY: Duration = Duration::from_secs(10);

impl<'a> Download<'a> {
    fn begin(settings: &'a Settings, progress: &'a Progress) -> Result<Self, StorageError> {
        let parent = &settings.directory;
        std::fs::create_dir_all(parent).map_err(|error| unwritable(parent, &error))?;
        remove_abandoned(parent);
        let directory = parent.join(format!("{INCOMPLETE}{:016x}", rand::random::<u64>()));
        let lock = lock_of(&directory);
        let lock = std::fs::File::create(&lock).map_err(|error| unwritable(&lock, &error))?;
        // Cannot fail: the file is new. Held until the process ends, however it ends.
        let _ = lock.try_lock();
        std::fs::create_dir(&directory).map_err(|error| unwritable(&directory, &error))?;
        Ok(Self { settings, progress, directory, lock, complete: Vec::new(), last_report: Instant::now() })
    }

    async fn attempt(&mut self, source: &impl Source) -> Result<(), StorageError> {
        self.progress.set(self.bytes());
        let remotes = source.list().await?;
        let told: u64 = remotes.iter().filter_map(|remote| remote.bytes).fold(0, u64::saturating_add);
        if told > self.settings.size_limit {
            return Err(StorageError::too_large(self.settings.size_limit));
        }
        choose_model(remotes.iter().map(|remote| remote.name.as_str()), &source.describe())?;
        self.complete.retain(|(complete, _)| complete.tag.is_some() && remotes.contains(complete));
        for remote in remotes {
            if !self.complete.iter().any(|(complete, _)| *complete == remote) {
                let file = self.fetch(source, &remote).await?;
                self.complete.push((remote, file));
            }
        }
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.complete.iter().map(|(_, file)| file.bytes).sum()
    }

    async fn fetch(&mut self, source: &impl Source, remote: &Remote) -> Result<File, StorageError> {
        let path = self.directory.join(relative(&remote.name)?);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|error| unwritable(parent, &error))?;
        }
        let contents = source.get(remote).await?;
        let expected = contents.bytes.or(remote.bytes);
        let file = tokio::fs::File::create(&path).await.map_err(|error| unwritable(&path, &error))?;
        let mut file = tokio::io::BufWriter::with_capacity(1 << 20, file);
        let mut hash = Sha256::new();
        let mut chunks = contents.chunks;
        let (before, mut bytes) = (self.bytes(), 0);
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk?;
            bytes += chunk.len() as u64;
            if before + bytes > self.settings.size_limit {
                return Err(StorageError::too_large(self.settings.size_limit));
            }
            hash.update(&chunk);
            file.write_all(&chunk).await.map_err(|error| unwritable(&path, &error))?;
            self.report(source, before + bytes, expected);
        }
        file.flush().await.map_err(|error| unwritable(&path, &error))?;
        match expected {
            Some(expected) if expected != bytes => Err(StorageError::Transient(format!(
                "`{}` ended after {bytes} of {expected} bytes",
                remote.name
            ))),
            _ => Ok(File { name: remote.name.clone(), sha256: hex(&hash.finalize()), bytes }),
        }
    }

    fn report(&mut self, source: &impl Source, bytes: u64, expected: Option<u64>) {
        self.progress.set(bytes);
        if self.last_report.elapsed() >= REPORT_EVERY {
            self.last_report = Instant::now();
            tracing::info!(
                source = source.describe(),
                bytes_so_far = bytes,
                file_bytes = expected,
                "fetching the model"
            );
        }
    }

    fn finish(self, source: &impl Source) -> Result<Fetched, StorageError> {
        let mut files: Vec<File> = self.complete.iter().map(|(_, file)| file.clone()).collect();
        let digest = digest(&mut files);
        let model = choose_model(files.iter().map(|file| file.name.as_str()), &source.describe())?.to_owned();
        let place = self.settings.directory.join(digest.replace(':', "-"));
        // What an earlier start of the same container has left is complete, since it has this name.
        if !place.is_dir() {
            std::fs::rename(&self.directory, &place).map_err(|error| unwritable(&place, &error))?;
        }
        Ok(Fetched { model_file: place.join(model), digest, bytes: self.bytes() })
    }
}

impl Drop for Download<'_> {
    fn drop(&mut self) {
        // Gone already where the download was renamed into place.
        let _ = std::fs::remove_dir_all(&self.directory);
        let _ = std::fs::remove_file(lock_of(&self.directory));
    }
}

const INCOMPLETE: &str = "incomplete-";

/// Stands beside the directory and is locked while somebody fills it.
fn lock_of(directory: &Path) -> PathBuf {
    directory.with_extension("lock")
}

/// What a process that was killed has left must not fill the volume, start after start. A directory whose lock is
/// free belongs to nobody any more.
fn remove_abandoned(parent: &Path) {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    for lock in entries.map(|entry| entry.path()) {
        let name = lock.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !name.starts_with(INCOMPLETE) || !name.ends_with(".lock") {
            continue;
        }
        if std::fs::File::open(&lock).is_ok_and(|file| file.try_lock().is_ok()) {
            // Another start may be cleaning up as well; then there is nothing left to remove.
            let _ = std::fs::remove_dir_all(lock.with_extension(""));
            let _ = std::fs::remove_file(&lock);
        }
    }
}

/// The name as a path that cannot lead out of the directory that it is joined to.
fn relative(name: &str) -> Result<&Path, StorageError> {
    let path = Path::new(name);
    let stays = path.components().all(|component| matches!(component, Component::Normal(_)));
    if stays && path.components().next().is_some() && !name.contains('\0') {
        Ok(path)
    } else {
        Err(StorageError::invalid_uri(format!("the file name `{name}` would leave the model's directory")))
    }
}

fn unwritable(path: &Path, error: &std::io::Error) -> StorageError {
    StorageError::Permanent {
        reason: "ModelDirectoryUnwritable",
        message: format!("cannot write `{}` (--model-dir): {error}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        assert_eq!(relative("a/b.onnx"), Ok(Path::new("a/b.onnx")));
        for name in ["", "/etc/passwd", "../x", "a/../../x", "a/\0"] {
            assert!(relative(name).is_err(), "{name}");
        }
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_is_in_use_is_not() {
        let parent = tempfile::tempdir().expect("a directory");
        let settings = Settings {
            directory: parent.path().to_owned(),
            size_limit: 1,
            backoff: Backoff::default(),
            environment: Vec::new(),
        };
        let abandoned = parent.path().join("incomplete-1");
        std::fs::create_dir(&abandoned).expect("a directory");
        std::fs::write(lock_of(&abandoned), "").expect("a file");
        let (first, second) = (Progress::default(), Progress::default());
        let first = Download::begin(&settings, &first).expect("a directory");
        let second = Download::begin(&settings, &second).expect("a directory");
        assert!(!abandoned.exists() && first.directory.is_dir() && second.directory.is_dir());
        drop((first, second));
        assert_eq!(std::fs::read_dir(parent.path()).expect("a directory").count(), 0);
    }

    #[test]
    fn pauses_grow_to_a_bound() {
        let backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(30) };
        for (attempt, longest) in [(0, 1.0), (1, 2.0), (4, 16.0), (5, 30.0), (4_000_000_000, 30.0)] {
            let pause = backoff.pause(attempt).as_secs_f64();
            assert!(pause <= longest && pause >= longest * 0.75, "{attempt}: {pause}");
        }
    }
}
