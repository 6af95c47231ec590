"""Small ONNX graphs with the inputs and outputs of a YOLO segmentation export, for tests of the builder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STRIDES = (8, 16, 32)


def segmentation_export(
    path: Path,
    *,
    classes: int = 3,
    height: int = 64,
    width: int = 64,
    coefficients: int = 32,
    opset: int = 17,
    metadata: dict[str, str] | None = None,
    element: int = TensorProto.FLOAT,
    outputs: tuple[str, ...] = ("output0", "output1"),
    extra_node: onnx.NodeProto | None = None,
) -> Path:
    """Write an export of batch 1 with random weights, the batch baked into its Reshape constants."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def constant(name: str, value: np.ndarray[Any, Any]) -> str:
        weights.append(numpy_helper.from_array(value, name))
        return name

    def conv(name: str, source: str, channels: tuple[int, int], stride: int) -> str:
        shape = (channels[1], channels[0], stride, stride)
        scale = 1.0 / np.sqrt(channels[0] * stride * stride)
        kernel = constant(f"{name}.weight", (rng.standard_normal(shape) * scale).astype(np.float32))
        nodes.append(
            helper.make_node("Conv", [source, kernel], [name], name=name, strides=[stride, stride], pads=[0, 0, 0, 0])
        )
        return name

    channels = 4 + classes + coefficients
    flat = []
    for stride in STRIDES:
        feature = conv(f"stem{stride}", "images", (3, 16), stride)
        head = conv(f"head{stride}", feature, (16, channels), 1)
        shape = constant(f"shape{stride}", np.array([1, channels, (height // stride) * (width // stride)], np.int64))
        nodes.append(helper.make_node("Reshape", [head, shape], [f"flat{stride}"], name=f"reshape{stride}"))
        flat.append(f"flat{stride}")
    nodes.append(helper.make_node("Concat", flat, ["raw"], name="concat", axis=2))
    sizes = constant("sizes", np.array([4, classes, coefficients], np.int64))
    nodes.append(helper.make_node("Split", ["raw", sizes], ["distance", "logits", "mask"], name="split", axis=1))
    nodes.append(helper.make_node("Sigmoid", ["logits"], ["scores"], name="sigmoid"))
    factor = constant("factor", np.array(40.0, np.float32))
    nodes.append(helper.make_node("Abs", ["distance"], ["size"], name="abs"))
    nodes.append(helper.make_node("Mul", ["size", factor], ["boxes"], name="scale"))
    nodes.append(helper.make_node("Concat", ["boxes", "scores", "mask"], ["output0"], name="detections", axis=1))
    conv("output1", "images", (3, coefficients), 4)
    if extra_node is not None:
        nodes.append(extra_node)
    anchors = sum((height // stride) * (width // stride) for stride in STRIDES)
    shapes = {
        "output0": [1, channels, anchors],
        "output1": [1, coefficients, height // 4, width // 4],
    }
    graph = helper.make_graph(
        nodes,
        "export",
        [helper.make_tensor_value_info("images", element, [1, 3, height, width])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in outputs],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return path
