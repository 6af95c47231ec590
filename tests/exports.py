"""Small ONNX graphs with the inputs and outputs of a YOLO segmentation export, for tests of the builder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STRIDES = (8, 16, 32)
_ALLOWZERO_SINCE_OPSET = 14


def segmentation_export(
    path: Path,
    *,
    classes: int = 3,
    height: int = 64,
    width: int = 64,
    coefficients: int = 32,
    opset: int = 17,
    metadata: dict[str, str] | None = None,
    outputs: tuple[str, ...] = ("output0", "output1"),
    batch: int | None = 1,
    sigmoid: bool = True,
    strides: tuple[int, ...] = STRIDES,
) -> Path:
    """Write an export with random weights.

    Args:
        path: file to write.
        classes: number of classes.
        height: of the input; of a dynamic export, what it is meant for.
        width: likewise.
        coefficients: mask coefficients.
        opset: 13 or newer.
        metadata: the file's properties.
        outputs: names of the outputs that are declared.
        batch: baked into the Reshape constants; None leaves batch, height and width dynamic, as a traced export does:
            shapes and the grid of the anchors are then made by nodes, the grid with a Reshape to [1, -1] that has
            nothing to do with the batch.
        sigmoid: whether scores leave as such, or as logits.
        strides: of the heads; P6 models have a fourth one, 64.
    """
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
    for stride in strides:
        feature = conv(f"stem{stride}", "images", (3, 16), stride)
        head = conv(f"head{stride}", feature, (16, channels), 1)
        if batch is None:
            shape = constant(f"shape{stride}", np.array([0, channels, -1], np.int64))
            _grid(nodes, constant, head, stride)
        else:
            cells = (height // stride) * (width // stride)
            shape = constant(f"shape{stride}", np.array([batch, channels, cells], np.int64))
        # torch's newer exporter sets allowzero, under which a 0 is no longer the input's own size.
        exact: dict[str, Any] = {"allowzero": 1} if batch is not None and opset >= _ALLOWZERO_SINCE_OPSET else {}
        nodes.append(helper.make_node("Reshape", [head, shape], [f"flat{stride}"], name=f"reshape{stride}", **exact))
        flat.append(f"flat{stride}")
    nodes.append(helper.make_node("Concat", flat, ["raw"], name="concat", axis=2))
    sizes = constant("sizes", np.array([4, classes, coefficients], np.int64))
    nodes.append(helper.make_node("Split", ["raw", sizes], ["distance", "logits", "mask"], name="split", axis=1))
    nodes.append(helper.make_node("Sigmoid" if sigmoid else "Identity", ["logits"], ["scores"], name="sigmoid"))
    factor = constant("factor", np.array(40.0, np.float32))
    nodes.append(helper.make_node("Abs", ["distance"], ["size"], name="abs"))
    if batch is None:
        nodes.append(helper.make_node("Mul", ["size", factor], ["around"], name="scale"))
        nodes.append(helper.make_node("Concat", [f"grid{s}" for s in strides], ["grid"], name="grid", axis=2))
        nodes.append(helper.make_node("Add", ["around", "grid"], ["boxes"], name="place"))
    else:
        nodes.append(helper.make_node("Mul", ["size", factor], ["boxes"], name="scale"))
    nodes.append(helper.make_node("Concat", ["boxes", "scores", "mask"], ["output0"], name="detections", axis=1))
    conv("output1", "images", (3, coefficients), 4)
    anchors = sum((height // stride) * (width // stride) for stride in strides)
    shapes: dict[str, list[int | str]] = {
        "output0": [batch or "batch", channels, anchors if batch else "anchors"],
        "output1": [
            batch or "batch",
            coefficients,
            height // 4 if batch else "rows",
            width // 4 if batch else "columns",
        ],
    }
    image: list[int | str] = [batch, 3, height, width] if batch else ["batch", 3, "height", "width"]
    graph = helper.make_graph(
        nodes,
        "export",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in outputs],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return path


def _grid(nodes: list[onnx.NodeProto], constant: Callable[[str, Any], str], feature: str, stride: int) -> None:
    """Centers of a feature map's cells, ``grid<stride>`` [1, 4, cells] of x, y, 0, 0, as torch traces meshgrid."""

    def node(operator: str, name: str, inputs: list[str], **attributes: Any) -> str:
        name = f"{name}{stride}"
        nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def at(name: str, value: Any) -> str:
        return constant(f"{name}{stride}", np.array(value))

    sizes = node("Shape", "sizes", [feature])
    axes = []
    for axis, index in (("rows", 2), ("columns", 3)):
        count = node("Gather", f"{axis}_count", [sizes, at(f"{axis}_index", np.int64(index))])
        steps = node("Range", f"{axis}_range", [at(f"{axis}_0", np.int64(0)), count, at(f"{axis}_1", np.int64(1))])
        axes.append(node("Cast", f"{axis}_float", [steps], to=TensorProto.FLOAT))
    down = node("Reshape", "down", [axes[0], at("down_shape", np.array([-1, 1], np.int64))])
    across = node("Reshape", "across", [axes[1], at("across_shape", np.array([1, -1], np.int64))])
    whole = node("Slice", "whole", [sizes, at("from", np.array([2])), at("to", np.array([4]))])
    x, y = (node("Expand", f"grid_{name}", [line, whole]) for name, line in (("x", across), ("y", down)))
    axis = at("last", np.array([-1], np.int64))
    planes = [node("Unsqueeze", f"plane_{name}", [plane, axis]) for name, plane in (("x", x), ("y", y))]
    points = node("Reshape", "points", [node("Concat", "pairs", planes, axis=2), at("pairs_shape", np.array([-1, 2]))])
    pixels = node("Mul", "pixels", [points, at("stride", np.float32(stride))])
    centers = node(
        "Unsqueeze", "centers", [node("Transpose", "turned", [pixels], perm=[1, 0]), at("first", np.array([0]))]
    )
    nothing = node("Mul", "nothing", [centers, at("zero", np.float32(0))])
    node("Concat", "grid", [centers, nothing], axis=1)
