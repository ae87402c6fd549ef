//! Writes the CRDs as YAML files into the folder given, by default the chart's.
//!
//! `crdgen [--check] [FOLDER]`: with `--check` nothing is written, and a difference ends with exit code 1.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serin_crds::manifest::{Manifest, manifests};

const HEADER: &str = "# Generated from crds/src by `make crds`; do not edit.\n";

fn main() -> ExitCode {
    let mut check = false;
    let mut folder = PathBuf::from("charts/serin/crds");
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--check" => check = true,
            "--help" | "-h" => {
                println!(
                    "usage: crdgen [--check] [FOLDER]\n\nWrites the CRDs into FOLDER (default charts/serin/crds), or checks that they are up to date."
                );
                return ExitCode::SUCCESS;
            }
            other => folder = PathBuf::from(other),
        }
    }
    let mut clean = true;
    for manifest in manifests() {
        match write(&manifest, &folder, check) {
            Ok(true) => {}
            Ok(false) => clean = false,
            Err(error) => {
                eprintln!("crdgen: {error}");
                return ExitCode::from(2);
            }
        }
    }
    if clean { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

/// Writes one CRD; with `check` says whether the file holds it already.
fn write(manifest: &Manifest, folder: &Path, check: bool) -> Result<bool, Box<dyn std::error::Error>> {
    let path = folder.join(&manifest.file_name);
    let text = format!("{HEADER}{}", serde_saphyr::to_string(&manifest.crd)?);
    if check {
        let same = std::fs::read_to_string(&path).is_ok_and(|found| found == text);
        if !same {
            eprintln!("{} is not what crds/src describes; run `make crds` and commit it", path.display());
        }
        return Ok(same);
    }
    std::fs::create_dir_all(folder)?;
    std::fs::write(&path, text)?;
    println!("wrote {}", path.display());
    Ok(true)
}
