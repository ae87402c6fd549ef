//! Fetching from real servers: a web server and an S3 store, both in this process, that misbehave as asked.

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use serin_runtime::storage::{Backoff, Fetched, Location, Progress, Settings, StorageError, fetch};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// sha256 of `abc`.
const ABC: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

async fn listen(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

struct Fetcher {
    directory: tempfile::TempDir,
    settings: Settings,
    progress: Progress,
}

impl Fetcher {
    fn new(environment: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let settings = Settings {
            directory: directory.path().join("models"),
            size_limit: 1 << 20,
            backoff: Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(5) },
            environment: environment
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        };
        Self { directory, settings, progress: Progress::default() }
    }

    async fn fetch(&self, uri: &str) -> Result<Fetched, StorageError> {
        let location = Location::parse(uri, self.directory.path())?;
        fetch(&location, &self.settings, &self.progress).await
    }

    async fn reason(&self, uri: &str) -> &'static str {
        let error = self.fetch(uri).await.expect_err(uri);
        // A failure leaves nothing behind.
        let left = std::fs::read_dir(&self.settings.directory).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{uri}: {error}");
        match error {
            StorageError::Permanent { reason, .. } => reason,
            StorageError::Transient(message) => panic!("{uri}: {message}"),
        }
    }
}

fn web(fails_first: usize) -> (Router, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let flaky = move |Path(kind): Path<String>| {
        let attempt = count.fetch_add(1, Ordering::Relaxed);
        async move {
            if attempt >= fails_first {
                return "abc".into_response();
            }
            match kind.as_str() {
                "truncated" => {
                    let chunks = [Ok("a"), Err(std::io::Error::other("cut off"))];
                    let body = Body::from_stream(futures::stream::iter(chunks));
                    ([(header::CONTENT_LENGTH, "3")], body).into_response()
                }
                "chunked" => {
                    let chunks = [Ok("a"), Err(std::io::Error::other("cut off"))];
                    Body::from_stream(futures::stream::iter(chunks)).into_response()
                }
                _ => {
                    StatusCode::from_bytes(kind.as_bytes()).unwrap_or(StatusCode::IM_A_TEAPOT).into_response()
                }
            }
        }
    };
    let router = Router::new()
        .route("/m/iris.onnx", get(|| async { "abc" }))
        .route("/dir/model.onnx", get(|| async { "abc" }))
        .route(
            "/status/{code}",
            get(|Path(code): Path<u16>| async move {
                StatusCode::from_u16(code).unwrap_or(StatusCode::IM_A_TEAPOT)
            }),
        )
        .route("/flaky/{kind}", get(flaky))
        .route("/redirect", get(|| async { Redirect::temporary("/m/iris.onnx") }))
        .route(
            "/redirect/metadata",
            get(|| async { Redirect::temporary("http://169.254.169.254/latest/meta-data") }),
        )
        .route("/redirect/loop", get(|| async { Redirect::temporary("/redirect/loop") }))
        .route("/large", get(|| async { vec![0_u8; (1 << 20) + 1] }))
        .route(
            "/large/chunked",
            get(|| async {
                Body::from_stream(futures::stream::iter(
                    (0..20).map(|_| Ok::<_, std::io::Error>(vec![0_u8; 1 << 16])),
                ))
            }),
        );
    (router, asked)
}

#[tokio::test]
async fn files_come_over_http() {
    let (router, _) = web(0);
    let base = listen(router).await;
    for path in ["/m/iris.onnx", "/m/iris.onnx?token=x", "/dir/", "/redirect"] {
        let fetcher = Fetcher::new(&[]);
        let fetched = fetcher.fetch(&format!("{base}{path}")).await.expect(path);
        let place = fetcher.settings.directory.join(ABC.replace(':', "-"));
        assert_eq!(
            fetched,
            Fetched { model_file: place.join("model.onnx"), digest: ABC.into(), bytes: 3 },
            "{path}"
        );
        assert_eq!(std::fs::read(&fetched.model_file).expect("a file"), b"abc");
        assert_eq!(fetcher.progress.bytes(), 3);
        let again = fetcher.fetch(&format!("{base}{path}")).await.expect("a second time");
        assert_eq!(again, fetched);
        assert_eq!(std::fs::read_dir(&fetcher.settings.directory).expect("a directory").count(), 1);
    }
}

