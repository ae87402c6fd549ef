//! Models that are on this machine already: found, hashed and left where they are.

use super::{Fetched, File, StorageError, choose_model, digest, hex};
use sha2::{Digest, Sha256};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// Finds the model at `path`, a file or a directory, and hashes it. With `within`, the path may not lead out of that
/// directory, over links either.
pub(super) fn open(path: &Path, within: Option<&Path>, limit: u64) -> Result<Fetched, StorageError> {
    let path = confined(path, within)?;
    if !path.is_dir() {
        let mut files = [hashed(&path, String::new(), limit)?];
        let bytes = files[0].bytes;
        return Ok(Fetched { model_file: path, digest: digest(&mut files), bytes });
    }
    let mut files = Vec::new();
    let mut bytes = 0;
    for name in names_below(&path)? {
        let file = hashed(&confined(&path.join(&name), within)?, name, limit - bytes)?;
        bytes += file.bytes;
        files.push(file);
    }
    let place = format!("`{}`", path.display());
    let model_file = path.join(choose_model(files.iter().map(|file| file.name.as_str()), &place)?);
    Ok(Fetched { model_file, digest: digest(&mut files), bytes })
}

fn confined(path: &Path, within: Option<&Path>) -> Result<PathBuf, StorageError> {
    let Some(within) = within else { return Ok(path.to_owned()) };
    let real = |path: &Path| path.canonicalize().map_err(|error| failed(path, &error));
    let (real_path, real_root) = (real(path)?, real(within)?);
    if real_path.starts_with(&real_root) {
        Ok(real_path)
    } else {
        Err(StorageError::invalid_uri(format!("`{}` leads out of `{}`", path.display(), within.display())))
    }
}

/// All files below a directory, hidden ones apart (volumes of Kubernetes keep their bookkeeping in those).
fn names_below(directory: &Path) -> Result<Vec<String>, StorageError> {
    let mut names = Vec::new();
    let mut pending = vec![String::new()];
    while let Some(below) = pending.pop() {
        let place = directory.join(&below);
        for entry in std::fs::read_dir(&place).map_err(|error| failed(&place, &error))? {
            let entry = entry.map_err(|error| failed(&place, &error))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.starts_with('.') {
                continue;
            }
            let name = if below.is_empty() { name } else { format!("{below}/{name}") };
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => pending.push(name),
                // Links to directories may run in circles.
                Ok(kind) if kind.is_symlink() && directory.join(&name).is_dir() => {}
                _ => names.push(name),
            }
        }
    }
    Ok(names)
}

fn hashed(path: &Path, name: String, limit: u64) -> Result<File, StorageError> {
    let mut file = std::fs::File::open(path).map_err(|error| failed(path, &error))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(File { name, sha256: hex(&hash.finalize()), bytes }),
            Ok(count) => {
                bytes += count as u64;
                hash.update(&buffer[..count]);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(path, &error)),
        }
        if bytes > limit {
            return Err(StorageError::too_large(limit));
        }
    }
}

fn failed(path: &Path, error: &std::io::Error) -> StorageError {
    let message = format!("cannot read `{}`: {error}", path.display());
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => StorageError::not_found(message),
        ErrorKind::PermissionDenied => StorageError::forbidden(message),
        _ => StorageError::refused(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_file_or_a_directory_is_found_and_hashed() {
        let root = tempfile::tempdir().expect("a directory");
        let root = root.path();
        std::fs::write(root.join("a.onnx"), "abc").expect("a file");
        let fetched = open(&root.join("a.onnx"), None, 100).expect("a file");
        assert_eq!(fetched, Fetched { model_file: root.join("a.onnx"), digest: ABC.into(), bytes: 3 });
        assert_eq!(open(root, None, 100), Ok(fetched));
        std::fs::create_dir(root.join("sub")).expect("a directory");
        std::fs::write(root.join("sub/labels.txt"), "defg").expect("a file");
        std::fs::write(root.join(".hidden"), "x").expect("a file");
        let both = open(root, None, 100).expect("a directory");
        assert_eq!((both.bytes, both.model_file), (7, root.join("a.onnx")));
        assert_ne!(both.digest, ABC);
    }

    #[test]
    fn what_cannot_be_read_is_permanent() {
        let root = tempfile::tempdir().expect("a directory");
        let check = |path: &Path, limit: u64, expect: &str| match open(path, None, limit) {
            Err(StorageError::Permanent { reason, .. }) => assert_eq!(reason, expect),
            other => panic!("{other:?}"),
        };
        check(&root.path().join("missing.onnx"), 10, "ModelNotFound");
        check(root.path(), 10, "ModelNotFound");
        std::fs::write(root.path().join("a.onnx"), "abc").expect("a file");
        check(root.path(), 2, "ModelTooLarge");
        check(&root.path().join("a.onnx/b"), 10, "ModelNotFound");
    }

    #[test]
    fn a_volume_is_not_left_over_a_link() {
        let root = tempfile::tempdir().expect("a directory");
        let claim = root.path().join("claim");
        std::fs::create_dir(&claim).expect("a directory");
        std::fs::write(root.path().join("secret.onnx"), "abc").expect("a file");
        std::os::unix::fs::symlink("../secret.onnx", claim.join("model.onnx")).expect("a link");
        for path in [claim.join("model.onnx"), claim.clone()] {
            let error = open(&path, Some(&claim), 100).expect_err("it leads out");
            assert!(error.to_string().contains("leads out of"), "{error}");
        }
        std::fs::write(claim.join("real.onnx"), "abc").expect("a file");
        std::fs::remove_file(claim.join("model.onnx")).expect("removed");
        std::os::unix::fs::symlink("real.onnx", claim.join("link.onnx")).expect("a link");
        assert_eq!(
            open(&claim.join("link.onnx"), Some(&claim), 100).map(|fetched| fetched.digest),
            Ok(ABC.into())
        );
    }
}
