"""What a model family is to the builder: how it is recognized, and what its outputs mean.

A family says the same thing twice, by code that shares nothing: :meth:`Family.graft` puts nodes behind the network that
is served, :meth:`Family.standard` decodes in NumPy what the user's own file gives. The build compares the two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Floats = NDArray[np.float64]
Shape = tuple[int, ...]

BOX_CHANNELS: Final = 4
PROTOTYPE_STRIDE: Final = 4
"""Network pixels per cell of the mask prototypes, in all of these families."""
_REDUCE_AXES_ARE_INPUTS_SINCE_OPSET: Final = 18


@dataclass(frozen=True)
class InputFormat:
    """What a family's networks are fed.

    Attributes:
        stretch: whether an image fills the input; else it is letterboxed.
        mean: subtracted from the red, green and blue values in [0, 1].
        deviation: that they are then divided by.
    """

    stretch: bool = False
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    deviation: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def is_normalized(self) -> bool:
        """Whether the values are not just in [0, 1]."""
        return any(self.mean) or set(self.deviation) != {1.0}

    def planes(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What the network takes: float32 [n, 3, H, W] of RGB images uint8 [n, H, W, 3]."""
        values = images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
        if self.is_normalized:
            mean, deviation = (np.array(three, np.float32)[:, None, None] for three in (self.mean, self.deviation))
            values = (values - mean) / deviation
        return np.ascontiguousarray(values)


@dataclass(frozen=True)
class Suppression:
    """Non-maximum suppression as ultralytics builds it into a file (``nms=True``).

    Attributes:
        source_name: the file's output of final detections.
        detections_name: the tensor that the head gives, before suppression.
        confidence: only greater scores pass.
        iou: the worse of two boxes that overlap by more is dropped.
        is_per_class: only of boxes of one class.
    """

    source_name: str
    detections_name: str
    confidence: float
    iou: float
    is_per_class: bool


@dataclass(frozen=True)
class Selection:
    """The choice of the best rows as ultralytics builds it into an end-to-end head.

    Attributes:
        source_name: the file's output of final detections.
        detections_name: the tensor that the head gives, before the choice.
    """

    source_name: str
    detections_name: str


