"""From encoded images to the network's input: this project, plain decode + letterbox, and ultralytics' LetterBox."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Final, TypeAlias

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bench import peers
from bench.report import PartReport
from bench.synthetic import INPUT_SIZE
from load.photographs import at_megapixels, encode, network_path
from pipeline import contract, rle
from pipeline.images import decode_image
from pipeline.letterbox import PAD_VALUE, Geometry
from pipeline.parameters import RequestParameters
from pipeline.postprocess import ImageSegmentation, postprocess
from pipeline.preprocess import preprocess
from scenes.reference import fetch_reference

OURS: Final = "this project"
PLAIN: Final = "plain decode + letterbox"
ULTRALYTICS: Final = "ultralytics LetterBox"
CASES: Final = ((".jpg", 0.5), (".jpg", 2.0), (".jpg", 12.0), (".jpg", 24.0), (".png", 0.5), (".png", 2.0))

Way: TypeAlias = "Callable[[], tuple[NDArray[np.uint8], Geometry]]"
"""From one encoded image to the network's pixels, uint8 [640, 640, 3], and where the image lies in them."""


def run(options: argparse.Namespace) -> None:
    """Measure every picture; the fp32 network segments the pixels of each way, to compare them.

    Raises:
        OperatorError: the reference photographs are not available.
    """
    cv2.setNumThreads(1)
    path = network_path(options.repository, "fp32")
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    photograph = fetch_reference().photographs[0]
    report = PartReport(
        "preprocess",
        "From one encoded image to 640 x 640 pixels; wall time of one thread, in milliseconds. Boxes (in shares of the "
        "image's longer side) and masks are those of the fp32 network, against the plain way: decode whole, "
        "resize over areas (cv2.INTER_AREA), pad.",
        options.out,
    )
    for extension, megapixels in CASES:
        data = encode(at_megapixels(photograph, megapixels), extension)
        case = f"{'JPEG' if extension == '.jpg' else 'PNG'}, {megapixels:g} megapixels"
        ways = _ways(data)
        segmented = {way: _segmented(session, *work()) for way, work in ways.items()}
        moved = {way: _moved(found, segmented[PLAIN]) for way, found in segmented.items()}
        report.compare(case, ways, OURS, options.rounds, moved)
    report.draw()


def _ways(data: bytes) -> dict[str, Way]:
    def ours() -> tuple[NDArray[np.uint8], Geometry]:
        out = np.empty((INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
        return out, preprocess(data, out)

    def plain() -> tuple[NDArray[np.uint8], Geometry]:
        image = decode_image(data)
        geometry = Geometry.fit(image.shape[0], image.shape[1], INPUT_SIZE, INPUT_SIZE)
        method = cv2.INTER_AREA if geometry.scale_x < 1 else cv2.INTER_LINEAR
        resized = cv2.resize(image, (geometry.resized_width, geometry.resized_height), interpolation=method)
        bottom = INPUT_SIZE - geometry.pad_top - geometry.resized_height
        right = INPUT_SIZE - geometry.pad_left - geometry.resized_width
        sides = (geometry.pad_top, bottom, geometry.pad_left, right)
        out = cv2.copyMakeBorder(resized, *sides, cv2.BORDER_CONSTANT, value=(PAD_VALUE,) * 3)
        return np.asarray(out, np.uint8), geometry

    def ultralytics() -> tuple[NDArray[np.uint8], Geometry]:
        image = decode_image(data)
        return letterbox(image=image), Geometry.fit(image.shape[0], image.shape[1], INPUT_SIZE, INPUT_SIZE)

    ways: dict[str, Way] = {OURS: ours, PLAIN: plain}
    if (augment := peers.available("ultralytics.data.augment")) is not None:
        letterbox = augment.LetterBox((INPUT_SIZE, INPUT_SIZE), auto=False)
        ways[ULTRALYTICS] = ultralytics
    return ways


def _segmented(session: ort.InferenceSession, pixels: NDArray[np.uint8], geometry: Geometry) -> ImageSegmentation:
    names = [contract.CANDIDATES.name, contract.PROTOTYPES.name]
    candidates, prototypes = session.run(names, {contract.IMAGES.name: pixels[None]})
    return postprocess(candidates[0], prototypes[0], geometry, RequestParameters())


def _moved(found: ImageSegmentation, whole: ImageSegmentation) -> dict[str, float]:
    """Largest shift of a box side in shares of the longer image side, and least mask IoU; 1 and 0 if counts differ."""
    if len(found.boxes) != len(whole.boxes) or not len(whole.boxes):
        return {"box_shift": 1.0, "worst_mask_iou": 0.0}
    shift = float(np.abs(found.boxes - whole.boxes).max()) / max(whole.height, whole.width)
    overlaps = []
    for one, other in zip(found.masks, whole.masks, strict=True):
        mask, exact = (rle.decode(counts, whole.height, whole.width) for counts in (one, other))
        overlaps.append(float((mask & exact).sum() / (mask | exact).sum()))
    return {"box_shift": shift, "worst_mask_iou": min(overlaps)}
