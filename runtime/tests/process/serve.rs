//! What callers get: the right numbers, in every form and type.

use crate::support::{Server, input, model, request};
use serde_json::{Value, json};

/// What ONNX Runtime answers in Python, written by `make models`.
fn expected() -> Value {
    serde_json::from_slice(&std::fs::read(model("expected.json")).expect("a file")).expect("JSON")
}

/// Equal up to the last bits of a 32-bit float: other libraries print other numbers of digits.
fn close(got: &Value, expect: &Value) -> bool {
    match (got, expect) {
        (Value::Array(got), Value::Array(expect)) => {
            got.len() == expect.len() && got.iter().zip(expect).all(|(got, expect)| close(got, expect))
        }
        (Value::Number(got), Value::Number(expect)) => {
            let (got, expect) = (got.as_f64().unwrap_or(f64::NAN), expect.as_f64().unwrap_or(f64::NAN));
            (got - expect).abs() <= 1e-6 * expect.abs().max(1e-6)
        }
        _ => got == expect,
    }
}

fn flat(value: &Value) -> Vec<Value> {
    match value {
        Value::Array(values) => values.iter().flat_map(flat).collect(),
        value => vec![value.clone()],
    }
}

#[tokio::test]
async fn iris_answers_as_onnxruntime_does_in_python() {
    let expected = expected();
    for name in ["iris-a", "iris-b", "iris-c"] {
        let server = Server::start(&format!("{name}.onnx"), &[]);
        let rows = &expected["rows"];
        let answers = &expected["models"][name];
        let count = rows.as_array().map_or(0, Vec::len);

        let v2 = request(&[input("X", "FP32", &[count, 4], json!(flat(rows)))]);
        let answer = server.infer(&format!("/v2/models/{name}/infer"), v2).await;
        assert_eq!((&answer["model_name"], &answer["model_version"]), (&json!(name), &json!("1")));
        assert_eq!(answer["outputs"][0]["data"], answers["label"], "{name}");
        assert_eq!(answer["outputs"][1]["shape"], json!([count, 3]));
        assert!(
            close(&answer["outputs"][1]["data"], &json!(flat(&answers["probabilities"]))),
            "{name}: {answer}"
        );

        let v1 = server.infer(&format!("/v1/models/{name}:predict"), json!({ "instances": rows })).await;
        for (row, prediction) in v1["predictions"].as_array().expect("a list").iter().enumerate() {
            assert_eq!(prediction["label"], answers["label"][row]);
            assert!(close(&prediction["probabilities"], &answers["probabilities"][row]), "{prediction}");
        }
        let columns = server.infer(&format!("/v1/models/{name}:predict"), json!({ "inputs": rows })).await;
        assert!(close(&columns["outputs"]["probabilities"], &answers["probabilities"]), "{columns}");
    }
}

#[tokio::test]
async fn default_exports_of_classifiers_are_served_as_a_matrix() {
    let expected = expected();
    let server = Server::start("iris-a-zipmap.onnx", &[]);
    let rows = &expected["rows"];
    let answer = server.infer("/v1/models/iris-a-zipmap:predict", json!({ "inputs": rows })).await;
    assert_eq!(answer["outputs"]["output_label"], expected["models"]["iris-a"]["label"]);
    let (got, expect) =
        (&answer["outputs"]["output_probability"], &expected["models"]["iris-a"]["probabilities"]);
    assert!(close(got, expect), "{got}");
    let (_, metadata) = server.get("/v2/models/iris-a-zipmap").await;
    let scores = json!({ "name": "output_probability", "datatype": "FP32", "shape": [-1, 3], "parameters": { "labels": "[\"0\",\"1\",\"2\"]" } });
    assert_eq!(metadata["outputs"][1], scores);
}

