//! What magika's scores say of a file: the largest one's label, by the rules in the model's own configuration. Reads files;
//! the rules are those of `e2e/models/magika_input.py`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::Value;

/// A generation's labels and how sure it must be of each.
#[derive(Clone, Debug)]
pub struct Labels {
    names: Vec<String>,
    thresholds: BTreeMap<String, f64>,
    overwrite: BTreeMap<String, String>,
    medium_confidence: f64,
    text: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Configuration {
    target_labels_space: Vec<String>,
    thresholds: BTreeMap<String, f64>,
    overwrite_map: BTreeMap<String, String>,
    medium_confidence_threshold: f64,
}

impl Labels {
    /// Reads a model's folder, for example `.cache/models/standard_v3_2`.
    ///
    /// # Errors
    /// A file is missing or is not what `make models` writes.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path)
                .with_context(|| format!("read {} (`make models` writes it)", path.display()))
        };
        let configuration: Configuration = serde_json::from_str(&read("config.min.json")?)?;
        let kinds: BTreeMap<String, Value> = serde_json::from_str(&read("content_types_kb.min.json")?)?;
        let text =
            kinds.into_iter().filter(|(_, kind)| kind["is_text"] == true).map(|(label, _)| label).collect();
        Ok(Self {
            names: configuration.target_labels_space,
            thresholds: configuration.thresholds,
            overwrite: configuration.overwrite_map,
            medium_confidence: configuration.medium_confidence_threshold,
            text,
        })
    }

    /// The label for a row of scores, and the largest of them. A label that is not sure enough only tells text from others.
    ///
    /// # Errors
    /// There is not one score for each label.
    pub fn of(&self, scores: &[f64]) -> anyhow::Result<(&str, f64)> {
        ensure!(
            scores.len() == self.names.len(),
            "expected {} scores, got {}",
            self.names.len(),
            scores.len()
        );
        let best = scores.iter().enumerate().max_by(|(_, one), (_, other)| one.total_cmp(other));
        let (index, score) = best.context("no scores")?;
        let guessed = &self.names[index];
        let label = self.overwrite.get(guessed).unwrap_or(guessed);
        if *score >= *self.thresholds.get(guessed).unwrap_or(&self.medium_confidence) {
            return Ok((label, *score));
        }
        Ok((if self.text.contains(label) { "txt" } else { "unknown" }, *score))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels() -> Labels {
        let pairs =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        Labels {
            names: ["png", "randomtxt", "python", "elf"].map(str::to_owned).to_vec(),
            thresholds: [("python".to_owned(), 0.9)].into(),
            overwrite: pairs(&[("randomtxt", "txt")]),
            medium_confidence: 0.5,
            text: ["txt", "python"].map(str::to_owned).into(),
        }
    }

    #[test]
    fn the_largest_score_names_the_type_where_it_is_sure_enough() {
        let check =
            |scores: &[f64], expect: &str| assert_eq!(labels().of(scores).expect("four scores").0, expect);
        check(&[0.6, 0.1, 0.2, 0.1], "png");
        check(&[0.4, 0.3, 0.2, 0.1], "unknown");
        check(&[0.1, 0.7, 0.1, 0.1], "txt");
        check(&[0.05, 0.05, 0.85, 0.05], "txt");
        check(&[0.02, 0.02, 0.95, 0.01], "python");
        assert!(labels().of(&[1.0]).is_err());
    }
}
