"""Reads the log of a failed build and finds the ONNX nodes that TensorRT could not implement.

TensorRT names a fused layer after everything in it: ``A + PWN(PWN(B), C)`` (a convolution with its activation),
``weights + weights_QuantizeLinear + A``, ``A || B`` (convolutions side by side), ``{ForeignNode[A...B]}`` (everything
from A to B, compiled as one), ``[trainStation1]`` (a synchronization point, no node at all).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from builder.onnx_tools import QUANTIZERS
from builder.tensorrt.errors import LogLine
from builder.tensorrt.graph_names import GraphNames

_NO_IMPLEMENTATION: Final = re.compile(
    r"Could not find any implementation for node (?P<layer>.+?)"
    r"(?P<workspace> due to insufficient workspace.*?)?\.?\)?\s*\Z"
)
_FOREIGN: Final = re.compile(r"\{ForeignNode\[(?P<first>.+?)\.\.\.(?P<last>.+)\]\}")
_STATION: Final = re.compile(r"\[trainStation\d+\]")
_WRAPPER: Final = re.compile(r"\b[A-Z]{2,}\(")
_SEPARATOR: Final = re.compile(r" \+ | \|\| |, ")
_NODE_OF: Final = "node_of_"
_SUFFIX: Final = re.compile(r"_(?:QuantizeLinear|DequantizeLinear)(?:_\d+)?\Z|_clone_\d+\Z|_copy\Z")
_REFORMAT: Final = re.compile(r"\AReformatting CopyNode for (?:Input|Output) Tensor \d+ to ")

# "Error Code 10: Internal Error (…)", "[E] Error[10]: …", "[TRT] [E] 10: …", "TRTInternal Error in …: 0 (…)".
_CODE: Final = re.compile(r"Error Code (\d+)|Error\[(\d+)\]|\[E\] (\d+): ")

# TensorRT-RTX 1.7 asks for the workspace limit and a few MiB: "Error Code 2: OutOfMemory (Requested size was 80309900
# bytes.)". TensorRT 7 to 10: "OutOfMemory (no further information)", "Cuda Runtime (out of memory)", "Cuda Error in
# allocate: 2 (out of memory)", and as a warning "Requested amount of GPU memory (4294967296 bytes) could not be
# allocated.": https://github.com/marcoslucianops/DeepStream-Yolo/issues/366, https://github.com/NVIDIA/TensorRT/issues/840
_OUT_OF_MEMORY: Final = re.compile(r"OutOfMemory|out of memory", re.I)
_OUT_OF_GPU_MEMORY: Final = re.compile(r"Requested amount of GPU memory|cuda[^(]*\(out of memory\)", re.I)

CODE_MEANINGS: Final[Mapping[int, str]] = {
    1: "unspecified error, often of CUDA",
    2: "out of memory, or another internal error",
    3: "invalid argument",
    4: "invalid configuration or network",
    5: "allocation failed",
    6: "initialization failed",
    7: "execution failed",
    8: "computation failed",
    9: "invalid state",
    10: "unsupported state, such as a layer without an implementation",
}
"""``Error Code N`` of the log, after ``nvinfer1::ErrorCode`` (``trt.ErrorCodeTRT`` in Python)."""


@dataclass(frozen=True)
class FailedNodes:
    """What a failed build says about the network.

    Attributes:
        nodes: ONNX node names of the failed layers, without quantizers, in topological order.
        raw: the failed layers as TensorRT names them.
        operators: operator of every node in ``nodes``.
        unresolved: parts of the layers that are no node: unnamed layers, and names that the graph does not have.
        error_codes: TensorRT's error codes, in the log's order.
        reason: one line for people.
        insufficient_workspace: whether the log blames the workspace limit.
    """

    nodes: tuple[str, ...]
    raw: tuple[str, ...]
    operators: Mapping[str, str]
    unresolved: tuple[str, ...]
    error_codes: tuple[int, ...]
    reason: str
    insufficient_workspace: bool = False


def parse_build_log(lines: Iterable[LogLine], graph: GraphNames) -> FailedNodes:
    """Find the failed nodes in a builder log.

    Args:
        lines: the log; only its errors count.
        graph: the graph that was built. Ranges are expanded, weights and quantizers are traced to the nodes that use
            them.

    Returns:
        The nodes. Empty ``nodes`` and ``raw`` mean that the log names none; ``reason`` then quotes its first error.
    """
    errors = [line.text for line in lines if line.is_error]
    raw: list[str] = []
    workspace = False
    for text in errors:
        match = _NO_IMPLEMENTATION.search(text)
        if match is not None:
            raw.append(match["layer"].strip())
            workspace = workspace or match["workspace"] is not None
    raw = list(dict.fromkeys(raw))
    nodes: list[str] = []
    unresolved: list[str] = []
    for layer in raw:
        _resolve_layer(layer, graph, nodes, unresolved)
    if not raw:
        nodes.extend(name for text in errors for name in _names_in(text, graph))
    ordered = graph.in_order(nodes)
    codes = tuple(dict.fromkeys(code for text in errors for code in _codes(text)))
    return FailedNodes(
        nodes=ordered,
        raw=tuple(raw),
        operators=_operators(ordered, graph),
        unresolved=tuple(dict.fromkeys(unresolved)),
        error_codes=codes,
        reason=_reason(raw, errors, codes, workspace),
        insufficient_workspace=workspace,
    )


def out_of_memory(lines: Iterable[LogLine]) -> tuple[str, bool] | None:
    """Whether a build failed because memory did not suffice.

    Args:
        lines: the log of a failed build.

    Returns:
        The first line that says so, and whether it was the GPU's memory rather than the workspace limit; None if
        memory is not the reason, or the log names a layer (then use :func:`parse_build_log`).
    """
    lines = list(lines)
    errors = [line.text for line in lines if line.is_error]
    first = next((text for text in errors if _OUT_OF_MEMORY.search(text)), None)
    if first is None or any(_NO_IMPLEMENTATION.search(text) for text in errors):
        return None
    return first.strip(), any(_OUT_OF_GPU_MEMORY.search(line.text) for line in lines)


def parse_problems(problems: Iterable[str], graph: GraphNames) -> FailedNodes:
    """Find the nodes that TensorRT's ONNX parser refused.

    Args:
        problems: of an ``OnnxParseError``; each names a node, quantizers too, or an initializer.
        graph: the graph that was parsed.

    Returns:
        The nodes that these quantizers and initializers belong to. Empty ``nodes`` mean that none is named.
    """
    texts = list(problems)
    names = dict.fromkeys(
        name
        for text in texts
        for name in (*(node.name for node in graph.nodes), *graph.initializers)
        if name and name in text and _stands_alone(name, text)
    )
    nodes = graph.in_order(found for name in names for part in _served_by(name, graph) for found in _trace(part, graph))
    return FailedNodes(
        nodes=nodes,
        raw=tuple(names),
        operators=_operators(nodes, graph),
        unresolved=(),
        error_codes=(),
        reason=f"its ONNX parser refuses {texts[0].strip()}" if texts else "its ONNX parser gives no reason",
    )


def _served_by(name: str, graph: GraphNames) -> list[str]:
    """The quantizers whose scale or zero point an initializer is; else the name itself."""
    users = graph.consumers.get(name, ()) if name in graph.initializers else ()
    quantizers = [node.name for node in users if node.operator in QUANTIZERS and name in node.inputs[1:]]
    return quantizers or [name]


def split_layer(layer: str) -> tuple[str, ...]:
    """Parts of a fused layer's name, wrappers and train stations taken away.

    Args:
        layer: such as ``A + PWN(PWN(B), C)``. A ``{ForeignNode[A...B]}`` stays one part.

    Returns:
        ``("A", "B", "C")``.
    """
    ranges = [match.group() for match in _FOREIGN.finditer(layer)]
    rest = _STATION.sub("", _FOREIGN.sub("", layer))
    parts = list(ranges)
    for piece in _SEPARATOR.split(_WRAPPER.sub("", rest)):
        part = _REFORMAT.sub("", piece.strip())
        while part.endswith(")") and part.count(")") > part.count("("):
            part = part[:-1].rstrip()
        if part and part != "+":
            parts.append(part)
    return tuple(parts)


def _resolve_layer(layer: str, graph: GraphNames, nodes: list[str], unresolved: list[str]) -> None:
    for part in split_layer(layer):
        foreign = _FOREIGN.fullmatch(part)
        if foreign is None:
            _resolve(part, graph, nodes, unresolved)
            continue
        ends: list[str] = []
        for end in (split_layer(foreign["first"])[:1], split_layer(foreign["last"])[-1:]):
            for name in end:
                _resolve(name, graph, ends, unresolved)
        if len(ends) > 1:
            positions = sorted(graph.positions[name] for name in ends)
            names = graph.between(graph.nodes[positions[0]].name, graph.nodes[positions[-1]].name)
            nodes.extend(name for name in names if graph.by_name[name].operator not in QUANTIZERS)
        else:
            nodes.extend(ends)


def _resolve(part: str, graph: GraphNames, nodes: list[str], unresolved: list[str]) -> None:
    """Trace one part of a layer's name to nodes."""
    found = _trace(part, graph)
    while not found and (stripped := _SUFFIX.sub("", part)) != part:
        part = stripped
        found = _trace(part, graph)
    if found:
        nodes.extend(found)
    else:
        unresolved.append(part)


