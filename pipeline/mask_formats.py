"""The encodings in which masks leave the server, and the way back."""

from __future__ import annotations

import json
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline import rle
from pipeline.contract import MASK_FORMATS
from pipeline.masks import MaskRuns


def encode_masks(masks: Sequence[MaskRuns], mask_format: str) -> list[bytes]:
    """Encode the masks of one image.

    Args:
        masks: the masks.
        mask_format: ``rle``: COCO compressed ``counts``. ``polygon``: JSON list of polygons, each a flat list of
            x, y of boundary pixels; filled with their boundary (``cv2.fillPoly``) they give the mask, its holes
            closed. ``png``: one-bit PNG of the whole image. ``none``: no bytes.

    Raises:
        ValueError: an unknown format.
    """
    if mask_format == "rle":
        return rle.encode_all(masks)
    if mask_format == "polygon":
        return [json.dumps(_polygons(mask), separators=(",", ":")).encode() for mask in masks]
    if mask_format == "png":
        return [_png(mask) for mask in masks]
    if mask_format == "none":
        return [b""] * len(masks)
    raise ValueError(f"mask format {mask_format!r}; allowed: {', '.join(MASK_FORMATS)}")


def decode_mask(encoded: bytes, mask_format: str, height: int, width: int) -> NDArray[np.bool_]:
    """Decode one mask to bool [height, width].

    Args:
        encoded: bytes as :func:`encode_masks` writes them.
        mask_format: the format they are in.
        height: of the image, in pixels.
        width: of the image, in pixels.

    Raises:
        ValueError: ``none`` (no mask was asked for), an unknown format, or bytes that are not a mask of this size.
    """
    if mask_format == "rle":
        return rle.decode(encoded, height, width)
    if mask_format == "polygon":
        mask = np.zeros((height, width), np.uint8)
        for polygon in json.loads(encoded):
            cv2.fillPoly(mask, [np.array(polygon, np.int32).reshape(-1, 2)], (1,))
        return mask.astype(bool)
    if mask_format == "png":
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE)
        if image is None or image.shape != (height, width):
            raise ValueError(f"the bytes are not a PNG mask of {height}x{width} pixels")
        return np.asarray(image) > 0
    if mask_format == "none":
        raise ValueError("no masks were asked for: mask_format was 'none'")
    raise ValueError(f"mask format {mask_format!r}; allowed: {', '.join(MASK_FORMATS)}")


def _png(mask: MaskRuns) -> bytes:
    _, png = cv2.imencode(".png", mask.to_image().view(np.uint8) * np.uint8(255), [cv2.IMWRITE_PNG_BILEVEL, 1])
    return png.tobytes()


def _polygons(mask: MaskRuns) -> list[list[int]]:
    if not len(mask.starts):
        return []
    # Only the columns that the mask reaches are rasterised.
    first, last = int(mask.starts[0]) // mask.height, (int(mask.ends[-1]) - 1) // mask.height
    base = first * mask.height
    columns = MaskRuns(mask.starts - base, mask.ends - base, mask.height, last - first + 1)
    contours, _ = cv2.findContours(
        columns.to_image().view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(first, 0)
    )
    return [contour.reshape(-1).tolist() for contour in contours]
