"""Image files through the server: bounded requests in flight, overlays, one outcome per image."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import cv2

from client.errors import AnswerError, RequestError, SegmentationError
from client.files import write_atomically
from client.images import encoded_image
from client.segmentation import AsyncSegmentationClient
from client.window import as_async, ordered_window
from pipeline import contract
from pipeline.image_files import Source, SourceError
from pipeline.images import ImageLimits, decode_image
from pipeline.overlay import draw_overlay
from pipeline.result import Segmentation

# What the server accepted is drawn at any size; the limits are the server's.
_NO_LIMITS: Final = ImageLimits(max_pixels=2**30, max_bytes=2**31)
_OVERLAY_JPEG_QUALITY: Final = 92
_JPEG_SUFFIXES: Final = (".jpg", ".jpeg", ".jpe")
_OVERLAY_SUFFIXES: Final = (*_JPEG_SUFFIXES, ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff")


@dataclass(frozen=True)
class PhotoSettings:
    """How images are sent, and what is written.

    Raises:
        ValueError: a number out of range.
    """

    out: Path | None = None  # folder for overlays; None writes none
    batch_size: int = 1  # images per request, 1 to :data:`pipeline.contract.MAX_REQUEST_BATCH`; large ones are split up
    concurrency: int = 4  # requests in flight at once
    options: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments of ``segment``
    class_names: Mapping[int, str] = field(default_factory=dict)  # for labels

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= contract.MAX_REQUEST_BATCH:
            raise ValueError(f"batch_size is {self.batch_size}; allowed: 1 to {contract.MAX_REQUEST_BATCH}")
        if self.concurrency < 1:
            raise ValueError(f"concurrency is {self.concurrency}; allowed: 1 or more")


@dataclass(frozen=True)
class Outcome:
    """The outcome of one image."""

    source: Source  # the image
    result: Segmentation | None = None  # what was found; None if no answer came
    error: str | None = None  # what failed, without the image's name; None if nothing did
    request_ms: float | None = None  # milliseconds from sending the image's request to having its answer


async def segment_photos(
    client: AsyncSegmentationClient, sources: Sequence[Source], settings: PhotoSettings
) -> AsyncGenerator[Outcome, None]:
    """Find the instances in image files.

    A refused batch is sent again image by image, and so is one whose answer is not understood, so that one bad image
    or answer does not lose the others.

    Yields:
        One outcome per source, in order; a failure is an outcome too.
    """
    groups = [sources[start : start + settings.batch_size] for start in range(0, len(sources), settings.batch_size)]

    async def work(group: Sequence[Source]) -> list[Outcome]:
        outcomes = await _segment_group(client, group, settings.options)
        if settings.out is None:
            return outcomes
        return [await asyncio.to_thread(_with_overlay, outcome, settings) for outcome in outcomes]

    async with aclosing(ordered_window(as_async(groups), work, settings.concurrency)) as answered:
        async for _, outcomes in answered:
            for outcome in outcomes:
                yield outcome


def overlay_path(source: Source, out: Path) -> Path:
    """Where a source's overlay is written: its name below ``out``, as PNG where OpenCV does not write its suffix."""
    path = out / source.name
    return path if path.suffix.lower() in _OVERLAY_SUFFIXES else path.with_name(path.name + ".png")


def check_overlays(sources: Sequence[Source], out: Path) -> None:
    """Check that no overlay would overwrite an image that was given.

    Raises:
        SourceError: one would.
    """
    inputs = {source.path.resolve() for source in sources}
    for source in sources:
        path = overlay_path(source, out)
        if path.resolve() in inputs:
            raise SourceError(f"the overlay of {source.path} would overwrite {path}; give another folder with --out")


async def _segment_group(
    client: AsyncSegmentationClient, group: Sequence[Source], options: Mapping[str, Any]
) -> list[Outcome]:
    started = time.perf_counter()
    try:
        results = await client.segment_batch([source.path for source in group], **options)
    except (RequestError, AnswerError) as error:
        if len(group) > 1:
            return [(await _segment_group(client, [source], options))[0] for source in group]
        return [Outcome(group[0], error=str(error).removeprefix(f"{group[0].path}: "))]
    except SegmentationError as error:
        return [Outcome(source, error=str(error)) for source in group]
    request_ms = (time.perf_counter() - started) * 1e3
    return [Outcome(source, result, None, request_ms) for source, result in zip(group, results, strict=True)]


def _with_overlay(outcome: Outcome, settings: PhotoSettings) -> Outcome:
    """Draw and write the overlay of an answered image."""
    if outcome.result is None or settings.out is None:
        return outcome
    path = overlay_path(outcome.source, settings.out)
    try:
        # Decoded as the server does, with EXIF orientation, so that coordinates match.
        image = decode_image(encoded_image(outcome.source.path), _NO_LIMITS)
        overlay = draw_overlay(image, outcome.result, class_names=settings.class_names)
        done, encoded = cv2.imencode(
            path.suffix.lower(),
            cv2.cvtColor(overlay, cv2.COLOR_RGB2BGR),
            [cv2.IMWRITE_JPEG_QUALITY, _OVERLAY_JPEG_QUALITY] if path.suffix.lower() in _JPEG_SUFFIXES else [],
        )
        if not done:
            raise ValueError(f"OpenCV cannot write {path.suffix}")
        write_atomically(path, encoded.tobytes())
    except (OSError, ValueError, cv2.error) as error:
        return Outcome(outcome.source, outcome.result, f"overlay {path} not written: {error}", outcome.request_ms)
    return outcome
