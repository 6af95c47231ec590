"""The small export of :mod:`tests.exports` in the layouts of other families, for tests of the builder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.exports import segmentation_export

COEFFICIENTS = 32


class _Graph:
    """An export that is being extended behind its detections."""

    def __init__(self, path: Path, classes: int, **options: Any) -> None:
        self.path = segmentation_export(path, classes=classes, **options)
        self.model = onnx.load(path)
        self.graph = self.model.graph
        next(node for node in self.graph.node if node.output[0] == "output0").output[0] = "head"
        self._count = 0

    def constant(self, value: Any, kind: Any = np.int64) -> str:
        name = f"constant_{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(np.array(value, kind), name))
        return name

    def node(self, operator: str, *inputs: str, to: str | None = None, **attributes: Any) -> str:
        self._count += 1
        output = to or f"{operator.lower()}_{self._count}"
        self.graph.node.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def split(self, source: str, *sizes: int, axis: int = 1) -> list[str]:
        names = [f"{source}_{index}" for index in range(len(sizes))]
        self.graph.node.append(
            helper.make_node("Split", [source, self.constant(list(sizes))], names, name=f"{source}_split", axis=axis)
        )
        return names

    def corners(self, classes: int) -> tuple[str, str, str]:
        """Boxes as corners, scores and coefficients out of the head's channels."""
        center, size, scores, coefficients = self.split("head", 2, 2, classes, COEFFICIENTS)
        half = self.node("Mul", size, self.constant(0.5, np.float32))
        boxes = self.node("Concat", self.node("Sub", center, half), self.node("Add", center, half), axis=1)
        return boxes, scores, coefficients

    def save(self, shape: list[Any], metadata: dict[str, str] | None = None) -> Path:
        outputs = [helper.make_tensor_value_info("output0", TensorProto.FLOAT, shape), self.graph.output[1]]
        copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in outputs]
        del self.graph.output[:]
        self.graph.output.extend(copies)
        helper.set_model_props(self.model, metadata or {})
        onnx.checker.check_model(self.model)
        onnx.save(self.model, self.path)
        return self.path


def names(classes: int) -> dict[str, str]:
    """Metadata with the names of so many classes."""
    return {"names": str({index: f"thing {index}" for index in range(classes)})}


def end_to_end_export(
    path: Path, *, classes: int = 3, rows: int = 30, metadata: dict[str, str] | None = None, **options: Any
) -> Path:
    """Rows of x1, y1, x2, y2, score, class, coefficients, the best first."""
    graph = _Graph(path, classes, **options)
    boxes, scores, coefficients = graph.corners(classes)
    best = graph.node("ReduceMax", scores, axes=[1], keepdims=1)
    number = _cast(graph, graph.node("ArgMax", scores, axis=1, keepdims=1))
    planes = graph.node("Concat", boxes, best, number, coefficients, axis=1)
    graph.graph.node.append(
        helper.make_node("TopK", [best, graph.constant([rows])], ["top_score", "top"], name="topk", axis=2)
    )
    index = graph.node("Expand", "top", graph.constant([1, 6 + COEFFICIENTS, rows]))
    chosen = graph.node("GatherElements", planes, index, axis=2)
    graph.node("Transpose", chosen, to="output0", perm=[0, 2, 1])
    return graph.save(
        [options.get("batch", 1), rows, 6 + COEFFICIENTS], names(classes) if metadata is None else metadata
    )


def old_end_to_end_export(path: Path, *, classes: int = 3, rows: int = 30, **options: Any) -> Path:
    """The same as ultralytics 8.4.0 to 8.4.141 built it: the best anchors, then the best pairs of anchor and class.

    The indices of the anchors are laid flat over the whole batch, and an offset per image is baked in.
    """
    graph = _Graph(path, classes, **options)
    batch = options.get("batch", 1)
    boxes, scores, coefficients = graph.corners(classes)
    graph.node("Concat", boxes, scores, coefficients, to="joined", axis=1)
    turned = graph.node("Transpose", "joined", perm=[0, 2, 1])
    box, score, extra = graph.split(turned, 4, classes, COEFFICIENTS, axis=2)
    count = graph.constant([rows])

    def top(source: str, name: str) -> tuple[str, str]:
        outputs = [f"{name}_values", f"{name}_index"]
        graph.graph.node.append(helper.make_node("TopK", [source, count], outputs, name=name, axis=-1))
        return outputs[0], outputs[1]

    def gather(source: str, index: str, values: int) -> str:
        return graph.node("GatherElements", source, graph.node("Tile", index, graph.constant([1, 1, values])), axis=1)

    _, anchors = top(graph.node("ReduceMax", score, axes=[-1], keepdims=0), "anchors")
    anchors = graph.node("Unsqueeze", anchors, graph.constant([-1]))
    flat = graph.node("Flatten", anchors, axis=2)
    best, pair = top(graph.node("Flatten", gather(score, anchors, classes), axis=1), "pairs")
    slot = graph.node("Div", pair, graph.constant(classes))
    if batch > 1:
        slot = graph.node("Add", slot, graph.constant([[rows * image] for image in range(batch)]))
    index = graph.node("Gather", flat, slot, axis=0)
    number = _cast(
        graph, graph.node("Unsqueeze", graph.node("Mod", pair, graph.constant(classes)), graph.constant([2]))
    )
    columns = [gather(box, index, 4), graph.node("Unsqueeze", best, graph.constant([2])), number]
    graph.node("Concat", *columns, gather(extra, index, COEFFICIENTS), to="output0", axis=-1)
    return graph.save([batch, rows, 6 + COEFFICIENTS], names(classes))


