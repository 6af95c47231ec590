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


def find_unfit(masks: Sequence[bytes], pixels: int) -> int | None:
    """One of several compressed ``counts`` that does not fit an image, found in one pass without decoding.

    Args:
        masks: compressed ``counts``; may be any bytes.
        pixels: of the image.

    Returns:
        Index of one that is no such encoding, or whose runs do not add up to ``pixels``; None if all fit.

    Example:
        >>> find_unfit([b"22", b"04", b"23"], pixels=4)
        2
    """
    if not masks:
        return None
    sizes = np.array([len(mask) for mask in masks])
    ends = np.cumsum(sizes)
    groups = np.frombuffer(b"".join(masks), np.uint8) - np.uint8(48)  # what lies below wraps around
    if not sizes.all() or groups.max() > 63:
        empty, wrong = np.flatnonzero(sizes == 0)[:1], np.flatnonzero(groups > 63)[:1]
        return int(min(*empty, *np.searchsorted(ends, wrong, side="right"), len(masks)))
    last = groups < 32
    cut = np.flatnonzero(~last[ends - 1])
    if cut.size:
        return int(cut[0])
    stops = np.flatnonzero(last)
    lengths = np.diff(stops, prepend=-1)
    behind = np.searchsorted(stops, ends - 1) + 1  # numbers up to the end of each mask
    if lengths.max() > _MAX_GROUPS:
        return int(np.searchsorted(behind, lengths.argmax(), side="right"))
    # From the last group to the first; the last one's bit of 16 is the sign.
    values = ((groups[stops] & 31 ^ 16).astype(np.int64)) - 16
    more, place = np.arange(len(stops)), stops
    for group in range(1, int(lengths.max())):
        longer = lengths[more] > group
        more, place = more[longer], place[longer] - 1
        values[more] = (values[more] << 5) + (groups[place] & 31)
    return _wrong_sum(values, np.diff(behind, prepend=0), pixels)


def _wrong_sum(values: NDArray[np.int64], lengths: NDArray[np.int64], pixels: int) -> int | None:
    """A mask whose runs, given as differences, leave [0, pixels] or do not add up to ``pixels``."""
    # At even and at odd places, each run is the sum of its mask's differences so far; both get as many places.
    rows = (lengths + 1) // 2
    tails = np.cumsum(rows)
    heads = tails - rows
    padding = 2 * tails[lengths % 2 == 1] - 1  # no run there
    used = np.ones(2 * int(tails[-1]), np.bool_)
    used[padding] = False
    differences = np.zeros(len(used), np.int64)
    differences[used] = values
    even, odd = differences[0::2].copy(), differences[1::2].copy()
    first = even[heads]  # no difference is taken to it
    even[heads] = 0
    for runs in (even, odd):
        runs[heads[1:]] -= np.add.reduceat(runs, heads)[:-1]  # begins anew with each mask
        np.cumsum(runs, out=runs)
    even[heads] = first
    odd[padding // 2] = 0
    wrong = np.add.reduceat(even, heads) + np.add.reduceat(odd, heads) != pixels
    for runs in (even, odd):
        outside = runs.view(np.uint64) > pixels  # or negative
        if outside.any():
            wrong |= np.logical_or.reduceat(outside, heads)
    found = np.flatnonzero(wrong)
    return int(found[0]) if found.size else None


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
