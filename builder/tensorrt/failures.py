"""Reads the log of a failed build and finds the ONNX nodes that TensorRT could not implement. Pure Python.

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
_UNNAMED: Final = re.compile(r"\(Unnamed Layer\* \d+\)")
_NODE_OF: Final = "node_of_"
_SUFFIX: Final = re.compile(r"_(?:QuantizeLinear|DequantizeLinear)(?:_\d+)?\Z|_clone_\d+\Z|_copy\Z")
_WEIGHTS: Final = re.compile(r"[._](?:weight|bias)\Z")
_REFORMAT: Final = re.compile(r"\AReformatting CopyNode for (?:Input|Output) Tensor \d+ to ")

# "Error Code 10: Internal Error (…)", "[E] Error[10]: …", "[TRT] [E] 10: …", "TRTInternal Error in …: 0 (…)".
_CODE: Final = re.compile(r"Error Code (\d+)|Error\[(\d+)\]|\[E\] (\d+): ")
_ERROR_LINE: Final = re.compile(r"\[E\]|\bERROR\b|Error\[\d+\]|Error Code \d+")

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
        nodes: ONNX node names of the failed layers, without quantizers; in topological order when the graph was
            given, else in the log's order.
        raw: the failed layers as TensorRT names them.
        operators: operator of every node in ``nodes``; guessed from the name without a graph, or ``unknown``.
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


def parse_build_log(lines: Iterable[str | LogLine], graph: GraphNames | None = None) -> FailedNodes:
    """Find the failed nodes in a builder log.

    Args:
        lines: the log; of plain text, every line; of captured lines, only the errors count.
        graph: the graph that was built. With it, ranges are expanded, weights and quantizers are traced to the
            nodes that use them, and names are checked; without it, names are taken as they stand.

    Returns:
        The nodes. Empty ``nodes`` and ``raw`` mean that the log names none; ``reason`` then quotes its first error.
    """
    errors = [text for line in lines if (text := _error_text(line)) is not None]
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
    if not raw and graph is not None:
        nodes.extend(name for text in errors for name in _names_in(text, graph))
    ordered = graph.in_order(nodes) if graph is not None else tuple(dict.fromkeys(nodes))
    codes = tuple(dict.fromkeys(code for text in errors for code in _codes(text)))
    return FailedNodes(
        nodes=ordered,
        raw=tuple(raw),
        operators={name: _operator(name, graph) for name in ordered},
        unresolved=tuple(dict.fromkeys(unresolved)),
        error_codes=codes,
        reason=_reason(raw, errors, codes, workspace),
        insufficient_workspace=workspace,
    )


def out_of_memory(lines: Iterable[LogLine]) -> tuple[str, bool] | None:
    """Whether a build failed for want of memory.

    Args:
        lines: the log of a failed build.

    Returns:
        The first line that says so, and whether it was the GPU's memory rather than the workspace limit; None if
        memory is not the reason, or the log names a layer (then :func:`parse_build_log` is to be asked).
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
        operators={name: _operator(name, graph) for name in nodes},
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


def _error_text(line: str | LogLine) -> str | None:
    if isinstance(line, LogLine):
        return line.text if line.is_error else None
    return line if _NO_IMPLEMENTATION.search(line) or _ERROR_LINE.search(line) else None


def _resolve_layer(layer: str, graph: GraphNames | None, nodes: list[str], unresolved: list[str]) -> None:
    for part in split_layer(layer):
        foreign = _FOREIGN.fullmatch(part)
        if foreign is None:
            _resolve(part, graph, nodes, unresolved)
            continue
        ends: list[str] = []
        for end in (split_layer(foreign["first"])[:1], split_layer(foreign["last"])[-1:]):
            for name in end:
                _resolve(name, graph, ends, unresolved)
        if graph is not None and len(ends) > 1:
            positions = sorted(graph.positions[name] for name in ends)
            names = graph.between(graph.nodes[positions[0]].name, graph.nodes[positions[-1]].name)
            nodes.extend(name for name in names if graph.by_name[name].operator not in QUANTIZERS)
        else:
            nodes.extend(ends)


def _resolve(part: str, graph: GraphNames | None, nodes: list[str], unresolved: list[str]) -> None:
    """Trace one part of a layer's name to nodes."""
    if graph is None:
        if _UNNAMED.search(part):
            unresolved.append(part)
        elif not _SUFFIX.search(part) and not _WEIGHTS.search(part):
            nodes.append(part)
        return
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
    """Node names that stand in a message as whole words."""
    return [
        node.name
        for node in graph.nodes
        if node.name and node.operator not in QUANTIZERS and node.name in text and _stands_alone(node.name, text)
    ]


def _stands_alone(name: str, text: str) -> bool:
    """Whether a name stands in a message as a whole word, and not as a part of a longer name."""
    return re.search(rf"(?<![\w/.]){re.escape(name)}(?![\w/]|\.\w)", text) is not None


def _operator(name: str, graph: GraphNames | None) -> str:
    if graph is not None:
        return graph.by_name[name].operator
    # PyTorch names a node after its operator: /model.0/conv/Conv, Conv_74.
    match = re.search(r"(?:\A|/)([A-Z][A-Za-z]+)(?:_\d+)?\Z", name)
    return match.group(1) if match else "unknown"


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
