"""Video files and cameras through the server: bounded frames in flight, in order."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from client.coco import CocoDocument
from client.errors import AnswerError, SegmentationError, ServerUnavailableError
from client.images import encode_pixels
from client.segmentation import AsyncSegmentationClient
from client.tracking import Tracker
from client.window import ordered_window
from pipeline.overlay import draw_overlay
from pipeline.result import Segmentation

Frame: TypeAlias = "NDArray[np.uint8]"

VideoSource: TypeAlias = "Path | str | int"
"""A file, the address of a stream or of a file on a server, or the index of a camera."""

ADDRESS: Final = re.compile(r"(rtsps?|rtmps?|https?|udp|srt)://.+", re.IGNORECASE)
"""Addresses that are opened, by OpenCV's FFmpeg."""

_FALLBACK_FPS: Final = 25.0
_MAX_FPS: Final = 240.0  # containers without a rate report nonsense such as 90000
_ADDRESS_TIMEOUT_MS: Final = 10_000  # to connect, and between two frames
_LEAST_MISSING: Final = 2  # frames; headers count them, edit lists hide some
_LEAST_MISSING_SHARE: Final = 0.01
_RATE_WINDOW: Final = 60  # frames over which the rate shown is taken


class VideoError(Exception):
    """A video cannot be read or written; the message says which and why."""


@dataclass(frozen=True)
class VideoSettings:
    """How frames are sent, and what is written."""

    output: Path | None = None  # overlay video to write (MPEG-4 part 2, without sound); None writes none
    in_flight: int = 4  # frames in flight at once
    jpeg_quality: int = 90  # 1 to 100, of the frames sent
    options: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments of ``segment``
    class_names: Mapping[int, str] = field(default_factory=dict)  # for labels
    tracker: Tracker | None = None  # gives objects numbers that last from frame to frame
    document: CocoDocument | None = None  # gets every frame's result, as image ``frame_000001`` and so on


@dataclass(frozen=True)
class VideoProgress:
    """Progress of a run."""

    frames: int = 0  # frames finished
    failed: int = 0  # of these, frames without a result; the overlay video shows them unchanged
    last_error: str | None = None  # number and error of the last of them
    detections: int = 0  # instances in the last frame
    fps: float = 0.0  # frames per second over the latest frames
    elapsed_s: float = 0.0  # seconds since the start


class VideoInput:
    """A video file, a stream or a camera.

    Args:
        source: path of a file, an address (see :data:`ADDRESS`), or the index of a camera.

    Attributes:
        name: of the source, for messages; passwords in addresses are left out.
        fps: nominal frames per second; 25 where the source does not say.
        frame_count: frames in all; None where the source does not say.
        shortfall: after the last frame: what is missing compared with the header; None if nothing is.

    Raises:
        VideoError: it cannot be opened.
    """

    def __init__(self, source: VideoSource) -> None:
        self._lock = threading.Lock()  # after an interrupt a read may still run in its thread; closing waits for it
        self.name = source_name(source)
        self._capture = _opened(source)
        if not self._capture.isOpened():
            raise VideoError(
                f"{self.name}: cannot be opened as a video; check that it exists and that OpenCV can decode it"
            )
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and 0 < fps <= _MAX_FPS else _FALLBACK_FPS
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.frame_count = count if count > 0 and not isinstance(source, int) else None
        self.shortfall: str | None = None
        self._frames_read, self._last_s = 0, 0.0

    async def frames(self, stop: asyncio.Event) -> AsyncIterator[Frame]:
        """Read frames, uint8 [height, width, 3] RGB, until the source ends or ``stop`` is set."""
        while not stop.is_set():
            frame = await asyncio.to_thread(self._read)
            if frame is None:
                return
            yield frame

    def close(self) -> None:
        """Close the source."""
        with self._lock:
            self._capture.release()

    def _read(self) -> Frame | None:
        with self._lock:
            there, frame = self._capture.read()
            if not there:
                self.shortfall = self._missing()
                return None
            self._frames_read += 1
            self._last_s = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        return np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)

    def _missing(self) -> str | None:
        """What is missing after the last frame. Headers may be wrong: frame count and duration must both fall short."""
        if self.frame_count is None:
            return None
        missing = self.frame_count - self._frames_read
        least = max(_LEAST_MISSING, _LEAST_MISSING_SHARE * self.frame_count)
        if missing <= least or self._last_s + least / self.fps >= self.frame_count / self.fps:
            return None
        return (
            f"{self.name} ended after {self._frames_read} of the {self.frame_count} frames that its header says: it is "
            "cut off or damaged there"
        )


def source_name(source: VideoSource) -> str:
    """What messages call a source; passwords in addresses are left out."""
    if isinstance(source, int):
        return f"camera {source}"
    return re.sub(r"//[^/@]*@", "//", source) if isinstance(source, str) else str(source)


def _opened(source: VideoSource) -> cv2.VideoCapture:
    if isinstance(source, int):
        return cv2.VideoCapture(source)
    if isinstance(source, Path):
        with _named_for_opencv(source) as name:
            return cv2.VideoCapture(name)
    bounds = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _ADDRESS_TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _ADDRESS_TIMEOUT_MS]
    return cv2.VideoCapture(source, cv2.CAP_FFMPEG, bounds)


