"""Nodes that stay in a higher precision by default, each group with its reason and source."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx

from builder.families.head import find_head
from pipeline import contract


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
    head = find_head(model, contract.CANDIDATES.name)
    upsampling = tuple(node.name for node in model.graph.node if node.op_type == "ConvTranspose")
    groups = (
        Exclusion(
            head.output_convolutions,
            "the last convolutions give boxes, class scores and mask coefficients directly; their rounding error "
            "reaches the result undamped, and they are a small part of the work",
            "ultralytics' ModelOpt export keeps the head's `.2/Conv` in float",
        ),
        Exclusion(
            head.decode_nodes,
            "the decoding adds and scales coordinates up to the input size, which 256 levels cannot hold; the DFL is "
            "a fixed weighted mean",
            "ultralytics' ModelOpt export keeps the DFL in float; NVIDIA/TensorRT issue 4074 (int8 plan finds nothing)",
        ),
        Exclusion(
            upsampling,
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
    group = Exclusion(
        find_head(model, contract.CANDIDATES.name).decode_nodes,
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