@dataclass(frozen=True)
class Seen:
    """What is known of a file before it is recognized.

    Attributes:
        outputs: name to shape, batch first, of one run.
        metadata: the file's properties.
        height: of the input, in pixels.
        width: likewise.
        num_names: class names in the metadata; 0 where there are none.
        suppression: that was cut off.
        selection: likewise.
        is_named: whether the user names the family.
    """

    outputs: Mapping[str, Shape]
    metadata: Mapping[str, str]
    height: int
    width: int
    num_names: int = 0
    suppression: Suppression | None = None
    selection: Selection | None = None
    is_named: bool = False

    @property
    def shown(self) -> str:
        """The outputs, for messages."""
        return ", ".join(f"{name} {list(shape)}" for name, shape in self.outputs.items())

    @property
    def flat(self) -> dict[str, Shape]:
        """Outputs of three axes: detections have them."""
        return {name: shape for name, shape in self.outputs.items() if len(shape) == 3}

    @property
    def planes(self) -> dict[str, Shape]:
        """Outputs of four axes that may be prototypes: a quarter of the input high and wide."""
        cells = (self.height // PROTOTYPE_STRIDE, self.width // PROTOTYPE_STRIDE)
        return {name: shape for name, shape in self.outputs.items() if len(shape) == 4 and shape[2:] == cells}

    def cells(self, strides: Sequence[int]) -> int:
        """Cells of the grids of these strides."""
        return sum((self.height // stride) * (self.width // stride) for stride in strides)


@dataclass(frozen=True)
class Layout:
    """What the outputs of one file mean.

    Attributes:
        family: that was recognized.
        detections_name: tensor of the detections.
        detections_shape: without batch.
        prototypes_name: tensor of the prototypes, or ready masks, [batch, C, H/4, W/4].
        prototypes_shape: without batch.
        num_classes: number of classes.
        num_anchors: rows of detections.
        source_name: the file's own output, where it is not ``detections_name``.
        limits: what the network's own end allows in a request (:class:`pipeline.parameters.RequestLimits`).
        further: more tensors that detections are made of, and their shapes without batch.
        has_ready_masks: whether there are masks in place of prototypes; a detection's only coefficient is the number of
            its mask.
    """

    family: Family
    detections_name: str
    detections_shape: Shape
    prototypes_name: str
    prototypes_shape: Shape
    num_classes: int
    num_anchors: int
    source_name: str
    limits: dict[str, float] = field(default_factory=dict)
    further: dict[str, Shape] = field(default_factory=dict)
    has_ready_masks: bool = False

    @property
    def num_coefficients(self) -> int:
        """Mask coefficients per detection."""
        return 1 if self.has_ready_masks else self.prototypes_shape[0]

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the input, in pixels."""
        return self.prototypes_shape[1] * PROTOTYPE_STRIDE, self.prototypes_shape[2] * PROTOTYPE_STRIDE

    @property
    def detections(self) -> dict[str, Shape]:
        """Name to shape, without batch, of the tensors that detections are made of."""
        return {self.detections_name: self.detections_shape, **self.further}

    @property
    def outputs(self) -> dict[str, Shape]:
        """Likewise of all tensors that the ends read."""
        return {**self.detections, self.prototypes_name: self.prototypes_shape}

    @property
    def source_names(self) -> tuple[str, ...]:
        """Outputs of the file, unchanged, that :meth:`Family.standard` takes."""
        return (self.source_name, *self.further)


class Ends:
    """Collects the nodes and constants that are put behind a network; all names begin with ``ends/``."""

    PREFIX: Final = "ends"

    def __init__(self, opset: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._opset = opset

    def at(self, name: str) -> str:
        """The tensor of this name."""
        return f"{self.PREFIX}/{name}"

    def constant(self, name: str, value: Any, kind: Any = np.int64) -> str:
        """A constant, made once."""
        tensor = numpy_helper.from_array(np.array(value, kind), self.at(name))
        self.constants[name] = tensor
        return tensor.name

    def node(self, operator: str, name: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        """A node; ``inputs`` and ``outputs`` are full names."""
        self.nodes.append(helper.make_node(operator, inputs, outputs, name=self.at(name), **attributes))

    def split(self, source: str, parts: Mapping[str, int], axis: int = 1) -> None:
        """Split a tensor into ``ends/<part>``, each of a size."""
        name = f"split_{source.rpartition('/')[2]}" if source.startswith(f"{self.PREFIX}/") else "split"
        sizes = self.constant(f"{name}_sizes", list(parts.values()))
        self.node("Split", name, [source, sizes], [self.at(part) for part in parts], axis=axis)

    def best_score(self, to: str) -> None:
        """``ends/class_scores`` [n, classes, rows] to ``ends/<to>`` [n, rows], the greatest of each row."""
        scores = self.at("class_scores")
        # ReduceMax took its axes as an attribute before opset 18.
        by_input = self._opset >= _REDUCE_AXES_ARE_INPUTS_SINCE_OPSET
        inputs = [scores, self.constant("axis_1", [1])] if by_input else [scores]
        axes = {} if by_input else {"axes": [1]}
        self.node("ReduceMax", "best_score", inputs, [self.at(to)], keepdims=0, **axes)

    def best_class(self) -> None:
        """``ends/class_scores`` [n, classes, rows] to ``score_per_anchor`` [n, rows], ``class_float`` [n, 1, rows]."""
        at = self.at
        self.best_score("score_per_anchor")
        self.node("ArgMax", "best_class", [at("class_scores")], [at("class_per_anchor")], axis=1, keepdims=1)
        self.node("Cast", "class_to_float", [at("class_per_anchor")], [at("class_float")], to=TensorProto.FLOAT)

    def best_pairs(self, source: str, rows: int, classes: int) -> None:
        """The best pairs of row and class, as many as rows, of scores [n, rows, classes].

        Makes ``score_per_anchor`` [n, rows], falling, ``pair_row`` [n, rows], and ``class_float`` [n, 1, rows].
        """
        at, node = self.at, self.node
        number = self.constant("classes", classes)
        node("Reshape", "pairs", [source, self.constant("pairs_shape", [0, rows * classes])], [at("pairs")])
        best = [at("score_per_anchor"), at("pair")]
        node("TopK", "top_pairs", [at("pairs"), self.constant("rows", [rows])], best, axis=1)
        node("Div", "pair_row", [at("pair"), number], [at("pair_row")])
        node("Mul", "first_pair", [at("pair_row"), number], [at("first_pair")])
        node("Sub", "pair_class", [at("pair"), at("first_pair")], [at("pair_class")])
        self.plane_of_floats("pair_class", "class_float")

    def plane_of_floats(self, source: str, to: str) -> None:
        """Whole numbers ``ends/<source>`` [n, rows] as floats ``ends/<to>`` [n, 1, rows]."""
        at = self.at
        self.node("Unsqueeze", f"{to}_plane", [at(source), self.constant("axis_1", [1])], [at(f"{to}_plane")])
        self.node("Cast", to, [at(f"{to}_plane")], [at(to)], to=TensorProto.FLOAT)

    def centers(self, first: str, second: str) -> list[str]:
        """Corners, two tensors [n, 2, rows], to the names of centers and sizes."""
        at = self.at
        self.node("Add", "corner_sum", [first, second], [at("corner_sum")])
        self.node("Mul", "centers", [at("corner_sum"), self.constant("half", 0.5, np.float32)], [at("centers")])
        self.node("Sub", "sizes", [second, first], [at("sizes")])
        return [at("centers"), at("sizes")]

    def gather(self, source: str, index: str, channels: int, rows: int, to: str) -> str:
        """Rows of ``source`` [n, channels, …] by ``index`` [n, rows]: the full name of ``ends/<to>``."""
        at = self.at
        self.node("Unsqueeze", f"{to}_plane", [index, self.constant("axis_1", [1])], [at(f"{to}_plane")])
        shape = self.constant(f"{to}_shape", [1, channels, rows])
        self.node("Expand", f"{to}_index", [at(f"{to}_plane"), shape], [at(f"{to}_index")])
        self.node("GatherElements", to, [source, at(f"{to}_index")], [at(to)], axis=2)
        return at(to)

    def features(self, parts: list[str]) -> None:
        """Join cx, cy, w, h, class and coefficients to ``feature_planes`` [n, 5 + C, rows]."""
        self.node("Concat", "features", parts, [self.at("feature_planes")], axis=1)


class Family(ABC):
    """A kind of export."""

    key: str
    """How ``--family`` and the manifest call it."""
    title: str
    """For people: the models that export it."""
    input: InputFormat = InputFormat()
    needs_dynamic_batch: str = ""
    """Where the batch of a static export cannot be taken out of the graph: how to export a dynamic one."""

    @abstractmethod
    def recognize(self, seen: Seen) -> Layout | None:
        """What the outputs mean; None if they are not this family's.

        Raises:
            ExportError: they are this family's, and cannot be served; says why.
        """

    @abstractmethod
    def graft(self, layout: Layout, ends: Ends) -> None:
        """Add nodes that make ``ends/score_per_anchor`` [n, rows] and ``ends/feature_planes`` [n, 5 + C, rows].

        The planes are cx, cy, w, h in network pixels, the class, and the coefficients.
        """

    def check(self, standard: Floats, num_classes: int, height: int, width: int) -> None:  # noqa: B027 - most have nothing to add
        """Refuse what the shapes do not show.

        Args:
            standard: of real images, see :meth:`standard`.
            num_classes: number of classes.
            height: of the input.
            width: likewise.

        Raises:
            ExportError: the outputs are not what they were taken for.
        """

    @abstractmethod
    def standard(self, found: Mapping[str, Floats], layout: Layout) -> Floats:
        """What the user's own file gives, as [n, 4 + classes + C, rows] of cx, cy, w, h, scores, coefficients.

        Args:
            found: float64, the file's outputs :attr:`Layout.source_names`.
            layout: what they mean.
        """


def prototypes_for(seen: Seen, channels: int) -> tuple[str, Shape] | None:
    """The prototypes whose number leaves room for a class among ``channels``; the largest number, if several do."""
    fitting = [(shape[1], name) for name, shape in seen.planes.items() if shape[1] < channels]
    if not fitting:
        return None
    _, name = max(fitting)
    return name, seen.planes[name][1:]
