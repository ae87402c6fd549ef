"""Trains the iris models and writes down what onnxruntime answers for them.

In: scikit-learn's bundled iris data. Out, in the directory named by the first argument: the models of
`make`'s IRIS list, disagree.json and expected.json. Deterministic: the same packages write the same bytes,
which matters because the digest of a model is part of its revision.

The three models answer with different label numbers for the same flower: `b` numbers the species one on from
`a`, `c` two on, and each is trained on another part of the data, so their probabilities differ too. A client that
knows the row it sent can therefore tell from the answer alone which model gave it.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

OPSET = 17
SPECIES = 3
# A row is listed only where each model's best class leads its second by this much, so that no rounding of another
# machine's float arithmetic can change a label.
LEAST_LEAD = 0.2
EXPECTED_ROWS = 6


def train(features, species, shift, part):
    """A logistic regression that numbers species s as (s + shift) mod 3, trained on two of three rows."""
    kept = np.arange(len(features)) % 3 != part
    return LogisticRegression(C=1.0, max_iter=1000).fit(features[kept], (species[kept] + shift) % SPECIES)


def export(model, features, name, **options):
    """The ONNX file of a model: input X float32[N,4]. The graph's name is set, or it would be random."""
    proto = to_onnx(model, features[:1], options=options or None, target_opset=OPSET, name=name)
    # The converter keeps operator sets in a set of strings, whose order differs from run to run.
    proto.opset_import.sort(key=lambda imported: imported.domain)
    return proto.SerializeToString(deterministic=True)


def fails_at_run():
    """A model of iris's signature that loads, and that fails for every input.

    It reads the element one past the end of its own input. How long the input is, is known only when it runs
    (N is dynamic), so neither the checker nor constant folding sees it.
    """
    weights = np.linspace(-1, 1, 4 * SPECIES, dtype=np.float32).reshape(4, SPECIES)
    nodes = [
        helper.make_node("Size", ["X"], ["past_the_end"]),
        helper.make_node("Reshape", ["X", "flat_shape"], ["flat"]),
        helper.make_node("Gather", ["flat", "past_the_end"], ["nothing"]),
        helper.make_node("MatMul", ["X", "weights"], ["weighted"]),
        helper.make_node("Add", ["weighted", "nothing"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "fails-at-run",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [None, 4])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, [None]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, SPECIES]),
        ],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.array([-1], dtype=np.int64), "flat_shape"),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString(deterministic=True)


def answers(path, rows):
    """What onnxruntime answers for the rows: {output: value}, maps as lists in the order of their keys."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: rows})
    named = {}
    for outlet, value in zip(session.get_outputs(), outputs, strict=True):
        if isinstance(value, list):
            value = np.array([[row[key] for key in sorted(row)] for row in value], dtype=np.float32)
        named[outlet.name] = value
    return named


def shortest(rows):
    """Rows as JSON numbers in their shortest form (5.1, not 5.099999904632568): the same float32 values."""
    return [[float(str(number)) for number in row] for row in rows]


def as_json(named):
    return {name: value.tolist() for name, value in named.items()}


def rows_of_disagreement(directory, features):
    """The rows on which a, b and c give three different labels, each with a clear lead."""
    given = {letter: answers(directory / f"iris-{letter}.onnx", features) for letter in "abc"}
    labels = np.stack([given[letter]["label"] for letter in "abc"])
    distinct = (labels[0] != labels[1]) & (labels[1] != labels[2]) & (labels[0] != labels[2])
    clear = np.ones(len(features), dtype=bool)
    for answer in given.values():
        ordered = np.sort(answer["probabilities"], axis=1)
        clear &= ordered[:, -1] - ordered[:, -2] >= LEAST_LEAD
    return features[np.flatnonzero(distinct & clear)]


def disagreement(directory, rows):
    """Each row is answered alone, as a client sends it."""
    found = {"rows": shortest(rows)}
    for letter in "abc":
        singles = [answers(directory / f"iris-{letter}.onnx", row[np.newaxis]) for row in rows]
        found[letter] = [int(single["label"][0]) for single in singles]
        found[f"{letter}_probabilities"] = [single["probabilities"][0].tolist() for single in singles]
    return found


def main():
    directory = Path(sys.argv[1])
    features, species = load_iris(return_X_y=True)
    features = features.astype(np.float32)

    models = {letter: train(features, species, shift, shift) for shift, letter in enumerate("abc")}
    for letter, model in models.items():
        (directory / f"iris-{letter}.onnx").write_bytes(export(model, features, f"iris-{letter}", zipmap=False))
    (directory / "iris-a-zipmap.onnx").write_bytes(export(models["a"], features, "iris-a-zipmap"))
    whole = (directory / "iris-a.onnx").read_bytes()
    (directory / "broken.onnx").write_bytes(whole[: len(whole) // 2])
    (directory / "fails-at-run.onnx").write_bytes(fails_at_run())

    rows = rows_of_disagreement(directory, features)
    if len(rows) < 20:
        raise SystemExit(f"iris: expected at least 20 rows on which a, b and c disagree clearly, found {len(rows)}")
    (directory / "disagree.json").write_text(json.dumps(disagreement(directory, rows)) + "\n")

    asked = rows[:: max(1, len(rows) // EXPECTED_ROWS)][:EXPECTED_ROWS]
    expected = {"onnxruntime": onnxruntime.__version__, "input": "X", "rows": shortest(asked), "models": {}}
    for name in ["iris-a", "iris-b", "iris-c", "iris-a-zipmap"]:
        expected["models"][name] = as_json(answers(directory / f"{name}.onnx", asked))
    (directory / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    print(f"iris: {len(rows)} rows of disagreement")


if __name__ == "__main__":
    main()
