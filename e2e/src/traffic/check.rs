//! Is an answer right, and which model gave it? Pure: bytes in, verdict out.

use std::collections::BTreeMap;

use serde_json::Value;

use super::wire::{Case, Expected, Protocol};

const TOLERANCE: f64 = 1e-5;
const TOP_TOLERANCE: f64 = 2e-4;

/// Outputs by name, flat.
type Outputs = BTreeMap<String, Vec<f64>>;

/// The model whose answer this is.
///
/// # Errors
/// What is wrong with the answer, in words.
pub fn model_of<'a>(case: &'a Case, model: &str, id: &str, body: &[u8]) -> Result<&'a str, String> {
    let answer: Value = serde_json::from_slice(body).map_err(|error| format!("body is not JSON: {error}"))?;
    let outputs = match case.protocol {
        Protocol::V1 => v1_outputs(&answer)?,
        Protocol::V2 => v2_outputs(&answer, model, id)?,
    };
    let mut right =
        case.expected.iter().filter(|(_, expected)| matches(expected, &outputs)).map(|(name, _)| name);
    match (right.next(), right.next()) {
        (Some(name), None) => Ok(name),
        (Some(one), Some(other)) => {
            Err(format!("answer fits {one} and {other}: the case tells no models apart"))
        }
        (None, _) => Err("answer of no known model".to_owned()),
    }
}

fn v1_outputs(answer: &Value) -> Result<Outputs, String> {
    let rows = answer["predictions"].as_array().ok_or("no field `predictions`")?;
    let [row] = rows.as_slice() else {
        return Err(format!("expected 1 prediction, got {}", rows.len()));
    };
    let row = row.as_object().ok_or("expected a prediction with named outputs")?;
    row.iter().map(|(name, value)| Ok((name.clone(), numbers(value)?))).collect()
}

fn v2_outputs(answer: &Value, model: &str, id: &str) -> Result<Outputs, String> {
    let field = |name: &str, expected: &str| match answer[name].as_str() {
        Some(got) if got == expected => Ok(()),
        got => Err(format!("field `{name}`: expected {expected}, got {got:?}")),
    };
    field("id", id)?;
    field("model_name", model)?;
    let outputs = answer["outputs"].as_array().ok_or("no field `outputs`")?;
    outputs
        .iter()
        .map(|output| {
            let name = output["name"].as_str().ok_or("an output without a name")?;
            Ok((name.to_owned(), numbers(&output["data"])?))
        })
        .collect()
}

/// A number or nested lists of numbers, flat.
fn numbers(value: &Value) -> Result<Vec<f64>, String> {
    let mut flat = Vec::new();
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        match value {
            Value::Array(items) => open.extend(items.iter().rev()),
            other => flat.push(other.as_f64().ok_or_else(|| format!("expected a number, got {other}"))?),
        }
    }
    Ok(flat)
}

fn matches(expected: &Expected, got: &Outputs) -> bool {
    match expected {
        Expected::Outputs(outputs) => {
            outputs.len() == got.len()
                && outputs.iter().all(|(name, values)| got.get(name).is_some_and(|got| near(values, got)))
        }
        Expected::Top { output, length, score } => got.get(output).is_some_and(|got| {
            let top = got.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            got.len() == *length && (top - score).abs() <= TOP_TOLERANCE
        }),
    }
}

fn near(expected: &[f64], got: &[f64]) -> bool {
    expected.len() == got.len()
        && expected.iter().zip(got).all(|(one, other)| (one - other).abs() <= TOLERANCE)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn case(protocol: Protocol) -> Case {
        let outputs = |label: f64, top: f64| {
            Expected::Outputs(
                [("label".to_owned(), vec![label]), ("p".to_owned(), vec![top, 1.0 - top])].into(),
            )
        };
        Case {
            protocol,
            path: String::new(),
            body: String::new(),
            expected: [("a".to_owned(), outputs(0.0, 0.9)), ("b".to_owned(), outputs(1.0, 0.3))].into(),
        }
    }

    fn check(protocol: Protocol, body: &Value, expect: &str) {
        let case = case(protocol);
        let verdict = model_of(&case, "iris", "7", body.to_string().as_bytes());
        let got = match &verdict {
            Ok(model) => model,
            Err(why) => why.as_str(),
        };
        assert_eq!(got, expect, "{body}");
    }

    fn v2(id: &str, model: &str, label: i64, p: &[f64]) -> Value {
        json!({"id": id, "model_name": model, "outputs": [
            {"name": "label", "datatype": "INT64", "shape": [1], "data": [label]},
            {"name": "p", "datatype": "FP32", "shape": [1, 2], "data": p},
        ]})
    }

    #[test]
    fn content_tells_the_model() {
        check(Protocol::V2, &v2("7", "iris", 0, &[0.900_000_1, 0.1]), "a");
        check(Protocol::V2, &v2("7", "iris", 1, &[0.3, 0.7]), "b");
        check(Protocol::V1, &json!({"predictions": [{"label": 1, "p": [0.3, 0.7]}]}), "b");
    }

    #[test]
    fn a_wrong_answer_is_no_models() {
        check(Protocol::V2, &v2("7", "iris", 1, &[0.9, 0.1]), "answer of no known model");
        check(Protocol::V2, &v2("7", "iris", 0, &[0.9]), "answer of no known model");
        check(Protocol::V1, &json!({"predictions": [{"label": 0}]}), "answer of no known model");
        check(Protocol::V1, &json!({"predictions": []}), "expected 1 prediction, got 0");
        check(Protocol::V1, &json!({"error": "x"}), "no field `predictions`");
    }

    #[test]
    fn an_answer_to_another_request_is_wrong() {
        check(Protocol::V2, &v2("8", "iris", 0, &[0.9, 0.1]), "field `id`: expected 7, got Some(\"8\")");
        check(
            Protocol::V2,
            &v2("7", "rose", 0, &[0.9, 0.1]),
            "field `model_name`: expected iris, got Some(\"rose\")",
        );
    }

    #[test]
    fn the_top_score_tells_the_model_of_a_long_answer() {
        let top = |score| Expected::Top { output: "s".to_owned(), length: 3, score };
        let got = |values: &[f64]| Outputs::from([("s".to_owned(), values.to_vec())]);
        assert!(matches(&top(0.8), &got(&[0.1, 0.800_1, 0.099_9])));
        assert!(!matches(&top(0.8), &got(&[0.1, 0.81, 0.09])));
        assert!(!matches(&top(0.8), &got(&[0.8, 0.2])));
    }

    #[test]
    fn truncated_json_is_wrong() {
        let case = case(Protocol::V1);
        let verdict = model_of(&case, "iris", "7", br#"{"predictions": [{"label": 1, "#);
        assert!(verdict.is_err_and(|why| why.starts_with("body is not JSON")));
    }
}
