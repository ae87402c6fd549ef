"""What a client of magika does around the model: bytes → the 2,048 numbers it is sent, scores → the answer.

Reference for the clients of the demo and the tests, by the rules of magika's model family v3 (the model's own
config.min.json holds the sizes). In: the bytes of a file, and a model's configuration. Out: numbers, and labels.
No IO but reading the configuration; Python's standard library only.
"""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Config:
    """config.min.json of a model, and which of all labels stand for text."""

    beg_size: int
    end_size: int
    block_size: int
    padding_token: int
    min_file_size: int
    medium_confidence: float
    labels: list[str]
    thresholds: dict[str, float]
    overwrite: dict[str, str]
    text_labels: frozenset[str]

    @classmethod
    def read(cls, directory: Path) -> "Config":
        """Reads a model's directory; raises ValueError for a configuration that these rules do not cover."""
        raw = json.loads((directory / "config.min.json").read_text())
        if raw["mid_size"] != 0 or raw["use_inputs_at_offsets"]:
            raise ValueError(f"{directory}: expected a model of beginning and end alone, got mid_size "
                             f"{raw['mid_size']}, use_inputs_at_offsets {raw['use_inputs_at_offsets']}")
        kinds = json.loads((directory / "content_types_kb.min.json").read_text())
        return cls(
            beg_size=raw["beg_size"],
            end_size=raw["end_size"],
            block_size=raw["block_size"],
            padding_token=raw["padding_token"],
            min_file_size=raw["min_file_size_for_dl"],
            medium_confidence=raw["medium_confidence_threshold"],
            labels=raw["target_labels_space"],
            thresholds=raw["thresholds"],
            overwrite=raw["overwrite_map"],
            text_labels=frozenset(label for label, kind in kinds.items() if kind["is_text"]),
        )


def model_input(content: bytes, config: Config) -> list[int] | None:
    """The numbers that the model takes, or None for content too short for it (see `label_without_model`).

    First part: white space stripped from the left of the first block, then its first bytes, padded behind.
    Last part: stripped from the right of the last block, then its last bytes, padded in front.
    """
    block = min(config.block_size, len(content))
    beginning = content[:block].lstrip()[: config.beg_size]
    end = content[len(content) - block :].rstrip()
    end = end[max(0, len(end) - config.end_size) :]
    if len(content) < config.min_file_size or len(beginning) < config.min_file_size:
        return None
    padding = [config.padding_token]
    return [
        *beginning,
        *padding * (config.beg_size - len(beginning)),
        *padding * (config.end_size - len(end)),
        *end,
    ]


def label_without_model(content: bytes, config: Config) -> str:
    """The answer for content that the model is not asked about: empty, or a few bytes of text or of something."""
    if not content:
        return "empty"
    try:
        content[: config.block_size].decode("utf-8")
    except UnicodeDecodeError:
        return "unknown"
    return "txt"


def label_of(scores: list[float], config: Config) -> tuple[str, float]:
    """The answer for a row of scores (one per label of the configuration), and the best score.

    A best label below its own threshold is not trusted; what is kept of it is whether it stands for text.
    """
    best = max(range(len(scores)), key=scores.__getitem__)
    guessed, score = config.labels[best], scores[best]
    label = config.overwrite.get(guessed, guessed)
    if score < config.thresholds.get(guessed, config.medium_confidence):
        label = "txt" if label in config.text_labels else "unknown"
    return label, score