#[tokio::test]
async fn what_will_never_come_is_said_at_once() {
    let (router, _) = web(0);
    let base = listen(router).await;
    for (path, reason) in [
        ("/missing.onnx", "ModelNotFound"),
        ("/status/403", "StorageForbidden"),
        ("/status/401", "StorageForbidden"),
        ("/status/400", "StorageRefused"),
        ("/redirect/metadata", "StorageRefused"),
        ("/redirect/loop", "StorageRefused"),
        ("/large", "ModelTooLarge"),
        ("/large/chunked", "ModelTooLarge"),
    ] {
        assert_eq!(Fetcher::new(&[]).reason(&format!("{base}{path}")).await, reason, "{path}");
    }
}

#[tokio::test]
async fn passing_failures_are_tried_again() {
    for kind in ["truncated", "chunked", "500", "503", "429", "408"] {
        let (router, asked) = web(3);
        let base = listen(router).await;
        let fetched = Fetcher::new(&[]).fetch(&format!("{base}/flaky/{kind}")).await;
        assert_eq!(fetched.map(|fetched| fetched.digest), Ok(ABC.to_owned()), "{kind}");
        assert_eq!(asked.load(Ordering::Relaxed), 4, "{kind}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_up_yet_is_waited_for() {
    let address = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        free.local_addr().expect("an address")
    };
    let fetcher = Fetcher::new(&[]);
    let uri = format!("http://{address}/m/iris.onnx");
    let fetching = fetcher.fetch(&uri);
    tokio::pin!(fetching);
    for _ in 0..1000 {
        assert!(futures::poll!(&mut fetching).is_pending());
        tokio::task::yield_now().await;
    }
    let listener = tokio::net::TcpListener::bind(address).await.expect("the same port");
    tokio::spawn(async move { axum::serve(listener, web(0).0).await });
    assert_eq!(fetching.await.map(|fetched| fetched.digest), Ok(ABC.to_owned()));
}

/// As much of S3 as is needed to read: list, head and get, with the errors of the real one.
#[derive(Clone)]
struct Bucket {
    objects: Arc<BTreeMap<&'static str, &'static str>>,
    /// Whether requests must be signed (by the key `right`), or must not be.
    signed: bool,
    /// How many gets are cut off first.
    cuts: Arc<AtomicUsize>,
}

impl Bucket {
    fn new(objects: &[(&'static str, &'static str)], signed: bool, cuts: usize) -> Self {
        let objects = Arc::new(objects.iter().copied().collect());
        Self { objects, signed, cuts: Arc::new(AtomicUsize::new(cuts)) }
    }

    async fn listen(self) -> String {
        listen(
            Router::new()
                .route("/{bucket}", get(list))
                .route("/{bucket}/{*key}", get(object))
                .with_state(self),
        )
        .await
    }

    fn refuses(&self, headers: &HeaderMap) -> Option<Response> {
        let signature = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let allowed = match signature {
            Some(signature) => self.signed && signature.contains("Credential=right/"),
            None => !self.signed,
        };
        (!allowed).then(|| failure(StatusCode::FORBIDDEN, "InvalidAccessKeyId", "The key does not exist."))
    }
}

fn failure(status: StatusCode, code: &str, message: &str) -> Response {
    (status, format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>")).into_response()
}

async fn list(
    State(bucket): State<Bucket>,
    Path(name): Path<String>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    if let Some(refusal) = bucket.refuses(&headers) {
        return refusal;
    }
    if name != "models" {
        return failure(StatusCode::NOT_FOUND, "NoSuchBucket", "The bucket does not exist.");
    }
    let prefix = query.get("prefix").cloned().unwrap_or_default();
    let contents: String = bucket
        .objects
        .iter()
        .filter(|(key, _)| key.starts_with(&prefix))
        .map(|(key, text)| {
            let size = text.len();
            format!("<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>\"{size}\"</ETag><Size>{size}</Size></Contents>")
        })
        .collect();
    format!(
        "<ListBucketResult><Name>{name}</Name><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
    )
    .into_response()
}

async fn object(
    State(bucket): State<Bucket>,
    Path((name, key)): Path<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    if let Some(refusal) = bucket.refuses(&headers) {
        return refusal;
    }
    let Some(text) = bucket.objects.get(key.as_str()).filter(|_| name == "models") else {
        return failure(StatusCode::NOT_FOUND, "NoSuchKey", "The key does not exist.");
    };
    let answer = |body: Body| {
        let told = [
            (header::CONTENT_LENGTH, text.len().to_string()),
            (header::ETAG, format!("\"{}\"", text.len())),
            (header::LAST_MODIFIED, "Thu, 01 Jan 2026 00:00:00 GMT".to_owned()),
        ];
        (told, body).into_response()
    };
    let cut = |left: usize| left.checked_sub(1);
    if method == Method::GET && bucket.cuts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, cut).is_ok() {
        let chunks = [Ok(text[..1].to_owned()), Err(std::io::Error::other("cut off"))];
        return answer(Body::from_stream(futures::stream::iter(chunks)));
    }
    answer(Body::from(*text))
}

const OBJECTS: [(&str, &str); 5] = [
    ("iris/model.onnx", "abc"),
    ("iris/labels.txt", "x"),
    ("iris/sub/more.txt", "y"),
    ("iris-2/model.onnx", "abcd"),
    ("two/a.onnx", "a"),
];

const RIGHT: [(&str, &str); 3] =
    [("AWS_ACCESS_KEY_ID", "right"), ("AWS_SECRET_ACCESS_KEY", "secret"), ("AWS_REGION", "eu-central-1")];

async fn s3(bucket: Bucket, variables: &[(&str, &str)]) -> Fetcher {
    let endpoint = bucket.listen().await;
    let variables: Vec<(&str, &str)> =
        variables.iter().copied().chain([("AWS_ENDPOINT_URL", endpoint.as_str())]).collect();
    Fetcher::new(&variables)
}

#[tokio::test]
async fn objects_and_prefixes_come_from_s3() {
    let fetcher = s3(Bucket::new(&OBJECTS, true, 0), &RIGHT).await;
    let one = fetcher.fetch("s3://models/iris/model.onnx").await.expect("an object");
    assert_eq!((one.digest.as_str(), one.bytes), (ABC, 3));
    for uri in ["s3://models/iris/", "s3://models/iris"] {
        let all = fetcher.fetch(uri).await.expect(uri);
        assert_eq!(all.bytes, 5, "{uri}");
        assert!(all.model_file.ends_with("model.onnx"));
        let beside = all.model_file.with_file_name("sub").join("more.txt");
        assert_eq!(std::fs::read_to_string(beside).expect("a file"), "y");
    }
}

#[tokio::test]
async fn public_buckets_need_no_credentials() {
    let fetcher = s3(Bucket::new(&OBJECTS, false, 0), &[]).await;
    assert_eq!(fetcher.fetch("s3://models/iris/model.onnx").await.expect("an object").digest, ABC);
}

#[tokio::test]
async fn what_s3_refuses_is_said_in_its_words() {
    let wrong = [("AWS_ACCESS_KEY_ID", "wrong"), ("AWS_SECRET_ACCESS_KEY", "secret")];
    let fetcher = s3(Bucket::new(&OBJECTS, true, 0), &wrong).await;
    let error = fetcher.fetch("s3://models/iris/").await.expect_err("wrong credentials");
    let message = "s3://models/iris/: InvalidAccessKeyId: The key does not exist.".to_owned();
    assert_eq!(error, StorageError::Permanent { reason: "StorageForbidden", message });
    assert_eq!(fetcher.reason("s3://models/iris/model.onnx").await, "StorageForbidden");

    let fetcher = s3(Bucket::new(&OBJECTS, true, 0), &RIGHT).await;
    assert_eq!(fetcher.reason("s3://models/rose/model.onnx").await, "ModelNotFound");
    assert_eq!(fetcher.reason("s3://models/rose/").await, "ModelNotFound");
    assert_eq!(fetcher.reason("s3://models/rose").await, "ModelNotFound");
    assert_eq!(fetcher.reason("s3://nowhere/rose/").await, "ModelNotFound");
    assert_eq!(fetcher.reason("s3://models/two/../x").await, "InvalidModelUri");
    assert_eq!(fetcher.reason("s3://models").await, "ModelNotFound");
}

#[tokio::test]
async fn an_object_that_is_cut_off_is_fetched_again() {
    let bucket = Bucket::new(&OBJECTS, true, 4);
    let cuts = bucket.cuts.clone();
    let fetcher = s3(bucket, &RIGHT).await;
    let fetched = fetcher.fetch("s3://models/iris/").await.expect("a prefix");
    assert_eq!((fetched.bytes, cuts.load(Ordering::Relaxed)), (5, 0));
    let read = std::fs::read_to_string(fetched.model_file).expect("a file");
    assert_eq!(read, "abc");
}
