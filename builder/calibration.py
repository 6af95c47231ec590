"""Calibration images: found, decoded and letterboxed by the very code that serves, and hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from builder.errors import CalibrationError
from pipeline.errors import ImageError
from pipeline.images import decode_image
from pipeline.letterbox import letterbox

IMAGE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
ADVISED_IMAGES: Final = 500
"""What NVIDIA's Model Optimizer advises at least for convolutional networks."""
AUGMENTED_PER_IMAGE: Final = 8


@dataclass(frozen=True)
class CalibrationSet:
    """Images for calibration.

    Attributes:
        paths: the image files, sorted.
        sha256: over the files' contents in that order, hexadecimal.
        augmented: variants per file; 1 means each file as it is.
        warning: what is wrong with the set, for people; None if nothing.
    """

    paths: tuple[Path, ...]
    sha256: str
    augmented: int = 1
    warning: str | None = None

    def __len__(self) -> int:
        return len(self.paths) * self.augmented

    def letterboxed(self, input_height: int, input_width: int) -> Iterator[NDArray[np.uint8]]:
        """Each image as the network sees it: uint8 [input_height, input_width, 3] RGB.

        Raises:
            CalibrationError: a file is not an image; names it.
        """
        for path in self.paths:
            try:
                image = decode_image(path.read_bytes())
            except (ImageError, OSError) as error:
                raise CalibrationError(f"calibration image {path}: {error}; remove or replace it") from error
            for variant in _variants(image, self.augmented):
                out = np.empty((input_height, input_width, 3), np.uint8)
                letterbox(variant, out)
                yield out


def calibration_set(images: Sequence[Path]) -> CalibrationSet:
    """Images of one's own: files, or folders that are searched for images.

    Raises:
        CalibrationError: nothing was found.
    """
    paths = _find(images)
    warning = None
    if len(paths) < ADVISED_IMAGES:
        warning = (
            f"{len(paths)} calibration images; {ADVISED_IMAGES} or more of what the camera will see are advised. int8 "
            "accuracy may suffer"
        )
    return CalibrationSet(paths, _hash(paths), 1, warning)


def augmented_set(images: Sequence[Path]) -> CalibrationSet:
    """A few photographs, turned, mirrored and relit, for want of anything better.

    Raises:
        CalibrationError: nothing was found.
    """
    paths = _find(images)
    warning = (
        f"calibrating on {len(paths)} reference photographs with {AUGMENTED_PER_IMAGE} variants each: enough to try "
        f"int8, too few for production. Give {ADVISED_IMAGES} or more images of your own with --images"
    )
    return CalibrationSet(paths, _hash(paths), AUGMENTED_PER_IMAGE, warning)


def _find(images: Sequence[Path]) -> tuple[Path, ...]:
    found: list[Path] = []
    for path in images:
        if path.is_dir():
            found += [file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
        elif path.is_file():
            found.append(path)
        else:
            raise CalibrationError(f"{path}: no such file or folder; give images with --images")
    if not found:
        raise CalibrationError(
            f"no images in {', '.join(map(str, images))}; int8 needs images of what will be segmented "
            f"({', '.join(IMAGE_SUFFIXES)})"
        )
    return tuple(sorted(found))


def _hash(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _variants(image: NDArray[np.uint8], count: int) -> Iterator[NDArray[np.uint8]]:
    """The image and ``count - 1`` variants: quarter turns, mirrored, darker and brighter. The same every time."""
    turns: list[Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = [
        lambda pixels: pixels,
        lambda pixels: np.ascontiguousarray(np.rot90(pixels, 1)),
        lambda pixels: np.ascontiguousarray(np.rot90(pixels, 2)),
        lambda pixels: np.ascontiguousarray(np.rot90(pixels, 3)),
    ]
    for index in range(count):
        variant = turns[index % 4](image)
        if index >= 4:
            gain = (0.6, 1.4)[index % 2]
            variant = np.asarray(cv2.convertScaleAbs(variant[:, ::-1], alpha=gain), np.uint8)
        yield variant
