"""Which groups of layers cost accuracy in int8: one group quantized at a time, compared with the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from base.cpus import usable_cpus
from builder.families.head import group_of
from builder.quantizers import (
    count_convolutions,
    quantized_convolutions,
    quantized_nodes,
    quantized_weights,
    remove_quantizers,
)
from builder.settings import Verification
from builder.verification import Agreement, compare, segment_set
from pipeline.postprocess import ImageSegmentation
from repository.network import onnx_network


@dataclass(frozen=True)
class GroupCost:
    """What one group of layers costs in int8.

    Attributes:
        group: its name, such as ``model.22.proto``.
        nodes: the quantized nodes in it.
        convolutions: how many of them are convolutions that run in int8.
        agreement: of the network in which only this group is quantized, with the reference.
    """

    group: str
    nodes: tuple[str, ...]
    convolutions: int
    agreement: Agreement

    @property
    def cost(self) -> float:
        """What is lost of F1 times mask IoU, in [0, 1]."""
        return 1.0 - self.agreement.f1 * self.agreement.mask_iou

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "group": self.group,
            "nodes": len(self.nodes),
            "convolutions": self.convolutions,
            "cost": round(self.cost, 6),
            "f1": round(self.agreement.f1, 6),
            "mask_iou": round(self.agreement.mask_iou, 6),
        }


@dataclass(frozen=True)
class Trade:
    """One point between all in int8 and nothing in int8.

    Attributes:
        restored: groups taken out of int8, the costliest first.
        int8_convolutions: convolutions that remain in int8.
        size_bytes: of the ONNX model; weights of int8 layers count one byte each, others as they are stored.
        agreement: with the reference.
        failures: what of the gate is not reached, in words; empty if it is passed, or if there is none.
    """

    restored: tuple[str, ...]
    int8_convolutions: int
    size_bytes: int
    agreement: Agreement
    failures: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "restored": list(self.restored),
            "int8_convolutions": self.int8_convolutions,
            "size_bytes": self.size_bytes,
            "failures": list(self.failures),
            **self.agreement.as_dict(),
        }


@dataclass(frozen=True)
class Subject:
    """What is examined.

    Attributes:
        quantized: Q/DQ network, grafted, fp32 around its int8 layers.
        original: the fp32 network it was made of, grafted.
        paths: images to compare on.
        reference: what the export's file finds on them.
        input_size: height and width of the network's input.
        settings: thresholds.
        stretch: whether images fill the input.
    """

    quantized: onnx.ModelProto
    original: onnx.ModelProto
    paths: Sequence[Path]
    reference: Sequence[ImageSegmentation]
    input_size: tuple[int, int]
    settings: Verification
    stretch: bool = False

    def compare(self, model: onnx.ModelProto) -> Agreement:
        """Compare a network with the reference."""
        network = onnx_network(model.SerializeToString(), threads=1)
        settings, stretch, threads = self.settings, self.stretch, usable_cpus()
        found = segment_set(
            network, self.paths, self.input_size, settings, lambda: None, stretch=stretch, threads=threads
        )
        return compare(self.reference, found, self.settings.confidence)


def groups_of(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Quantized nodes by group, in the network's order."""
    groups: dict[str, list[str]] = {}
    for name in quantized_nodes(model):
        groups.setdefault(group_of(name), []).append(name)
    return groups


def groups_with_weights(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Those of :func:`groups_of` with weights in int8, which are nearly all of the work."""
    weighted = set(quantized_weights(model))
    return {group: names for group, names in groups_of(model).items() if weighted & set(names)}


def rank_groups(
    subject: Subject, on_group: Callable[[], None], groups: Mapping[str, Sequence[str]] | None = None
) -> list[GroupCost]:
    """Quantize one group at a time, and rank the groups by what that costs, the costliest first.

    Args:
        subject: what is examined.
        on_group: called once per group, for progress.
        groups: the nodes of each group to rank; None takes all.
    """
    every = groups_of(subject.quantized)
    everything = [name for names in every.values() for name in names]
    in_int8 = set(quantized_convolutions(subject.quantized))
    ranked = []
    for group, names in (every if groups is None else groups).items():
        others = set(everything) - set(names)
        alone = remove_quantizers(subject.quantized, subject.original, others)
        convolutions = len(in_int8.intersection(names))
        ranked.append(GroupCost(group, tuple(names), convolutions, subject.compare(alone)))
        on_group()
    return sorted(ranked, key=lambda cost: -cost.cost)


def trade_off(
    subject: Subject, ranking: Sequence[GroupCost], counts: Sequence[int], on_point: Callable[[], None]
) -> list[Trade]:
    """Restore the costliest groups, more and more of them, and measure each point.

    Args:
        subject: what is examined.
        ranking: groups, the costliest first.
        counts: how many groups are restored at each point.
        on_point: called once per point, for progress.
    """
    points = []
    for count in counts:
        restored = ranking[:count]
        nodes = {name for cost in restored for name in cost.nodes}
        model = remove_quantizers(subject.quantized, subject.original, nodes)
        in_int8, _ = count_convolutions(model)
        names = tuple(cost.group for cost in restored)
        points.append(Trade(names, in_int8, int8_size_bytes(model), subject.compare(model)))
        on_point()
    return points


def int8_size_bytes(model: onnx.ModelProto) -> int:
    """Bytes of a network's weights if those of its int8 layers are stored as one byte each.

    ModelOpt leaves the weights of quantized layers in fp32 in front of a quantizer; the plan holds them as int8.
    """
    quantized = {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    total = 0
    for tensor in model.graph.initializer:
        width = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        total += math.prod(tensor.dims) * (1 if tensor.name in quantized else width)
    return total
