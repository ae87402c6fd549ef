//! Whether what should be is part of what is. Pure.

use serde_json::Value;

/// Every field of `desired` stands in `live` with the same value. What the API server adds, in objects at any depth, is no
/// difference; neither are two spellings of one quantity, nor an empty value that it leaves out.
pub fn contains(live: &Value, desired: &Value) -> bool {
    match (live, desired) {
        (Value::Object(live), Value::Object(desired)) => desired.iter().all(|(key, value)| {
            live.get(key).map_or_else(|| is_empty(value), |found| contains(found, value))
        }),
        (Value::Array(live), Value::Array(desired)) => {
            live.len() == desired.len()
                && live.iter().zip(desired).all(|(live, desired)| contains(live, desired))
        }
        (Value::String(live), Value::String(desired)) => live == desired || is_same_amount(live, desired),
        (live, desired) => live == desired || (is_empty(live) && is_empty(desired)),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

fn is_same_amount(left: &str, right: &str) -> bool {
    matches!((amount(left), amount(right)), (Some(left), Some(right)) if left == right)
}

/// A quantity of Kubernetes (`0.5`, `500m`, `1Gi`, `1e3`) in thousandths.
fn amount(text: &str) -> Option<i128> {
    let end = text.find(|char: char| !(char.is_ascii_digit() || char == '.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.len() > 9 || whole.len() > 18 {
        return None;
    }
    let billionths = format!("{whole}{fraction:0<9}").parse::<i128>().ok()?;
    let thousandths: i128 = match suffix {
        "m" => 1,
        "" => 1000,
        "k" => 1_000_000,
        "M" => 1_000_000_000,
        "G" => 1_000_000_000_000,
        "T" => 1_000_000_000_000_000,
        "Ki" => 1000 << 10,
        "Mi" => 1000 << 20,
        "Gi" => 1000 << 30,
        "Ti" => 1000 << 40,
        _ => return None,
    };
    billionths.checked_mul(thousandths).map(|amount| amount / 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(live: Value, desired: Value, expect: bool) {
        assert_eq!(contains(&live, &desired), expect, "{desired} in {live}");
    }

    #[test]
    fn what_the_api_server_adds_is_no_difference() {
        check(json!({"a": 1, "b": {"c": [{"d": 1, "e": 2}]}}), json!({"b": {"c": [{"d": 1}]}}), true);
        check(json!({"a": 1}), json!({"a": 2}), false);
        check(json!({"a": [1, 2]}), json!({"a": [1]}), false);
        check(json!({}), json!({"a": false}), false);
        check(json!({}), json!({"a": {"b": ""}, "c": [], "d": null}), true);
        check(json!({"emptyDir": {}}), json!({"emptyDir": {}}), true);
    }

    #[test]
    fn quantities_are_compared_as_amounts() {
        check(json!({"cpu": "500m"}), json!({"cpu": "0.5"}), true);
        check(json!({"cpu": "1"}), json!({"cpu": "1000m"}), true);
        check(json!({"memory": "1Gi"}), json!({"memory": "1024Mi"}), true);
        check(json!({"cpu": "1"}), json!({"cpu": "2"}), false);
        check(json!({"name": "1x"}), json!({"name": "1y"}), false);
    }
}
