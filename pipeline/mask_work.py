"""How long the masks of a request take, estimated from their boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ParameterError
from pipeline.letterbox import Geometry
from pipeline.parameters import RequestParameters
from pipeline.png_mask import row_bytes

# Measured on one core of an AMD EPYC: a thousand detections of the reference model at 49 megapixels, in photographs
# and in noise.
_SECONDS_PER_COLUMN: Final = {"none": 0.0, "rle": 1.0e-6, "polygon": 4.0e-6, "png": 1.5e-6, "png_base64": 1.5e-6}
_SECONDS_PER_ROW_BYTE: Final = {"png": 4.0e-9, "png_base64": 5.0e-9}


def check_mask_work(
    boxes: Sequence[NDArray[np.float32]],
    geometries: Sequence[Geometry],
    parameters: RequestParameters,
    allowed_s: float,
) -> float:
    """About how long one core takes for the masks of a request, in seconds.

    Args:
        boxes: where the masks of each of its images lie (see :func:`pipeline.masks.mask_boxes`).
        geometries: of the same images.
        parameters: of the request.
        allowed_s: most that one request may take.

    Raises:
        ParameterError: it is more; says how many detections would be allowed.

    Example:
        >>> boxes = np.array([[0, 0, 999, 100]], np.float32)
        >>> work_s = check_mask_work([boxes], [Geometry.fit(1000, 2000, 640, 640)], RequestParameters(), 1.0)
        >>> round(work_s, 6)
        0.001
    """
    mask_format = parameters.mask_format
    images = [
        _mask_seconds(one, where.height, where.width, mask_format) for one, where in zip(boxes, geometries, strict=True)
    ]
    total_s = float(sum(seconds.sum() for seconds in images))
    if total_s <= allowed_s:
        return total_s
    most = max(map(len, images))
    padded = np.zeros((len(images), most))
    for row, seconds in zip(padded, images, strict=True):
        row[: len(seconds)] = seconds
    fitting = int(np.searchsorted(np.cumsum(padded.sum(axis=0)), allowed_s, side="right"))
    largest = max(geometries, key=lambda where: where.height * where.width)
    remedies = [f"set max_detections to {fitting} or less"] if fitting else []
    remedies += ["raise confidence", "send a smaller picture", *(["fewer images a request"] if len(images) > 1 else [])]
    remedies += ["ask for mask_format 'rle'"] if mask_format != "rle" else []
    where = f"{'images of up to' if len(images) > 1 else 'an image of'} {largest.width}x{largest.height} pixels"
    raise ParameterError(
        f"the masks of {sum(map(len, images))} detections as {mask_format!r}, in {where}, would take about "
        f"{total_s:.1f} s; allowed: {allowed_s:.1f} s a request. Remedies: {', '.join(remedies)}"
    )


def _mask_seconds(boxes: NDArray[np.float32], height: int, width: int, mask_format: str) -> NDArray[np.float64]:
    """Seconds for the mask of each box [n, 4] in an image of ``height`` x ``width`` pixels: float64 [n].

    Masks cost by the pixel columns of their boxes, and PNG also by the bytes of the image's rows that the box reaches.
    """
    columns, rows = np.minimum(boxes[:, 2:] - boxes[:, :2] + 1, (width, height)).T.astype(np.float64)
    row_cost = row_bytes(width) * _SECONDS_PER_ROW_BYTE.get(mask_format, 0.0)
    return np.asarray(columns * _SECONDS_PER_COLUMN[mask_format] + rows * row_cost, np.float64)
