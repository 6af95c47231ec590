"""Encoding masks in the formats of the contract, and decoding them."""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline import rle
from pipeline.contract import MASK_FORMATS
from pipeline.image_structure import check_png, plain_png
from pipeline.masks import MaskRuns
from pipeline.outlines import Outlines
from pipeline.png_mask import write_png

_RUNS_AT_ONCE: Final = 1 << 17
"""Most runs whose outlines are computed at once: bounds the memory of a request with many large masks."""

MOST_MASK_BYTES: Final = 64 * 1024 * 1024
"""Most bytes of one encoded mask that is decoded: as many as an image may have."""

_PNG_HEAD: Final = struct.Struct(">8s8sII9x")  # signature, IHDR's length and type, width, height, the rest of IHDR
_PNG_START: Final = (b"\x89PNG\r\n\x1a\n", b"\0\0\0\rIHDR")
_BASE64_HEAD: Final = 44  # characters that hold the 33 bytes of a PNG's head
_OF_NUMBERS: Final = b"0123456789, "


def encode_masks(masks: Sequence[MaskRuns], mask_format: str) -> list[bytes]:
    """Encode the masks of one image.

    Args:
        masks: the masks.
        mask_format: ``rle``: COCO compressed ``counts``. ``png``: one-bit PNG of the whole image. ``png_base64``: the
            same as base64 text, for answers in JSON. ``none``: no bytes. ``polygon``: JSON list of polygons, each a
            flat list of whole numbers x, y.

    A polygon runs along the sides of pixels: (0, 0) is the image's upper left corner, (width, height) its lower right
    one, and the polygon of the first pixel is ``[1,0,1,1,0,1,0,0]``. There is one for each part of the mask (pixels
    that touch at a corner only are two parts), of at least four points, the first not repeated. A hole is
    part of the polygon around it, joined by a line that is walked there and back. So the polygons' areas (shoelace
    formula) add up to the mask's, and COCO's tools (``frPyObjects``, ``merge``) give back the mask, pixel by pixel.

    Raises:
        ValueError: an unknown format.

    Example:
        >>> mask = MaskRuns.from_image(np.ones((2, 3), bool))
        >>> encode_masks([mask], "polygon"), encode_masks([mask], "rle")
        ([b'[[3,0,3,2,0,2,0,0]]'], [b'06'])
    """
    if mask_format == "rle":
        return rle.encode_all(masks)
    if mask_format == "polygon":
        return [encoded for some in _portions(masks) for encoded in _polygons(some)]
    if mask_format == "png":
        return [encoded for some in _portions(masks) for encoded in _pngs(some)]
    if mask_format == "png_base64":
        return [base64.b64encode(png) for png in encode_masks(masks, "png")]
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

    Example:
        >>> decode_mask(b"[[0,0,1,0,1,2,0,2]]", "polygon", height=2, width=3).astype(int).tolist()
        [[1, 0, 0], [1, 0, 0]]
    """
    if mask_format == "rle":
        return rle.decode(encoded, height, width)
    if mask_format == "polygon":
        return _filled(encoded, height, width)
    if mask_format in ("png", "png_base64"):
        if mask_format == "png_base64":
            encoded = _from_base64(encoded)
        return _png_pixels(encoded, height, width) > 0
    if mask_format == "none":
        raise ValueError("no masks were asked for: mask_format was 'none'")
    raise ValueError(f"mask format {mask_format!r}; allowed: {', '.join(MASK_FORMATS)}")


def check_masks(masks: Sequence[bytes], mask_format: str, height: int, width: int) -> None:
    """Check, without decoding, that masks of one image can be decoded with bounded work.

    Run lengths are checked in full. Of the others, kind and size are checked here, and the rest by
    :func:`decode_mask`.

    Args:
        masks: encoded masks from elsewhere; any bytes.
        mask_format: the format that was asked for.
        height: of the image, in pixels.
        width: of the image, in pixels.

    Raises:
        ValueError: one is not such a mask; says which.

    Example:
        >>> check_masks([b"06"], "rle", height=2, width=3)
        >>> check_masks([b"06", b"5"], "polygon", height=2, width=3)
        Traceback (most recent call last):
        ValueError: mask 0 is not a polygon mask of 2x3 pixels
    """
    if mask_format == "none":
        return
    if mask_format == "rle":
        wrong = rle.find_unfit(masks, height * width)
    else:
        fits = _FITS[mask_format]
        wrong = next((index for index, mask in enumerate(masks) if not fits(mask, height, width)), None)
    large = next((index for index, mask in enumerate(masks) if len(mask) > MOST_MASK_BYTES), None)
    if wrong is not None:
        raise ValueError(f"mask {wrong} is not a {mask_format} mask of {height}x{width} pixels")
    if large is not None:
        raise ValueError(f"mask {large} has {len(masks[large])} bytes; allowed: {MOST_MASK_BYTES}")


def _is_polygons(encoded: bytes, *_: int) -> bool:
    """Whether there is nothing but lists of numbers in one list: no nesting that would exhaust a JSON reader."""
    brackets = encoded.translate(None, _OF_NUMBERS)
    return brackets == b"[" + b"[]" * (len(brackets) // 2 - 1) + b"]"


def _is_png(encoded: bytes, height: int, width: int) -> bool:
    if len(encoded) < _PNG_HEAD.size:
        return False
    *start, png_width, png_height = _PNG_HEAD.unpack_from(encoded)
    return tuple(start) == _PNG_START and (png_height, png_width) == (height, width)


def _is_base64_png(encoded: bytes, height: int, width: int) -> bool:
    try:
        return _is_png(_from_base64(encoded[:_BASE64_HEAD]), height, width)
    except ValueError:
        return False


_FITS: Final[Mapping[str, Callable[[bytes, int, int], bool]]] = {
    "polygon": _is_polygons,
    "png": _is_png,
    "png_base64": _is_base64_png,
}


def _png_pixels(encoded: bytes, height: int, width: int) -> NDArray[np.uint8]:
    """Gray pixels of a PNG; no other format reaches the decoder."""
    fault = ValueError(f"the bytes are not a PNG mask of {height}x{width} pixels")
    if not _is_png(encoded, height, width):
        raise fault
    try:
        check_png(encoded)
        image = cv2.imdecode(np.frombuffer(plain_png(encoded), np.uint8), cv2.IMREAD_GRAYSCALE)
    except (ValueError, struct.error, cv2.error):
        raise fault from None
    if image is None or image.shape != (height, width):
        raise fault
    return np.asarray(image, np.uint8)


def _portions(masks: Sequence[MaskRuns]) -> Iterator[Sequence[MaskRuns]]:
    """The masks in order, in portions of at most :data:`_RUNS_AT_ONCE` runs."""
    first, runs = 0, 0
    for index, mask in enumerate(masks):
        if runs and runs + len(mask.starts) > _RUNS_AT_ONCE:
            yield masks[first:index]
            first, runs = index, 0
        runs += len(mask.starts)
    if first < len(masks):
        yield masks[first:]


def _pngs(masks: Sequence[MaskRuns]) -> list[bytes]:
    outlines = Outlines.of(masks)
    top, bottom = outlines.edge_y[outlines.upper], outlines.edge_y[outlines.lower]
    parts = np.flatnonzero(top < bottom)
    bounds = np.searchsorted(outlines.edge_mask[outlines.upper[parts]], np.arange(len(masks) + 1)).tolist()
    height, width = masks[0].height, masks[0].width
    encoded = []
    for low, high in pairwise(bounds):
        some = parts[low:high]
        encoded.append(write_png(outlines.x[some], top[some], bottom[some], ~outlines.down[some], height, width))
    return encoded


def _polygons(masks: Sequence[MaskRuns]) -> list[bytes]:
    filled = [mask for mask in masks if len(mask.starts)]
    found = iter(Outlines.of(filled).polygons() if filled else [])
    return [json.dumps(next(found) if len(mask.starts) else [], separators=(",", ":")).encode() for mask in masks]


def _filled(encoded: bytes, height: int, width: int) -> NDArray[np.bool_]:
    """The mask of polygons that run along the sides of pixels: set where an odd number of edges lies above."""
    fault = ValueError(f"the bytes are not polygons along the sides of pixels within {height}x{width} pixels")
    if not _is_polygons(encoded):
        raise fault
    marks = [np.zeros(0, np.int64)]
    sides = width * (height + 1)  # of pixels, along rows: outlines use each at most once
    try:
        for polygon in json.loads(encoded):
            x, y = np.array(polygon, np.int64).reshape(-1, 2).T
            next_x, next_y = np.roll(x, -1), np.roll(y, -1)
            aslant = (x != next_x) & (y != next_y)
            if aslant.any() or x.min() < 0 or y.min() < 0 or x.max() > width or y.max() > height:
                raise fault
            count = np.abs(next_x - x)
            sides -= int(count.sum())
            if sides < 0:
                raise fault
            column = np.arange(int(count.sum())) + np.repeat(np.minimum(x, next_x) - np.cumsum(count) + count, count)
            marks.append(column * height + np.repeat(y, count))
    except (ValueError, TypeError, OverflowError):
        raise fault from None
    edges = np.sort(np.concatenate(marks))
    return MaskRuns(edges[0::2], edges[1::2], height, width).to_image()


def _from_base64(encoded: bytes) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise ValueError(f"the bytes are not a PNG mask in base64: {error}") from None