@contextlib.contextmanager
def _named_for_opencv(path: Path) -> Iterator[str]:
    """A name of a file or folder that is UTF-8, until the block ends: OpenCV 4.11 crashes on any other."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError:  # OpenCV does not open this either
            yield ""
            return
        try:
            yield f"/proc/self/fd/{handle}"
        finally:
            os.close(handle)
    else:
        yield str(path)


class VideoOutput:
    """Writes an MPEG-4 file beside its place and renames it when closed, also after an error.

    Args:
        path: of the file, its suffix ``.mp4``; folders are made.
        fps: nominal frames per second.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self._path, self._fps = path, fps
        stem = path.stem.encode("ascii", "replace").decode().replace("?", "_")
        self._partial = path.with_name(f".{stem}.partial.mp4")
        self._lock = threading.Lock()  # as in VideoInput
        self._writer: cv2.VideoWriter | None = None
        self._size: tuple[int, int] = (0, 0)

    def close(self) -> None:
        """Finish the file; without a frame there is none."""
        with self._lock:
            if self._writer is not None:
                self._writer.release()
                self._writer = None
                self._partial.replace(self._path)

    def write(self, frame: Frame) -> None:
        """Append a frame, uint8 [height, width, 3] RGB; the first one settles the size.

        Raises:
            VideoError: the file cannot be written, or the frame is of another size.
        """
        height, width = frame.shape[:2]
        with self._lock:
            if self._writer is None:
                self._writer = self._open(width, height)
            if (width, height) != self._size:  # OpenCV would drop it silently
                raise VideoError(
                    f"{self._path}: a frame of {width}x{height} pixels in a video of {self._size[0]}x{self._size[1]}"
                )
            self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def _open(self, width: int, height: int) -> cv2.VideoWriter:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VideoError(f"{self._path}: cannot be written: {error.strerror or error}") from error
        self._size = (width, height)
        with _named_for_opencv(self._partial.parent) as folder:
            name = f"{folder}/{self._partial.name}"
            writer = cv2.VideoWriter(name, cv2.VideoWriter.fourcc(*"mp4v"), self._fps, self._size)
        if not writer.isOpened():
            raise VideoError(f"{self._path}: cannot be written as MPEG-4 of {width}x{height} pixels")
        return writer


async def segment_video(
    client: AsyncSegmentationClient,
    video: VideoInput,
    settings: VideoSettings,
    stop: asyncio.Event,
    on_progress: Callable[[VideoProgress], None],
) -> VideoProgress:
    """Find the instances in every frame, and write the overlay video.

    A frame without a result stays in the video unchanged, and is counted.

    Args:
        client: where frames go.
        video: where they come from; the caller closes it.
        settings: how they are sent, and what is written.
        stop: once set, no more frames are read; those in flight are finished and the file is closed.
        on_progress: called after every frame, in order.

    Returns:
        The final progress.

    Raises:
        ServerUnavailableError: the server went away; what was finished before is in the overlay video.
        VideoError: the overlay video cannot be written.
    """

    async def work(frame: Frame) -> Segmentation | SegmentationError:
        encoded = await asyncio.to_thread(encode_pixels, frame, settings.jpeg_quality)
        try:
            return await client.segment(encoded, **settings.options)
        except ServerUnavailableError:
            raise
        except SegmentationError as error:
            return error

    tally = _Tally()
    output = VideoOutput(settings.output, video.fps) if settings.output is not None else None
    try:
        async with aclosing(ordered_window(video.frames(stop), work, settings.in_flight)) as answered:
            async for frame, answer in answered:
                result = answer
                if isinstance(result, Segmentation) and settings.tracker is not None:
                    result = await asyncio.to_thread(settings.tracker.update, result)
                if isinstance(result, Segmentation) and settings.document is not None:
                    settings.document.add(f"frame_{tally.progress.frames + 1:06d}", result)
                if output is not None:
                    result = await asyncio.to_thread(_write, output, frame, result, settings)
                on_progress(tally.count(result))
    finally:
        if output is not None:
            output.close()
    return tally.progress


def _write(
    output: VideoOutput, frame: Frame, result: Segmentation | SegmentationError, settings: VideoSettings
) -> Segmentation | SegmentationError:
    """Write a frame with its overlay; returns the result, or what is wrong with it."""
    if isinstance(result, Segmentation):
        try:
            frame = draw_overlay(frame, result, class_names=settings.class_names, color_by="class")
        except ValueError as error:  # a mask that cannot be decoded
            result = AnswerError(f"the overlay cannot be drawn: {error}")
    output.write(frame)
    return result


class _Tally:
    """Counts frames and their rate."""

    def __init__(self) -> None:
        self.progress = VideoProgress()
        self._started = time.perf_counter()
        self._ends_s: deque[float] = deque([0.0], maxlen=_RATE_WINDOW + 1)

    def count(self, result: Segmentation | SegmentationError) -> VideoProgress:
        """Count one finished frame."""
        before = self.progress
        frames = before.frames + 1
        failed = isinstance(result, SegmentationError)
        elapsed_s = time.perf_counter() - self._started
        self._ends_s.append(elapsed_s)
        self.progress = VideoProgress(
            frames=frames,
            failed=before.failed + failed,
            last_error=f"frame {frames}: {result}" if failed else before.last_error,
            detections=0 if isinstance(result, SegmentationError) else len(result),
            fps=(len(self._ends_s) - 1) / max(elapsed_s - self._ends_s[0], 1e-9),
            elapsed_s=elapsed_s,
        )
        return self.progress
