"""Graph surgery: a dynamic batch axis, and the ends that keep the traffic between the ensemble's steps small.

In front: uint8 [batch, H, W, 3] -> Cast -> Transpose -> / 255, bit for bit what ultralytics feeds. Behind: what the
family adds (:meth:`builder.families.base.Family.graft`), such as of every anchor its best class (ReduceMax, ArgMax); of
every image its best K anchors (TopK, GatherElements); the prototypes leave as float16.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from builder.export import Export
from builder.families.base import Ends, InputFormat
from builder.onnx_tools import constant_tensors, drop_unread
from pipeline import contract

BATCH = contract.BATCH_DIMENSION
_BOX_AND_CLASS = contract.FIRST_COEFFICIENT_COLUMN - 1  # without the score
_NETWORK_INPUT = "network_input"
_PREFIX = Ends.PREFIX
PROTOTYPES_NODE = f"{_PREFIX}/prototypes"
"""The grafted node that takes the prototypes out of the network."""
_SHAPES = ("Shape", "Size")
_FACTORS_OF_RESIZE = 2  # which input
_SIZES_OF_RESIZE = 3


def tensor_sizes(export: Export, top_k: int) -> dict[str, list[int]]:
    """Tensor name to dimensions, without batch, of the tensors that depend on the network."""
    columns = contract.FIRST_COEFFICIENT_COLUMN + export.num_coefficients
    return {
        contract.IMAGES.name: [*export.input_size, 3],
        contract.CANDIDATES.name: [min(top_k, export.num_anchors, contract.MAX_TOP_K), columns],
        contract.PROTOTYPES.name: list(export.layout.prototypes_shape),
    }


def make_batch_dynamic(export: Export) -> onnx.ModelProto:
    """Make the batch axis dynamic and name every node; exports often have a batch baked into constant shapes.

    A graph whose batch is dynamic already keeps its nodes as they are. The result is proven later, against the export's
    file (:func:`builder.source_check.check_source`).

    Returns:
        A new graph with float32 input ``network_input`` [batch, 3, H, W] and the export's outputs.
    """
    model = copy.deepcopy(export.model)
    known = _shapes_of(model) if export.batch is not None else {}
    _name_nodes(model.graph)
    graph = model.graph
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == export.input_name:
                node.input[index] = _NETWORK_INPUT
    value = next(value for value in graph.input if value.name == export.input_name)
    value.name = _NETWORK_INPUT
    value.type.tensor_type.shape.dim[0].dim_param = BATCH
    del graph.output[:]
    graph.output.extend(_value(name, TensorProto.FLOAT, shape) for name, shape in export.layout.outputs.items())
    del graph.value_info[:]
    if export.batch is not None:
        _free_batch(graph, export.batch, known)
    return model


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node without a name one, so that exclusions can refer to it."""
    taken = {node.name for node in graph.node}
    for index, node in enumerate(graph.node):
        if not node.name:
            node.name = f"{node.op_type}_{index}"
            while node.name in taken:
                node.name += "_"
            taken.add(node.name)


