"""A small served network with what those of YOLO's families have, in halves and, with the same weights, in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROWS = 50
COEFFICIENTS = 32
SIZE = 64, 96


class Graph:
    """Nodes over [batch, channels, height, width], named by their number."""

    def __init__(self, half: bool, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.half = half
        self.random = np.random.default_rng(seed)

    def add(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"{kind.lower()}{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, name=names[0], **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, value: Any, half: bool = False) -> str:
        array = np.asarray(value)
        name = f"constant{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array.astype(np.float16) if half and self.half else array, name))
        return name

    def cast(self, source: str, half: bool) -> str:
        if not self.half:
            return source
        return self.add("Cast", source, to=TensorProto.FLOAT16 if half else TensorProto.FLOAT)

    def weight(self, *shape: int, spread: float = 1.0) -> str:
        deviation = spread / np.sqrt(np.prod(shape[1:]))
        # Rounded, so that halves and single precision have the same ones.
        value = (self.random.standard_normal(shape) * deviation).astype(np.float16).astype(np.float32)
        return self.constant(value, half=True)

    def conv(
        self,
        x: str,
        given: int,
        count: int,
        size: int = 1,
        stride: int = 1,
        act: bool = True,
        groups: int = 1,
        **more: Any,
    ) -> str:
        pads = more.get("pads", [size // 2] * 4)
        weight, bias = self.weight(count, given // groups, size, size, spread=1.5), self.weight(count, spread=0.3)
        y = self.add("Conv", x, weight, bias, pads=pads, strides=[stride] * 2, group=groups, kernel_shape=[size] * 2)
        return str(self.add("Mul", y, self.add("Sigmoid", y))) if act else str(y)


def served_network(
    path: Path,
    half: bool = True,
    classes: int = 3,
    bins: int = 16,
    stem: tuple[int, int, int] = (3, 2, 1),
    attention: bool = True,
) -> Path:
    """Write a network as the builder leaves it.

    Args:
        path: file to write.
        half: whether its layers are in halves.
        classes: how many.
        bins: of each distance; 1: none.
        stem: size, stride and padding of the first convolution.
        attention: whether there is some, which stays ONNX.
    """
    g = Graph(half)
    x = g.add("Cast", "images", to=TensorProto.FLOAT)
    x = g.add("Div", g.add("Transpose", x, perm=[0, 3, 1, 2]), g.constant(np.float32(255)))
    x = g.cast(x, half=True)
    size, stride, padding = stem
    x = g.conv(x, 3, 16, size, stride, pads=[padding] * 4)
    x = g.conv(x, 16, 32, 3, 4 // stride)
    # C2f: parts of a split, sums and all of them side by side
    x = g.conv(x, 32, 32)
    left, right = g.add("Split", x, g.constant(np.array([16, 16])), outputs=2, axis=1)
    inner = g.add("Add", right, g.conv(g.conv(right, 16, 16, 3), 16, 16, 3))
    x = g.add("Concat", left, right, inner, axis=1)
    small = g.conv(x, 48, 32)
    # ADown: mean, halves by Slice, maxima; a depthwise convolution with a sum; a sum by itself
    mean = g.add("AveragePool", small, kernel_shape=[2, 2], strides=[2, 2])
    front = g.add("Slice", mean, *(g.constant(np.array([value])) for value in (0, 16, 1)))
    back = g.add("Slice", mean, *(g.constant(np.array([value])) for value in (16, 32, 1)))
    deep = g.conv(back, 16, 16, 3, groups=16)
    middle = g.add("Concat", g.add("Add", front, deep), g.add("Add", deep, back), axis=1)
    # SPPF; and attention over all pixels
    first = g.conv(middle, 32, 16)
    pools = [first]
    for _ in range(2):
        pools.append(g.add("MaxPool", pools[-1], kernel_shape=[5, 5], strides=[1, 1], pads=[2] * 4))
    middle = g.conv(g.add("Concat", *pools, axis=1), 48, 32)
    high, wide = SIZE[0] // 8, SIZE[1] // 8
    if attention:
        flat = g.add("Reshape", g.conv(middle, 32, 96, act=False), g.constant(np.array([0, 96, high * wide])))
        query, key, value = g.add("Split", flat, g.constant(np.array([32, 32, 32])), outputs=3, axis=1)
        weights = g.add("MatMul", g.add("Transpose", query, perm=[0, 2, 1]), key)
        weights = g.add("Softmax", weights, axis=-1)
        mixed = g.add("MatMul", value, g.add("Transpose", weights, perm=[0, 2, 1]))
        mixed = g.add("Reshape", mixed, g.constant(np.array([0, 32, high, wide])))
        middle = g.add("Add", middle, g.conv(mixed, 32, 32, act=False))
    scales = g.constant(np.array([1, 1, 2, 2], np.float32))
    options = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    large = g.conv(g.add("Concat", g.add("Resize", middle, "", scales, **options), small, axis=1), 64, 32, 3)
    transposed = g.add("ConvTranspose", large, g.weight(32, 32, 2, 2), g.weight(32, spread=0.3), strides=[2, 2])
    prototypes = g.conv(g.conv(transposed, 32, 32, 3, 2), 32, COEFFICIENTS)
    _candidates(g, [(large, 32, 4), (middle, 32, 8)], classes, bins)
    g.nodes[-1].output[0] = "candidates"
    g.nodes.append(helper.make_node("Cast", [g.cast(prototypes, half=False)], ["prototypes"], to=TensorProto.FLOAT16))
    ends = [
        ("images", TensorProto.UINT8, (*SIZE, 3)),
        ("candidates", TensorProto.FLOAT, (ROWS, 6 + COEFFICIENTS)),
        ("prototypes", TensorProto.FLOAT16, (COEFFICIENTS, SIZE[0] // 4, SIZE[1] // 4)),
    ]
    image, *outputs = (helper.make_tensor_value_info(name, kind, ["batch", *shape]) for name, kind, shape in ends)
    graph = helper.make_graph(g.nodes, "served", [image], outputs, g.weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _candidates(g: Graph, levels: list[tuple[str, int, int]], classes: int, bins: int) -> None:
    flat, points, strides = [], [], []
    for x, channels, stride in levels:
        high, wide = SIZE[0] // stride, SIZE[1] // stride
        parts = [
            g.conv(g.conv(x, channels, 32, 3), 32, count, act=False) for count in (4 * bins, classes, COEFFICIENTS)
        ]
        parts = [g.cast(part, half=False) for part in parts]
        joined = g.add("Concat", *parts, axis=1)
        count = 4 * bins + classes + COEFFICIENTS
        flat.append(g.add("Reshape", joined, g.constant(np.array([0, count, high * wide]))))
        y, x_ = np.mgrid[:high, :wide] + 0.5
        points.append(np.stack([x_.ravel(), y.ravel()]))
        strides.append(np.full(high * wide, stride))
    everything = g.add("Concat", *flat, axis=2)
    sizes = g.constant(np.array([4 * bins, classes, COEFFICIENTS]))
    box, logits, coefficients = g.add("Split", everything, sizes, outputs=3, axis=1)
    count = sum(part.shape[1] for part in points)
    if bins > 1:
        box = g.add("Reshape", box, g.constant(np.array([0, 4, bins, count])))
        box = g.add("Softmax", g.add("Transpose", box, perm=[0, 2, 1, 3]), axis=1)
        box = g.add("Conv", box, g.constant(np.arange(bins, dtype=np.float32).reshape(1, bins, 1, 1)))
        box = g.add("Reshape", box, g.constant(np.array([0, 4, count])))
    near, far = g.add("Split", box, g.constant(np.array([2, 2])), outputs=2, axis=1)
    grid = g.constant(np.concatenate(points, 1)[None].astype(np.float32))
    begin, end = g.add("Sub", grid, near), g.add("Add", grid, far)
    center = g.add("Div", g.add("Add", begin, end), g.constant(np.float32(2)))
    box = g.add("Concat", center, g.add("Sub", end, begin), axis=1)
    box = g.add("Mul", box, g.constant(np.concatenate(strides)[None].astype(np.float32)))
    scores = g.add("Sigmoid", logits)
    kind = g.add("Cast", g.add("ArgMax", scores, axis=1, keepdims=1), to=TensorProto.FLOAT)
    planes = g.add("Concat", box, kind, coefficients, axis=1)
    best, index = g.add(
        "TopK", g.add("ReduceMax", scores, axes=[1], keepdims=0), g.constant(np.array([ROWS])), outputs=2
    )
    index = g.add("Unsqueeze", index, g.constant(np.array([1])))
    index = g.add("Expand", index, g.constant(np.array([1, 5 + COEFFICIENTS, ROWS])))
    rows = g.add("Transpose", g.add("GatherElements", planes, index, axis=2), perm=[0, 2, 1])
    g.add("Concat", g.add("Unsqueeze", best, g.constant(np.array([2]))), rows, axis=2)
