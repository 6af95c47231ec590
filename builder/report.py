"""One HTML page per version: how it was built, how it compares, and what its masks look like beside fp32's."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import jinja2
import numpy as np
from numpy.typing import NDArray

from builder.errors import BuilderError
from builder.sensitivity import Trade
from builder.trade import plot_trades
from pipeline import rle
from pipeline.images import decode_image
from pipeline.overlay import draw_overlay
from pipeline.postprocess import ImageSegmentation
from pipeline.result import Segmentation
from repository.manifest import Manifest

REPORT_NAME: Final = "report.html"
_EXAMPLES: Final = 4
_EXAMPLE_WIDTH: Final = 480
_TEMPLATE: Final = Path(__file__).with_name("report.html.jinja")


@dataclass(frozen=True)
class Example:
    """One verification image.

    Attributes:
        path: the image file.
        reference: what fp32 finds in it.
        found: what the version finds in it.
    """

    path: Path
    reference: ImageSegmentation
    found: ImageSegmentation


def choose_examples(
    reference: Sequence[ImageSegmentation], found: Sequence[ImageSegmentation], confidence: float
) -> list[int]:
    """Indices of a few images in which either finds something: the ones that agree least, which are worth looking at.

    They agree as far as their masks' unions overlap, times how alike their numbers of detections are.
    """

    def union(image: ImageSegmentation) -> NDArray[np.bool_]:
        whole = np.zeros((image.height, image.width), bool)
        for mask, score in zip(image.masks, image.scores, strict=True):
            if score >= confidence:
                whole |= rle.decode(mask, image.height, image.width)
        return whole

    agreement = []
    for index, (expected, actual) in enumerate(zip(reference, found, strict=True)):
        counts = sorted(int((image.scores >= confidence).sum()) for image in (expected, actual))
        if counts[1]:
            one, other = union(expected), union(actual)
            overlap = (one & other).sum() / max((one | other).sum(), 1)
            agreement.append((float(overlap) * counts[0] / counts[1], index))
    return [index for _, index in sorted(agreement)[:_EXAMPLES]]


def write_report(
    path: Path,
    manifest: Manifest,
    earlier: Sequence[Manifest],
    examples: Sequence[Example],
    trades: Sequence[Trade],
    confidence: float,
    ways_on: Sequence[str] = (),
) -> None:
    """Write the page: one file, nothing loaded from elsewhere.

    Args:
        path: the file.
        manifest: of the version.
        earlier: of the precisions that were built before it in the same run.
        examples: images to show.
        trades: what taking layers out of int8 gained; empty if the gate held at once.
        confidence: least score of a detection that is drawn.
        ways_on: what can be done, if the gate is not passed.
    """
    names = dict(enumerate(manifest.source["class_names"]))
    pictures = [
        {
            "name": example.path.name,
            "reference": _picture(example.path, example.reference, confidence, names),
            "found": _picture(example.path, example.found, confidence, names),
            "reference_count": int((example.reference.scores >= confidence).sum()),
            "found_count": int((example.found.scores >= confidence).sum()),
        }
        for example in examples
    ]
    page = _template().render(
        manifest=manifest,
        stages=[*earlier, manifest],
        pictures=pictures,
        trade_plot=_trade_plot(trades),
        ways_on=ways_on,
    )
    path.write_text(page, encoding="utf-8", errors="backslashreplace")  # names of images need not be UTF-8


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))


def _trade_plot(trades: Sequence[Trade]) -> str | None:
    """The trade as a data URI; None without one, or where matplotlib is not installed (the table says the same)."""
    if not trades:
        return None
    stream = io.BytesIO()
    try:
        plot_trades(trades, stream)
    except BuilderError:
        return None
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _picture(path: Path, image: ImageSegmentation, confidence: float, names: Mapping[int, str]) -> str:
    """The image with its detections drawn, as a data URI."""
    shown = image.scores >= confidence
    result = Segmentation(
        image.boxes[shown],
        image.scores[shown],
        image.class_ids[shown],
        tuple(mask for mask, keep in zip(image.masks, shown, strict=True) if keep),
        "rle",
        (image.height, image.width),
    )
    overlay = draw_overlay(decode_image(path.read_bytes()), result, class_names=names)
    height = max(1, round(overlay.shape[0] * _EXAMPLE_WIDTH / overlay.shape[1]))
    small = cv2.resize(overlay, (_EXAMPLE_WIDTH, height), interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
