"""COCO's compressed run-length encoding, straight from runs and without a full-image array.

The format is that of pycocotools' ``maskApi.c``: runs of 0 and 1 alternate, starting with 0, down the columns of
the image; each count after the third is stored as the difference from the count before the last; numbers are
written in base 32, least group first, with a continuation bit, as characters from 48 (``0``) on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.masks import MaskRuns

_MAX_GROUPS = 7  # 5 bits each hold any 32-bit count's difference


def encode_all(masks: Sequence[MaskRuns]) -> list[bytes]:
    """Encode masks, all in one pass.

    Returns:
        Per mask the compressed ``counts`` of COCO, whose ``size`` is [height, width].
    """
    if not masks:
        return []
    counts = [_counts(mask) for mask in masks]
    lengths = [len(one) for one in counts]
    values = np.concatenate(counts)
    index = np.concatenate([np.arange(length) for length in lengths])
    deltas = values.copy()
    deltas[2:] -= np.where(index[2:] > 2, values[:-2], 0)
    text, sizes = _base32(deltas)
    ends = np.cumsum(np.add.reduceat(sizes, np.cumsum([0, *lengths[:-1]])))
    return [text[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def encode(mask: NDArray[np.bool_] | NDArray[np.uint8]) -> bytes:
    """Encode a whole mask [height, width], set where not 0, to compressed ``counts``."""
    return encode_all([MaskRuns.from_image(mask)])[0]


def decode(counts: bytes, height: int, width: int) -> NDArray[np.bool_]:
    """Decode compressed ``counts``.

    Returns:
        bool [height, width], C-contiguous.

    Raises:
        ValueError: the runs do not add up to height times width, or the bytes are no such encoding.
    """
    runs = decompress(counts)
    if runs.sum() != height * width or (runs < 0).any():
        raise ValueError(f"the runs add up to {int(runs.sum())} pixels; the image has {height}x{width}")
    values = np.arange(len(runs)) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, runs).reshape(width, height).T)


def area(counts: bytes) -> int:
    """Pixels set in a mask given by its compressed ``counts``."""
    return int(decompress(counts)[1::2].sum())


def _counts(mask: MaskRuns) -> NDArray[np.int64]:
    """Lengths of the alternating runs of 0 and 1 over the whole image, int64, the first one of 0."""
    size = mask.height * mask.width
    bounds = np.empty(2 * len(mask.starts) + 2, np.int64)
    bounds[0] = 0
    bounds[1:-1:2] = mask.starts
    bounds[2:-1:2] = mask.ends
    bounds[-1] = size
    counts = np.diff(bounds)
    # The last run of 0 is left out where the mask reaches the last pixel.
    return counts[:-1] if len(mask.ends) and mask.ends[-1] == size else counts


def _base32(values: NDArray[np.int64]) -> tuple[bytes, NDArray[np.int64]]:
    """Write numbers in COCO's base-32 form: all characters, and how many belong to each number."""
    characters = np.zeros((len(values), _MAX_GROUPS), np.uint8)
    used = np.zeros((len(values), _MAX_GROUPS), bool)
    active = np.arange(len(values))
    for group in range(_MAX_GROUPS):
        low = values & 31
        values = values >> 5
        more = np.where(low & 16, values != -1, values != 0)
        characters[active, group] = low + np.where(more, 32 + 48, 48)
        used[active, group] = True
        active, values = active[more], values[more]
        if not len(active):
            break
    return characters[used].tobytes(), used.sum(axis=1)


def decompress(counts: bytes) -> NDArray[np.int64]:
    """Read run lengths from COCO's base-32 form.

    Raises:
        ValueError: a character out of range, or the last number is cut off.
    """
    groups = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not len(groups):
        return np.zeros(0, np.int64)
    last = (groups & 32) == 0
    if groups.min() < 0 or groups.max() > 63 or not last[-1]:
        raise ValueError("the bytes are not COCO compressed run lengths")
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    index = np.arange(len(groups)) - np.repeat(starts, np.diff(np.append(starts, len(groups))))
    if index.max() >= _MAX_GROUPS:
        raise ValueError("the bytes are not COCO compressed run lengths")
    values = np.add.reduceat((groups & 31) << (5 * index), starts)
    negative = (groups[last] & 16) != 0
    values -= np.where(negative, 1 << (5 * (index[last] + 1)), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
