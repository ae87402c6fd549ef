#!/usr/bin/env python3
"""Makes the small models that the runtime's process tests serve.

In: the directory to fill. Out, in that directory:
  identity-<type>.onnx   x [rows, 2] of that type -> y, unchanged; one for each type that the protocol names
  any-shape.onnx         x FP32 of no declared shape -> y, unchanged
  add.onnx               a, b INT32 [n] -> sum; both must have the same n
  columns.onnx           age INT64 [n, 1], city STRING [n, 1] -> age_out, city_out, unchanged
  repeat.onnx            rounds INT64 [1], x FP32 [1, 64] -> y after that many 64x64 products: takes as long as asked
  shaped.onnx            x FP32 [rows, 2], size INT64 [2] -> y of the shape that size says: fails for sizes that do not fit
  external/model.onnx    x FP32 [rows, 2] -> y = x + w, with w in model.onnx.data beside it
  names.onnx             iris with string labels, exported with skl2onnx's defaults: label, sequence(map(string, float))
  sequence-beside.onnx   x FP32 [2] -> y, and a sequence of tensors, which cannot be served
  sequence-only.onnx     x FP32 [2] -> only a sequence of tensors
"""

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSETS = [helper.make_opsetid("", 17)]

TYPES = {
    "bool": TensorProto.BOOL,
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
    "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64,
    "int8": TensorProto.INT8,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "fp32": TensorProto.FLOAT,
    "fp64": TensorProto.DOUBLE,
    "bytes": TensorProto.STRING,
}

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
tensor, node = helper.make_tensor_value_info, helper.make_node


def model(name, nodes, inputs, outputs, initializers=()):
    graph = helper.make_graph(nodes, name, inputs, outputs, initializer=list(initializers))
    return helper.make_model(graph, opset_imports=OPSETS, ir_version=8, producer_name="serin-tests")


def save(directory, name, made, **options):
    onnx.save(made, directory / f"{name}.onnx", **options)


def identities(directory):
    for name, kind in TYPES.items():
        ends = [tensor(end, kind, ["rows", 2]) for end in "xy"]
        save(directory, f"identity-{name}", model(name, [node("Identity", ["x"], ["y"])], ends[:1], ends[1:]))
    ends = [tensor(end, FLOAT, None) for end in "xy"]
    save(directory, "any-shape", model("any-shape", [node("Identity", ["x"], ["y"])], ends[:1], ends[1:]))


def several_inputs(directory):
    ends = [tensor(end, TensorProto.INT32, ["n"]) for end in ("a", "b", "sum")]
    save(directory, "add", model("add", [node("Add", ["a", "b"], ["sum"])], ends[:2], ends[2:]))
    columns = {"age": INT64, "city": STRING}
    nodes = [node("Identity", [name], [f"{name}_out"]) for name in columns]
    inputs = [tensor(name, kind, ["n", 1]) for name, kind in columns.items()]
    outputs = [tensor(f"{name}_out", kind, ["n", 1]) for name, kind in columns.items()]
    save(directory, "columns", model("columns", nodes, inputs, outputs))
    inputs = [tensor("x", FLOAT, ["rows", 2]), tensor("size", INT64, [2])]
    nodes = [node("Reshape", ["x", "size"], ["y"])]
    save(directory, "shaped", model("shaped", nodes, inputs, [tensor("y", FLOAT, ["a", "b"])]))


def repeat(directory):
    weights = numpy_helper.from_array(np.eye(64, dtype=np.float32), "weights")
    body = helper.make_graph(
        [node("Identity", ["go_on"], ["still"]), node("MatMul", ["state", "weights"], ["next"])],
        "round",
        [tensor("round", INT64, []), tensor("go_on", TensorProto.BOOL, []), tensor("state", FLOAT, [1, 64])],
        [tensor("still", TensorProto.BOOL, []), tensor("next", FLOAT, [1, 64])],
    )
    shape = numpy_helper.from_array(np.array([], dtype=np.int64), "scalar")
    nodes = [node("Reshape", ["rounds", "scalar"], ["count"]), node("Loop", ["count", "", "x"], ["y"], body=body)]
    inputs = [tensor("rounds", INT64, [1]), tensor("x", FLOAT, [1, 64])]
    save(directory, "repeat", model("repeat", nodes, inputs, [tensor("y", FLOAT, [1, 64])], [weights, shape]))


def external(directory):
    weights = numpy_helper.from_array(np.array([[10.0, 20.0]], dtype=np.float32), "w")
    ends = [tensor(end, FLOAT, ["rows", 2]) for end in "xy"]
    made = model("external", [node("Add", ["x", "w"], ["y"])], ends[:1], ends[1:], [weights])
    (directory / "external").mkdir(exist_ok=True)
    (directory / "external" / "model.onnx.data").unlink(missing_ok=True)
    onnx.save(
        made,
        directory / "external" / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=0,
    )


def sequences(directory):
    sequence = helper.make_tensor_sequence_value_info("parts", FLOAT, None)
    split = node("SplitToSequence", ["x"], ["parts"], axis=0)
    x, y = tensor("x", FLOAT, [2]), tensor("y", FLOAT, [2])
    save(directory, "sequence-beside", model("s", [split, node("Neg", ["x"], ["y"])], [x], [y, sequence]))
    save(directory, "sequence-only", model("s", [split], [x], [sequence]))


def names(directory):
    from skl2onnx import to_onnx
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    flowers = load_iris()
    features = flowers.data.astype(np.float32)
    labels = flowers.target_names[flowers.target]
    trained = LogisticRegression(max_iter=500).fit(features, labels)
    (directory / "names.onnx").write_bytes(to_onnx(trained, features[:1]).SerializeToString())


def main():
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for make in (identities, several_inputs, repeat, external, sequences, names):
        make(directory)


if __name__ == "__main__":
    main()
