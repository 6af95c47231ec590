"""Cutting a graph where the head ends."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from builder.onnx_tools import drop_unread, set_nodes


def last_join(graph: onnx.GraphProto, leading: set[str]) -> onnx.NodeProto | None:
    """The last node among those that make ``leading`` tensors that joins channels: boxes, scores and coefficients."""
    return next((node for node in reversed(graph.node) if node.output[0] in leading and _joins_channels(node)), None)


def cut_at(graph: onnx.GraphProto, name: str, tail: set[str]) -> None:
    """Make a tensor an output, in place of those of ``tail``; nodes that nothing needs any more are removed."""
    keep = [value for value in graph.output if value.name not in tail]
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    graph.output.extend(keep)
    needed = before(graph, {value.name for value in graph.output})
    set_nodes(graph, [node for node in graph.node if needed.intersection(node.output)])
    drop_unread(graph, ["Constant"])


def _joins_channels(node: onnx.NodeProto) -> bool:
    return node.op_type == "Concat" and node.attribute[0].i in (1, -2) and len(node.input) > 1


def before(graph: onnx.GraphProto, names: set[str], made_by: str | None = None) -> set[str]:
    """Tensors that some are made of, themselves included; ``made_by``: only those that such an operator makes."""
    found = set(names)
    chosen: set[str] = set()
    for node in reversed(graph.node):
        if found.intersection(node.output):
            found.update(node.input)
            chosen.update(node.output if node.op_type == made_by else ())
    return found if made_by is None else chosen


def behind(graph: onnx.GraphProto, names: set[str]) -> set[str]:
    """Tensors that are made of some, themselves included."""
    found = set(names)
    for node in graph.node:
        if found.intersection(node.input):
            found.update(node.output)
    return found
