"""Calibration images: found, decoded and letterboxed by the very code that serves, and hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from builder.errors import CalibrationError
from pipeline.errors import ImageError
from pipeline.images import decode_image
from pipeline.letterbox import letterbox

IMAGE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
ADVISED_IMAGES: Final = 500
"""What NVIDIA's Model Optimizer advises at least for convolutional networks."""


@dataclass(frozen=True)
class CalibrationSet:
    """Images for calibration.

    Attributes:
        paths: the image files, sorted.
        sha256: over the files' contents in that order, hexadecimal.
        warning: what is wrong with the set, for people; None if nothing.
    """

    paths: tuple[Path, ...]
    sha256: str
    warning: str | None = None

    def __len__(self) -> int:
        return len(self.paths)

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
            out = np.empty((input_height, input_width, 3), np.uint8)
            letterbox(image, out)
            yield out


def calibration_set(images: Sequence[Path], warning: str | None = None) -> CalibrationSet:
    """Take images for calibration.

    Args:
        images: files, or folders that are searched for images.
        warning: what is known to be wrong with them; None warns of too few.

    Raises:
        CalibrationError: nothing was found.
    """
    paths = find_images(images)
    if warning is None and len(paths) < ADVISED_IMAGES:
        warning = (
            f"{len(paths)} calibration images; {ADVISED_IMAGES} or more of what the camera will see are advised. int8 "
            "accuracy may suffer"
        )
    return CalibrationSet(paths, _hash(paths), warning)


def find_images(images: Sequence[Path]) -> tuple[Path, ...]:
    """Image files among files and folders, sorted.

    Raises:
        CalibrationError: a path does not exist, or there is no image.
    """
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
