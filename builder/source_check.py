"""Proves that the fp32 network made of an export gives what the export's file gives, before anything is written.

Like :mod:`builder.source`, it shares no code with what serves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from builder.errors import ExportError
from builder.export import Export
from builder.families.base import Layout
from builder.families.metadata import EXPORT_COMMAND
from builder.onnx_tools import first_line, label, quiet_session, set_nodes
from builder.source import Floats, SourceNetwork, blobs, suppressed

BOX_TOLERANCE_PX: Final = 0.1
"""Most that a box of the fp32 network may differ from the export's, in network pixels."""
SCORE_TOLERANCE: Final = 1e-4
"""Most that a score of the fp32 network may differ from the export's."""
HALF_BOX_SHARE: Final = 0.005
"""Most that the boxes of an export in half precision may differ in the middle from what its weights give in single
precision, as a share of the input's longer side: the file rounds every value to 11 significant bits."""
HALF_SCORE: Final = 0.02
"""Likewise of scores."""
CHECK_IMAGES: Final = 8
"""Images that the fp32 network is compared on, candidate by candidate, before anything is written."""

_COMPARED_ROWS: Final = 300
_RANGE_TOLERANCE: Final = 1e-3  # a sigmoid in half precision may end a little above 1
_MASK_TOLERANCE: Final = 2e-3  # prototypes leave in half precision: 11 significant bits
_NODE_TOLERANCE: Final = 1e-3
_TENSORS_PER_RUN: Final = 64
_ROUNDED_ROWS: Final = 50


@dataclass(frozen=True)
class Differences:
    """How far boxes and scores are from those of the export's file.

    Attributes:
        images: compared.
        matched: detections, or candidates, compared.
        box_max_px: greatest distance of a box's sides, in network pixels.
        box_mean_px: their mean.
        score_max: greatest difference of scores.
        score_mean: their mean.
    """

    images: int
    matched: int
    box_max_px: float
    box_mean_px: float
    score_max: float
    score_mean: float

    @classmethod
    def of(cls, images: int, boxes: Iterable[NDArray[Any]], scores: Iterable[NDArray[Any]]) -> Differences:
        """Sum up.

        Args:
            images: number of images.
            boxes: distances in network pixels, any shapes.
            scores: differences of scores, any shapes.
        """
        distances, offsets = (
            np.concatenate([np.zeros(0), *(np.ravel(array) for array in arrays)]) for arrays in (boxes, scores)
        )
        if not len(offsets):
            return cls(images, 0, 0.0, 0.0, 0.0, 0.0)
        numbers = (distances.max(), distances.mean(), offsets.max(), offsets.mean())
        return cls(images, len(offsets), *map(float, numbers))

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {key: round(value, 7) if isinstance(value, float) else value for key, value in vars(self).items()}

    def summary(self) -> str:
        """One line for people."""
        return (
            f"boxes within {self.box_max_px:.4f} network pixels of the export's (mean {self.box_mean_px:.4f}), "
            f"scores within {self.score_max:.6f} ({self.matched} compared on {self.images} image(s))"
        )


