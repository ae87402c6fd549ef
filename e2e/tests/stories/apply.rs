//! S1: apply a model, and it answers: by the curl that `kubectl describe` ends with, as printed, and by both protocols with
//! what onnxruntime answers in Python.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use serin_e2e::models;
use serin_e2e::scene::Scene;
use serin_e2e::service::Service;
use serin_e2e::story::{Story, tell};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: make e2e STORY=apply"]
async fn apply() -> anyhow::Result<()> {
    tell("apply", async |story| {
        let mut scene = Scene::begin(story).await?;
        story.apply(&["http"]).await?;
        let zipmap = Service::new(story, "iris-http");
        zipmap.ready().await?;
        let of_zipmap = zipmap.settled().await?;
        scene.serves(&of_zipmap, "a");

        let first = scene.first.clone();
        equals_python(&scene.iris, "iris-a", &first).await?;
        equals_python(&zipmap, "iris-a-zipmap", &of_zipmap).await?;
        described(story, &scene.iris).await?;
        columns(story, &scene).await?;
        scene.end().await
    })
    .await
}

#[derive(Deserialize)]
struct Expected {
    input: String,
    rows: Vec<Vec<f64>>,
    models: BTreeMap<String, BTreeMap<String, Value>>,
}

/// All rows in one request, by V1 and by V2.
async fn equals_python(service: &Service, model: &str, revision: &str) -> anyhow::Result<()> {
    let expected: Expected = serde_json::from_str(&std::fs::read_to_string(models().join("expected.json"))?)?;
    let outputs = expected.models.get(model).with_context(|| format!("expected.json: no {model}"))?;
    let (name, rows) = (&service.name, &expected.rows);

    let v1 = service.call(&format!("/v1/models/{name}:predict"), &json!({"instances": rows}), None).await?;
    ensure!(v1.status == 200 && v1.revision.as_deref() == Some(revision), "V1 of {name}: {v1:?}");
    let answer: Value = serde_json::from_str(&v1.body)?;
    for (output, expected) in outputs {
        let got: Vec<_> =
            answer["predictions"].as_array().into_iter().flatten().map(|row| row[output].clone()).collect();
        near(&format!("V1 {name} {output}"), expected, &Value::Array(got))?;
    }

    let flat: Vec<_> = rows.concat();
    let input = json!({"name": expected.input, "datatype": "FP32", "shape": [rows.len(), rows[0].len()], "data": flat});
    let v2 = service
        .call(&format!("/v2/models/{name}/infer"), &json!({"id": "apply", "inputs": [input]}), None)
        .await?;
    ensure!(v2.status == 200 && v2.revision.as_deref() == Some(revision), "V2 of {name}: {v2:?}");
    let answer: Value = serde_json::from_str(&v2.body)?;
    ensure!(answer["id"] == "apply", "V2 of {name}: expected id apply, got {}", answer["id"]);
    for (output, expected) in outputs {
        let all = answer["outputs"].as_array().into_iter().flatten();
        let got = all
            .into_iter()
            .find(|found| found["name"] == *output)
            .with_context(|| format!("V2 of {name}: no {output}"))?;
        near(&format!("V2 {name} {output}"), expected, &got["data"])?;
    }
    Ok(())
}

fn near(what: &str, expected: &Value, got: &Value) -> anyhow::Result<()> {
    let (expected, got) = (flat(expected), flat(got));
    let same = expected.len() == got.len()
        && expected.iter().zip(&got).all(|(one, other)| (one - other).abs() <= 1e-5);
    ensure!(same && !got.is_empty(), "{what}: expected {expected:?}, got {got:?}");
    println!("  {what}: {} numbers equal onnxruntime's in Python", got.len());
    Ok(())
}

fn flat(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(items) => items.iter().flat_map(flat).collect(),
        other => vec![other.as_f64().unwrap_or(f64::NAN)],
    }
}

/// Runs the command that `kubectl describe` ends with, by bash, as it is printed there.
async fn described(story: &Story, iris: &Service) -> anyhow::Result<()> {
    let described = story.kubectl(&["describe", "isvc", "iris"]).await?;
    let last = described
        .lines()
        .rev()
        .find(|line| line.contains("curl"))
        .context("kubectl describe names no curl")?;
    let example = iris.get().await?.status.and_then(|status| status.example).context("no status.example")?;
    ensure!(
        last.contains(&example),
        "kubectl describe ends with {last:?}, which is not status.example: {example:?}"
    );
    println!("  $ {example}");
    // It leaves a port-forward behind, which a person would end with Ctrl-C.
    let printed = story.cluster.bash(&format!("trap 'kill $!' EXIT\n{example}")).await?;
    println!("  {}", printed.trim());
    ensure!(
        printed.contains("outputs") || printed.contains("predictions"),
        "the command printed no answer: {printed}"
    );
    Ok(())
}

/// What `kubectl get` shows.
async fn columns(story: &Story, scene: &Scene<'_>) -> anyhow::Result<()> {
    let table = story.kubectl(&["get", "isvc", "iris"]).await?;
    println!("{table}");
    let head = table.lines().next().unwrap_or_default();
    for column in ["URL", "READY", "STABLE", "CANARY", "PERCENT", "REASON", "AGE"] {
        ensure!(head.contains(column), "kubectl get: expected a column {column}, got {head}");
    }
    let url = format!("http://iris.{}.svc", story.namespace);
    ensure!(
        table.contains(&url) && table.contains(&scene.first),
        "kubectl get: expected {url} and {}:\n{table}",
        scene.first
    );
    Ok(())
}
