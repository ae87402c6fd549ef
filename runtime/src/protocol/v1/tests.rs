//! Wire forms of V1, as table and as round trip.

use super::*;
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

fn columns() -> Signature {
    Signature {
        inputs: vec![spec("age", DataType::Int64, &[-1, 1]), spec("city", DataType::Bytes, &[-1, 1])],
        outputs: vec![spec("score", DataType::Fp32, &[-1])],
        left_out: vec![],
    }
}

fn text() -> Signature {
    Signature {
        inputs: vec![spec("text", DataType::Bytes, &[-1])],
        outputs: vec![spec("text", DataType::Bytes, &[-1])],
        left_out: vec![],
    }
}

fn fp32(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::new(shape.to_vec(), TensorData::Fp32(values.to_vec())).expect("shape and values fit")
}

fn strings(shape: &[usize], values: &[&str]) -> Tensor {
    let values = values.iter().map(ToString::to_string).collect();
    Tensor::new(shape.to_vec(), TensorData::Bytes(values)).expect("shape and values fit")
}

fn int64(shape: &[usize], values: &[i64]) -> Tensor {
    Tensor::new(shape.to_vec(), TensorData::Int64(values.to_vec())).expect("shape and values fit")
}

#[test]
fn requests_become_tensors() {
    let check = |signature: Signature, body: &str, form: Form, inputs: &[Tensor]| {
        let expect = PredictRequest { form, inputs: inputs.to_vec() };
        assert_eq!(read_request(body.as_bytes(), &signature), Ok(expect), "{body}");
    };
    let row = fp32(&[1, 4], &[1.0, 2.0, 3.0, 4.0]);
    check(iris(), r#"{"instances": [[1, 2, 3, 4]]}"#, Form::Rows(1), std::slice::from_ref(&row));
    check(
        iris(),
        r#"{"signature_name": "x", "instances": [{"X": [1, 2, 3, 4]}]}"#,
        Form::Rows(1),
        std::slice::from_ref(&row),
    );
    check(iris(), r#"{"inputs": [[1, 2, 3, 4]]}"#, Form::Columns, std::slice::from_ref(&row));
    check(iris(), r#"{"inputs": {"X": [[1, 2, 3, 4]]}}"#, Form::Columns, &[row]);
    let table = [int64(&[2, 1], &[30, 40]), strings(&[2, 1], &["Ulm", "Bonn"])];
    check(
        columns(),
        r#"{"instances": [{"age": 30, "city": "Ulm"}, {"city": "Bonn", "age": 40}]}"#,
        Form::Rows(2),
        &table,
    );
    check(
        columns(),
        r#"{"instances": [{"age": [30], "city": ["Ulm"]}, {"city": ["Bonn"], "age": [40]}]}"#,
        Form::Rows(2),
        &table,
    );
    check(columns(), r#"{"inputs": {"age": [[30], [40]], "city": ["Ulm", "Bonn"]}}"#, Form::Columns, &table);
    check(text(), r#"{"instances": ["a", {"b64": "Yg=="}]}"#, Form::Rows(2), &[strings(&[2], &["a", "b"])]);
    check(text(), r#"{"instances": [{"b64": "Yg=="}]}"#, Form::Rows(1), &[strings(&[1], &["b"])]);
    check(text(), r#"{"instances": [{"text": {"b64": "Yg=="}}]}"#, Form::Rows(1), &[strings(&[1], &["b"])]);
    check(text(), r#"{"instances": []}"#, Form::Rows(0), &[strings(&[0], &[])]);
}

#[test]
fn what_is_wrong_is_said() {
    let check = |signature: Signature, body: &str, expect: &str| {
        let message = read_request(body.as_bytes(), &signature).expect_err(body).0;
        assert!(message.starts_with(expect), "{body}\n  got: {message}");
    };
    check(iris(), "{}", "missing field `instances` (a list of rows) or `inputs` (columns)");
    check(iris(), "[]", "invalid JSON: expected an object, got an array (byte 0");
    check(
        iris(),
        r#"{"instances": [[1,2,3,4]], "inputs": [[1,2,3,4]]}"#,
        "expected one of `instances` and `inputs`, got both",
    );
    check(iris(), r#"{"instances": 5}"#, "field `instances`: expected a list of rows");
    check(iris(), r#"{"instances": [[1,2,3]]}"#, "input `X`: expected shape [-1, 4], got [1, 3]");
    check(iris(), r#"{"instances": [1,2,3,4]}"#, "input `X`: expected shape [-1, 4], got [4]");
    check(
        iris(),
        r#"{"instances": [[1,2,3,4],[1]]}"#,
        "input `X`: ragged nesting: expected 4 elements at depth 1 as before, got 1 (byte 25",
    );
    check(
        iris(),
        r#"{"instances": [[1,2,3,"4"]]}"#,
        "input `X`: expected a number for FP32, got a string (byte 22",
    );
    check(iris(), r#"{"instances": [{"Y": [1]}]}"#, "unknown input `Y`: the model takes `X`");
    check(columns(), r#"{"instances": [[1]]}"#, "row 0: expected an object with `age`, `city`, got an array");
    check(columns(), r#"{"instances": [{"age": 1}]}"#, "row 0: missing input `city` (BYTES [-1, 1])");
    check(
        columns(),
        r#"{"instances": [{"age": 1, "city": "x", "age": 2}]}"#,
        "input `age` is given twice in row 0",
    );
    check(
        columns(),
        r#"{"instances": [{"age": 1, "city": "x"}, {"age": [[1]], "city": "y"}]}"#,
        "input `age`: expected shape [] in row 1 as in row 0, got [1, 1]",
    );
    check(columns(), r#"{"inputs": {"age": [1]}}"#, "missing input `city` (BYTES [-1, 1])");
    check(columns(), r#"{"inputs": [1]}"#, "invalid JSON: expected an object, got an array");
    check(iris(), r#"{"inputs": {"X": [[1,2,3,4]], "X": [[1,2,3,4]]}}"#, "input `X` is given twice");
}

#[test]
fn answers_have_the_form_of_the_request() {
    let check = |form: Form, signature: Signature, tensors: &[Tensor], expect: &str| {
        let body = write_response(form, &signature, tensors).expect("an answer");
        assert_eq!(String::from_utf8(body).as_deref(), Ok(expect));
    };
    let two = [int64(&[2], &[0, 2]), fp32(&[2, 3], &[0.5, 0.25, 0.25, 0.0, f32::NAN, 1.0])];
    check(
        Form::Rows(2),
        iris(),
        &two,
        r#"{"predictions":[{"label":0,"scores":[0.5,0.25,0.25]},{"label":2,"scores":[0.0,null,1.0]}]}"#,
    );
    check(
        Form::Columns,
        iris(),
        &two,
        r#"{"outputs":{"label":[0,2],"scores":[[0.5,0.25,0.25],[0.0,null,1.0]]}}"#,
    );
    check(Form::Rows(2), columns(), &[fp32(&[2], &[1.0, 2.0])], r#"{"predictions":[1.0,2.0]}"#);
    check(Form::Columns, columns(), &[fp32(&[2], &[1.0, 2.0])], r#"{"outputs":[1.0,2.0]}"#);
    check(Form::Rows(0), iris(), &[int64(&[0], &[]), fp32(&[0, 3], &[])], r#"{"predictions":[]}"#);
    let error =
        write_response(Form::Rows(3), &columns(), &[fp32(&[2], &[1.0, 2.0])]).expect_err("too few rows").0;
    assert!(
        error.starts_with("output `score` of shape [2] does not have one row for each of 3 instances"),
        "{error}"
    );
}

proptest! {
    #[test]
    fn rows_written_by_others_are_read_as_they_were(rows in prop::collection::vec(prop::array::uniform4(-1e6_f32..1e6), 1..8)) {
        let body = serde_json::json!({ "instances": rows }).to_string();
        let expect = fp32(&[rows.len(), 4], &rows.concat());
        let request = read_request(body.as_bytes(), &iris()).expect("a request");
        prop_assert_eq!(request, PredictRequest { form: Form::Rows(rows.len()), inputs: vec![expect] });
    }

    #[test]
    fn no_body_makes_it_panic(body in "[\\[\\]{},:\"0-9.\\- aginstcey]{0,60}") {
        let _ = read_request(body.as_bytes(), &columns());
        let _ = read_request(body.as_bytes(), &text());
    }
}
