//! What callers are told when they, or the model, got something wrong.

use crate::support::{Server, input, request};
use serde_json::{Value, json};

fn error(answer: &Value) -> &str {
    answer["error"].as_str().unwrap_or_else(|| panic!("no field `error` in {answer}"))
}

#[tokio::test]
async fn requests_that_are_wrong_are_told_why() {
    let server = Server::start("iris-a.onnx", &["--model-name", "iris"]);
    let check = async |path: &str, body: &str, status: u16, message: &str| {
        let (got, answer) = server.post(path, body.to_owned()).await;
        assert_eq!(got, status, "{path} {body}: {answer}");
        assert!(error(&answer).starts_with(message), "{path} {body}\n  got: {answer}");
    };
    let v2 = "/v2/models/iris/infer";
    check(
        v2,
        "",
        400,
        "invalid JSON: expected an object, got the end of the body (byte 0, line 1, column 1)",
    )
    .await;
    check(
        v2,
        "{\"inputs\":\n [}",
        400,
        "invalid JSON: expected an object, got `}` (byte 13, line 2, column 3)",
    )
    .await;
    check(v2, "{}", 400, "missing field `inputs`").await;
    let with = |name: &str, datatype: &str, shape: &[usize], data: Value| {
        request(&[input(name, datatype, shape, data)]).to_string()
    };
    check(
        v2,
        &with("Y", "FP32", &[1, 4], json!([1, 2, 3, 4])),
        400,
        "unknown input `Y`: the model takes `X`",
    )
    .await;
    check(
        v2,
        &with("X", "INT64", &[1, 4], json!([1, 2, 3, 4])),
        400,
        "input `X`: expected datatype FP32, got INT64",
    )
    .await;
    check(
        v2,
        &with("X", "FP32", &[4], json!([1, 2, 3, 4])),
        400,
        "input `X`: expected shape [-1, 4], got [4]",
    )
    .await;
    check(
        v2,
        &with("X", "FP32", &[1, 4], json!([1, 2, 3])),
        400,
        "input `X`: expected 4 elements for the shape [1, 4], got 3",
    )
    .await;
    check(v2, &with("X", "FP32", &[2, 4], json!([[1, 2, 3, 4], [5]])), 400, "input `X`: ragged nesting")
        .await;
    check(
        "/v1/models/iris:predict",
        r#"{"instances": [[1, 2, 3]]}"#,
        400,
        "input `X`: expected shape [-1, 4], got [1, 3]",
    )
    .await;
    check("/v1/models/iris:predict", "{}", 400, "missing field `instances`").await;
    check("/v1/models/iris:explain", "{}", 404, "`:explain` is not served: expected `:predict`").await;
    check("/v1/models/iris", "{}", 404, "expected POST /v1/models/iris:predict").await;
    check("/v1/models/rose:predict", "{}", 404, "model `rose` is not served here: this server has `iris`")
        .await;
    check("/v2/models/rose/infer", "{}", 404, "model `rose` is not served here: this server has `iris`")
        .await;
    check("/v2/models/iris/versions/2/infer", "{}", 404, "model `iris` has no version `2`: it has `1`").await;
    check("/v3", "{}", 404, "no such path `/v3`").await;
    check("/v2/models/iris/ready", "{}", 405, "method POST is not allowed on `/v2/models/iris/ready`").await;
    assert_eq!(server.get("/v2/models/rose/ready").await.0, 404);
    assert_eq!(server.get("/v2/models/iris/infer").await.0, 405);
}