def _value(name: str, element: int, shape: Sequence[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element, [BATCH, *shape])


def _free_batch(graph: onnx.GraphProto, batch: int, shapes: Mapping[str, Sequence[int]]) -> None:
    """Take the batch out of constant shapes that image data is reshaped to.

    What is made of shapes only, such as the grid of the anchors, has no batch: a leading 1 there means something else.

    Args:
        graph: the network.
        batch: the batch that is baked in.
        shapes: of the tensors, for that batch.
    """
    constants = constant_tensors(graph)
    from_image = _made_of_images(graph)
    present = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Resize" and len(node.input) > _SIZES_OF_RESIZE and node.input[0] in from_image:
            _scale_instead(graph, node, shapes)
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
        # torch's newer exporter sets it, and a 0 then means no element; here a 0 keeps the input's size.
        for attribute in [entry for entry in node.attribute if entry.name == "allowzero"]:
            node.attribute.remove(attribute)
    drop_unread(graph, ["Constant"])


def _scale_instead(graph: onnx.GraphProto, node: onnx.NodeProto, shapes: Mapping[str, Sequence[int]]) -> None:
    """Have a Resize enlarge by factors, instead of to a constant size that holds the batch."""
    before, after = shapes.get(node.input[0]), shapes.get(node.output[0])
    if not before or not after or len(before) != len(after):
        return
    factors = np.array([new / old for old, new in zip(before, after, strict=True)], np.float32)
    name = f"{node.name}_factors"
    graph.initializer.append(numpy_helper.from_array(factors, name))
    inputs = [*node.input[:_SIZES_OF_RESIZE]]
    inputs[_FACTORS_OF_RESIZE] = name
    node.input[:] = inputs


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
    """Tensors whose values depend on the pixels, not only on the input's shape."""
    found = {graph.input[0].name}
    for node in graph.node:
        if node.op_type not in _SHAPES and found.intersection(node.input):
            found.update(node.output)
    return found


def graft_ends(model: onnx.ModelProto, export: Export, top_k: int = contract.DEFAULT_TOP_K) -> onnx.ModelProto:
    """Put the pre- and postprocessing ends on a network of dynamic batch.

    Args:
        model: graph with float32 (or float16) input ``network_input`` and the export's outputs; not changed.
        export: what the export holds.
        top_k: anchors that leave per image; fewer if the network has fewer.

    Returns:
        A graph with the input ``images`` uint8 [batch, H, W, 3] RGB and the outputs ``candidates`` float32
        [batch, K, 6 + C] (rows of score, cx, cy, w, h, class, C coefficients, by falling score) and
        ``prototypes`` float16 [batch, C, H/4, W/4].
    """
    model = copy.deepcopy(model)
    graph = model.graph
    sizes = tensor_sizes(export, top_k)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    front = _front(graph, export.layout.family.input)
    body = list(graph.node)
    ends = _behind(export, opset, sizes[contract.CANDIDATES.name][0])
    del graph.node[:]
    graph.node.extend([*front, *body, *ends.nodes])
    kinds = {
        contract.IMAGES.name: TensorProto.UINT8,
        contract.CANDIDATES.name: TensorProto.FLOAT,
        contract.PROTOTYPES.name: TensorProto.FLOAT16,
    }
    values = [_value(name, kind, sizes[name]) for name, kind in kinds.items()]
    del graph.input[:]
    graph.input.append(values[0])
    del graph.output[:]
    graph.output.extend(values[1:])
    graph.initializer.extend(ends.constants.values())
    onnx.checker.check_model(model)
    return model


def _node(operator: str, name: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, outputs, name=f"{_PREFIX}/{name}", **attributes)


def _front(graph: onnx.GraphProto, wanted: InputFormat) -> list[onnx.NodeProto]:
    def constant(name: str, value: Any) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), f"{_PREFIX}/{name}"))
        return f"{_PREFIX}/{name}"

    element = graph.input[0].type.tensor_type.elem_type
    nodes = [
        _node("Cast", "to_float", [contract.IMAGES.name], [f"{_PREFIX}/float"], to=TensorProto.FLOAT),
        _node("Transpose", "to_planes", [f"{_PREFIX}/float"], [f"{_PREFIX}/planes"], perm=[0, 3, 1, 2]),
    ]
    nodes.append(_node("Div", "to_unit_range", [f"{_PREFIX}/planes", constant("255", 255)], [f"{_PREFIX}/scaled"]))
    if wanted.is_normalized:
        mean, deviation = (np.reshape(three, (3, 1, 1)) for three in (wanted.mean, wanted.deviation))
        centered = [f"{_PREFIX}/centered"]
        nodes.append(_node("Sub", "less_mean", [*nodes[-1].output, constant("mean", mean)], centered))
        nodes.append(_node("Div", "by_deviation", [*centered, constant("deviation", deviation)], [f"{_PREFIX}/normal"]))
    if element != TensorProto.FLOAT:
        nodes.append(_node("Cast", "to_network_type", [*nodes[-1].output], [f"{_PREFIX}/fed"], to=element))
    nodes[-1].output[0] = _NETWORK_INPUT
    return nodes


def _behind(export: Export, opset: int, top_k: int) -> Ends:
    """The family's nodes, and those that choose the best rows."""
    ends = Ends(opset)
    at, constant, node = ends.at, ends.constant, ends.node
    export.layout.family.graft(export.layout, ends)
    node("TopK", "top", [at("score_per_anchor"), constant("top_k", [top_k])], [at("scores"), at("index")], axis=1)
    node("Unsqueeze", "index_plane", [at("index"), constant("axis_1", [1])], [at("index_planes")])
    shape = constant("index_shape", [1, _BOX_AND_CLASS + export.num_coefficients, top_k])
    node("Expand", "index_all", [at("index_planes"), shape], [at("index_expanded")])
    node("GatherElements", "gather", [at("feature_planes"), at("index_expanded")], [at("gathered")], axis=2)
    node("Transpose", "rows", [at("gathered")], [at("feature_rows")], perm=[0, 2, 1])
    node("Unsqueeze", "score_column", [at("scores"), constant("axis_2", [2])], [at("score_rows")])
    node("Concat", "candidates", [at("score_rows"), at("feature_rows")], [contract.CANDIDATES.name], axis=2)
    node("Cast", "prototypes", [export.prototypes_name], [contract.PROTOTYPES.name], to=TensorProto.FLOAT16)
    return ends
