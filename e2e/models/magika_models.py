"""Fetches two generations of magika and writes down what they answer for real files.

In: PyPI's magika wheels (Apache-2.0), of which only the model and its tables are used. Out, in the directory named
by the first argument: standard_v3_2/ and standard_v3_3/, and magika/ with the sample files and samples.json.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
from magika_input import Config, label_of, model_input
from samples import files

# model: the wheel that holds it, and the sha256 of the model itself. The wheels differ per platform, the models do not.
GENERATIONS = {
    "standard_v3_2": ("0.6.1", "ba4f372744331c0088d7c9b8b4fd702f4bc2bdddbeecde27488fceeadf71c3ce"),
    "standard_v3_3": ("1.0.3", "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c"),
}
# What of a wheel is kept, and the name it gets beside the model.
PARTS = {
    "models/{model}/model.onnx": "model.onnx",
    "models/{model}/config.min.json": "config.min.json",
    "config/content_types_kb.min.json": "content_types_kb.min.json",
}


def fetch(model: str, version: str, sha256: str, directory: Path) -> None:
    """Downloads a wheel and unpacks the model's files into `directory/<model>`."""
    with tempfile.TemporaryDirectory() as downloads:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*command, "--only-binary", ":all:", "--dest", downloads, f"magika=={version}"], check=True)
        (wheel,) = Path(downloads).glob("*.whl")
        target = directory / model
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        with zipfile.ZipFile(wheel) as archive:
            for part, name in PARTS.items():
                (target / name).write_bytes(archive.read("magika/" + part.format(model=model)))
    found = hashlib.sha256((target / "model.onnx").read_bytes()).hexdigest()
    if found != sha256:
        raise SystemExit(f"magika {version}: expected {model} with sha256 {sha256}, got {found}")


class Generation:
    """A model with its configuration."""

    def __init__(self, directory: Path):
        self.config = Config.read(directory)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            directory / "model.onnx", options, providers=["CPUExecutionProvider"]
        )

    def answer(self, numbers: list[int]) -> tuple[str, float]:
        (scores,) = self.session.run(["target_label"], {"bytes": np.array([numbers], dtype=np.int32)})
        return label_of(scores[0].tolist(), self.config)


def main() -> None:
    directory = Path(sys.argv[1])
    for model, (version, sha256) in GENERATIONS.items():
        fetch(model, version, sha256, directory)
    generations = {model: Generation(directory / model) for model in GENERATIONS}
    place = directory / "magika" / "samples"
    place.mkdir(parents=True, exist_ok=True)
    samples = []
    for name, content in files().items():
        (place / name).write_bytes(content)
        sample = {"name": name}
        for model, generation in generations.items():
            numbers = model_input(content, generation.config)
            if numbers is None:
                raise SystemExit(f"magika: sample {name} is too short for {model}")
            # Both generations take the same numbers, or the canary's requests could not be the stable's.
            if sample.setdefault("input", numbers) != numbers:
                raise SystemExit(f"magika: {model} reads sample {name} differently")
            label, score = generation.answer(numbers)
            suffix = model.removeprefix("standard_")
            sample |= {f"label_{suffix}": label, f"score_{suffix}": score}
        samples.append(sample)
        print(f"magika: {name}: {sample['label_v3_2']} / {sample['label_v3_3']}")
    (directory / "magika" / "samples.json").write_text(json.dumps(samples) + "\n")


if __name__ == "__main__":
    main()
