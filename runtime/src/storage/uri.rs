//! What a user writes to name a model's place, taken apart. Pure.

use super::StorageError;
use std::path::{Component, Path, PathBuf};
use url::Url;

/// Where a model is.
#[derive(Debug, Clone, PartialEq)]
pub enum Location {
    /// On this machine.
    Path {
        /// A file or a directory.
        path: PathBuf,
        /// The directory that the path, all links followed, must not leave.
        within: Option<PathBuf>,
    },
    /// A file behind a URL.
    Http(Url),
    /// An object, or all objects below a prefix.
    S3 {
        /// The bucket.
        bucket: String,
        /// The key or prefix, without a slash at the front.
        key: String,
    },
}

impl Location {
    /// Reads a URI or a bare path; volumes are looked for below `pvc_root`.
    ///
    /// # Errors
    /// `InvalidModelUri`, with what was expected.
    pub fn parse(text: &str, pvc_root: &Path) -> Result<Self, StorageError> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return if text.is_empty() {
                Err(StorageError::invalid_uri("the model's URI is empty"))
            } else {
                Ok(Self::Path { path: text.into(), within: None })
            };
        };
        match scheme {
            "file" if rest.starts_with('/') => Ok(Self::Path { path: decoded(rest)?.into(), within: None }),
            "file" => Err(StorageError::invalid_uri(format!("`{text}`: expected file:///absolute/path"))),
            "pvc" => volume(text, rest, pvc_root),
            "http" | "https" => Url::parse(text)
                .map(Self::Http)
                .map_err(|error| StorageError::invalid_uri(format!("`{}`: {error}", without_secrets(text)))),
            "s3" => bucket(text, rest),
            _ => Err(StorageError::invalid_uri(format!(
                "`{text}`: scheme `{scheme}` is not known: expected a path, file, pvc, http, https or s3"
            ))),
        }
    }
}

/// A URI for logs and messages, without what may be a secret: a URL's user part, its query and its fragment. Takes the text
/// apart by itself, so that it also holds for what is no valid URL.
pub fn without_secrets(uri: &str) -> String {
    let Some((scheme, rest)) = uri.split_once("://") else { return uri.to_owned() };
    if !matches!(scheme, "http" | "https") {
        return uri.to_owned();
    }
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

fn volume(text: &str, rest: &str, root: &Path) -> Result<Location, StorageError> {
    let (claim, path) = rest.split_once('/').unwrap_or((rest, ""));
    let path = decoded(path)?;
    let path = Path::new(&path);
    if !is_one_name(claim) {
        return Err(StorageError::invalid_uri(format!("`{text}`: expected pvc://claim/path")));
    }
    if !path.components().all(|component| matches!(component, Component::Normal(_) | Component::CurDir)) {
        return Err(StorageError::invalid_uri(format!("`{text}`: the path may not leave the volume")));
    }
    let within = root.join(claim);
    Ok(Location::Path { path: within.join(path), within: Some(within) })
}

fn bucket(text: &str, rest: &str) -> Result<Location, StorageError> {
    let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
    if !is_one_name(bucket) {
        return Err(StorageError::invalid_uri(format!("`{text}`: expected s3://bucket/key")));
    }
    Ok(Location::S3 { bucket: bucket.to_owned(), key: key.trim_start_matches('/').to_owned() })
}

fn is_one_name(text: &str) -> bool {
    let mut components = Path::new(text).components();
    matches!(components.next(), Some(Component::Normal(_))) && components.next().is_none()
}

fn decoded(text: &str) -> Result<String, StorageError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let digits = (byte == b'%').then(|| [rest.next(), rest.next()]);
        match digits {
            None => bytes.push(byte),
            Some([Some(high), Some(low)]) => {
                let pair = [high, low];
                let code = std::str::from_utf8(&pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
                bytes.push(code.ok_or_else(|| bad_escape(text))?);
            }
            Some(_) => return Err(bad_escape(text)),
        }
    }
    String::from_utf8(bytes).map_err(|_| StorageError::invalid_uri(format!("`{text}` is not UTF-8")))
}

