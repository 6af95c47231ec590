"""The end of a network that gives boxes, scores and coefficients, and the groups that layers belong to."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from builder.onnx_tools import QUANTIZERS, producers

_SHAPES = ("Shape", "Size")


@dataclass(frozen=True)
class Head:
    """The end of the network: it turns features into boxes, scores and coefficients.

    Attributes:
        decode_nodes: names of the nodes behind the last convolutions (DFL, anchors, sigmoid, concatenations), in the
            graph's order, without quantizers.
        output_convolutions: names of the last convolutions, likewise.
    """

    decode_nodes: tuple[str, ...]
    output_convolutions: tuple[str, ...]


def find_head(model: onnx.ModelProto, *outputs: str) -> Head:
    """Walk back from the detections to the last convolutions.

    The DFL's convolution (fixed weights 0, 1, 2, … behind a softmax; Li et al., 2020) belongs to the decoding:
    quantizing it costs accuracy and saves nothing. The walk stops at shapes: what sizes the grid of the anchors is no
    part of the head.

    Args:
        model: the network, with or without its ends and quantizers; every node has a name.
        outputs: names of the detections, or of the grafted candidates.
    """
    made_by = producers(model.graph)
    decode: set[str] = set()
    convolutions: set[str] = set()
    queue = deque(made_by[output] for output in outputs)
    seen: set[str] = set()
    while queue:
        node = queue.popleft()
        if node.name in seen:
            continue
        seen.add(node.name)
        if node.op_type == "Conv" and not _follows_softmax(node, made_by):
            convolutions.add(node.name)
            continue
        if node.op_type not in QUANTIZERS:
            decode.add(node.name)
        if node.op_type not in _SHAPES:
            queue.extend(made_by[name] for name in node.input if name in made_by)
    order = [node.name for node in model.graph.node]
    return Head(tuple(name for name in order if name in decode), tuple(name for name in order if name in convolutions))


def _follows_softmax(node: onnx.NodeProto, made_by: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether a convolution reads a Softmax, directly or through nodes that only reorder or cast."""
    producer = made_by.get(node.input[0])
    while producer is not None and (
        producer.op_type in ("Transpose", "Reshape", "Cast") or producer.op_type in QUANTIZERS
    ):
        producer = made_by.get(producer.input[0])
    return producer is not None and producer.op_type == "Softmax"


def group_of(node: str) -> str:
    """The group that a layer belongs to: its module, or its branch where the module is the head.

    ``/model.4/m.0/cv1/conv/Conv`` belongs to ``model.4``, ``/model.22/cv3.1/cv3.1.0/conv/Conv`` to
    ``model.22.cv3``, ``/model.22/proto/cv1/conv/Conv`` to ``model.22.proto``. Of a transformer,
    ``/backbone/encoder/layer.3/mlp/fc1/MatMul`` belongs to ``backbone.encoder.layer.3``. Any other name is a group by
    itself.
    """
    match = re.match(r"/(?:.*/)?(model\.\d+)/(?:(cv[234]\b|proto\b|one2one\w*))?", node)
    if match is None:
        block = re.match(r"/(.*\b(?:layers?|blocks|stages)\.\d+)/", node)
        return block.group(1).replace("/", ".") if block else node
    # Only the head numbers the layers of its branches (cv2.0, cv3.1, cv4.2), and only it has prototypes.
    in_head = re.search(r"/(cv[234]\.\d|proto/)", node) is not None
    return f"{match.group(1)}.{match.group(2)}" if match.group(2) and in_head else match.group(1)
