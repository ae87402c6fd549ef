//! One object, or all objects below a prefix, of an S3 bucket. Configured by the usual `AWS_` variables; without
//! credentials the bucket is read anonymously.

use super::StorageError;
use super::download::{Contents, Remote, Source as Store};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path;
use object_store::{ClientOptions, ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig};
use std::time::Duration;

pub(super) struct Source {
    store: AmazonS3,
    bucket: String,
    key: String,
}

impl Source {
    pub(super) fn new(
        bucket: &str,
        key: &str,
        environment: &[(String, String)],
    ) -> Result<Self, StorageError> {
        super::choose_tls();
        let value = |names: &[&str]| {
            let found =
                environment.iter().find(|(name, value)| names.contains(&name.as_str()) && !value.is_empty());
            found.map(|(_, value)| value.as_str())
        };
        let mut builder = AmazonS3Builder::new();
        for (name, value) in environment.iter().filter(|(_, value)| !value.is_empty()) {
            if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
                builder = builder.with_config(key, value);
            }
        }
        let endpoint = value(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"]);
        let plain = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
        let anonymous = value(&["AWS_SKIP_SIGNATURE"]).is_none()
            && value(&[
                "AWS_ACCESS_KEY_ID",
                "AWS_SECRET_ACCESS_KEY",
                "AWS_WEB_IDENTITY_TOKEN_FILE",
                "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
                "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            ])
            .is_none();
        if anonymous {
            builder = builder.with_skip_signature(true);
        }
        let store = builder
            .with_bucket_name(bucket)
            .with_client_options(client_options(plain || is_true(value(&["AWS_ALLOW_HTTP"])), plain))
            .with_retry(RetryConfig { max_retries: 2, ..RetryConfig::default() })
            .build()
            .map_err(|error| StorageError::refused(format!("the S3 settings are not usable: {error}")))?;
        Ok(Self { store, bucket: bucket.to_owned(), key: key.to_owned() })
    }

    /// A key that ends in `.onnx` is an object. Any other is tried as a prefix first.
    async fn files(&self) -> Result<Vec<Remote>, StorageError> {
        let path = Path::parse(self.key.trim_end_matches('/'))
            .map_err(|error| StorageError::invalid_uri(format!("{}: {error}", self.describe())))?;
        if !self.key.ends_with(".onnx") {
            let prefix = (!path.as_ref().is_empty()).then_some(&path);
            let found: Vec<ObjectMeta> =
                self.store.list(prefix).try_collect().await.map_err(|error| self.failed(&error))?;
            let files: Vec<Remote> = found.iter().filter_map(|object| below(&path, object)).collect();
            if !files.is_empty() {
                return Ok(files);
            }
            if prefix.is_none() || self.key.ends_with('/') {
                return Err(StorageError::not_found(format!("{} has no objects", self.describe())));
            }
        }
        // Not looked at before it is fetched: a HEAD that is refused has no body that would say why.
        Ok(vec![Remote { key: path.to_string(), name: "model.onnx".to_owned(), bytes: None, tag: None }])
    }

    async fn open(&self, remote: &Remote) -> Result<Contents, StorageError> {
        let path = Path::parse(&remote.key)
            .map_err(|error| StorageError::invalid_uri(format!("{}: {error}", self.describe())))?;
        let found = self.store.get(&path).await.map_err(|error| self.failed(&error))?;
        let place = self.describe();
        let bytes = found.meta.size;
        let chunks = found.into_stream().map(move |chunk| chunk.map_err(|error| classified(&place, &error)));
        Ok(Contents { bytes: Some(bytes), chunks: chunks.boxed() })
    }

    fn failed(&self, error: &object_store::Error) -> StorageError {
        classified(&self.describe(), error)
    }
}

impl Store for Source {
    fn describe(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.key)
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Remote>, StorageError>> {
        self.files().boxed()
    }

    fn get<'a>(&'a self, remote: &'a Remote) -> BoxFuture<'a, Result<Contents, StorageError>> {
        self.open(remote).boxed()
    }
}

/// A download may take as long as it takes; only silence is an error. Certificates of the system are not needed, and
/// may not be there, where the endpoint is plain http.
fn client_options(allow_http: bool, plain: bool) -> ClientOptions {
    ClientOptions::new()
        .with_allow_http(allow_http)
        .with_no_system_certificates(plain)
        .with_connect_timeout(Duration::from_secs(10))
        .with_read_timeout(Duration::from_secs(60))
        .with_timeout_disabled()
}

fn is_true(value: Option<&str>) -> bool {
    value.is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on"))
}

/// Keys that end with a slash are what consoles make of "folders" and hold nothing.
fn below(prefix: &Path, object: &ObjectMeta) -> Option<Remote> {
    let parts: Vec<String> =
        object.location.prefix_match(prefix)?.map(|part| part.as_ref().to_owned()).collect();
    let is_folder = object.size == 0 && parts.iter().all(String::is_empty);
    (!is_folder).then(|| Remote { name: parts.join("/"), ..remote(object) })
}

fn remote(object: &ObjectMeta) -> Remote {
    Remote {
        key: object.location.to_string(),
        name: String::new(),
        bytes: Some(object.size),
        tag: object.e_tag.clone().or_else(|| object.version.clone()),
    }
}

/// What stores call credentials that they do not take; some send these with a status that says something else.
const CREDENTIAL_CODES: [&str; 7] = [
    "AccessDenied",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidSecurity",
    "InvalidToken",
    "SignatureDoesNotMatch",
    // The S3 gateway of Versity, with 404.
    "XAdminUserNotFound",
];

fn classified(place: &str, error: &object_store::Error) -> StorageError {
    let text = error.to_string();
    let message = format!("{place}: {}", in_the_stores_words(&text));
    if field(&text, "Code").is_some_and(|code| CREDENTIAL_CODES.contains(&code)) {
        return StorageError::forbidden(message);
    }
    match error {
        object_store::Error::NotFound { .. } => StorageError::not_found(message),
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
            StorageError::forbidden(message)
        }
        object_store::Error::InvalidPath { .. } => StorageError::invalid_uri(message),
        // The library keeps the status to itself; its text has it.
        object_store::Error::Generic { .. } if text.contains("incorrectly configured region") => {
            StorageError::refused(message)
        }
        object_store::Error::Generic { .. } => match status_in(&text) {
            Some(status) => StorageError::by_status(status, message),
            None => StorageError::Transient(message),
        },
        _ => StorageError::refused(message),
    }
}

fn status_in(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

/// `<Code>` and `<Message>` of the store's XML where it sent some.
fn in_the_stores_words(text: &str) -> String {
    match (field(text, "Code"), field(text, "Message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code.to_owned(),
        _ => text.split_whitespace().collect::<Vec<_>>().join(" "),
    }
}

fn field<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    Some(rest.split_once('<')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_apart_and_shortened() {
        let generic =
            |text: &str| object_store::Error::Generic { store: "S3", source: text.to_owned().into() };
        let check = |text: &str, expect: Option<&str>| {
            let reason = match classified("s3://b/k", &generic(text)) {
                StorageError::Permanent { reason, .. } => Some(reason),
                StorageError::Transient(_) => None,
            };
            assert_eq!(reason, expect, "{text}");
        };
        check("Server returned non-2xx status code: 400 Bad Request: x", Some("StorageRefused"));
        check("Server returned non-2xx status code: 503 Service Unavailable: x", None);
        check("connection refused", None);
        check("status code: 404 Not Found: <Code>InvalidAccessKeyId</Code>", Some("StorageForbidden"));
        check("this normally indicates an incorrectly configured region", Some("StorageRefused"));
        let xml =
            "403 Forbidden: <Error><Code>InvalidAccessKeyId</Code><Message>No such key.</Message></Error>";
        assert_eq!(in_the_stores_words(xml), "InvalidAccessKeyId: No such key.");
    }
}
