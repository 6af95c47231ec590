"""Graph surgery: a dynamic batch axis, and the ends that keep the traffic between the ensemble's steps small.

In front: uint8 [batch, H, W, 3] -> Cast -> Transpose -> / 255, bit for bit what ultralytics feeds. Behind: of every
anchor its best class (ReduceMax, ArgMax), of every image its best K anchors (TopK, GatherElements); the prototypes
leave as float16.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from builder.export import Export
from pipeline import contract

BATCH = contract.BATCH_DIMENSION
_NETWORK_INPUT = "network_input"
_PREFIX = "ends"
PROTOTYPES_NODE = f"{_PREFIX}/prototypes"
"""The grafted node that takes the prototypes out of the network."""
_REDUCE_AXES_ARE_INPUTS_SINCE_OPSET = 18
_SHAPES = ("Shape", "Size")


@dataclass(frozen=True)
class Head:
    """The part of the network that turns features into boxes, scores and coefficients.

    Attributes:
        decode_nodes: names of the nodes behind the last convolutions (DFL, anchors, sigmoid, concatenations).
        output_convolutions: names of the last convolutions themselves.
    """

    decode_nodes: tuple[str, ...]
    output_convolutions: tuple[str, ...]


def name_nodes(model: onnx.ModelProto) -> None:
    """Give every node without a name one, so that exclusions can refer to it."""
    taken = {node.name for node in model.graph.node}
    for index, node in enumerate(model.graph.node):
        if not node.name:
            node.name = f"{node.op_type}_{index}"
            while node.name in taken:
                node.name += "_"
            taken.add(node.name)


def make_batch_dynamic(model: onnx.ModelProto, export: Export) -> onnx.ModelProto:
    """Make the batch axis dynamic; exports are often of one batch, baked into constant shapes.

    A graph whose batch is dynamic already keeps its nodes as they are. What comes out is proven elsewhere, against the
    export's own file (:func:`builder.source_check.check_source`).

    Args:
        model: the export's graph (not changed).
        export: what the export holds.

    Returns:
        A new graph with float32 input ``network_input`` [batch, 3, H, W] and the export's two outputs.
    """
    model = copy.deepcopy(model)
    known = _shapes_of(model) if export.batch is not None else {}
    name_nodes(model)
    graph = model.graph
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == export.input_name:
                node.input[index] = _NETWORK_INPUT
    value = next(value for value in graph.input if value.name == export.input_name)
    value.name = _NETWORK_INPUT
    value.type.tensor_type.shape.dim[0].dim_param = BATCH
    shapes: dict[str, list[str | int | None]] = {
        export.detections_name: [BATCH, 4 + export.num_classes + export.num_coefficients, export.num_anchors],
        export.prototypes_name: [
            BATCH,
            export.num_coefficients,
            export.input_height // 4,
            export.input_width // 4,
        ],
    }
    kept = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    del graph.output[:]
    graph.output.extend(kept)
    del graph.value_info[:]
    if export.batch is not None:
        _free_batch(graph, export.batch, known)
    return model


def _free_batch(graph: onnx.GraphProto, batch: int, shapes: Mapping[str, Sequence[int]]) -> None:
    """Take the batch out of constant shapes that image data is reshaped to.

    What is made of shapes alone, such as the grid of the anchors, has no batch: a leading 1 there means something else.

    Args:
        graph: the network.
        batch: the batch that is baked in.
        shapes: of the tensors, for that batch.
    """
    constants = _constant_tensors(graph)
    from_image = _made_of_images(graph)
    present = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in ("Reshape", "Expand") or node.input[0] not in from_image:
            continue
        if node.input[1] not in constants:
            continue
        wanted = numpy_helper.to_array(constants[node.input[1]])
        if wanted.ndim != 1 or len(wanted) < 2 or wanted[0] < 1 or wanted[0] % batch:
            continue
        free = _without_batch(node, wanted, shapes)
        name = f"{node.input[1]}_any_batch_{'_'.join(map(str, free))}".replace("-", "m")
        if name not in present:
            graph.initializer.append(numpy_helper.from_array(np.array(free, np.int64), name))
            present.add(name)
        node.input[1] = name
        # Exports by torch's newer exporter say that a 0 means no element; here it means the input's own size.
        for attribute in [entry for entry in node.attribute if entry.name == "allowzero"]:
            node.attribute.remove(attribute)
    used = {name for node in graph.node for name in node.input}
    for node in [node for node in graph.node if node.op_type == "Constant" and node.output[0] not in used]:
        graph.node.remove(node)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _without_batch(node: onnx.NodeProto, wanted: NDArray[Any], shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    """The constant shape of a node, for any batch."""
    rest = tuple(int(size) for size in wanted[1:])
    if node.op_type == "Expand":
        return (1, *rest)  # the batch of what is expanded stays
    before, after = shapes.get(node.input[0], ()), shapes.get(node.output[0], ())
    if not after or (before and before[0] == wanted[0]):
        return (0, *rest)  # Reshape takes the leading axis of its input for a 0
    return (-1, *after[1:])  # such as batch x areas of an attention that works area by area


def _shapes_of(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors whose every side is known."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    return {name: shape for name, shape in shapes.items() if shape and all(shape)}


def _made_of_images(graph: onnx.GraphProto) -> set[str]:
    """Tensors whose values depend on the pixels, and not on the input's shape alone."""
    found = {graph.input[0].name}
    for node in graph.node:
        if node.op_type not in _SHAPES and found.intersection(node.input):
            found.update(node.output)
    return found


