"""Takes the quantizers off chosen nodes of a Q/DQ network, and groups its layers."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Collection

import onnx

from builder.errors import BuilderError

_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


def remove_quantizers(quantized: onnx.ModelProto, original: onnx.ModelProto, nodes: Collection[str]) -> onnx.ModelProto:
    """Give nodes back the inputs that they had before quantization: activations, weights and biases.

    All other nodes keep their scales, so that no calibration is needed. A quantizer may have left a tensor its name
    (ONNX Runtime's dequantized biases are called as the biases were): then the original goes by another one.

    Args:
        quantized: Q/DQ network; not changed.
        original: the network that it was made of, with the same node names.
        nodes: names of the nodes; those without quantizers are ignored.

    Returns:
        The network, Q/DQ nodes that nothing reads any more removed.
    """
    result = copy.deepcopy(quantized)
    graph = result.graph
    producers = {output: node for node in graph.node for output in node.output}
    before = {node.name: node for node in original.graph.node}
    weights = {tensor.name: tensor for tensor in original.graph.initializer}
    restored = _Restored(graph)
    for node in graph.node:
        if node.name not in nodes or node.name not in before or node.op_type in _QUANTIZERS:
            continue
        for index, (name, old) in enumerate(zip(node.input, before[node.name].input, strict=False)):
            producer = producers.get(name)
            if producer is None or producer.op_type != "DequantizeLinear":
                continue
            quantizer = producers.get(producer.input[0])
            if quantizer is not None and quantizer.op_type == "QuantizeLinear":
                node.input[index] = quantizer.input[0]
            elif old in weights:
                node.input[index] = restored.name_of(weights[old])
    _sweep(graph)
    return result


class _Restored:
    """Original weights and biases that are put back into a graph, each once, under names that are free in it."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._produced = {name for node in graph.node for name in node.output}
        self._names: dict[str, str] = {}

    def name_of(self, tensor: onnx.TensorProto) -> str:
        """The name of an original tensor in the graph; the tensor is added if it is not there."""
        if tensor.name not in self._names:
            self._names[tensor.name] = self._put(tensor)
        return self._names[tensor.name]

    def _put(self, tensor: onnx.TensorProto) -> str:
        there = self._initializers.get(tensor.name)
        if there is not None and there.data_type == tensor.data_type and there.dims == tensor.dims:
            return tensor.name
        name = tensor.name
        while name in self._produced or name in self._initializers:
            name += "_restored"
        copied = self._graph.initializer.add()
        copied.CopyFrom(tensor)
        copied.name = name
        return name


def quantized_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes, in order, that read something dequantized."""
    dequantized = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return [
        node.name
        for node in model.graph.node
        if node.op_type not in _QUANTIZERS and any(name in dequantized for name in node.input)
    ]


def group_of(node: str) -> str:
    """The group that a layer belongs to: its module, or its branch where the module is the head.

    ``/model.4/m.0/cv1/conv/Conv`` belongs to ``model.4``, ``/model.22/cv3.1/cv3.1.0/conv/Conv`` to
    ``model.22.cv3``, ``/model.22/proto/cv1/conv/Conv`` to ``model.22.proto``. Names of another form are groups of
    their own.
    """
    match = re.match(r"/(?:.*/)?(model\.\d+)/(?:(cv[234]\b|proto\b|one2one\w*))?", node)
    if match is None:
        return node
    return f"{match.group(1)}.{match.group(2)}" if match.group(2) and _is_head(node) else match.group(1)


def _is_head(node: str) -> bool:
    # Only the head numbers the layers of its branches: cv2.0, cv3.1, cv4.2; and only it has prototypes.
    return re.search(r"/(cv[234]\.\d|proto/)", node) is not None


def nodes_to_exclude(names: Collection[str], model: onnx.ModelProto) -> tuple[str, ...]:
    """The nodes that a user means by ONNX names and names of groups; see :func:`group_of`.

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


def _sweep(graph: onnx.GraphProto) -> None:
    """Remove Q/DQ nodes, and initializers, that nothing reads."""
    outputs = {value.name for value in graph.output}
    while True:
        read = {name for node in graph.node for name in node.input} | outputs
        idle = [node for node in graph.node if node.op_type in _QUANTIZERS and node.output[0] not in read]
        if not idle:
            break
        for node in idle:
            graph.node.remove(node)
    read = {name for node in graph.node for name in node.input} | outputs
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
