"""Nodes that stay in a higher precision by default, each group with its reason and source."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from builder.tensorrt.graph_names import QUANTIZERS, GraphNames, GraphNode

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Exclusion:
    """A group of nodes that is left out of a conversion.

    Attributes:
        nodes: ONNX node names, in topological order.
        reason: why they are left out.
        source: where that is known from.
    """

    nodes: tuple[str, ...]
    reason: str
    source: str


def int8_exclusions(model: onnx.ModelProto) -> tuple[Exclusion, ...]:
    """Default exclusions from int8.

    Args:
        model: the network with its ends grafted on, before quantization.

    Returns:
        The last convolutions of the detection head, the decoding behind them, and the prototypes' upsampling.
    """
    graph = GraphNames.from_model(model)
    decoding, convolutions = _detection_tail(model, graph)
    upsampling = [node.name for node in graph.nodes if node.operator == "ConvTranspose"]
    groups = (
        Exclusion(
            graph.in_order(convolutions),
            "the last convolutions give boxes, class scores and mask coefficients directly; their rounding error "
            "reaches the result undamped, and they are a small part of the work",
            "ultralytics' ModelOpt export keeps the head's `.2/Conv` in float",
        ),
        Exclusion(
            graph.in_order(decoding),
            "the decoding adds and scales coordinates up to the input size, which 256 levels cannot hold; the DFL is "
            "a fixed weighted mean",
            "ultralytics' ModelOpt export keeps the DFL in float; NVIDIA/TensorRT issue 4074 (int8 plan finds nothing)",
        ),
        Exclusion(
            graph.in_order(upsampling),
            "the transposed convolution that enlarges the mask prototypes; its error shows on every mask's edge",
            "ultralytics' ModelOpt export keeps proto.upsample in float",
        ),
    )
    return tuple(group for group in groups if group.nodes)


def fp16_exclusions(model: onnx.ModelProto) -> tuple[Exclusion, ...]:
    """Default exclusions from fp16.

    Args:
        model: the network with its ends grafted on; Q/DQ nodes may be in it.

    Returns:
        The decoding behind the head's last convolutions.
    """
    graph = GraphNames.from_model(model)
    decoding, _ = _detection_tail(model, graph)
    group = Exclusion(
        graph.in_order(decoding),
        "fp16 holds coordinates from 512 on only to half a pixel, and integers above 2048 not exactly; the only "
        "convolution of the decoding is the DFL's small one, so fp16 would gain little there",
        "IEEE 754 binary16 has 11 significant bits; measured on the reference model with six images: the best boxes "
        "are at most 0.01 px off instead of 0.18 px",
    )
    return (group,) if group.nodes else ()


def names_of(exclusions: Iterable[Exclusion], extra: Iterable[str] = ()) -> tuple[str, ...]:
    """All node names of some groups and further ones, each once."""
    return tuple(dict.fromkeys([name for group in exclusions for name in group.nodes] + sorted(extra)))


def exact_patterns(names: Sequence[str]) -> list[str]:
    """Regular expressions for exactly these names: ModelOpt takes node names as patterns for ``re.match``."""
    return [rf"{re.escape(name)}\Z" for name in names]


def _detection_tail(model: onnx.ModelProto, graph: GraphNames) -> tuple[list[str], list[str]]:
    """Nodes behind the head's last convolutions, and these convolutions, walking back from the detections.

    The detections are the outputs of rank 3 (candidates [batch, K, 6 + 32]); the prototypes have rank 4. The DFL's own
    convolution (weights 0, 1, 2, …; Li et al., 2020) follows a Softmax and belongs to the decoding.
    """
    outputs = [value.name for value in model.graph.output if len(value.type.tensor_type.shape.dim) == 3]
    queue = deque(graph.producers[name] for name in outputs if name in graph.producers)
    decoding: list[str] = []
    convolutions: list[str] = []
    seen: set[str] = set()
    while queue:
        node = queue.popleft()
        if node.name in seen:
            continue
        seen.add(node.name)
        if node.operator == "Conv" and not _follows_softmax(node, graph):
            convolutions.append(node.name)
            continue
        if node.operator not in QUANTIZERS:
            decoding.append(node.name)
        queue.extend(graph.producers[name] for name in node.inputs if name in graph.producers)
    return decoding, convolutions


def _follows_softmax(node: GraphNode, graph: GraphNames) -> bool:
    """Whether a convolution reads a Softmax, perhaps transposed, reshaped or cast on the way."""
    producer = graph.before_quantizers(node.inputs[0])
    while producer is not None and producer.operator in ("Transpose", "Reshape", "Cast"):
        producer = graph.before_quantizers(producer.inputs[0])
    return producer is not None and producer.operator == "Softmax"
