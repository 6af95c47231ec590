"""From the network's outputs to encoded masks: this project, the whole-mask method, and ultralytics."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bench import peers, plain
from bench.report import PartReport
from bench.synthetic import INPUT_SIZE, Outputs, scene
from load.errors import LoadError
from load.photographs import network_path
from pipeline import contract, rle
from pipeline.decode import decode_candidates
from pipeline.parameters import RequestParameters
from pipeline.postprocess import postprocess
from pipeline.preprocess import preprocess
from scenes.reference import fetch_reference

SIZES: Final = ((480, 640), (1080, 1920), (2160, 3840))
COUNTS: Final = (1, 10, 100)
OURS: Final = "this project"
WHOLE: Final = "whole masks"
LEAST_IOU: Final = 0.99
_PARAMETERS: Final = RequestParameters()


def run(options: argparse.Namespace) -> None:
    """Measure every scene; masks of each way are checked against a float64 computation in the same run.

    Raises:
        OperatorError: the reference photographs are not available.
        LoadError: the IoU of a mask of this project with that computation is below :data:`LEAST_IOU`.
    """
    cv2.setNumThreads(1)
    report = PartReport(
        "postprocess",
        "From one image's network outputs to COCO run lengths; wall time of one thread, in milliseconds. The other "
        "ways start from the plain export's outputs in float32, this project from its own top 1000 and float16.",
        options.out,
    )
    for case, outputs in (*_scenes(), *_photographs(options.repository)):
        ways = _ways(outputs)
        accuracy = {way: {"worst_mask_iou": _worst_iou(work(), outputs)} for way, work in ways.items()}
        report.compare(case, ways, OURS, options.rounds, accuracy)
        if (worst := accuracy[OURS]["worst_mask_iou"]) < LEAST_IOU:
            raise LoadError(f"{case}: a mask has an IoU of {worst:.4f} with float64; least: {LEAST_IOU}")
    report.draw()


def _scenes() -> Iterator[tuple[str, Outputs]]:
    for count in COUNTS:
        for height, width in SIZES:
            yield f"{count} instances, {width}x{height}", scene(count, height, width, seed=count)


def _photographs(repository: Path) -> Iterator[tuple[str, Outputs]]:
    """Outputs of the fp32 network and of the plain export for the reference photographs."""
    reference = fetch_reference()
    own, whole = (ort.InferenceSession(str(path)) for path in (network_path(repository, "fp32"), reference.onnx))
    for path in reference.photographs:
        pixels = np.empty((1, INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
        geometry = preprocess(path.read_bytes(), pixels[0])
        candidates, prototypes = own.run(
            [contract.CANDIDATES.name, contract.PROTOTYPES.name], {contract.IMAGES.name: pixels}
        )
        planes = pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
        detections, wide = whole.run(None, {whole.get_inputs()[0].name: planes})
        instances = len(decode_candidates(candidates[0], geometry, _PARAMETERS).scores)
        yield (
            f"photograph {path.stem}, {instances} instance{'s' if instances > 1 else ''}",
            Outputs(geometry, detections[0], candidates[0], prototypes[0], wide[0]),
        )


def _ways(outputs: Outputs) -> dict[str, peers.MaskMaker]:
    def ours() -> tuple[NDArray[np.float32], list[bytes]]:
        found = postprocess(outputs.candidates, outputs.prototypes, outputs.geometry, _PARAMETERS)
        return found.boxes, found.masks

    def whole() -> tuple[NDArray[np.float32], list[bytes]]:
        found = plain.finish(outputs.detections, outputs.wide_prototypes, outputs.geometry)
        return found.boxes, found.masks

    theirs = peers.ultralytics_masks(outputs, _PARAMETERS.confidence, _PARAMETERS.iou)
    return {OURS: ours, WHOLE: whole} | ({"ultralytics": theirs} if theirs is not None else {})


def _worst_iou(found: tuple[NDArray[np.float32], list[bytes]], outputs: Outputs) -> float:
    """Least mask IoU with the exact masks of this project's detections, matched by box; 0 if one is missing."""
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