def _constant_tensors(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """Tensors whose value is fixed: the initializers, and what Constant nodes put out."""
    constants = {
        node.output[0]: attribute.t
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }
    constants.update({tensor.name: tensor for tensor in graph.initializer})
    return constants


def find_head(model: onnx.ModelProto, export: Export) -> Head:
    """Find the decoding tail and the last convolutions, walking back from the detections.

    The DFL's own convolution, whose weights are the fixed numbers 0, 1, 2, … behind a softmax (Li et al., 2020),
    belongs to the tail: quantizing it costs accuracy and saves nothing. Shapes are not followed: what the anchors' grid
    measures is no part of the head.
    """
    producers = {output: node for node in model.graph.node for output in node.output}
    constants = _constant_tensors(model.graph)
    decode: list[str] = []
    convolutions: list[str] = []
    queue = deque([producers[export.detections_name]])
    seen: set[str] = set()
    while queue:
        node = queue.popleft()
        if node.name in seen:
            continue
        seen.add(node.name)
        if node.op_type == "Conv" and not _counts_up(constants.get(node.input[1])):
            convolutions.append(node.name)
            continue
        decode.append(node.name)
        if node.op_type in _SHAPES:
            continue
        queue.extend(producers[name] for name in node.input if name in producers)
    return Head(tuple(sorted(decode)), tuple(sorted(convolutions)))


def _counts_up(weights: TensorProto | None) -> bool:
    if weights is None:
        return False
    values = numpy_helper.to_array(weights).ravel()
    return bool(np.array_equal(values, np.arange(len(values))))


def graft_ends(model: onnx.ModelProto, export: Export, top_k: int = contract.DEFAULT_TOP_K) -> onnx.ModelProto:
    """Put the pre- and postprocessing ends on a network of dynamic batch.

    Args:
        model: graph with float32 (or float16) input ``network_input`` and the export's two outputs; not changed.
        export: what the export holds.
        top_k: anchors that leave per image; fewer if the network has fewer.

    Returns:
        A graph with the input ``images`` uint8 [batch, H, W, 3] RGB and the outputs ``candidates`` float32
        [batch, K, 6 + C] (rows of score, cx, cy, w, h, class, C coefficients, by falling score) and
        ``prototypes`` float16 [batch, C, H/4, W/4].
    """
    model = copy.deepcopy(model)
    graph = model.graph
    top_k = min(top_k, export.num_anchors, contract.MAX_TOP_K)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    front = _front(graph)
    behind = _behind(export, opset)
    body = list(graph.node)
    del graph.node[:]
    graph.node.extend([*front, *body, *behind])
    del graph.input[:]
    graph.input.append(
        helper.make_tensor_value_info(
            contract.IMAGES.name, TensorProto.UINT8, [BATCH, export.input_height, export.input_width, 3]
        )
    )
    del graph.output[:]
    columns = contract.FIRST_COEFFICIENT_COLUMN + export.num_coefficients
    prototypes: list[str | int | None] = [
        BATCH,
        export.num_coefficients,
        export.input_height // 4,
        export.input_width // 4,
    ]
    graph.output.extend(
        [
            helper.make_tensor_value_info(contract.CANDIDATES.name, TensorProto.FLOAT, [BATCH, top_k, columns]),
            helper.make_tensor_value_info(contract.PROTOTYPES.name, TensorProto.FLOAT16, prototypes),
        ]
    )
    graph.initializer.extend(_constants(export, top_k))
    onnx.checker.check_model(model)
    return model


def _node(operator: str, name: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, outputs, name=f"{_PREFIX}/{name}", **attributes)


def _front(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    element = graph.input[0].type.tensor_type.elem_type
    nodes = [
        _node("Cast", "to_float", [contract.IMAGES.name], [f"{_PREFIX}/float"], to=TensorProto.FLOAT),
        _node("Transpose", "to_planes", [f"{_PREFIX}/float"], [f"{_PREFIX}/planes"], perm=[0, 3, 1, 2]),
    ]
    scaled = _NETWORK_INPUT if element == TensorProto.FLOAT else f"{_PREFIX}/scaled"
    nodes.append(_node("Div", "to_unit_range", [f"{_PREFIX}/planes", f"{_PREFIX}/255"], [scaled]))
    if element != TensorProto.FLOAT:
        nodes.append(_node("Cast", "to_network_type", [scaled], [_NETWORK_INPUT], to=element))
    return nodes


def _behind(export: Export, opset: int) -> list[onnx.NodeProto]:
    def at(name: str) -> str:
        return f"{_PREFIX}/{name}"

    # ReduceMax took its axes as an attribute before opset 18.
    by_input = opset >= _REDUCE_AXES_ARE_INPUTS_SINCE_OPSET
    best = [at("class_scores"), at("axis_1")] if by_input else [at("class_scores")]
    axes = {} if by_input else {"axes": [1]}
    return [
        _node(
            "Split",
            "split",
            [export.detections_name, at("split_sizes")],
            [at("boxes"), at("class_scores"), at("coefficients")],
            axis=1,
        ),
        _node("ReduceMax", "best_score", best, [at("score_per_anchor")], keepdims=0, **axes),
        _node("TopK", "top", [at("score_per_anchor"), at("top_k")], [at("scores"), at("index")], axis=1),
        _node("ArgMax", "best_class", [at("class_scores")], [at("class_per_anchor")], axis=1, keepdims=1),
        _node("Cast", "class_to_float", [at("class_per_anchor")], [at("class_float")], to=TensorProto.FLOAT),
        _node(
            "Concat",
            "features",
            [at("boxes"), at("class_float"), at("coefficients")],
            [at("feature_planes")],
            axis=1,
        ),
        _node("Unsqueeze", "index_plane", [at("index"), at("axis_1")], [at("index_planes")]),
        _node("Expand", "index_all", [at("index_planes"), at("index_shape")], [at("index_expanded")]),
        _node("GatherElements", "gather", [at("feature_planes"), at("index_expanded")], [at("gathered")], axis=2),
        _node("Transpose", "rows", [at("gathered")], [at("feature_rows")], perm=[0, 2, 1]),
        _node("Unsqueeze", "score_column", [at("scores"), at("axis_2")], [at("score_rows")]),
        _node("Concat", "candidates", [at("score_rows"), at("feature_rows")], [contract.CANDIDATES.name], axis=2),
        _node("Cast", "prototypes", [export.prototypes_name], [contract.PROTOTYPES.name], to=TensorProto.FLOAT16),
    ]


def _constants(export: Export, top_k: int) -> list[onnx.TensorProto]:
    values: dict[str, NDArray[Any]] = {
        "255": np.array(255, np.float32),
        "split_sizes": np.array([4, export.num_classes, export.num_coefficients], np.int64),
        "top_k": np.array([top_k], np.int64),
        "axis_1": np.array([1], np.int64),
        "axis_2": np.array([2], np.int64),
        "index_shape": np.array([1, 5 + export.num_coefficients, top_k], np.int64),
    }
    return [numpy_helper.from_array(value, f"{_PREFIX}/{name}") for name, value in values.items()]
