//! Requests and what each model answers to them, from the files that `make models` wrote. Reads files.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use super::wire::{Case, Expected, Protocol};

/// Numbers of magika's one output.
const MAGIKA_SCORES: usize = 214;
/// Only samples on which two generations differ by so much tell them apart.
const MAGIKA_LEAST_DIFFERENCE: f64 = 1e-3;

#[derive(Deserialize)]
struct Disagreement {
    rows: Vec<Vec<f64>>,
    #[serde(flatten)]
    answers: BTreeMap<String, Value>,
}

/// A file that magika is asked about, and what each generation says of it.
#[derive(Clone, Debug, Deserialize)]
pub struct Sample {
    /// Name of the file.
    pub name: String,
    /// What the model takes.
    pub input: Vec<i32>,
    /// Type by the stable generation.
    pub label_v3_2: String,
    /// Its largest score.
    pub score_v3_2: f64,
    /// Type by the canary generation.
    pub label_v3_3: String,
    /// Its largest score.
    pub score_v3_3: f64,
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("read {} (`make models` writes it)", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))
}

/// Rows of iris on which the models `a`, `b` and `c` answer three different labels: three of four in V2, the rest in V1.
///
/// # Errors
/// `disagree.json` is missing or is not what `make models` writes.
pub fn iris(models: &Path, service: &str) -> anyhow::Result<Vec<Case>> {
    let found: Disagreement = read(&models.join("disagree.json"))?;
    let answer = |name: &str, row: usize| {
        found
            .answers
            .get(name)
            .and_then(|rows| rows.get(row))
            .with_context(|| format!("disagree.json: no {name}[{row}]"))
    };
    let mut cases = Vec::new();
    for (number, row) in found.rows.iter().enumerate() {
        let mut expected = BTreeMap::new();
        for model in ["a", "b", "c"] {
            let label: f64 = serde_json::from_value(answer(model, number)?.clone())?;
            let probabilities: Vec<f64> =
                serde_json::from_value(answer(&format!("{model}_probabilities"), number)?.clone())?;
            let outputs = [("label".to_owned(), vec![label]), ("probabilities".to_owned(), probabilities)];
            expected.insert(model.to_owned(), Expected::Outputs(outputs.into()));
        }
        cases.push(if number % 4 == 0 {
            let body = json!({"instances": [row]}).to_string();
            Case { protocol: Protocol::V1, path: format!("/v1/models/{service}:predict"), body, expected }
        } else {
            let input = json!({"name": "X", "datatype": "FP32", "shape": [1, row.len()], "data": row});
            v2(service, &input, expected)
        });
    }
    ensure!(!cases.is_empty(), "disagree.json has no rows");
    Ok(cases)
}

/// The files that magika is shown.
///
/// # Errors
/// `samples.json` is missing or is not what `make models` writes.
pub fn samples(models: &Path) -> anyhow::Result<Vec<Sample>> {
    read(&models.join("magika/samples.json"))
}

/// Files on which magika's generations `v3_2` and `v3_3` clearly differ.
///
/// # Errors
/// As [`samples`], or no sample tells the generations apart.
pub fn magika(models: &Path, service: &str) -> anyhow::Result<Vec<Case>> {
    let top = |score| Expected::Top { output: "target_label".to_owned(), length: MAGIKA_SCORES, score };
    let cases: Vec<_> = samples(models)?
        .into_iter()
        .filter(|sample| (sample.score_v3_2 - sample.score_v3_3).abs() >= MAGIKA_LEAST_DIFFERENCE)
        .map(|sample| {
            let expected =
                [("v3_2".to_owned(), top(sample.score_v3_2)), ("v3_3".to_owned(), top(sample.score_v3_3))];
            v2(service, &magika_input(&sample), expected.into())
        })
        .collect();
    ensure!(!cases.is_empty(), "samples.json: no file tells the generations apart");
    Ok(cases)
}

/// The input tensor of a file, in V2.
pub fn magika_input(sample: &Sample) -> Value {
    json!({"name": "bytes", "datatype": "INT32", "shape": [1, sample.input.len()], "data": sample.input})
}

fn v2(service: &str, input: &Value, expected: BTreeMap<String, Expected>) -> Case {
    let body = json!({"inputs": [input]}).to_string();
    Case { protocol: Protocol::V2, path: format!("/v2/models/{service}/infer"), body, expected }
}
