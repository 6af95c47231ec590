"""Helpers for ONNX graphs. Imports nothing of the project but errors: the independent reference uses it too."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import onnx
import onnxruntime as ort

QUANTIZERS: Final = frozenset({"QuantizeLinear", "DequantizeLinear"})
WEIGHTED: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def quiet_session(model: str | bytes, threads: int | None = None) -> ort.InferenceSession:
    """An ONNX Runtime session on the CPU that logs nothing.

    Args:
        model: path of a file, or a serialized model.
        threads: at most this many; None takes all cores.

    Raises:
        Exception: the model does not load; ONNX Runtime has one type per status, without a common base.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = min(threads, os.cpu_count() or 1)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def file_session(path: Path, threads: int | None = None) -> ort.InferenceSession:
    """The same of a file as it is, with the weights beside it.

    Raises:
        Exception: it does not load.
    """
    try:
        return quiet_session(str(path), threads)
    except Exception:  # ONNX Runtime reads neither shapes that lie beside the graph, nor every path
        return quiet_session(onnx.load(path).SerializeToString(), threads)


def first_line(error: Exception) -> str:
    """The first line of an error's text; ONNX Runtime writes many."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def label(node: onnx.NodeProto) -> str:
    """A node's name, quoted, else its first output."""
    return repr(node.name or node.output[0])


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """The node that writes each tensor."""
    return {output: node for node in graph.node for output in node.output if output}


def constant_tensors(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Tensors with a fixed value: initializers and the outputs of Constant nodes."""
    constants = {
        node.output[0]: attribute.t
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }
    return constants | {tensor.name: tensor for tensor in graph.initializer}


def all_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every stored tensor: initializers and attributes of nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)


def set_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Replace the nodes of a graph; ``nodes`` may be its own."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def drop_unread(graph: onnx.GraphProto, operators: Iterable[str]) -> None:
    """Remove nodes of these operators, and initializers, that nothing reads."""
    operators = frozenset(operators)
    outputs = {value.name for value in graph.output}
    while True:
        read = {name for node in graph.node for name in node.input} | outputs
        idle = [node for node in graph.node if node.op_type in operators and node.output[0] not in read]
        if not idle:
            break
        for node in idle:
            graph.node.remove(node)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