#[tokio::test]
async fn bodies_that_are_too_large_or_packed_are_refused() {
    let server = Server::start("iris-a.onnx", &["--max-request-bytes", "1Ki"]);
    let path = "/v2/models/iris-a/infer";
    let (status, answer) = server.post(path, "x".repeat(1025)).await;
    assert_eq!((status, error(&answer)), (413, "the body has more than 1024 bytes (--max-request-bytes)"));
    // Without a length told beforehand.
    let chunks = futures::stream::iter((0..5).map(|_| Ok::<_, std::io::Error>("x".repeat(500))));
    let (status, _) = server.post(path, reqwest::Body::wrap_stream(chunks)).await;
    assert_eq!(status, 413);
    let packed = |name: &'static str, value: &'static str| {
        server.client.post(format!("{}{path}", server.url)).header(name, value).body("{}").send()
    };
    assert_eq!(packed("content-encoding", "gzip").await.expect("an answer").status(), 415);
    let answer = packed("inference-header-content-length", "2").await.expect("an answer");
    assert_eq!(answer.status(), 400);
    assert!(answer.text().await.expect("a body").contains("binary tensor data is not served"));
}

#[tokio::test]
async fn a_model_that_fails_is_quoted_and_goes_on() {
    let mut server = Server::launch(&crate::support::model("fails-at-run.onnx").to_string_lossy(), &[], &[]);
    server.logged("the warm-up on generated inputs failed");
    server.logged("ready");
    for _ in 0..3 {
        let (status, answer) =
            server.post("/v1/models/fails-at-run:predict", r#"{"instances": [[1, 2, 3, 4]]}"#).await;
        assert_eq!(status, 500, "{answer}");
        assert!(error(&answer).contains("while running Gather node"), "{answer}");
    }
    assert_eq!(server.get("/v2/health/ready").await.0, 200);
}

#[tokio::test]
async fn inputs_that_contradict_each_other_are_the_callers_mistake() {
    let server = Server::start("dtypes/shaped.onnx", &[]);
    let body = |size: [i64; 2]| {
        let x = input("x", "FP32", &[2, 2], json!([1.0, 2.0, 3.0, 4.0]));
        request(&[x, input("size", "INT64", &[2], json!(size))])
    };
    let answer = server.infer("/v2/models/shaped/infer", body([1, 4])).await;
    assert_eq!(answer["outputs"][0]["shape"], json!([1, 4]));
    let (status, answer) = server.post("/v2/models/shaped/infer", body([3, 3]).to_string()).await;
    assert_eq!(status, 500, "an operator that fails is not told apart from a broken model: {answer}");
    assert!(error(&answer).contains("Reshape"), "{answer}");
}

#[tokio::test]
async fn a_refused_request_leaves_its_connection_usable() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = Server::start("iris-a.onnx", &["--identity", "a/b/c"]);
    let address = server.url.trim_start_matches("http://");
    let mut connection = tokio::net::TcpStream::connect(address).await.expect("a connection");
    let row = r#"{"instances": [[5.1, 3.5, 1.4, 0.2]]}"#;
    for (path, header, status) in [
        ("/v1/models/iris-a:predict", "serin-expect: a/b/d", "421"),
        ("/v2/models/rose/infer", "x: y", "404"),
        ("/v1/models/iris-a:predict", "content-encoding: gzip", "415"),
        ("/nowhere", "x: y", "404"),
        ("/v1/models/iris-a:predict", "x: y", "200"),
    ] {
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: x\r\n{header}\r\ncontent-length: {}\r\n\r\n", row.len());
        // The body comes later than the head, when a hasty refusal would already be on its way.
        connection.write_all(head.as_bytes()).await.expect("sent");
        connection.flush().await.expect("sent");
        tokio::task::yield_now().await;
        connection.write_all(row.as_bytes()).await.expect("sent");
        let answer = read_answer(&mut connection).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path} {header}: {answer}");
        assert!(!answer.to_lowercase().contains("connection: close"), "{answer}");
    }

    async fn read_answer(connection: &mut tokio::net::TcpStream) -> String {
        let mut answer = Vec::new();
        loop {
            let mut chunk = [0; 4096];
            let count = connection.read(&mut chunk).await.expect("an answer");
            assert!(count > 0, "closed after {:?}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&chunk[..count]);
            let text = String::from_utf8_lossy(&answer).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let told = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            if told == Some(body.len()) {
                return text;
            }
        }
    }
}