#[tokio::test]
async fn labels_may_be_strings() {
    let server = Server::start("dtypes/names.onnx", &[]);
    let (_, metadata) = server.get("/v2/models/names").await;
    assert_eq!(metadata["outputs"][1]["parameters"]["labels"], r#"["setosa","versicolor","virginica"]"#);
    let answer =
        server.infer("/v1/models/names:predict", json!({ "instances": [[5.1, 3.5, 1.4, 0.2]] })).await;
    assert_eq!(answer["predictions"][0]["output_label"], "setosa");
    assert_eq!(answer["predictions"][0]["output_probability"].as_array().map(Vec::len), Some(3));
}

#[tokio::test]
async fn every_datatype_goes_through_unchanged() {
    let cases = [
        ("bool", "BOOL", json!([true, false, false, true])),
        ("uint8", "UINT8", json!([0, 1, 254, 255])),
        ("uint16", "UINT16", json!([0, 1, 65_534, 65_535])),
        ("uint32", "UINT32", json!([0, 1, 2, u32::MAX])),
        ("uint64", "UINT64", json!([0, 1, 2, u64::MAX])),
        ("int8", "INT8", json!([-128, -1, 0, 127])),
        ("int16", "INT16", json!([-32_768, -1, 0, 32_767])),
        ("int32", "INT32", json!([i32::MIN, -1, 0, i32::MAX])),
        ("int64", "INT64", json!([i64::MIN, -1, 0, i64::MAX])),
        ("fp16", "FP16", json!([-0.5, 0.0, null, 65_504.0])),
        ("bf16", "BF16", json!([-0.5, 0.0, null, 1.0])),
        ("fp32", "FP32", json!([-0.1, 0.0, null, 3.402_823_5e38])),
        ("fp64", "FP64", json!([-0.1, 0.0, null, 1.797_693_134_862_315_7e308])),
        ("bytes", "BYTES", json!(["", "grüß", "\"\\\n", "😀"])),
    ];
    for (file, datatype, data) in cases {
        let server = Server::start(&format!("dtypes/identity-{file}.onnx"), &["--model-name", "m"]);
        let body = request(&[input("x", datatype, &[2, 2], data.clone())]);
        let answer = server.infer("/v2/models/m/infer", body).await;
        let expect = json!({ "name": "y", "datatype": datatype, "shape": [2, 2], "data": data });
        assert_eq!(answer["outputs"][0], expect, "{file}");
        let empty = request(&[input("x", datatype, &[0, 2], json!([]))]);
        let answer = server.infer("/v2/models/m/infer", empty).await;
        assert_eq!(answer["outputs"][0]["shape"], json!([0, 2]), "{file}");
    }
}

#[tokio::test]
async fn several_inputs_of_several_types() {
    let server = Server::start("dtypes/columns.onnx", &[]);
    let rows = json!({ "instances": [{ "age": 30, "city": "Ulm" }, { "age": [40], "city": ["Bonn"] }] });
    let (status, answer) = server.post("/v1/models/columns:predict", rows.to_string()).await;
    assert_eq!(status, 400, "rows of different shapes: {answer}");
    let rows = json!({ "instances": [{ "age": 30, "city": "Ulm" }, { "age": 40, "city": "Bonn" }] });
    let answer = server.infer("/v1/models/columns:predict", rows).await;
    let expect = json!([{ "age_out": [30], "city_out": ["Ulm"] }, { "age_out": [40], "city_out": ["Bonn"] }]);
    assert_eq!(answer["predictions"], expect);
    let body = json!({
        "id": "seven",
        "inputs": [input("city", "BYTES", &[1, 1], json!([["Ulm"]])), input("age", "INT64", &[1, 1], json!([30]))],
        "outputs": [{ "name": "city_out" }],
    });
    let answer = server.infer("/v2/models/columns/versions/1/infer", body).await;
    assert_eq!(answer["id"], "seven");
    assert_eq!(
        answer["outputs"],
        json!([{ "name": "city_out", "datatype": "BYTES", "shape": [1, 1], "data": ["Ulm"] }])
    );
}

#[tokio::test]
async fn weights_beside_the_model_are_found() {
    let server = Server::start("dtypes/external", &[]);
    let answer = server.infer("/v1/models/external:predict", json!({ "instances": [[1, 2]] })).await;
    assert_eq!(answer, json!({ "predictions": [[11.0, 22.0]] }));
}

#[tokio::test]
async fn a_mounted_volume_is_read_in_place() {
    let root = tempfile::tempdir().expect("a directory");
    let claim = root.path().join("my-claim/flowers");
    std::fs::create_dir_all(&claim).expect("a directory");
    std::fs::copy(model("iris-a.onnx"), claim.join("model.onnx")).expect("copied");
    let flags = ["--pvc-root", root.path().to_str().expect("UTF-8")];
    let mut server = Server::launch("pvc://my-claim/flowers", &flags, &[]);
    server.logged("ready");
    let answer =
        server.infer("/v1/models/flowers:predict", json!({ "instances": [[5.1, 3.5, 1.4, 0.2]] })).await;
    assert_eq!(answer["predictions"][0]["label"], 0);
}

#[tokio::test]
async fn outputs_that_are_no_tensors_are_left_out() {
    let mut server = Server::launch(&model("dtypes/sequence-beside.onnx").to_string_lossy(), &[], &[]);
    server.logged("output `parts` (Sequence<Tensor<f32>()>) is not a tensor and is left out");
    server.logged("ready");
    let answer = server.infer("/v1/models/sequence-beside:predict", json!({ "inputs": [1, 2] })).await;
    assert_eq!(answer, json!({ "outputs": [-1.0, -2.0] }));
}

#[tokio::test]
async fn an_input_without_a_declared_shape_takes_any() {
    let server = Server::start("dtypes/any-shape.onnx", &[]);
    for (shape, data) in
        [(vec![], json!([1.5])), (vec![3], json!([1.0, 2.0, 3.0])), (vec![1, 2, 1], json!([1.0, 2.0]))]
    {
        let answer = server
            .infer("/v2/models/any-shape/infer", request(&[input("x", "FP32", &shape, data.clone())]))
            .await;
        assert_eq!((&answer["outputs"][0]["shape"], &answer["outputs"][0]["data"]), (&json!(shape), &data));
    }
}

#[tokio::test]
async fn the_example_of_the_admin_port_works_for_large_inputs_too() {
    let server = Server::start("standard_v3_2", &["--model-name", "magika"]);
    let example = server.client.get(format!("{}/example", server.admin)).send().await.expect("an answer");
    let example = example.bytes().await.expect("a body");
    let (status, answer) = server.post("/v2/models/magika/infer", example).await;
    assert_eq!((status, &answer["outputs"][0]["shape"]), (200, &json!([1, 214])), "{answer}");
}

#[tokio::test]
async fn metadata_health_and_lists() {
    let server = Server::start("iris-a.onnx", &["--model-name", "iris"]);
    let metadata = json!({
        "name": "iris",
        "versions": ["1"],
        "platform": "onnx_onnxv1",
        "inputs": [{ "name": "X", "datatype": "FP32", "shape": [-1, 4] }],
        "outputs": [
            { "name": "label", "datatype": "INT64", "shape": [-1] },
            { "name": "probabilities", "datatype": "FP32", "shape": [-1, 3] },
        ],
    });
    assert_eq!(server.get("/v2/models/iris").await, (200, metadata.clone()));
    assert_eq!(server.get("/v2/models/iris/versions/1").await, (200, metadata));
    assert_eq!(server.get("/v2").await.1["name"], "serin-runtime");
    assert_eq!(server.get("/v2/health/live").await, (200, json!({ "live": true })));
    assert_eq!(server.get("/v2/health/ready").await, (200, json!({ "ready": true, "phase": "ready" })));
    assert_eq!(server.get("/v2/models/iris/ready").await, (200, json!({ "name": "iris", "ready": true })));
    assert_eq!(server.get("/v1/models").await, (200, json!({ "models": ["iris"] })));
    let (status, model) = server.get("/v1/models/iris").await;
    assert_eq!(
        (status, &model["ready"], &model["model_version_status"][0]["state"]),
        (200, &json!(true), &json!("AVAILABLE"))
    );
}

#[tokio::test]
async fn headers_say_what_answered() {
    let server = Server::start("iris-a.onnx", &["--identity", "default/iris/iris-1"]);
    let body = json!({ "instances": [[5.1, 3.5, 1.4, 0.2]] }).to_string();
    let send = |expect: &'static str| {
        let request = server.client.post(format!("{}/v1/models/iris-a:predict", server.url));
        request.header("serin-expect", expect).header("x-request-id", "abc").body(body.clone()).send()
    };
    let answer = send("default/iris/iris-1").await.expect("an answer");
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["x-request-id"], "abc");
    let sum =
        std::process::Command::new("sha256sum").arg(model("iris-a.onnx")).output().expect("sha256sum runs");
    let sum = String::from_utf8(sum.stdout).expect("text");
    let expect = format!("sha256:{}", sum.split(' ').next().unwrap_or_default());
    assert_eq!(answer.headers()["serin-digest"], expect.as_str());
    let answer = send("default/iris/iris-2").await.expect("an answer");
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["serin-not-executed"]),
        (421, &"true".parse().expect("a value"))
    );
    let error = answer.text().await.expect("a body");
    assert_eq!(error, r#"{"error":"this is `default/iris/iris-1`, not `default/iris/iris-2`"}"#);
}

