"""The overlay picture, drawn in a separate process: one that ends on a picture is replaced."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from http import HTTPStatus
from multiprocessing.connection import wait
from typing import Final

from gateway.errors import Refusal
from gateway.limits import Limits
from pipeline.errors import BUSY, ImageError
from pipeline.result import Segmentation

KINDS: Final = {"image/png": ".png", "image/jpeg": ".jpg"}
"""Content types that can be asked for, and OpenCV's name for each."""

_JPEG_QUALITY: Final = 90


class Pictures:
    """Draws overlays, one at a time.

    Args:
        limits: of one overlay, and how many may wait.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting = 0
        self._pool: ProcessPoolExecutor | None = None

    async def draw(self, image: bytes, result: Segmentation, kind: str) -> bytes:
        """Draw masks, boxes and labels over an image.

        Args:
            image: encoded.
            result: for this image.
            kind: content type, one of :data:`KINDS`.

        Raises:
            Refusal: it is too much work (413), too many are waiting (429), or the drawing failed (500).
        """
        limits = self._limits
        height, width = result.image_size
        if height * width > limits.picture_pixels or height * width * (1 + len(result)) > limits.picture_work:
            raise Refusal(
                f"the overlay of {width}x{height} pixels with {len(result)} detections is too much; allowed: "
                f"{limits.picture_pixels} pixels, and {limits.picture_work} pixels times detections. Ask for JSON "
                "(Accept: application/json), for fewer detections, or send a smaller image",
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            )
        if self._waiting >= limits.pictures:
            raise Refusal(f"{BUSY}: too many pictures are being drawn; try again", HTTPStatus.TOO_MANY_REQUESTS)
        self._waiting += 1
        try:
            if self._pool is None:
                self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _end_with_parent)
            return await asyncio.get_running_loop().run_in_executor(
                self._pool, _drawn, image, result, kind, limits.picture_pixels
            )
        except BrokenProcessPool:
            self._pool = None
            raise Refusal(
                "the process that draws pictures ended; ask for JSON", HTTPStatus.INTERNAL_SERVER_ERROR
            ) from None
        except ImageError as error:
            raise Refusal(str(error)) from None
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """End the process."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def _drawn(image: bytes, result: Segmentation, kind: str, most_pixels: int) -> bytes:
    import cv2

    from pipeline.images import ImageLimits, decode_image
    from pipeline.overlay import draw_overlay

    cv2.setNumThreads(1)
    drawn = draw_overlay(decode_image(image, ImageLimits(max_pixels=most_pixels)), result)
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if kind == "image/jpeg" else [cv2.IMWRITE_PNG_COMPRESSION, 3]
    return cv2.imencode(KINDS[kind], cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR), quality)[1].tobytes()


def _end_with_parent() -> None:
    """End this process when the gateway's has ended, however that came."""
    parent = multiprocessing.parent_process()

    def look() -> None:
        if parent is not None:
            wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()