def _trace(name: str, graph: GraphNames) -> list[str]:
    """Nodes that a node's, a weight's or a tensor's name stands for; quantizers stand for the node they serve."""
    node = graph.by_name.get(name)
    if node is None and name.startswith(_NODE_OF):  # TensorRT's name of an unnamed ONNX node: its first output
        node = graph.producers.get(name.removeprefix(_NODE_OF))
    if node is not None:
        if node.operator not in QUANTIZERS:
            return [node.name] if node.name else []
        if node.operator == "QuantizeLinear":
            producer = graph.before_quantizers(node.inputs[0])
            if producer is not None:
                return [producer.name]
        return [user.name for user in graph.behind_quantizers(node.outputs[0])]
    if name in graph.initializers:
        return [user.name for user in graph.behind_quantizers(name)]
    producer = graph.before_quantizers(name)
    return [producer.name] if producer is not None else []


def _names_in(text: str, graph: GraphNames) -> list[str]:
    """Node names in a message, as whole words."""
    return [
        node.name
        for node in graph.nodes
        if node.name and node.operator not in QUANTIZERS and node.name in text and _stands_alone(node.name, text)
    ]


def _stands_alone(name: str, text: str) -> bool:
    """Whether a name is a whole word of a message, not a part of a longer name."""
    return re.search(rf"(?<![\w/.]){re.escape(name)}(?![\w/]|\.\w)", text) is not None


def _operators(names: Iterable[str], graph: GraphNames) -> dict[str, str]:
    return {name: graph.by_name[name].operator for name in names}


def _codes(text: str) -> Iterable[int]:
    return (int(next(filter(None, match.groups()))) for match in _CODE.finditer(text))


def _reason(raw: list[str], errors: list[str], codes: tuple[int, ...], workspace: bool) -> str:
    if raw:
        more = f" and {len(raw) - 1} more" if len(raw) > 1 else ""
        cause = " (the workspace limit was too small)" if workspace else ""
        return f"no implementation for {raw[0]}{more}{cause}"
    if errors:
        meanings = "; ".join(f"code {code}: {CODE_MEANINGS.get(code, 'unknown')}" for code in codes)
        return errors[0].strip() + (f" ({meanings})" if meanings else "")
    return "the log holds no error"
