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

    Example:
        >>> encode_all([MaskRuns.from_image(np.ones((2, 3), bool))])
        [b'06']
    """
    if not masks:
        return []
    counts, lengths = _counts(masks)
    deltas = counts.copy()
    deltas[2:] -= counts[:-2]
    heads = np.cumsum(lengths) - lengths
    for place in range(3):  # the first counts of a mask are stored unchanged
        own = heads[lengths > place] + place
        deltas[own] = counts[own]
    text, sizes = _base32(deltas)
    ends = np.cumsum(np.add.reduceat(sizes, heads)).tolist()
    return [text[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def encode(mask: NDArray[np.bool_] | NDArray[np.uint8]) -> bytes:
    """Encode a whole mask [height, width], set where not 0, to compressed ``counts``.

    Example:
        >>> encode(np.array([[0, 1], [0, 1]], bool))  # two pixels not set, then two set
        b'22'
    """
    return encode_all([MaskRuns.from_image(mask)])[0]


def decode(counts: bytes, height: int, width: int) -> NDArray[np.bool_]:
    """Decode compressed ``counts``.

    Returns:
        bool [height, width], C-contiguous.

    Raises:
        ValueError: the runs do not add up to height times width, or the bytes are no such encoding.

    Example:
        >>> decode(b"22", height=2, width=2).astype(int).tolist()
        [[0, 1], [0, 1]]
    """
    runs = decompress(counts)
    if runs.sum() != height * width or (runs < 0).any():
        raise ValueError(f"the runs add up to {int(runs.sum())} pixels; the image has {height}x{width}")
    values = np.arange(len(runs)) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, runs).reshape(width, height).T)


def area(counts: bytes) -> int:
    """Pixels set in a mask given by its compressed ``counts``.

    Example:
        >>> area(b"22")
        2
    """
    return int(decompress(counts)[1::2].sum())


def _counts(masks: Sequence[MaskRuns]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lengths of the alternating runs of 0 and 1 over the whole image, the first one of 0, mask behind mask.

    Returns:
        int64 [sum of lengths], and how many belong to each mask: int64 [masks].
    """
    runs = np.array([len(mask.starts) for mask in masks])
    sizes = np.array([mask.height * mask.width for mask in masks])
    starts = np.concatenate([mask.starts for mask in masks])
    ends = np.concatenate([mask.ends for mask in masks])
    behind = np.cumsum(runs)
    some = runs > 0
    previous = np.zeros_like(ends)  # end of the run before, 0 for a mask's first
    previous[1:] = ends[:-1]
    previous[(behind - runs)[some]] = 0
    covered = np.zeros_like(sizes)
    covered[some] = ends[behind[some] - 1]
    # A mask has two counts per run, of 0 and of 1, and the last one of 0.
    place = 2 * np.arange(len(starts)) + np.repeat(np.arange(len(masks)), runs)
    counts = np.empty(2 * len(starts) + len(masks), np.int64)
    counts[place] = starts - previous
    counts[place + 1] = ends - starts
    foot = 2 * behind + np.arange(len(masks))
    counts[foot] = sizes - covered
    # The last one is left out where the mask reaches the last pixel.
    full = some & (covered == sizes)
    return (np.delete(counts, foot[full]) if full.any() else counts), 2 * runs + 1 - full


def _base32(values: NDArray[np.int64]) -> tuple[bytes, NDArray[np.int64]]:
    """Write numbers in COCO's base-32 form: all characters, and how many belong to each number."""
    # A group holds five bits, the last one's first bit being the sign.
    groups = (int(np.abs(values).max()).bit_length() + 5) // 5
    characters = np.zeros((len(values), groups), np.uint8)
    sizes = np.ones(len(values), np.int64)
    active = np.arange(len(values))
    for group in range(groups):
        low = values & 31
        values = values >> 5
        more = values != -(low >> 4)  # what remains is more than the sign
        characters[active, group] = low + 48 + 32 * more
        active, values = active[more], values[more]
        if not len(active):
            break
        sizes[active] += 1
    return characters[characters > 0].tobytes(), sizes


def decompress(counts: bytes) -> NDArray[np.int64]:
    """Read run lengths from COCO's base-32 form.

    Raises:
        ValueError: a character out of range, or the last number is cut off.

    Example:
        >>> decompress(b"22").tolist()
        [2, 2]
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
