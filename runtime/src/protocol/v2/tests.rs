//! Wire forms of V2, as table and as round trip.

use super::*;
use crate::model::with_values;
use half::{bf16, f16};
use proptest::prelude::*;

fn spec(name: &str, datatype: DataType, shape: &[i64]) -> TensorSpec {
    TensorSpec { name: name.into(), datatype, shape: shape.to_vec(), labels: None }
}

fn iris() -> Signature {
    Signature {
        inputs: vec![spec("X", DataType::Fp32, &[-1, 4])],
        outputs: vec![spec("label", DataType::Int64, &[-1]), spec("scores", DataType::Fp32, &[-1, 3])],
        left_out: vec![],
    }
}

fn two() -> Signature {
    Signature {
        inputs: vec![spec("a", DataType::Int32, &[2]), spec("b", DataType::Bytes, &[-1])],
        outputs: vec![spec("c", DataType::Int32, &[2])],
        left_out: vec![],
    }
}

fn fp32(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::new(shape.to_vec(), TensorData::Fp32(values.to_vec())).expect("shape and values fit")
}

#[test]
fn requests_become_tensors() {
    let tensor = fp32(&[1, 4], &[1.0, 2.0, 3.0, 4.5]);
    let check = |body: &str, id: Option<&str>, outputs: &[usize]| {
        let expect = InferRequest {
            id: id.map(str::to_owned),
            inputs: vec![tensor.clone()],
            outputs: outputs.to_vec(),
        };
        assert_eq!(read_request(body.as_bytes(), &iris()), Ok(expect), "{body}");
    };
    let flat = r#"{"name": "X", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4.5]}"#;
    check(&format!(r#"{{"inputs": [{flat}]}}"#), None, &[0, 1]);
    check(
        &format!(r#"{{"id": "7", "parameters": {{"x": [1]}}, "inputs": [{flat}], "outputs": []}}"#),
        Some("7"),
        &[0, 1],
    );
    check(&format!(r#"{{"id": null, "inputs": [{flat}], "outputs": null}}"#), None, &[0, 1]);
    check(
        &format!(
            r#"{{"outputs": [{{"name": "scores", "parameters": {{"binary_data": true}}}}], "inputs": [{flat}]}}"#
        ),
        None,
        &[1],
    );
    check(
        &format!(r#"{{"outputs": [{{"name": "scores"}}, {{"name": "label"}}], "inputs": [{flat}]}}"#),
        None,
        &[1, 0],
    );
    check(
        r#"{"inputs": [{"data": [[1, 2, 3, 4.5]], "datatype": "FP32", "parameters": {}, "shape": [1, 4], "name": "X"}]}"#,
        None,
        &[0, 1],
    );
    check(
        r#"{"inputs": [{"name": "X", "shape": [1, 4], "datatype": "FP32", "data": [[1], [2], [3], [4.5]]}]}"#,
        None,
        &[0, 1],
    );
}

#[test]
fn what_is_wrong_is_said() {
    let check = |signature: Signature, body: &str, expect: &str| {
        let message = read_request(body.as_bytes(), &signature).expect_err(body).0;
        assert!(message.starts_with(expect), "{body}\n  got: {message}");
    };
    let input = |fields: &str| format!(r#"{{"inputs": [{{{fields}}}]}}"#);
    check(iris(), "", "invalid JSON: expected an object, got the end of the body (byte 0, line 1, column 1)");
    check(iris(), "{}", "missing field `inputs`: expected an array of tensors");
    check(iris(), r#"{"inputs": []}"#, "missing input `X` (FP32 [-1, 4])");
    check(iris(), r#"{"inputs": {}}"#, "invalid JSON: expected an array, got an object (byte 11");
    check(iris(), &input(r#""shape": [1]"#), "an input has no field `name`");
    check(iris(), &input(r#""name": "Y""#), "unknown input `Y`: the model takes `X`");
    check(iris(), &input(r#""name": "X""#), "input `X` has no field `datatype`");
    check(iris(), &input(r#""name": "X", "datatype": "FP32""#), "input `X` has no field `shape`");
    check(
        iris(),
        &input(r#""name": "X", "datatype": "FP32", "shape": [1, 4]"#),
        "input `X` has no field `data`",
    );
    let with = |datatype: &str, shape: &str, data: &str| {
        input(&format!(r#""name": "X", "datatype": "{datatype}", "shape": {shape}, "data": {data}"#))
    };
    check(iris(), &with("FP64", "[1, 4]", "[1,2,3,4]"), "input `X`: expected datatype FP32, got FP64");
    check(iris(), &with("FP32", "[1, 5]", "[1,2,3,4,5]"), "input `X`: expected shape [-1, 4], got [1, 5]");
    check(iris(), &with("FP32", "[4]", "[1,2,3,4]"), "input `X`: expected shape [-1, 4], got [4]");
    check(iris(), &with("FP32", "[-1, 4]", "[1,2,3,4]"), "field `shape`: -1 is out of range for UINT64");
    check(iris(), &with("FP32", "4", "[1,2,3,4]"), "field `shape`: expected an array of dimensions");
    check(
        iris(),
        &with("FP32", "[4611686018427387904, 4]", "[1]"),
        "input `X`: the shape [4611686018427387904, 4] is too large",
    );
    check(
        iris(),
        &with("FP32", "[1000000000, 4]", "[1]"),
        "input `X`: expected 4000000000 elements for the shape [1000000000, 4], got 1",
    );
    check(
        iris(),
        &with("FP32", "[1, 4]", "[1,2,3]"),
        "input `X`: expected 4 elements for the shape [1, 4], got 3",
    );
    check(
        iris(),
        &with("FP32", "[1, 4]", "[1,2,3,4,5]"),
        "input `X`: too many elements: expected 4, got more (byte ",
    );
    check(
        iris(),
        &with("FP32", "[2, 4]", "[[1,2,3,4],[1,2,3]]"),
        "input `X`: ragged nesting: expected 4 elements at depth 1 as before, got 3",
    );
    check(
        iris(),
        &with("FP32", "[1, 4]", "[1,2,3,true]"),
        "input `X`: expected a number for FP32, got a boolean",
    );
    check(iris(), &with("FP32", "[0, 4]", "5"), "input `X`: too many elements");
    check(iris(), &with("FP32", "[1, 4]", "5"), "input `X`: expected an array in `data`");
    check(
        iris(),
        &with("FP32", "[1, 4]", "[1,2,3,4"),
        "input `X`: invalid JSON: expected `,` or `]`, got `}`",
    );
    let good = r#"{"name": "X", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}"#;
    check(iris(), &format!(r#"{{"inputs": [{good}, {good}]}}"#), "input `X` is given twice");
    check(
        iris(),
        &format!(r#"{{"inputs": [{good}]}} x"#),
        "invalid JSON: expected the end of the body, got `x`",
    );
    check(
        iris(),
        &format!(r#"{{"inputs": [{good}], "outputs": [{{"name": "z"}}]}}"#),
        "unknown output `z`: the model gives `label`, `scores`",
    );
    check(iris(), &format!(r#"{{"inputs": [{good}], "outputs": [{{}}]}}"#), "an output has no field `name`");
    check(
        iris(),
        &format!(r#"{{"inputs": [{good}], "outputs": [{{"name": "label"}}, {{"name": "label"}}]}}"#),
        "output `label` is asked for twice",
    );
    check(
        two(),
        r#"{"inputs": [{"name": "a", "datatype": "INT32", "shape": [2], "data": [1, 2]}]}"#,
        "missing input `b` (BYTES [-1])",
    );
}

#[test]
fn answers_and_metadata() {
    let tensors = [fp32(&[1, 3], &[0.25, f32::NAN, 1e-7])];
    let body = write_response("ir\"is", Some("7"), &iris(), &[1], &tensors);
    assert_eq!(
        String::from_utf8(body).as_deref(),
        Ok(
            r#"{"model_name":"ir\"is","model_version":"1","id":"7","outputs":[{"name":"scores","datatype":"FP32","shape":[1,3],"data":[0.25,null,1e-7]}]}"#
        )
    );
    let mut signature = iris();
    signature.outputs[1].labels = Some(vec!["setosa".into(), "2".into()]);
    let got = serde_json::to_value(metadata("iris", &signature)).expect("JSON");
    let expect = serde_json::json!({
        "name": "iris",
        "versions": ["1"],
        "platform": "onnx_onnxv1",
        "inputs": [{ "name": "X", "datatype": "FP32", "shape": [-1, 4] }],
        "outputs": [
            { "name": "label", "datatype": "INT64", "shape": [-1] },
            { "name": "scores", "datatype": "FP32", "shape": [-1, 3], "parameters": { "labels": "[\"setosa\",\"2\"]" } },
        ],
    });
    assert_eq!(got, expect);
}

/// Any tensor of a type, with finite floats (NaN is not equal to itself).
fn tensor(datatype: DataType) -> BoxedStrategy<Tensor> {
    let shape = prop::collection::vec(0_usize..4, 0..4);
    shape
        .prop_flat_map(move |shape| {
            let count = shape.iter().product::<usize>();
            (Just(shape), data(datatype, count))
        })
        .prop_map(|(shape, data)| Tensor::new(shape, data).expect("as many values as the shape has"))
        .boxed()
}

fn data(datatype: DataType, count: usize) -> BoxedStrategy<TensorData> {
    macro_rules! vectors {
        ($($variant:ident: $values:expr,)*) => {
            match datatype {
                $(DataType::$variant => prop::collection::vec($values, count).prop_map(TensorData::$variant).boxed(),)*
            }
        };
    }
    vectors! {
        Bool: any::<bool>(),
        Uint8: any::<u8>(),
        Uint16: any::<u16>(),
        Uint32: any::<u32>(),
        Uint64: any::<u64>(),
        Int8: any::<i8>(),
        Int16: any::<i16>(),
        Int32: any::<i32>(),
        Int64: any::<i64>(),
        Fp16: (-60000.0_f32..60000.0).prop_map(f16::from_f32),
        Bf16: (-1e30_f32..1e30).prop_map(bf16::from_f32),
        Fp32: any::<f32>().prop_filter("finite", |value| value.is_finite()),
        Fp64: any::<f64>().prop_filter("finite", |value| value.is_finite()),
        Bytes: "[^\\x00]*",
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(tensors in DataType::ALL.map(tensor)) {
        let inputs: Vec<TensorSpec> = tensors
            .iter()
            .map(|tensor| spec(tensor.data().datatype().name(), tensor.data().datatype(), &vec![-1; tensor.shape().len()]))
            .collect();
        let signature = Signature { inputs, ..Signature::default() };
        let body = write_request(&signature, &tensors);
        let request = read_request(&body, &signature);
        prop_assert_eq!(request.map(|request| request.inputs), Ok(tensors.to_vec()));
    }

    #[test]
    fn answers_are_json_for_others(tensors in DataType::ALL.map(tensor)) {
        for tensor in &tensors {
            let signature = Signature { outputs: vec![spec("y", tensor.data().datatype(), &[])], ..Signature::default() };
            let body = write_response("m", None, &signature, &[0], std::slice::from_ref(tensor));
            let value: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
            let output = &value["outputs"][0];
            prop_assert_eq!(output["data"].as_array().map(Vec::len), Some(with_values!(tensor.data(), values => values.len())));
            prop_assert_eq!(&output["shape"], &serde_json::json!(tensor.shape()));
        }
    }

    #[test]
    fn no_body_makes_it_panic(body in "[\\[\\]{},:\"0-9.\\- adehimnopstuy]{0,80}") {
        let _ = read_request(body.as_bytes(), &two());
    }
}