#[tokio::test]
async fn http_2_without_tls_is_served_on_the_same_port() {
    let server = Server::start("iris-a.onnx", &[]);
    let client = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([])
        .http2_prior_knowledge()
        .build()
        .expect("a client");
    let requests = (0..50).map(|_| {
        let request = client.post(format!("{}/v1/models/iris-a:predict", server.url));
        request.body(r#"{"instances":[[5.1,3.5,1.4,0.2]]}"#).send()
    });
    for answer in futures::future::join_all(requests).await {
        let answer = answer.expect("an answer");
        assert_eq!((answer.version(), answer.status().as_u16()), (http::Version::HTTP_2, 200));
    }
}

#[tokio::test]
async fn metrics_and_status_tell_what_happened() {
    let server = Server::start("iris-a.onnx", &["--threads", "1"]);
    server.infer("/v1/models/iris-a:predict", json!({ "instances": [[5.1, 3.5, 1.4, 0.2]] })).await;
    server.post("/v1/models/iris-a:predict", "{").await;
    let admin = async |path: &str| {
        let answer = server.client.get(format!("{}{path}", server.admin)).send().await.expect("an answer");
        answer.text().await.expect("a body")
    };
    let metrics = admin("/metrics").await;
    for line in [
        "serin_runtime_requests_total{code=\"200\"} 1",
        "serin_runtime_requests_total{code=\"400\"} 1",
        "serin_runtime_request_duration_seconds_count 2",
        "serin_runtime_model_run_duration_seconds_count 1",
        "serin_runtime_requests_in_flight 0",
        "serin_runtime_queue_depth 0",
        "serin_runtime_model_ready 1",
        "serin_runtime_intra_op_threads 1",
    ] {
        assert!(metrics.lines().any(|got| got == line), "`{line}` is not in\n{metrics}");
    }
    assert!(metrics.lines().any(|line| line.starts_with("serin_runtime_model_load_seconds 0.")), "{metrics}");
    let status: Value = serde_json::from_str(&admin("/status").await).expect("JSON");
    assert_eq!((&status["ready"], &status["settings"]["intraThreads"]), (&json!(true), &json!(1)));
    assert!(status["digest"].as_str().is_some_and(|digest| digest.starts_with("sha256:")), "{status}");
    assert_eq!((admin("/livez").await.as_str(), admin("/readyz").await.as_str()), ("ok\n", "ok\n"));
}

#[tokio::test]
async fn instances_run_side_by_side() {
    let server = Server::start("dtypes/repeat.onnx", &["--instances", "2", "--threads", "1"]);
    let body = request(&[
        input("rounds", "INT64", &[1], json!([2000])),
        input("x", "FP32", &[1, 64], json!(vec![1.0; 64])),
    ]);
    let requests = (0..16).map(|_| server.infer("/v2/models/repeat/infer", body.clone()));
    for answer in futures::future::join_all(requests).await {
        assert_eq!(answer["outputs"][0]["data"], json!(vec![1.0; 64]));
    }
}
