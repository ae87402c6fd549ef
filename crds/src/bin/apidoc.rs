//! Writes the API reference from the generated CRDs.
//!
//! `apidoc [--check] [FOLDER] [FILE]`: reads the CRDs in FOLDER (default the chart's) and writes FILE (default
//! docs/api.md); with `--check` nothing is written, and a difference ends with exit code 1.

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::Value;

const HEADER: &str = "# API reference\n\n\
    <!-- Generated from charts/serin/crds by `make crds`; do not edit. -->\n\n\
    A field marked with * is needed. `kubectl explain isvc.spec.predictor` shows the same text in the cluster.\n";
const KINDS: [&str; 2] = ["inferenceservices", "inferenceroutes"];

fn main() -> ExitCode {
    let mut check = false;
    let mut places = Vec::new();
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--check" => check = true,
            "--help" | "-h" => {
                println!(
                    "usage: apidoc [--check] [FOLDER] [FILE]\n\nWrites the API reference of the CRDs in FOLDER (default charts/serin/crds) to FILE (default docs/api.md)."
                );
                return ExitCode::SUCCESS;
            }
            other => places.push(PathBuf::from(other)),
        }
    }
    let mut places = places.into_iter();
    let folder = places.next().unwrap_or_else(|| PathBuf::from("charts/serin/crds"));
    let file = places.next().unwrap_or_else(|| PathBuf::from("docs/api.md"));
    match run(&folder, &file, check) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("apidoc: {error}");
            ExitCode::from(2)
        }
    }
}

/// Writes the reference; with `check` says whether the file holds it already.
fn run(folder: &Path, file: &Path, check: bool) -> Result<bool, Box<dyn Error>> {
    let mut text = HEADER.to_owned();
    for kind in KINDS {
        let path = folder.join(format!("serving.serin.dev_{kind}.yaml"));
        let crd = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let crd: Value =
            serde_saphyr::from_str(&crd).map_err(|error| format!("{}: {error}", path.display()))?;
        document_kind(&mut text, &crd)?;
    }
    if check {
        let same = std::fs::read_to_string(file).is_ok_and(|found| found == text);
        if !same {
            eprintln!("{} is not what the CRDs describe; run `make crds` and commit it", file.display());
        }
        return Ok(same);
    }
    std::fs::write(file, text)?;
    println!("wrote {}", file.display());
    Ok(true)
}

fn document_kind(text: &mut String, crd: &Value) -> Result<(), Box<dyn Error>> {
    let names = &crd["spec"]["names"];
    let version = &crd["spec"]["versions"][0];
    let schema = &version["schema"]["openAPIV3Schema"];
    writeln!(text, "\n## {}\n", string(&names["kind"]))?;
    writeln!(
        text,
        "`apiVersion: {}/{}`, short name `{}`.\n",
        string(&crd["spec"]["group"]),
        string(&version["name"]),
        string(&names["shortNames"][0])
    )?;
    writeln!(text, "{}", sentence(&schema["properties"]["spec"]))?;
    for rule in rules(schema) {
        writeln!(text, "\nRule: {rule}.")?;
    }
    for part in ["spec", "status"] {
        let mut rows = Rows::default();
        collect(&mut rows, &schema["properties"][part], "");
        if rows.served.is_empty() {
            continue;
        }
        writeln!(text, "\n### {part}\n\n| field | type | what it is |\n|---|---|---|")?;
        text.push_str(&rows.served);
        if !rows.refused.is_empty() {
            writeln!(
                text,
                "\n### Fields of KServe's API that are refused\n\nThe API server answers with this advice.\n\n| field | advice |\n|---|---|"
            )?;
            text.push_str(&rows.refused);
        }
    }
    Ok(())
}

/// Table rows of the fields that are served, and of those that are refused.
#[derive(Default)]
struct Rows {
    served: String,
    refused: String,
}

/// Adds a row for each field below `schema`, depth first; `path` is where it stands, with a dot at its end.
fn collect(rows: &mut Rows, schema: &Value, path: &str) {
    let Some(properties) = schema["properties"].as_object() else { return };
    for (name, field) in properties {
        if let Some(message) = refusal(schema, name) {
            let advice = message.split_once(&format!(".{name} ")).map_or(message, |(_, advice)| advice);
            rows.refused.push_str(&format!("| `{path}{name}` | {} |\n", cell(advice)));
            continue;
        }
        let needed = schema["required"]
            .as_array()
            .is_some_and(|required| required.contains(&Value::from(name.as_str())));
        let star = if needed { "*" } else { "" };
        let mut what = sentence(field);
        for rule in rules(field) {
            what.push_str(&format!("<br>Rule: {rule}."));
        }
        rows.served.push_str(&format!("| `{path}{name}`{star} | {} | {} |\n", type_of(field), cell(&what)));
        let (inner, suffix) =
            if field["items"].is_object() { (&field["items"], "[].") } else { (field, ".") };
        if is_ours(inner, name) {
            collect(rows, inner, &format!("{path}{name}{suffix}"));
        }
    }
}

/// Types of Kubernetes itself are named, not spelt out: they have their own manual, and no descriptions in the CRD.
fn is_ours(schema: &Value, name: &str) -> bool {
    name != "conditions"
        && schema["properties"]
            .as_object()
            .is_some_and(|fields| fields.values().any(|field| field["description"].is_string()))
}

/// The message that refuses a field: one of KServe's that is in the schema only to be answered with advice.
fn refusal<'a>(parent: &'a Value, name: &str) -> Option<&'a str> {
    let rules = parent["x-kubernetes-validations"].as_array()?;
    let refusing = format!("!has(self.{name})");
    rules.iter().find(|rule| rule["rule"] == refusing.as_str()).map(|rule| string(&rule["message"]))
}

fn type_of(schema: &Value) -> String {
    if schema["x-kubernetes-int-or-string"] == true {
        return "number or string".to_owned();
    }
    match schema["type"].as_str() {
        Some("array") => format!("list of {}", type_of(&schema["items"])),
        Some("object") if schema["additionalProperties"].is_object() => {
            format!("map to {}", type_of(&schema["additionalProperties"]))
        }
        Some(name) => name.to_owned(),
        None => "any".to_owned(),
    }
}

/// The messages of a schema's own rules, without those that refuse a field (they have their own table).
fn rules(schema: &Value) -> Vec<String> {
    let all = schema["x-kubernetes-validations"].as_array();
    all.into_iter()
        .flatten()
        .filter(|rule| {
            !string(&rule["rule"]).starts_with("!has(self.") || string(&rule["rule"]).contains("||")
        })
        .map(|rule| string(&rule["message"]).to_owned())
        .collect()
}

/// A description in one line.
fn sentence(schema: &Value) -> String {
    string(&schema["description"]).split_whitespace().collect::<Vec<_>>().join(" ")
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn string(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