def check_source(
    export: Export, network: onnx.ModelProto, grafted: onnx.ModelProto, images: NDArray[np.uint8]
) -> Differences:
    """Prove that the fp32 network gives what the export's file gives, also for several images at a time.

    Args:
        export: the file and its graph as it was read.
        network: float32 network of dynamic batch, tensors still named as in the export; its input is the first.
        grafted: the fp32 network that is served: uint8 [n, H, W, 3] to candidates [n, K, 6 + C] (score, cx, cy, w, h,
            class, C coefficients) and prototypes [n, C, H/4, W/4].
        images: uint8 [n, H, W, 3] RGB, letterboxed; at least one.

    Returns:
        How far the two differ, within :data:`BOX_TOLERANCE_PX` and :data:`SCORE_TOLERANCE`.

    Raises:
        ExportError: they differ by more, or the export's outputs cannot be served; says what, and the first node that
            differs if it can be identified.
    """
    if len(images) < 3:  # a batch must hold different images
        images = np.concatenate([images, images[:, :, ::-1], images[:, ::-1]])
    detections, prototypes = SourceNetwork(export).run(images)
    _check_outputs(export, images, detections, prototypes)
    export.layout.family.check(detections, export.num_classes, *export.input_size)
    if export.is_half:
        _check_rounding(export, images, detections)
    boxes: list[Floats] = []
    scores: list[Floats] = []

    def refusal(size: int, fault: str) -> ExportError:
        return _refusal(export, first_difference(export, network, images[:size]), size, fault)

    feed, *wanted = (value.name for value in (grafted.graph.input[0], *grafted.graph.output))
    try:
        session = quiet_session(grafted.SerializeToString())
    except Exception as error:  # ONNX Runtime has one exception type per status
        raise refusal(1, f"does not load ({first_line(error)})") from error
    first = 0
    while first < len(images):
        size = min(first + 1, 3, len(images) - first)  # batches of 1, 2, and then 3
        try:
            candidates, planes = session.run(wanted, {feed: images[first : first + size]})
            if candidates.shape[0] != size or planes.shape[0] != size:
                raise ValueError(f"a batch of {size} images gives {candidates.shape[0]} answers")
        except Exception as error:  # ONNX Runtime has one exception type per status
            raise refusal(size, f"does not run ({first_line(error)})") from error
        for index, (rows, plane) in enumerate(zip(candidates, planes, strict=True), first):
            box, score = _row_differences(
                _as_in_file(rows.astype(np.float64), export), detections[index], export.num_classes
            )
            boxes.append(box)
            scores.append(score)
            fault = _fault(box, score, plane, prototypes[index])
            if fault is not None:
                raise refusal(size, fault)
        first += size
    return Differences.of(len(images), boxes, scores)


def _check_outputs(export: Export, images: NDArray[np.uint8], detections: Floats, prototypes: Floats) -> None:
    for name, array in ((export.layout.source_name, detections), (export.prototypes_name, prototypes)):
        if not np.isfinite(array).all():
            node = _first_not_finite(export, images)
            raise ExportError(
                f"{export.path}: the output {name!r} holds NaN or infinite values on real images{node}; the weights "
                "are damaged, or training diverged. Export a working checkpoint"
            )
    check_ranges(export.path, export.layout, detections)


def check_ranges(path: Path, layout: Layout, detections: Floats) -> None:
    """Refuse logits, and boxes that are normalized.

    Args:
        path: of the file.
        layout: of its outputs.
        detections: float64 [n, 4 + classes + C, rows], see :meth:`builder.families.base.Family.standard`.

    Raises:
        ExportError: the values are not scores and pixels.
    """
    scores = detections[:, 4 : 4 + layout.num_classes]
    low, high = float(scores.min()), float(scores.max())
    if low < -_RANGE_TOLERANCE or high > 1 + _RANGE_TOLERANCE:
        raise ExportError(
            f"{path}: its scores lie outside [0, 1] (from {low:.4g} to {high:.4g} on real images): the output "
            f"{layout.source_name!r} holds logits, without the sigmoid behind them. Export again as ultralytics "
            f"does it (`{EXPORT_COMMAND}`), or add a Sigmoid behind the class scores"
        )
    reach = float(np.abs(detections[:, :4]).max())
    if reach <= 2:
        raise ExportError(
            f"{path}: its boxes reach {reach:.3g} at most: they are normalized to the input's size; expected: "
            f"pixels of the network's input. Export again as ultralytics does it (`{EXPORT_COMMAND}`)"
        )


