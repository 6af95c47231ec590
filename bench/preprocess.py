"""From encoded images to the network's input: this project, plain decode + letterbox, and ultralytics' LetterBox."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bench import peers
from bench.measure import Summary, interleave, ratio
from bench.postprocess import timer
from bench.report import Comparison, Keep
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
_SIZE: Final = 640


def run(repository: Path, rounds: int, keep: Keep) -> Comparison:
    """Measure every picture; the fp32 network finds its instances in what each way makes of it, to compare them.

    Raises:
        BuilderError: the reference photographs cannot be had.
    """
    cv2.setNumThreads(1)
    segment = _Segmenter(repository)
    photograph = fetch_reference().photographs[0]
    comparison = Comparison(
        "preprocess",
        "From one encoded image to 640 x 640 pixels; wall time of one thread, in milliseconds. Boxes (in shares of the "
        "image's longer side) and masks are those of the fp32 network, against the plain way: decode whole, "
        "resize over areas (cv2.INTER_AREA), pad.",
    )
    for extension, megapixels in CASES:
        data = encode(at_megapixels(photograph, megapixels), extension)
        name = f"{'JPEG' if extension == '.jpg' else 'PNG'}, {megapixels:g} megapixels"
        ways = _ways(data)
        whole = segment(*ways[PLAIN]())
        moved = {way: _moved(segment(*work()), whole) for way, work in ways.items()}
        times = interleave({way: timer(work) for way, work in ways.items()}, rounds)
        for way, values in times.items():
            notes = {"box_shift": moved[way][0], "worst_mask_iou": moved[way][1]}
            comparison.add(name, way, "ms", Summary.of(values), notes)
            if way != OURS:
                comparison.add_ratio(name, f"{way} / {OURS}", ratio(values, times[OURS]))
        keep(comparison, name)
    return comparison


def _ways(data: bytes) -> dict[str, Callable[[], tuple[NDArray[np.uint8], Geometry]]]:
    def ours() -> tuple[NDArray[np.uint8], Geometry]:
        out = np.empty((_SIZE, _SIZE, 3), np.uint8)
        return out, preprocess(data, out)

    def plain() -> tuple[NDArray[np.uint8], Geometry]:
        image = decode_image(data)
        geometry = Geometry.fit(image.shape[0], image.shape[1], _SIZE, _SIZE)
        method = cv2.INTER_AREA if geometry.scale < 1 else cv2.INTER_LINEAR
        resized = cv2.resize(image, (geometry.resized_width, geometry.resized_height), interpolation=method)
        bottom = _SIZE - geometry.pad_top - geometry.resized_height
        right = _SIZE - geometry.pad_left - geometry.resized_width
        sides = (geometry.pad_top, bottom, geometry.pad_left, right)
        out = cv2.copyMakeBorder(resized, *sides, cv2.BORDER_CONSTANT, value=(PAD_VALUE,) * 3)
        return np.asarray(out, np.uint8), geometry

    ways: dict[str, Callable[[], tuple[NDArray[np.uint8], Geometry]]] = {OURS: ours, PLAIN: plain}
    augment = peers.available("ultralytics.data.augment")
    if augment is not None:
        ways[ULTRALYTICS] = _ultralytics(augment.LetterBox((_SIZE, _SIZE), auto=False), data)
    return ways


def _ultralytics(letterbox: Any, data: bytes) -> Callable[[], tuple[NDArray[np.uint8], Geometry]]:
    def work() -> tuple[NDArray[np.uint8], Geometry]:
        image = decode_image(data)
        return letterbox(image=image), Geometry.fit(image.shape[0], image.shape[1], _SIZE, _SIZE)

    return work


class _Segmenter:
    def __init__(self, repository: Path) -> None:
        self._session = ort.InferenceSession(str(network_path(repository, "fp32")), providers=["CPUExecutionProvider"])

    def __call__(self, pixels: NDArray[np.uint8], geometry: Geometry) -> ImageSegmentation:
        names = [contract.CANDIDATES.name, contract.PROTOTYPES.name]
        candidates, prototypes = self._session.run(names, {contract.IMAGES.name: pixels[None]})
        return postprocess(candidates[0], prototypes[0], geometry, RequestParameters())


def _moved(found: ImageSegmentation, whole: ImageSegmentation) -> tuple[float, float]:
    """Largest shift of a box side in shares of the longer image side, and least mask IoU; (1, 0) if counts differ."""
    if len(found.boxes) != len(whole.boxes) or not len(whole.boxes):
        return 1.0, 0.0
    shift = float(np.abs(found.boxes - whole.boxes).max()) / max(whole.height, whole.width)
    overlaps = []
    for one, other in zip(found.masks, whole.masks, strict=True):
        mask, exact = (rle.decode(counts, whole.height, whole.width) for counts in (one, other))
        overlaps.append(float((mask & exact).sum() / (mask | exact).sum()))
    return shift, min(overlaps)