def suppressed_export(
    path: Path,
    *,
    classes: int = 3,
    confidence: float = 0.6,
    iou: float = 0.5,
    rows: int = 50,
    agnostic: bool = False,
    **options: Any,
) -> Path:
    """Suppression inside, as ultralytics builds it for a batch of one."""
    graph = _Graph(path, classes, **options)
    size = max(options.get("height", 64), options.get("width", 64))
    boxes, scores, coefficients = graph.corners(classes)
    # Nowhere near the border: ultralytics tells classes apart by moving them by the input's size alone.
    boxes = graph.node("Clip", boxes, graph.constant(0.0, np.float32), graph.constant(float(size), np.float32))
    graph.node("Concat", boxes, scores, coefficients, to="joined", axis=1)
    turned = graph.node("Transpose", "joined", perm=[0, 2, 1])
    box, score, extra = graph.split(turned, 4, classes, COEFFICIENTS, axis=2)
    first = graph.constant(0)
    best = graph.node("Gather", graph.node("ReduceMax", score, axes=[2], keepdims=0), first, axis=0)
    number = graph.node("Gather", graph.node("ArgMax", score, axis=2, keepdims=0), first, axis=0)
    chosen = graph.node("NonZero", graph.node("Greater", best, graph.constant(confidence, np.float32)))
    chosen = graph.node("Transpose", chosen, perm=[1, 0])
    box = graph.node("GatherND", graph.node("Gather", box, first, axis=0), chosen)
    extra = graph.node("GatherND", graph.node("Gather", extra, first, axis=0), chosen)
    best = graph.node("GatherND", best, chosen)
    number = _cast(graph, graph.node("GatherND", number, chosen))
    number = graph.node("Unsqueeze", number, graph.constant([1]))
    offset = graph.node("Mul", number, graph.constant(0.0 if agnostic else float(size), np.float32))
    moved = box if agnostic else graph.node("Add", box, offset)
    kept = graph.node(
        "NonMaxSuppression",
        graph.node("Unsqueeze", moved, graph.constant([0])),
        graph.node("Unsqueeze", best, graph.constant([0, 1])),
        graph.constant([1 << 60]),
        graph.constant([iou], np.float32),
    )
    kept = graph.node("Squeeze", graph.node("Gather", kept, graph.constant([2]), axis=1), graph.constant([1]))
    kept = graph.node("Slice", kept, graph.constant([0]), graph.constant([rows]))
    columns = [box, graph.node("Unsqueeze", best, graph.constant([1])), number, extra]
    found = graph.node("Concat", *(graph.node("Gather", column, kept, axis=0) for column in columns), axis=1)
    missing = graph.node(
        "Sub", graph.constant([rows, 0]), graph.node("Mul", graph.node("Shape", found), graph.constant([1, 0]))
    )
    padded = graph.node("Pad", found, graph.node("Concat", graph.constant([0, 0]), missing, axis=0))
    graph.node("Unsqueeze", padded, graph.constant([0]), to="output0")
    return graph.save([1, rows, 6 + COEFFICIENTS], names(classes))


def _cast(graph: _Graph, source: str) -> str:
    output = f"{source}_float"
    graph.graph.node.append(helper.make_node("Cast", [source], [output], name=output, to=TensorProto.FLOAT))
    return output


def objectness_export(path: Path, *, classes: int = 3, metadata: dict[str, str] | None = None, **options: Any) -> Path:
    """Three anchors per cell, objectness before the classes, anchors before channels: YOLOv5's layout."""
    graph = _Graph(path, classes + 1, **options)
    box, scores, coefficients = graph.split("head", 4, classes + 1, COEFFICIENTS)
    parts = []
    for factor in (1.0, 0.8, 0.5):
        weight = graph.constant(factor, np.float32)
        parts.append(
            graph.node(
                "Concat", graph.node("Mul", box, weight), graph.node("Mul", scores, weight), coefficients, axis=1
            )
        )
    graph.node("Transpose", graph.node("Concat", *parts, axis=2), to="output0", perm=[0, 2, 1])
    height, width = options.get("height", 64), options.get("width", 64)
    cells = sum((height // stride) * (width // stride) for stride in (8, 16, 32))
    return graph.save([options.get("batch", 1), 3 * cells, 5 + classes + COEFFICIENTS], metadata)


def query_export(path: Path, *, classes: int = 3, queries: int = 12, **options: Any) -> Path:
    """Boxes as shares of the input, class logits and a ready mask per query, as RF-DETR-seg gives them; no metadata."""
    size = {"height": 64, "width": 96, **options}
    graph = _Graph(path, classes, batch=None, **options)
    some = graph.node("Slice", "head", graph.constant([0]), graph.constant([queries]), graph.constant([2]))
    turned = graph.node("Transpose", some, perm=[0, 2, 1])
    box, score, weights = graph.split(turned, 4, classes, COEFFICIENTS, axis=2)
    sides = graph.constant([size["width"], size["height"]] * 2, np.float32)
    graph.node("Div", box, sides, to="dets")
    odds = graph.node("Div", score, graph.node("Sub", graph.constant(1, np.float32), score))
    graph.node("Log", odds, to="labels")
    cells = [size["height"] // 4, size["width"] // 4]
    flat = graph.node("Reshape", "output1", graph.constant([0, COEFFICIENTS, cells[0] * cells[1]]))
    graph.node("Reshape", graph.node("MatMul", weights, flat), graph.constant([0, queries, *cells]), to="masks")
    shapes = {"dets": [queries, 4], "labels": [queries, classes], "masks": [queries, *cells]}
    del graph.graph.output[:]
    graph.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]) for name, shape in shapes.items()
    )
    onnx.checker.check_model(graph.model)
    onnx.save(graph.model, path)
    return path