def _check_rounding(export: Export, images: NDArray[np.uint8], detections: Floats) -> None:
    """An export in half precision gives what its weights give in single precision, but for its rounding.

    Each of the best rows is compared with the nearest of the file, and the middle of the differences counts: rounding
    moves single rows far where the network is uncertain.

    Raises:
        ExportError: they differ by more than rounding explains.
    """
    classes = slice(4, 4 + export.num_classes)
    distances, offsets = [], []
    for one, other in zip(detections, SourceNetwork(export, as_it_is=True).run(images)[0], strict=True):
        for index in np.argsort(-one[classes].max(axis=0))[:_ROUNDED_ROWS]:
            distance = np.abs(other[:4] - one[:4, index, None]).max(axis=0)
            offset = np.abs(other[classes] - one[classes, index, None]).max(axis=0)
            nearest = int(np.argmin(distance + offset))
            distances.append(distance[nearest])
            offsets.append(offset[nearest])
    box, score = float(np.median(distances)), float(np.median(offsets))
    if not (box <= HALF_BOX_SHARE * max(export.input_size) and score <= HALF_SCORE):
        raise ExportError(
            f"{export.path}: half of the boxes differ by more than {box:.4g} network pixels, or of the scores by more "
            f"than {score:.4g}, from what the weights give in single precision: more than half precision explains. "
            f"Export again without half=True (`{EXPORT_COMMAND}`)"
        )


def _as_in_file(rows: Floats, export: Export) -> Floats:
    """One image's candidates, behind the suppression that the file has inside, if it has; as many as its rows."""
    limits = export.layout.limits
    if "least_confidence" not in limits:
        return rows
    most = int(limits["most_detections"])
    left = suppressed(rows, limits["least_confidence"], limits["most_iou"], most)
    return np.concatenate([left, np.zeros((most - len(left), rows.shape[1]))])


def _row_differences(rows: Floats, detections: Floats, num_classes: int) -> tuple[Floats, Floats]:
    """Differences of one image's candidates from the export's rows.

    Args:
        rows: float64 [K, 6 + C] by falling score.
        detections: float64 [4 + classes + C, anchors], of the export's file.
        num_classes: number of classes.

    Returns:
        Box and score differences of the best rows, each against the anchor that is nearest to it; and the scores of all
        rows against the export's sorted ones, which shows anchors that were lost.
    """
    scores = detections[4 : 4 + num_classes]
    order = np.sort(scores.max(axis=0))[::-1][: len(rows)]
    boxes, offsets = [], [np.abs(rows[:, 0] - order)]
    anchors = detections[:4].T
    for row in rows[:_COMPARED_ROWS]:
        distance = np.abs(anchors - row[1:5]).max(axis=1)
        offset = np.abs(scores[int(np.clip(row[5], 0, num_classes - 1))] - row[0])
        cost = np.maximum(distance / BOX_TOLERANCE_PX, offset / SCORE_TOLERANCE)
        # Coefficients tell apart what lies in the same place; they are large where boxes agree but masks would not.
        near = np.flatnonzero(cost <= max(1.0, cost.min()))
        masks = np.abs(detections[4 + num_classes :, near] - row[6:, None]).max(axis=0, initial=0)
        limit = _MASK_TOLERANCE * max(1.0, float(np.abs(row[6:]).max(initial=0)))
        best = near[masks <= limit]
        if not len(best):
            return np.array([np.inf]), np.array([np.inf])
        best = best[np.argmin(cost[best])]
        boxes.append(distance[best])
        offsets.append(offset[best : best + 1])
    return np.array(boxes), np.concatenate(offsets)


def _fault(boxes: Floats, scores: Floats, plane: NDArray[Any], prototypes: Floats) -> str | None:
    if np.isinf(boxes).any():
        return "gives candidates that no anchor of the file has"
    if boxes.max(initial=0) > BOX_TOLERANCE_PX or scores.max(initial=0) > SCORE_TOLERANCE:
        return (
            f"gives boxes up to {boxes.max(initial=0):.4g} network pixels and scores up to {scores.max(initial=0):.4g} "
            "off"
        )
    limit = _MASK_TOLERANCE * max(1.0, float(np.abs(prototypes).max()))
    if plane.shape != prototypes.shape or np.abs(plane.astype(np.float64) - prototypes).max() > limit:
        return "gives other mask prototypes"
    return None


def _refusal(export: Export, node: str | None, size: int, fault: str) -> ExportError:
    where = f"; the first node that differs is {node}" if node else ""
    if size == 1:
        what = "the network made of it"
        other = "of dynamic batch" if export.batch is not None else "with the batch and size fixed"
        remedy = (
            "This is a fault of the builder, not of the file: report it with the file. Until then, an export "
            f"{other} (`{EXPORT_COMMAND} dynamic={export.batch is not None}`) may work"
        )
    else:
        what = f"the batch size is baked into the export: with {size} images at a time the network made of it"
        remedy = f"Export again with dynamic=True (`{EXPORT_COMMAND} dynamic=True`)"
        if export.batch is None:
            remedy = f"Export again with a fixed batch (`{EXPORT_COMMAND} dynamic=False batch=1`)"
    return ExportError(f"{export.path}: {what} {fault}{where}. Nothing was written. {remedy}")


