"""From the network's outputs to encoded masks: this project, the whole-mask method, and other packages."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from load.bench import peers
from load.bench.baseline import plain
from load.bench.measure import Summary, interleave, ratio, repeats_for
from load.bench.report import Comparison
from load.bench.synthetic import Outputs, scene
from load.errors import LoadError
from pipeline import rle
from pipeline.parameters import RequestParameters
from pipeline.postprocess import postprocess

SIZES: Final = ((480, 640), (1080, 1920), (2160, 3840))
COUNTS: Final = (1, 10, 100)
OURS: Final = "this project"
WHOLE: Final = "whole masks"
LEAST_IOU: Final = 0.99
_PARAMETERS: Final = RequestParameters()


def run(rounds: int, log: Callable[[str], None]) -> Comparison:
    """Measure every scene; masks of each way are checked against a float64 computation in the same run.

    Raises:
        LoadError: a mask of this project is further from that computation than :data:`LEAST_IOU`.
    """
    cv2.setNumThreads(1)
    comparison = Comparison(
        "postprocess",
        "From one image's network outputs to COCO run lengths; wall time of one thread, in milliseconds. The other "
        "ways start from the plain export's outputs in float32, this project from its own top 1000 and float16.",
    )
    for count in COUNTS:
        for height, width in SIZES:
            name = f"{count} instances, {width}x{height}"
            outputs = scene(count, height, width, seed=count)
            ways = _ways(outputs)
            accuracy = {way: _worst_iou(work(), outputs) for way, work in ways.items()}
            timed = {way: timer(work) for way, work in ways.items()}
            times = interleave(timed, rounds)
            for way, values in times.items():
                comparison.add(name, way, "ms", Summary.of(values), {"worst_mask_iou": accuracy[way]})
                if way != OURS:
                    comparison.add_ratio(name, f"{way} / {OURS}", ratio(values, times[OURS]))
            log(comparison.lines_of(name))
            if accuracy[OURS] < LEAST_IOU:
                raise LoadError(f"{name}: a mask has an IoU of {accuracy[OURS]:.4f} with float64; least: {LEAST_IOU}")
    return comparison


def _ways(outputs: Outputs) -> dict[str, peers.MaskMaker]:
    def ours() -> tuple[NDArray[np.float32], list[bytes]]:
        found = postprocess(outputs.candidates, outputs.prototypes, outputs.geometry, _PARAMETERS)
        return found.boxes, found.masks

    def whole() -> tuple[NDArray[np.float32], list[bytes]]:
        found = plain.finish(outputs.detections, outputs.wide_prototypes, outputs.geometry)
        return found.boxes, found.masks

    others = {
        "ultralytics": peers.ultralytics_masks(outputs, _PARAMETERS.confidence, _PARAMETERS.iou),
        "edgefirst-decoder": peers.edgefirst_masks(outputs, _PARAMETERS.confidence, _PARAMETERS.iou),
    }
    return {OURS: ours, WHOLE: whole} | {name: work for name, work in others.items() if work is not None}


def timer(work: Callable[[], Any]) -> Callable[[], float]:
    """A call that measures the mean wall time of some calls of ``work``, in milliseconds."""
    repeats = repeats_for(work)

    def once() -> float:
        started = time.perf_counter()
        for _ in range(repeats):
            work()
        return (time.perf_counter() - started) * 1e3 / repeats

    return once


def _worst_iou(found: tuple[NDArray[np.float32], list[bytes]], outputs: Outputs) -> float:
    """Least mask IoU with the exact masks of this project's detections, matched by box; 0 if one is missing."""
    from pipeline.decode import decode_candidates

    wanted = decode_candidates(outputs.candidates, outputs.geometry, _PARAMETERS)
    boxes, encoded = found
    if len(boxes) != len(wanted.boxes):
        return 0.0
    worst = 1.0
    for box, weights in zip(wanted.boxes, wanted.coefficients, strict=True):
        (exact,) = plain.exact_masks(outputs.prototypes, weights[None], box[None], outputs.geometry)
        nearest = int(np.abs(boxes - box).sum(axis=1).argmin())
        mask = rle.decode(encoded[nearest], outputs.geometry.height, outputs.geometry.width)
        union = int((mask | exact).sum())
        worst = min(worst, int((mask & exact).sum()) / union if union else 1.0)
    return worst
