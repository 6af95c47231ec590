"""A network as layers over maps: halves, [batch, height, width, channels], as tensor cores take them.

A convolution is taken with its bias, SiLU and residual. Concatenations and splits cost nothing: their parts are slices
of the channels of one buffer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from steps.gpu.head import Head

ALIGNED: Final = 8
"""Channels that are read and written at a time: 16 bytes."""


class UnsupportedNetwork(Exception):
    """Layers cannot be made of this network; the message says why."""


def aligned(channels: int) -> int:
    """Channels with what pads them in memory.

    Example:
        >>> aligned(65)
        72
    """
    return -(-channels // ALIGNED) * ALIGNED


@dataclass(eq=False)
class Map:
    """A tensor of halves [batch, height, width, channels].

    Attributes:
        height: in pixels; likewise the width.
        width: see there.
        channels: without what pads them.
        parent: the map that this one is a slice of; None if it has memory.
        first: its first channel there.
    """

    height: int
    width: int
    channels: int
    parent: Map | None = None
    first: int = 0

    def place(self) -> tuple[Map, int]:
        """The map with the memory, and the first channel there."""
        if self.parent is None:
            return self, 0
        root, first = self.parent.place()
        return root, first + self.first


@dataclass(eq=False, kw_only=True)
class Layer:
    """Something that reads maps and writes maps."""

    inputs: tuple[Map, ...] = ()
    outputs: tuple[Map, ...] = ()


@dataclass(eq=False, kw_only=True)
class Stem(Layer):
    """The network's input as blocks of pixels: what makes a strided convolution of 3 channels one of many channels.

    Attributes:
        block: height and width of a block in pixels; its pixels are the channels, row by row, 3 each.
        before: blocks of zeros above and left of the picture.
    """

    block: int
    before: int


@dataclass(eq=False, kw_only=True)
class Convolution(Layer):
    """A convolution with what follows it: bias, SiLU and the sum with a second input, in this order.

    Attributes:
        weight: halves [outputs, rows, columns, inputs], padded to :data:`ALIGNED`; of a depthwise one [rows, columns,
            channels].
        bias: halves [outputs].
        stride: of both axes.
        padding: rows above and below, columns left and right.
        silu: whether.
        depthwise: every channel by itself.
    """

    weight: NDArray[np.float16]
    bias: NDArray[np.float16]
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    silu: bool = False
    depthwise: bool = False


@dataclass(eq=False, kw_only=True)
class Sum(Layer):
    """The sum of two maps, or the copy of one."""


@dataclass(eq=False, kw_only=True)
class Pool(Layer):
    """Largest or mean value of windows."""

    size: int
    stride: int
    padding: int
    mean: bool


@dataclass(eq=False, kw_only=True)
class Enlarge(Layer):
    """Every pixel ``factor`` times in both axes; with ``shuffle``, each time with channels of its own."""

    factor: int
    shuffle: bool


@dataclass(eq=False, kw_only=True)
class Segment(Layer):
    """A part of the network that ONNX Runtime runs, [batch, channels, height, width].

    Attributes:
        model: serialized; its inputs and outputs are in the order of the maps, halves; after them the network's own.
        input_names: of them.
        output_names: likewise.
    """

    model: bytes
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]


@dataclass(frozen=True)
class Layers:
    """A network.

    Attributes:
        layers: in order.
        prototypes: where they are; None if a segment gives them.
        head: what makes candidates of which maps: three for each level, boxes, classes and coefficients; None if a
            segment does.
    """

    layers: tuple[Layer, ...]
    prototypes: Map | None
    head: tuple[Head, tuple[Map, ...]] | None

    @property
    def segments(self) -> int:
        """How many parts ONNX Runtime runs."""
        return sum(isinstance(layer, Segment) for layer in self.layers)

    @property
    def convolutions(self) -> int:
        """How many it does not run, those of one map taken together."""
        return sum(isinstance(layer, Convolution) for layer in self.layers)


def side_by_side(layers: Sequence[Layer]) -> list[Layer]:
    """Layers with convolutions of the same map made one, where their outputs can lie side by side."""
    alike: defaultdict[Any, list[Convolution]] = defaultdict(list)
    for layer in layers:
        if isinstance(layer, Convolution) and not layer.depthwise and len(layer.inputs) == 1:
            y = layer.outputs[0]
            if y.parent is None and y.channels % ALIGNED == 0:
                kind = layer.weight.shape[1:], layer.stride, layer.padding, layer.silu
                alike[layer.inputs[0].place(), kind].append(layer)
    merged: dict[int, Layer] = {}
    for group in alike.values():
        if len(group) == 1:
            continue
        y = group[0].outputs[0]
        whole, first = Map(y.height, y.width, sum(one.outputs[0].channels for one in group)), 0
        for one in group:
            one.outputs[0].parent, one.outputs[0].first = whole, first
            first += one.outputs[0].channels
        weight, bias = (np.concatenate(parts) for parts in zip(*((one.weight, one.bias) for one in group), strict=True))
        merged |= dict.fromkeys(map(id, group), replace(group[0], outputs=(whole,), weight=weight, bias=bias))
    return list(dict.fromkeys(merged.get(id(layer), layer) for layer in layers))