fn bad_escape(text: &str) -> StorageError {
    StorageError::invalid_uri(format!("`{text}`: expected two hexadecimal digits after %"))
}

/// The name that a model has when none is given: the file's without `.onnx`; the directory's where the file is the
/// usual `model.onnx` or the URI names a directory.
pub fn default_model_name(uri: &str) -> String {
    let path = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let mut segments = path.split('/').filter(|segment| !segment.is_empty() && *segment != ".").rev();
    let last = segments.next().unwrap_or_default();
    let name = match last.strip_suffix(".onnx") {
        Some("model") => segments.next().unwrap_or("model"),
        Some(stem) => stem,
        None => last,
    };
    let allowed = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
    let name: String =
        name.chars().map(|character| if allowed(character) { character } else { '-' }).collect();
    if name.chars().all(|character| character == '.' || character == '-') { "model".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Location, StorageError> {
        Location::parse(text, Path::new("/mnt/pvc"))
    }

    #[test]
    fn every_scheme() {
        let check = |text: &str, expect: Location| assert_eq!(parse(text), Ok(expect), "{text}");
        let path = |path: &str| Location::Path { path: path.into(), within: None };
        let volume = |path: &str| Location::Path { path: path.into(), within: Some("/mnt/pvc/claim".into()) };
        let s3 = |bucket: &str, key: &str| Location::S3 { bucket: bucket.into(), key: key.into() };
        check("models/iris.onnx", path("models/iris.onnx"));
        check("/models/iris.onnx", path("/models/iris.onnx"));
        check("file:///models/my%20iris.onnx", path("/models/my iris.onnx"));
        check("pvc://claim/a/b.onnx", volume("/mnt/pvc/claim/a/b.onnx"));
        check("pvc://claim", volume("/mnt/pvc/claim/"));
        check("s3://bucket/a/b.onnx", s3("bucket", "a/b.onnx"));
        check("s3://bucket/a/", s3("bucket", "a/"));
        check("s3://bucket", s3("bucket", ""));
        check(
            "https://example.org/a?b=c",
            Location::Http(Url::parse("https://example.org/a?b=c").expect("a URL")),
        );
    }

    #[test]
    fn what_is_not_a_place_is_refused() {
        for text in [
            "",
            "gs://bucket/x",
            "file://relative",
            "file:///a%2",
            "pvc://",
            "pvc:///x",
            "pvc://../x",
            "pvc://claim/../../etc/passwd",
            "pvc://claim/%2e%2e/other",
            "pvc://claim//etc",
            "s3:///key",
            "http://",
            "http://a b/",
        ] {
            let error = parse(text).expect_err(text);
            assert!(
                matches!(error, StorageError::Permanent { reason: "InvalidModelUri", .. }),
                "{text}: {error:?}"
            );
        }
    }

    #[test]
    fn secrets_of_a_url_are_not_shown() {
        let check = |uri: &str, expect: &str| assert_eq!(without_secrets(uri), expect, "{uri}");
        check("https://me:pass@example.org/m/a.onnx?token=x#y", "https://example.org/m/a.onnx");
        check("http://me:p@ss@example.org", "http://example.org");
        check("https://example.org?token=x/y", "https://example.org");
        check("s3://bucket/a?b.onnx", "s3://bucket/a?b.onnx");
        check("/models/a@b.onnx", "/models/a@b.onnx");
        let error = parse("http://me:secret@a b/?token=secret").expect_err("a space").to_string();
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn names() {
        let check = |uri: &str, expect: &str| assert_eq!(default_model_name(uri), expect, "{uri}");
        check("iris.onnx", "iris");
        check("./iris.onnx", "iris");
        check("/models/iris/model.onnx", "iris");
        check("model.onnx", "model");
        check("s3://bucket/models/iris/", "iris");
        check("s3://bucket", "bucket");
        check("https://example.org/m/iris.v2.onnx?token=x/y", "iris.v2");
        check("file:///a/my iris.onnx", "my-iris");
        check("..", "model");
        check("/", "model");
    }
}
