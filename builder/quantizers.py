"""Takes quantizers off chosen nodes of a Q/DQ network, counts what is quantized, and resolves names of layers."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Collection

import onnx

from builder.errors import BuilderError
from builder.families.head import group_of
from builder.onnx_tools import QUANTIZERS, WEIGHTED, drop_unread, producers


def remove_quantizers(quantized: onnx.ModelProto, original: onnx.ModelProto, nodes: Collection[str]) -> onnx.ModelProto:
    """Give nodes back the inputs that they had before quantization: activations, weights and biases.

    All other nodes keep their scales, so no calibration is needed. Where the quantized graph uses a tensor's name for
    something else (ONNX Runtime names dequantized biases like the originals), the original gets another name.

    Args:
        quantized: Q/DQ network; not changed.
        original: the network that it was made of, with the same node names.
        nodes: names of the nodes; those without quantizers are ignored.

    Returns:
        The network, Q/DQ nodes that nothing reads any more removed.
    """
    result = copy.deepcopy(quantized)
    graph = result.graph
    made_by = producers(graph)
    before = {node.name: node for node in original.graph.node}
    weights = {tensor.name: tensor for tensor in original.graph.initializer}
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    names: dict[str, str] = {}

    def put_back(tensor: onnx.TensorProto) -> str:
        """The name of an original tensor in the graph; the tensor is added if it is not there."""
        if tensor.name in names:
            return names[tensor.name]
        there = initializers.get(tensor.name)
        name = tensor.name
        if there is None or there.data_type != tensor.data_type or there.dims != tensor.dims:
            while name in made_by or name in initializers:
                name += "_restored"
            copied = graph.initializer.add()
            copied.CopyFrom(tensor)
            copied.name = name
        names[tensor.name] = name
        return name

    for node in graph.node:
        if node.name not in nodes or node.name not in before or node.op_type in QUANTIZERS:
            continue
        for index, (name, old) in enumerate(zip(node.input, before[node.name].input, strict=False)):
            producer = made_by.get(name)
            if producer is None or producer.op_type != "DequantizeLinear":
                continue
            quantizer = made_by.get(producer.input[0])
            if quantizer is not None and quantizer.op_type == "QuantizeLinear":
                node.input[index] = quantizer.input[0]
            elif old in weights:
                node.input[index] = put_back(weights[old])
    drop_unread(graph, QUANTIZERS)
    return result


def quantized_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes, in order, that read something dequantized."""
    dequantized = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return [
        node.name
        for node in model.graph.node
        if node.op_type not in QUANTIZERS and any(name in dequantized for name in node.input)
    ]


def quantized_convolutions(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions that run in int8: input and weights both come out of DequantizeLinear."""
    made_by = {output: node.op_type for node in model.graph.node for output in node.output}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" and all(made_by.get(name) == "DequantizeLinear" for name in list(node.input)[:2])
    ]


def quantized_weights(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes with weights in int8: convolutions, and the matrix products of transformers."""
    made_by = producers(model.graph)
    weights = {tensor.name for tensor in model.graph.initializer}

    def is_weight(name: str) -> bool:
        made = made_by.get(name)
        if made is None or made.op_type != "DequantizeLinear":
            return False
        quantizer = made_by.get(made.input[0])
        return made.input[0] in weights or (quantizer is not None and quantizer.input[0] in weights)

    return [node.name for node in model.graph.node if node.op_type in WEIGHTED and any(map(is_weight, node.input[1:2]))]


def count_convolutions(model: onnx.ModelProto) -> tuple[int, int]:
    """How many convolutions run in int8, and how many there are."""
    return len(quantized_convolutions(model)), sum(node.op_type == "Conv" for node in model.graph.node)


def nodes_to_exclude(names: Collection[str], model: onnx.ModelProto) -> tuple[str, ...]:
    """The nodes that a user means by ONNX names and names of groups; see :func:`builder.families.head.group_of`.

    Args:
        names: such as ``/model.0/conv/Conv`` or ``model.22.proto``.
        model: the fp32 network.

    Returns:
        Names of nodes, in the network's order.

    Raises:
        BuilderError: a name is neither a node nor a group; names the closest ones.
    """
    nodes = [node.name for node in model.graph.node]
    groups = {group_of(name) for name in nodes}
    known = {*nodes, *groups}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BuilderError("; ".join(_unknown(name, nodes, groups) for name in unknown))
    wanted = set(names)
    return tuple(name for name in nodes if name in wanted or group_of(name) in wanted)


def _unknown(name: str, nodes: Collection[str], groups: Collection[str]) -> str:
    close = difflib.get_close_matches(name, groups, 2) + difflib.get_close_matches(name, nodes, 3)
    close = list(dict.fromkeys([*close, *(node for node in nodes if name in node)]))[:5]
    examples = ", ".join(close) if close else ", ".join(sorted(groups, key=len)[:5])
    return (
        f"the network has neither a node nor a group of layers called {name!r} to exclude; "
        f"{'close to it' if close else 'groups are'}: {examples}"
    )