def first_difference(export: Export, network: onnx.ModelProto, images: NDArray[np.uint8]) -> str | None:
    """The first node, in the export's order, whose value differs in the transformed network.

    Args:
        export: the export; its graph gets the images in its batch.
        network: what was made of it, tensors still named as in the export; it gets the images together.
        images: uint8 [n, H, W, 3].

    Returns:
        The node's name and operator; None if no node differs.
    """
    there = {name for node in network.graph.node for name in node.output}
    nodes = [node for node in export.model.graph.node if node.output[0] in there]
    wanted = export.layout.family.input
    batches = list(blobs(export.batch, images, wanted))
    together = {network.graph.input[0].name: wanted.planes(images)}

    def differing(group: Sequence[onnx.NodeProto]) -> onnx.NodeProto | None:
        names = [node.output[0] for node in group]
        parts = [_values(export.model, names, {export.input_name: blob}) for blob in batches]
        values = _values(network, names, together)
        columns = zip(group, zip(*parts, strict=True), values, strict=True)
        return next((node for node, mine, other in columns if _differs(mine, other, len(images))), None)

    for first in range(0, len(nodes), _TENSORS_PER_RUN):
        group = nodes[first : first + _TENSORS_PER_RUN]
        try:
            found = differing(group)
        except Exception:  # one of them does not run in one of the graphs
            found = _first_that(group, differing)
        if found is not None:
            return f"{label(found)} ({found.op_type})"
    return None


def _first_that(
    group: Sequence[onnx.NodeProto], differing: Callable[[Sequence[onnx.NodeProto]], onnx.NodeProto | None]
) -> onnx.NodeProto | None:
    """The first node that differs or does not run; each node runs by itself."""
    for node in group:
        try:
            if differing([node]) is not None:
                return node
        except Exception:  # ONNX Runtime has one exception type per status
            return node
    return None


def _differs(parts: Sequence[NDArray[Any]], value: NDArray[Any], count: int) -> bool:
    expected = parts[0]
    if len(parts) > 1 or (expected.ndim and value.ndim and len(expected) != len(value)):
        if any(part.shape != expected.shape for part in parts) or not expected.ndim:
            return False
        whole = np.concatenate(parts)
        # What does not depend on the image, such as the anchors, is the same in every part.
        expected = expected if value.shape == expected.shape and len(value) != count else whole[: len(value)]
    if expected.shape != value.shape:
        return True
    if not np.issubdtype(value.dtype, np.floating):
        return False  # shapes may well differ in their batch
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    return not np.allclose(expected, value, rtol=0, atol=_NODE_TOLERANCE * scale, equal_nan=True)


def _first_not_finite(export: Export, images: NDArray[np.uint8]) -> str:
    nodes = list(export.model.graph.node)
    feeds = {export.input_name: next(blobs(export.batch, images[:1], export.layout.family.input))}
    for first in range(0, len(nodes), _TENSORS_PER_RUN):
        group = nodes[first : first + _TENSORS_PER_RUN]
        try:
            values = _values(export.model, [node.output[0] for node in group], feeds)
        except Exception:  # without its inner values, the refusal names no node
            return ""
        for node, value in zip(group, values, strict=True):
            if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
                return f", first behind the node {label(node)} ({node.op_type})"
    return ""


def _values(model: onnx.ModelProto, names: Sequence[str], feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Values of tensors inside a graph; only what leads to them is run."""
    part = onnx.ModelProto()
    part.CopyFrom(model)
    graph = part.graph
    needed = set(names)
    nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    set_nodes(graph, reversed(nodes))
    del graph.output[:]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    values: list[NDArray[Any]] = quiet_session(part.SerializeToString()).run(list(names), feeds)
    return values
